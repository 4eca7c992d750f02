//! Copying a partition row by row while it is written to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use pegasus_storage::rows::{Loading, chunk};
use pegasus_storage::schema::{self, TimeTag};
use pegasus_storage::{Contract, EngineKind, PartitionEngine};
use pegasus_types::Decree;

use crate::harness::*;

fn mutation(n: i64) -> Bytes {
    let keys: Vec<String> = (0..4).map(|j| format!("key{:04}", (n * 131 + j * 17) % 1500)).collect();
    let header = schema::header(0, TimeTag::new(n.unsigned_abs(), 1, false));
    let value = Bytes::from([&header[..], format!("{n:0120}").as_bytes()].concat());
    body(keys.iter().enumerate().map(|(j, key)| (key.as_bytes(), (j != 3).then(|| value.clone()))))
}

/// The state after `n` mutations.
fn map_at(n: i64) -> Map {
    let mut map = Map::new();
    (1..=n).for_each(|n| apply_to_map(&mut map, &mutation(n)));
    map
}

pub fn rows_stream_while_writes_go_on(kind: EngineKind) {
    let bench = Bench::new(kind);
    let teacher = bench.open();
    (1..=800).for_each(|n| apply(&*teacher, Decree(n), &mutation(n)));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (teacher, stop) = (Arc::clone(&teacher), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Acquire) {
                let decree = teacher.applied_decree().next();
                apply(&*teacher, decree, &mutation(decree.0));
                thread::yield_now();
            }
        }
    });
    let root = tempfile::tempdir().unwrap();
    let learner = bench.factory.open(&root.path().join("learner")).unwrap();
    let view = teacher.view().unwrap();
    let mut loading = Loading::new(Arc::clone(&learner)).unwrap();
    while !loading.is_done() {
        let after = loading.after().cloned();
        loading.add(&chunk(&*view, after.as_deref(), 4 << 10).unwrap()).unwrap();
        // Writes go on between the chunks, and flushes happen.
        let seen = teacher.applied_decree();
        eventually("the writer writes", || teacher.applied_decree().0 > seen.0 + 5);
    }
    let copied = view.decree();
    let end = teacher.applied_decree();
    assert!(end.0 > copied.0 + 50, "{copied} {end}");
    loading.finish(copied, 1).unwrap();
    drop(view);
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    if learner.contract() == Contract::Exact {
        assert_eq!(contents(&*learner), map_at(copied.0), "rows of the view at {copied}");
    }
    (copied.0 + 1..=end.0).for_each(|n| apply(&*learner, Decree(n), &mutation(n)));
    assert_eq!(contents(&*learner), map_at(end.0), "rows of the view and the log after it");
}

pub fn a_copy_is_durable_when_it_is_finished(kind: EngineKind) {
    let bench = Bench::new(kind);
    let teacher = bench.open();
    (1..=500).for_each(|n| apply(&*teacher, Decree(n), &mutation(n)));
    let view = teacher.view().unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("learner");
    // A copy that is given up half way, and another that is not.
    for finished in [false, true] {
        let learner = bench.factory.open(&dir).unwrap();
        assert_eq!(learner.applied_decree(), Decree(0), "half a copy is none");
        let mut loading = Loading::new(Arc::clone(&learner)).unwrap();
        while !loading.is_done() {
            let after = loading.after().cloned();
            loading.add(&chunk(&*view, after.as_deref(), 20 << 10).unwrap()).unwrap();
            if !finished && loading.rows() > 700 {
                break;
            }
        }
        if finished {
            loading.finish(view.decree(), 1_000_000).unwrap();
            assert_eq!(learner.durable_decree(), Decree(500));
        } else {
            drop(loading);
            drop(learner);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    let learner = bench.factory.open(&dir).unwrap();
    assert_eq!(learner.applied_decree(), Decree(500));
    assert_eq!(learner.newest_timestamp_us(), 500, "the newest row's, not our clock's");
    assert_eq!(contents(&*learner), map_at(500));
    let learner: &dyn PartitionEngine = &*learner;
    apply(learner, Decree(501), &mutation(501));
    assert_eq!(contents(learner), map_at(501));
}
