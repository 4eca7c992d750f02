//! Sums over an overview of the cluster, as functions.

use pegasus_types::cluster::{ClusterOverview, PartitionHealth, TableOverview};
use pegasus_types::{AppStatus, Gpid, Node};

/// In the order of the exported series (metrics.md 3.3).
pub const HEALTHS: [PartitionHealth; 5] = [
    PartitionHealth::Dead,
    PartitionHealth::Unreadable,
    PartitionHealth::Unwritable,
    PartitionHealth::WritableIll,
    PartitionHealth::Healthy,
];

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableHealth {
    pub app_id: i32,
    pub name: String,
    pub partitions: usize,
    /// Partitions by health, in the order of [`HEALTHS`].
    pub counts: [usize; 5],
    /// Partitions that are not healthy.
    pub ill: Vec<IllPartition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IllPartition {
    pub gpid: Gpid,
    pub health: PartitionHealth,
    pub primary: Option<Node>,
}

/// Partitions listed per table: a whole cluster that is down must not make thousands of series.
const ILL_PARTITIONS_MAX: usize = 64;

/// Dropped tables have nothing to be healthy.
pub fn exists(table: &TableOverview) -> bool {
    !matches!(table.info.status, AppStatus::Dropped | AppStatus::Dropping | AppStatus::Invalid)
}

/// Tables that exist.
pub fn tables(overview: &ClusterOverview) -> Vec<TableHealth> {
    overview.tables.iter().filter(|table| exists(table)).map(table).collect()
}

fn table(table: &TableOverview) -> TableHealth {
    let count = |health| table.partitions.iter().filter(|p| p.health == health).count();
    let ill =
        table.partitions.iter().filter(|p| p.health != PartitionHealth::Healthy).take(ILL_PARTITIONS_MAX);
    TableHealth {
        app_id: table.info.app_id,
        name: table.info.name.clone(),
        partitions: table.partitions.len(),
        counts: HEALTHS.map(count),
        ill: ill
            .map(|p| IllPartition {
                gpid: p.config.gpid,
                health: p.health,
                primary: p.config.primary.clone(),
            })
            .collect(),
    }
}

/// Alive and not alive replica-servers.
pub fn node_counts(overview: &ClusterOverview) -> (usize, usize) {
    let alive = overview.nodes.iter().filter(|node| node.alive).count();
    (alive, overview.nodes.len() - alive)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pegasus_types::cluster::{NodeOverview, PartitionOverview};
    use pegasus_types::{AppInfo, PartitionConfig};

    fn table_of(app_id: i32, status: AppStatus, healths: &[PartitionHealth]) -> TableOverview {
        let partition = |(index, health): (usize, &PartitionHealth)| PartitionOverview {
            config: PartitionConfig::unassigned(Gpid::new(app_id, index as i32), 3),
            health: *health,
            note: String::new(),
        };
        TableOverview {
            info: AppInfo {
                app_id,
                name: format!("t{app_id}"),
                app_type: "pegasus".into(),
                status,
                partition_count: healths.len() as i32,
                max_replica_count: 3,
                envs: Default::default(),
                create_second: 0,
                drop_second: 0,
                expire_second: 0,
            },
            partitions: healths.iter().enumerate().map(partition).collect(),
        }
    }

    pub(crate) fn overview() -> ClusterOverview {
        use PartitionHealth::*;
        let node = |name, alive| NodeOverview {
            node: Node::new(name),
            alive,
            draining: false,
            log_healthy: true,
            clock_skew_us: 1500,
            primaries: 2,
            secondaries: 4,
        };
        ClusterOverview {
            cluster_id: "id".into(),
            cluster_name: "c".into(),
            leader: Some(Node::new("m:1")),
            metas: vec![Node::new("m:1")],
            nodes: vec![node("a:1", true), node("b:1", true), node("c:1", false)],
            tables: vec![
                table_of(1, AppStatus::Available, &[Healthy, Dead, WritableIll, Healthy]),
                table_of(2, AppStatus::Dropped, &[Dead]),
                table_of(3, AppStatus::Creating, &[Unreadable; 100]),
            ],
        }
    }

    #[test]
    fn tables_are_summed_and_dropped_ones_left_out() {
        let sums = tables(&overview());
        assert_eq!(sums.iter().map(|t| t.app_id).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(sums[0].counts, [1, 0, 0, 1, 2]);
        assert_eq!(sums[0].partitions, 4);
        assert_eq!(sums[0].ill.iter().map(|p| p.gpid.index).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(sums[1].counts, [0, 100, 0, 0, 0]);
        assert_eq!(sums[1].ill.len(), ILL_PARTITIONS_MAX);
    }

    #[test]
    fn nodes_are_counted() {
        assert_eq!(node_counts(&overview()), (2, 1));
    }
}
