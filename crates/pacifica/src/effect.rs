//! Everything that comes out of the core.

use pegasus_types::message::{Envelope, Heartbeat, HeartbeatAck};
use pegasus_types::meta::{ChangeRequest, ReplicaStatus};
use pegasus_types::{Ballot, Decree, ErrorCode, Gpid, Mutation, Node, PartitionConfig};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make it durable, then report `ConfigSaved` (or `Failed`). Until then the core does not act on it.
    SaveConfig {
        gpid: Gpid,
        config: PartitionConfig,
        learning: bool,
    },
    /// This node is to become a learner and has no replica: make an empty one, then `Opened` or `OpenFailed`.
    /// The recovered state is `PartitionConfig::unassigned`, `learning`, `intact`, decrees zero.
    OpenReplica {
        gpid: Gpid,
        config: PartitionConfig,
    },
    /// Append in this order under `ballot`; `committed` goes into the records. With `cuts`, every record of this
    /// copy that was logged before with a higher decree than the first of these is void: the first record says
    /// so. Reported by `Logged`; one report may stand for several effects of the same ballot.
    Log {
        gpid: Gpid,
        ballot: Ballot,
        committed: Decree,
        cuts: bool,
        mutations: Vec<Mutation>,
    },
    Send {
        to: Node,
        envelope: Envelope,
    },
    /// On a connection of its own. Its acknowledgement, if any, is reported by `HeartbeatAcked`.
    SendHeartbeat {
        to: Node,
        heartbeat: Heartbeat,
    },
    AckHeartbeat {
        to: Node,
        ack: HeartbeatAck,
    },
    /// Committed: put them into the engine in decree order, then `Applied` (or `Failed`). Every mutation was
    /// reported by `Logged` before, so the shell knows its location.
    Apply {
        gpid: Gpid,
        mutations: Vec<Mutation>,
    },
    /// The write is committed and applied (`Ok`), or surely not executed.
    Reply {
        gpid: Gpid,
        token: u64,
        result: Result<Decree, ErrorCode>,
    },
    /// The outcome of this write is unknown, for this node is not its primary any more: no answer, the client
    /// runs into its timeout.
    Drop {
        gpid: Gpid,
        token: u64,
    },

    /// One attempt at the leader (following a redirect is part of the attempt), reported by `ChangeAnswered`.
    /// The core repeats.
    AskMeta {
        request: ChangeRequest,
    },
    /// Somebody knows a newer configuration: ask the meta, deliver the answer as `MetaConfig`. Best effort.
    QueryMeta {
        gpid: Gpid,
    },

    /// Learner: open a learning session at `from` (`LearnOpen`), copy rows if its plan says so into an empty
    /// engine that replaces the old one when complete, then `CopiedRows` or `CopyFailed`. Any earlier
    /// session of the partition ends.
    StartCopy {
        gpid: Gpid,
        from: Node,
        ballot: Ballot,
        signature: u64,
        committed: Decree,
    },
    /// Learner: fetch a chunk of the primary's log, beginning with `after + 1`, then `Fetched` or `CopyFailed`.
    FetchLog {
        gpid: Gpid,
        from: Node,
        signature: u64,
        after: Decree,
    },
    /// The learning session is over; what it was doing may be dropped.
    StopCopy {
        gpid: Gpid,
    },

    /// For metrics, logs, and whatever the shell keeps per role. Sent after every change of status or ballot.
    RoleChanged {
        gpid: Gpid,
        status: ReplicaStatus,
        ballot: Ballot,
    },
    /// The group goes on without this broken replica: put its directory aside. The core has forgotten it; the
    /// partition may come back as a learner in a new directory.
    Quarantine {
        gpid: Gpid,
        why: String,
    },
    /// An invariant failed (safety-rules.md 4.7): the newest events of this replica, oldest first, for the log.
    Dump {
        gpid: Gpid,
        why: String,
        events: Vec<String>,
    },
}
