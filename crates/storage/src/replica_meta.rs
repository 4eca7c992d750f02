//! What a replica knows of itself when its process starts: whose copy it is, and its membership.

use std::path::Path;

use pegasus_types::{AppInfo, PartitionConfig};
use serde::{Deserialize, Serialize};

use crate::small_file::Kind;
pub use crate::small_file::SmallFileError;

const KIND: Kind = Kind { name: "replica-meta", version: 1 };
const FILE_NAME: &str = ".replica-meta";

/// Stored beside the data, replaced as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaMeta {
    /// Random per copy: log records of other lives of this partition on this node are not this copy's
    /// (safety-rules.md 2.1).
    pub copy_id: u64,
    pub app: AppInfo,
    pub config: PartitionConfig,
    /// Rows are being copied in: until this is cleared the data is no state that ever existed, and must not be
    /// read, taught or elected (replication.md 10.2 R4, R5).
    pub learning: bool,
}

impl ReplicaMeta {
    /// A copy that has not been there before.
    pub fn new(app: AppInfo, config: PartitionConfig, learning: bool) -> Self {
        Self { copy_id: rand::random(), app, config, learning }
    }

    /// Of the replica in `dir`; None when it has none.
    pub fn load(dir: &Path) -> Result<Option<Self>, SmallFileError> {
        KIND.load(&dir.join(FILE_NAME))
    }

    /// Durable when it returns: a file and two directory syncs, some milliseconds.
    pub fn save(&self, dir: &Path) -> Result<(), SmallFileError> {
        KIND.save(&dir.join(FILE_NAME), self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use pegasus_types::{AppStatus, Ballot, Decree, Gpid, Node};

    use super::*;

    pub(crate) fn sample(gpid: Gpid) -> ReplicaMeta {
        let app = AppInfo {
            app_id: gpid.app_id,
            name: "temp".into(),
            app_type: "pegasus".into(),
            status: AppStatus::Available,
            partition_count: 8,
            max_replica_count: 3,
            envs: BTreeMap::from([("default_ttl".into(), "60".into())]),
            create_second: 1,
            drop_second: 0,
            expire_second: 0,
        };
        let config = PartitionConfig {
            ballot: Ballot(7),
            primary: Some(Node::new("127.0.0.1:34801")),
            secondaries: vec![Node::new("127.0.0.1:34802")],
            last_committed: Decree(9),
            ..PartitionConfig::unassigned(gpid, 3)
        };
        ReplicaMeta::new(app, config, true)
    }

    #[test]
    fn survives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ReplicaMeta::load(dir.path()).unwrap(), None);
        let mut meta = sample(Gpid::new(2, 5));
        meta.save(dir.path()).unwrap();
        assert_eq!(ReplicaMeta::load(dir.path()).unwrap().as_ref(), Some(&meta));
        meta.learning = false;
        meta.config.ballot = Ballot(8);
        meta.save(dir.path()).unwrap();
        assert_eq!(ReplicaMeta::load(dir.path()).unwrap(), Some(meta));
    }

    #[test]
    fn copies_have_ids_of_their_own() {
        let gpid = Gpid::new(2, 5);
        assert_ne!(sample(gpid).copy_id, sample(gpid).copy_id);
    }
}
