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

pub mod learner;
pub mod sessions;
pub mod teacher;

use pegasus_mutation_log::Pin;
use pegasus_storage::View;
use tokio::task::AbortHandle;

/// What a teacher keeps for a learner.
#[derive(Debug)]
pub struct Teaching {
    /// None while a chunk is being read, and for those who need the log only.
    pub view: Option<Box<dyn View>>,
    pub has_rows: bool,
    pub copy_id: u64,
    /// Keeps the log from the view's decree on.
    pub _pin: Pin,
}

/// A copy under way; dropping it ends it.
#[derive(Debug)]
pub struct Copying {
    pub signature: u64,
    task: AbortHandle,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.task.abort();
    }
}
