//! Small files that are replaced as a whole: a line that names and checks the content, then JSON.
//!
//! ```text
//! pegasus-<kind> <version> <crc32c of the content, hex> <length of the content>\n
//! { ... }\n
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file that is read back; ours have a few KiB.
const MAX_BYTES: u64 = 4 << 20;

/// Name and version of a kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub version: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum SmallFileError {
    #[error("{path}: {source}")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is damaged: {why}")]
    Damaged { path: String, why: String },
    #[error("{path} has format version {found}; this program knows up to {known}")]
    TooNew { path: String, found: u32, known: u32 },
}

impl SmallFileError {
    /// Space may come back.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> SmallFileError {
    let path = path.display().to_string();
    move |source| SmallFileError::Io { path: path.clone(), source }
}

impl Kind {
    /// Replaces the file: after a crash it is the old or the new one, and once this has returned, the new one.
    pub fn save(self, path: &Path, content: &impl Serialize) -> Result<(), SmallFileError> {
        let mut json =
            serde_json::to_vec_pretty(content).map_err(io::Error::other).map_err(io_error(path))?;
        json.push(b'\n');
        let head =
            format!("pegasus-{} {} {:08x} {}\n", self.name, self.version, crc32c::crc32c(&json), json.len());
        replace(path, &[head.as_bytes(), &json].concat()).map_err(io_error(path))
    }

    /// None when there is no such file.
    pub fn load<T: DeserializeOwned>(self, path: &Path) -> Result<Option<T>, SmallFileError> {
        let too_large = |len| io::Error::new(io::ErrorKind::FileTooLarge, format!("{len} bytes"));
        let read = || match fs::metadata(path)?.len() {
            len if len > MAX_BYTES => Err(too_large(len)),
            _ => fs::read(path),
        };
        let bytes = match read() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error(path))?,
        };
        let damaged =
            |why: &str| SmallFileError::Damaged { path: path.display().to_string(), why: why.to_owned() };
        let head_len = bytes.iter().position(|&b| b == b'\n').ok_or_else(|| damaged("no first line"))?;
        let (head, json) = (&bytes[..head_len], &bytes[head_len + 1..]);
        let head = std::str::from_utf8(head).map_err(|_| damaged("its first line is no text"))?;
        let [name, version, crc, len] = head.split(' ').collect::<Vec<_>>()[..] else {
            return Err(damaged("its first line has not four words"));
        };
        if name.strip_prefix("pegasus-") != Some(self.name) {
            return Err(damaged("it is a file of another kind"));
        }
        let found: u32 = version.parse().map_err(|_| damaged("no version"))?;
        if found > self.version {
            let path = path.display().to_string();
            return Err(SmallFileError::TooNew { path, found, known: self.version });
        }
        if len.parse() != Ok(json.len()) || u32::from_str_radix(crc, 16) != Ok(crc32c::crc32c(json)) {
            return Err(damaged("length or checksum differ"));
        }
        serde_json::from_slice(json).map(Some).map_err(|e| damaged(&e.to_string()))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_dir(parent)
}

/// Makes creations, renames and removals in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { name: "test", version: 2 };

    #[test]
    fn replaces_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(KIND.load::<u32>(&path).unwrap(), None);
        for n in [1u32, 2] {
            KIND.save(&path, &n).unwrap();
            assert_eq!(KIND.load(&path).unwrap(), Some(n));
        }
        // What a crash before the rename leaves behind changes nothing.
        fs::write(dir.path().join("f.tmp"), "half").unwrap();
        assert_eq!(KIND.load(&path).unwrap(), Some(2u32));
        KIND.save(&path, &3u32).unwrap();
        assert_eq!(KIND.load(&path).unwrap(), Some(3u32));
    }

    #[test]
    fn no_damaged_byte_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        KIND.save(&path, &["some", "content"]).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            fs::write(&path, &bad).unwrap();
            let got = KIND.load::<Vec<String>>(&path);
            assert!(got.is_err() || bad[at].eq_ignore_ascii_case(&good[at]), "byte {at}: {got:?}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(KIND.load::<Vec<String>>(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn other_kinds_and_newer_versions_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        Kind { name: "other", version: 1 }.save(&path, &1).unwrap();
        assert!(matches!(KIND.load::<u32>(&path), Err(SmallFileError::Damaged { .. })));
        Kind { version: 3, ..KIND }.save(&path, &1).unwrap();
        assert!(matches!(KIND.load::<u32>(&path), Err(SmallFileError::TooNew { found: 3, known: 2, .. })));
        Kind { version: 1, ..KIND }.save(&path, &1).unwrap();
        assert_eq!(KIND.load(&path).unwrap(), Some(1));
    }
}
