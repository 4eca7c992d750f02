//! A disk that is soon full: a tmpfs of its own. Tests of other crates that need one include this file.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

#[derive(Debug)]
pub struct SmallDisk {
    _root: tempfile::TempDir,
    pub path: PathBuf,
}

impl SmallDisk {
    /// Needs root.
    pub fn mount(bytes: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        fs::create_dir(&path).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "pegasus-test"])
            .arg(&path)
            .output();
        match mount {
            Ok(out) if out.status.success() => Self { _root: root, path },
            Ok(out) => panic!(
                "this test needs a small disk of its own and cannot mount a tmpfs; run it as root (or in a container \
                 with CAP_SYS_ADMIN): {}",
                String::from_utf8_lossy(&out.stderr)
            ),
            Err(e) => panic!("this test needs the program `mount`: {e}"),
        }
    }

    pub fn fill(&self, name: &str, bytes: u64) {
        let mut file = File::create(self.path.join(name)).unwrap();
        let block = vec![1; 64 << 10];
        for _ in 0..bytes / block.len() as u64 {
            file.write_all(&block).unwrap();
        }
    }

    /// Leaves no room at all.
    pub fn fill_up(&self) {
        let mut file = File::options().append(true).create(true).open(self.path.join("filler")).unwrap();
        while file.write_all(&[1; 4 << 10]).is_ok() {}
    }

    pub fn available(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !std::thread::panicking() {
            assert!(unmounted.unwrap().success());
        }
    }
}
