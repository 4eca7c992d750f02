//! Settings of a table ("app envs", operations.md 4): which there are, what values they take, how they change.
//!
//! All settings of the reference are known and stored, so that its tools find what they wrote; what this version
//! does not act on says so in the hint.

use std::collections::BTreeMap;

use pegasus_types::envs::{Deny, Throttle};
use pegasus_types::{AppInfo, AppStatus, ErrorCode};

use crate::tables::{MAX_ENV_BYTES, MAX_ENVS, TableError, refuse};

/// What is asked for (`app_env_operation`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvChange {
    Set(BTreeMap<String, String>),
    Delete(Vec<String>),
    /// Empty = all; else those that begin with `prefix.`.
    Clear(String),
}

/// What a value looks like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Bool,
    /// A whole number from .. to.
    Number(i64, i64),
    OneOf(&'static [&'static str]),
    /// `timeout*all`, `reconfig*write`, …
    Deny,
    /// `1000*delay*100,2000*reject*200`; K and M for 2^10 and 2^20.
    Throttle,
    /// As `Throttle`, or a number alone.
    SizeThrottle,
    Text,
}

const I32: i64 = i32::MAX as i64;
const I64: i64 = i64::MAX;
const FORCE_SKIP: Kind = Kind::OneOf(&["force", "skip"]);

/// Name, values, and whether this version acts on it.
const KNOWN: &[(&str, Kind, bool)] = &[
    ("default_ttl", Kind::Number(0, I32), true),
    ("replica.split.validate_partition_hash", Kind::Bool, true),
    ("replica.deny_client_request", Kind::Deny, true),
    ("replica.write_throttling", Kind::Throttle, true),
    ("replica.write_throttling_by_size", Kind::Throttle, true),
    ("replica.read_throttling", Kind::Throttle, true),
    ("replica.read_throttling_by_size", Kind::SizeThrottle, true),
    ("replica.backup_request_throttling", Kind::Throttle, true),
    ("replica.slow_query_threshold", Kind::Number(20, I64), true),
    ("replica.rocksdb_iteration_threshold_time_ms", Kind::Number(0, I64), false),
    ("replica.rocksdb_block_cache_enabled", Kind::Bool, false),
    ("rocksdb.usage_scenario", Kind::OneOf(&["normal", "prefer_write", "bulk_load"]), false),
    ("rocksdb.checkpoint.reserve_min_count", Kind::Number(1, I32), false),
    ("rocksdb.checkpoint.reserve_time_seconds", Kind::Number(0, I32), false),
    ("rocksdb.allow_ingest_behind", Kind::Bool, false),
    ("rocksdb.write_buffer_size", Kind::Number(16 << 20, 512 << 20), false),
    ("rocksdb.num_levels", Kind::Number(1, 10), false),
    ("manual_compact.disabled", Kind::Bool, true),
    ("manual_compact.max_concurrent_running_count", Kind::Number(0, I32), true),
    ("manual_compact.once.trigger_time", Kind::Number(0, I64), true),
    ("manual_compact.once.target_level", Kind::Number(-1, I32), false),
    ("manual_compact.once.bottommost_level_compaction", FORCE_SKIP, false),
    ("manual_compact.periodic.trigger_time", Kind::Text, true),
    ("manual_compact.periodic.target_level", Kind::Number(-1, I32), false),
    ("manual_compact.periodic.bottommost_level_compaction", FORCE_SKIP, false),
    ("user_specified_compaction", Kind::Text, false),
    // Free text, for people.
    ("business.info", Kind::Text, true),
    ("replica_access_controller.allowed_users", Kind::Text, false),
    ("replica_access_controller.ranger_policies", Kind::Text, false),
    ("duplication.master_cluster", Kind::Text, false),
    ("duplication.master_metas", Kind::Text, false),
    ("duplication.master_app_name", Kind::Text, false),
    ("duplication.follower_app_status", Kind::OneOf(&["creating", "created"]), false),
];

