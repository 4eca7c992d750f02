//! One replica as the shell keeps it: what the core decides about lives here only as a handle.
//!
//! ```text
//!  client ──▶ queue ──▶ resolve (overlay over engine) ──▶ core ──▶ log, peers
//!                              ▲                            │
//!                           inflight ◀── replies ◀── engine ◀── apply
//! ```

pub mod driver;
pub mod inflight;
pub mod locations;
pub mod overlay;
pub mod queue;
pub mod stages;

use std::path::PathBuf;
use std::sync::Arc;

use pegasus_rpc::wire::server::ReplyTo;
use pegasus_storage::ops::ScanContexts;
use pegasus_storage::{PartitionEngine, ReplicaMeta};
use pegasus_types::{Decree, Gpid};

use crate::cold::Warmth;
use crate::compaction::Compaction;
use crate::compaction::saved::Saved;
use crate::metrics::Op;
use crate::throttle::Limits;
use inflight::Inflight;
use locations::Locations;
use queue::WriteQueue;
use stages::Stages;

#[derive(Debug)]
pub struct Replica {
    pub gpid: Gpid,
    /// Names this life of the replica, in the log and as its engine's directory. A copy from a primary begins
    /// a new life.
    pub copy_id: u64,
    /// Index into the node's disks.
    pub disk: usize,
    pub dir: PathBuf,
    /// As it was given to be saved last.
    pub meta: ReplicaMeta,
    pub engine: Arc<dyn PartitionEngine>,
    pub queue: WriteQueue<ReplyTo>,
    pub inflight: Inflight<ReplyTo>,
    pub locations: Locations,
    pub stages: Stages,
    /// When the mutation that is being proposed was begun, monotonic microseconds.
    pub taken_us: u64,
    pub scans: ScanContexts,
    /// Waits in the node's list of partitions with queued writes.
    pub listed: bool,
    /// What the log was told last.
    pub needed_from: Decree,
    /// Something in the log at or below this decree cannot be read: who needs it copies rows.
    pub unreadable: Decree,
    /// The core was told that the engine has failed.
    pub reported_failed: bool,
    pub counts: Counts,
    /// What its table lets clients do.
    pub limits: Limits,
    pub warmth: Warmth,
    pub compaction: Compaction,
}

/// Since the replica was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub failed: u64,
    pub read_units: u64,
    pub write_units: u64,
    by_op: [OpCount; Op::ALL.len()],
}

/// Answered requests of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpCount {
    pub requests: u64,
    /// Of writes the frames, of reads the values.
    pub bytes: u64,
}

impl Counts {
    pub fn of(&self, op: Op) -> OpCount {
        self.by_op[op as usize]
    }

    pub fn answered(&mut self, op: Op, bytes: u64) {
        let count = &mut self.by_op[op as usize];
        count.requests += 1;
        count.bytes += bytes;
    }
}

impl Replica {
    pub fn new(
        gpid: Gpid,
        disk: usize,
        dir: PathBuf,
        meta: ReplicaMeta,
        engine: Arc<dyn PartitionEngine>,
    ) -> Self {
        Self {
            gpid,
            copy_id: meta.copy_id,
            limits: Limits::of(&meta.app),
            compaction: Compaction::new(&meta.app, Saved::default()),
            disk,
            dir,
            meta,
            engine,
            queue: WriteQueue::default(),
            inflight: Inflight::default(),
            locations: Locations::default(),
            stages: Stages::default(),
            taken_us: 0,
            scans: ScanContexts::new(),
            listed: false,
            needed_from: Decree::ZERO,
            unreadable: Decree::ZERO,
            reported_failed: false,
            counts: Counts::default(),
            warmth: Warmth::default(),
        }
    }
}
