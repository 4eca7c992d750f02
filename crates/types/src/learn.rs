//! Bulk copy of a partition to a learner (safety-rules.md 3.4): rows of a pinned view as a stream, resumable
//! by the last key, then the log from the view's decree. Pulled by the learner over a connection of its own.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Ballot, Decree, Gpid, Mutation};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnOpen {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub signature: u64,
    /// Everything up to here is committed and applied at the learner.
    pub committed: Decree,
    /// Session of which the learner has some rows already, if the teacher still knows it.
    pub resume: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LearnPlan {
    /// The log reaches back far enough: fetch it from `committed + 1`.
    Log,
    /// Copy rows of the view at `decree`, then the log from `decree + 1`. `session` names the pinned view; it is the one
    /// that the learner wanted to resume if that is possible. About so many `rows`, for whoever watches.
    Rows { session: u64, decree: Decree, rows: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsRequest {
    pub gpid: Gpid,
    pub session: u64,
    /// Resume after this key; None = from the start.
    pub after: Option<Bytes>,
    pub max_bytes: u32,
}

/// Rows in key order, as a mutation body of puts, with a checksum over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsChunk {
    #[serde(with = "crate::blob")]
    pub body: Bytes,
    pub crc: u32,
    pub last_key: Option<Bytes>,
    pub done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    pub gpid: Gpid,
    pub signature: u64,
    pub from: Decree,
    pub max_bytes: u32,
}

/// Committed mutations in decree order, without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    pub mutations: Vec<Mutation>,
    /// The primary's commit point when it answered.
    pub committed: Decree,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LearnRefused {
    #[error("not the primary of this partition at ballot {0}")]
    NotPrimary(Ballot),
    #[error("no learning session {0}")]
    NoSession(u64),
    #[error("the log from decree {0} on is no longer kept")]
    LogGone(Decree),
    #[error("too many learning sessions")]
    Busy,
    #[error("{0}")]
    Failed(String),
}
