//! The trait.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

/// Of a node's data: 0 when created, one more with each set.
pub type Version = i32;

/// Bytes of one node at most; ZooKeeper breaks the connection a little above 1 MB (crates.md 2.3).
pub const MAX_NODE_BYTES: usize = 900 * 1024;
/// Bytes of one multi at most, paths included; callers split what is larger.
pub const MAX_MULTI_BYTES: usize = 500 * 1024;
/// Operations of one multi, where there are many.
const MULTI_OPS: usize = 2000;

/// As Pegasus's template has it; stores without sessions of their own name it, too.
pub const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Data of a node with the version that a conditional write must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datum {
    pub bytes: Bytes,
    pub version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Persistent,
    /// Ends with the session.
    Ephemeral,
    /// Ephemeral, its name continued by a ten-digit number that grows within the parent.
    EphemeralSequential,
}

/// One operation. `version: None` = whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        path: String,
        bytes: Bytes,
        mode: Mode,
    },
    Set {
        path: String,
        bytes: Bytes,
        version: Option<Version>,
    },
    Delete {
        path: String,
        version: Option<Version>,
    },
    /// The node exists at this version: a fence or a condition for the others.
    Check {
        path: String,
        version: Option<Version>,
    },
}

impl Op {
    pub fn create(path: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        Self::Create { path: path.into(), bytes: bytes.into(), mode: Mode::Persistent }
    }

    pub fn set(path: impl Into<String>, bytes: impl Into<Bytes>, version: Version) -> Self {
        Self::Set { path: path.into(), bytes: bytes.into(), version: Some(version) }
    }

    pub fn path(&self) -> &str {
        match self {
            Self::Create { path, .. }
            | Self::Set { path, .. }
            | Self::Delete { path, .. }
            | Self::Check { path, .. } => path,
        }
    }

    pub fn bytes_len(&self) -> usize {
        let data = match self {
            Self::Create { bytes, .. } | Self::Set { bytes, .. } => bytes.len(),
            Self::Delete { .. } | Self::Check { .. } => 0,
        };
        self.path().len() + data
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// The path as created (with its number, for sequential nodes).
    Created(String),
    /// The version after the set.
    Set(Version),
    Deleted,
    Checked,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{0} does not exist")]
    NoNode(String),
    #[error("{0} exists")]
    NodeExists(String),
    #[error("{path} does not have version {wanted}")]
    BadVersion { path: String, wanted: Version },
    #[error("{0} has children")]
    NotEmpty(String),
    #[error("{0} is ephemeral: it takes no children")]
    NoChildren(String),
    #[error(
        "{0}: this user may not do that; see the access control list of the node and the user configured here"
    )]
    Denied(String),
    #[error("{0:?} is no path: /a/b")]
    BadPath(String),
    #[error("{path}: {bytes} bytes are more than the store takes")]
    TooLarge { path: String, bytes: usize },
    /// Nothing was changed.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// It may have been done or not: read again before anything else.
    #[error("the store did not answer: {0}")]
    OutcomeUnknown(String),
    /// Nothing was changed: this process does not lead (any more). Only from a [`crate::election::FencedStore`].
    #[error("not the leader any more")]
    NotLeader,
    /// This process is no longer known to the store; a new store object is needed.
    #[error("the session with the store is over")]
    SessionOver,
    /// Final: what was acknowledged before stands, nothing more is.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// State of the session, as far as this process can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    Connected,
    /// Not in contact: the session may end any moment. A leader acts on this, with its own clock.
    Disconnected,
    /// Final.
    Over,
}

pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Resolves once, when the data or the list of children that was read changes, or when the session ends.
#[derive(Debug)]
pub struct Watch(pub(crate) oneshot::Receiver<()>);

impl Watch {
    pub async fn changed(self) {
        // A dropped sender means that the store is gone: read again, too.
        let _ = self.0.await;
    }
}

