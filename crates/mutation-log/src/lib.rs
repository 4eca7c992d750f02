//! The mutation log of one data disk, shared by all its partitions: the only write-ahead log there is, and the
//! one place where values are written (design.md 1, decisions 6 and 15; safety-rules.md 2).
//!
//! | word | meaning |
//! |---|---|
//! | copy | one life of one partition on this disk: ([`Gpid`](pegasus_types::Gpid), random copy id). Records of other lives are never replayed |
//! | record | one mutation of one copy with the ballot under which it was logged |
//! | batch | everything that was queued when the writer looked: one write, and in sync mode one fdatasync |
//! | segment | a file `log.<number>`; a batch never crosses its end |
//! | mark | position up to which the log was known to be synced; every batch header tells it |
//! | roster | first record of every segment: each live copy and how far it had come |
//!
//! ```text
//!  append() -> bounded queue -> writer thread: LogCore::write, ::sync -> on_done(completions, in order)
//!                                    |
//!                                Catalog  decree -> location per copy; who still needs which segment
//!                                    |
//!  replay() read_range() pin() set_needed_from() -> keeper thread: removes whole segments, oldest first
//! ```
//!
//! [`LogCore`] is the log without threads, over the [`Disk`] trait: `crates/sim` runs that very code on a
//! simulated disk. [`MutationLog`] puts it on its own thread.
//!
//! What the bytes look like is told in [`mod@format`], how torn and damaged logs are told apart in [`recovery`].

mod catalog;
mod core;
pub mod disk;
mod error;
mod export;
pub mod format;
mod log;
pub mod mem_disk;
mod options;
mod read;
pub mod recovery;
mod roster;
mod scan;
mod stats;

pub use catalog::Pin;
pub use core::{Appended, LogCore};
pub use disk::{DirDisk, Disk, LogFile};
pub use error::{LogError, Lost};
pub use log::{Full, MutationLog};
pub use options::{Durability, Known, LogOptions, Record};
pub use read::{Records, Replay};
pub use recovery::{Cut, DamagedRegion, RecoverySummary};
pub use stats::LogStats;

use pegasus_types::LogLocation;

/// The end of one append. Completions come in the order of the appends.
#[derive(Clone, Debug)]
pub struct Completion {
    /// As given to `append`.
    pub token: u64,
    /// One location per record, in their order. An error says that nothing of this append may be believed
    /// durable; after [`LogError::Broken`] nothing of this log ever will be.
    pub result: Result<Vec<LogLocation>, LogError>,
}
