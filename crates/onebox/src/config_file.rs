//! A member's `config.ini`: the shipped template with this cluster's values, so that it can be read, changed, and
//! started by hand.

use std::path::Path;

use anyhow::{Context, Result};

use crate::members::{Member, meta_list, zookeeper_list};
use crate::{Plan, Role};

const TEMPLATE: &str = include_str!("../../../config/config.ini");

/// The file of `member`, whose directory is `dir`.
pub fn text(plan: &Plan, members: &[Member], member: &Member, dir: &Path) -> Result<String> {
    let dir = dir.to_str().with_context(|| format!("{} is not text", dir.display()))?;
    let mut text = TEMPLATE.to_owned();
    for (variable, value) in [
        ("app.dir", escape(dir).as_str()),
        ("home.dir", escape(dir).as_str()),
        ("cluster.name", "onebox"),
        ("meta.server.list", &meta_list(members)),
        ("data.dirs", ""),
    ] {
        text = text.replace(&format!("%{{{variable}}}"), value);
    }
    let options = &plan.options;
    let app = format!("apps.{}", member.role.name());
    let mut values = vec![
        ("network", "explicit_host_address", plan.host.to_string()),
        (&app, "ports", member.address.port().to_string()),
        ("meta_server.apps.temp", "partition_count", options.partitions.to_string()),
        ("meta_server.apps.temp", "max_replica_count", options.copies().to_string()),
        ("replication", "durability", options.durability.name().to_owned()),
        ("storage", "engine", options.engine.name().to_owned()),
        // The disk is shared with everything else on this machine: it may be rather full.
        ("replication", "disk_min_available_space_ratio", "1".to_owned()),
        ("meta_server", "coordination", options.coordination.name().to_owned()),
        ("zookeeper", "hosts_list", zookeeper_list(members)),
        // Who kills a server here looks at the metrics right after.
        ("pegasus.collector", "app_stat_interval_seconds", "1".to_owned()),
    ];
    if options.copies() == 1 {
        values.push(("replication", "mutation_2pc_min_replica_count", "1".to_owned()));
    }
    let sets = options.sets.iter().filter_map(|set| {
        let (path, value) = set.split_once('=')?;
        let (section, key) = path.rsplit_once('.')?;
        Some((section, key, value.to_owned()))
    });
    for (section, key, value) in values.into_iter().chain(sets) {
        text = set(&text, section, key, &value);
    }
    // Each file serves its own role alone.
    for other in [Role::Meta, Role::Replica, Role::Collector].into_iter().filter(|role| *role != member.role)
    {
        text = set(&text, &format!("apps.{}", other.name()), "run", "false");
    }
    Ok(text)
}

/// `;` and `#` would start a comment.
fn escape(value: &str) -> String {
    value.replace(';', "^;").replace('#', "^#")
}

/// The text with this value: in place of the key's line, be it a comment; else first in its section, which is added
/// when it is missing.
fn set(text: &str, section: &str, key: &str, value: &str) -> String {
    let header = format!("[{section}]");
    let new = format!("{key} = {value}");
    let mut lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| line.trim() == header) else {
        return format!("{text}\n{header}\n{new}\n");
    };
    let end = (start + 1..lines.len()).find(|at| lines[*at].starts_with('[')).unwrap_or(lines.len());
    let is_key = |line: &str| {
        let line = line.trim_start_matches('#').trim_start();
        line.split_once('=').is_some_and(|(name, _)| name.trim_end() == key)
    };
    match (start + 1..end).find(|at| is_key(lines[*at])) {
        Some(at) => lines[at] = &new,
        None => lines.insert(start + 1, &new),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::Options;
    use crate::members::members;

    #[test]
    fn values_are_put_where_the_key_stands() {
        let text = "[a]\n; about x\n# x = 1\ny = 2\n[b]\n# x = 3\n";
        assert_eq!(set(text, "a", "x", "5"), "[a]\n; about x\nx = 5\ny = 2\n[b]\n# x = 3\n");
        assert_eq!(set(text, "a", "y", "5"), "[a]\n; about x\n# x = 1\ny = 5\n[b]\n# x = 3\n");
        assert_eq!(set(text, "b", "z", "5"), "[a]\n; about x\n# x = 1\ny = 2\n[b]\nz = 5\n# x = 3\n");
        assert_eq!(set("[a]\n", "c.d", "z", "5"), "[a]\n\n[c.d]\nz = 5\n");
    }

    #[test]
    fn the_file_of_a_member() {
        let options = Options {
            replicas: 1,
            partitions: 16,
            sets: vec!["meta_server.apps.big.partition_count=4".into(), "replication.lease_ms=700".into()],
            ..Options::default()
        };
        let plan = Plan { options, host: Ipv4Addr::new(127, 9, 8, 7), port_base: 0 };
        let members = members(&plan).unwrap();
        let text = text(&plan, &members, &members[1], Path::new("/a;b/replica1")).unwrap();
        for line in [
            "ports = 34801",
            "data_dir = /a^;b/replica1",
            "explicit_host_address = 127.9.8.7",
            "server_list = 127.9.8.7:34601",
            "onebox = 127.9.8.7:34601",
            "partition_count = 16",
            "max_replica_count = 1",
            "mutation_2pc_min_replica_count = 1",
            "durability = sync",
            "disk_min_available_space_ratio = 1",
            "engine = lsm",
            "[meta_server.apps.big]",
            "lease_ms = 700",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        let open = text.lines().filter(|line| !line.starts_with(['#', ';'])).find(|line| line.contains("%{"));
        assert_eq!(open, None);
        assert_eq!(text.matches("\nrun = false\n").count(), 2);
    }
}
