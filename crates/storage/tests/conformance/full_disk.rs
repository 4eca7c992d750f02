//! A disk that fills up: a small tmpfs of its own.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use pegasus_storage::data_dir::{DirSpec, DiskState};
use pegasus_storage::{Contract, DataDirs, EngineKind, Health, PartitionEngine};
use pegasus_types::{Decree, LogLocation, Node};

use crate::harness::*;
use crate::small_disk::SmallDisk;

const MIB: u64 = 1 << 20;
const DISK: u64 = 64 * MIB;
/// Space that is freed in the end.
const FILLER: u64 = 44 * MIB;

/// 20 rows of 1 KiB of its own, so that space runs out.
fn mutation(n: i64) -> Bytes {
    let keys: Vec<String> = (0..20).map(|j| format!("key{n:08}.{j}")).collect();
    let value = stored(0, format!("{n:01000}").as_bytes());
    body(keys.iter().map(|key| (key.as_bytes(), Some(value.clone()))))
}

/// Writes until the disk is full, and fills up what failed work gives back; returns the last mutation that was taken.
fn write_until_full(engine: &dyn PartitionEngine, disk: &SmallDisk) -> i64 {
    let mut failed = 0;
    for n in engine.applied_decree().0 + 1.. {
        let done = engine.apply(Decree(n), 1, &mutation(n), LogLocation::default());
        let full = match done {
            Ok(()) => n % 50 == 0 && engine.flush(true).is_err_and(|e| e.is_full()),
            Err(e) => {
                assert!(e.is_full(), "{e}");
                return engine.applied_decree().0;
            }
        };
        if full {
            disk.fill_up();
            failed += 1;
            if failed > 3 && engine.flush(true).is_err_and(|e| e.is_full()) {
                return engine.applied_decree().0;
            }
        }
        assert!(n < 10_000, "200 MB went into a disk of 64");
    }
    unreachable!()
}

fn expect(engine: &dyn PartitionEngine, upto: i64) {
    for n in (1..=upto).step_by(7).chain([upto]) {
        let key = format!("key{n:08}.{}", n % 20);
        assert_eq!(data(engine, &key).unwrap(), format!("{n:01000}"), "{key}");
    }
}

pub fn a_full_disk_loses_nothing(kind: EngineKind) {
    let disk = SmallDisk::mount(DISK);
    disk.fill("filler", FILLER);
    let bench = Bench::at(kind, &disk.path.join("partition"));
    let engine = bench.open();
    let last = write_until_full(&*engine, &disk);
    assert!(last > 100, "{last} mutations fitted");
    let durable = engine.durable_decree();
    if engine.contract() == Contract::Exact {
        // It goes on reading, comes back when there is room, and opens meanwhile.
        expect(&*engine, last);
        assert_eq!(engine.health(), Health::Full);
        drop(engine);
        let engine = bench.open();
        assert!(engine.applied_decree() >= durable);
        expect(&*engine, engine.applied_decree().0);
        replay(&*engine, last);
        disk.fill_up();
        assert!(engine.flush(true).is_err_and(|e| e.is_full()));
        assert_eq!(engine.health(), Health::Full);
        fs::remove_file(disk.path.join("filler")).unwrap();
        assert_eq!(engine.flush(true).unwrap(), Decree(last));
        assert_eq!((engine.health(), engine.durable_decree()), (Health::Ok, Decree(last)));
        expect(&*engine, last);
        engine.compact().unwrap();
        expect(&*engine, last);
    } else {
        // sled needs room even to read, when its cache is full, and to open.
        drop(engine);
        fs::remove_file(disk.path.join("filler")).unwrap();
        let engine = bench.open();
        assert!(engine.applied_decree() >= durable);
        replay(&*engine, last + 1);
        engine.flush(true).unwrap();
        expect(&*engine, last + 1);
    }
}

fn replay(engine: &dyn PartitionEngine, upto: i64) {
    for n in engine.applied_decree().0 + 1..=upto {
        apply(engine, Decree(n), &mutation(n));
    }
}

pub fn dropping_returns_the_space(kind: EngineKind) {
    let disk = SmallDisk::mount(DISK);
    let before = disk.available();
    let bench = Bench::at(kind, &disk.path.join("partition"));
    let engine = bench.open();
    for n in 1..=400 {
        apply(&*engine, Decree(n), &mutation(n));
    }
    engine.flush(true).unwrap();
    // Files that were read stay open for the next reader.
    expect(&*engine, 400);
    let view = engine.view().unwrap();
    assert_eq!(all(&*view).len(), 400 * 20);
    assert!(disk.available() + 8 * MIB < before, "8 MB of rows");
    assert!(engine.sizes().disk_bytes > 4 * MIB);
    drop(view);
    drop(engine);
    remove(&bench.dir);
    let left = before - disk.available();
    assert!(left < 100 << 10, "{left} bytes are still held");
}

fn remove(dir: &Path) {
    let garbage = dir.with_extension("gar");
    fs::rename(dir, &garbage).unwrap();
    fs::remove_dir_all(garbage).unwrap();
}

/// An operator adds a disk because the first one is full, and the machine was started anew before.
#[test]
fn a_full_disk_is_not_a_broken_one() {
    let (full, other) = (SmallDisk::mount(4 * MIB), tempfile::tempdir().unwrap());
    let spec = |tag: &str, path: &Path| DirSpec { tag: tag.to_owned(), path: path.join("data") };
    let specs = [spec("full", &full.path), spec("new", other.path())];
    let open = |specs: &[DirSpec]| DataDirs::open(specs, &Node::new("127.0.0.1:34801"), 10).unwrap();
    let state = |dirs: &DataDirs, tag: &str| dirs.get(tag).unwrap().state();
    drop(open(&specs[..1]));
    full.fill_up();

    let dirs = open(&specs);
    dirs.note_boot(false);
    dirs.get("full").unwrap().refresh();
    assert_eq!(state(&dirs, "full"), DiskState::SpaceInsufficient);
    assert_eq!(state(&dirs, "new"), DiskState::Normal);
    drop(dirs);
    let dirs = open(&specs[..1]);
    assert!(dirs.get("full").unwrap().rebooted(), "it could not be noted");
    // Whatever is acknowledged unsynced from here on would be trusted after a power cut.
    dirs.note_unsynced();
    assert!(matches!(state(&dirs, "full"), DiskState::Broken(_)));
    drop(dirs);

    fs::remove_file(full.path.join("filler")).unwrap();
    let dirs = open(&specs);
    dirs.note_boot(false);
    assert_eq!(dirs.get("full").unwrap().keep_ballast(), 0, "a file holds it");
    drop(dirs);
    full.fill_up();
    let dirs = open(&specs);
    dirs.note_unsynced();
    assert_eq!(state(&dirs, "full"), DiskState::SpaceInsufficient, "the ballast was given up for it");
    drop(dirs);
    // Each names the other.
    fs::remove_dir_all(other.path().join("data")).unwrap();
    let dirs = open(&specs);
    assert!(!dirs.get("full").unwrap().rebooted());
    assert!(matches!(state(&dirs, "new"), DiskState::Broken(why) if why.contains("not mounted")));
}
