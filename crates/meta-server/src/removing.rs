//! Removes a cluster's metadata: what `pegasus_server CONFIG --remove-metadata NAME` does.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use pegasus_types::Node;
use pegasus_zk_coordination::ZooKeeperStore;
use pegasus_zk_coordination::content::{decode_app, decode_partition};
use pegasus_zk_coordination::moving::Place;
use pegasus_zk_coordination::removing::Removal;
use pegasus_zk_coordination::tree::Tree;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{Config, Coordination};
use crate::moving::open_embedded;

/// For a server that lives to accept a connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What was removed.
#[derive(Debug)]
pub struct Removed {
    pub place: String,
    /// Names of its tables, dropped ones included.
    pub tables: Vec<String>,
    /// Replica-servers that the metadata named.
    pub nodes: Vec<Node>,
    /// Servers of which nothing was heard, neither that they live nor that nobody listens there.
    pub silent: Vec<Node>,
    /// What lies below the root and was not the cluster's.
    pub left: Vec<String>,
}

impl Removed {
    /// For people: what was done, and what is left to do in the `directories` of each host.
    pub fn text(&self, directories: impl IntoIterator<Item = PathBuf>) -> String {
        let names = |nodes: &[Node]| nodes.iter().map(Node::as_str).collect::<Vec<_>>().join(", ");
        let mut told = format!("Removed {}\nIts tables: {}\n", self.place, self.tables.join(", "));
        if !self.left.is_empty() {
            let _ = writeln!(told, "Not of this cluster, still there: {}", self.left.join(", "));
        }
        told += "The data is still there. For a cluster of this name from zero, remove on every host of the old one:\n";
        for directory in directories.into_iter().collect::<BTreeSet<_>>() {
            let _ = writeln!(told, "  {}", directory.display());
        }
        let _ = writeln!(told, "Its replica-servers: {}", names(&self.nodes));
        if !self.silent.is_empty() {
            let _ = writeln!(
                told,
                "Nothing was heard of {}: if they still run, end them, or they go on with the old data.",
                names(&self.silent)
            );
        }
        told
    }
}

/// Removes the metadata of the cluster that `config` describes, and that is called `typed`.
///
/// # Errors
/// The name is another one; one of its servers lives; there is no metadata; the store fails. Nothing was changed then,
/// except when the store fails midway: repeat it.
pub async fn remove_metadata(config: &Config, typed: &str) -> anyhow::Result<Removed> {
    let name = &config.cluster.cluster_name;
    if typed != name {
        bail!(
            "this is the configuration of cluster {name:?}, not of {typed:?}. To remove all that is known of its tables, \
             give the cluster's name"
        );
    }
    let metas = config.metas.server_list.iter().cloned().collect();
    refuse_while_alive(&metas).await?;
    let zookeeper = match config.meta.coordination {
        Coordination::Embedded => None,
        Coordination::Zookeeper => {
            Some(Arc::new(ZooKeeperStore::connect(&config.zookeeper_options()?).await?))
        }
    };
    let tree = Tree::new(&config.meta.cluster_root);
    let lock_root = config.meta.distributed_lock_service_parameters.clone();
    let place = match &zookeeper {
        Some(store) => Place { store: store.clone(), tree, lock_root },
        None => {
            let dir = config.store_dir();
            if !dir.exists() {
                bail!("there is no embedded store in {}: this is not the meta-server's host?", dir.display());
            }
            Place { store: Arc::new(open_embedded(dir).await?), tree, lock_root }
        }
    };
    let removed = remove(&place).await;
    if let Some(zookeeper) = zookeeper {
        zookeeper.end().await;
    }
    removed
}

async fn remove(place: &Place) -> anyhow::Result<Removed> {
    let removal = Removal::begin(place).await?;
    let (tables, nodes) = named(&removal);
    let silent = match refuse_while_alive(&nodes).await {
        Ok(silent) => silent,
        Err(error) => {
            removal.give_up().await;
            return Err(error);
        }
    };
    let left = removal.carry_out().await?;
    Ok(Removed { place: place.name(), tables, nodes: nodes.into_iter().collect(), silent, left })
}

/// Tables and nodes, as far as they can be read: what cannot is removed all the same.
fn named(removal: &Removal<'_>) -> (Vec<String>, BTreeSet<Node>) {
    let (mut tables, mut nodes) = (Vec::new(), BTreeSet::new());
    for (path, bytes) in removal.content().iter().filter(|(path, _)| path.starts_with("/apps/")) {
        match path.matches('/').count() {
            2 => tables.extend(decode_app(bytes).map(|info| info.name)),
            3 => {
                if let Ok(config) = decode_partition(bytes) {
                    nodes.extend(
                        config.primary.into_iter().chain(config.secondaries).chain(config.last_drops),
                    );
                }
            }
            _ => {}
        }
    }
    (tables, nodes)
}

/// Those of whom nothing was heard.
async fn refuse_while_alive(servers: &BTreeSet<Node>) -> anyhow::Result<Vec<Node>> {
    let mut asked = JoinSet::new();
    for server in servers.clone() {
        asked.spawn(async move {
            let answer = timeout(ANSWER_WITHIN, TcpStream::connect(server.as_str())).await;
            (server, answer)
        });
    }
    let mut silent = Vec::new();
    while let Some(answer) = asked.join_next().await {
        let (server, answer) = answer?;
        match answer {
            Ok(Ok(_)) => {
                bail!(
                    "somebody listens on {server}. Stop all servers of the cluster first; nothing was changed"
                )
            }
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {}
            Ok(Err(_)) | Err(_) => silent.push(server),
        }
    }
    silent.sort();
    Ok(silent)
}
