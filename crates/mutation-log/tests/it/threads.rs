//! The log on its own threads, on a real file system.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pegasus_mutation_log::{Completion, Durability, Full, LogOptions, MutationLog, RecoverySummary};
use pegasus_types::Decree;

use crate::support::*;

fn start(
    dir: &std::path::Path,
    options: LogOptions,
) -> (MutationLog, Receiver<Vec<Completion>>, RecoverySummary) {
    let (sender, receiver) = channel();
    let on_done = Box::new(move |done| drop(sender.send(done)));
    let (log, summary) = MutationLog::open(dir, options, on_done).unwrap();
    (log, receiver, summary)
}

#[test]
fn completions_come_in_order_and_batches_gather() {
    for durability in [Durability::Sync, Durability::PageCache] {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { segment_bytes: 64 << 10, ..options(durability) };
        let (log, done, _) = start(dir.path(), options.clone());
        for decree in 1..=2000 {
            log.append(vec![record(P0, decree), record(P1, decree)], decree.unsigned_abs()).unwrap();
        }
        let mut next = 1;
        while next <= 2000 {
            for completion in done.recv_timeout(Duration::from_secs(20)).unwrap() {
                assert_eq!(completion.token, next);
                assert_eq!(completion.result.unwrap().len(), 2);
                next += 1;
            }
        }
        let stats = log.stats();
        assert_eq!((stats.records_written, stats.queued_bytes), (4000, 0));
        assert_eq!(stats.stalled, Duration::ZERO);
        if durability == Durability::Sync {
            assert!(stats.batches_written < 1500, "what gathers during a sync goes as one batch: {stats:?}");
        }
        drop(log);
        let (log, _, summary) = start(dir.path(), options);
        assert_eq!((summary.records, summary.cut), (4000, None));
        assert_eq!(log.replay(P1, copy_of(P1), Decree(0)).unwrap().filter(Result::is_ok).count(), 2000);
    }
}

#[test]
fn what_is_queued_is_written_when_the_log_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (log, done, _) = start(dir.path(), options(Durability::Sync));
    for decree in 1..=50 {
        log.append(vec![record(P0, decree)], 0).unwrap();
    }
    drop(log);
    assert_eq!(done.iter().map(|d| d.len()).sum::<usize>(), 50);
    assert_eq!(start(dir.path(), options(Durability::Sync)).2.records, 50);
}

#[test]
fn the_queue_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (gate, held) = channel::<()>();
    let options = LogOptions { max_queue_bytes: 10_000, ..options(Durability::PageCache) };
    // The writer hangs in its first completion.
    let on_done = Box::new(move |_| {
        let _ = held.recv();
    });
    let (log, _) = MutationLog::open(dir.path(), options, on_done).unwrap();
    // A failure below has to open it before the log is dropped.
    let gate = gate;
    let mut decree = 0;
    let refused = loop {
        decree += 1;
        if let Err(Full(records)) = log.append(vec![record_at(P0, 1, decree, 500)], 0) {
            break records;
        }
        assert!(decree < 1000);
    };
    assert_eq!(refused, [record_at(P0, 1, decree, 500)]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.stalled() < Duration::from_millis(30) {
        assert!(Instant::now() < deadline);
        // The writer may have taken everything before it met its completions.
        let _ = log.append(vec![record(P2, 1)], 0);
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(gate);
    while log.append(refused.clone(), 0).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // One that alone is larger than the queue still gets through when nothing else waits.
    while log.append(vec![record_at(P1, 1, 1, 20_000)], 0).is_err() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn a_learner_reads_while_writers_append_and_segments_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 16 << 10, ..options(Durability::PageCache) };
    let (log, done, _) = start(dir.path(), options);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for decree in 1..=4000 {
                log.append(vec![record_at(P0, 1, decree, 200)], decree.unsigned_abs()).unwrap();
                if decree % 64 == 0 {
                    // Everything is durable in the engine at once; only the learner's pin keeps the log.
                    log.set_needed_from(P0, copy_of(P0), Decree(decree - 32));
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::Release);
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        let (mut next, mut pin) = (Decree(1), None);
        while next <= Decree(4000) {
            assert!(Instant::now() < deadline, "stuck at {next}");
            match log.read_range(P0, copy_of(P0), next, Decree(4000), 10_000) {
                Ok(read) => {
                    for (_, m) in read {
                        assert_eq!(m.decree, next);
                        next = next.next();
                    }
                    pin = log.pin(P0, copy_of(P0), next).ok().or(pin);
                }
                // Before the first record, or the log went on without us (the first pin came late).
                Err(_) => match log.held(P0, copy_of(P0)) {
                    Some((lowest, _)) if lowest > next => next = lowest,
                    _ => std::thread::yield_now(),
                },
            }
        }
        drop(pin);
    });
    assert!(stop.load(Ordering::Acquire));
    let mut answered = 0;
    while answered < 4000 {
        answered += done.recv_timeout(Duration::from_secs(10)).unwrap().len();
    }
    log.set_needed_from(P0, copy_of(P0), Decree(4000));
    let deadline = Instant::now() + Duration::from_secs(10);
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    while files() > 1 {
        assert!(Instant::now() < deadline, "the keeper removes what nobody needs");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn dropping_the_last_handle_on_the_writer_thread_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let slot = std::sync::Arc::new(std::sync::Mutex::new(None::<MutationLog>));
    let (sender, receiver) = channel();
    let theirs = std::sync::Arc::clone(&slot);
    let on_done = Box::new(move |_| {
        drop(theirs.lock().unwrap().take());
        let _ = sender.send(());
    });
    let (log, _) = MutationLog::open(dir.path(), options(Durability::Sync), on_done).unwrap();
    *slot.lock().unwrap() = Some(log.clone());
    log.append(vec![record(P0, 1)], 0).unwrap();
    drop(log);
    receiver.recv_timeout(Duration::from_secs(10)).unwrap();
}
