//! kill -9 of a process that writes: this test binary runs itself as that process.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use pegasus_storage::{Contract, EngineKind, PartitionEngine};
use pegasus_types::Decree;

use crate::harness::*;

const CHILD_DIR: &str = "PEGASUS_CONFORMANCE_CHILD_DIR";
const ROUNDS: u64 = 4;
const KEYS: i64 = 2000;
const ROWS: i64 = 20;

/// Mutation `n` writes twenty of the keys; every fifth of them is deleted.
fn mutation(n: i64) -> Bytes {
    let keys: Vec<String> = (0..ROWS).map(|j| format!("key{:05}", (n * 7919 + j * j * 31) % KEYS)).collect();
    let value = stored(0, format!("{n:0200}").as_bytes());
    body(keys.iter().enumerate().map(|(j, key)| (key.as_bytes(), (j % 5 != 4).then(|| value.clone()))))
}

/// Writes until it is killed; notes what it was told is durable.
fn write_for_ever(kind: EngineKind, dir: &Path) -> ! {
    let bench = Bench::at(kind, dir);
    let engine = bench.open();
    let mut notes = OpenOptions::new().append(true).create(true).open(dir.with_extension("durable")).unwrap();
    loop {
        let decree = engine.applied_decree().next();
        apply(&*engine, decree, &mutation(decree.0));
        if decree.0 % 50 == 0 {
            writeln!(notes, "{}", engine.durable_decree()).unwrap();
        }
        if decree.0 % 500 == 0 && kind == EngineKind::Sled {
            engine.flush(true).unwrap();
        }
        // About as fast as a partition is written to, so that the maps stay small.
        thread::sleep(Duration::from_micros(100));
    }
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // SIGKILL.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub fn killed_and_reopened(kind: EngineKind) {
    if let Some(dir) = env::var_os(CHILD_DIR) {
        write_for_ever(kind, Path::new(&dir));
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    for round in 0..ROUNDS {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("{}::killed_and_reopened", kind.name()), "--nocapture"])
            .env(CHILD_DIR, &dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = KillOnDrop(child);
        let before = told_durable(&dir);
        eventually("the writer gets on", || told_durable(&dir) > before);
        thread::sleep(Duration::from_millis(100 + 67 * round));
        assert!(child.0.try_wait().unwrap().is_none(), "the writer has ended by itself");
        drop(child);
        let bench = Bench::at(kind, &dir);
        check(&*bench.open(), told_durable(&dir));
    }
}

/// The last whole line.
fn told_durable(dir: &Path) -> i64 {
    let notes = fs::read_to_string(dir.with_extension("durable")).unwrap_or_default();
    notes.rsplit_once('\n').and_then(|(whole, _)| whole.lines().last()?.parse().ok()).unwrap_or(0)
}

fn check(engine: &dyn PartitionEngine, told_durable: i64) {
    let applied = engine.applied_decree().0;
    println!("reopened at {applied}, told durable {told_durable}");
    assert!(applied >= told_durable && applied > 0);
    let mut map = Map::new();
    (1..=applied).for_each(|n| apply_to_map(&mut map, &mutation(n)));
    if engine.contract() == Contract::Exact {
        assert_eq!(contents(engine), map);
        return;
    }
    // Perhaps rows of later mutations, never older ones; exact once the log is replayed to its end.
    let number = |value: &Bytes| std::str::from_utf8(&value[12..]).unwrap().parse::<i64>().unwrap();
    let got = contents(engine);
    let newest = got.values().map(number).max().unwrap_or(0).max(applied);
    for (key, value) in &map {
        assert!(got.get(key).is_none_or(|found| number(found) >= number(value)), "{key:?} is older");
    }
    let end = newest + 1;
    for n in applied + 1..=end {
        apply(engine, Decree(n), &mutation(n));
        apply_to_map(&mut map, &mutation(n));
    }
    assert_eq!(contents(engine), map, "after replay up to {end}");
    engine.flush(true).unwrap();
}
