//! Moves a cluster's metadata from one store to another: embedded to ZooKeeper, back, or between two of them.
//!
//! ```text
//!  lead both places (no meta-server can)
//!  target: cluster_id and apps="lock"          nobody takes a part for the whole
//!  target: everything below                    in multis, fenced
//!  target: read again and compared
//!  source: apps="moved to ..."                 from here on the source is never used again by mistake
//!  target: apps="unlock"
//! ```
//!
//! Cut off anywhere, it can be repeated: a target that says `lock` holds nothing but an unfinished copy and is
//! made anew. Versions of nodes start again at 0; nothing refers to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pegasus_types::Node;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::content::{LOCKED, UNLOCKED, not_for_use};
use crate::election::{self, Election, FencedStore, Leadership};
use crate::store::{MetaStore, Op, StoreError, multis};
use crate::survey;
use crate::tree::Tree;

/// Under which the move stands in the line of the leaders.
const ME: &str = "moving-metadata:1";
/// What a place says that was left.
const MOVED: &str = "moved to ";
/// To become the leader when nobody else is: an election takes five calls.
const LEAD_WITHIN: Duration = Duration::from_secs(30);

/// Where metadata lies.
#[derive(Clone)]
pub struct Place {
    pub store: Arc<dyn MetaStore>,
    pub tree: Tree,
    /// As for [`election::Options::lock_root`].
    pub lock_root: String,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Place {
    pub fn name(&self) -> String {
        let root = if self.tree.root().is_empty() { "/" } else { self.tree.root() };
        format!("{} {root}", self.store.describe())
    }
}

/// What was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub nodes: usize,
    pub bytes: usize,
    /// See [`survey::left_out`]. It was moved, too.
    pub left_out: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{place}: {error}")]
    Store { place: String, error: StoreError },
    #[error(
        "{place}: {by} leads there, or waits for it. Stop all meta-servers first; one that was killed is forgotten after a session \
         timeout of the store"
    )]
    Held { place: String, by: String },
    #[error("{place}: did not become its leader within {LEAD_WITHIN:?}")]
    NoLead { place: String },
    #[error("{place} holds no cluster")]
    Empty { place: String },
    #[error("{place} holds a cluster already ({tables} tables). Nothing was changed")]
    NotEmpty { place: String, tables: usize },
    #[error("{from} was moved to {to} before, completely. Nothing was done")]
    Already { from: String, to: String },
    #[error("{place} cannot be moved: its apps node says {text:?}")]
    NotForUse { place: String, text: String },
    #[error("{place}: {path} is not what was written. The source is unchanged; try again")]
    Differs { place: String, path: String },
}

/// Moves everything. Only when it returns Ok may meta-servers be started, on the new place.
///
/// # Errors
/// The source is unchanged, and goes on being the place of the metadata, unless the error comes from the very
/// last steps; then the source says where it was moved to, and repeating the move completes it.
pub async fn move_metadata(from: &Place, to: &Place) -> Result<Moved, MoveError> {
    let held_from = Held::take(from).await?;
    let held_to = match Held::take(to).await {
        Ok(held) => held,
        Err(error) => {
            held_from.give_back().await;
            return Err(error);
        }
    };
    let result = carry(&held_from, &held_to).await;
    held_from.give_back().await;
    held_to.give_back().await;
    result
}

/// A place that we lead.
pub(crate) struct Held<'a> {
    place: &'a Place,
    store: FencedStore,
    stop: oneshot::Sender<()>,
    election: JoinHandle<()>,
}

impl<'a> Held<'a> {
    pub(crate) async fn take(place: &'a Place) -> Result<Self, MoveError> {
        let name = place.name();
        let session_ms = u64::try_from(place.store.session_timeout().as_millis()).unwrap_or(u64::MAX);
        let me: Node = ME.parse().map_err(|_| MoveError::NoLead { place: name.clone() })?;
        let options = election::Options {
            tree: place.tree.clone(),
            lock_root: place.lock_root.clone(),
            me,
            session_ms,
        };
        let (tell, mut news) = watch::channel(Leadership::Standby { leader: None });
        let (stop, stopped) = oneshot::channel::<()>();
        let store = place.store.clone();
        let election = tokio::spawn(async move {
            let stop = async { drop(stopped.await) };
            election::run(&*store, Election::new(options), &tell, stop).await;
        });
        let decided = news.wait_for(|now| !matches!(now, Leadership::Standby { leader: None }));
        let outcome = tokio::time::timeout(LEAD_WITHIN, decided).await.map(|now| now.map(|now| now.clone()));
        let error = match outcome {
            Ok(Ok(Leadership::Leading(fence))) => {
                let store = FencedStore::new(place.store.clone(), fence);
                let held = Self { place, store, stop, election };
                let error = match held.other_candidate().await {
                    Ok(None) => return Ok(held),
                    Ok(Some(by)) => MoveError::Held { place: name, by },
                    Err(error) => held.error(error),
                };
                held.give_back().await;
                return Err(error);
            }
            Ok(Ok(Leadership::Standby { leader: Some(by) })) => {
                MoveError::Held { place: name, by: by.to_string() }
            }
            _ => MoveError::NoLead { place: name },
        };
        let _ = stop.send(());
        let _ = election.await;
        Err(error)
    }

