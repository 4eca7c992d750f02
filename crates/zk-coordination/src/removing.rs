//! Removes a cluster's metadata for good, so that a new cluster may take its name and place.
//!
//! ```text
//!  lead the place (no meta-server can)
//!  apps="being removed"              from here on no meta-server takes what is left for a whole
//!  everything else, children first   in multis, fenced; apps last
//!  lock, epoch, root                 when the lead is given back
//! ```
//!
//! Cut off anywhere, it can be repeated.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::moving::{Held, MoveError, Place};
use crate::store::{Op, StoreError};

/// What a place says of which a part may be gone.
const REMOVING: &str = "being removed";

/// A place that no meta-server can lead meanwhile. Ends with [`Self::carry_out`] or [`Self::give_up`].
pub struct Removal<'a> {
    held: Held<'a>,
    content: BTreeMap<String, Bytes>,
}

impl std::fmt::Debug for Removal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Removal").field("nodes", &self.content.len()).finish_non_exhaustive()
    }
}

impl<'a> Removal<'a> {
    /// Changes nothing of the metadata.
    ///
    /// # Errors
    /// A meta-server leads there; there is no metadata; the store fails.
    pub async fn begin(place: &'a Place) -> Result<Self, MoveError> {
        let held = Held::take(place).await?;
        match held.read_all().await {
            Ok(content) if content.is_empty() => {
                held.give_back().await;
                // An election has made its own nodes.
                clear_election(place).await?;
                Err(MoveError::Empty { place: place.name() })
            }
            Ok(content) => Ok(Self { held, content }),
            Err(error) => {
                held.give_back().await;
                Err(error)
            }
        }
    }

    /// What is there, by path below the cluster's root.
    pub fn content(&self) -> &BTreeMap<String, Bytes> {
        &self.content
    }

    pub async fn give_up(self) {
        self.held.give_back().await;
    }

    /// Removes everything, the root as well; what lies there beside the cluster's own stays and is told, by path.
    ///
    /// # Errors
    /// What is left may be no whole: try again, no meta-server begins with it.
    pub async fn carry_out(self) -> Result<Vec<String>, MoveError> {
        let Self { held, content } = self;
        let place = held.place();
        let removed = remove(&held, &content).await;
        held.give_back().await;
        removed?;
        clear_election(place).await
    }
}

async fn remove(held: &Held<'_>, content: &BTreeMap<String, Bytes>) -> Result<(), MoveError> {
    let tree = &held.place().tree;
    if content.contains_key("/apps") {
        held.say(REMOVING).await?;
    }
    let at = |path: &str| Op::Delete { path: format!("{}{path}", tree.root()), version: None };
    // Children before parents, and last of all what says that this is no whole.
    let others = content.keys().rev().filter(|path| *path != "/apps").map(|path| at(path));
    let last = content.contains_key("/apps").then(|| at("/apps"));
    held.write(others.chain(last).collect()).await
}

