//! Bytes that were synced and are not what they were.

use pegasus_mutation_log::mem_disk::MemDisk;
use pegasus_mutation_log::{Disk, Durability, Known, LogCore, LogError, Lost, Record};
use pegasus_types::Gpid;

use crate::support::*;

const COPIES: [(Gpid, i64); 3] = [(P0, 30), (P1, 30), (P2, 9)];

/// Three copies over several segments; P2 falls silent early. The last batch is P0's alone, so that everything
/// else lies below the mark.
fn build() -> MemDisk {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    for decree in 1..=30 {
        let mut records: Vec<Record> = vec![record(P1, decree)];
        if decree <= 9 {
            records.push(record(P2, decree));
        }
        append(&mut log, records).unwrap();
        append(&mut log, vec![record(P0, decree)]).unwrap();
    }
    disk
}

/// Opens a damaged disk and says for each copy whether it is whole; anything between is a failure. `tail` is
/// where the batch that no mark covers starts.
fn judge(disk: &MemDisk, what: &str) -> [bool; 3] {
    let log = match LogCore::open(std::sync::Arc::new(disk.clone()), options(Durability::Sync), 1) {
        Ok((log, _)) => log,
        Err(LogError::Unusable { .. }) => return [false; 3],
        Err(error) => panic!("{what}: {error}"),
    };
    COPIES.map(|(gpid, last)| match replayed(&log, gpid, 0) {
        Ok(decrees) => {
            // The newest record of P0 is above the mark and may be cut as torn.
            let least = if gpid == P0 { last - 1 } else { last };
            let got = i64::try_from(decrees.len()).unwrap();
            assert!(decrees == (1..=got).collect::<Vec<_>>() && got >= least, "{what}: {gpid} {decrees:?}");
            true
        }
        Err(LogError::Damaged { .. }) => false,
        Err(error) => panic!("{what}: {gpid}: {error}"),
    })
}

#[test]
fn one_flipped_bit_anywhere() {
    let disk = build();
    let (mut hurt, mut unharmed) = (0, 0);
    for name in disk.list().unwrap() {
        let len = disk.read(&name).len();
        for at in 0..len {
            let bit = at % 8;
            let copy = disk.snapshot();
            copy.damage(&name, |d| d[at] ^= 1 << bit);
            let what = format!("{name} byte {at} bit {bit}");
            let whole = judge(&copy, &what);
            let damaged = whole.iter().filter(|w| !**w).count();
            // One record has been hit at most, and its owner is always found: nobody else pays for it.
            assert!(damaged <= 1, "{what}: {whole:?}");
            if damaged == 1 {
                hurt += 1
            } else {
                unharmed += 1
            }
            if at % 7 == 0 {
                assert_eq!(judge(&copy, &what), whole, "{what}: forgotten at the second start");
            }
        }
    }
    assert!(hurt > 5000 && unharmed > 1000, "{hurt} {unharmed}");
}

/// A sector takes several records, headers and all, with it.
#[test]
fn a_lost_sector_anywhere() {
    let disk = build();
    let mut all_survived = 0;
    for name in disk.list().unwrap() {
        let len = disk.read(&name).len();
        for at in (0..len).step_by(128) {
            let copy = disk.snapshot();
            copy.damage(&name, |d| d[at..len.min(at + 512)].fill(0));
            let whole = judge(&copy, &format!("{name} {at}"));
            if whole == [true; 3] {
                all_survived += 1;
            }
        }
    }
    assert!(all_survived < 8, "only the torn tail may be cut: {all_survived}");
}

#[test]
fn a_lost_segment() {
    let disk = build();
    let names = disk.list().unwrap();
    assert!(names.len() >= 4);
    for name in &names[..names.len() - 1] {
        let copy = disk.snapshot();
        copy.remove(name).unwrap();
        let whole = judge(&copy, name);
        assert_eq!(whole[..2], [false, false], "{name}");
    }
    // Whatever was truncated below the mark is missed as well.
    for name in &names[..names.len() - 1] {
        for keep in [0, 10, 64, 201, 1500, 3000] {
            let copy = disk.snapshot();
            copy.damage(name, |d| d.truncate(keep));
            assert_ne!(judge(&copy, name), [true; 3], "{name} {keep}");
        }
    }
}

