//! Starting processes that outlive us, and never killing one that is not ours.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// A process for certain: a pid alone is given to another one sooner or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pid: i32,
    /// Clock ticks between boot and its start.
    start_ticks: u64,
    boot: String,
}

impl Identity {
    /// Of a live process; a zombie is dead.
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; behind it: state, and the start as the 20th field.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, start_ticks: fields.get(19)?.parse().ok()?, boot: boot_id() })
    }

    pub fn read(file: &Path) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let mut words = text.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        Some(Self { pid, start_ticks: words.next()?.parse().ok()?, boot: words.next()?.to_owned() })
    }

    fn write(&self, file: &Path) -> io::Result<()> {
        let temporary = file.with_extension("tmp");
        fs::write(&temporary, format!("{} {} {}\n", self.pid, self.start_ticks, self.boot))?;
        fs::rename(temporary, file)
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Does nothing when the process has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            match kill_process(pid, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context(format!("send {signal:?} to pid {}", self.pid)),
            }
        }
        Ok(())
    }

    /// False when it is still alive after that time.
    pub fn wait_for_end(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Starts `program` in a session of its own, so that neither the end of this process nor that of its terminal
/// ends it. What it prints is appended to `output`.
pub(crate) fn start(
    program: &Path,
    args: &[&str],
    output: &Path,
    pid_file: &Path,
) -> anyhow::Result<(Child, Identity)> {
    let out = File::options().create(true).append(true).open(output)?;
    // `setsid` replaces itself by the program: the pid stays.
    let child = Command::new("setsid")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("a pid is positive and small")?;
    let identity = Identity::of(pid).with_context(|| format!("{} has ended at once", program.display()))?;
    identity.write(pid_file).with_context(|| format!("write {}", pid_file.display()))?;
    Ok((child, identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recycled_pid_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let (mut child, identity) =
            start(Path::new("sleep"), &["60"], &dir.path().join("out"), &pid_file).unwrap();
        assert_eq!(Identity::read(&pid_file).as_ref(), Some(&identity));
        let earlier = Identity { start_ticks: identity.start_ticks - 1, ..identity.clone() };
        let other_boot = Identity { boot: "x".into(), ..identity.clone() };
        for stranger in [earlier, other_boot] {
            assert!(!stranger.is_alive());
            stranger.signal(Signal::KILL).unwrap();
        }
        assert!(identity.is_alive() && !identity.wait_for_end(Duration::from_millis(20)));
        identity.signal(Signal::KILL).unwrap();
        assert!(identity.wait_for_end(Duration::from_secs(5)), "a zombie counts as dead");
        identity.signal(Signal::KILL).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        // `setsid` starts and then cannot replace itself.
        if let Ok((mut child, _)) = start(Path::new("/no/such"), &[], &out, &dir.path().join("pid")) {
            assert!(!child.wait().unwrap().success());
        }
        assert!(fs::read_to_string(&out).unwrap().contains("/no/such"));
    }
}
