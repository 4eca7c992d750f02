//! The commands behind `make zookeeper`. Debian's package must be there (`make test` sees to it).

use std::path::Path;
use std::process::{Command, Output};

fn run(dir: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pegasus_onebox"))
        .arg("--dir")
        .arg(dir)
        .arg("zookeeper")
        .args(args.split_whitespace())
        .output()
        .expect("the program that is tested starts")
}

/// What it prints when it succeeds.
fn does(dir: &Path, args: &str) -> String {
    let output = run(dir, args);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Ends the servers whatever happens: they outlive the command that started them.
struct Cleared<'a>(&'a Path);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let _ = run(self.0, "clear");
    }
}

#[test]
fn an_ensemble_starts_stops_and_keeps_what_it_was_made_with() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = &parent.path().join("zookeeper");
    let told = run(dir, "up --servers 2");
    assert!(String::from_utf8_lossy(&told.stderr).contains("1, 3, 5 or 7") && !dir.exists());

    let _cleared = Cleared(dir);
    let port_base = 500 + std::process::id() % 9000;
    let told = does(dir, &format!("up --servers 3 --port-base {port_base}"));
    assert!(told.contains("started zookeeper1, zookeeper2, zookeeper3"), "{told}");
    let hosts: Vec<_> = (1..=3).map(|n| format!("127.0.0.1:{}", 22180 + n + port_base)).collect();
    assert!(told.contains(&format!("hosts_list = {}", hosts.join(","))), "{told}");
    let list = does(dir, "list");
    for mode in ["leader", "follower"] {
        assert!(list.lines().any(|line| line.contains("running") && line.ends_with(mode)), "{list}");
    }
    assert!(does(dir, "up").contains("every server runs already"));
    let told = run(dir, "up --servers 1");
    assert!(String::from_utf8_lossy(&told.stderr).contains("make zookeeper-clear"), "{told:?}");

    assert!(does(dir, "stop").contains("stopped zookeeper1"));
    assert!(does(dir, "stop").contains("nothing to do"));
    assert_eq!(does(dir, "list").matches("stopped").count(), 3);
    assert!(does(dir, "up").contains("started"), "what it holds is still there");
    assert!(does(dir, "clear").contains("removed"));
    assert!(!dir.exists());
    assert!(does(dir, "list").is_empty());
}
