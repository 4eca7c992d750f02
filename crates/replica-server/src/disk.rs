//! A data disk as the loop sees it: its log, what waits for the log, and whether it can be trusted.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::path::PathBuf;

use pegasus_mutation_log::{Completion, LogError, MutationLog, Record};
use pegasus_types::{Ballot, Decree, Gpid, LogLocation};

/// Records that may wait for a log that takes no more; beyond it no client write is admitted. What peers send is
/// bounded by their windows.
pub const MAX_WAITING_RECORDS: usize = 20_000;
const MAX_WAITING_BYTES: usize = 128 << 20;
/// Of one append, unless it is one record: what has gathered while a disk was full would else be one write.
const MAX_APPEND_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub struct Disk {
    pub tag: String,
    /// The data directory.
    pub root: PathBuf,
    pub log: MutationLog,
    /// Why nothing on it may be believed any more (safety-rules.md 2.8).
    pub broken: Option<String>,
    /// Less free space than the configuration asks for, or the log met the end of the disk.
    pub full: bool,
    /// Acknowledged writes may be missing on it: the machine lost power while they were not synced.
    pub lost_power_unsynced: bool,
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    /// What the log leaves to others, who free space with it. While no more is free it takes nothing.
    pub left_free_bytes: u64,
    /// Gathered in this turn of the loop.
    batch: Waiting,
    in_flight: VecDeque<(u64, Vec<Record>)>,
    /// Refused for want of space, or because of others in the same append: to be appended again before anything
    /// newer.
    refused: Waiting,
    /// Whoever was to blame is out: what was refused with it need not wait.
    again: bool,
    /// Replicas that the log takes nothing more of. They must not hold up the others.
    failed: BTreeSet<Gpid>,
    last_token: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    bytes: usize,
}

impl Waiting {
    fn push(&mut self, record: Record) {
        self.bytes += record.mutation.body.len();
        self.records.push(record);
    }

    fn extend(&mut self, records: impl IntoIterator<Item = Record>) {
        records.into_iter().for_each(|record| self.push(record));
    }

    fn drop_all_of(&mut self, gpid: Gpid) {
        let all = mem::take(self);
        self.extend(all.records.into_iter().filter(|r| r.mutation.gpid != gpid));
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// In their order, in appends of bounded size.
    fn into_appends(self) -> Vec<Vec<Record>> {
        if self.bytes <= MAX_APPEND_BYTES {
            return vec![self.records];
        }
        let (mut appends, mut next) = (Vec::new(), Self::default());
        for record in self.records {
            if !next.is_empty() && next.bytes + record.mutation.body.len() > MAX_APPEND_BYTES {
                appends.push(mem::take(&mut next).records);
            }
            next.push(record);
        }
        appends.push(next.records);
        appends
    }
}

/// One record that is durable now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    pub gpid: Gpid,
    pub copy_id: u64,
    pub ballot: Ballot,
    pub decree: Decree,
    pub location: LogLocation,
}

/// What a completion means.
#[derive(Debug, Default)]
pub struct Finished {
    /// Durable now.
    pub logged: Vec<Logged>,
    /// Replicas that cannot go on, and why.
    pub failed: Vec<(Gpid, String)>,
    /// The whole log is broken.
    pub broken: Option<String>,
}

impl Disk {
    pub fn new(tag: String, root: PathBuf, log: MutationLog) -> Self {
        Self {
            tag,
            root,
            log,
            broken: None,
            full: false,
            lost_power_unsynced: false,
            capacity_bytes: 0,
            available_bytes: 0,
            left_free_bytes: 0,
            batch: Waiting::default(),
            in_flight: VecDeque::new(),
            refused: Waiting::default(),
            again: false,
            failed: BTreeSet::new(),
            last_token: 0,
        }
    }

    /// Takes part in the next [`Self::flush`].
    pub fn push(&mut self, record: Record) {
        if !self.failed.contains(&record.mutation.gpid) {
            self.batch.push(record);
        }
    }

    /// Whether more records may be made for it.
    pub fn has_room(&self) -> bool {
        self.batch.records.len() + self.refused.records.len() < MAX_WAITING_RECORDS
            && self.batch.bytes + self.refused.bytes < MAX_WAITING_BYTES
    }

