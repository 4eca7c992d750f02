use std::io;
use std::sync::Arc;

use pegasus_types::{Decree, Gpid};

/// What a copy has lost to damage below the synced mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Records at or below this decree; harmless when the engine has made that decree durable.
    UpTo(Decree),
    /// Records may be missing at the end, nobody knows which.
    Unknown,
}

impl Lost {
    pub(crate) fn add_to(self, known: &mut Option<Self>) {
        *known = Some(match (*known, self) {
            (None, more) => more,
            (Some(Self::UpTo(a)), Self::UpTo(b)) => Self::UpTo(a.max(b)),
            (Some(Self::Unknown), _) | (_, Self::Unknown) => Self::Unknown,
        });
    }
}

/// `Clone`, because one failure answers many appends.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A failed fsync (or any write error but a full disk) is final: a retry that succeeds proves nothing
    /// (safety-rules.md 2.8).
    #[error("the log is broken until restart: {0}")]
    Broken(Arc<str>),
    /// Nothing of the append is in the log; later appends of the same copies are refused until they go on
    /// from the decree that failed.
    #[error("no space left for the log")]
    DiskFull,
    /// The end to end checksum does not fit: the mutation was damaged on its way here.
    #[error("mutation {gpid} decree {decree} does not match its checksum")]
    CorruptMutation { gpid: Gpid, decree: Decree },
    /// An earlier append of this copy failed at `expected`.
    #[error("{gpid}: an append at decree {got} would leave a hole at {expected}")]
    Hole { gpid: Gpid, got: Decree, expected: Decree },
    #[error("{gpid} decree {decree}: a mutation of {bytes} bytes is larger than a record may be")]
    TooLarge { gpid: Gpid, decree: Decree, bytes: usize },
    #[error("an append of {bytes} bytes is larger than a batch may be")]
    AppendTooLarge { bytes: usize },
    /// [`LogOptions::known`](crate::LogOptions::known) says that there was one. Without it every copy would look as
    /// if it had nothing but what its engine has: acknowledged writes would be gone and nobody told.
    #[error("the log that was here is gone or cannot be read: not mounted, emptied or damaged")]
    Gone,
    /// Records that this copy needs are lost. The copy must be quarantined and learned again.
    #[error("{gpid}: records of the log are lost ({lost:?})")]
    Damaged { gpid: Gpid, lost: Lost },
    /// The log no longer (or never) reached back that far.
    #[error("{gpid}: the log from decree {from} on is not there")]
    LogGone { gpid: Gpid, from: Decree },
    /// A record that the index knows does not read back as it was written.
    #[error("segment {segment} is damaged at byte {offset}")]
    BadRecord { segment: u64, offset: u64 },
    #[error("segment {segment}: {why}")]
    Unusable { segment: u64, why: String },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: Arc<io::Error> },
}

impl LogError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, error: Arc::new(error) }
    }
}