/// What is asked for in `RPC_CM_START_MANUAL_COMPACT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactNow {
    pub trigger_s: Option<i64>,
    pub target_level: Option<i32>,
    pub bottommost: Option<bool>,
    /// On one server; 0 = as it is set.
    pub most_running: Option<i32>,
}

pub const COMPACT_DISABLED: &str = "manual_compact.disabled";
pub const COMPACT_ONCE: &str = "manual_compact.once.trigger_time";

impl CompactNow {
    /// The same as settings.
    pub fn change(&self, info: &AppInfo, now_s: i64) -> Result<EnvChange, TableError> {
        if info.status == AppStatus::Dropped || info.status == AppStatus::Dropping {
            return refuse(ErrorCode::AppDropped, "the table was dropped");
        }
        if info.envs.get(COMPACT_DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return refuse(ErrorCode::OperationDisabled, format!("the table has {COMPACT_DISABLED} = true"));
        }
        if self.target_level.is_some_and(|level| level < -1 || level == 0) {
            return refuse(ErrorCode::InvalidParameters, "target_level must be -1, or 1 and more");
        }
        if self.most_running.is_some_and(|most| most < 0) {
            return refuse(ErrorCode::InvalidParameters, "max_running_count must not be negative");
        }
        let trigger_s = self.trigger_s.unwrap_or(now_s);
        if trigger_s <= 0 {
            return refuse(ErrorCode::InvalidParameters, "trigger_time must be a time in Unix seconds");
        }
        let mut envs = BTreeMap::from([(COMPACT_ONCE.to_owned(), trigger_s.to_string())]);
        let mut set = |name: &str, value: String| envs.insert(format!("manual_compact.{name}"), value);
        if let Some(level) = self.target_level {
            set("once.target_level", level.to_string());
        }
        if let Some(force) = self.bottommost {
            set("once.bottommost_level_compaction", if force { "force" } else { "skip" }.to_owned());
        }
        if let Some(most) = self.most_running.filter(|most| *most > 0) {
            set("max_concurrent_running_count", most.to_string());
        }
        Ok(EnvChange::Set(envs))
    }
}

/// The table with its settings changed, and what to tell whoever asked.
pub fn update(info: &AppInfo, change: &EnvChange) -> Result<(AppInfo, String), TableError> {
    match info.status {
        AppStatus::Available => {}
        AppStatus::Dropping => return refuse(ErrorCode::BusyDropping, "the table is being dropped"),
        AppStatus::Dropped => return refuse(ErrorCode::AppDropped, "the table was dropped"),
        _ => return refuse(ErrorCode::BusyCreating, "the table is being created"),
    }
    let mut next = info.clone();
    let hint = match change {
        EnvChange::Set(envs) => set(&mut next.envs, envs)?,
        EnvChange::Delete(keys) => delete(&mut next.envs, |key| keys.iter().any(|k| k == key)),
        EnvChange::Clear(prefix) if prefix.is_empty() => delete(&mut next.envs, |_| true),
        EnvChange::Clear(prefix) => {
            let prefix = format!("{prefix}.");
            delete(&mut next.envs, |key| key.starts_with(&prefix))
        }
    };
    Ok((next, hint))
}

