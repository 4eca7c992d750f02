//! What the leader shows of the cluster: an immutable value, replaced after each change. Admin RPCs, HTTP, the
//! collector's view and the metrics are all made from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pegasus_placement::cure::Counts;
use pegasus_placement::health;
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::liveness::NodeState;
use pegasus_placement::view::{ClusterView, Load, Loads, Table};
use pegasus_types::cluster::{
    ClusterOverview, NodeOverview, PartitionHealth, PartitionOverview, TableOverview,
};
use pegasus_types::{Gpid, Node, PartitionConfig};

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct About {
    pub cluster_id: String,
    pub cluster_name: String,
    pub me: Node,
    pub metas: Vec<Node>,
    /// Where the metadata lives, and under which root.
    pub store: String,
    pub root: String,
    pub min_replica_count: i32,
}

#[derive(Clone, Debug)]
pub struct Published {
    pub about: Arc<About>,
    pub level: FunctionLevel,
    pub view: ClusterView,
    pub nodes: BTreeMap<Node, NodeState>,
    /// What is done about partitions that are not healthy.
    pub notes: BTreeMap<Gpid, String>,
    pub frozen: Vec<Gpid>,
    /// Moves that would even the cluster out, as of the last plan.
    pub wanted_moves: Counts,
}

/// Partitions of a table by what clients can do with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthCount {
    pub dead: usize,
    pub unreadable: usize,
    pub unwritable: usize,
    pub writable_ill: usize,
    pub healthy: usize,
}

impl HealthCount {
    /// What nobody can read.
    pub fn without_reads(&self) -> usize {
        self.dead + self.unreadable
    }

    pub fn without_writes(&self) -> usize {
        self.without_reads() + self.unwritable
    }

    /// What has not all its copies, or worse.
    pub fn ill(&self) -> usize {
        self.without_writes() + self.writable_ill
    }
}

impl Published {
    pub fn is_alive(&self, node: &Node) -> bool {
        self.nodes.get(node).is_some_and(|state| state.alive)
    }

    pub fn health(&self, config: &PartitionConfig) -> PartitionHealth {
        health::health(config, |node| self.is_alive(node), self.about.min_replica_count)
    }

    pub fn health_count(&self, table: &Table) -> HealthCount {
        let mut count = HealthCount::default();
        for config in &table.partitions {
            *match self.health(config) {
                PartitionHealth::Dead => &mut count.dead,
                PartitionHealth::Unreadable => &mut count.unreadable,
                PartitionHealth::Unwritable => &mut count.unwritable,
                PartitionHealth::WritableIll => &mut count.writable_ill,
                PartitionHealth::Healthy => &mut count.healthy,
            } += 1;
        }
        count
    }

    /// Every node that is known, also from configurations alone.
    pub fn loads(&self) -> Loads {
        Loads::of_cluster(&self.view)
    }

    pub fn overview(&self) -> ClusterOverview {
        let loads = self.loads();
        let node = |(node, state): (&Node, &NodeState)| {
            let Load { primaries, copies } = loads.get(node);
            NodeOverview {
                node: node.clone(),
                alive: state.alive,
                draining: state.draining,
                log_healthy: state.log_healthy,
                clock_skew_us: state.skew_us,
                primaries,
                secondaries: copies - primaries,
            }
        };
        let partition = |config: &Arc<PartitionConfig>| PartitionOverview {
            config: (**config).clone(),
            health: self.health(config),
            note: self.notes.get(&config.gpid).cloned().unwrap_or_default(),
        };
        ClusterOverview {
            cluster_id: self.about.cluster_id.clone(),
            cluster_name: self.about.cluster_name.clone(),
            leader: Some(self.about.me.clone()),
            metas: self.about.metas.clone(),
            nodes: self.nodes.iter().map(node).collect(),
            tables: self
                .view
                .tables()
                .map(|table| TableOverview {
                    info: table.info.clone(),
                    partitions: table.partitions.iter().map(partition).collect(),
                })
                .collect(),
        }
    }
}
