//! Every table with the configurations of its partitions, exactly as stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pegasus_types::{AppId, AppInfo, AppStatus, Gpid, Node, PartitionConfig};

/// Bit 0 of [`PartitionConfig::partition_flags`].
pub const FLAG_DROPPED: i32 = 1;

/// One table. `partitions[i]` has index `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub info: AppInfo,
    pub partitions: Vec<Arc<PartitionConfig>>,
}

impl Table {
    pub fn is_dropped(&self) -> bool {
        matches!(self.info.status, AppStatus::Dropped | AppStatus::Dropping)
    }
}

/// The cluster as stored. Cloning shares everything and costs one reference per table; a change copies the
/// table's list of references once, however many of its partitions change before the next clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    tables: BTreeMap<AppId, Arc<Table>>,
    /// Names of the tables that exist; a dropped table's name is free.
    names: BTreeMap<String, AppId>,
}

impl ClusterView {
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    pub fn table(&self, app_id: AppId) -> Option<&Arc<Table>> {
        self.tables.get(&app_id)
    }

    /// The existing (not dropped) table of that name.
    pub fn table_by_name(&self, name: &str) -> Option<&Arc<Table>> {
        self.tables.get(self.names.get(name)?)
    }

    pub fn partition(&self, gpid: Gpid) -> Option<&Arc<PartitionConfig>> {
        self.table(gpid.app_id)?.partitions.get(usize::try_from(gpid.index).ok()?)
    }

    /// Partitions of tables that exist.
    pub fn live_partitions(&self) -> impl Iterator<Item = (&Arc<Table>, &Arc<PartitionConfig>)> {
        self.tables
            .values()
            .filter(|table| !table.is_dropped())
            .flat_map(|table| table.partitions.iter().map(move |config| (table, config)))
    }

    /// The id for the next table. Ids of dropped tables stay taken: their data may still lie on disks.
    pub fn next_app_id(&self) -> AppId {
        self.tables.keys().next_back().map_or(1, |id| id.saturating_add(1))
    }

    /// Every node that is a member of something, or lately was.
    pub fn known_nodes(&self) -> BTreeSet<Node> {
        self.live_partitions()
            .flat_map(|(_, config)| config.members().chain(&config.last_drops).cloned())
            .collect()
    }

    pub fn put_table(&mut self, table: Table) {
        self.index_name(&table.info);
        self.tables.insert(table.info.app_id, Arc::new(table));
    }

    /// Replaces what is known of a table, not its partitions. Ignored when there is no such table.
    pub fn put_info(&mut self, info: AppInfo) {
        if !self.tables.contains_key(&info.app_id) {
            return;
        }
        self.index_name(&info);
        if let Some(table) = self.tables.get_mut(&info.app_id) {
            Arc::make_mut(table).info = info;
        }
    }

    /// Replaces one configuration. Ignored when there is no such partition.
    pub fn put_partition(&mut self, config: PartitionConfig) {
        let Some(table) = self.tables.get_mut(&config.gpid.app_id) else { return };
        let Ok(index) = usize::try_from(config.gpid.index) else { return };
        if let Some(slot) = Arc::make_mut(table).partitions.get_mut(index) {
            *slot = Arc::new(config);
        }
    }

    fn index_name(&mut self, info: &AppInfo) {
        self.names.retain(|_, id| *id != info.app_id);
        if !matches!(info.status, AppStatus::Dropped) {
            self.names.insert(info.name.clone(), info.app_id);
        }
    }
}

/// What nodes hold, over all existing tables or one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub primaries: u32,
    /// Primaries included.
    pub copies: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads(BTreeMap<Node, Load>);

impl Loads {
    pub fn of_cluster(view: &ClusterView) -> Self {
        Self::of(view.live_partitions().map(|(_, config)| &**config))
    }

