//! The marker file: who a data directory is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pegasus_types::Node;
use serde::{Deserialize, Serialize};

use crate::small_file::{Kind, SmallFileError};

/// Of everything below a data directory. A program refuses directories of a higher one.
pub const FORMAT_VERSION: u32 = 1;

const KIND: Kind = Kind { name: "disk", version: FORMAT_VERSION };
const FILE_NAME: &str = ".pegasus-disk";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    pub disk_id: u64,
    pub node: Node,
    /// None until the node has first spoken with its meta-server.
    pub cluster_id: Option<String>,
    /// Boot of the machine in which all that lies here was last opened.
    pub boot_id: Option<String>,
    /// Since then, writes may have been acknowledged that were only in the page cache.
    #[serde(default)]
    pub unsynced: bool,
    /// Id of the mutation log that was made here: no other one, and no new one, is taken for it.
    #[serde(default)]
    pub log_id: Option<u64>,
    /// All other data directories that the node ever had beside this one.
    pub siblings: BTreeSet<PathBuf>,
}

impl Marker {
    pub fn new(node: Node, cluster_id: Option<String>) -> Self {
        Self {
            disk_id: rand::random(),
            node,
            cluster_id,
            boot_id: None,
            log_id: None,
            unsynced: false,
            siblings: BTreeSet::new(),
        }
    }

    pub fn load(dir: &Path) -> Result<Option<Self>, SmallFileError> {
        KIND.load(&dir.join(FILE_NAME))
    }

    pub fn save(&self, dir: &Path) -> Result<(), SmallFileError> {
        KIND.save(&dir.join(FILE_NAME), self)
    }
}

pub fn is_there(dir: &Path) -> bool {
    dir.join(FILE_NAME).exists()
}

/// Names the running boot of the machine's kernel.
pub fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}
