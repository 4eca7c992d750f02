//! The cluster as its meta leader sees it, for those who only look: collector, shell, dashboard.

use serde::{Deserialize, Serialize};

use crate::{AppInfo, Node, PartitionConfig};

/// What a client can do with a partition. Only members whose node is alive count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PartitionHealth {
    /// No member is alive.
    Dead,
    /// Members are alive, but not the primary.
    Unreadable,
    /// The primary is alive with fewer members than a write needs.
    Unwritable,
    /// Writes work, with fewer members than wanted.
    WritableIll,
    Healthy,
}

impl PartitionHealth {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Unreadable => "unreadable",
            Self::Unwritable => "unwritable",
            Self::WritableIll => "writable_ill",
            Self::Healthy => "healthy",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterOverview {
    pub cluster_id: String,
    pub cluster_name: String,
    /// The meta that answered, or the one that it takes for the leader.
    pub leader: Option<Node>,
    pub metas: Vec<Node>,
    pub nodes: Vec<NodeOverview>,
    /// Dropped tables that are still kept too.
    pub tables: Vec<TableOverview>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOverview {
    pub node: Node,
    /// Its beacons arrive.
    pub alive: bool,
    pub draining: bool,
    pub log_healthy: bool,
    /// Its wall clock minus the meta's, microseconds, as of its last beacon.
    pub clock_skew_us: i64,
    pub primaries: u32,
    pub secondaries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOverview {
    pub info: AppInfo,
    /// By partition index.
    pub partitions: Vec<PartitionOverview>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOverview {
    pub config: PartitionConfig,
    pub health: PartitionHealth,
    /// What the meta is doing or waiting for; empty when there is nothing to do.
    pub note: String,
}
