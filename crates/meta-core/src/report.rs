//! A node's full report, and what it is told.

use std::collections::BTreeMap;

use pegasus_placement::cure::Cure;
use pegasus_placement::liveness::Liveness;
use pegasus_placement::{ClusterView, tables};
use pegasus_types::meta::ReplicaReport;
use pegasus_types::{AppInfo, Ballot, Gpid, Millis, Node, PartitionConfig};

/// What comes of a report.
#[derive(Clone, Debug, Default)]
pub struct Reported {
    /// Partitions that the node knows at a higher ballot than stored: frozen from now on (safety-rules.md 4.4).
    pub frozen: Vec<(Gpid, Ballot)>,
    /// Everything that the node is a member of, and what it does not know that it is out of.
    pub configs: Vec<(AppInfo, PartitionConfig)>,
    /// Replicas that nobody wants any more.
    pub garbage: Vec<Gpid>,
    /// Replicas of tables that nobody knows. Never collected: it may be a server of another cluster
    /// (replication.md 9.1 H10).
    pub strange: Vec<Gpid>,
}

/// `now_s`: wall clock, seconds since 1970.
pub fn reported(
    (now, now_s): (Millis, i64),
    view: &ClusterView,
    cure: &mut Cure,
    liveness: &Liveness,
    node: &Node,
    replicas: &[ReplicaReport],
) -> Reported {
    let mut answer = Reported { frozen: cure.reported(now, view, node, replicas), ..Reported::default() };
    let mut configs: BTreeMap<Gpid, (AppInfo, PartitionConfig)> = view
        .live_partitions()
        .filter(|(_, config)| config.is_member(node))
        .map(|(table, config)| (config.gpid, (table.info.clone(), (**config).clone())))
        .collect();
    for replica in replicas {
        let (Some(table), Some(config)) = (view.table(replica.gpid.app_id), view.partition(replica.gpid))
        else {
            answer.strange.push(replica.gpid);
            continue;
        };
        if config.is_member(node) {
            continue;
        }
        let garbage = if table.is_dropped() {
            replica.ballot <= config.ballot && tables::is_expired(&table.info, now_s)
        } else {
            cure.is_surplus(config, liveness, replica, node)
        };
        if garbage {
            answer.garbage.push(replica.gpid);
        } else if config.ballot > replica.ballot {
            // So that it learns that it is out.
            configs.insert(replica.gpid, (table.info.clone(), (**config).clone()));
        }
    }
    answer.configs = configs.into_values().collect();
    answer
}
