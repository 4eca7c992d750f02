//! Disks that an operator has taken out of use: a file with one path per line (operations.md D12).

use std::io;
use std::path::{Path, PathBuf};

/// The paths of the file; none when it does not exist. Blank lines are skipped.
///
/// # Errors
/// When the file is there and cannot be read: going on would use a disk that somebody has ruled out.
pub fn read(file: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(paths(&text)),
        // Neither is there one in a directory that does not exist, or is none.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn paths(text: &str) -> Vec<PathBuf> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// The entry that rules the directory out: the directory itself, or one that it lies in.
pub fn entry_for<'a>(listed: &'a [PathBuf], directory: &Path) -> Option<&'a Path> {
    listed.iter().map(PathBuf::as_path).find(|entry| directory.starts_with(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_path_components() {
        let listed = paths("/data/ssd1\n\n  /data/ssd3/ \r\n\t\n");
        for (directory, by) in [
            ("/data/ssd1", Some("/data/ssd1")),
            ("/data/ssd1/pegasus", Some("/data/ssd1")),
            ("/data/ssd11", None),
            ("/data/ssd2", None),
            ("/data/ssd3", Some("/data/ssd3/")),
            ("/data", None),
        ] {
            assert_eq!(entry_for(&listed, Path::new(directory)), by.map(Path::new), "{directory}");
        }
    }

    #[test]
    fn no_file_rules_nothing_out_and_an_unreadable_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        assert_eq!(read(&file).unwrap(), [""; 0].map(PathBuf::from));
        std::fs::write(&file, "/a\n").unwrap();
        assert_eq!(read(&file).unwrap(), [PathBuf::from("/a")]);
        assert!(read(dir.path()).is_err(), "a directory");
    }
}