    /// Hands everything that gathered to the log, as one append where it is not too much; returns how many records.
    pub fn flush(&mut self) -> usize {
        if self.broken.is_some() {
            // Their replicas have failed or are about to.
            self.batch = Waiting::default();
            self.refused = Waiting::default();
        }
        if self.again && self.in_flight.is_empty() {
            self.again = false;
            return self.retry();
        }
        if self.is_short() {
            self.refused.extend(mem::take(&mut self.batch).records);
        }
        // While records wait for space only the end of an append, or the watch over the disks, tries again.
        if self.batch.is_empty() || !self.refused.is_empty() {
            return 0;
        }
        let batch = mem::take(&mut self.batch);
        self.append(batch)
    }

    /// Tries again what was refused; returns how many records.
    pub fn retry(&mut self) -> usize {
        if self.refused.is_empty() || !self.in_flight.is_empty() {
            return 0;
        }
        if self.is_short() {
            return 0;
        }
        let mut all = mem::take(&mut self.refused);
        all.extend(mem::take(&mut self.batch).records);
        self.append(all)
    }

    fn append(&mut self, waiting: Waiting) -> usize {
        let mut count = 0;
        let mut appends = waiting.into_appends().into_iter();
        while let Some(records) = appends.next() {
            let kept = records.clone();
            match self.log.append(records, self.last_token + 1) {
                Ok(()) => {
                    self.last_token += 1;
                    count += kept.len();
                    self.in_flight.push_back((self.last_token, kept));
                }
                Err(full) => {
                    let newer = mem::take(&mut self.batch);
                    self.batch.extend(full.0.into_iter().chain(appends.flatten()).chain(newer.records));
                    break;
                }
            }
        }
        count
    }

    /// Completions come in the order of the appends.
    pub fn complete(&mut self, completion: Completion, finished: &mut Finished) {
        let Some((token, records)) = self.in_flight.pop_front() else { return };
        debug_assert_eq!(token, completion.token);
        match completion.result {
            Ok(locations) => {
                finished.logged.extend(records.iter().zip(locations).map(|(record, location)| Logged {
                    gpid: record.mutation.gpid,
                    copy_id: record.copy_id,
                    ballot: record.ballot,
                    decree: record.mutation.decree,
                    location,
                }));
            }
            Err(error @ (LogError::DiskFull | LogError::Hole { .. })) => {
                if self.refused.is_empty() {
                    tracing::warn!(disk = self.tag, %error, "the log refused records, they wait");
                }
                if matches!(error, LogError::DiskFull) {
                    // Until it is measured: else what somebody frees first goes to the log again.
                    (self.full, self.available_bytes) = (true, 0);
                    self.left_free_bytes = self.left_free_bytes.max(1);
                }
                self.refuse(records);
            }
            Err(error @ (LogError::CorruptMutation { gpid, .. } | LogError::TooLarge { gpid, .. })) => {
                self.refuse(records);
                self.refused.drop_all_of(gpid);
                self.batch.drop_all_of(gpid);
                self.again = true;
                if self.failed.insert(gpid) {
                    finished.failed.push((gpid, error.to_string()));
                }
            }
            Err(LogError::Broken(why)) => {
                self.broken = Some(why.to_string());
                finished.broken = Some(why.to_string());
            }
            Err(other) => {
                let mut gpids: Vec<Gpid> = records.iter().map(|r| r.mutation.gpid).collect();
                gpids.dedup();
                finished.failed.extend(gpids.into_iter().map(|gpid| (gpid, other.to_string())));
            }
        }
    }

    fn refuse(&mut self, records: Vec<Record>) {
        let failed = &self.failed;
        self.refused.extend(records.into_iter().filter(|r| !failed.contains(&r.mutation.gpid)));
    }

    /// A replica is gone: nothing of it is to be appended any more. Another one may take its place.
    pub fn forget(&mut self, gpid: Gpid) {
        self.refused.drop_all_of(gpid);
        self.batch.drop_all_of(gpid);
        self.failed.remove(&gpid);
    }

    /// Whether what is free is for others.
    pub fn is_short(&self) -> bool {
        self.available_bytes < self.left_free_bytes
    }

    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use bytes::Bytes;
    use pegasus_mutation_log::LogOptions;
    use pegasus_types::Mutation;

    use super::*;

    const A: Gpid = Gpid::new(1, 0);
    const B: Gpid = Gpid::new(1, 1);

    fn disk(root: &std::path::Path) -> (Disk, Receiver<Vec<Completion>>) {
        let (done, completions) = channel();
        let on_done = Box::new(move |all| drop(done.send(all)));
        let (log, _) = MutationLog::open(&root.join("log"), LogOptions::default(), on_done).unwrap();
        (Disk::new("d".into(), root.to_owned(), log), completions)
    }

