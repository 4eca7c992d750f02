//! The ledger and the store: loading it, and who the cluster is. What the nodes hold is `pegasus_meta_core`'s.

use std::time::Duration;

use pegasus_meta_core::{Found, LoadError, Loading, Progress, Read};
use pegasus_placement::Ledger;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{MetaStore, StoreError};
use tokio::time::sleep;

/// Reads everything; each batch is one round trip or two.
pub async fn load(store: &dyn MetaStore, tree: &Tree) -> Result<Ledger, LoadError> {
    let (mut loading, mut read) = Loading::begin(tree);
    loop {
        let found = match read {
            Read::Data(paths) => Found::Data(store.get_all(paths).await?),
            Read::Children(path) => Found::Children(store.children(&path).await?),
        };
        match loading.found(found)? {
            Progress::Read(next) => read = next,
            Progress::Loaded(ledger) => return Ok(ledger),
        }
    }
}

/// As [`load`], trying again every `pause` while the store does not answer: whether we may go on leading is decided
/// elsewhere.
pub async fn load_at_last(store: &dyn MetaStore, tree: &Tree, pause: Duration) -> Result<Ledger, LoadError> {
    loop {
        match load(store, tree).await {
            Err(LoadError::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_))) => {
                sleep(pause).await;
            }
            other => return other,
        }
    }
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
    let id = String::from_utf8(datum.bytes.to_vec()).map_err(|error| LoadError::content(&path, error))?;
    match known {
        _ if id.is_empty() => Err(LoadError::content(&path, "it is empty")),
        Some(known) if known != id => Err(LoadError::content(
            &path,
            format!("it names cluster {id}; this meta-server belongs to cluster {known}"),
        )),
        _ => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pegasus_meta_core::chunks;
    use pegasus_placement::tables::{CreateTable, Limits};
    use pegasus_zk_coordination::store::MAX_MULTI_BYTES;
    use pegasus_zk_coordination::{MemoryStore, Op};

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
            assert!(ops.iter().map(Op::bytes_len).sum::<usize>() <= MAX_MULTI_BYTES);
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
