//! Decide → persist → adopt, without the persisting: what is stored, with the version of each node in the
//! store, and decisions on top of it that nobody may hear of before they are stored.
//!
//! ```text
//!  Ledger --draft--> Draft --(change, create, drop, assign)--> writes, each conditional on a version
//!     ^                                                           | caller: store them
//!     '---------------------------adopt---------------------------'
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pegasus_types::meta::ChangeRequest;
use pegasus_types::{AppId, AppInfo, AppStatus, Ballot, ErrorCode, Gpid, Node, PartitionConfig};

use crate::assign::Members;
use crate::change::{self, Rejected};
use crate::envs::{self, EnvChange};
use crate::recall::{self, RecallTable};
use crate::tables::{self, CreateTable, Created, DropTable, Limits, TableError};
use crate::view::{ClusterView, FLAG_DROPPED, Table};

/// Of a node in the store: 0 when created, one more with each write.
pub type Version = i32;

/// Nodes that are drained at a time: more than a cluster has, and their list fits into one node of the store.
const MAX_DRAINED: usize = 1_000;

/// What is stored in one node. Tables come before their partitions, since they are the parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    App(AppId),
    Partition(Gpid),
    /// The nodes that operators drain.
    Drained,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    App(AppInfo),
    Partition(PartitionConfig),
    Drained(BTreeSet<Node>),
}

/// One write to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Key,
    pub entry: Entry,
    /// The version that must be there; None = the node must not exist.
    pub over: Option<Version>,
}

/// What adopted writes changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Old and new configuration of each partition that changed.
    pub configs: Vec<(Arc<PartitionConfig>, PartitionConfig)>,
    /// Existing tables of which something else changed, such as their status.
    pub infos: Vec<AppId>,
    /// The nodes that operators drain, when that changed.
    pub drained: Option<BTreeSet<Node>>,
}

/// What is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    view: ClusterView,
    drained: BTreeSet<Node>,
    versions: BTreeMap<Key, Version>,
}

impl Ledger {
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// Nodes that operators drain: they are to be emptied, and work on.
    pub fn drained(&self) -> &BTreeSet<Node> {
        &self.drained
    }

    pub fn load_drained(&mut self, nodes: BTreeSet<Node>, version: Version) {
        self.versions.insert(Key::Drained, version);
        self.drained = nodes;
    }

    /// A table as it was loaded: `partitions[i]` is None when its node does not exist. In a table that is
    /// being created it is made up; elsewhere that is damage.
    ///
    /// # Errors
    /// Says which partition is missing.
    pub fn load(
        &mut self,
        info: (AppInfo, Version),
        partitions: Vec<Option<(PartitionConfig, Version)>>,
    ) -> Result<(), String> {
        let (info, version) = info;
        self.versions.insert(Key::App(info.app_id), version);
        let mut configs = Vec::with_capacity(partitions.len());
        for (index, partition) in (0..).zip(partitions) {
            let gpid = Gpid::new(info.app_id, index);
            let config = match partition {
                Some((config, version)) => {
                    self.versions.insert(Key::Partition(gpid), version);
                    config
                }
                None if info.status == AppStatus::Creating => {
                    PartitionConfig::unassigned(gpid, info.max_replica_count)
                }
                None => return Err(format!("partition {gpid} of table {} is missing", info.name)),
            };
            configs.push(Arc::new(config));
        }
        self.view.put_table(Table { info, partitions: configs });
        Ok(())
    }

    pub fn draft(&self) -> Draft<'_> {
        Draft {
            ledger: self,
            view: self.view.clone(),
            drained: self.drained.clone(),
            touched: BTreeSet::new(),
        }
    }

    /// Tables whose creation, drop or recall a crash has cut in two: to be mended with [`Draft::mend`].
    pub fn half_done(&self) -> Vec<AppId> {
        let incomplete = |table: &&Arc<Table>| {
            let dropped = table.info.status == AppStatus::Dropped;
            table.partitions.iter().any(|config| {
                !self.versions.contains_key(&Key::Partition(config.gpid))
                    || dropped != (config.partition_flags & FLAG_DROPPED != 0)
            })
        };
        self.view.tables().filter(incomplete).map(|table| table.info.app_id).collect()
    }

    /// These writes are stored.
    pub fn adopt(&mut self, writes: Vec<Write>) -> Adopted {
        let mut adopted = Adopted::default();
        for write in writes {
            self.versions.insert(write.key, write.over.map_or(0, |version| version.wrapping_add(1)));
            match write.entry {
                Entry::App(info) if self.view.table(info.app_id).is_some() => {
                    adopted.infos.push(info.app_id);
                    self.view.put_info(info);
                }
                Entry::App(info) => {
                    let unassigned = |index| {
                        PartitionConfig::unassigned(Gpid::new(info.app_id, index), info.max_replica_count)
                    };
                    let partitions =
                        (0..info.partition_count).map(|index| unassigned(index).into()).collect();
                    self.view.put_table(Table { info, partitions });
                }
                Entry::Partition(config) => {
                    if let Some(old) = self.view.partition(config.gpid)
                        && **old != config
                    {
                        adopted.configs.push((old.clone(), config.clone()));
                        self.view.put_partition(config);
                    }
                }
                Entry::Drained(nodes) => {
                    adopted.drained = Some(nodes.clone());
                    self.drained = nodes;
                }
            }
        }
        adopted
    }
}

