use std::fmt;

use pegasus_types::{Ballot, Decree, Mutation};

/// When an append counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// After fdatasync: an acknowledged write survives a power cut of all machines.
    #[default]
    Sync,
    /// After the write: it survives the end of the process, not of the machine.
    PageCache,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync => "sync",
            Self::PageCache => "page_cache",
        })
    }
}

/// What is known from elsewhere of the log that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Known {
    /// An empty directory is a new log.
    #[default]
    Nothing,
    /// There is one, whatever its id: its partitions are there.
    Exists,
    /// As [`RecoverySummary::log_id`](crate::RecoverySummary::log_id) told it. No other log is taken for it.
    Id(u64),
}

#[derive(Clone, Debug)]
pub struct LogOptions {
    pub known: Known,
    pub durability: Durability,
    /// A new segment begins when the next batch would pass this size. At most 2 GiB.
    pub segment_bytes: u64,
    /// Bodies waiting for the writer; beyond it [`append`](crate::MutationLog::append) says `Full`.
    pub max_queue_bytes: usize,
    /// What goes into one write at most (one larger append goes alone).
    pub max_batch_bytes: usize,
    /// When the log is larger, needed records of its oldest segment are appended again at the head, so that
    /// a partition that cannot advance does not pin it (safety-rules.md 2.7). Flush partitions
    /// ([`blockers`](crate::Records::blockers)) well before.
    pub max_log_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            known: Known::Nothing,
            durability: Durability::Sync,
            // Large enough that creating one (two fsyncs) is rare, small enough to be freed soon.
            segment_bytes: 64 << 20,
            // About a second of a fast disk's writes; more would only be latency.
            max_queue_bytes: 64 << 20,
            // Beyond a few MiB a larger write is no faster, but all its appends wait for all of it.
            max_batch_bytes: 4 << 20,
            max_log_bytes: 4 << 30,
        }
    }
}

/// One mutation to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Random, durable before the copy's first record (safety-rules.md 2.1).
    pub copy_id: u64,
    /// Under which it is logged; `mutation.origin` is the ballot of its creator.
    pub ballot: Ballot,
    /// The commit point known when it is logged; a lower bound after replay.
    pub committed: Decree,
    /// Every record of this copy with a higher decree that was logged before this one is void: the copy has cut
    /// its tail, and what follows is another history. Replay does not find them again.
    pub cuts: bool,
    pub mutation: Mutation,
}