fn set(envs: &mut BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Result<String, TableError> {
    let mut idle = Vec::new();
    for (key, value) in new {
        if !check(key, value)? {
            idle.push(key.as_str());
        }
    }
    envs.extend(new.iter().map(|(key, value)| (key.clone(), value.trim().to_owned())));
    let bytes: usize = envs.iter().map(|(key, value)| key.len() + value.len()).sum();
    if envs.len() > MAX_ENVS || bytes > MAX_ENV_BYTES {
        return refuse(
            ErrorCode::InvalidParameters,
            format!("too many settings: at most {MAX_ENVS} and {MAX_ENV_BYTES} bytes"),
        );
    }
    Ok(match idle.is_empty() {
        true => String::new(),
        false => format!("stored, but this version does not act on {}", idle.join(", ")),
    })
}

fn delete(envs: &mut BTreeMap<String, String>, is_meant: impl Fn(&str) -> bool) -> String {
    let gone: Vec<String> = envs.keys().filter(|key| is_meant(key)).cloned().collect();
    envs.retain(|key, _| !is_meant(key));
    match gone.is_empty() {
        true => "no key needs to be deleted".to_owned(),
        false => format!("deleted keys: {}", gone.join(", ")),
    }
}

/// Whether we act on it.
fn check(key: &str, value: &str) -> Result<bool, TableError> {
    let Some((_, kind, acts)) = KNOWN.iter().find(|(name, _, _)| *name == key) else {
        return refuse(ErrorCode::InvalidParameters, format!("app_env '{key}' is not supported"));
    };
    match wanted(*kind, value.trim()) {
        None => Ok(*acts),
        Some(wanted) => {
            refuse(ErrorCode::InvalidParameters, format!("app_env '{key}={value}' is invalid: {wanted}"))
        }
    }
}

/// What should be there instead; None = it is good.
fn wanted(kind: Kind, value: &str) -> Option<String> {
    let (good, wanted) = match kind {
        Kind::Bool => {
            let good = value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false");
            (good, "true or false".to_owned())
        }
        Kind::Number(from, to) => {
            let good = value.parse::<i64>().is_ok_and(|number| (from..=to).contains(&number));
            (good, format!("a whole number from {from} to {to}"))
        }
        Kind::OneOf(words) => (words.contains(&value), words.join(" or ")),
        Kind::Deny => (
            Deny::parse(value).is_some(),
            "timeout*all, timeout*read, timeout*write, or the same with reconfig".to_owned(),
        ),
        Kind::Throttle => {
            (Throttle::parse(value).is_some(), "such as 1000*delay*100,2000*reject*200".to_owned())
        }
        Kind::SizeThrottle => {
            let good = Throttle::parse_read_bytes(value).is_some();
            (good, "a number of bytes, such as 20M, or 20M*reject*100".to_owned())
        }
        Kind::Text => (true, String::new()),
    };
    (!good).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::info;

    fn envs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn values() {
        for (key, value, good) in [
            ("default_ttl", "0", true),
            ("default_ttl", " 86400 ", true),
            ("default_ttl", "-1", false),
            ("default_ttl", "2147483648", false),
            ("default_ttl", "1h", false),
            ("replica.split.validate_partition_hash", "TRUE", true),
            ("replica.split.validate_partition_hash", "1", false),
            ("replica.slow_query_threshold", "19", false),
            ("rocksdb.write_buffer_size", "67108864", true),
            ("rocksdb.usage_scenario", "prefer_write", true),
            ("rocksdb.usage_scenario", "fast", false),
            ("replica.deny_client_request", "reconfig*write", true),
            ("replica.deny_client_request", "all", false),
            ("replica.write_throttling", "1000*delay*100,2K*reject*200", true),
            ("replica.write_throttling", "1000*delay*100,2000*delay*200", false),
            ("replica.write_throttling", "1000*delay", false),
            ("replica.write_throttling", "", false),
            ("replica.read_throttling_by_size", "20M", true),
            ("replica.read_throttling_by_size", "0", false),
            ("replica.read_throttling_by_size", "99999999999999999M", false),
            ("business.info", "anything, at all", true),
            ("restore.force_restore", "true", false),
            ("what", "x", false),
        ] {
            let result = update(&info(1, "t", 2), &EnvChange::Set(envs(&[(key, value)])));
            assert_eq!(result.is_ok(), good, "{key}={value}: {result:?}");
            if let Err(error) = result {
                assert_eq!(error.code, ErrorCode::InvalidParameters);
                assert!(error.hint.contains(key), "{}", error.hint);
            }
        }
    }

    #[test]
    fn a_manual_compaction_is_a_change_of_settings() {
        let table = info(1, "t", 2);
        let with = |envs_of: &[(&str, &str)]| AppInfo { envs: envs(envs_of), ..table.clone() };
        let dropped = AppInfo { status: AppStatus::Dropped, ..table.clone() };
        let all = CompactNow {
            trigger_s: Some(77),
            target_level: Some(-1),
            bottommost: Some(true),
            most_running: Some(2),
        };
        let set: &[(&str, &str)] = &[
            ("manual_compact.once.trigger_time", "77"),
            ("manual_compact.once.target_level", "-1"),
            ("manual_compact.once.bottommost_level_compaction", "force"),
            ("manual_compact.max_concurrent_running_count", "2"),
        ];
        let refused = |code| Err::<&[(&str, &str)], _>(code);
        let none = CompactNow::default();
        for (table, ask, expected) in [
            (&table, all, Ok(set)),
            (&table, none, Ok(&[("manual_compact.once.trigger_time", "500")][..])),
            // What admin-cli sends when nothing is said.
            (
                &table,
                CompactNow { most_running: Some(0), ..none },
                Ok(&[("manual_compact.once.trigger_time", "500")][..]),
            ),
            (&with(&[("manual_compact.disabled", "True")]), all, refused(ErrorCode::OperationDisabled)),
            (&dropped, all, refused(ErrorCode::AppDropped)),
            (&table, CompactNow { target_level: Some(0), ..all }, refused(ErrorCode::InvalidParameters)),
            (&table, CompactNow { target_level: Some(-2), ..all }, refused(ErrorCode::InvalidParameters)),
            (&table, CompactNow { most_running: Some(-1), ..all }, refused(ErrorCode::InvalidParameters)),
            (&table, CompactNow { trigger_s: Some(0), ..all }, refused(ErrorCode::InvalidParameters)),
        ] {
            let change = ask.change(table, 500);
            match (expected, &change) {
                (Ok(set), Ok(change)) => {
                    assert_eq!(*change, EnvChange::Set(envs(set)), "{ask:?}");
                    assert!(update(table, change).is_ok(), "the settings take it");
                }
                (Err(code), Err(error)) => assert_eq!(error.code, code, "{ask:?}"),
                _ => panic!("{ask:?}: {change:?}"),
            }
        }
    }

    #[test]
    fn set_delete_clear() {
        let step = |info: &AppInfo, change| update(info, &change).unwrap();
        let set = EnvChange::Set(envs(&[("default_ttl", " 60"), ("rocksdb.num_levels", "6")]));
        let (info, hint) = step(&info(1, "t", 2), set);
        assert_eq!((info.default_ttl_s(), info.envs.len()), (60, 2));
        assert_eq!(hint, "stored, but this version does not act on rocksdb.num_levels");
        let (more, hint) = step(&info, EnvChange::Set(envs(&[("default_ttl", "0")])));
        assert_eq!((more.default_ttl_s(), more.envs.len(), hint.as_str()), (0, 2, ""));
        let (same, hint) = step(&info, EnvChange::Delete(vec!["x".into()]));
        assert_eq!((same, hint.as_str()), (info.clone(), "no key needs to be deleted"));
        let (less, hint) = step(&info, EnvChange::Clear("rocksdb".into()));
        assert_eq!((less.envs.len(), hint.as_str()), (1, "deleted keys: rocksdb.num_levels"));
        assert!(step(&info, EnvChange::Clear("rocks".into())).0.envs.len() == 2, "a prefix ends at a dot");
        assert!(step(&info, EnvChange::Clear(String::new())).0.envs.is_empty());
        let big = EnvChange::Set(envs(&[("business.info", &"v".repeat(MAX_ENV_BYTES))]));
        assert_eq!(update(&info, &big).unwrap_err().code, ErrorCode::InvalidParameters);
        for (status, code) in [
            (AppStatus::Creating, ErrorCode::BusyCreating),
            (AppStatus::Dropping, ErrorCode::BusyDropping),
            (AppStatus::Dropped, ErrorCode::AppDropped),
        ] {
            let info = AppInfo { status, ..info.clone() };
            assert_eq!(update(&info, &EnvChange::Clear(String::new())).unwrap_err().code, code);
        }
    }
}