/// Decisions that are not stored yet. Later ones see the earlier ones.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    ledger: &'a Ledger,
    view: ClusterView,
    drained: BTreeSet<Node>,
    touched: BTreeSet<Key>,
}

impl Draft<'_> {
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// A node's request. A repeated one is answered with the configuration that it made.
    pub fn change(&mut self, request: &ChangeRequest) -> Result<PartitionConfig, Rejected> {
        let current = self.view.partition(request.gpid).ok_or(Rejected::NoPartition)?;
        if change::already_done(current, request) {
            return Ok((**current).clone());
        }
        let next = change::apply(current, request)?;
        self.put(next.clone());
        Ok(next)
    }

    /// An operator's order: this node is to be emptied, or not any more.
    ///
    /// # Errors
    /// Says why not.
    pub fn drain(&mut self, node: &Node, on: bool) -> Result<(), String> {
        if on && self.drained.len() >= MAX_DRAINED && !self.drained.contains(node) {
            return Err(format!("{MAX_DRAINED} nodes are drained already"));
        }
        let changed = if on { self.drained.insert(node.clone()) } else { self.drained.remove(node) };
        if changed {
            self.touched.insert(Key::Drained);
        }
        Ok(())
    }

    /// The configuration of a partition that nobody holds. False when somebody does by now.
    pub fn assign(&mut self, gpid: Gpid, members: &Members) -> bool {
        let Some(current) = self.view.partition(gpid) else { return false };
        if current.member_count() > 0 || current.partition_flags & FLAG_DROPPED != 0 {
            return false;
        }
        let next = change::first(current, members.primary.clone(), members.secondaries.clone());
        self.put(next);
        true
    }

    /// An operator's order: the partition begins again with the copy on `node`. The caller has made sure that no
    /// member is alive.
    ///
    /// # Errors
    /// There is no such partition, its table is dropped, or `at` is not the stored ballot.
    pub fn force(&mut self, gpid: Gpid, at: Ballot, node: &Node) -> Result<PartitionConfig, Rejected> {
        let current = self.view.partition(gpid).ok_or(Rejected::NoPartition)?;
        if current.partition_flags & FLAG_DROPPED != 0 {
            return Err(Rejected::Dropped);
        }
        if current.ballot != at {
            return Err(Rejected::StaleBallot { stored: current.ballot, asked: at });
        }
        let next = change::force(current, node);
        self.put(next.clone());
        Ok(next)
    }

    /// A new table, or the one that is there with the same options.
    pub fn create(
        &mut self,
        limits: &Limits,
        request: CreateTable,
        now_s: i64,
    ) -> Result<AppInfo, TableError> {
        match tables::create(&self.view, limits, request, now_s)? {
            Created::Exists(app_id) => Ok(self.view.table(app_id).expect("it was just found").info.clone()),
            Created::New(table) => {
                let info = table.info.clone();
                self.put_table(table);
                Ok(info)
            }
        }
    }

    pub fn drop_table(&mut self, limits: &Limits, request: &DropTable, now_s: i64) -> Result<(), TableError> {
        if let Some(table) = tables::drop_table(&self.view, limits, request, now_s)? {
            self.put_table(table);
        }
        Ok(())
    }

    /// A dropped table comes back.
    pub fn recall(
        &mut self,
        request: &RecallTable,
        now_s: i64,
        is_alive: impl Fn(&Node) -> bool,
    ) -> Result<AppInfo, TableError> {
        let table = recall::recall(&self.view, request, now_s, is_alive)?;
        let info = table.info.clone();
        self.put_table(table);
        Ok(info)
    }

    /// Changes the settings of a table; tells what to say about it.
    pub fn update_envs(&mut self, name: &str, change: &EnvChange) -> Result<String, TableError> {
        let Some(table) = self.view.table_by_name(name) else {
            return tables::refuse(ErrorCode::AppNotExist, "app cannot be found");
        };
        let (info, hint) = envs::update(&table.info, change)?;
        if info != table.info {
            self.put_info(info);
        }
        Ok(hint)
    }

    /// Every member holds its replica: clients may have the table. False when it is not being created.
    pub fn make_available(&mut self, app_id: AppId) -> bool {
        match self.view.table(app_id) {
            Some(table) if table.info.status == AppStatus::Creating => {
                let info = AppInfo { status: AppStatus::Available, ..table.info.clone() };
                self.put_info(info);
                true
            }
            _ => false,
        }
    }

    /// Completes a creation, drop or recall of which only a part was stored.
    pub fn mend(&mut self, app_id: AppId) {
        let Some(table) = self.view.table(app_id).cloned() else { return };
        let whole = match table.info.status {
            AppStatus::Dropped => tables::dropped(table.info.clone(), &table.partitions),
            // Who lives is not known yet: the last primary is as good as any.
            _ => recall::recalled(table.info.clone(), &table, |_| false),
        };
        for config in &whole.partitions {
            if self.view.partition(config.gpid) != Some(config) {
                self.put((**config).clone());
            }
        }
        let missing = table.partitions.iter().map(|config| Key::Partition(config.gpid));
        self.touched.extend(missing.filter(|key| !self.ledger.versions.contains_key(key)));
    }

    /// What has to be stored, parents first.
    pub fn writes(&self) -> Vec<Write> {
        let entry = |key: &Key| {
            Some(match key {
                Key::App(app_id) => Entry::App(self.view.table(*app_id)?.info.clone()),
                Key::Partition(gpid) => Entry::Partition((**self.view.partition(*gpid)?).clone()),
                Key::Drained => Entry::Drained(self.drained.clone()),
            })
        };
        let write = |key: &Key| {
            Some(Write { key: *key, entry: entry(key)?, over: self.ledger.versions.get(key).copied() })
        };
        self.touched.iter().filter_map(write).collect()
    }

    fn put(&mut self, config: PartitionConfig) {
        self.touched.insert(Key::Partition(config.gpid));
        self.view.put_partition(config);
    }

    fn put_info(&mut self, info: AppInfo) {
        self.touched.insert(Key::App(info.app_id));
        self.view.put_info(info);
    }

    fn put_table(&mut self, table: Table) {
        self.touched.insert(Key::App(table.info.app_id));
        self.touched.extend(table.partitions.iter().map(|config| Key::Partition(config.gpid)));
        self.view.put_table(table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::lint;
    use crate::view::testing::*;
    use pegasus_types::{ChangeKind, Decree};

    fn create(name: &str) -> CreateTable {
        CreateTable {
            name: name.into(),
            app_type: "pegasus".into(),
            partition_count: 4,
            replica_count: 3,
            envs: BTreeMap::new(),
            is_stateful: true,
            success_if_exist: false,
        }
    }

    fn with_table() -> Ledger {
        let mut ledger = Ledger::default();
        let mut draft = ledger.draft();
        draft.create(&Limits::default(), create("t"), 9).unwrap();
        let writes = draft.writes();
        ledger.adopt(writes);
        ledger
    }

    fn take_over(ballot: i64, n: usize) -> ChangeRequest {
        let kind = ChangeKind::TakeOver { claimant: node(n) };
        ChangeRequest { gpid: Gpid::new(1, 0), ballot: Ballot(ballot), kind, committed: Decree(0) }
    }

    #[test]
    fn a_table_from_creation_to_drop() {
        let mut ledger = with_table();
        assert_eq!(ledger.half_done(), [0; 0]);
        let mut draft = ledger.draft();
        let members = Members { primary: node(1), secondaries: vec![node(2), node(3)] };
        for index in 0..4 {
            assert!(draft.assign(Gpid::new(1, index), &members));
            assert!(!draft.assign(Gpid::new(1, index), &members), "once");
        }
        assert!(draft.make_available(1) && !draft.make_available(1));
        let writes = draft.writes();
        assert_eq!(writes.len(), 5);
        assert!(writes.iter().all(|write| write.over == Some(0)));
        assert_eq!(writes[0].key, Key::App(1), "the table before its partitions");
        let adopted = ledger.adopt(writes);
        assert_eq!((adopted.configs.len(), adopted.infos), (4, vec![1]));
        assert_eq!(lint(ledger.view()), [""; 0]);

        let mut draft = ledger.draft();
        assert_eq!(draft.change(&take_over(1, 2)).unwrap().ballot, Ballot(2));
        assert_eq!(draft.change(&take_over(1, 2)).unwrap().ballot, Ballot(2), "repeated");
        assert!(matches!(draft.change(&take_over(1, 3)), Err(Rejected::StaleBallot { .. })));
        assert_eq!(draft.change(&take_over(2, 3)).unwrap().ballot, Ballot(3), "on top of the first");
        let writes = draft.writes();
        assert_eq!((writes.len(), writes[0].over), (1, Some(1)), "one write for both");
        let changed = ledger.adopt(writes).configs;
        assert_eq!((changed[0].0.ballot, changed[0].1.ballot), (Ballot(1), Ballot(3)));

        let mut draft = ledger.draft();
        let request = DropTable { name: "t".into(), success_if_not_exist: false, reserve_seconds: 0 };
        draft.drop_table(&Limits::default(), &request, 100).unwrap();
        let writes = draft.writes();
        ledger.adopt(writes);
        assert_eq!(lint(ledger.view()), [""; 0]);
        assert_eq!(ledger.view().next_app_id(), 2);
    }

    #[test]
    fn an_order_to_drain_is_stored_once() {
        let mut ledger = Ledger::default();
        let mut draft = ledger.draft();
        draft.drain(&node(1), true).unwrap();
        draft.drain(&node(2), true).unwrap();
        draft.drain(&node(2), false).unwrap();
        let writes = draft.writes();
        let only = BTreeSet::from([node(1)]);
        assert_eq!(writes, [Write { key: Key::Drained, entry: Entry::Drained(only.clone()), over: None }]);
        assert_eq!(ledger.adopt(writes).drained, Some(only.clone()));
        let mut draft = ledger.draft();
        draft.drain(&node(1), true).unwrap();
        assert_eq!(draft.writes(), [], "it is stored");
        draft.drain(&node(1), false).unwrap();
        assert_eq!(draft.writes()[0].over, Some(0));
        let mut loaded = Ledger::default();
        loaded.load_drained(only, 0);
        assert_eq!(loaded, ledger);
        let mut full = loaded.draft();
        for n in 0..MAX_DRAINED - 1 {
            full.drain(&Node::new(format!("other:{n}")), true).unwrap();
        }
        assert!(full.drain(&node(2), true).is_err());
        assert!(full.drain(&node(1), true).is_ok(), "it is in the list");
    }

    #[test]
    fn what_a_crash_cut_in_two_is_mended() {
        let whole = with_table();
        // Created: only the table and its first partition were stored.
        let info = whole.view().table(1).unwrap().info.clone();
        let first = PartitionConfig::unassigned(Gpid::new(1, 0), 3);
        let mut cut = Ledger::default();
        cut.load((info.clone(), 0), vec![Some((first.clone(), 0)), None, None, None]).unwrap();
        assert_eq!(cut.half_done(), [1]);
        let mut draft = cut.draft();
        draft.mend(1);
        let writes = draft.writes();
        assert!(writes.iter().all(|write| write.over.is_none()) && writes.len() == 3, "{writes:?}");
        cut.adopt(writes);
        assert_eq!(cut, whole);
        // Dropped: the table was stored, one partition not.
        let dropped = AppInfo { status: AppStatus::Dropped, partition_count: 2, ..info.clone() };
        let gone = change::drop_partition(&first);
        let held = PartitionConfig { gpid: Gpid::new(1, 1), ..config(1, 7, 1, &[2]) };
        let mut cut = Ledger::default();
        cut.load((dropped, 4), vec![Some((gone, 2)), Some((held, 5))]).unwrap();
        assert_eq!(cut.half_done(), [1]);
        let mut draft = cut.draft();
        draft.mend(1);
        let writes = draft.writes();
        assert_eq!(writes.len(), 1);
        assert_eq!((writes[0].key, writes[0].over), (Key::Partition(Gpid::new(1, 1)), Some(5)));
        cut.adopt(writes);
        assert_eq!((cut.half_done(), lint(cut.view())), (vec![], vec![]));
        // Recalled: the table and its first partition were stored.
        let back = AppInfo { status: AppStatus::Available, partition_count: 2, ..info.clone() };
        let second = cut.view().partition(Gpid::new(1, 1)).unwrap().clone();
        let mut half = Ledger::default();
        half.load((back, 5), vec![Some((config(0, 4, 2, &[]), 3)), Some(((*second).clone(), 6))]).unwrap();
        assert_eq!(half.half_done(), [1]);
        let mut draft = half.draft();
        draft.mend(1);
        let writes = draft.writes();
        assert_eq!((writes.len(), writes[0].over), (1, Some(6)));
        half.adopt(writes);
        assert_eq!((half.half_done(), lint(half.view())), (vec![], vec![]));
        assert_eq!(half.view().partition(Gpid::new(1, 1)).unwrap().primary, Some(node(1)));
        // Anything else that is missing is damage.
        let available = AppInfo { status: AppStatus::Available, ..info };
        assert!(Ledger::default().load((available, 0), vec![None]).is_err());
    }
}
