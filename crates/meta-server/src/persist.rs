//! The ledger and the store: loading, and turning writes into operations.

use pegasus_placement::Ledger;
use pegasus_placement::ledger::{Entry, Write};
use pegasus_placement::tables::MAX_PARTITION_COUNT;
use pegasus_types::{AppId, Gpid, PartitionConfig};
use pegasus_zk_coordination::store::MAX_MULTI_BYTES;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Datum, MetaStore, Op, StoreError, Version, content};

/// Operations of one multi at most.
const MAX_MULTI_OPS: usize = 2000;
/// Partitions that are read together. In between the leader's proofs that it leads get their turn with the store,
/// and everything else that runs on this thread.
const LOAD_BATCH: usize = 500;
/// Room for what every multi of a leader checks.
const FENCE_BYTES: usize = 1024;
/// Bytes of our own operations in one multi.
const MAX_BYTES: usize = MAX_MULTI_BYTES - FENCE_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} cannot be read: {why}")]
    Content { path: String, why: String },
    #[error("the metadata is not whole: {0}")]
    Missing(String),
    #[error("{path} says {text:?}: what lies there is not for use")]
    NotForUse { path: String, text: String },
}

/// Reads everything; each batch is one round trip or two. Never makes up what is not there
/// (replication.md 9.2, 26).
pub async fn load(store: &dyn MetaStore, tree: &Tree) -> Result<Ledger, LoadError> {
    let apps = store.get(&tree.apps()).await?.map(|datum| datum.bytes).unwrap_or_default();
    if let Some(text) = content::not_for_use(&apps) {
        return Err(LoadError::NotForUse { path: tree.apps(), text });
    }
    let mut ids: Vec<AppId> = Vec::new();
    for name in store.children(&tree.apps()).await? {
        let path = format!("{}/{name}", tree.apps());
        ids.push(name.parse().map_err(|_| bad(&path, "its name is no table id"))?);
    }
    ids.sort_unstable();
    let mut tables = Vec::with_capacity(ids.len());
    let mut gpids: Vec<Gpid> = Vec::new();
    let data = store.get_all(ids.iter().map(|id| tree.app(*id)).collect()).await?;
    for (app_id, datum) in ids.into_iter().zip(data) {
        let path = tree.app(app_id);
        let datum = datum.ok_or_else(|| LoadError::Missing(path.clone()))?;
        let info = content::decode_app(&datum.bytes).map_err(|error| bad(&path, error))?;
        if info.app_id != app_id {
            return Err(bad(&path, format!("it says that it is table {}", info.app_id)));
        }
        if !(0..=MAX_PARTITION_COUNT).contains(&info.partition_count) {
            return Err(bad(&path, format!("{} partitions are impossible", info.partition_count)));
        }
        gpids.extend((0..info.partition_count).map(|index| Gpid::new(app_id, index)));
        tables.push((info, datum.version));
    }
    let mut stored = Vec::with_capacity(gpids.len());
    for batch in gpids.chunks(LOAD_BATCH) {
        let data = store.get_all(batch.iter().map(|gpid| tree.partition(*gpid)).collect()).await?;
        for (gpid, datum) in batch.iter().zip(data) {
            stored.push(datum.map(|datum| partition(tree, *gpid, datum)).transpose()?);
        }
    }
    let mut stored = stored.into_iter();
    let mut ledger = Ledger::default();
    for (info, version) in tables {
        let count = usize::try_from(info.partition_count).unwrap_or(0);
        let partitions = stored.by_ref().take(count).collect();
        ledger.load((info, version), partitions).map_err(LoadError::Missing)?;
    }
    Ok(ledger)
}

fn partition(tree: &Tree, gpid: Gpid, datum: Datum) -> Result<(PartitionConfig, Version), LoadError> {
    let path = tree.partition(gpid);
    let config = content::decode_partition(&datum.bytes).map_err(|error| bad(&path, error))?;
    if config.gpid != gpid {
        return Err(bad(&path, format!("it says that it is partition {}", config.gpid)));
    }
    Ok((config, datum.version))
}

