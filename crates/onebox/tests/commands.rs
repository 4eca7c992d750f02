//! The commands behind `make onebox`, as processes. Needs `pegasus_server` beside them (`make test` builds it).

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};

struct Onebox<'a>(&'a Path);

impl Onebox<'_> {
    fn run(&self, args: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pegasus_onebox"))
            .arg("--dir")
            .arg(self.0)
            .args(args.split_whitespace())
            .output()
            .expect("the program that is tested starts")
    }

    /// What it prints when it succeeds.
    fn does(&self, args: &str) -> String {
        let output = self.run(args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args}: {told}\n{}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What it complains of.
    fn fails(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn logs(&self) -> String {
        String::from_utf8_lossy(&self.run("logs").stdout).into_owned()
    }

    /// (name, pid, state) of every process.
    fn list(&self) -> Vec<(String, String, String)> {
        let lines = self.does("list");
        let word = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or_default().to_owned();
        lines.lines().map(|line| (word(line, 0), word(line, 3), word(line, 4))).collect()
    }

    fn state(&self, name: &str) -> String {
        self.list().into_iter().find(|line| line.0 == name).map(|line| line.2).unwrap_or_default()
    }
}

/// Nothing of the test stays, whatever happens.
impl Drop for Onebox<'_> {
    fn drop(&mut self) {
        self.run("clear");
    }
}

/// Added to the usual ports gives free ones; they may be gone when they are used, then `up` says so.
fn free_base() -> u16 {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let all_free = |base: &u16| [34101, 34601, 34801, 34802, 34803].iter().all(|port| free(port + base));
    (0..).map(|_| rand::random_range(1..=30_000)).find(all_free).expect("it goes on until there is one")
}

#[test]
fn a_onebox_from_its_beginning_to_its_end() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("onebox");
    let onebox = Onebox(&dir);
    onebox.does("list"); // nothing there is no failure
    let up = |_| onebox.run(&format!("up --partitions 2 --port-base {}", free_base())).status.success();
    assert!((0..5).any(up), "{}", onebox.fails("up"));

    let first = onebox.list();
    let names: Vec<_> = first.iter().map(|line| line.0.as_str()).collect();
    assert_eq!(names, ["meta1", "replica1", "replica2", "replica3", "collector"]);
    assert!(first.iter().all(|line| line.2 == "running"), "{first:?}");
    let again = onebox.does("up");
    assert!(again.contains("all 5 processes run already") && again.contains("Try next:"), "{again}");
    assert_eq!(onebox.list(), first, "twice does no harm");
    let other = onebox.fails("up --partitions 4");
    assert!(other.contains("PARTITIONS=2") && other.contains("onebox-clear"), "{other}");

    assert!(onebox.fails("kill replica7").contains("meta1 replica1 replica2 replica3 collector"));
    onebox.does("kill replica2");
    onebox.does("stop collector");
    assert_eq!((onebox.state("replica2"), onebox.state("collector")), ("stopped".into(), "stopped".into()));
    assert_eq!(onebox.list()[1], first[1]);
    onebox.does("start replica2");
    assert_eq!((onebox.state("replica2"), onebox.state("collector")), ("running".into(), "stopped".into()));
    assert!(onebox.does("up").contains("4 of 5 processes ran already; started collector"));
    assert!(onebox.does("logs replica1 --lines 5").contains("replica.log"));

    assert!(onebox.does("stop").contains("stopped meta1, replica1, replica2, replica3, collector"));
    assert!(onebox.does("stop").contains("everything is stopped already"));
    onebox.does("clear");
    assert!(!dir.exists());
}

#[test]
fn what_cannot_work_leaves_nothing_behind() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("onebox");
    let onebox = Onebox(&dir);
    assert!(onebox.fails("up --metas 2").contains("ZooKeeper"));
    assert!(onebox.fails("up --engine sled --durability page_cache").contains("DURABILITY=sync"));
    assert!(onebox.fails("up --port-base 40000").contains("PORT_BASE"));
    let base = free_base();
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 34802 + base)).unwrap();
    let told = onebox.fails(&format!("up --port-base {base}"));
    let holder = format!("port {} of replica2 is in use by", 34802 + base);
    assert!(told.contains(&holder) && told.contains(&format!("(pid {})", std::process::id())), "{told}");
    assert!(!dir.exists());

    let precious = parent.path().join("precious");
    std::fs::write(&precious, "").unwrap();
    let elsewhere = Onebox(parent.path());
    assert!(elsewhere.fails("up").contains("other things"));
    elsewhere.does("clear");
    let left: Vec<_> = std::fs::read_dir(parent.path()).unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(left, [precious]);
}