    pub fn of<'a>(configs: impl Iterator<Item = &'a PartitionConfig>) -> Self {
        let mut loads = Self::default();
        for config in configs {
            if let Some(primary) = &config.primary {
                loads.add_primary(primary);
            }
            for secondary in &config.secondaries {
                loads.add_copy(secondary);
            }
        }
        loads
    }

    pub fn get(&self, node: &Node) -> Load {
        self.0.get(node).copied().unwrap_or_default()
    }

    pub fn add_primary(&mut self, node: &Node) {
        let load = self.0.entry(node.clone()).or_default();
        load.primaries += 1;
        load.copies += 1;
    }

    pub fn add_copy(&mut self, node: &Node) {
        self.0.entry(node.clone()).or_default().copies += 1;
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use pegasus_types::Ballot;

    pub fn node(n: usize) -> Node {
        Node::new(format!("127.0.0.1:{}", 34800 + n))
    }

    pub fn config(index: i32, ballot: i64, primary: usize, secondaries: &[usize]) -> PartitionConfig {
        PartitionConfig {
            ballot: Ballot(ballot),
            primary: (primary > 0).then(|| node(primary)),
            secondaries: secondaries.iter().map(|n| node(*n)).collect(),
            ..PartitionConfig::unassigned(Gpid::new(1, index), 3)
        }
    }

    pub fn info(app_id: AppId, name: &str, partition_count: i32) -> AppInfo {
        AppInfo {
            app_id,
            name: name.into(),
            app_type: "pegasus".into(),
            status: AppStatus::Available,
            partition_count,
            max_replica_count: 3,
            envs: BTreeMap::new(),
            create_second: 1,
            drop_second: 0,
            expire_second: 0,
        }
    }

    pub fn view_of(configs: Vec<PartitionConfig>) -> ClusterView {
        let mut view = ClusterView::default();
        let info = info(1, "t", i32::try_from(configs.len()).unwrap());
        view.put_table(Table { info, partitions: configs.into_iter().map(Arc::new).collect() });
        view
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn names_follow_the_status_and_ids_are_never_reused() {
        let mut view = view_of(vec![config(0, 1, 1, &[2, 3]), config(1, 1, 2, &[1, 3])]);
        assert_eq!(view.next_app_id(), 2);
        assert_eq!(view.table_by_name("t").unwrap().info.app_id, 1);
        view.put_info(AppInfo { status: AppStatus::Dropped, ..info(1, "t", 2) });
        assert!(view.table_by_name("t").is_none());
        assert_eq!(view.live_partitions().count(), 0);
        assert_eq!(view.next_app_id(), 2);
        view.put_table(Table { info: info(2, "t", 2), partitions: vec![] });
        assert_eq!(view.table_by_name("t").unwrap().info.app_id, 2);
    }

    #[test]
    fn a_clone_is_a_snapshot() {
        let mut view = view_of(vec![config(0, 1, 1, &[2, 3])]);
        let before = view.clone();
        view.put_partition(config(0, 2, 2, &[3]));
        view.put_partition(config(9, 2, 2, &[3]));
        assert_eq!(before.partition(Gpid::new(1, 0)).unwrap().ballot.0, 1);
        assert_eq!(view.partition(Gpid::new(1, 0)).unwrap().ballot.0, 2);
        assert!(view.partition(Gpid::new(1, 9)).is_none());
        assert!(view.partition(Gpid::new(1, -1)).is_none());
    }

    #[test]
    fn loads_count_roles() {
        let view = view_of(vec![config(0, 1, 1, &[2, 3]), config(1, 1, 1, &[2])]);
        let loads = Loads::of_cluster(&view);
        assert_eq!(loads.get(&node(1)), Load { primaries: 2, copies: 2 });
        assert_eq!(loads.get(&node(3)), Load { primaries: 0, copies: 1 });
        assert_eq!(loads.get(&node(4)), Load::default());
        assert_eq!(view.known_nodes().len(), 3);
    }
}