/// A metadata store as one session sees it. Calls are carried out in the order in which they were made,
/// whether or not their futures are polled.
pub trait MetaStore: Send + Sync {
    /// None = no such node.
    fn get(&self, path: &str) -> StoreFuture<Option<Datum>>;
    /// Names (not paths) of the children, sorted.
    fn children(&self, path: &str) -> StoreFuture<Vec<String>>;
    /// Several gets, for loading: pipelined where the store can.
    fn get_all(&self, paths: Vec<String>) -> StoreFuture<Vec<Option<Datum>>>;
    /// All or nothing. On an error that names a condition nothing was changed.
    fn multi(&self, ops: Vec<Op>) -> StoreFuture<Vec<OpResult>>;
    /// [`MetaStore::get`], and a watch on the node (also on its creation).
    fn get_watched(&self, path: &str) -> StoreFuture<(Option<Datum>, Watch)>;
    /// [`MetaStore::children`], and a watch on the list.
    fn children_watched(&self, path: &str) -> StoreFuture<(Vec<String>, Watch)>;
    fn session(&self) -> watch::Receiver<SessionState>;
    /// The store forgets this session, and with it its ephemeral nodes, when it has heard nothing for this long.
    fn session_timeout(&self) -> Duration;
    /// For operators: where it is, e.g. the ZooKeeper hosts.
    fn describe(&self) -> String;
}

impl dyn MetaStore + '_ {
    pub async fn create(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.multi(vec![Op::create(path, bytes)]).await.map(drop)
    }

    pub async fn set(&self, path: &str, bytes: Bytes, version: Version) -> Result<Version, StoreError> {
        match self.multi(vec![Op::set(path, bytes, version)]).await?.as_slice() {
            [OpResult::Set(version)] => Ok(*version),
            other => Err(StoreError::Failed(format!("a set was answered with {other:?}"))),
        }
    }

    pub async fn delete(&self, path: &str, version: Option<Version>) -> Result<(), StoreError> {
        self.multi(vec![Op::Delete { path: path.into(), version }]).await.map(drop)
    }

    /// Creates a node and its missing parents, with empty data; nothing when it exists.
    pub async fn ensure_path(&self, path: &str) -> Result<(), StoreError> {
        let ends = path.match_indices('/').skip(1).map(|(i, _)| i).chain([path.len()]);
        for end in ends {
            match self.create(&path[..end], Bytes::new()).await {
                Ok(()) | Err(StoreError::NodeExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Cuts operations into multis that every store takes, keeping their order. What one multi holds happens at once.
pub fn multis(ops: impl IntoIterator<Item = Op>) -> Vec<Vec<Op>> {
    let mut multis: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        bytes += op.bytes_len();
        match multis.last_mut() {
            Some(multi) if bytes <= MAX_MULTI_BYTES && multi.len() < MULTI_OPS => multi.push(op),
            _ => {
                bytes = op.bytes_len();
                multis.push(vec![op]);
            }
        }
    }
    multis
}

/// Checks a path: absolute, no empty component, not the root itself.
pub(crate) fn check_path(path: &str) -> Result<(), StoreError> {
    let good = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !part.is_empty()));
    if good { Ok(()) } else { Err(StoreError::BadPath(path.into())) }
}

/// The limits that hold for every store, so that what works embedded works in ZooKeeper.
pub(crate) fn check_ops(ops: &[Op]) -> Result<(), StoreError> {
    let mut total = 0;
    for op in ops {
        check_path(op.path())?;
        // Conditions do not count: callers cut by what they write, and fences come on top of it.
        let bytes = if matches!(op, Op::Check { .. }) { 0 } else { op.bytes_len() };
        total += bytes;
        if bytes > MAX_NODE_BYTES || (ops.len() > 1 && total > MAX_MULTI_BYTES) {
            return Err(StoreError::TooLarge { path: op.path().into(), bytes: total });
        }
    }
    Ok(())
}
