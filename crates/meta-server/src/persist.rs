//! The ledger and the store: loading, and turning writes into operations.

use pegasus_placement::Ledger;
use pegasus_placement::ledger::{Entry, Write};
use pegasus_types::{AppId, Gpid};
use pegasus_zk_coordination::store::MAX_MULTI_BYTES;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Datum, MetaStore, Op, StoreError, content};

/// Operations of one multi at most.
const MAX_MULTI_OPS: usize = 2000;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} cannot be read: {why}")]
    Content { path: String, why: String },
    #[error("the metadata is not whole: {0}")]
    Missing(String),
}

/// Reads everything. Never makes up what is not there (replication.md 9.2, 26).
pub async fn load(store: &dyn MetaStore, tree: &Tree) -> Result<Ledger, LoadError> {
    let mut ledger = Ledger::default();
    let mut ids: Vec<AppId> = Vec::new();
    for name in store.children(&tree.apps()).await? {
        let path = format!("{}/{name}", tree.apps());
        ids.push(name.parse().map_err(|_| bad(&path, "its name is no table id"))?);
    }
    ids.sort_unstable();
    for app_id in ids {
        let path = tree.app(app_id);
        let datum = store.get(&path).await?.ok_or_else(|| LoadError::Missing(path.clone()))?;
        let info = content::decode_app(&datum.bytes).map_err(|error| bad(&path, error))?;
        if info.app_id != app_id {
            return Err(bad(&path, format!("it says that it is table {}", info.app_id)));
        }
        let gpids: Vec<Gpid> = (0..info.partition_count).map(|index| Gpid::new(app_id, index)).collect();
        let paths: Vec<String> = gpids.iter().map(|gpid| tree.partition(*gpid)).collect();
        let data = store.get_all(paths).await?;
        let mut partitions = Vec::with_capacity(gpids.len());
        for (gpid, datum) in gpids.into_iter().zip(data) {
            partitions.push(match datum {
                Some(Datum { bytes, version }) => {
                    let path = tree.partition(gpid);
                    let config = content::decode_partition(&bytes).map_err(|error| bad(&path, error))?;
                    if config.gpid != gpid {
                        return Err(bad(&path, format!("it says that it is partition {}", config.gpid)));
                    }
                    Some((config, version))
                }
                None => None,
            });
        }
        ledger.load((info, datum.version), partitions).map_err(LoadError::Missing)?;
    }
    Ok(ledger)
}

fn bad(path: &str, why: impl ToString) -> LoadError {
    LoadError::Content { path: path.into(), why: why.to_string() }
}

/// The cluster's id, made on the first start.
pub async fn cluster_id(store: &dyn MetaStore, tree: &Tree) -> Result<String, LoadError> {
    store.ensure_path(&tree.apps()).await?;
    let path = tree.cluster_id();
    if store.get(&path).await?.is_none() {
        let fresh = uuid::Uuid::new_v4().to_string();
        match store.create(&path, fresh.into()).await {
            Ok(()) | Err(StoreError::NodeExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let datum = store.get(&path).await?.ok_or_else(|| LoadError::Missing(path.clone()))?;
    let id = String::from_utf8(datum.bytes.to_vec()).map_err(|error| bad(&path, error))?;
    if id.is_empty() { Err(bad(&path, "it is empty")) } else { Ok(id) }
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
            Some((writes, ops)) if bytes <= MAX_MULTI_BYTES && ops.len() < MAX_MULTI_OPS => {
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
        let id = cluster_id(store, &tree).await.unwrap();
        assert_eq!(cluster_id(store, &tree).await.unwrap(), id);
        let mut ledger = load(store, &tree).await.unwrap();
        assert_eq!(ledger, Ledger::default());

        let mut draft = ledger.draft();
        draft.create(&Limits::default(), create(8192), 1).unwrap();
        let chunks = chunks(&tree, draft.writes());
        assert!(chunks.len() > 4, "{}", chunks.len());
        for (writes, ops) in chunks {
            assert!(ops.iter().map(Op::bytes_len).sum::<usize>() <= MAX_MULTI_BYTES);
            store.multi(ops).await.unwrap();
            ledger.adopt(writes);
        }
        assert_eq!(load(store, &tree).await.unwrap(), ledger);
        assert_eq!(store.get("/pegasus/c/apps/1/8191").await.unwrap().unwrap().version, 0);
    }

    #[tokio::test]
    async fn damage_is_told_with_its_path() {
        let tree = Tree::new("/");
        let app = r#"{"status":"app_status::AS_AVAILABLE","app_name":"t","app_id":1,"partition_count":2}"#;
        let good = r#"{"pid":"1.0","ballot":1}"#;
        for (nodes, want) in [
            (vec![("/apps/x", "")], "/apps/x"),
            (vec![("/apps/1", "{")], "/apps/1"),
            (vec![("/apps/2", app)], "says that it is table 1"),
            (vec![("/apps/1", app)], "partition 1.0 of table t is missing"),
            (vec![("/apps/1", app), ("/apps/1/0", good), ("/apps/1/1", "")], "/apps/1/1"),
            (vec![("/apps/1", app), ("/apps/1/0", good), ("/apps/1/1", good)], "it is partition 1.0"),
        ] {
            let store: &dyn MetaStore = &MemoryStore::default();
            cluster_id(store, &tree).await.unwrap();
            for (path, data) in nodes {
                store.create(path, data.into()).await.unwrap();
            }
            let error = load(store, &tree).await.unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
