//! Data directories: one per disk, which know whose they are.
//!
//! ```text
//! <dir>/.pegasus-lock                       held while a process uses the directory
//! <dir>/.pegasus-disk                       who it is (marker.rs)
//! <dir>/.pegasus-ballast                    space for the day when the disk is full (ballast.rs)
//! <dir>/replica/log/                        the disk's mutation log
//! <dir>/replica/reps/<app>.<idx>.pegasus/   a replica: .replica-meta, .manual-compact, data/ (replicas.rs)
//! <dir>/replica/reps/<...>.<time>.gar       garbage, removed in the background
//! <dir>/replica/reps/<...>.<time>.err       quarantine, kept for the operator
//! ```
//!
//! A directory whose marker is missing although one was there is a disk that is not mounted: broken, never empty
//! (safety-rules.md 4.3). That one was there is known from replicas that are still in it, or from the markers of
//! the node's other directories, which name it.

mod ballast;
mod marker;
mod replicas;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pegasus_types::Node;

use crate::small_file::SmallFileError;
pub use marker::FORMAT_VERSION;
use marker::Marker;
pub use replicas::{FoundReplica, engine_dir};

const LOCK_FILE: &str = ".pegasus-lock";

/// A directory as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirSpec {
    /// Name of the disk in reports, unique on the node.
    pub tag: String,
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    Normal,
    /// Less room than wanted: no new replicas, no client writes when so configured.
    SpaceInsufficient,
    /// Not to be used until the process starts again; says why.
    Broken(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// For us, without what the file system reserves.
    pub available_bytes: u64,
}

impl Space {
    pub const fn available_percent(self) -> u64 {
        match self.total_bytes {
            0 => 0,
            total => (self.available_bytes as u128 * 100 / total as u128) as u64,
        }
    }
}

/// Reasons not to start: using the directory would destroy or mix up data.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("{path} is in use by another process")]
    Locked { path: String },
    #[error("{path} belongs to node {owner}, this is {me}")]
    OtherNode { path: String, owner: Node, me: Node },
    #[error("{path} belongs to cluster {owner}, this is {me}")]
    OtherCluster { path: String, owner: String, me: String },
    #[error("{first} and {second} are the same disk, or a copy of one")]
    Twice { first: String, second: String },
    /// Each with its reason.
    #[error("no data directory can be used: {0}")]
    NoneUsable(String),
    /// A later release has written here. As damage it would be put aside and learned anew, and what that release has
    /// acknowledged here would be lost.
    #[error(transparent)]
    File(#[from] SmallFileError),
}

/// The data directories of a node.
#[derive(Debug)]
pub struct DataDirs {
    dirs: Vec<DataDir>,
    /// Held while a disk is chosen: each choice counts those before it.
    choosing: Mutex<()>,
}

impl DataDirs {
    /// Opens, and where it is new marks, every directory. What is wrong with one disk makes that one
    /// [`DiskState::Broken`].
    ///
    /// # Errors
    /// Mix-ups: see [`DataDirError`].
    pub fn open(specs: &[DirSpec], node: &Node, min_available_percent: u64) -> Result<Self, DataDirError> {
        let mut dirs = Vec::with_capacity(specs.len());
        for spec in specs {
            dirs.push(DataDir::open(spec.clone(), node, min_available_percent)?);
        }
        for (i, second) in dirs.iter().enumerate() {
            let id = second.disk_id();
            if let Some(first) = dirs[..i].iter().find(|first| id.is_some() && first.disk_id() == id) {
                let (first, second) = (first.name(), second.name());
                return Err(DataDirError::Twice { first, second });
            }
        }
        let dirs = Self { dirs, choosing: Mutex::new(()) };
        dirs.mark(node);
        if dirs.usable().next().is_none() {
            let why = dirs.iter().filter_map(|dir| match dir.state() {
                DiskState::Broken(why) => Some(format!("{}: {why}", dir.path().display())),
                DiskState::Normal | DiskState::SpaceInsufficient => None,
            });
            return Err(DataDirError::NoneUsable(why.collect::<Vec<_>>().join("; ")));
        }
        Ok(dirs)
    }