/// The nodes that stay when nobody leads, and the root. Paths that could not go, as others lie below them.
async fn clear_election(place: &Place) -> Result<Vec<String>, MoveError> {
    let error = |error| MoveError::Store { place: place.name(), error };
    let line = place.tree.leader_lock(&place.lock_root);
    let lock = line.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    let root = place.tree.root().to_owned();
    let mut left = Vec::new();
    for path in [place.tree.leader_epoch(), line, lock, root] {
        if path.is_empty() {
            continue;
        }
        match place.store.delete(&path, None).await {
            Ok(()) | Err(StoreError::NoNode(_)) => {}
            Err(StoreError::NotEmpty(_)) => {
                let names = place.store.children(&path).await.map_err(error)?;
                left.extend(names.iter().map(|name| format!("{path}/{name}")));
            }
            Err(other) => return Err(error(other)),
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory_store::MemoryStore;
    use crate::sled_store::SledStore;
    use crate::store::{MetaStore, Mode};
    use crate::tree::Tree;

    fn place(store: Arc<dyn MetaStore>) -> Place {
        Place { store, tree: Tree::new("/pegasus/c1"), lock_root: "/pegasus/c1/lock".to_owned() }
    }

    async fn fill(store: &dyn MetaStore) {
        store.ensure_path("/pegasus/c1/apps").await.unwrap();
        store.create("/pegasus/c1/cluster_id", "id".into()).await.unwrap();
        for id in 1..=3 {
            store.create(&format!("/pegasus/c1/apps/{id}"), "{}".into()).await.unwrap();
            let partitions =
                (0..700).map(|i| Op::create(format!("/pegasus/c1/apps/{id}/{i}"), "x".repeat(400)));
            store.multi(partitions.collect()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn all_of_it_goes_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let stores: [Arc<dyn MetaStore>; 2] =
            [Arc::new(MemoryStore::default()), Arc::new(SledStore::open(dir.path()).unwrap())];
        for store in stores {
            let place = place(store.clone());
            fill(&*store).await;
            store.ensure_path("/pegasus/c2/apps").await.unwrap();
            let removal = Removal::begin(&place).await.unwrap();
            assert!(removal.content().contains_key("/apps/3/699"));
            assert_eq!(removal.carry_out().await.unwrap(), [""; 0]);
            assert_eq!(store.children("/pegasus").await.unwrap(), ["c2"]);
            let again = Removal::begin(&place).await.unwrap_err().to_string();
            assert!(again.ends_with("/pegasus/c1 holds no cluster"), "{again}");
            assert_eq!(store.children("/pegasus").await.unwrap(), ["c2"], "looking leaves nothing behind");
        }
    }

    #[tokio::test]
    async fn it_waits_for_no_leader_and_leaves_what_is_not_ours() {
        let memory = MemoryStore::default();
        let meta = memory.join();
        let place = place(Arc::new(memory));
        fill(&*place.store).await;
        place.store.create("/pegasus/c1/notes", "of somebody else".into()).await.unwrap();
        let session: &dyn MetaStore = &meta;
        session.ensure_path("/pegasus/c1/lock/dsn.meta.server.leader").await.unwrap();
        let path = "/pegasus/c1/lock/dsn.meta.server.leader/LOCKNODE".to_owned();
        let join = Op::Create { path, bytes: "m1:34601".into(), mode: Mode::EphemeralSequential };
        session.multi(vec![join]).await.unwrap();
        let told = Removal::begin(&place).await.unwrap_err().to_string();
        assert!(told.contains("m1:34601 leads there"), "{told}");
        session.delete("/pegasus/c1/lock/dsn.meta.server.leader/LOCKNODE0000000000", None).await.unwrap();

        // One that comes when nobody leads is second in line, and lives as well.
        let held = Held::take(&place).await.unwrap();
        let path = "/pegasus/c1/lock/dsn.meta.server.leader/LOCKNODE".to_owned();
        let join = Op::Create { path, bytes: "m2:34601".into(), mode: Mode::EphemeralSequential };
        session.multi(vec![join]).await.unwrap();
        assert_eq!(held.other_candidate().await.unwrap().as_deref(), Some("m2:34601"));
        held.give_back().await;
        for name in session.children("/pegasus/c1/lock/dsn.meta.server.leader").await.unwrap() {
            let path = format!("/pegasus/c1/lock/dsn.meta.server.leader/{name}");
            session.delete(&path, None).await.unwrap();
        }

        // Given up, nothing has changed.
        Removal::begin(&place).await.unwrap().give_up().await;
        let removal = Removal::begin(&place).await.unwrap();
        assert_eq!(removal.content().len(), 3 * 701 + 2);
        assert_eq!(removal.carry_out().await.unwrap(), ["/pegasus/c1/notes"]);
    }

    /// A part that is left says so, and is removed by the next try.
    #[tokio::test]
    async fn cut_off_it_is_no_cluster_any_more() {
        let place = place(Arc::new(MemoryStore::default()));
        fill(&*place.store).await;
        let removal = Removal::begin(&place).await.unwrap();
        let some = removal.content.clone().into_iter().filter(|(path, _)| path.starts_with("/apps/3"));
        // As if it had ended after a few multis.
        removal.held.say(REMOVING).await.unwrap();
        let deletes =
            some.rev().map(|(path, _)| Op::Delete { path: format!("/pegasus/c1{path}"), version: None });
        removal.held.write(deletes.collect()).await.unwrap();
        removal.give_up().await;
        let apps = place.store.get("/pegasus/c1/apps").await.unwrap().unwrap();
        assert_eq!(crate::content::not_for_use(&apps.bytes).as_deref(), Some(REMOVING));
        Removal::begin(&place).await.unwrap().carry_out().await.unwrap();
        assert!(place.store.get("/pegasus/c1").await.unwrap().is_none());
    }
}
