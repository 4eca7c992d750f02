//! The embedded store: for one meta-server on one machine.
//!
//! The whole tree lies in memory; sled is its durable copy, written before a multi is answered. All calls
//! run in order on a thread of their own. sled's flush is not an fsync (safety-rules.md 4.2), so the files
//! and directories are synced after it. Any failure to write is final.
//!
//! sled answers damage by coming up with less. A marker beside it remembers that something was stored once:
//! an empty tree is then an error and not a new cluster.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{oneshot, watch};

use crate::memory_tree::{MemoryTree, SessionId};
use crate::store::{Datum, MetaStore, Op, OpResult, SessionState, StoreError, StoreFuture, Watch};
use crate::watched_tree::WatchedTree;

/// Calls that may wait for the store's thread. The meta-server has one write and a few reads under way.
const MAX_QUEUED: usize = 1024;
/// sled's page cache. The tree is in memory already; sled only needs room to work.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// The only session that an embedded store ever has.
const SESSION: SessionId = 1;
/// It ends with the process alone: a disk that is slow for some seconds must not depose the only meta-server.
const SESSION_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

const SLED_DIR: &str = "sled";
/// sled's log of everything.
const DATA_FILE: &str = "db";
const MARKER: &str = "was-written";

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// The embedded store of one directory.
#[derive(Debug)]
pub struct SledStore {
    dir: PathBuf,
    jobs: SyncSender<Job>,
    state: watch::Receiver<SessionState>,
}

impl SledStore {
    /// Opens or creates the store. Blocks; takes well under a second for a usual cluster.
    ///
    /// # Errors
    /// The directory cannot be used, another process has it open, or its content is damaged.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let core = Core::open(dir)?;
        let (jobs, queue) = sync_channel::<Job>(MAX_QUEUED);
        let state = core.state.subscribe();
        let run = move || {
            let mut core = core;
            for job in queue {
                job(&mut core);
            }
        };
        thread::Builder::new()
            .name("meta-store".into())
            .spawn(run)
            .map_err(|error| StoreError::Failed(format!("no thread for the store: {error}")))?;
        Ok(Self { dir: dir.into(), jobs, state })
    }

    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move |core: &mut Core| {
            // The caller may be gone; what was written stands.
            let _ = sender.send(job(core));
        });
        let gone = || StoreError::Failed("the store's thread is gone".into());
        let sent = self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Unavailable("too many calls wait for the store".into()),
            TrySendError::Disconnected(_) => gone(),
        });
        Box::pin(async move {
            sent?;
            receiver.await.unwrap_or_else(|_| Err(gone()))
        })
    }
}

impl MetaStore for SledStore {
    fn get(&self, path: &str) -> StoreFuture<Option<Datum>> {
        let path = path.to_owned();
        self.run(move |core| core.watched.tree.get(&path))
    }

    fn children(&self, path: &str) -> StoreFuture<Vec<String>> {
        let path = path.to_owned();
        self.run(move |core| core.watched.tree.children(&path))
    }

    fn get_all(&self, paths: Vec<String>) -> StoreFuture<Vec<Option<Datum>>> {
        self.run(move |core| paths.iter().map(|path| core.watched.tree.get(path)).collect())
    }

    fn multi(&self, ops: Vec<Op>) -> StoreFuture<Vec<OpResult>> {
        self.run(move |core| core.multi(&ops))
    }

    fn get_watched(&self, path: &str) -> StoreFuture<(Option<Datum>, Watch)> {
        let path = path.to_owned();
        self.run(move |core| Ok((core.watched.tree.get(&path)?, core.watched.watch_node(&path))))
    }

