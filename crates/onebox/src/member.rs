//! One process of the cluster and its configuration.

use std::fmt;
use std::path::Path;

use crate::shape::{Durability, Engine, Shape};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Meta,
    Replica,
    Collector,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, so that a column width works.
        f.pad(match self {
            Self::Meta => "meta",
            Self::Replica => "replica",
            Self::Collector => "collector",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub port: u16,
}

impl Member {
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The text of its `config.ini`.
    pub(crate) fn config(&self, shape: &Shape, dir: &Path) -> String {
        let mut sections: Vec<(&str, Vec<(&str, String)>)> = Vec::new();
        let mut set = |section, key, value: String| match sections.iter_mut().find(|(s, _)| *s == section) {
            Some((_, keys)) => {
                keys.retain(|(k, _)| *k != key);
                keys.push((key, value));
            }
            None => sections.push((section, vec![(key, value)])),
        };
        let app = match self.role {
            Role::Meta => "apps.meta",
            Role::Replica => "apps.replica",
            Role::Collector => "apps.collector",
        };
        set(app, "ports", self.port.to_string());
        set("core", "data_dir", dir.display().to_string());
        set("network", "explicit_host_address", "127.0.0.1".into());
        set("meta_server", "server_list", shape.metas());
        set("replication", "cluster_name", "onebox".into());
        match self.role {
            Role::Meta => {
                set("meta_server.apps.temp", "partition_count", shape.partitions.to_string());
                set("meta_server.apps.temp", "max_replica_count", shape.copies().to_string());
            }
            Role::Replica => {
                let durability = match shape.durability {
                    Durability::Sync => "sync",
                    Durability::PageCache => "page_cache",
                };
                set("replication", "durability", durability.into());
                let engine = match shape.engine {
                    Engine::Lsm => "lsm",
                    Engine::Sled => "sled",
                };
                set("storage", "engine", engine.into());
            }
            Role::Collector => {}
        }
        if shape.copies() == 1 {
            set("replication", "mutation_2pc_min_replica_count", "1".into());
        }
        for (section, key, value) in &shape.settings {
            set(section, key, value.clone());
        }
        let mut text = format!("; {} of a onebox. Written anew at every start.\n", self.name);
        for (section, keys) in sections {
            text += &format!("\n[{section}]\n");
            for (key, value) in keys {
                text += &format!("{key} = {value}\n");
            }
        }
        text
    }
}