#[test]
fn only_the_owner_of_a_lost_record_is_damaged() {
    let disk = build();
    let name = "log.000000000002";
    let data = disk.read(name);
    let at = data.windows(6).position(|w| w == b"1.1/13" || w == b"1.1/14").unwrap();
    disk.damage(name, |d| d[at] ^= 1);
    let (mut log, summary) = open(&disk, Durability::Sync);
    assert_eq!(summary.damaged.len(), 1);
    assert!(matches!(summary.lost[..], [(P1, _, Lost::UpTo(d))] if (13..=14).contains(&d.0)), "{summary:?}");
    assert_eq!(replayed(&log, P0, 0).unwrap().len(), 30);
    assert_eq!(replayed(&log, P2, 0).unwrap().len(), 9);
    assert!(matches!(replayed(&log, P1, 0), Err(LogError::Damaged { gpid: P1, .. })));
    // An engine that has made it durable long ago does not need the record.
    assert_eq!(replayed(&log, P1, 20).unwrap().len(), 10);

    // Quarantined: the next life is not haunted, now or later.
    log.forget(P1, copy_of(P1));
    log.recovery_done();
    let mut reborn = record(P1, 1);
    reborn.copy_id = 7;
    append(&mut log, vec![reborn]).unwrap();
    drop(log);
    let (log, summary) = open(&disk, Durability::Sync);
    assert_eq!(summary.lost, []);
    assert_eq!(log.replay(P1, 7, pegasus_types::Decree(0)).unwrap().count(), 1);
}

/// The last records of an idle copy, in the newest segment: no later record shows a gap, the counters do.
#[test]
fn lost_records_without_a_visible_owner() {
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1), record(P1, 1)]).unwrap();
    append(&mut log, vec![record(P2, 1)]).unwrap();
    let from = disk.read("log.000000000001").len();
    append(&mut log, vec![record(P1, 2)]).unwrap();
    let to = disk.read("log.000000000001").len();
    append(&mut log, vec![record(P0, 2)]).unwrap();
    append(&mut log, vec![record(P0, 3)]).unwrap();
    drop(log);
    disk.damage("log.000000000001", |d| d[from..to].fill(0xAA));
    for start in 0..3 {
        let (mut log, summary) = open(&disk, Durability::Sync);
        assert!(summary.unsettled, "start {start}");
        assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2, 3], "its chain goes on after the damage");
        for gpid in [P1, P2, Gpid::new(5, 5)] {
            assert!(
                matches!(replayed(&log, gpid, 0), Err(LogError::Damaged { lost: Lost::Unknown, .. })),
                "{gpid} may have been hit"
            );
        }
        if start == 1 {
            // All dealt with: from then on a copy that is not known has simply never written.
            log.forget(P1, copy_of(P1));
            log.forget(P2, copy_of(P2));
            log.recovery_done();
            log.write(&mut Vec::new());
            break;
        }
    }
    let (log, summary) = open(&disk, Durability::Sync);
    assert!(!summary.unsettled && summary.lost.is_empty(), "{summary:?}");
    assert_eq!(replayed(&log, P0, 0).unwrap(), [1, 2, 3]);
    assert_eq!(replayed(&log, Gpid::new(5, 5), 0).unwrap(), [0; 0]);
}

/// Bytes of a log inside somebody's value are not records of it.
#[test]
fn a_log_inside_a_value_is_not_read_as_one() {
    let disk = build();
    let inner = disk.read("log.000000000001");
    let disk = MemDisk::default();
    let (mut log, _) = open(&disk, Durability::Sync);
    append(&mut log, vec![record(P0, 1)]).unwrap();
    let body = bytes::Bytes::from(inner);
    let mutation = pegasus_types::Mutation::new(P0, pegasus_types::Decree(2), Default::default(), 0, body);
    let copy_id = copy_of(P0);
    let big =
        Record { copy_id, ballot: Default::default(), committed: Default::default(), cuts: false, mutation };
    log.enqueue(vec![big], 1);
    log.write(&mut Vec::new());
    log.sync(&mut Vec::new());
    append(&mut log, vec![record(P1, 1)]).unwrap();
    append(&mut log, vec![record(P1, 2)]).unwrap();
    drop(log);
    // Destroy the header of the record that holds it, so that the scan walks through the value.
    let name = disk.list().unwrap().into_iter().find(|n| disk.read(n).len() > 4000).unwrap();
    let data = disk.read(&name);
    let at = data.windows(8).rposition(|w| w == b"PGSMLOG\n").unwrap();
    disk.damage(&name, |d| d[at - 60] ^= 1);
    let (log, summary) = open(&disk, Durability::Sync);
    assert_eq!(summary.records, 3);
    assert!(replayed(&log, P0, 0).is_err());
    assert_eq!(replayed(&log, P1, 0).unwrap(), [1, 2]);
}

