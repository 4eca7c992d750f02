//! kill -9 of a process that appends: what it was told is in the log, is in the log.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use pegasus_mutation_log::{Durability, LogOptions, MutationLog};
use pegasus_types::Decree;

use crate::support::*;

const DIR: &str = "PEGASUS_LOG_TEST_DIR";
const MODE: &str = "PEGASUS_LOG_TEST_MODE";

fn small(durability: Durability) -> LogOptions {
    LogOptions { segment_bytes: 32 << 10, ..options(durability) }
}

/// Runs in the child only: appends for ever, prints the highest decree that is acknowledged of each partition.
#[test]
fn child() {
    let (Ok(dir), Ok(mode)) = (std::env::var(DIR), std::env::var(MODE)) else { return };
    let durability = if mode == "sync" { Durability::Sync } else { Durability::PageCache };
    let (sender, receiver) = channel();
    let on_done = Box::new(move |done| drop(sender.send(done)));
    let (log, _) = MutationLog::open(dir.as_ref(), small(durability), on_done).unwrap();
    let mut next = [P0, P1].map(|p| log.held(p, copy_of(p)).map_or(1, |(_, highest)| highest.0 + 1));
    let mut acked = [0, 0];
    let mut out = std::io::stdout();
    loop {
        for _ in 0..16 {
            for (which, (p, next)) in [P0, P1].into_iter().zip(&mut next).enumerate() {
                let size = 20 + usize::try_from(*next % 300).unwrap();
                let token = next.unsigned_abs() * 2 + which as u64;
                log.append(vec![record_at(p, 1, *next, size)], token).unwrap();
                *next += 1;
            }
        }
        let mut answered = 0;
        while answered < 32 {
            let done = receiver.recv().unwrap();
            answered += done.len();
            for completion in done {
                assert!(completion.result.is_ok());
                acked[(completion.token % 2) as usize] = completion.token / 2;
            }
            // One of them may be ahead, by what the last life of this process has managed.
            writeln!(out, "acked {}", acked[0].min(acked[1])).unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn acknowledged_records_survive_kill_9() {
    for mode in ["sync", "page_cache"] {
        let dir = tempfile::tempdir().unwrap();
        let mut least = 0;
        for round in 0..4u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "kill::child", "--nocapture"])
                .env(DIR, dir.path())
                .env(MODE, mode)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut seen = 0;
            for line in lines {
                let line = line.unwrap();
                if let Some(decree) = line.strip_prefix("acked ") {
                    least = decree.parse::<i64>().unwrap();
                    seen += 1;
                    if seen == 20 + round * 30 {
                        child.kill().unwrap();
                    }
                }
            }
            child.wait().unwrap();
            assert!(seen >= 20, "{mode}: the child has written");
            let durability = if mode == "sync" { Durability::Sync } else { Durability::PageCache };
            let (log, summary) = MutationLog::open(dir.path(), small(durability), Box::new(|_| {})).unwrap();
            assert_eq!((summary.damaged.len(), summary.lost.len()), (0, 0), "{mode} {summary:?}");
            for p in [P0, P1] {
                let replay = log.replay(p, copy_of(p), Decree(0)).unwrap();
                let count = replay.len();
                for (i, read) in replay.enumerate() {
                    let (record, _) = read.unwrap();
                    let decree = i64::try_from(i).unwrap() + 1;
                    assert_eq!(record, record_at(p, 1, decree, 20 + usize::try_from(decree % 300).unwrap()));
                }
                assert!(count as i64 >= least, "{mode}: {count} of {least}");
            }
        }
    }
}