    fn record(gpid: Gpid, decree: i64, body: &Bytes) -> Record {
        let mutation = Mutation::new(gpid, Decree(decree), Ballot(1), 1, body.clone());
        Record { copy_id: 7, ballot: Ballot(1), committed: Decree(0), cuts: false, mutation }
    }

    /// What the loop does, until everything that was appended is answered.
    fn turn(disk: &mut Disk, completions: &Receiver<Vec<Completion>>, finished: &mut Finished) {
        disk.flush();
        while !disk.in_flight.is_empty() {
            for completion in completions.recv_timeout(Duration::from_secs(10)).unwrap() {
                disk.complete(completion, finished);
            }
            disk.flush();
        }
    }

    #[test]
    fn one_bad_mutation_stops_its_own_replica_only() {
        let root = tempfile::tempdir().unwrap();
        let (mut disk, completions) = disk(root.path());
        let body = Bytes::from_static(b"v");
        let mut bad = record(A, 1, &body);
        bad.mutation.timestamp_us += 1;
        disk.push(bad);
        disk.push(record(B, 1, &body));
        disk.flush();
        // Already on its way when the first is refused, and would be refused again and again with it.
        disk.push(record(A, 2, &body));
        disk.push(record(B, 2, &body));
        let mut finished = Finished::default();
        turn(&mut disk, &completions, &mut finished);
        disk.push(record(A, 3, &body));
        disk.push(record(B, 3, &body));
        turn(&mut disk, &completions, &mut finished);
        assert_eq!(finished.failed.iter().map(|(gpid, _)| *gpid).collect::<Vec<_>>(), [A]);
        let logged: Vec<_> = finished.logged.iter().map(|l| (l.gpid, l.decree.0)).collect();
        assert_eq!(logged, [(B, 1), (B, 2), (B, 3)]);
        assert!(!disk.has_refused() && !disk.full);
        // Its successor is another copy.
        disk.forget(A);
        disk.push(Record { copy_id: 8, ..record(A, 3, &body) });
        turn(&mut disk, &completions, &mut finished);
        assert_eq!(finished.logged.last().map(|l| (l.gpid, l.copy_id)), Some((A, 8)));
    }

    #[test]
    fn what_has_waited_is_appended_in_bounded_pieces() {
        let root = tempfile::tempdir().unwrap();
        let (mut disk, completions) = disk(root.path());
        let body = Bytes::from(vec![0; 5 << 20]);
        disk.refused.extend((1..=8).map(|decree| record(A, decree, &body)));
        disk.push(record(A, 9, &body));
        assert_eq!(disk.retry(), 9);
        let sizes: Vec<_> = disk.in_flight.iter().map(|(_, records)| records.len()).collect();
        assert_eq!(sizes, [3, 3, 3]);
        let mut finished = Finished::default();
        turn(&mut disk, &completions, &mut finished);
        assert!(finished.logged.iter().map(|l| l.decree.0).eq(1..=9));
        assert!(disk.has_room());
        disk.refused.extend((10..=40).map(|decree| record(A, decree, &body)));
        assert!(!disk.has_room(), "155 MiB wait");
    }

    #[test]
    fn what_is_left_free_is_not_for_the_log() {
        let root = tempfile::tempdir().unwrap();
        let (mut disk, completions) = disk(root.path());
        let (body, mut finished) = (Bytes::from_static(b"v"), Finished::default());
        (disk.available_bytes, disk.left_free_bytes) = (99, 100);
        disk.push(record(A, 1, &body));
        assert_eq!((disk.flush(), disk.retry()), (0, 0));
        assert!(disk.has_refused());
        // After the end of the disk nothing is known to be free, until it is measured.
        disk.last_token = 1;
        disk.in_flight.push_back((1, vec![record(B, 1, &body)]));
        (disk.available_bytes, disk.left_free_bytes) = (1000, 0);
        disk.complete(Completion { token: 1, result: Err(LogError::DiskFull) }, &mut finished);
        assert!(disk.full && disk.is_short());
        assert_eq!(disk.retry(), 0);
        (disk.available_bytes, disk.left_free_bytes) = (100, 100);
        assert_eq!(disk.retry(), 2);
        turn(&mut disk, &completions, &mut finished);
        assert_eq!(finished.logged.len(), 2);
    }
}
