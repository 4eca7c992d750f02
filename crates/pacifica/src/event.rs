//! Everything that goes into the core.

use bytes::Bytes;
use pegasus_types::message::{Envelope, Heartbeat, HeartbeatAck};
use pegasus_types::meta::{ChangeReply, Proposal};
use pegasus_types::{Ballot, ChangeKind, Decree, Gpid, Mutation, Node, PartitionConfig};

/// A replica as it was found on disk, see [`Replay`](crate::Replay).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub config: PartitionConfig,
    /// As last saved: the replica was a learner, so it need not hold all that a member holds.
    pub learning: bool,
    /// False = acknowledged writes may be missing: the machine lost power while the log was not synced before
    /// acknowledging (replication.md 9.3b). Such a replica waits until the group has removed it. When all members
    /// of a group are like that, all wait: the partition is away, nothing is thrown away, and an operator has to
    /// decide. An election among them is not built.
    pub intact: bool,
    /// The engine holds exactly this.
    pub applied: Decree,
    /// Known to be committed; what lies above `applied` is in the tail and is applied first.
    pub committed: Decree,
    /// From some decree at or below `applied + 1` on, without a gap, with the ballot of the newest record.
    pub tail: Vec<(Ballot, Mutation)>,
}

/// What broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The log took no more; nothing of this disk may be believed any longer.
    Log,
    /// A configuration could not be saved.
    Save,
    /// The engine failed, or its data are damaged.
    Engine,
    /// The replica could not be opened.
    Open,
    /// An invariant of the core failed.
    Invariant,
}

impl Fault {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Save => "save",
            Self::Engine => "engine",
            Self::Open => "open",
            Self::Invariant => "invariant",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Start of the process: a replica lies here and is being opened. Peers that ask meanwhile get no answer.
    Opening {
        gpid: Gpid,
    },
    /// After `Opening` or [`Effect::OpenReplica`](crate::Effect::OpenReplica).
    Opened {
        gpid: Gpid,
        replica: Recovered,
    },
    OpenFailed {
        gpid: Gpid,
        why: String,
    },
    /// A table is being created: the meta's first configuration of a partition. The shell has made an empty
    /// replica for it. Ignored when the replica exists.
    Create {
        config: PartitionConfig,
    },
    /// The meta wants the replica no more, and the shell is about to rename its directory.
    Removed {
        gpid: Gpid,
    },

    /// A resolved write. Ask [`NodeCore::admit_write`](crate::NodeCore::admit_write) first, and
    /// [`NodeCore::next_timestamp`](crate::NodeCore::next_timestamp) for the time. Answered with `Reply` or `Drop`.
    Write {
        gpid: Gpid,
        token: u64,
        timestamp_us: u64,
        body: Bytes,
    },
    Received {
        from: Node,
        envelope: Envelope,
    },
    /// Answered with [`Effect::AckHeartbeat`](crate::Effect::AckHeartbeat) in the same step.
    Heartbeat {
        from: Node,
        heartbeat: Heartbeat,
    },
    HeartbeatAcked {
        from: Node,
        ack: HeartbeatAck,
    },
    /// Its connection was reset and the next one was refused (safety-rules.md 1.3).
    PeerReset {
        node: Node,
    },

    /// Everything up to `upto` that [`Effect::Log`](crate::Effect::Log) gave out under `ballot` is durable.
    Logged {
        gpid: Gpid,
        ballot: Ballot,
        upto: Decree,
    },
    /// The pair of the [`Effect::SaveConfig`](crate::Effect::SaveConfig) that is durable now.
    ConfigSaved {
        gpid: Gpid,
        ballot: Ballot,
        learning: bool,
    },
    Applied {
        gpid: Gpid,
        upto: Decree,
    },
    /// The replica is broken and stops. Also for what the shell finds out by itself (reads, scrubbing).
    Failed {
        gpid: Gpid,
        fault: Fault,
        why: String,
    },

    /// From the meta: answer to a query, configuration sync, or pushed.
    MetaConfig {
        config: PartitionConfig,
    },
    /// End of one [`Effect::AskMeta`](crate::Effect::AskMeta), told by what was asked. None = unreachable or no
    /// answer: the outcome is unknown.
    ChangeAnswered {
        gpid: Gpid,
        asked_at: Ballot,
        kind: ChangeKind,
        reply: Option<ChangeReply>,
    },
    Propose {
        gpid: Gpid,
        ballot: Ballot,
        proposal: Proposal,
    },

    /// Learner: the engine holds the primary's committed state at `decree` now. After
    /// [`Effect::StartCopy`](crate::Effect::StartCopy); when the log suffices, `decree` is the one given there.
    CopiedRows {
        gpid: Gpid,
        signature: u64,
        decree: Decree,
    },
    /// Learner: answer to [`Effect::FetchLog`](crate::Effect::FetchLog), mutations without a gap from the one asked for.
    /// `committed` = the primary's commit point when it answered.
    Fetched {
        gpid: Gpid,
        signature: u64,
        mutations: Vec<Mutation>,
        committed: Decree,
    },
    /// Learner: copying cannot go on. `restart` = worth another try from the beginning (the log was cut
    /// meanwhile, the session expired, the connection broke), else the session is given up.
    CopyFailed {
        gpid: Gpid,
        signature: u64,
        restart: bool,
        why: String,
    },

    /// The log writers of this node: false = one has made no progress for 5 s although requests wait
    /// (safety-rules.md 1.7).
    LogHealth {
        healthy: bool,
    },
    /// [`NodeCore::next_timer`](crate::NodeCore::next_timer) has come.
    Tick,
}
