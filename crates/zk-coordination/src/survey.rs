//! What lies in a cluster's metadata: all of it, and what of it we do not take over.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::try_join_all;

use crate::content;
use crate::store::{MetaStore, StoreError};
use crate::tree::Tree;

/// Calls under way at a time; stores refuse more than about a thousand.
const CALLS_UNDER_WAY: usize = 256;

/// Content of every lasting node by its path below the cluster's root (`/apps/1/0`).
pub async fn read_all(store: &dyn MetaStore, tree: &Tree) -> Result<BTreeMap<String, Bytes>, StoreError> {
    let mut found = BTreeMap::new();
    let mut level = tree.lasting().to_vec();
    while !level.is_empty() {
        let data = store.get_all(level.clone()).await?;
        let there: Vec<String> =
            level.into_iter().zip(&data).filter(|(_, d)| d.is_some()).map(|(p, _)| p).collect();
        let lists = children_of(store, &there).await?;
        level = Vec::new();
        for ((path, datum), names) in there.into_iter().zip(data.into_iter().flatten()).zip(lists) {
            level.extend(names.iter().map(|name| format!("{path}/{name}")));
            found.insert(path[tree.root().len()..].to_owned(), datum.bytes);
        }
    }
    Ok(found)
}

/// Empty for a node that has vanished meanwhile.
async fn children_of(store: &dyn MetaStore, paths: &[String]) -> Result<Vec<Vec<String>>, StoreError> {
    let mut lists = Vec::with_capacity(paths.len());
    for some in paths.chunks(CALLS_UNDER_WAY) {
        let calls = some.iter().map(|path| {
            let children = store.children(path);
            async move {
                match children.await {
                    Err(StoreError::NoNode(_)) => Ok(Vec::new()),
                    other => other,
                }
            }
        });
        lists.extend(try_join_all(calls).await?);
    }
    Ok(lists)
}

/// A line for each thing that is stored, say by the reference, and that we do not take over. What cannot be
/// read at all is an error when it is loaded, and not told here.
pub async fn left_out(store: &dyn MetaStore, tree: &Tree) -> Result<Vec<String>, StoreError> {
    let mut told = Vec::new();
    let list = |path: String| async move {
        match store.children(&path).await {
            Err(StoreError::NoNode(_)) => Ok(Vec::new()),
            other => other,
        }
    };
    let tables = list(tree.apps()).await?;
    let paths: Vec<String> = tables.iter().map(|name| format!("{}/{name}", tree.apps())).collect();
    let data = store.get_all(paths.clone()).await?;
    let below = children_of(store, &paths).await?;
    for ((path, datum), names) in paths.into_iter().zip(data).zip(below) {
        let Some(datum) = datum else { continue };
        let Ok(lines) = content::left_out_of_app(&datum.bytes) else { continue };
        told.extend(lines.into_iter().map(|line| format!("{path}: {line}")));
        let partitions = content::decode_app(&datum.bytes).map_or(0, |info| info.partition_count);
        let strange = |name: &&String| !name.parse().is_ok_and(|index: i32| (0..partitions).contains(&index));
        told.extend(names.iter().filter(strange).map(|name| match name.as_str() {
            "duplication" => format!("{path}/{name}: duplication to other clusters is not supported"),
            _ => format!("{path}/{name}: is no partition of this table"),
        }));
    }
    for (name, what) in [
        ("backup", "policies and lists of cold backups are not supported"),
        ("bulk_load", "the state of bulk loads is not supported"),
    ] {
        let path = format!("{}/{name}", tree.root());
        let children = list(path.clone()).await?;
        if !children.is_empty() {
            told.push(format!("{path}: {what} ({} below it)", children.len()));
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_store::MemoryStore;

    /// A cluster's metadata as the reference leaves it in ZooKeeper.
    const REFERENCE: &str = include_str!("../tests/fixtures/reference-cluster.txt");

    async fn reference() -> MemoryStore {
        let memory = MemoryStore::default();
        let store: &dyn MetaStore = &memory;
        store.ensure_path("/pegasus").await.unwrap();
        for line in REFERENCE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (path, text) = line.split_once(' ').unwrap_or((line, ""));
            store.create(path, Bytes::from(text)).await.unwrap();
        }
        memory
    }

    #[tokio::test]
    async fn tables_of_the_reference_are_read_and_the_rest_is_told() {
        let store = reference().await;
        let tree = Tree::new("/pegasus/c1");
        let all = read_all(&store, &tree).await.unwrap();
        assert!(all.contains_key("/apps/2/3") && all.contains_key("/apps/1/duplication/1700000000/0"));
        assert!(!all.contains_key("/lock"));
        let mut tables = Vec::new();
        for id in [1, 2, 3] {
            let info = content::decode_app(&all[&format!("/apps/{id}")]).unwrap();
            let configs = (0..info.partition_count).map(|index| {
                let config = content::decode_partition(&all[&format!("/apps/{id}/{index}")]).unwrap();
                format!("{config:?}")
            });
            tables.push(format!("{} {:?} {}", info.name, info.status, configs.collect::<Vec<_>>().join(" ")));
        }
        let (a, b, c) = ("rs1.example:34801", "rs2.example:34801", "rs3.example:34801");
        assert_eq!(
            tables,
            [
                format!("temp Available 1.0@3[P {a}, S {b}, S {c}] 1.1@4[P {b}, S {c}, S {a}]"),
                format!(
                    "usertable Available 2.0@7[P {c}, S {a}] 2.1@3[P {a}, S {b}, S {c}] \
                     2.2@5[P {b}, S {a}, S {c}] 2.3@2[P 10.0.0.3:34801, S 10.0.0.1:34801]"
                ),
                "old Dropped 3.0@6[no primary] 3.1@6[no primary]".to_owned(),
            ]
        );
        assert_eq!(
            left_out(&store, &tree).await.unwrap(),
            [
                "/pegasus/c1/apps/1: it is duplicated to another cluster; that stops",
                "/pegasus/c1/apps/1/duplication: duplication to other clusters is not supported",
                "/pegasus/c1/apps/2: it was made with 2 partitions and split to 4; only the latter is kept",
                "/pegasus/c1/backup: policies and lists of cold backups are not supported (1 below it)",
                "/pegasus/c1/bulk_load: the state of bulk loads is not supported (1 below it)",
            ]
        );
        let empty = MemoryStore::default();
        assert_eq!(left_out(&empty, &tree).await.unwrap(), [""; 0]);
        assert!(read_all(&empty, &tree).await.unwrap().is_empty());
    }
}
