//! Tables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::AppId;

/// Life of a table; numbers as on the wire (`app_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub enum AppStatus {
    #[default]
    Invalid = 0,
    Available = 1,
    Creating = 2,
    CreateFailed = 3,
    Dropping = 4,
    DropFailed = 5,
    Dropped = 6,
    Recalling = 7,
}

impl AppStatus {
    pub fn from_wire(n: i32) -> Option<Self> {
        use AppStatus::*;
        [Invalid, Available, Creating, CreateFailed, Dropping, DropFailed, Dropped, Recalling]
            .into_iter()
            .find(|s| *s as i32 == n)
    }
}

/// What the cluster knows of a table, apart from where its partitions live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    pub app_id: AppId,
    pub name: String,
    /// Always `pegasus` for tables that clients can read.
    pub app_type: String,
    pub status: AppStatus,
    /// A power of two, at least 2 for tables that Go clients open (wire-protocol.md rule 6).
    pub partition_count: i32,
    pub max_replica_count: i32,
    pub envs: BTreeMap<String, String>,
    /// Unix seconds.
    pub create_second: i64,
    pub drop_second: i64,
    /// When a dropped table may be forgotten, unix seconds.
    pub expire_second: i64,
}

impl AppInfo {
    /// Table env `default_ttl`: seconds that a write without expiry lives; 0 = for ever.
    pub fn default_ttl_s(&self) -> u32 {
        self.envs.get("default_ttl").and_then(|v| v.trim().parse().ok()).unwrap_or(0)
    }
}
