//! A data disk as the loop sees it: its log, what waits for the log, and whether it can be trusted.

use std::collections::VecDeque;
use std::mem;
use std::path::PathBuf;

use pegasus_mutation_log::{Completion, LogError, MutationLog, Record};
use pegasus_types::{Ballot, Decree, Gpid, LogLocation};

/// Records that may wait for a log that takes no more; beyond it no client write is admitted. What peers send is
/// bounded by their windows.
pub const MAX_WAITING_RECORDS: usize = 20_000;

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
    /// Gathered in this turn of the loop.
    batch: Vec<Record>,
    in_flight: VecDeque<(u64, Vec<Record>)>,
    /// Refused for want of space: to be appended again before anything newer.
    refused: Vec<Record>,
    last_token: u64,
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
            batch: Vec::new(),
            in_flight: VecDeque::new(),
            refused: Vec::new(),
            last_token: 0,
        }
    }

    /// Takes part in the next [`Self::flush`].
    pub fn push(&mut self, record: Record) {
        self.batch.push(record);
    }

    /// Whether more records may be made for it.
    pub fn has_room(&self) -> bool {
        self.batch.len() + self.refused.len() < MAX_WAITING_RECORDS
    }

    /// Hands everything that gathered to the log as one append; returns how many records.
    pub fn flush(&mut self) -> usize {
        if self.broken.is_some() {
            // Their replicas have failed or are about to.
            self.batch.clear();
            self.refused.clear();
        }
        // While records wait for space only the end of an append, or the watch over the disks, tries again.
        if self.batch.is_empty() || !self.refused.is_empty() {
            return 0;
        }
        let batch = mem::take(&mut self.batch);
        self.append(batch)
    }

    /// Tries again what was refused for want of space.
    pub fn retry(&mut self) {
        if !self.refused.is_empty() && self.in_flight.is_empty() {
            let mut records = mem::take(&mut self.refused);
            records.append(&mut self.batch);
            self.append(records);
        }
    }

    fn append(&mut self, records: Vec<Record>) -> usize {
        let kept = records.clone();
        let count = records.len();
        match self.log.append(records, self.last_token + 1) {
            Ok(()) => {
                self.last_token += 1;
                self.in_flight.push_back((self.last_token, kept));
                count
            }
            Err(full) => {
                let newer = mem::replace(&mut self.batch, full.0);
                self.batch.extend(newer);
                0
            }
        }
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
                self.full = true;
                self.refused.extend(records);
            }
            Err(error @ LogError::CorruptMutation { gpid, .. }) => {
                finished.failed.push((gpid, error.to_string()));
                self.refused.extend(records.into_iter().filter(|r| r.mutation.gpid != gpid));
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

    /// A replica is gone: nothing of it is to be appended any more.
    pub fn forget(&mut self, gpid: Gpid) {
        self.refused.retain(|r| r.mutation.gpid != gpid);
        self.batch.retain(|r| r.mutation.gpid != gpid);
    }

    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }
}