    /// A meta-server that stands for election: it lives, and would lead as soon as this one does not.
    pub(crate) async fn other_candidate(&self) -> Result<Option<String>, StoreError> {
        let line = self.place.tree.leader_lock(&self.place.lock_root);
        for name in self.place.store.children(&line).await? {
            let Some(candidate) = self.place.store.get(&format!("{line}/{name}")).await? else { continue };
            if candidate.bytes != ME.as_bytes() {
                return Ok(Some(String::from_utf8_lossy(&candidate.bytes).into_owned()));
            }
        }
        Ok(None)
    }

    pub(crate) fn place(&self) -> &'a Place {
        self.place
    }

    pub(crate) async fn give_back(self) {
        // The election may have ended by itself.
        let _ = self.stop.send(());
        let _ = self.election.await;
    }

    fn error(&self, error: StoreError) -> MoveError {
        MoveError::Store { place: self.place.name(), error }
    }

    async fn apps(&self) -> Result<Option<Bytes>, MoveError> {
        let datum = self.store.get(&self.place.tree.apps()).await.map_err(|error| self.error(error))?;
        Ok(datum.map(|datum| datum.bytes))
    }

    pub(crate) async fn say(&self, text: &str) -> Result<(), MoveError> {
        let path = self.place.tree.apps();
        let set = Op::Set { path, bytes: Bytes::copy_from_slice(text.as_bytes()), version: None };
        self.store.multi(vec![set]).await.map_err(|error| self.error(error)).map(drop)
    }

    pub(crate) async fn read_all(&self) -> Result<BTreeMap<String, Bytes>, MoveError> {
        survey::read_all(&self.store, &self.place.tree).await.map_err(|error| self.error(error))
    }

    /// In order, cut into multis.
    pub(crate) async fn write(&self, ops: Vec<Op>) -> Result<(), MoveError> {
        for multi in multis(ops) {
            self.store.multi(multi).await.map_err(|error| self.error(error))?;
        }
        Ok(())
    }
}