    fn children_watched(&self, path: &str) -> StoreFuture<(Vec<String>, Watch)> {
        let path = path.to_owned();
        self.run(move |core| Ok((core.watched.tree.children(&path)?, core.watched.watch_children(&path))))
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    fn session_timeout(&self) -> Duration {
        SESSION_TIMEOUT
    }

    fn describe(&self) -> String {
        format!("embedded:{}", self.dir.display())
    }
}

/// What the thread owns.
struct Core {
    dir: PathBuf,
    /// The marker is there.
    marked: bool,
    synced: Synced,
    /// Kept for its lock on the directory.
    _db: sled::Db,
    nodes: sled::Tree,
    watched: WatchedTree,
    failed: Option<String>,
    state: watch::Sender<SessionState>,
}

/// A store that was just dropped, here or by a process that ends, keeps its lock until sled's own threads have ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

fn open_unlocked(config: &sled::Config) -> sled::Result<sled::Db> {
    let begun = Instant::now();
    loop {
        match config.open() {
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock")
                    && begun.elapsed() < LOCK_PATIENCE =>
            {
                thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

impl Core {
    fn open(dir: &Path) -> Result<Self, StoreError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            StoreError::Failed(format!("{what} {}: {error}", dir.display()))
        };
        fs::create_dir_all(dir).map_err(|error| failed("cannot create", &error))?;
        let config = sled::Config::new()
            .path(dir.join(SLED_DIR))
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // Written when a multi is answered, by hand.
            .flush_every_ms(None);
        let db = open_unlocked(&config)
            .map_err(|error| failed("cannot open (another process may have it open)", &error))?;
        let nodes = db.open_tree("nodes").map_err(|error| failed("cannot open", &error))?;
        let mut tree = MemoryTree::default();
        for entry in nodes.iter() {
            let (path, record) = entry.map_err(|error| failed("cannot read", &error))?;
            let good = std::str::from_utf8(&path).is_ok_and(|path| tree.restore(path, &record));
            if !good {
                return Err(failed("damaged", &format!("record {}", String::from_utf8_lossy(&path))));
            }
        }
        let marked = dir.join(MARKER).exists();
        if marked && tree.is_empty() {
            return Err(failed("damaged", &"metadata was stored here and is gone; restore a copy"));
        }
        let mut core = Self {
            dir: dir.into(),
            marked,
            synced: Synced::default(),
            _db: db,
            nodes,
            watched: WatchedTree::of(tree),
            failed: None,
            state: watch::Sender::new(SessionState::Connected),
        };
        core.sync().map_err(|error| failed("cannot sync", &error))?;
        Ok(core)
    }

    fn multi(&mut self, ops: &[Op]) -> Result<Vec<OpResult>, StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::Failed(why.clone()));
        }
        let plan = self.watched.tree.plan(SESSION, ops)?;
        let mut batch = sled::Batch::default();
        for (path, record) in plan.records() {
            match record {
                Some(record) => batch.insert(path, record),
                None => batch.remove(path),
            }
        }
        let mut written = Ok(());
        // Conditions alone write nothing.
        if plan.records().next().is_some() {
            written = self.nodes.apply_batch(batch).map_err(io::Error::from).and_then(|()| self.sync());
        }
        if let Err(error) = written {
            // A later success would prove nothing about this write (safety-rules.md 2.8).
            let why = format!("cannot write {}: {error}", self.dir.display());
            tracing::error!("metadata store: {why}; no more is written until a restart");
            self.failed = Some(why.clone());
            self.state.send_replace(SessionState::Over);
            return Err(StoreError::OutcomeUnknown(why));
        }
        let (results, changed) = self.watched.tree.commit(plan);
        self.watched.fire(&changed);
        Ok(results)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.nodes.flush().map_err(io::Error::from)?;
        self.synced.sync(&self.dir.join(SLED_DIR))?;
        if !self.marked && !self.nodes.is_empty() {
            // After the content is durable, so that a crash in between leaves no marker of nothing.
            fs::write(self.dir.join(MARKER), b"the metadata of a cluster is stored beside this file\n")?;
            self.synced.sync(&self.dir)?;
            self.marked = true;
        }
        Ok(())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.state.send_replace(SessionState::Over);
    }
}

