use pegasus_mutation_log::mem_disk::MemDisk;
use pegasus_mutation_log::{Disk, Durability, LogError, LogOptions, RecoverySummary};
use pegasus_types::{Ballot, Decree};

use crate::support::*;

const BOTH: [Durability; 2] = [Durability::Sync, Durability::PageCache];

#[test]
fn records_come_back_after_a_restart() {
    for durability in BOTH {
        let disk = MemDisk::default();
        let (mut log, summary) = open(&disk, durability);
        assert_eq!(summary, RecoverySummary { log_id: 77, is_new: true, ..Default::default() });
        for decree in 1..=30 {
            append(&mut log, vec![record(P0, decree), record(P1, decree)]).unwrap();
        }
        for round in 0..3 {
            drop(log);
            let summary;
            (log, summary) = open(&disk, durability);
            assert_eq!((summary.records, summary.cut, summary.lost.len()), (60, None, 0), "round {round}");
            assert!(summary.segments >= 2, "{summary:?}");
            assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=30).collect::<Vec<_>>());
            assert_eq!(replayed(&log, P1, 25).unwrap(), (26..=30).collect::<Vec<_>>());
            assert_eq!(log.replay(P0, copy_of(P0), Decree(0)).unwrap().committed(), Decree(29));
        }
    }
}

#[test]
fn other_lives_of_a_partition_are_not_replayed() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1), record(P0, 2)]).unwrap();
    let mut second = record(P0, 1);
    second.copy_id = 7;
    append(&mut log, vec![second]).unwrap();
    drop(log);
    let (log, _) = open(&disk, Durability::Sync);
    assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2]);
    assert_eq!(log.replay(P0, 7, Decree(0)).unwrap().count(), 1);
    assert_eq!(log.replay(P0, 8, Decree(0)).unwrap().count(), 0);
}

#[test]
fn the_last_ballot_of_a_decree_wins() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    for (ballot, decree) in [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4)] {
        append(&mut log, vec![record_at(P0, ballot, decree, 0)]).unwrap();
    }
    for _ in 0..2 {
        let ballots: Vec<_> = log
            .replay(P0, copy_of(P0), Decree(0))
            .unwrap()
            .map(|r| r.map(|(r, _)| (r.mutation.decree.0, r.ballot.0)).unwrap())
            .collect();
        assert_eq!(ballots, [(1, 1), (2, 2), (3, 2), (4, 2)]);
        drop(log);
        (log, _) = open(&disk, Durability::Sync);
    }
}

#[test]
fn a_cut_tail_does_not_come_back() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    for decree in 1..=9 {
        append(&mut log, vec![record_at(P0, 2, decree, 0)]).unwrap();
    }
    let mut cutting = record_at(P0, 3, 6, 0);
    cutting.cuts = true;
    append(&mut log, vec![cutting]).unwrap();
    for _ in 0..2 {
        assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2, 3, 4, 5, 6]);
        drop(log);
        let summary;
        (log, summary) = open(&disk, Durability::Sync);
        assert_eq!(summary.lost, []);
    }
    append(&mut log, vec![record_at(P0, 3, 7, 0)]).unwrap();
    let (mut log, _) = open(&disk, Durability::Sync);
    assert_eq!(replayed(&log, P0, 5).unwrap(), [6, 7]);
    // The void records hold nothing either.
    log.set_needed_from(P0, copy_of(P0), Decree(7));
    log.keep_house();
    assert_eq!(log.stats().segments, 1);
}

#[test]
fn ranges_for_learners() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    for decree in 1..=20 {
        append(&mut log, vec![record_at(P0, 3, decree, 100)]).unwrap();
    }
    let range = |from, to, bytes| {
        log.read_range(P0, copy_of(P0), Decree(from), Decree(to), bytes).map(|read| {
            assert!(read.iter().all(|(ballot, m)| *ballot == Ballot(3) && m.verify()));
            read.iter().map(|(_, m)| m.decree.0).collect::<Vec<_>>()
        })
    };
    assert_eq!(range(3, 6, usize::MAX).unwrap(), [3, 4, 5, 6]);
    assert_eq!(range(3, 6, 250).unwrap(), [3, 4]);
    assert_eq!(range(3, 6, 1).unwrap(), [3], "at least one");
    assert_eq!(range(19, 99, usize::MAX).unwrap(), [19, 20]);
    assert!(matches!(range(21, 30, 1), Err(LogError::LogGone { .. })));
    assert!(matches!(range(0, 30, 1), Err(LogError::LogGone { .. })));
    assert_eq!(log.held(P0, copy_of(P0)), Some((Decree(1), Decree(20))));
    assert_eq!(log.held(P1, copy_of(P1)), None);
}

