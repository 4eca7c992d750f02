//! Copying a partition from its primary (safety-rules.md 3.4): rows of a pinned view as a stream, then the log
//! from the view's decree on. The learner pulls, over connections of class Bulk.
//!
//! ```text
//! learner                                        teacher (primary)
//!   StartCopy ── learn_open ───────────────────▶ log reaches back? ── no ─▶ pin view and log
//!   fill a second engine ◀── learn_rows ──────── chunk after chunk
//!   make it durable, switch to it, CopiedRows
//!   FetchLog ── learn_log ─────────────────────▶ committed mutations
//! ```
//!
//! A broken connection interrupts a copy: it goes on where it was, in the same learning or in the next one, as long as
//! both processes live and no more than [`sessions::EXPIRE_MS`] have passed. What a node copies is bounded in number
//! and in bytes per second, on both sides, and done by threads of low priority ([`crate::workers`]), so that clients and
//! heartbeats do not feel it. When the log that a copy pins
//! becomes too long, or the disk full, the copy is given up, not the disk.

pub mod learner;
pub mod rate;
pub mod sessions;
pub mod teacher;

use std::time::Instant;

use pegasus_mutation_log::Pin;
use pegasus_storage::View;
use pegasus_storage::rows::Loading;
use pegasus_types::{Decree, Node};
use tokio::task::AbortHandle;

/// Threads for all copies into and out of a node: a disk gives no more with more, and clients read from it, too.
pub const THREADS: usize = 2;

/// What a teacher keeps for a learner.
#[derive(Debug)]
pub struct Teaching {
    /// None while a chunk is being read, and for those who need the log only.
    pub view: Option<Box<dyn View>>,
    pub has_rows: bool,
    /// Of the view.
    pub decree: Decree,
    pub copy_id: u64,
    /// Keeps the log from the view's decree on.
    pub _pin: Pin,
}

/// A copy under way; dropping it ends it.
#[derive(Debug)]
pub struct Copying {
    pub signature: u64,
    pub progress: Progress,
    task: AbortHandle,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// For whoever watches.
#[derive(Clone, Debug)]
pub struct Progress {
    pub teacher: Node,
    pub since: Instant,
    pub stage: Stage,
    pub rows: u64,
    /// About so many rows there are.
    pub of_rows: u64,
    pub bytes: u64,
}

impl Progress {
    fn new(teacher: Node) -> Self {
        Self { teacher, since: Instant::now(), stage: Stage::Waiting, rows: 0, of_rows: 0, bytes: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For its turn here, or for the teacher.
    Waiting,
    Rows,
    Log,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Rows => "rows",
            Self::Log => "log",
        }
    }
}

/// Rows that are here already of a copy that was interrupted, or goes on.
#[derive(Debug)]
pub struct Partial {
    teacher: Node,
    session: u64,
    decree: Decree,
    copy_id: u64,
    loading: Loading,
    /// Unix milliseconds.
    begun_ms: u64,
    used: Instant,
}
