//! Disks that say no.

use pegasus_mutation_log::mem_disk::{Faults, MemDisk};
use pegasus_mutation_log::{Completion, Disk, Durability, Known, LogCore, LogError, LogOptions};
use pegasus_types::Decree;

use crate::support::*;

const BROKEN_SYNC: Faults = Faults { fail_writes: false, fail_syncs: true, full: false, capacity: None };
const BROKEN_WRITE: Faults = Faults { fail_writes: true, fail_syncs: false, full: false, capacity: None };

fn pump(log: &mut LogCore) -> Vec<Completion> {
    let mut done = Vec::new();
    while !log.is_idle() {
        log.write(&mut done);
        log.sync(&mut done);
    }
    done
}

#[test]
fn a_failed_fsync_is_final() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1)]).unwrap();
    disk.set_faults(BROKEN_SYNC);
    log.enqueue(vec![record(P0, 2)], 2);
    log.enqueue(vec![record(P1, 1)], 3);
    let done = pump(&mut log);
    assert_eq!(done.iter().map(|c| c.token).collect::<Vec<_>>(), [2, 3]);
    assert!(done.iter().all(|c| matches!(c.result, Err(LogError::Broken(_)))));
    // The disk works again; the log does not believe it.
    disk.set_faults(Faults::default());
    assert!(matches!(append(&mut log, vec![record(P0, 2)]), Err(LogError::Broken(_))));
    assert!(log.stats().broken.is_some_and(|why| why.contains("injected fsync failure")));
    assert_eq!(replayed(&log, P0, 0).unwrap(), [1], "what was never acknowledged is not handed out");
    // After a restart the bytes are still in the page cache. They are written again before they count.
    drop(log);
    let (log, _) = open(&disk, Durability::Sync);
    let before = replayed(&log, P0, 0).unwrap();
    drop(log);
    disk.crash(|_| 0);
    let (log, _) = open(&disk, Durability::Sync);
    assert_eq!(replayed(&log, P0, 0).unwrap(), before);
}

#[test]
fn a_failed_background_sync_is_final_too() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::PageCache);
    for decree in 1..=30 {
        append(&mut log, vec![record(P0, decree)]).unwrap();
    }
    disk.set_faults(BROKEN_SYNC);
    log.keep_house();
    assert!(matches!(append(&mut log, vec![record(P0, 31)]), Err(LogError::Broken(_))));
}

#[test]
fn a_failed_write_is_final() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::PageCache);
    append(&mut log, vec![record(P0, 1)]).unwrap();
    disk.set_faults(BROKEN_WRITE);
    assert!(matches!(append(&mut log, vec![record(P0, 2)]), Err(LogError::Broken(_))));
    disk.set_faults(Faults::default());
    assert!(matches!(append(&mut log, vec![record(P0, 2)]), Err(LogError::Broken(_))));
}

#[test]
fn a_segment_that_cannot_be_made_durable_is_final() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::PageCache);
    disk.set_faults(BROKEN_SYNC);
    let failed = (1..=60).find(|decree| append(&mut log, vec![record(P0, *decree)]).is_err());
    assert!(failed.is_some_and(|decree| decree > 5));
}

#[test]
fn a_full_disk_is_not() {
    for durability in [Durability::Sync, Durability::PageCache] {
        // Full inside a segment, and full when a new one is wanted.
        for capacity in (900..=9000).step_by(331) {
            let disk = MemDisk::default();
            let (mut log, _) = open(&disk, durability);
            disk.set_faults(Faults { capacity: Some(capacity), ..Faults::default() });
            let mut decree = 0;
            let error = loop {
                match append(&mut log, vec![record(P0, decree + 1), record(P1, decree + 1)]) {
                    Ok(()) => decree += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, LogError::DiskFull), "{capacity}: {error}");
            assert!(log.stats().disk_full && log.stats().broken.is_none());
            assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=decree).collect::<Vec<_>>());

            disk.set_faults(Faults::default());
            let hole = append(&mut log, vec![record(P0, decree + 2)]).unwrap_err();
            assert!(
                matches!(hole, LogError::Hole { expected: Decree(d), .. } if d == decree + 1),
                "a later decree must not jump over the one that failed: {hole}"
            );
            append(&mut log, vec![record(P2, 1)]).unwrap();
            // Two in one batch: the first fills the hole for the second.
            log.enqueue(vec![record(P0, decree + 1)], 1);
            log.enqueue(vec![record(P0, decree + 2)], 2);
            assert!(pump(&mut log).iter().all(|c| c.result.is_ok()));
            assert!(!log.stats().disk_full);
            drop(log);
            let (log, summary) = open(&disk, durability);
            assert_eq!((summary.damaged.len(), summary.lost.len()), (0, 0), "{capacity} {summary:?}");
            assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=decree + 2).collect::<Vec<_>>());
            assert_eq!(replayed(&log, P1, 0).unwrap(), (1..=decree).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_mutation_that_was_damaged_on_its_way_is_refused() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    let mut bad = record(P0, 1);
    bad.mutation.timestamp_us += 1;
    log.enqueue(vec![bad], 1);
    log.enqueue(vec![record(P0, 2)], 2);
    log.enqueue(vec![record(P1, 1)], 3);
    let done = pump(&mut log);
    assert!(matches!(done[0].result, Err(LogError::CorruptMutation { gpid: P0, decree: Decree(1) })));
    assert!(matches!(done[1].result, Err(LogError::Hole { .. })));
    assert!(done[2].result.is_ok());
}