/// Two partitions, about 14 records to a segment.
fn two_partitions(disk: &MemDisk, max_log_bytes: u64) -> pegasus_mutation_log::LogCore {
    let options = LogOptions { max_log_bytes, ..options(Durability::Sync) };
    let (mut log, _) = open_with(disk, options);
    for decree in 1..=50 {
        append(&mut log, vec![record_at(P0, 1, decree, 100)]).unwrap();
        if decree <= 10 {
            append(&mut log, vec![record_at(P1, 1, decree, 100)]).unwrap();
        }
    }
    log
}

#[test]
fn segments_go_when_nobody_needs_them() {
    let disk = MemDisk::default();
    let mut log = two_partitions(&disk, u64::MAX);
    let segments = log.stats().segments;
    assert!(segments > 3);
    assert_eq!(log.blockers().len(), 2);
    log.set_needed_from(P0, copy_of(P0), Decree(50));
    log.keep_house();
    assert_eq!(log.stats().segments, segments, "P1 has not said anything");
    assert!(log.blockers().iter().all(|(gpid, ..)| *gpid == P1));

    let pin = log.pin(P0, copy_of(P0), Decree(1)).unwrap();
    log.set_needed_from(P1, copy_of(P1), Decree(10));
    log.keep_house();
    assert_eq!(log.stats().segments, segments, "pinned");
    assert!(log.read_range(P0, copy_of(P0), Decree(1), Decree(50), usize::MAX).is_ok());

    let reserve = log.stats().bytes / 2;
    log.set_reserve(reserve);
    drop(pin);
    log.keep_house();
    let kept = log.stats();
    assert!(kept.segments > 1 && kept.segments < segments && kept.bytes >= reserve, "{kept:?}");
    let (held, _) = log.held(P0, copy_of(P0)).unwrap();
    assert!(log.read_range(P0, copy_of(P0), held, Decree(50), usize::MAX).is_ok());

    let below = Decree(held.0 - 1);
    let mut late = log.replay(P0, copy_of(P0), below).unwrap();
    log.set_reserve(0);
    log.keep_house();
    assert_eq!(log.stats().segments, 1);
    assert_eq!(disk.list().unwrap().len(), 1);
    let gone = late.next().unwrap().unwrap_err();
    assert!(matches!(gone, LogError::LogGone { from, .. } if from == below), "{gone}");
    assert!(matches!(log.pin(P0, copy_of(P0), Decree(1)), Err(LogError::LogGone { .. })));
    log.pin(P0, copy_of(P0), Decree(51)).unwrap();
    let (held, _) = log.held(P0, copy_of(P0)).unwrap();
    assert!(held > Decree(10));

    // The chains go on over the removed segments.
    append(&mut log, vec![record(P1, 11)]).unwrap();
    drop(log);
    let (log, summary) = open(&disk, Durability::Sync);
    assert_eq!(summary.lost, []);
    assert_eq!(replayed(&log, P1, 10).unwrap(), [11]);
    assert_eq!(replayed(&log, P0, 50).unwrap(), [0; 0]);
    assert!(
        matches!(log.replay(P0, copy_of(P0), Decree(5)), Err(LogError::Damaged { .. })),
        "an engine that has less than it promised is not papered over"
    );
}

#[test]
fn forgotten_copies_hold_nothing() {
    let disk = MemDisk::default();
    let mut log = two_partitions(&disk, u64::MAX);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    assert_eq!(log.export(P1, copy_of(P1), &file).unwrap(), 10);
    assert!(file.metadata().unwrap().len() > 10 * 184);
    log.forget(P1, copy_of(P1));
    // Still on its way when it was forgotten.
    append(&mut log, vec![record(P1, 11)]).unwrap();
    log.set_needed_from(P0, copy_of(P0), Decree(50));
    log.keep_house();
    assert_eq!(log.stats().segments, 1);
    assert_eq!(replayed(&log, P1, 0).unwrap(), [0; 0]);
}

#[test]
fn copies_that_nobody_claims_after_a_start_are_forgotten() {
    let disk = MemDisk::default();
    drop(two_partitions(&disk, u64::MAX));
    let (mut log, _) = open(&disk, Durability::Sync);
    replayed(&log, P0, 0).unwrap();
    log.recovery_done();
    log.set_needed_from(P0, copy_of(P0), Decree(50));
    log.write(&mut Vec::new());
    log.keep_house();
    assert_eq!(log.stats().segments, 1);
    drop(log);
    let (log, _) = open(&disk, Durability::Sync);
    assert_eq!(replayed(&log, P1, 0).unwrap(), [0; 0]);
}

