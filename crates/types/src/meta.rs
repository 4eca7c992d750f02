//! What replica-servers and the meta-server say to one another.

use serde::{Deserialize, Serialize};

use crate::{AppInfo, Ballot, ChangeKind, Decree, ErrorCode, Gpid, Node, PartitionConfig};

/// Replica-server → meta leader, every beacon interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    pub node: Node,
    /// Random per process start.
    pub incarnation: u64,
    /// Wall clock of the sender, microseconds since 1970: the meta warns of skew (safety-rules.md 5).
    pub wall_us: u64,
    pub log_healthy: bool,
    /// The node was asked to end and drains: nothing is to be placed on it or promoted there, and its primaries
    /// are to be handed over at once (`Proposal::HandOver`). Told with every beacon until the process ends, so a
    /// new leader learns it too; a new process of the node says false.
    pub draining: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeaconAck {
    /// False = not the leader; ask `leader`.
    pub accepted: bool,
    pub leader: Option<Node>,
    /// The meta wants a full report of the node's replicas (`config_sync`).
    pub wants_report: bool,
    /// Every node that lives drains: nobody is left to hand anything over to, so who drains may end at once.
    pub all_draining: bool,
    /// UUID made once per cluster and kept in the coordination store (safety-rules.md 4.3). A node that stores
    /// another one must not join. Empty when the answering meta is not the leader.
    pub cluster_id: String,
}

/// State of one replica as its node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReplicaStatus {
    Inactive,
    Primary,
    Secondary,
    Learner,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub status: ReplicaStatus,
    pub committed: Decree,
    pub prepared: Decree,
    pub durable: Decree,
    pub disk_tag: String,
}

/// Node → meta leader: everything that I store; the answer is what I should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSync {
    pub node: Node,
    pub incarnation: u64,
    pub replicas: Vec<ReplicaReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSyncAck {
    pub err: ErrorCode,
    pub leader: Option<Node>,
    /// Every partition of which the node is a member.
    pub configs: Vec<(AppInfo, PartitionConfig)>,
    /// Replicas that the node reported and that nobody wants any more: their table is dropped and its hold
    /// time over, or other members are enough.
    pub garbage: Vec<Gpid>,
}

/// Asks for a change of membership, valid only while the stored ballot equals `ballot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRequest {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub kind: ChangeKind,
    pub committed: Decree,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeReply {
    /// Stored; this is the configuration now.
    Accepted(PartitionConfig),
    /// Refused; the stored configuration, and why.
    Rejected {
        current: Option<PartitionConfig>,
        why: String,
    },
    NotLeader {
        leader: Option<Node>,
    },
}

/// Meta → replica-server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// To the primary: start to teach `node`.
    AddSecondary { node: Node },
    /// To the primary: ask for the removal of `node`.
    RemoveSecondary { node: Node },
    /// To the primary: stop, then hand over to `to`.
    HandOver { to: Node },
    /// To a secondary: the primary's node does not answer the meta, or does not hold the replica. Claim its
    /// role at once, whether or not it is still heard (a claim is safe at any time, safety-rules.md 1.3).
    TakeOver,
}

/// Answer to a question about one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueryReply {
    Known(AppInfo, PartitionConfig),
    /// The leader knows no such partition.
    Unknown,
    NotLeader {
        leader: Option<Node>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalRequest {
    pub gpid: Gpid,
    pub ballot: Ballot,
    pub proposal: Proposal,
}
