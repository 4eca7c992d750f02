//! A crash in the middle of a write.

use pegasus_mutation_log::mem_disk::MemDisk;
use pegasus_mutation_log::{Disk, Durability};

use crate::support::*;

#[test]
fn torn_at_every_byte_of_the_last_batch() {
    let build = || {
        let disk = MemDisk::default();
        let (mut log, _) = open(&disk, Durability::Sync);
        for decree in 1..=3 {
            append(&mut log, vec![record(P0, decree), record(P1, decree)]).unwrap();
        }
        let before = disk.read("log.000000000001").len();
        log.enqueue(vec![record(P0, 4), record(P1, 4)], 1);
        log.enqueue(vec![record(P2, 1)], 2);
        let written = log.write(&mut Vec::new());
        assert_eq!((written.records, before + written.bytes), (3, disk.read("log.000000000001").len()));
        (disk, written.bytes)
    };
    let len = build().1;
    for kept in 0..=len {
        let (disk, _) = build();
        disk.crash(|_| kept);
        let (mut log, summary) = open(&disk, Durability::Sync);
        assert_eq!(summary.damaged, [], "{kept} of {len}");
        let whole = kept == len;
        assert_eq!(summary.cut.is_some(), kept > 0 && !whole, "{kept} of {len}: {summary:?}");
        assert_eq!(replayed(&log, P0, 0).unwrap().len(), if whole { 4 } else { 3 });
        assert_eq!(replayed(&log, P1, 0).unwrap().len(), if whole { 4 } else { 3 });
        assert_eq!(replayed(&log, P2, 0).unwrap().len(), usize::from(whole));
        // Life goes on, also over another restart.
        if !whole {
            append(&mut log, vec![record(P0, 4)]).unwrap();
        }
        let (log, summary) = open(&disk, Durability::Sync);
        assert_eq!((summary.cut, summary.damaged.len(), summary.lost.len()), (None, 0, 0));
        assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2, 3, 4]);
    }
}

#[test]
fn torn_while_the_first_segment_is_made() {
    let disk = MemDisk::default();
    drop(open(&disk, Durability::Sync));
    let whole = disk.read("log.000000000001");
    for kept in 0..whole.len() {
        let disk = disk.snapshot();
        disk.damage("log.000000000001", |d| d.truncate(kept));
        let (mut log, summary) = open(&disk, Durability::Sync);
        assert_eq!(summary.damaged, [], "{kept}");
        append(&mut log, vec![record(P0, 1)]).unwrap();
        assert_eq!(replayed(&open(&disk, Durability::Sync).0, P0, 0).unwrap(), [1]);
    }
}

#[test]
fn torn_while_a_later_segment_is_made() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    let mut decree = 0;
    while disk.list().unwrap().len() < 2 {
        decree += 1;
        append(&mut log, vec![record(P0, decree)]).unwrap();
    }
    let whole = disk.read("log.000000000002");
    for kept in 0..whole.len() {
        let disk = disk.snapshot();
        disk.damage("log.000000000002", |d| d.truncate(kept));
        let (log, summary) = open(&disk, Durability::Sync);
        assert_eq!((summary.damaged.len(), summary.lost.len()), (0, 0), "{kept}");
        assert_eq!(replayed(&log, P0, 0).unwrap(), (1..decree).collect::<Vec<_>>());
    }
}

/// Nothing was synced, any part of it may be there: what is left is a prefix.
#[test]
fn page_cache_mode_keeps_a_prefix_after_a_power_cut() {
    for lost in 0..40 {
        let disk = MemDisk::default();
        let (mut log, _) = open(&disk, Durability::PageCache);
        for decree in 1..=40 {
            append(&mut log, vec![record(P0, decree), record(P1, decree)]).unwrap();
        }
        assert_eq!(replayed(&open(&disk.snapshot(), Durability::PageCache).0, P0, 0).unwrap().len(), 40);
        // The first writes of each segment are its creation, which is synced.
        let mut write = 0;
        disk.crash(|len| {
            if len == 0 {
                return 1;
            }
            write += 1;
            if write - 1 == lost { 0 } else { len }
        });
        let (mut log, summary) = open(&disk, Durability::PageCache);
        assert_eq!((summary.damaged.len(), summary.lost.len()), (0, 0), "{lost}: {summary:?}");
        assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=lost).collect::<Vec<_>>());
        assert_eq!(replayed(&log, P1, 0).unwrap(), (1..=lost).collect::<Vec<_>>());
        assert_eq!(summary.cut.is_some(), lost < 39, "{summary:?}");
        append(&mut log, vec![record(P0, lost + 1)]).unwrap();
        let (log, summary) = open(&disk, Durability::PageCache);
        assert_eq!((summary.cut, summary.damaged.len()), (None, 0));
        assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=lost + 1).collect::<Vec<_>>());
    }
}

#[test]
fn page_cache_mode_syncs_closed_segments_behind() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::PageCache);
    let mut decree = 0;
    while disk.list().unwrap().len() < 3 {
        decree += 1;
        append(&mut log, vec![record(P0, decree)]).unwrap();
    }
    assert_eq!(log.stats().syncs, 0);
    log.keep_house();
    assert_eq!(log.stats().syncs, 2);
    disk.crash(|_| 0);
    let (log, summary) = open(&disk, Durability::PageCache);
    assert_eq!(summary.damaged, []);
    assert_eq!(replayed(&log, P0, 0).unwrap(), (1..decree).collect::<Vec<_>>());
}