/// A replica whose records were all freed is written again while others are still being opened.
#[test]
fn copies_that_are_written_before_all_are_open_are_kept() {
    let disk = MemDisk::default();
    drop(two_partitions(&disk, u64::MAX));
    let (mut log, _) = open(&disk, Durability::Sync);
    let mut fresh = record(P1, 1);
    fresh.copy_id = 7;
    assert_eq!(log.replay(P1, 7, Decree(0)).unwrap().count(), 0);
    append(&mut log, vec![fresh]).unwrap();
    log.recovery_done();
    log.write(&mut Vec::new());
    drop(log);
    let (log, _) = open(&disk, Durability::Sync);
    assert_eq!(log.replay(P1, 7, Decree(0)).unwrap().count(), 1);
}

#[test]
fn copies_whose_owner_cannot_be_opened_are_kept() {
    let disk = MemDisk::default();
    drop(two_partitions(&disk, u64::MAX));
    for _ in 0..2 {
        let (mut log, _) = open(&disk, Durability::Sync);
        replayed(&log, P0, 0).unwrap();
        assert_eq!(log.copies(P1), [copy_of(P1)]);
        log.keep(P1, copy_of(P1));
        log.recovery_done();
        log.set_needed_from(P0, copy_of(P0), Decree(50));
        log.write(&mut Vec::new());
        log.keep_house();
    }
    let (log, _) = open(&disk, Durability::Sync);
    assert_eq!(replayed(&log, P1, 0).unwrap().len(), 10);
}

#[test]
fn a_partition_that_cannot_advance_does_not_pin_the_log() {
    let disk = MemDisk::default();
    let mut log = two_partitions(&disk, 20_000);
    log.set_needed_from(P1, copy_of(P1), Decree(2));
    let mut lowest_seen = 0;
    for decree in 51..=400 {
        append(&mut log, vec![record_at(P0, 1, decree, 100)]).unwrap();
        log.set_needed_from(P0, copy_of(P0), Decree(decree - 5));
        log.keep_house();
        let stats = log.stats();
        assert!(stats.bytes < 2 * 20_000, "decree {decree}: {stats:?}");
        lowest_seen = lowest_seen.max(stats.segments);
        if decree % 50 == 0 {
            let copy = disk.snapshot();
            drop(log);
            let summary;
            (log, summary) =
                open_with(&copy, LogOptions { max_log_bytes: 20_000, ..options(Durability::Sync) });
            assert_eq!(summary.lost, []);
            assert_eq!(replayed(&log, P1, 2).unwrap(), (3..=10).collect::<Vec<_>>(), "decree {decree}");
            drop(log);
            (log, _) = open_with(&disk, LogOptions { max_log_bytes: 20_000, ..options(Durability::Sync) });
            log.set_needed_from(P1, copy_of(P1), Decree(2));
        }
    }
    assert!(lowest_seen >= 4);
    assert_eq!(replayed(&log, P1, 2).unwrap(), (3..=10).collect::<Vec<_>>());
    assert_eq!(replayed(&log, P0, 395).unwrap(), [396, 397, 398, 399, 400]);
}

#[test]
fn restarts_alone_leave_no_files_behind() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1)]).unwrap();
    for _ in 0..5 {
        drop(log);
        (log, _) = open(&disk, Durability::Sync);
    }
    assert_eq!(disk.list().unwrap().len(), 2);
    // And an append after them belongs to the chain.
    append(&mut log, vec![record(P0, 2)]).unwrap();
    let (log, summary) = open(&disk, Durability::Sync);
    assert_eq!((summary.damaged.len(), summary.cut), (0, None));
    assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2]);
}

#[test]
fn logs_of_others_are_left_alone() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1)]).unwrap();
    let foreign = |change: &dyn Fn(&mut Vec<u8>)| {
        let copy = disk.snapshot();
        copy.damage("log.000000000001", change);
        let error = pegasus_mutation_log::LogCore::open(
            std::sync::Arc::new(copy.clone()),
            options(Durability::Sync),
            1,
        )
        .unwrap_err();
        assert_eq!(copy.list().unwrap(), disk.list().unwrap());
        error.to_string()
    };
    let other = pegasus_mutation_log::format::encode_segment_header(77, 5);
    assert!(foreign(&|d| d[..64].copy_from_slice(&other)).contains("file of segment 5"));
}
