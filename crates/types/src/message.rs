//! What replica-servers say to one another about a partition, and the heartbeats that carry leases.
//!
//! Everything here is one-way: the sender does not wait, the receiver answers (if at all) with another
//! message, and the sender repeats what stays unanswered. That is the form in which the `pacifica` crate
//! speaks; how many messages share one RPC is the transport's business.

use serde::{Deserialize, Serialize};

use crate::{Ballot, Decree, Gpid, Mutation, PartitionConfig};

/// A message about one partition, under the sender's ballot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub message: Message,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Primary → member: this is the membership now. Answered with `State` once it is durable.
    Configure { config: PartitionConfig },
    /// Member → primary: adopted, and this is what I hold.
    State { committed: Decree, prepared: Decree },
    /// Primary → member or joined learner. `committed` is the primary's commit point.
    Prepare { mutation: Mutation, committed: Decree },
    /// Member or learner → primary: everything up to `prepared` that you sent under this ballot is in my log.
    /// `round` = that of the learner's `Join`; 0 from members.
    Prepared { prepared: Decree, round: u64 },
    /// Member or learner → primary: the prepare did not follow; send again from `expected` on.
    Gap { expected: Decree, round: u64 },
    /// Member → primary: I do not know this ballot, send me the configuration.
    NeedConfig,
    /// To a sender with an older ballot than mine, the one in the envelope.
    Stale,
    /// To a primary that takes me for a member: I have no such replica, or a broken one.
    NotHere,
    /// Primary → member: commit up to here (when no prepare has carried it).
    Commit { committed: Decree },
    /// Primary → a node outside the group: become my learner in session `signature`.
    Learn { config: PartitionConfig, signature: u64 },
    /// Learner → primary: I hold everything up to `prepared`; send me prepares from there on. `round` is new with
    /// every joining, repeated when the message is: what is acknowledged in one round counts in no other.
    Join { signature: u64, round: u64, prepared: Decree },
    /// Primary → learner: your joining counts from now on. You hold what a member holds when your log has
    /// everything up to `committed`.
    Joined { signature: u64, round: u64, committed: Decree },
    /// Primary → learner: this round counts no more (or never did, it is too far behind for prepares), fetch more
    /// of the log.
    FetchMore { signature: u64, round: u64 },
    /// Learner → primary: my copying failed, this session is over. Primary → learner: I know no such session.
    LearnFailed { signature: u64 },
    /// Primary → the secondary that is to follow it (planned move): at this ballot I have stopped serving for
    /// good, and nobody before me can be serving any more. Who becomes primary at exactly the next ballot need
    /// not wait out its grants.
    Released,
}

impl Message {
    /// Bytes that matter for batching: the body for prepares, else a small constant.
    pub fn weight(&self) -> usize {
        match self {
            Self::Prepare { mutation, .. } => mutation.body.len() + 96,
            _ => 64,
        }
    }
}

/// Process to process, every `lease_heartbeat_ms` (safety-rules.md 1.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Random per process start of the sender.
    pub incarnation: u64,
    pub seq: u64,
    /// Combined hash over the (partition, ballot) pairs for which the sender is primary and the receiver a
    /// member or learner.
    pub digest: u64,
    pub count: u32,
    /// The pairs themselves, when the receiver asked for them.
    pub pairs: Option<Vec<(Gpid, Ballot)>>,
    /// False while the sender's log makes no progress although requests wait (safety-rules.md 1.7).
    pub log_healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// Of the process that answers.
    pub incarnation: u64,
    /// Echo: of the heartbeat that is answered.
    pub to_incarnation: u64,
    pub seq: u64,
    pub grant: Grant,
    pub log_healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// Digests are equal: every pair is granted.
    All,
    /// Digests differ: send the pairs.
    SendPairs,
    /// These are granted; for those in `newer` I know a higher ballot.
    Some { granted: Vec<(Gpid, Ballot)>, newer: Vec<(Gpid, Ballot)> },
}
