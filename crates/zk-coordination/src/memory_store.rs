//! A store in memory, for tests: several sessions may share one tree, and each can be cut off, ended, or
//! made to lose an answer.

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::memory_tree::SessionId;
use crate::store::{
    DEFAULT_SESSION_TIMEOUT, Datum, MetaStore, Op, OpResult, SessionState, StoreError, StoreFuture, Watch,
};
use crate::watched_tree::WatchedTree;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// What goes wrong with the next multi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out and its answer lost.
    LoseAnswer,
    /// It is not carried out and its answer lost.
    LoseRequest,
}

/// One session with a tree in memory.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Mutex<WatchedTree>>,
    session: SessionId,
    state: watch::Sender<SessionState>,
    fault: Mutex<Option<Fault>>,
    session_timeout: Duration,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::on(Arc::default())
    }
}

impl MemoryStore {
    fn on(shared: Arc<Mutex<WatchedTree>>) -> Self {
        Self {
            shared,
            session: NEXT_SESSION.fetch_add(1, Ordering::Relaxed),
            state: watch::Sender::new(SessionState::Connected),
            fault: Mutex::default(),
            session_timeout: DEFAULT_SESSION_TIMEOUT,
        }
    }

    /// For tests that wait for what depends on it. Nothing ends a session but [`MemoryStore::set_state`].
    pub fn set_session_timeout(&mut self, session_timeout: Duration) {
        self.session_timeout = session_timeout;
    }

    /// Another session with the same tree.
    pub fn join(&self) -> Self {
        Self::on(self.shared.clone())
    }

    pub fn fail_next(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Cuts the session off, or reconnects it.
    pub fn set_state(&self, state: SessionState) {
        if state == SessionState::Over {
            self.expire();
        }
        self.state.send_replace(state);
    }

    /// The store forgets the session; who holds it does not hear of it.
    pub fn expire(&self) {
        let mut shared = self.lock();
        let changed = shared.tree.end_session(self.session);
        shared.fire(&changed);
    }

    fn lock(&self) -> MutexGuard<'_, WatchedTree> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) -> Result<(), StoreError> {
        match *self.state.borrow() {
            SessionState::Connected => Ok(()),
            SessionState::Disconnected => Err(StoreError::Unavailable("cut off by the test".into())),
            SessionState::Over => Err(StoreError::SessionOver),
        }
    }

    fn run_multi(&self, ops: &[Op]) -> Result<Vec<OpResult>, StoreError> {
        self.connected()?;
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
        if fault == Some(Fault::LoseRequest) {
            return Err(StoreError::OutcomeUnknown("request lost by the test".into()));
        }
        let mut shared = self.lock();
        let (results, changed) = shared.tree.multi(self.session, ops)?;
        shared.fire(&changed);
        match fault {
            Some(_) => Err(StoreError::OutcomeUnknown("answer lost by the test".into())),
            None => Ok(results),
        }
    }

    fn read<T>(&self, f: impl FnOnce(&mut WatchedTree) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.connected()?;
        f(&mut self.lock())
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.set_state(SessionState::Over);
    }
}

impl MetaStore for MemoryStore {
    fn get(&self, path: &str) -> StoreFuture<Option<Datum>> {
        Box::pin(ready(self.read(|shared| shared.tree.get(path))))
    }

    fn children(&self, path: &str) -> StoreFuture<Vec<String>> {
        Box::pin(ready(self.read(|shared| shared.tree.children(path))))
    }

    fn get_all(&self, paths: Vec<String>) -> StoreFuture<Vec<Option<Datum>>> {
        Box::pin(ready(self.read(|shared| paths.iter().map(|path| shared.tree.get(path)).collect())))
    }

    fn multi(&self, ops: Vec<Op>) -> StoreFuture<Vec<OpResult>> {
        Box::pin(ready(self.run_multi(&ops)))
    }

    fn get_watched(&self, path: &str) -> StoreFuture<(Option<Datum>, Watch)> {
        Box::pin(ready(self.read(|shared| {
            let datum = shared.tree.get(path)?;
            Ok((datum, shared.watch_node(path)))
        })))
    }

    fn children_watched(&self, path: &str) -> StoreFuture<(Vec<String>, Watch)> {
        Box::pin(ready(self.read(|shared| {
            let names = shared.tree.children(path)?;
            Ok((names, shared.watch_children(path)))
        })))
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.state.subscribe()
    }

    fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_share_a_tree_and_watches_fire_once() {
        let first = MemoryStore::default();
        let second: &dyn MetaStore = &first.join();
        let store: &dyn MetaStore = &first;
        store.ensure_path("/a/b").await.unwrap();
        store.ensure_path("/a/b").await.unwrap();
        let (names, list_watch) = second.children_watched("/a").await.unwrap();
        assert_eq!(names, ["b"]);
        let (none, node_watch) = second.get_watched("/a/c").await.unwrap();
        assert_eq!(none, None);
        store.create("/a/c", "1".into()).await.unwrap();
        list_watch.changed().await;
        node_watch.changed().await;
        assert_eq!(second.set("/a/c", "2".into(), 0).await, Ok(1));
        let wrong = store.set("/a/c", "3".into(), 0).await;
        assert!(matches!(wrong, Err(StoreError::BadVersion { wanted: 0, .. })), "{wrong:?}");
    }

    #[tokio::test]
    async fn faults() {
        let memory = MemoryStore::default();
        let store: &dyn MetaStore = &memory;
        memory.fail_next(Fault::LoseRequest);
        assert!(matches!(store.create("/a", "".into()).await, Err(StoreError::OutcomeUnknown(_))));
        assert_eq!(store.get("/a").await, Ok(None));
        memory.fail_next(Fault::LoseAnswer);
        assert!(matches!(store.create("/a", "".into()).await, Err(StoreError::OutcomeUnknown(_))));
        assert!(store.get("/a").await.unwrap().is_some());
        memory.set_state(SessionState::Disconnected);
        assert!(matches!(store.get("/a").await, Err(StoreError::Unavailable(_))));
        memory.set_state(SessionState::Over);
        assert_eq!(store.get("/a").await, Err(StoreError::SessionOver));
        assert_eq!(*store.session().borrow(), SessionState::Over);
    }
}
