//! Damage to the files of a tree. It must never be taken for data, nor cost data that is whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pegasus_types::mutation::BodyBuilder;

use super::*;
use crate::engine::new_factory;
use crate::ops::test_support::Store;

struct Tree {
    root: tempfile::TempDir,
    factory: Arc<dyn EngineFactory>,
    rows: BTreeMap<Bytes, Bytes>,
}

fn contents(engine: &dyn PartitionEngine) -> Result<BTreeMap<Bytes, Bytes>, EngineError> {
    let view = engine.view()?;
    let rows = view.range(std::ops::Bound::Unbounded, std::ops::Bound::Unbounded, false);
    rows.map(|row| row.map(|(key, value)| (key, value.stored().clone()))).collect()
}

impl Tree {
    /// Two tables.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let factory = new_factory(EngineKind::Lsm, EngineOptions::default());
        let mut store = Store::over(factory.open(root.path()).unwrap());
        for part in ["a", "b"] {
            for i in 0..40 {
                store.put(part, &format!("{i:02}"), &"value".repeat(i));
            }
            store.engine().flush(true).unwrap();
        }
        let rows = contents(store.engine()).unwrap();
        assert_eq!(rows.len(), 80);
        drop(store);
        Self { root, factory, rows }
    }

    fn open(&self) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        self.factory.open(self.root.path())
    }

    fn opens_whole(&self) {
        assert_eq!(contents(&*self.open().unwrap()).unwrap(), self.rows);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("lsm").join(name)
    }

    fn tables(&self) -> Vec<PathBuf> {
        let mut tables: Vec<_> =
            fs::read_dir(self.path("tables")).unwrap().map(|entry| entry.unwrap().path()).collect();
        tables.sort();
        tables
    }

    fn manifest(&self) -> PathBuf {
        let entries = fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap().path());
        let mut manifests =
            entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('v'));
        let manifest = manifests.next().unwrap();
        assert_eq!(manifests.next(), None, "old manifests are removed");
        manifest
    }

    fn refused(&self, why: &str) {
        let tables = self.tables();
        let refused = self.open().map(drop);
        assert!(matches!(refused, Err(EngineError::Corrupt(_))), "{why}: {refused:?}");
        assert_eq!(self.tables(), tables, "{why}: nothing was removed");
    }
}

#[test]
fn no_flipped_bit_of_the_manifest_passes() {
    let tree = Tree::new();
    tree.opens_whole();
    for path in [tree.manifest(), tree.path("current")] {
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, bad).unwrap();
            tree.refused(&format!("{} with byte {at} changed", path.display()));
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        tree.refused("cut in half");
        fs::remove_file(&path).unwrap();
        tree.refused("removed");
        fs::write(&path, good).unwrap();
    }
    tree.opens_whole();
}

#[test]
fn a_missing_table_is_noticed() {
    let tree = Tree::new();
    let table = tree.tables().pop().unwrap();
    let aside = tree.path("kept");
    fs::rename(&table, &aside).unwrap();
    tree.refused("a table is missing");
    fs::rename(&aside, &table).unwrap();
    tree.opens_whole();
}

#[test]
fn unlisted_tables_are_moved_aside() {
    let tree = Tree::new();
    let stray = tree.path("tables/4711");
    fs::write(&stray, "left by a crash").unwrap();
    fs::create_dir_all(tree.path("unlisted/1000")).unwrap();
    tree.opens_whole();
    assert!(!stray.exists());
    let aside: Vec<_> =
        fs::read_dir(tree.path("unlisted")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(aside.len(), 1, "the old one is removed");
    assert_eq!(fs::read_to_string(aside[0].join("4711")).unwrap(), "left by a crash");
}

#[test]
fn damaged_tables_give_errors_not_rows() {
    let tree = Tree::new();
    let (mut refused, mut failed, mut harmless) = (0, 0, 0);
    for path in tree.tables() {
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(61).chain(good.len() - 60..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, bad).unwrap();
            // A factory of its own: another one has the sound blocks in its cache.
            match new_factory(EngineKind::Lsm, EngineOptions::default()).open(tree.root.path()) {
                Err(_) => refused += 1,
                Ok(engine) => match contents(&*engine) {
                    Err(_) => failed += 1,
                    Ok(rows) => {
                        assert_eq!(rows, tree.rows, "byte {at} of {}", path.display());
                        harmless += 1;
                    }
                },
            }
        }
        fs::write(&path, good).unwrap();
    }
    println!("{refused} refused, {failed} failed to read, {harmless} harmless");
    assert!(refused > 0 && failed > 0);
    tree.opens_whole();
}

