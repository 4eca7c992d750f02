//! The fence: what every write of a leader checks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::store::{Datum, MetaStore, Op, OpResult, SessionState, StoreError, StoreFuture, Version, Watch};

/// One reign. Equal fences are the same reign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Number of the reign. Grows with every leader; two leaders never have the same.
    pub epoch: u64,
    /// Path of the leader's own node: gone = its session is over, or somebody took the role away.
    pub(crate) node: String,
    pub(crate) epoch_path: String,
    /// Of the epoch's node: changed = there was a later leader.
    pub(crate) epoch_version: Version,
}

/// Operations that [`Fence::checks`] puts in front.
const CHECKS: usize = 2;

impl Fence {
    /// In front of every multi. The own node alone would do; the epoch also holds when somebody made a node
    /// of the same name by hand.
    pub fn checks(&self) -> [Op; CHECKS] {
        [
            Op::Check { path: self.node.clone(), version: None },
            Op::Check { path: self.epoch_path.clone(), version: Some(self.epoch_version) },
        ]
    }

    /// Is it the fence that this error names?
    pub fn is_broken_by(&self, error: &StoreError) -> bool {
        match error {
            StoreError::NoNode(path) => *path == self.node || *path == self.epoch_path,
            StoreError::BadVersion { path, .. } => *path == self.epoch_path,
            _ => false,
        }
    }
}

/// A store as a leader uses it: every write carries the fence, so none can be forgotten.
pub struct FencedStore {
    store: Arc<dyn MetaStore>,
    fence: Fence,
}

impl std::fmt::Debug for FencedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FencedStore({}, epoch {})", self.store.describe(), self.fence.epoch)
    }
}

impl FencedStore {
    pub fn new(store: Arc<dyn MetaStore>, fence: Fence) -> Self {
        Self { store, fence }
    }

    pub fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl MetaStore for FencedStore {
    fn get(&self, path: &str) -> StoreFuture<Option<Datum>> {
        self.store.get(path)
    }

    fn children(&self, path: &str) -> StoreFuture<Vec<String>> {
        self.store.children(path)
    }

    fn get_all(&self, paths: Vec<String>) -> StoreFuture<Vec<Option<Datum>>> {
        self.store.get_all(paths)
    }

    /// [`StoreError::NotLeader`] when the reign is over: nothing was changed then.
    fn multi(&self, ops: Vec<Op>) -> StoreFuture<Vec<OpResult>> {
        let fenced = self.fence.checks().into_iter().chain(ops).collect();
        let done = self.store.multi(fenced);
        let fence = self.fence.clone();
        Box::pin(async move {
            match done.await {
                Ok(mut results) => Ok(results.split_off(CHECKS.min(results.len()))),
                Err(error) if fence.is_broken_by(&error) => Err(StoreError::NotLeader),
                Err(error) => Err(error),
            }
        })
    }

    fn get_watched(&self, path: &str) -> StoreFuture<(Option<Datum>, Watch)> {
        self.store.get_watched(path)
    }

    fn children_watched(&self, path: &str) -> StoreFuture<(Vec<String>, Watch)> {
        self.store.children_watched(path)
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.store.session()
    }

    fn session_timeout(&self) -> Duration {
        self.store.session_timeout()
    }

    fn describe(&self) -> String {
        self.store.describe()
    }
}
