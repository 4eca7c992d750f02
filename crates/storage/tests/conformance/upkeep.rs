//! Flush, compaction, expiry, and what holds them up.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pegasus_storage::{EngineKind, EngineOptions};
use pegasus_types::time::epoch_seconds;
use pegasus_types::{Decree, LogLocation};

use crate::harness::*;

pub fn flush_makes_durable(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    assert_eq!(engine.flush(true).unwrap(), Decree(0), "nothing to flush");
    apply_next(&*engine, &put("k1", "1"));
    assert_eq!(engine.flush(true).unwrap(), Decree(1));
    assert_eq!(engine.durable_decree(), Decree(1));
    apply(&*engine, Decree(9), &bytes::Bytes::new());
    assert_eq!(engine.flush(false).unwrap(), Decree(9));
    eventually("an empty write is durable", || engine.durable_decree() == Decree(9));
    drop(engine);
    let engine = bench.open();
    assert_eq!((engine.applied_decree(), engine.durable_decree()), (Decree(9), Decree(9)));
    assert_eq!((data(&*engine, "k1").as_deref(), engine.newest_timestamp_us()), (Some("1"), 1_000_009));
}

pub fn compaction_drops_what_nobody_sees(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    let big = "v".repeat(2000);
    for round in 0..6 {
        for i in 0..200 {
            apply_next(&*engine, &put(&format!("key{i:03}"), &format!("{round}{big}")));
        }
    }
    for i in 0..100 {
        apply_next(&*engine, &body([(format!("key{i:03}").as_bytes(), None)]));
    }
    engine.compact().unwrap();
    let sizes = engine.sizes();
    // The rows and the decree.
    assert_eq!(sizes.estimated_rows, 101, "{sizes:?}");
    assert!(sizes.disk_bytes < 260_000, "{sizes:?}");
    let on_disk = || -> u64 {
        let tables = std::fs::read_dir(bench.dir.join("lsm/tables")).unwrap();
        tables.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    assert!(on_disk() < 260_000, "replaced files are removed at once: {}", on_disk());
    assert_eq!(contents(&*engine).len(), 100);
    drop(engine);
    let engine = bench.open();
    assert_eq!(engine.applied_decree(), Decree(1300));
    assert_eq!(data(&*engine, "key150").unwrap(), format!("5{big}"));
}

pub fn expired_rows_go_when_both_clocks_are_past(kind: EngineKind) {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let now = epoch_seconds(now_us);
    let options = EngineOptions { purge_after: Duration::from_secs(3600), ..small_options() };
    let bench = Bench::with(kind, options);
    let engine = bench.open();
    let rows = body([
        (&b"for ever"[..], Some(stored(0, b"x"))),
        (b"long ago", Some(stored(now - 4000, b"x"))),
        (b"just now", Some(stored(now - 3000, b"x"))),
        (b"later", Some(stored(now + 1000, b"x"))),
    ]);
    let names =
        || contents(&*engine).into_keys().map(|k| String::from_utf8(k.to_vec()).unwrap()).collect::<Vec<_>>();
    // The newest committed time tag is behind: another node's clock may be right.
    engine.apply(Decree(1), now_us - 3_000_000_000, &rows, LogLocation::default()).unwrap();
    engine.compact().unwrap();
    assert_eq!(names(), ["for ever", "just now", "later", "long ago"]);
    engine.apply(Decree(2), now_us, &bytes::Bytes::new(), LogLocation::default()).unwrap();
    engine.compact().unwrap();
    assert_eq!(names(), ["for ever", "just now", "later"]);
}

pub fn views_outlive_compaction(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    for i in 0..300 {
        apply_next(&*engine, &put(&format!("key{i:03}"), &"old".repeat(200)));
    }
    engine.flush(true).unwrap();
    let view = engine.view().unwrap();
    let before = all(&*view);
    for i in 0..300 {
        apply_next(&*engine, &put(&format!("key{i:03}"), &"new".repeat(200)));
    }
    engine.compact().unwrap();
    engine.compact().unwrap();
    assert_eq!(all(&*view), before);
    assert_eq!(view.get(b"key007").unwrap().unwrap().stored(), &before[&b"key007"[..]]);
    drop(view);
    assert!(data(&*engine, "key007").unwrap().starts_with("new"));
}

pub fn an_old_memtable_is_flushed(kind: EngineKind) {
    let options = EngineOptions { max_memtable_age: Duration::from_millis(100), ..small_options() };
    let bench = Bench::with(kind, options);
    let engine = bench.open();
    apply_next(&*engine, &put("k1", "1"));
    eventually("an idle partition does not pin the log", || engine.durable_decree() == Decree(1));
    let flushes = bench.factory.stats().flushes;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bench.factory.stats().flushes, flushes, "nothing new, nothing flushed");
}

pub fn dropping_ends_background_work(kind: EngineKind) {
    let bench = Bench::new(kind);
    for round in 0..20 {
        let engine = bench.open();
        for i in 0..100 {
            apply_next(&*engine, &put(&format!("key{:04}", i * 37 % 1000), &"v".repeat(1000)));
        }
        // Flushes and compactions are on their way.
        drop(engine);
        std::fs::rename(&bench.dir, bench.dir.with_extension("gar")).unwrap();
        let fresh = bench.open();
        assert_eq!((fresh.applied_decree(), contents(&*fresh).len()), (Decree(0), 0), "round {round}");
        apply_next(&*fresh, &put("k1", "1"));
        fresh.flush(true).unwrap();
        drop(fresh);
        let fresh = bench.open();
        assert_eq!(contents(&*fresh).len(), 1, "nothing of the old one came in");
        drop(fresh);
        std::fs::remove_dir_all(&bench.dir).unwrap();
        std::fs::remove_dir_all(bench.dir.with_extension("gar")).unwrap();
    }
    let shared: Arc<_> = Arc::clone(&bench.factory);
    assert_eq!(shared.stats().partitions, 0);
}

/// More flushes than `lsm-tree` can list as runs of a level, without a thread that compacts.
pub fn many_small_flushes_lose_no_table(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    for i in 0..600 {
        apply_next(&*engine, &put(&format!("key{:03}", i * 7 % 300), &i.to_string()));
        engine.flush(true).unwrap();
    }
    let before = contents(&*engine);
    drop(engine);
    assert_eq!((before.len(), contents(&*bench.open())), (300, before));
}