#[test]
fn one_append_is_bounded() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    let body = vec![0; 200 << 20];
    // One body, shared: 1.2 GB on paper.
    let mutation =
        pegasus_types::Mutation::new(P0, Decree(1), pegasus_types::Ballot(1), 1, bytes::Bytes::from(body));
    let one = pegasus_mutation_log::Record { mutation, ..record(P0, 1) };
    log.enqueue(vec![one; 6], 1);
    assert!(matches!(pump(&mut log)[0].result, Err(LogError::AppendTooLarge { .. })));
}

#[test]
fn a_disk_that_is_full_at_the_start_can_be_read_and_goes_on_later() {
    for durability in [Durability::Sync, Durability::PageCache] {
        let disk = MemDisk::default();
        let full = Faults { capacity: Some(0), ..Faults::default() };
        disk.set_faults(full);
        let new = LogCore::open(std::sync::Arc::new(disk.clone()), options(durability), 1);
        assert!(
            matches!(new, Err(LogError::DiskFull)),
            "a log that is not there yet is nothing to go on with"
        );
        disk.set_faults(Faults::default());

        let (mut log, _) = open(&disk, durability);
        for decree in 1..=60 {
            append(&mut log, vec![record(P0, decree)]).unwrap();
        }
        drop(log);
        let known = Known::Id(77);
        let names = disk.list().unwrap();
        let segments = names.len();
        let used = names.iter().map(|name| disk.read(name).len()).sum();
        disk.set_faults(Faults { capacity: Some(used), ..full });
        // Again and again: nothing gets lost by trying.
        for _ in 0..3 {
            let options = LogOptions { known, ..options(durability) };
            let (mut log, summary) = open_with(&disk, options);
            assert_eq!((summary.lost.len(), log.stats().disk_full), (0, true));
            assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=60).collect::<Vec<_>>());
            assert!(matches!(append(&mut log, vec![record(P0, 61)]), Err(LogError::DiskFull)));
        }
        let durable_at = |log: &mut LogCore, decree| {
            log.set_needed_from(P0, copy_of(P0), Decree(decree));
            log.keep_house();
        };
        let (mut log, _) = open_with(&disk, LogOptions { known, ..options(durability) });
        disk.set_faults(full);
        durable_at(&mut log, 30);
        let left = disk.list().unwrap().len();
        assert!(left < segments, "room is made by what is no longer needed: {left} of {segments}");
        durable_at(&mut log, 60);
        assert_eq!(disk.list().unwrap().len(), 1, "the newest stays, whoever needs it");
        assert!(matches!(append(&mut log, vec![record(P0, 61)]), Err(LogError::DiskFull)));
        disk.set_faults(Faults::default());
        assert!(matches!(append(&mut log, vec![record(P0, 62)]), Err(LogError::Hole { .. })));
        append(&mut log, vec![record(P0, 61)]).unwrap();
        drop(log);
        let (log, summary) = open_with(&disk, LogOptions { known, ..options(durability) });
        assert_eq!((summary.damaged.len(), summary.lost.len()), (0, 0), "{summary:?}");
        assert_eq!(replayed(&log, P0, 60).unwrap(), [61]);
    }
}