#[test]
fn a_damaged_row_fails_the_partition_and_leaves_the_others() {
    let (sick, sound) = (Tree::new(), Tree::new());
    let table = sick.tables().remove(0);
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    let factory = new_factory(EngineKind::Lsm, EngineOptions::default());
    let engine = factory.open(sick.root.path()).unwrap();
    let mut errors = 0;
    for key in sick.rows.keys() {
        match engine.get(key) {
            Ok(value) => assert_eq!(value.map(|value| value.stored().clone()).as_ref(), sick.rows.get(key)),
            Err(e) => {
                assert!(e.is_damage(), "{e}");
                errors += 1;
            }
        }
    }
    assert!(errors > 0);
    assert!(matches!(engine.health(), Health::Failed(_)));
    assert!(matches!(engine.compact(), Err(EngineError::Failed(_))));
    let other = factory.open(sound.root.path()).unwrap();
    assert_eq!((contents(&*other).unwrap(), other.health()), (sound.rows.clone(), Health::Ok));
}

#[test]
fn tables_that_only_the_manifest_on_disk_knows_are_no_left_overs() {
    let tree = Tree::new();
    let background = Background::start(EngineOptions::default());
    let partition = Partition::open(&tree.path(""), background.shared()).unwrap();
    // As after a change of version that failed when its manifest had taken effect.
    partition.published.lock().unwrap().clear();
    partition.health.lock().unwrap().last_failure = Some(std::time::Instant::now());
    assert!(matches!(partition.flush_sealed(), Err(EngineError::Failed(_))));
    assert!(matches!(partition.health(), Health::Failed(_)), "a new start has to read what is there");
    drop((partition, background));
    tree.opens_whole();
}

