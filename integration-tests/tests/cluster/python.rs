//! The Python client that PyPI has, as it is. The tests install it by themselves.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pegasus_integration_tests::TestCluster;
use pegasus_onebox::Options;

/// The published version; its own requirements are pinned by it.
const PACKAGE: &str = "pypegasus3==0.0.1.1";

#[test]
fn pypegasus3_does_all_it_can() {
    let python = environment();
    let cluster = TestCluster::start(Options::default());
    // The client writes its log into the working directory.
    let dir = tempfile::tempdir().unwrap();
    let script = script("drive_pypegasus3.py");
    let output =
        Command::new(python).arg(script).arg(cluster.metas()).current_dir(dir.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    let log = std::fs::read_to_string(dir.path().join("pegasus.log")).unwrap_or_default();
    assert!(output.status.success(), "{told}\n{}\n{log}", String::from_utf8_lossy(&output.stderr));
    assert!(told.ends_with("all passed\n"), "{told}");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(name)
}

/// Callers that use pypegasus3 and try again after 3 s what did not succeed.
pub struct Callers {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    dir: tempfile::TempDir,
}

impl Callers {
    /// Returns when they are under way. `tries`: how often they try again at most.
    pub fn start(cluster: &TestCluster, tries: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(environment());
        command.arg(script("callers_pypegasus3.py")).arg(cluster.metas()).arg(tries.to_string());
        command.current_dir(dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, out, dir }
    }

    /// What they have to say.
    ///
    /// # Panics
    /// When an operation failed with all its tries.
    pub fn finish(mut self) -> String {
        drop(self.child.stdin.take());
        let mut told = String::new();
        self.out.read_to_string(&mut told).unwrap();
        let ended = self.child.wait().unwrap();
        let log = std::fs::read_to_string(self.dir.path().join("pegasus.log")).unwrap_or_default();
        assert!(ended.success(), "{told}\n{log}");
        told
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        // It has ended unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python environment with the client in it, beside the test programs; made once and kept.
fn environment() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    // target/debug/deps/cluster-… → target
    let target = program.ancestors().nth(3).unwrap();
    let home = target.join("python-clients");
    let python = home.join("bin/python");
    let complete = home.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|package| package == PACKAGE) {
        return python;
    }
    let _ = std::fs::remove_dir_all(&home);
    run(Command::new("python3").args(["-m", "venv"]).arg(&home));
    let pip = |packages: &[&str]| {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
        run(&mut command);
    };
    // Its thrift is built from source the old way, with what newer Pythons no longer bring along.
    pip(&["setuptools<70", "wheel"]);
    pip(&["--no-build-isolation", PACKAGE]);
    std::fs::write(&complete, PACKAGE).unwrap();
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&told));
}