    /// Gives new directories their marker, and tells every marker of all the others.
    fn mark(&self, node: &Node) {
        let known: BTreeSet<PathBuf> = self
            .dirs
            .iter()
            .filter_map(|d| d.lock_marker().as_ref().map(|m| m.siblings.clone()))
            .flatten()
            .collect();
        let cluster_id = self.cluster_id();
        for dir in &self.dirs {
            if dir.lock_marker().is_none() && known.contains(&dir.spec.path) {
                dir.mark_broken("its marker is missing although it had one: the disk is not mounted");
            }
        }
        // A marker that names another directory promises one there: so all get theirs first, whatever crashes.
        for dir in self.usable().filter(|dir| dir.lock_marker().is_none()) {
            dir.save_marker(Marker::new(node.clone(), cluster_id.clone()));
        }
        let marked = self.dirs.iter().filter(|dir| dir.lock_marker().is_some());
        let marked: BTreeSet<PathBuf> = marked.map(|dir| dir.spec.path.clone()).collect();
        for dir in self.usable() {
            dir.note(|marker| {
                marker.siblings.extend(marked.iter().filter(|path| **path != dir.spec.path).cloned());
            });
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &DataDir> {
        self.dirs.iter()
    }

    pub fn get(&self, tag: &str) -> Option<&DataDir> {
        self.dirs.iter().find(|dir| dir.spec.tag == tag)
    }

    /// Those that are not broken.
    pub fn usable(&self) -> impl Iterator<Item = &DataDir> {
        self.dirs.iter().filter(|dir| !matches!(dir.state(), DiskState::Broken(_)))
    }

    /// The cluster that this node's disks belong to; None before it has met one.
    pub fn cluster_id(&self) -> Option<String> {
        self.dirs.iter().find_map(|dir| dir.lock_marker().as_ref().and_then(|m| m.cluster_id.clone()))
    }

    /// Notes the cluster in every marker, once and for all.
    ///
    /// # Errors
    /// [`DataDirError::OtherCluster`] when a disk belongs to another one: nothing may be served then.
    pub fn bind_cluster(&self, cluster_id: &str) -> Result<(), DataDirError> {
        for dir in &self.dirs {
            if let Some(owner) = dir.lock_marker().as_ref().and_then(|m| m.cluster_id.clone())
                && owner != cluster_id
            {
                return Err(DataDirError::OtherCluster {
                    path: dir.name(),
                    owner,
                    me: cluster_id.to_owned(),
                });
            }
        }
        for dir in self.usable() {
            let mut marker = dir.lock_marker();
            let Some(marker) = &mut *marker else { continue };
            if marker.cluster_id.is_none() {
                let next = Marker { cluster_id: Some(cluster_id.to_owned()), ..marker.clone() };
                next.save(&dir.spec.path)?;
                *marker = next;
            }
        }
        Ok(())
    }

    /// To be called before anything is acknowledged that is not synced.
    pub fn note_unsynced(&self) {
        for dir in self.usable() {
            dir.must_note(|marker| marker.unsynced = true);
        }
    }

    /// What [`DataDir::lost_power_unsynced`] means for each replica has been dealt with, durably: from here on this
    /// boot of the machine counts as the last one. Not before, or a second start after a power cut would trust what
    /// the first one had no time to look at.
    pub fn note_boot(&self, unsynced: bool) {
        for dir in self.usable() {
            dir.note(|marker| (marker.boot_id, marker.unsynced) = (marker::boot_id(), unsynced));
        }
    }

    /// Where a new replica goes: a normal disk with the fewest replicas, of those the one with most room.
    fn place(&self) -> Option<&DataDir> {
        self.dirs.iter().filter(|dir| dir.state() == DiskState::Normal).min_by_key(|dir| {
            let replicas = dir.replica_count().unwrap_or(usize::MAX);
            let replicas = replicas.saturating_add(dir.making.load(Ordering::Relaxed));
            (replicas, std::cmp::Reverse(dir.space().available_bytes))
        })
    }

    /// Makes a new replica on the disk that suits best. Many are made at a time, as when a table is created: while one
    /// is being made its disk counts one more. None = no disk takes any.
    pub fn place_new<T>(&self, make: impl FnOnce(&DataDir) -> T) -> Option<T> {
        let dir = {
            let _alone = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
            let dir = self.place()?;
            dir.making.fetch_add(1, Ordering::Relaxed);
            dir
        };
        let _counted = Counted(&dir.making);
        Some(make(dir))
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One data directory.
#[derive(Debug)]
pub struct DataDir {
    spec: DirSpec,
    /// Replicas that are being made here.
    making: AtomicUsize,
    min_available_percent: u64,
    /// None while broken at start.
    _lock: Option<File>,
    marker: Mutex<Option<Marker>>,
    /// Boot of the machine in which the directory was last used, and how.
    last_boot_id: Option<String>,
    last_unsynced: bool,
    disk: Mutex<(DiskState, Space)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is a single assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DataDir {
    fn open(spec: DirSpec, node: &Node, min_available_percent: u64) -> Result<Self, DataDirError> {
        let path = spec.path.display().to_string();
        let broken = |why: String| Self {
            spec: spec.clone(),
            making: AtomicUsize::new(0),
            min_available_percent,
            _lock: None,
            marker: Mutex::new(None),
            last_boot_id: None,
            last_unsynced: false,
            disk: Mutex::new((DiskState::Broken(why), Space::default())),
        };
        let lock = match take_lock(&spec.path) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => return Err(DataDirError::Locked { path }),
            Err(TryLockError::Error(e)) => return Ok(broken(e.to_string())),
        };
        let marker = match Marker::load(&spec.path) {
            Ok(marker) => marker,
            Err(e @ SmallFileError::TooNew { .. }) => return Err(e.into()),
            Err(e) => return Ok(broken(e.to_string())),
        };
        match &marker {
            Some(marker) if marker.node != *node => {
                return Err(DataDirError::OtherNode { path, owner: marker.node.clone(), me: node.clone() });
            }
            Some(_) => (),
            None if replicas::any(&spec.path) => {
                return Ok(broken("it holds replicas but has no marker".to_owned()));
            }
            None => (),
        }
        if let Some(newer) = replicas::of_later_release(&spec.path) {
            return Err(newer.into());
        }
        if let Err(e) = replicas::remove_unfinished(&spec.path) {
            return Ok(broken(e.to_string()));
        }
        let dir = Self {
            spec,
            making: AtomicUsize::new(0),
            min_available_percent,
            _lock: Some(lock),
            last_boot_id: marker.as_ref().and_then(|m| m.boot_id.clone()),
            last_unsynced: marker.as_ref().is_some_and(|m| m.unsynced),
            marker: Mutex::new(marker),
            disk: Mutex::new((DiskState::Normal, Space::default())),
        };
        dir.refresh();
        // The marker will want some space.
        if let Err(error) = ballast::give_up_if_needed(&dir.spec.path, dir.space()) {
            tracing::warn!(disk = %dir.spec.tag, %error, "the ballast of a full disk cannot be given up");
        }
        Ok(dir)
    }

    pub fn tag(&self) -> &str {
        &self.spec.tag
    }

    pub fn path(&self) -> &Path {
        &self.spec.path
    }

    /// Directory of the disk's mutation log.
    pub fn log_dir(&self) -> PathBuf {
        self.spec.path.join("replica").join("log")
    }

    /// The log that was made here, as [`Self::note_log`] was told.
    pub fn log_id(&self) -> Option<u64> {
        self.lock_marker().as_ref().and_then(|marker| marker.log_id)
    }

    /// Whether anything of a replica is here, be it garbage: then there must be a log, too.
    pub fn has_replicas(&self) -> bool {
        replicas::any(&self.spec.path)
    }

    /// To be called when the log is there, durably, and before the first replica is made.
    pub fn note_log(&self, log_id: u64) {
        self.must_note(|marker| marker.log_id = Some(log_id));
    }

    /// Random, made when the directory was first used. None while it is broken.
    pub fn disk_id(&self) -> Option<u64> {
        self.lock_marker().as_ref().map(|marker| marker.disk_id)
    }

    /// Whether the machine has started anew since the directory was last used: what was only in the page cache
    /// may be lost then. True when that cannot be told.
    pub fn rebooted(&self) -> bool {
        self.last_boot_id.is_none() || self.last_boot_id != marker::boot_id()
    }

    /// Acknowledged writes may be missing here.
    pub fn lost_power_unsynced(&self) -> bool {
        self.last_unsynced && self.rebooted()
    }

    pub fn state(&self) -> DiskState {
        lock(&self.disk).0.clone()
    }

    /// As of the last [`Self::refresh`].
    pub fn space(&self) -> Space {
        lock(&self.disk).1
    }

    /// The disk has failed: for good, as far as this process goes (safety-rules.md 2.8).
    pub fn mark_broken(&self, why: &str) {
        let mut disk = lock(&self.disk);
        if !matches!(disk.0, DiskState::Broken(_)) {
            tracing::error!(disk = %self.spec.tag, path = %self.spec.path.display(), why, "disk is broken");
            disk.0 = DiskState::Broken(why.to_owned());
        }
    }

    /// Looks at the disk's free space, and whether it is still there. Cheap; to be called every few seconds.
    pub fn refresh(&self) -> DiskState {
        match measure(&self.spec.path) {
            Ok(space) => {
                let mut disk = lock(&self.disk);
                disk.1 = space;
                if !matches!(disk.0, DiskState::Broken(_)) {
                    disk.0 = if space.available_percent() < self.min_available_percent {
                        DiskState::SpaceInsufficient
                    } else {
                        DiskState::Normal
                    };
                }
            }
            Err(e) => self.mark_broken(&e.to_string()),
        }
        self.state()
    }

    /// Keeps some space back, as of the last [`Self::refresh`]: returns what the log has to leave to others, 0 as long as
    /// that is held by a file. To be called as often.
    pub fn keep_ballast(&self) -> u64 {
        // Nothing is put where a disk should be.
        if matches!(self.state(), DiskState::Broken(_)) || !marker::is_there(&self.spec.path) {
            return 0;
        }
        let space = self.space();
        match ballast::keep(&self.spec.path, space) {
            Ok(true) => 0,
            Ok(false) => ballast::size(space.total_bytes),
            // Of a file system that cannot reserve space.
            Err(error) => {
                tracing::debug!(disk = %self.spec.tag, %error, "no ballast");
                0
            }
        }
    }

    fn name(&self) -> String {
        self.spec.path.display().to_string()
    }

    /// A disk on which that fails is broken.
    fn save_marker(&self, next: Marker) {
        match next.save(&self.spec.path) {
            Ok(()) => *self.lock_marker() = Some(next),
            Err(e) => self.mark_broken(&e.to_string()),
        }
    }

    /// What has to be on disk before anything else happens there: a disk on which that fails is broken.
    fn must_note(&self, edit: impl FnOnce(&mut Marker)) {
        if let Err(e) = self.edit_marker(edit) {
            self.mark_broken(&e.to_string());
        }
    }

    /// What the next start notes as well. Replicas on a full disk are sound, and to add another one to it is what its
    /// operator does: neither takes it out.
    fn note(&self, edit: impl FnOnce(&mut Marker)) {
        match self.edit_marker(edit) {
            Ok(()) => {}
            Err(e) if e.is_full() => {
                tracing::warn!(disk = %self.spec.tag, error = %e, "a full disk's marker stays as it is")
            }
            Err(e) => self.mark_broken(&e.to_string()),
        }
    }

    fn edit_marker(&self, edit: impl FnOnce(&mut Marker)) -> Result<(), SmallFileError> {
        let mut marker = self.lock_marker();
        let Some(mut next) = marker.clone() else { return Ok(()) };
        edit(&mut next);
        if marker.as_ref() != Some(&next) {
            next.save(&self.spec.path)?;
            *marker = Some(next);
        }
        Ok(())
    }

    fn lock_marker(&self) -> MutexGuard<'_, Option<Marker>> {
        lock(&self.marker)
    }
}

fn take_lock(path: &Path) -> Result<File, TryLockError> {
    let open = || {
        fs::create_dir_all(path)?;
        File::create(path.join(LOCK_FILE))
    };
    let file = open().map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

fn measure(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

#[cfg(test)]
mod tests;