#[test]
fn rows_that_are_overwritten_all_the_time_are_flushed_for_the_sake_of_the_log() {
    let root = tempfile::tempdir().unwrap();
    let options = EngineOptions { memtable_bytes: 64 << 10, ..EngineOptions::default() };
    let factory = new_factory(EngineKind::Lsm, options);
    let mut store = Store::over(factory.open(root.path()).unwrap());
    let value = "v".repeat(1 << 10);
    for _ in 0..200 {
        store.put("h", "s", &value);
    }
    assert!(factory.stats().memtable_bytes < 4 << 10, "one row");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while store.engine().durable_decree() == Decree::ZERO {
        assert!(std::time::Instant::now() < deadline, "200 KiB of mutations pin the log");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Else a copy of a partition costs the disk three times its size, and clients of the node feel it.
#[test]
fn rows_that_are_copied_in_are_written_once() {
    const MEMTABLES: u64 = 12;
    let root = tempfile::tempdir().unwrap();
    let options = EngineOptions { memtable_bytes: 32 << 10, ..EngineOptions::default() };
    let factory = new_factory(EngineKind::Lsm, options);
    let engine = factory.open(root.path()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut rows = 0;
    for flushed in 0..MEMTABLES {
        while factory.stats().flushes == flushed {
            let mut body = BodyBuilder::default();
            // Does not compress.
            let value: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
            body.put(format!("\0\x01h{rows:08}").as_bytes(), [&value[..], b""]);
            engine.load(&body.finish()).unwrap();
            rows += 1;
            // Memtables become full one after the other, and compaction finds each table.
            while factory.stats().queued_tasks > 0 {
                assert!(std::time::Instant::now() < deadline, "{:?}", factory.stats());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
    engine.finish_load(Decree(7), 1).unwrap();
    let written = contents(&*engine).unwrap().len();
    drop(engine);
    let tables = fs::read_dir(root.path().join("lsm").join("tables")).unwrap();
    let ids: Vec<u64> =
        tables.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    let (first, last) = (*ids.iter().min().unwrap(), *ids.iter().max().unwrap());
    assert_eq!(ids.len() as u64, last - first + 1, "all tables that were ever written are there: {ids:?}");
    assert!(ids.len() as u64 > MEMTABLES, "{ids:?}");
    let engine = factory.open(root.path()).unwrap();
    assert_eq!((engine.durable_decree(), written), (Decree(7), rows));
    assert_eq!(contents(&*engine).unwrap().len(), rows);
}

#[test]
fn a_stopped_compaction_leaves_rows_but_no_files() {
    let tree = Tree::new();
    let engine = tree.open().unwrap();
    let before = tree.tables();
    let stop = Stop::default();
    stop.stop();
    assert!(matches!(engine.compact_until(&stop), Err(EngineError::Stopped)));
    assert_eq!(
        (engine.health(), contents(&*engine).unwrap()),
        (crate::engine::Health::Ok, tree.rows.clone())
    );
    let begun = std::time::Instant::now();
    while tree.tables() != before {
        assert!(begun.elapsed().as_secs() < 20, "{:?} were {before:?}", tree.tables());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    engine.compact_until(&Stop::default()).unwrap();
    assert_eq!(tree.factory.stats().failures, 0, "nothing has failed");
    drop(engine);
    tree.opens_whole();
}

#[test]
fn a_compaction_of_everything_is_in_nobodys_way() {
    let root = tempfile::tempdir().unwrap();
    let factory = LsmFactory::new(EngineOptions::default());
    let shared = factory.background.shared();
    let [one, two] = ["one", "two"].map(|name| {
        let partition = Partition::open(&root.path().join(name), shared).unwrap();
        shared.register(&partition);
        partition
    });
    let flush = |partition: &Arc<Partition>| {
        let decree = partition.applied().next();
        let mut body = BodyBuilder::with_capacity(64);
        body.put(format!("key {}", decree.0 % 5).as_bytes(), [b"value", b""]);
        partition.apply(decree, 1, &body.finish()).unwrap();
        partition.seal();
        partition.flush_sealed().unwrap();
    };
    // As if one of them were compacted as a whole.
    let compacting = partition::lock(&one.compacting);
    let stop = Stop::default();
    *partition::lock(&one.purge.stop) = Some(stop.clone());
    for _ in 0..8 {
        flush(&one);
        flush(&two);
    }
    let begun = std::time::Instant::now();
    while two.l0_runs() >= 8 {
        assert!(begun.elapsed().as_secs() < 20, "the other one is not compacted");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    one.tick();
    assert_eq!((one.l0_runs(), stop.is_set()), (8, false));
    while one.l0_runs() < background::L0_SLOW {
        flush(&one);
    }
    one.tick();
    assert!(stop.is_set(), "it gives way before clients have to");
    *partition::lock(&one.purge.stop) = None;
    drop(compacting);
    one.compact_all(&Stop::default()).unwrap();
    assert_eq!((one.l0_runs(), one.sizes().estimated_rows), (0, 6), "five rows and the decree");
}

#[test]
fn the_memtables_of_all_partitions_share_a_budget() {
    const BUDGET: u64 = 1 << 20;
    let root = tempfile::tempdir().unwrap();
    let options =
        EngineOptions { memtable_bytes: 4 << 20, memtable_budget_bytes: BUDGET, ..EngineOptions::default() };
    let factory = LsmFactory::new(options);
    let partitions: Vec<_> = (0..4)
        .map(|i| {
            let dir = own_dir(&root.path().join(i.to_string()), EngineKind::Lsm).unwrap();
            let partition = Partition::open(&dir, factory.background.shared()).unwrap();
            factory.background.shared().register(&partition);
            partition
        })
        .collect();
    let mut stores: Vec<_> = partitions
        .iter()
        .map(|partition| {
            let (partition, _background) = (partition.clone(), factory.background.clone());
            Store::over(Arc::new(LsmEngine { partition, _background }))
        })
        .collect();
    let held_back: Vec<_> = partitions.iter().map(|partition| partition.flushing.lock().unwrap()).collect();
    let mut fill = |kib: usize| {
        for i in 0..kib {
            stores[i % 4].put("k", &i.to_string(), &"v".repeat(1000));
        }
    };
    fill(500);
    assert_eq!(factory.pressure(), Pressure::None);
    fill(1100);
    assert_eq!(factory.pressure(), Pressure::Slow);
    fill(1700);
    assert_eq!(factory.pressure(), Pressure::Stop);
    drop(held_back);
    let begun = std::time::Instant::now();
    while factory.pressure() != Pressure::None {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "memtables are flushed");
        std::thread::yield_now();
    }
    assert!(factory.stats().memtable_bytes <= BUDGET);
    drop((stores, partitions));
    assert_eq!(factory.stats().memtable_bytes, 0, "what was counted is given back");
}
