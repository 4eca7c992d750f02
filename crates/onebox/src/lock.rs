//! Keeps two commands from working on one directory at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// An flock: released when dropped, or when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    pub(crate) const FILE: &str = "lock";

    /// Creates `dir`; waits, after telling so, while another command has the lock.
    pub fn take(dir: &Path, waiting: impl Fn()) -> Result<Self> {
        let path = dir.join(Self::FILE);
        loop {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
            let file = match File::options().create(true).truncate(false).write(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // removed in between
                file => file.with_context(|| format!("open {}", path.display()))?,
            };
            if file.try_lock().is_err() {
                waiting();
                file.lock().with_context(|| format!("lock {}", path.display()))?;
            }
            // Whoever had it may have removed the directory: then this file is nobody's lock any more.
            let same = |now: fs::Metadata| file.metadata().is_ok_and(|had| had.ino() == now.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(Self { file, path });
            }
        }
    }

    /// Removes the lock's file, and the directory when nothing else is in it.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))?;
        if let Some(dir) = self.path.parent() {
            // Not empty: somebody else's files, or another command that has come in already.
            let _ = fs::remove_dir(dir);
        }
        drop(self.file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::thread;

    use super::*;

    #[test]
    fn one_at_a_time_also_when_the_directory_goes_away() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("onebox");
        let (inside, done, waited) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let told = || _ = waited.fetch_add(1, SeqCst);
                    let lock = Lock::take(&dir, told).unwrap();
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two inside");
                    thread::sleep(std::time::Duration::from_millis(3));
                    inside.fetch_sub(1, SeqCst);
                    lock.remove().unwrap();
                    done.fetch_add(1, SeqCst);
                });
            }
        });
        assert_eq!(done.load(SeqCst), 8);
        assert!(waited.load(SeqCst) > 0 && !dir.exists());
    }
}