/// Recovery of arbitrary bytes ends, whatever they are.
#[test]
fn noise() {
    use rand::{Rng, RngExt, SeedableRng};
    let clean = build();
    let names = clean.list().unwrap();
    for seed in 0..300 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let disk = clean.snapshot();
        for _ in 0..rng.random_range(1..12) {
            let name = &names[rng.random_range(0..names.len())];
            disk.damage(name, |d| {
                if d.is_empty() {
                    return;
                }
                let at = rng.random_range(0..d.len());
                let end = d.len().min(at + rng.random_range(1..400));
                match rng.random_range(0..4) {
                    0 => rng.fill_bytes(&mut d[at..end]),
                    1 => d.truncate(at),
                    2 => drop(d.drain(at..end)),
                    _ => d.copy_within(0..end - at, at),
                }
            });
        }
        if let Ok((log, _)) = LogCore::open(std::sync::Arc::new(disk), options(Durability::Sync), 1) {
            for (gpid, _) in COPIES {
                if let Ok(decrees) = replayed(&log, gpid, 0) {
                    assert!(decrees.iter().zip(1..).all(|(got, want)| *got == want), "seed {seed}");
                }
            }
        }
    }
}

const FIRST: &str = "log.000000000001";

#[test]
fn a_young_log_with_a_damaged_header_is_not_a_new_log() {
    for batches in 1..=3 {
        let disk = MemDisk::default();
        let (mut log, summary) = open(&disk, Durability::Sync);
        assert!(summary.is_new && summary.log_id == 77);
        for decree in 1..=batches {
            append(&mut log, vec![record(P0, decree)]).unwrap();
        }
        drop(log);
        disk.damage(FIRST, |data| data[20] ^= 1);
        for known in [Known::Nothing, Known::Exists] {
            let opened = open_known(&disk.snapshot(), known).map(|(_, summary)| summary);
            assert!(
                matches!(opened, Err(LogError::Unusable { .. } | LogError::Gone)),
                "{known:?}: {opened:?}"
            );
        }
        // Who knows its id can read it.
        let (log, summary) = open_known(&disk, Known::Id(77)).unwrap();
        assert_eq!((summary.damaged.len(), summary.is_new, summary.log_id), (1, false, 77));
        assert_eq!(replayed(&log, P0, 0).unwrap(), (1..=batches).collect::<Vec<_>>());
    }
}

#[test]
fn a_log_that_is_gone_or_another_one_is_not_a_new_one() {
    let disk = MemDisk::default();
    drop(open(&disk, Durability::Sync));
    for (known, fits) in
        [(Known::Nothing, true), (Known::Exists, true), (Known::Id(77), true), (Known::Id(1), false)]
    {
        match open_known(&disk.snapshot(), known) {
            Ok((_, summary)) => assert!(fits && !summary.is_new && summary.log_id == 77, "{known:?}"),
            Err(error) => assert!(!fits && matches!(error, LogError::Unusable { .. }), "{known:?}: {error}"),
        }
    }
    let unborn = disk.snapshot();
    unborn.damage(FIRST, |data| data.truncate(100));
    unborn.damage(FIRST, |data| data[20] ^= 1);
    for disk in [MemDisk::default(), unborn] {
        for known in [Known::Exists, Known::Id(77)] {
            let opened = open_known(&disk.snapshot(), known).map(|(_, summary)| summary);
            assert!(matches!(opened, Err(LogError::Gone)), "{known:?}: {opened:?}");
        }
        let (_, summary) = open_known(&disk, Known::Nothing).unwrap();
        assert!(summary.is_new && summary.log_id == 78, "a first start that came to no end");
    }
}