/// Syncs what has changed below a directory since the last time: files, and directories with new entries.
#[derive(Debug, Default)]
struct Synced(BTreeMap<PathBuf, Stamp>);

/// What a write changes of a file: size and time of change.
type Stamp = (u64, Option<SystemTime>);

impl Synced {
    fn sync(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => self.sync(&path)?,
                Ok(meta) => self.sync_changed(path, &meta)?,
                // sled replaces its snapshot files now and then.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Last: a directory's entry must not be durable before what it names.
        self.sync_changed(dir.into(), &fs::metadata(dir)?)
    }

    fn sync_changed(&mut self, path: PathBuf, meta: &fs::Metadata) -> io::Result<()> {
        let stamp = (meta.len(), meta.modified().ok());
        // The data file changes with every write, perhaps within one tick of the file system's clock.
        if self.0.get(&path) != Some(&stamp) || path.ends_with(DATA_FILE) {
            match File::open(&path) {
                Ok(file) => file.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            self.0.insert(path, stamp);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Mode;

    fn open(dir: &Path) -> SledStore {
        // The thread of a store that was just dropped may still hold the lock for a moment.
        for _ in 0..100 {
            match SledStore::open(dir) {
                Ok(store) => return store,
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        SledStore::open(dir).unwrap()
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store: &dyn MetaStore = &open(dir.path());
            store.ensure_path("/c/apps").await.unwrap();
            store.create("/c/apps/1", "one".into()).await.unwrap();
            assert_eq!(store.set("/c/apps/1", "uno".into(), 0).await, Ok(1));
            let both = vec![Op::create("/c/apps/2", "two"), Op::set("/c/apps/1", "x", 7)];
            assert!(matches!(store.multi(both).await, Err(StoreError::BadVersion { .. })));
            let e = Op::Create { path: "/c/e".into(), bytes: "me".into(), mode: Mode::Ephemeral };
            store.multi(vec![e]).await.unwrap();
            store.create("/c/gone", "".into()).await.unwrap();
            store.delete("/c/gone", Some(0)).await.unwrap();
        }
        let store: &dyn MetaStore = &open(dir.path());
        let one = store.get("/c/apps/1").await.unwrap().unwrap();
        assert_eq!((&one.bytes[..], one.version), (&b"uno"[..], 1));
        assert_eq!(store.children("/c/apps").await.unwrap(), ["1"]);
        assert_eq!(store.children("/c").await.unwrap(), ["apps"], "ephemeral and deleted are gone");
        let both = vec!["/c/apps/1".into(), "/c/apps/9".into()];
        let all = store.get_all(both).await.unwrap();
        assert!(all[0].is_some() && all[1].is_none());
    }

    #[tokio::test]
    async fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        assert!(matches!(SledStore::open(dir.path()), Err(StoreError::Failed(_))));
        // One that is just being closed is waited for.
        let closing = thread::spawn(move || {
            thread::sleep(LOCK_PATIENCE / 8);
            drop(first);
        });
        SledStore::open(dir.path()).unwrap();
        closing.join().unwrap();
    }

    #[tokio::test]
    async fn calls_run_in_the_order_in_which_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let create = store.multi(vec![Op::create("/a", "1")]);
        let set = store.multi(vec![Op::set("/a", "2", 0)]);
        let got = store.get("/a").await.unwrap().unwrap();
        assert_eq!((&got.bytes[..], got.version), (&b"2"[..], 1));
        assert!(create.await.is_ok() && set.await.is_ok());
    }

    #[tokio::test]
    async fn a_damaged_directory_is_an_error_not_an_empty_store() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store: &dyn MetaStore = &open(dir.path());
            store.create("/a", "1".into()).await.unwrap();
        }
        drop(open(dir.path()));
        thread::sleep(std::time::Duration::from_millis(100));
        fs::remove_dir_all(dir.path().join(SLED_DIR)).unwrap();
        let error = SledStore::open(dir.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Failed(why) if why.contains("is gone")), "{error}");
    }
}
