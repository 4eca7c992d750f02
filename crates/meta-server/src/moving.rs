//! Moves the metadata between the embedded store of this meta-server and ZooKeeper: what
//! `pegasus_server CONFIG --move-metadata-to ..` does.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use pegasus_config::Setting;
use pegasus_zk_coordination::moving::{Place, move_metadata};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{SledStore, ZooKeeperStore};

use crate::config::{Config, Coordination};

/// For a command beside the meta-server, which must not run.
pub(crate) async fn open_embedded(dir: PathBuf) -> anyhow::Result<SledStore> {
    tokio::task::spawn_blocking(move || SledStore::open(&dir))
        .await?
        .context("the embedded store cannot be opened; a meta-server that still runs has it open")
}

/// Moves everything to the kind of store that is named, from the other one. What it did, for people.
///
/// # Errors
/// See [`move_metadata`]; or a store cannot be opened.
pub async fn move_metadata_to(config: &Config, to: Coordination) -> anyhow::Result<String> {
    if config.zookeeper.hosts_list.is_empty() {
        bail!("[zookeeper] hosts_list is empty: say where ZooKeeper is");
    }
    let dir = config.store_dir();
    let is_there = dir.exists();
    if to == Coordination::Zookeeper && !is_there {
        bail!(
            "there is no embedded store in {}: is [core] data_dir the one of the meta-server?",
            dir.display()
        );
    }
    let embedded = open_embedded(dir).await?;
    let options = config.zookeeper_options()?;
    let zookeeper = Arc::new(ZooKeeperStore::connect(&options).await?);
    let tree = Tree::new(&config.meta.cluster_root);
    let lock_root = config.meta.distributed_lock_service_parameters.clone();
    let embedded = Place { store: Arc::new(embedded), tree: tree.clone(), lock_root: lock_root.clone() };
    let remote = Place { store: zookeeper.clone(), tree, lock_root };
    let (from, to_place) = match to {
        Coordination::Zookeeper => (&embedded, &remote),
        Coordination::Embedded => (&remote, &embedded),
    };
    let moved = move_metadata(from, to_place).await;
    zookeeper.end().await;
    let moved = moved?;
    let mut told = format!(
        "Moved {} nodes, {} bytes, from {} to {}, and compared them there.\n",
        moved.nodes,
        moved.bytes,
        from.name(),
        to_place.name()
    );
    for line in &moved.left_out {
        let _ = writeln!(told, "Not understood by this version, moved as it is: {line}");
    }
    let _ = writeln!(
        told,
        "Now set [meta_server] coordination = {} for every meta-server, and start them. The old place says where its \
         metadata went; a meta-server does not start on it any more.",
        to.to_text()
    );
    Ok(told)
}