fn bad(path: &str, why: impl ToString) -> LoadError {
    LoadError::Content { path: path.into(), why: why.to_string() }
}

/// The cluster's id, made on the first start. `known`: what this process has learned before; a store that has
/// lost it or has another one was replaced under us.
pub async fn cluster_id(
    store: &dyn MetaStore,
    tree: &Tree,
    known: Option<&str>,
) -> Result<String, LoadError> {
    let path = tree.cluster_id();
    if store.get(&path).await?.is_none() && known.is_none() {
        store.ensure_path(&tree.apps()).await?;
        let fresh = uuid::Uuid::new_v4().to_string();
        match store.create(&path, fresh.into()).await {
            Ok(()) | Err(StoreError::NodeExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let datum = store.get(&path).await?.ok_or_else(|| LoadError::Missing(path.clone()))?;
    let id = String::from_utf8(datum.bytes.to_vec()).map_err(|error| bad(&path, error))?;
    match known {
        _ if id.is_empty() => Err(bad(&path, "it is empty")),
        Some(known) if known != id => {
            Err(bad(&path, format!("it names cluster {id}; this meta-server belongs to cluster {known}")))
        }
        _ => Ok(id),
    }
}

pub fn op(tree: &Tree, write: &Write) -> Op {
    let (path, bytes) = match &write.entry {
        Entry::App(info) => (tree.app(info.app_id), content::encode_app(info)),
        Entry::Partition(config) => (tree.partition(config.gpid), content::encode_partition(config)),
    };
    match write.over {
        Some(version) => Op::set(path, bytes, version),
        None => Op::create(path, bytes),
    }
}

/// Cuts writes into multis that a store takes, keeping their order. What one multi holds happens at once.
pub fn chunks(tree: &Tree, writes: Vec<Write>) -> Vec<(Vec<Write>, Vec<Op>)> {
    let mut chunks: Vec<(Vec<Write>, Vec<Op>)> = Vec::new();
    let mut bytes = 0;
    for write in writes {
        let op = op(tree, &write);
        bytes += op.bytes_len();
        match chunks.last_mut() {
            Some((writes, ops)) if bytes <= MAX_BYTES && ops.len() < MAX_MULTI_OPS => {
                writes.push(write);
                ops.push(op);
            }
            _ => {
                bytes = op.bytes_len();
                chunks.push((vec![write], vec![op]));
            }
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pegasus_placement::tables::{CreateTable, Limits};
    use pegasus_zk_coordination::MemoryStore;

    use super::*;

    fn create(partition_count: i32) -> CreateTable {
        CreateTable {
            name: "t".into(),
            app_type: "pegasus".into(),
            partition_count,
            replica_count: 3,
            envs: BTreeMap::new(),
            is_stateful: true,
            success_if_exist: false,
        }
    }

    #[tokio::test]
    async fn what_is_stored_is_loaded_and_large_tables_are_cut() {
        let store: &dyn MetaStore = &MemoryStore::default();
        let tree = Tree::new("/pegasus/c");
        let id = cluster_id(store, &tree, None).await.unwrap();
        assert_eq!(cluster_id(store, &tree, None).await.unwrap(), id);
        assert_eq!(cluster_id(store, &tree, Some(&id)).await.unwrap(), id);
        let other = cluster_id(store, &tree, Some("other")).await.unwrap_err().to_string();
        assert!(other.contains("belongs to cluster other"), "{other}");
        let mut ledger = load(store, &tree).await.unwrap();
        assert_eq!(ledger, Ledger::default());

        let mut draft = ledger.draft();
        draft.create(&Limits::default(), create(8192), 1).unwrap();
        let chunks = chunks(&tree, draft.writes());
        assert!(chunks.len() > 4, "{}", chunks.len());
        for (writes, ops) in chunks {
            assert!(ops.iter().map(Op::bytes_len).sum::<usize>() <= MAX_BYTES);
            store.multi(ops).await.unwrap();
            ledger.adopt(writes);
        }
        assert_eq!(load(store, &tree).await.unwrap(), ledger);
        assert_eq!(store.get("/pegasus/c/apps/1/8191").await.unwrap().unwrap().version, 0);
    }

    #[tokio::test]
    async fn an_emptied_store_is_not_taken_for_a_new_cluster() {
        let store: &dyn MetaStore = &MemoryStore::default();
        let tree = Tree::new("/pegasus/c");
        let lost = cluster_id(store, &tree, Some("known")).await;
        assert!(matches!(lost, Err(LoadError::Missing(_))), "{lost:?}");
        assert_eq!(store.get(&tree.apps()).await, Ok(None), "nothing was made");
    }

    #[tokio::test]
    async fn an_unfinished_or_moved_tree_is_not_loaded() {
        let store: &dyn MetaStore = &MemoryStore::default();
        let tree = Tree::new("/c");
        cluster_id(store, &tree, None).await.unwrap();
        for (version, (text, loads)) in
            (0..).zip([("unlock", true), ("lock", false), ("moved to elsewhere", false), ("", true)])
        {
            store.set("/c/apps", text.into(), version).await.unwrap();
            let loaded = load(store, &tree).await;
            assert_eq!(loaded.is_ok(), loads, "{loaded:?}");
            assert!(loads || loaded.unwrap_err().to_string().contains(text));
        }
    }

    /// What a cluster of the reference has left in ZooKeeper.
    #[tokio::test]
    async fn metadata_of_the_reference_is_loaded() {
        let store: &dyn MetaStore = &MemoryStore::default();
        store.ensure_path("/pegasus").await.unwrap();
        let text = include_str!("../../zk-coordination/tests/fixtures/reference-cluster.txt");
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (path, content) = line.split_once(' ').unwrap_or((line, ""));
            store.create(path, content.into()).await.unwrap();
        }
        let tree = Tree::new("/pegasus/c1");
        let ledger = load(store, &tree).await.unwrap();
        let tables: Vec<_> = ledger
            .view()
            .tables()
            .map(|table| (table.info.name.as_str(), table.partitions.len(), table.is_dropped()))
            .collect();
        assert_eq!(tables, [("temp", 2, false), ("usertable", 4, false), ("old", 2, true)]);
        assert_eq!(ledger.half_done(), [0; 0]);
        let usertable = ledger.view().table_by_name("usertable").unwrap();
        assert_eq!(usertable.info.default_ttl_s(), 86_400);
        assert_eq!(
            format!("{:?}", usertable.partitions[0]),
            "2.0@7[P rs3.example:34801, S rs1.example:34801]"
        );
        assert_eq!(pegasus_placement::lint::lint(ledger.view()), [""; 0]);
        // It is a cluster of ours from now on.
        assert_eq!(cluster_id(store, &tree, None).await.unwrap().len(), 36);
    }

    #[tokio::test]
    async fn damage_is_told_with_its_path() {
        let tree = Tree::new("/");
        let app = r#"{"status":"app_status::AS_AVAILABLE","app_name":"t","app_id":1,"partition_count":2}"#;
        let huge = app.replace(":2}", ":2000000000}");
        let good = r#"{"pid":"1.0","ballot":1}"#;
        for (nodes, want) in [
            (vec![("/apps/x", "")], "/apps/x"),
            (vec![("/apps/1", "{")], "/apps/1"),
            (vec![("/apps/2", app)], "says that it is table 1"),
            (vec![("/apps/1", &huge)], "2000000000 partitions"),
            (vec![("/apps/1", app)], "partition 1.0 of table t is missing"),
            (vec![("/apps/1", app), ("/apps/1/0", good), ("/apps/1/1", "")], "/apps/1/1"),
            (vec![("/apps/1", app), ("/apps/1/0", good), ("/apps/1/1", good)], "it is partition 1.0"),
        ] {
            let store: &dyn MetaStore = &MemoryStore::default();
            cluster_id(store, &tree, None).await.unwrap();
            for (path, data) in nodes {
                store.create(path, data.to_owned().into()).await.unwrap();
            }
            let error = load(store, &tree).await.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
