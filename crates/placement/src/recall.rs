//! A dropped table comes back, within its hold time.
//!
//! Every partition gets one member: a node that was a member when the table was dropped. Each of them has
//! everything that was acknowledged, so any will do; one that lives is preferred, the old primary first. As a
//! member it had granted the old primary its lease, so it waits that out before it serves, however quickly the
//! recall follows the drop (safety-rules.md 1.3). The others learn from it what they have missed.

use pegasus_types::{AppId, AppInfo, AppStatus, ErrorCode, Node, PartitionConfig};

use crate::tables::{TableError, check_name, is_expired, refuse};
use crate::view::{ClusterView, FLAG_DROPPED, Table};

/// `name`: empty = the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecallTable {
    pub app_id: AppId,
    pub name: String,
}

/// Decides a recall (operations.md T3). The result is to be stored before anybody hears of it.
pub fn recall(
    view: &ClusterView,
    request: &RecallTable,
    now_s: i64,
    is_alive: impl Fn(&Node) -> bool,
) -> Result<Table, TableError> {
    let id = request.app_id;
    let Some(table) = view.table(id) else {
        return refuse(ErrorCode::AppNotExist, format!("there never was a table with id {id}"));
    };
    let info = &table.info;
    match info.status {
        AppStatus::Dropped if is_expired(info, now_s) => {
            return refuse(
                ErrorCode::AppNotExist,
                format!("table {id} was kept until {}, unix seconds", info.expire_second),
            );
        }
        AppStatus::Dropped => {}
        AppStatus::Dropping => {
            return refuse(ErrorCode::BusyDropping, format!("table {id} is being dropped"));
        }
        _ => return refuse(ErrorCode::AppExist, format!("table {id} was not dropped")),
    }
    let name = if request.name.is_empty() { &info.name } else { &request.name };
    check_name(name)?;
    if let Some(other) = view.table_by_name(name) {
        let other = other.info.app_id;
        return refuse(
            ErrorCode::InvalidParameters,
            format!("name {name} belongs to table {other}: recall under another name"),
        );
    }
    let info = AppInfo {
        name: name.clone(),
        status: AppStatus::Available,
        drop_second: 0,
        expire_second: 0,
        ..info.clone()
    };
    Ok(recalled(info, table, is_alive))
}

/// The table with members for those partitions that have none yet. Also completes a recall that a crash cut in two.
pub fn recalled(info: AppInfo, table: &Table, is_alive: impl Fn(&Node) -> bool) -> Table {
    let is_dropped = |config: &PartitionConfig| config.partition_flags & FLAG_DROPPED != 0;
    let partitions = table
        .partitions
        .iter()
        .map(|config| if is_dropped(config) { restore(config, &is_alive).into() } else { config.clone() })
        .collect();
    Table { info, partitions }
}

fn restore(current: &PartitionConfig, is_alive: impl Fn(&Node) -> bool) -> PartitionConfig {
    let mut next = PartitionConfig {
        ballot: current.ballot.next(),
        partition_flags: current.partition_flags & !FLAG_DROPPED,
        ..current.clone()
    };
    let members = &current.last_drops;
    next.primary = members.iter().rfind(|node| is_alive(node)).or(members.last()).cloned();
    next.last_drops.retain(|node| next.primary.as_ref() != Some(node));
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::lint;
    use crate::tables::{DropTable, Limits, drop_table};
    use crate::view::testing::*;

    fn dropped() -> ClusterView {
        let mut view = view_of(vec![config(0, 1, 1, &[2, 3]), config(1, 4, 2, &[1])]);
        let request = DropTable { name: "t".into(), success_if_not_exist: false, reserve_seconds: 50 };
        view.put_table(drop_table(&view, &Limits::default(), &request, 100).unwrap().unwrap());
        view
    }

    fn ask(name: &str) -> RecallTable {
        RecallTable { app_id: 1, name: name.into() }
    }

    #[test]
    fn a_living_former_member_gets_the_data_back() {
        let mut view = dropped();
        let table = recall(&view, &ask(""), 150, |n| *n != node(1)).unwrap();
        assert_eq!((table.info.name.as_str(), table.info.status), ("t", AppStatus::Available));
        assert_eq!((table.info.drop_second, table.info.expire_second), (0, 0));
        // The primary was dropped last; node 1 does not live.
        let [first, second] = &table.partitions[..] else { panic!() };
        assert_eq!((first.primary.clone(), first.ballot.0), (Some(node(3)), 3));
        assert_eq!(first.last_drops, [node(2), node(1)]);
        assert_eq!((second.primary.clone(), second.ballot.0), (Some(node(2)), 6));
        assert_eq!(recalled(table.info.clone(), &table, |_| true), table, "done twice is done once");
        view.put_table(table);
        assert_eq!(lint(&view), [""; 0]);
        let nobody = recall(&dropped(), &ask("new"), 150, |_| false).unwrap();
        assert_eq!((nobody.info.name.as_str(), nobody.partitions[0].primary.clone()), ("new", Some(node(1))));
    }

    #[test]
    fn refusals() {
        let mut view = dropped();
        let code = |view: &ClusterView, request: &RecallTable, now| {
            recall(view, request, now, |_| true).map(drop).map_err(|error| error.code)
        };
        assert_eq!(code(&view, &ask(""), 151), Err(ErrorCode::AppNotExist), "its hold time is over");
        assert_eq!(code(&view, &RecallTable { app_id: 9, ..ask("") }, 1), Err(ErrorCode::AppNotExist));
        assert_eq!(code(&view, &ask("a b"), 1), Err(ErrorCode::InvalidParameters));
        view.put_table(Table { info: info(2, "t", 0), partitions: vec![] });
        assert_eq!(code(&view, &ask(""), 1), Err(ErrorCode::InvalidParameters), "the name is taken");
        assert_eq!(code(&view, &ask("u"), 1), Ok(()));
        assert_eq!(code(&view, &RecallTable { app_id: 2, ..ask("") }, 1), Err(ErrorCode::AppExist));
    }
}
