//! Tables as state transitions: what may be created or dropped, and the result.

use std::collections::BTreeMap;

use pegasus_types::{AppId, AppInfo, AppStatus, ErrorCode, Gpid, PartitionConfig};

use crate::change;
use crate::view::{ClusterView, Table};

/// Longest table name in bytes. Names appear in metrics, paths and tools.
pub const MAX_NAME_LEN: usize = 128;
/// Most partitions of a table: the answer to a client's question carries all of them in one frame.
pub const MAX_PARTITION_COUNT: i32 = 65_536;
/// Most environment entries and bytes of a table: they travel in every configuration message.
pub const MAX_ENVS: usize = 256;
pub const MAX_ENV_BYTES: usize = 64 * 1024;

/// Limits from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub min_replica_count: i32,
    pub max_replica_count: i32,
    /// How long a dropped table can be recalled, seconds.
    pub hold_seconds: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { min_replica_count: 1, max_replica_count: 5, hold_seconds: 604_800 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTable {
    pub name: String,
    pub app_type: String,
    pub partition_count: i32,
    pub replica_count: i32,
    pub envs: BTreeMap<String, String>,
    pub is_stateful: bool,
    pub success_if_exist: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropTable {
    pub name: String,
    pub success_if_not_exist: bool,
    /// Seconds for which it can be recalled; 0 or less = the configured time.
    pub reserve_seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {hint}")]
pub struct TableError {
    /// What clients are told.
    pub code: ErrorCode,
    pub hint: String,
}

pub(crate) fn refuse<T>(code: ErrorCode, hint: impl Into<String>) -> Result<T, TableError> {
    Err(TableError { code, hint: hint.into() })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// It exists with the same options.
    Exists(AppId),
    /// To be stored: status Creating, partitions without members.
    New(Table),
}

/// Decides a creation (admin-protocol.md 4.1). `now_s`: unix seconds.
pub fn create(
    view: &ClusterView,
    limits: &Limits,
    request: CreateTable,
    now_s: i64,
) -> Result<Created, TableError> {
    check(limits, &request)?;
    if let Some(table) = view.table_by_name(&request.name) {
        return exists(&table.info, &request);
    }
    let info = AppInfo {
        app_id: view.next_app_id(),
        name: request.name,
        app_type: request.app_type,
        status: AppStatus::Creating,
        partition_count: request.partition_count,
        max_replica_count: request.replica_count,
        envs: request.envs,
        create_second: now_s,
        drop_second: 0,
        expire_second: 0,
    };
    let partitions = (0..info.partition_count)
        .map(|index| {
            PartitionConfig::unassigned(Gpid::new(info.app_id, index), info.max_replica_count).into()
        })
        .collect();
    Ok(Created::New(Table { info, partitions }))
}

pub(crate) fn check_name(name: &str) -> Result<(), TableError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
    if name.is_empty() || name.len() > MAX_NAME_LEN || !name.bytes().all(legal) {
        return refuse(
            ErrorCode::InvalidParameters,
            format!("{name:?} is no table name: 1 to {MAX_NAME_LEN} letters, digits, _ . : -"),
        );
    }
    Ok(())
}

fn check(limits: &Limits, request: &CreateTable) -> Result<(), TableError> {
    let invalid = |hint: String| refuse(ErrorCode::InvalidParameters, hint);
    check_name(&request.name)?;
    if request.app_type != "pegasus" {
        return invalid(format!("table type {:?} is not known: pegasus", request.app_type));
    }
    if !request.is_stateful {
        return invalid("tables are stateful".into());
    }
    // Go refuses every other count, Python and Node send keys to wrong partitions (wire-protocol.md rule 6).
    let count = request.partition_count;
    if !(2..=MAX_PARTITION_COUNT).contains(&count) || count & (count - 1) != 0 {
        return invalid(format!(
            "partition count {count}: must be a power of two from 2 to {MAX_PARTITION_COUNT}"
        ));
    }
    let (min, max) = (limits.min_replica_count, limits.max_replica_count);
    if !(min..=max).contains(&request.replica_count) {
        return invalid(format!("replica count {}: must be from {min} to {max}", request.replica_count));
    }
    let env_bytes: usize = request.envs.iter().map(|(k, v)| k.len() + v.len()).sum();
    if request.envs.len() > MAX_ENVS || env_bytes > MAX_ENV_BYTES {
        return invalid(format!(
            "too many environment settings: at most {MAX_ENVS} and {MAX_ENV_BYTES} bytes"
        ));
    }
    Ok(())
}

fn exists(info: &AppInfo, request: &CreateTable) -> Result<Created, TableError> {
    let name = &info.name;
    match info.status {
        AppStatus::Available => {}
        AppStatus::Dropping => return refuse(ErrorCode::BusyDropping, format!("{name} is being dropped")),
        _ => return refuse(ErrorCode::BusyCreating, format!("{name} is being created")),
    }
    if !request.success_if_exist {
        return refuse(ErrorCode::AppExist, format!("table {name} exists"));
    }
    let same = info.app_type == request.app_type
        && info.partition_count == request.partition_count
        && info.max_replica_count == request.replica_count
        && info.envs == request.envs;
    if same {
        Ok(Created::Exists(info.app_id))
    } else {
        refuse(ErrorCode::InvalidParameters, format!("table {name} exists with other options"))
    }
}

/// Decides a drop (admin-protocol.md 4.2). None = there is nothing to do. The result is to be stored before
/// anybody hears of it: the table first, then its partitions.
pub fn drop_table(
    view: &ClusterView,
    limits: &Limits,
    request: &DropTable,
    now_s: i64,
) -> Result<Option<Table>, TableError> {
    let Some(table) = view.table_by_name(&request.name) else {
        if request.success_if_not_exist {
            return Ok(None);
        }
        return refuse(ErrorCode::AppNotExist, format!("there is no table {:?}", request.name));
    };
    match table.info.status {
        AppStatus::Available => {}
        AppStatus::Dropping => return refuse(ErrorCode::BusyDropping, "it is being dropped"),
        _ => return refuse(ErrorCode::BusyCreating, "it is being created"),
    }
    let hold = if request.reserve_seconds > 0 { request.reserve_seconds } else { limits.hold_seconds };
    let info = AppInfo {
        status: AppStatus::Dropped,
        drop_second: now_s,
        expire_second: now_s.saturating_add(hold),
        ..table.info.clone()
    };
    Ok(Some(dropped(info, &table.partitions)))
}

/// A dropped table with partitions that nobody holds. Also completes a drop that a crash cut in two.
pub fn dropped(info: AppInfo, partitions: &[std::sync::Arc<PartitionConfig>]) -> Table {
    let partitions = partitions
        .iter()
        .map(|config| {
            if config.partition_flags & crate::view::FLAG_DROPPED != 0 {
                config.clone()
            } else {
                change::drop_partition(config).into()
            }
        })
        .collect();
    Table { info, partitions }
}

/// A replica of a dropped table may go once nobody can recall it.
pub fn is_expired(info: &AppInfo, now_s: i64) -> bool {
    info.status == AppStatus::Dropped && info.expire_second > 0 && now_s > info.expire_second
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::*;

    fn request(name: &str) -> CreateTable {
        CreateTable {
            name: name.into(),
            app_type: "pegasus".into(),
            partition_count: 2,
            replica_count: 3,
            envs: BTreeMap::new(),
            is_stateful: true,
            success_if_exist: false,
        }
    }

    fn some_view() -> ClusterView {
        view_of(vec![config(0, 1, 1, &[2, 3]), config(1, 1, 2, &[1, 3])])
    }

    #[test]
    fn a_new_table_has_unassigned_partitions() {
        let limits = Limits::default();
        let Created::New(table) = create(&some_view(), &limits, request("new"), 77).unwrap() else {
            panic!()
        };
        assert_eq!((table.info.app_id, table.info.status), (2, AppStatus::Creating));
        assert_eq!((table.info.create_second, table.partitions.len()), (77, 2));
        assert_eq!(*table.partitions[1], PartitionConfig::unassigned(Gpid::new(2, 1), 3));
    }

    #[test]
    fn bad_requests() {
        let cases: [fn(&mut CreateTable); 14] = [
            |r| r.name = String::new(),
            |r| r.name = "a b".into(),
            |r| r.name = "x/../y".into(),
            |r| r.name = "x".repeat(129),
            |r| r.partition_count = 0,
            |r| r.partition_count = 1,
            |r| r.partition_count = 3,
            |r| r.partition_count = i32::MIN,
            |r| r.partition_count = 1 << 17,
            |r| r.replica_count = 0,
            |r| r.replica_count = 6,
            |r| r.app_type = "simple_kv".into(),
            |r| r.is_stateful = false,
            |r| r.envs = BTreeMap::from([("k".into(), "v".repeat(MAX_ENV_BYTES))]),
        ];
        for (i, edit) in cases.into_iter().enumerate() {
            let mut bad = request("ok");
            edit(&mut bad);
            let got = create(&some_view(), &Limits::default(), bad, 1);
            assert_eq!(got.map_err(|e| e.code), Err(ErrorCode::InvalidParameters), "case {i}");
        }
    }

    #[test]
    fn existing_tables() {
        let limits = Limits::default();
        let same = |success_if_exist| CreateTable { success_if_exist, ..request("t") };
        let code = |view: &ClusterView, r| create(view, &limits, r, 1).map_err(|e| e.code);
        let mut view = some_view();
        assert_eq!(code(&view, same(false)), Err(ErrorCode::AppExist));
        assert_eq!(code(&view, same(true)), Ok(Created::Exists(1)));
        let other = CreateTable { partition_count: 4, ..same(true) };
        assert_eq!(code(&view, other), Err(ErrorCode::InvalidParameters));
        for (status, want) in
            [(AppStatus::Creating, ErrorCode::BusyCreating), (AppStatus::Dropping, ErrorCode::BusyDropping)]
        {
            view.put_info(AppInfo { status, ..info(1, "t", 2) });
            assert_eq!(code(&view, same(true)), Err(want));
        }
        view.put_info(AppInfo { status: AppStatus::Dropped, ..info(1, "t", 2) });
        assert!(matches!(code(&view, same(false)), Ok(Created::New(t)) if t.info.app_id == 2));
    }

    #[test]
    fn drops() {
        let limits = Limits::default();
        let mut view = some_view();
        let ask = |name: &str, missing_ok| DropTable {
            name: name.into(),
            success_if_not_exist: missing_ok,
            reserve_seconds: 0,
        };
        let code = |view: &ClusterView, r| drop_table(view, &limits, &r, 100).map_err(|e| e.code);
        assert_eq!(code(&view, ask("x", true)), Ok(None));
        assert_eq!(code(&view, ask("x", false)), Err(ErrorCode::AppNotExist));
        let table = code(&view, ask("t", true)).unwrap().unwrap();
        assert_eq!((table.info.status, table.info.drop_second), (AppStatus::Dropped, 100));
        assert_eq!(table.info.expire_second, 100 + 604_800);
        assert!(table.partitions.iter().all(|p| p.member_count() == 0 && p.ballot.0 == 2));
        assert!(!is_expired(&table.info, 604_900) && is_expired(&table.info, 604_901));
        assert_eq!(dropped(table.info.clone(), &table.partitions), table, "done twice is done once");
        let kept = drop_table(&view, &limits, &DropTable { reserve_seconds: 5, ..ask("t", true) }, 100);
        assert_eq!(kept.unwrap().unwrap().info.expire_second, 105);
        view.put_info(AppInfo { status: AppStatus::Creating, ..info(1, "t", 2) });
        assert_eq!(code(&view, ask("t", true)), Err(ErrorCode::BusyCreating));
        assert!(!is_expired(&info(1, "t", 2), i64::MAX));
    }
}