async fn carry(from: &Held<'_>, to: &Held<'_>) -> Result<Moved, MoveError> {
    let moved_here = format!("{MOVED}{}", to.place.name());
    let target = to.apps().await?;
    let unfinished = target.as_ref().is_some_and(|bytes| bytes[..] == *LOCKED.as_bytes());
    let left = target.as_ref().is_some_and(|bytes| bytes.starts_with(MOVED.as_bytes()));

    let apps = from.apps().await?.ok_or_else(|| MoveError::Empty { place: from.place.name() })?;
    match not_for_use(&apps) {
        // The last try was cut off between its last two steps.
        Some(text) if text == moved_here && unfinished => {}
        Some(text) if text == moved_here && target.as_ref().is_some_and(|t| not_for_use(t).is_none()) => {
            return Err(MoveError::Already { from: from.place.name(), to: to.place.name() });
        }
        Some(text) => return Err(MoveError::NotForUse { place: from.place.name(), text }),
        None => {}
    }
    let mut all = from.read_all().await?;
    // Its text is the state of the move.
    all.remove("/apps");
    if !all.contains_key("/cluster_id") {
        return Err(MoveError::Empty { place: from.place.name() });
    }
    let left_out =
        survey::left_out(&from.store, &from.place.tree).await.map_err(|error| from.error(error))?;

    let old = to.read_all().await?;
    if !unfinished && !left && old.keys().any(|path| path != "/apps") {
        let tables =
            old.keys().filter(|path| path.starts_with("/apps/") && path.matches('/').count() == 2).count();
        return Err(MoveError::NotEmpty { place: to.place.name(), tables });
    }
    let at = |path: &str| format!("{}{path}", to.place.tree.root());
    // Children before parents.
    let cleared = old.keys().rev().map(|path| Op::Delete { path: at(path), version: None }).collect();
    to.write(cleared).await?;
    let mut ops = vec![Op::create(to.place.tree.apps(), LOCKED)];
    ops.extend(all.iter().map(|(path, bytes)| Op::create(at(path), bytes.clone())));
    // The id first: with it, nobody mistakes the place for a new cluster's.
    ops.sort_by_key(|op| op.path() != to.place.tree.cluster_id());
    to.write(ops).await?;

    let mut written = to.read_all().await?;
    written.remove("/apps");
    if written != all {
        let both = all.keys().chain(written.keys());
        let differs = both.filter(|path| all.get(*path) != written.get(*path)).min();
        let path = differs.cloned().unwrap_or_default();
        return Err(MoveError::Differs { place: to.place.name(), path });
    }
    from.say(&moved_here).await?;
    to.say(UNLOCKED).await?;
    Ok(Moved { nodes: all.len(), bytes: all.values().map(Bytes::len).sum(), left_out })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_store::{Fault, MemoryStore};
    use crate::sled_store::SledStore;
    use crate::store::Mode;

    fn place(store: Arc<dyn MetaStore>, root: &str) -> Place {
        Place { store, tree: Tree::new(root), lock_root: String::new() }
    }

    async fn fill(place: &Place) {
        let store = &place.store;
        store.ensure_path(&place.tree.apps()).await.unwrap();
        store.create(&place.tree.cluster_id(), "id".into()).await.unwrap();
        for id in 1..=3 {
            let app =
                format!(r#"{{"status":"app_status::AS_AVAILABLE","app_id":{id},"partition_count":700}}"#);
            store.create(&place.tree.app(id), app.into()).await.unwrap();
            let partitions = (0..700).map(|i| {
                let text = format!("{id}.{i} {}", "x".repeat(600));
                Op::create(format!("{}/{i}", place.tree.app(id)), text)
            });
            store.multi(partitions.collect()).await.unwrap();
        }
    }

    async fn apps(place: &Place) -> String {
        let datum = place.store.get(&place.tree.apps()).await.unwrap().unwrap();
        String::from_utf8(datum.bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn there_and_back_again() {
        let dir = tempfile::tempdir().unwrap();
        let embedded = place(Arc::new(SledStore::open(dir.path()).unwrap()), "/");
        let zookeeper = place(Arc::new(MemoryStore::default()), "/pegasus/c1");
        fill(&embedded).await;
        let before = survey::read_all(&*embedded.store, &embedded.tree).await.unwrap();

        let moved = move_metadata(&embedded, &zookeeper).await.unwrap();
        assert_eq!(moved.nodes, before.len() - 1, "apps itself is not counted");
        assert_eq!(apps(&zookeeper).await, UNLOCKED);
        assert_eq!(apps(&embedded).await, "moved to memory /pegasus/c1");
        let mut after = survey::read_all(&*zookeeper.store, &zookeeper.tree).await.unwrap();
        after.insert("/apps".into(), "".into());
        assert_eq!(after, before);
        // Nobody is left in the line.
        let line = zookeeper.store.children("/pegasus/c1/lock/dsn.meta.server.leader").await.unwrap();
        assert_eq!(line, [""; 0]);

        // What was left cannot be moved again, but be moved to.
        let again = move_metadata(&embedded, &zookeeper).await.unwrap_err().to_string();
        assert!(again.contains("was moved to memory /pegasus/c1 before, completely"), "{again}");
        zookeeper
            .store
            .create("/pegasus/c1/apps/4", r#"{"status":"app_status::AS_DROPPED"}"#.into())
            .await
            .unwrap();
        move_metadata(&zookeeper, &embedded).await.unwrap();
        assert_eq!(apps(&embedded).await, UNLOCKED);
        assert!(embedded.store.get("/apps/4").await.unwrap().is_some());
        assert!(apps(&zookeeper).await.starts_with("moved to embedded:"));
    }

    #[tokio::test]
    async fn what_could_lose_something_is_refused() {
        let (from, to) = (MemoryStore::default(), MemoryStore::default());
        let (held_from, held_to) = (from.join(), to.join());
        let (from, to) = (place(Arc::new(from), "/a"), place(Arc::new(to), "/b"));
        let told = |result: Result<Moved, MoveError>| result.unwrap_err().to_string();
        assert!(told(move_metadata(&from, &to).await).contains("/a holds no cluster"));
        fill(&from).await;
        let source = survey::read_all(&*from.store, &from.tree).await.unwrap();

        // A meta-server leads one of them.
        for (session, place, dir) in [(&held_from, &from, "/a/lock"), (&held_to, &to, "/b/lock")] {
            let session: &dyn MetaStore = session;
            let path = format!("{dir}/dsn.meta.server.leader/LOCKNODE");
            session.ensure_path(path.rsplit_once('/').unwrap().0).await.unwrap();
            let join = Op::Create { path, bytes: "m1:34601".into(), mode: Mode::EphemeralSequential };
            session.multi(vec![join]).await.unwrap();
            let told = told(move_metadata(&from, &to).await);
            assert!(told.contains("m1:34601 leads there") && told.contains(&place.name()), "{told}");
            let names = session.children(&format!("{dir}/dsn.meta.server.leader")).await.unwrap();
            for name in names {
                session.delete(&format!("{dir}/dsn.meta.server.leader/{name}"), None).await.unwrap();
            }
        }

        // There is a cluster already.
        to.store.ensure_path("/b/apps").await.unwrap();
        to.store.create("/b/apps/1", "{}".into()).await.unwrap();
        assert!(told(move_metadata(&from, &to).await).contains("holds a cluster already (1 tables)"));
        to.store.delete("/b/apps/1", None).await.unwrap();
        // The source is half written itself.
        from.store.set("/a/apps", LOCKED.into(), 0).await.unwrap();
        assert!(told(move_metadata(&from, &to).await).contains("its apps node says \"lock\""));
        from.store.set("/a/apps", "".into(), 1).await.unwrap();
        assert_eq!(survey::read_all(&*from.store, &from.tree).await.unwrap(), source);
        move_metadata(&from, &to).await.unwrap();
    }

    /// Cut off after every single write, and repeated: it completes, and at no time are both places for use.
    #[tokio::test]
    async fn cut_off_anywhere_it_can_be_repeated() {
        for cut in 0.. {
            let (from, to) = (Arc::new(MemoryStore::default()), Arc::new(MemoryStore::default()));
            let (from, to) = (place(from, "/a"), (place(to.clone(), "/b"), to));
            fill(&from).await;
            let before = survey::read_all(&*from.store, &from.tree).await.unwrap();
            let counting = place(Arc::new(CutStore::new(to.1.clone(), cut)), "/b");
            let result = move_metadata(&from, &counting).await;
            let for_use = |bytes: Option<Bytes>| bytes.is_some_and(|bytes| not_for_use(&bytes).is_none());
            let source = from.store.get("/a/apps").await.unwrap().map(|datum| datum.bytes);
            let target = to.1.get("/b/apps").await.unwrap().map(|datum| datum.bytes);
            assert!(!(for_use(source) && for_use(target)), "cut {cut}: both are for use");
            if result.is_ok() {
                assert!(cut > 5, "only {cut} places to cut");
                return;
            }
            match move_metadata(&from, &to.0).await {
                Ok(_) | Err(MoveError::Already { .. }) => {}
                Err(error) => panic!("cut {cut}: {error}"),
            }
            assert_eq!(apps(&to.0).await, UNLOCKED, "cut {cut}");
            let mut after = survey::read_all(&*to.1, &to.0.tree).await.unwrap();
            after.insert("/apps".into(), "".into());
            assert!(after == before, "cut {cut}: something is missing");
        }
    }

    /// Loses the answer of the n-th multi, then refuses all writes: a crash.
    struct CutStore {
        inner: Arc<MemoryStore>,
        left: std::sync::atomic::AtomicI64,
    }

    impl CutStore {
        fn new(inner: Arc<MemoryStore>, cut: i64) -> Self {
            Self { inner, left: cut.into() }
        }
    }

    impl MetaStore for CutStore {
        fn get(&self, path: &str) -> crate::store::StoreFuture<Option<crate::store::Datum>> {
            self.inner.get(path)
        }
        fn children(&self, path: &str) -> crate::store::StoreFuture<Vec<String>> {
            self.inner.children(path)
        }
        fn get_all(&self, paths: Vec<String>) -> crate::store::StoreFuture<Vec<Option<crate::store::Datum>>> {
            self.inner.get_all(paths)
        }
        fn multi(&self, ops: Vec<Op>) -> crate::store::StoreFuture<Vec<crate::store::OpResult>> {
            use std::sync::atomic::Ordering::SeqCst;
            // The election's own writes go through.
            let is_election = ops.iter().all(|op| op.path().contains("lock") || op.path().contains("epoch"));
            match if is_election { 1 } else { self.left.fetch_sub(1, SeqCst) } {
                n if n > 0 => self.inner.multi(ops),
                0 => {
                    self.inner.fail_next(Fault::LoseAnswer);
                    self.inner.multi(ops)
                }
                _ => Box::pin(std::future::ready(Err(StoreError::Failed("cut off by the test".into())))),
            }
        }
        fn get_watched(
            &self,
            path: &str,
        ) -> crate::store::StoreFuture<(Option<crate::store::Datum>, crate::store::Watch)> {
            self.inner.get_watched(path)
        }
        fn children_watched(
            &self,
            path: &str,
        ) -> crate::store::StoreFuture<(Vec<String>, crate::store::Watch)> {
            self.inner.children_watched(path)
        }
        fn session(&self) -> watch::Receiver<crate::store::SessionState> {
            self.inner.session()
        }
        fn session_timeout(&self) -> Duration {
            self.inner.session_timeout()
        }
        fn describe(&self) -> String {
            self.inner.describe()
        }
    }
}
