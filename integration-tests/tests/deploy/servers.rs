//! Processes of single servers, ended with the test, and what they need.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A debug build on a machine that also compiles; some seconds are the rule.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where this build's programs are.
pub fn programs() -> PathBuf {
    pegasus_onebox::find_server().unwrap().parent().unwrap().to_owned()
}

/// Runs to its end, which must be a good one; what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{told}", output.status);
    told
}

/// 127.x.y.1 ..: where nobody listens, and no connection takes a port by chance.
pub fn hosts<const N: usize>() -> [Ipv4Addr; N] {
    let (a, b) = (rand::random_range(1..=254), rand::random_range(0..=255));
    std::array::from_fn(|n| Ipv4Addr::new(127, a, b, u8::try_from(n + 1).unwrap()))
}

/// Until it gives something; panics with the last reason when that takes too long.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that does not outlive its test.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// What it prints.
    out: PathBuf,
}

impl Server {
    /// `out` gets what it prints.
    pub fn start(command: &mut Command, out: &Path) -> Self {
        let file = fs::File::create(out).unwrap();
        command.stdin(Stdio::null()).stderr(file.try_clone().unwrap()).stdout(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, out: out.to_owned() }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    pub fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait_end(&mut self) -> ExitStatus {
        let out = self.out.clone();
        wait("the end of a server", || {
            let said = || fs::read_to_string(&out).unwrap_or_default();
            self.child.try_wait().unwrap().ok_or_else(|| format!("it runs; it said:\n{}", said()))
        })
    }

    /// Waits until it has printed this; fails when it ends before.
    pub fn wait_printed(&mut self, text: &str) {
        let out = self.out.clone();
        wait(text, || {
            let printed = fs::read_to_string(&out).unwrap_or_default();
            assert!(printed.contains(text) || self.is_running(), "it has ended:\n{printed}");
            if printed.contains(text) { Ok(()) } else { Err(printed) }
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- {}\n{}", self.out.display(), self.printed());
        }
    }
}
