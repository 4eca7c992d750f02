//! Is this view consistent? Run over what was loaded, and by the simulation after every write.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::{AppStatus, PartitionConfig};

use crate::view::{ClusterView, FLAG_DROPPED, Table};

/// Everything that is wrong, one sentence each; empty = nothing.
pub fn lint(view: &ClusterView) -> Vec<String> {
    let mut found = Vec::new();
    let mut names = BTreeMap::new();
    for table in view.tables() {
        let info = &table.info;
        if info.status != AppStatus::Dropped
            && let Some(other) = names.insert(&info.name, info.app_id)
        {
            found.push(format!("tables {other} and {} are both named {}", info.app_id, info.name));
        }
        if usize::try_from(info.partition_count) != Ok(table.partitions.len()) {
            found.push(format!(
                "table {} says {} partitions and has {}",
                info.app_id,
                info.partition_count,
                table.partitions.len()
            ));
        }
        for (index, config) in table.partitions.iter().enumerate() {
            let mut note = |what: &str| found.push(format!("partition {config:?}: {what}"));
            if config.gpid.app_id != info.app_id || usize::try_from(config.gpid.index) != Ok(index) {
                note("stands at another place than its name says");
            }
            partition(table, config, &mut note);
        }
    }
    found
}

fn partition(table: &Table, config: &PartitionConfig, note: &mut impl FnMut(&str)) {
    let members: BTreeSet<_> = config.members().collect();
    let count = config.member_count();
    if members.len() != count {
        note("a node is a member twice");
    }
    if config.primary.is_none() && count > 0 {
        note("it has members and no primary");
    }
    if (count > 0 && config.ballot.0 < 1) || config.ballot.0 < 0 {
        note("its ballot is too low");
    }
    // One more than wanted while a copy moves to another node.
    if count > usize::try_from(config.max_replica_count).unwrap_or(0) + 1 {
        note("it has too many members");
    }
    if config.last_drops.len() > PartitionConfig::LAST_DROPS_KEPT {
        note("it remembers too many drops");
    }
    if config.last_drops.iter().any(|node| config.is_member(node)) {
        note("a dropped node is a member");
    }
    let flagged = config.partition_flags & FLAG_DROPPED != 0;
    if flagged && count > 0 {
        note("it is dropped and has members");
    }
    if flagged != table.is_dropped() {
        note("its dropped flag differs from its table's status");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::*;

    #[test]
    fn a_good_view_is_clean_and_each_fault_is_found() {
        let good = config(0, 1, 1, &[2, 3]);
        assert_eq!(lint(&view_of(vec![good.clone(), config(1, 0, 0, &[])])), [""; 0]);
        type Edit = fn(&mut PartitionConfig);
        let cases: [(Edit, &str); 8] = [
            (|c| c.secondaries.push(node(1)), "twice"),
            (|c| c.primary = None, "no primary"),
            (|c| c.ballot.0 = 0, "too low"),
            (|c| c.max_replica_count = 1, "too many members"),
            (|c| c.last_drops = (4..8).map(node).collect(), "too many drops"),
            (|c| c.last_drops = vec![node(2)], "dropped node is a member"),
            (|c| c.partition_flags = FLAG_DROPPED, "dropped and has members"),
            (|c| c.gpid.index = 1, "another place"),
        ];
        for (edit, want) in cases {
            let mut bad = good.clone();
            edit(&mut bad);
            let table = Table { info: info(1, "t", 1), partitions: vec![bad.into()] };
            let mut view = ClusterView::default();
            view.put_table(table);
            assert!(lint(&view).iter().any(|s| s.contains(want)), "{want}: {:?}", lint(&view));
        }
    }

    #[test]
    fn tables_are_checked_too() {
        let mut view = view_of(vec![config(0, 1, 1, &[])]);
        view.put_table(Table { info: info(2, "t", 2), partitions: vec![] });
        let found = lint(&view);
        assert!(found.iter().any(|s| s.contains("both named t")), "{found:?}");
        assert!(found.iter().any(|s| s.contains("2 partitions and has 0")), "{found:?}");
    }
}
