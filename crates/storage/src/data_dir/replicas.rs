//! Directories of replicas: made, found, set aside.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pegasus_types::Gpid;

use super::DataDir;
use crate::replica_meta::{ReplicaMeta, SmallFileError};
use crate::small_file::sync_dir;

const SUFFIX: &str = ".pegasus";
const GARBAGE: &str = ".gar";
const QUARANTINE: &str = ".err";
const UNFINISHED: &str = ".tmp";

/// Where a replica keeps its engine's files.
pub fn engine_dir(replica_dir: &Path) -> PathBuf {
    replica_dir.join("data")
}

/// A replica on disk.
#[derive(Debug)]
pub struct FoundReplica {
    pub gpid: Gpid,
    pub path: PathBuf,
    /// Damaged, or none = to be quarantined.
    pub meta: Result<Option<ReplicaMeta>, SmallFileError>,
}

pub(super) fn reps_dir(dir: &Path) -> PathBuf {
    dir.join("replica").join("reps")
}

/// Whether anything is there, be it garbage.
pub(super) fn any(dir: &Path) -> bool {
    fs::read_dir(reps_dir(dir)).is_ok_and(|mut entries| entries.next().is_some())
}

/// Why a replica here cannot be understood by this program although it is whole.
pub(super) fn of_later_release(dir: &Path) -> Option<SmallFileError> {
    let reps = reps_dir(dir);
    // What cannot be read is dealt with when it is opened.
    let names = names(&reps).unwrap_or_default();
    let metas =
        names.iter().filter(|name| name.ends_with(SUFFIX)).map(|name| ReplicaMeta::load(&reps.join(name)));
    metas.filter_map(Result::err).find(|error| matches!(error, SmallFileError::TooNew { .. }))
}

/// Makes the directory of replicas; clears away what a crash left of making one.
pub(super) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    let reps = reps_dir(dir);
    fs::create_dir_all(&reps)?;
    for name in names(&reps)? {
        if name.ends_with(UNFINISHED) {
            fs::remove_dir_all(reps.join(name))?;
        }
    }
    Ok(())
}

fn names(reps: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(reps)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Of `<name>.<unix microseconds><suffix>`, when it was set aside.
fn set_aside_us(name: &str, suffix: &str) -> Option<u64> {
    name.strip_suffix(suffix)?.rsplit_once('.')?.1.parse().ok()
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl DataDir {
    /// Where `gpid`'s replica is, or would be.
    pub fn replica_dir(&self, gpid: Gpid) -> PathBuf {
        reps_dir(self.path()).join(format!("{gpid}{SUFFIX}"))
    }

    /// All replicas, without those set aside.
    pub fn replicas(&self) -> io::Result<Vec<FoundReplica>> {
        let reps = reps_dir(self.path());
        let found = names(&reps)?.into_iter().filter_map(|name| {
            let gpid: Gpid = name.strip_suffix(SUFFIX)?.parse().ok()?;
            let path = reps.join(name);
            Some(FoundReplica { gpid, meta: ReplicaMeta::load(&path), path })
        });
        Ok(found.collect())
    }

    pub fn replica_count(&self) -> io::Result<usize> {
        Ok(names(&reps_dir(self.path()))?.iter().filter(|name| name.ends_with(SUFFIX)).count())
    }

    /// Makes an empty replica with its meta file; it is there as a whole or not at all. Only where the
    /// configuration allows one (safety-rules.md 4.3).
    ///
    /// # Errors
    /// `AlreadyExists` when there is one.
    pub fn create_replica(&self, meta: &ReplicaMeta) -> Result<PathBuf, SmallFileError> {
        let path = self.replica_dir(meta.config.gpid);
        let io_error = |source| SmallFileError::Io { path: path.display().to_string(), source };
        if path.exists() {
            return Err(io_error(io::ErrorKind::AlreadyExists.into()));
        }
        let mut unfinished = path.clone().into_os_string();
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(io_error)?;
        }
        fs::create_dir(&unfinished).map_err(io_error)?;
        meta.save(&unfinished)?;
        fs::rename(&unfinished, &path).map_err(io_error)?;
        sync_dir(&reps_dir(self.path())).map_err(io_error)?;
        Ok(path)
    }

    /// Nobody wants this replica any more. Its engine must be dropped before; the space comes back with
    /// [`Self::remove_set_aside`].
    pub fn discard(&self, gpid: Gpid) -> io::Result<PathBuf> {
        self.set_aside(gpid, GARBAGE)
    }

    /// This replica is damaged: out of the way, for somebody to look at.
    pub fn quarantine(&self, gpid: Gpid) -> io::Result<PathBuf> {
        self.set_aside(gpid, QUARANTINE)
    }

    fn set_aside(&self, gpid: Gpid, suffix: &str) -> io::Result<PathBuf> {
        let reps = reps_dir(self.path());
        let to = reps.join(format!("{gpid}{SUFFIX}.{}{suffix}", now_us()));
        fs::rename(self.replica_dir(gpid), &to)?;
        sync_dir(&reps)?;
        Ok(to)
    }

    /// Removes garbage and quarantine that was set aside so long ago; returns how many directories. Takes as long as the
    /// disk needs: for a thread that may wait.
    pub fn remove_set_aside(&self, garbage_after: Duration, quarantine_after: Duration) -> io::Result<usize> {
        let reps = reps_dir(self.path());
        let mut removed = 0;
        for name in names(&reps)? {
            let is_old = |suffix, after: Duration| {
                set_aside_us(&name, suffix)
                    .is_some_and(|at| u128::from(now_us().saturating_sub(at)) >= after.as_micros())
            };
            if is_old(GARBAGE, garbage_after) || is_old(QUARANTINE, quarantine_after) {
                fs::remove_dir_all(reps.join(&name))?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
