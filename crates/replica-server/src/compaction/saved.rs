//! What a replica remembers of its compactions across restarts: a small file beside its meta file.

use std::path::Path;

use pegasus_storage::small_file::{Kind, SmallFileError};
use serde::{Deserialize, Serialize};

const KIND: Kind = Kind { name: "manual-compact", version: 1 };
const FILE_NAME: &str = ".manual-compact";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Unix milliseconds; 0 = never.
    pub finished_ms: u64,
    pub used_ms: u64,
    /// Latest `manual_compact.once.trigger_time` that was obeyed.
    pub once_s: u64,
}

impl Saved {
    /// Of the replica in `dir`. What cannot be read counts as never done: the worst that follows is one compaction more.
    pub fn load(dir: &Path) -> Self {
        match KIND.load(&dir.join(FILE_NAME)) {
            Ok(saved) => saved.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "when it was compacted is not known, so it counts as never");
                Self::default()
            }
        }
    }

    pub fn save(&self, dir: &Path) -> Result<(), SmallFileError> {
        KIND.save(&dir.join(FILE_NAME), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_restarts_and_a_torn_file_counts_as_never() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Saved::load(dir.path()), Saved::default());
        let saved = Saved { finished_ms: 1_795_651_200_123, used_ms: 7, once_s: 1_795_651_100 };
        saved.save(dir.path()).unwrap();
        assert_eq!(Saved::load(dir.path()), saved);
        let path = dir.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Saved::load(dir.path()), Saved::default());
    }
}
