use std::sync::Arc;

use bytes::Bytes;
use pegasus_mutation_log::mem_disk::MemDisk;
use pegasus_mutation_log::{
    Completion, Durability, Known, LogCore, LogError, LogOptions, Record, RecoverySummary,
};
use pegasus_types::{Ballot, Decree, Gpid, Mutation};

pub const P0: Gpid = Gpid::new(1, 0);
pub const P1: Gpid = Gpid::new(1, 1);
pub const P2: Gpid = Gpid::new(1, 2);

/// Copy id of a partition in tests where each has one life.
pub fn copy_of(gpid: Gpid) -> u64 {
    100 + u64::try_from(gpid.index).unwrap()
}

/// A record whose body follows from its arguments.
pub fn record_at(gpid: Gpid, ballot: i64, decree: i64, body_len: usize) -> Record {
    let mut body = format!("{gpid}/{decree}/{ballot};").into_bytes();
    body.resize(body_len.max(body.len()), b'.');
    let mutation =
        Mutation::new(gpid, Decree(decree), Ballot(ballot), 1000 + decree.unsigned_abs(), Bytes::from(body));
    Record {
        copy_id: copy_of(gpid),
        ballot: Ballot(ballot),
        committed: Decree(decree - 1),
        cuts: false,
        mutation,
    }
}

pub fn record(gpid: Gpid, decree: i64) -> Record {
    record_at(gpid, 1, decree, 40)
}

pub fn options(durability: Durability) -> LogOptions {
    LogOptions { durability, segment_bytes: 4096, ..LogOptions::default() }
}

pub fn open(disk: &MemDisk, durability: Durability) -> (LogCore, RecoverySummary) {
    open_with(disk, options(durability))
}

pub fn open_with(disk: &MemDisk, options: LogOptions) -> (LogCore, RecoverySummary) {
    LogCore::open(Arc::new(disk.clone()), options, 77).unwrap()
}

/// As at a start at which something else knows of the log.
pub fn open_known(disk: &MemDisk, known: Known) -> Result<(LogCore, RecoverySummary), LogError> {
    LogCore::open(Arc::new(disk.clone()), LogOptions { known, ..options(Durability::Sync) }, 78)
}

/// One batch, synced.
pub fn append(log: &mut LogCore, records: Vec<Record>) -> Result<(), LogError> {
    log.enqueue(records, 9);
    let mut done = Vec::new();
    log.write(&mut done);
    log.sync(&mut done);
    let answers: Vec<Completion> = done;
    assert_eq!(answers.len(), 1, "one append, one answer");
    assert_eq!(answers[0].token, 9);
    answers[0].result.clone().map(|_| ())
}

/// Decrees that a replay of the partition's copy gives, after checking each record against `record_at`.
pub fn replayed(log: &LogCore, gpid: Gpid, from: i64) -> Result<Vec<i64>, LogError> {
    let replay = log.replay(gpid, copy_of(gpid), Decree(from))?;
    let mut decrees = Vec::new();
    for read in replay {
        let (mut record, location) = read?;
        record.cuts = false;
        let m = &record.mutation;
        let expected = record_at(gpid, record.ballot.0, m.decree.0, m.body.len());
        assert_eq!(record, expected);
        assert_eq!(location.len as usize, m.body.len());
        decrees.push(m.decree.0);
    }
    Ok(decrees)
}
