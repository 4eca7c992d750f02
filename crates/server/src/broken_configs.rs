//! Every way to get a configuration wrong that we could think of, and what is said of it.

use pegasus_config::Sources;

use crate::Settings;

/// What a good file has at least.
const GOOD: &str = "\
[core]
data_dir = /data/pegasus
[network]
primary_interface = lo
[meta_server]
server_list = meta1:34601
[replication]
cluster_name = c
[storage]
[apps.meta]
[apps.replica]
[pegasus.server]
[pegasus.collector]
[meta_server.apps.temp]
[tools.simple_logger]
";

/// Section, line, and a part of what is said; `^` = of the line itself, which is named.
const BROKEN: &[(&str, &str, &str)] = &[
    ("core", "data_dir =", "^is empty: expected a directory"),
    ("core", "data_dri = /x", "^unknown key; did you mean data_dir?"),
    ("core", "log_dir = logs", "^logs is not an absolute path"),
    ("core", "logging_start_level = LOUD", "^expected one of LOG_LEVEL_DEBUG"),
    ("core", "server_list = a:1", "^unknown key; it belongs into [meta_server]"),
    ("tools.simple_logger", "max_log_file_bytes = 1", "^expected a value from"),
    ("tools.simple_logger", "max_log_file_bytes = big", "^expected"),
    ("tools.simple_logger", "max_number_of_log_files_on_disk = 0", "^expected a value from 1 to 10000"),
    ("tools.simple_logger", "stderr_start_level = warn", "^expected one of"),
    ("network", "primary_interface = eth99", "^no interface eth99 with an IPv4 address; there are"),
    ("network", "explicit_host_address = two words", "^two words"),
    ("network", "explicit_host_adress = a", "^did you mean explicit_host_address?"),
    ("apps.meta", "ports = 65536", "^expected a whole number from 0 to 65535"),
    ("apps.meta", "run = maybe", "^expected true or false"),
    ("apps.replica", "ports = http", "^expected a whole number"),
    ("meta_server", "server_list =", "^is empty: expected host:port of every meta-server"),
    ("meta_server", "server_list = meta1", "^expected host:port, for example"),
    ("meta_server", "server_list = meta1:99999", "^expected host:port"),
    ("meta_server", "server_list = a:1,,b:2", "^item 2 is empty"),
    ("meta_server", "server_list = a:1,a:1", "^a:1 stands twice"),
    ("meta_server", "server_list = %{meta.server.list}", "^variable %{meta.server.list} has no value"),
    ("meta_server", "coordination = etcd", "^expected one of embedded, zookeeper"),
    ("meta_server", "meta_function_level_on_start = lazy", "^expected one of stopped, blind"),
    ("meta_server", "min_allowed_replica_count = 9", "^is above max_allowed_replica_count"),
    ("meta_server", "max_allowed_replica_count = 0", "^expected a value from 1 to 15"),
    ("meta_server", "hold_seconds_for_dropped_app = a week", "^expected"),
    ("meta_server", "node_live_percentage_threshold_for_update = 101", "^expected a value from 0 to 100"),
    ("meta_server", "replica_assign_delay_ms_for_dropouts = -1", "^expected"),
    ("meta_server", "add_secondary_max_count_for_one_node = 0", "^expected a value from"),
    ("meta_server.apps.temp", "partition_count = 7", "power of two"),
    ("meta_server.apps.temp", "partition_count = many", "^expected a whole number"),
    ("meta_server.apps.temp", "max_replica_count = 0", "replica"),
    ("meta_server.apps.temp", "partition_cuont = 8", "^unknown key; did you mean partition_count?"),
    ("replication", "data_dirs = /x", "^expected tag:path, for example ssd1:/data/ssd1/pegasus"),
    ("replication", "data_dirs = a:/x,a:/y", "^tag a stands twice"),
    ("replication", "data_dirs = a:/x,b:/x/", "^directory /x stands twice (a and b)"),
    ("replication", "data_dirs_black_list_file = /", "^/ cannot be read"),
    ("replication", "durability = maybe", "^expected one of sync, page_cache"),
    ("replication", "max_allowed_write_size = 1Q", "^expected"),
    ("replication", "mutation_2pc_min_replica_count = 99", "^expected a value from -1 to 15"),
    ("replication", "staleness_for_commit = 0", "^expected a value from 1 to 10000"),
    ("replication", "staleness_for_commit = 300", "is below staleness_for_commit = 300"),
    ("replication", "config_sync_interval_ms = 1", "^expected a value from"),
    ("replication", "log_private_file_size_mb = 0", "^expected a value from"),
    ("replication", "log_size_mb_max = 1", "^expected a value from"),
    ("replication", "learn_app_max_concurrent_count = 0", "^expected a value from"),
    ("replication", "reject_write_when_disk_insufficient = yes", "^expected true or false"),
    ("replication", "disk_min_available_space_ratio = 100", "^expected a value from 0 to 99"),
    ("replication", "disk_stat_interval_seconds = 0", "^expected a value from"),
    ("replication", "ignore_broken_disk = 1", "^expected true or false"),
    ("replication", "lease_ms = 1000", "grace_ms"),
    ("replication", "lease_heartbeat_ms = 5", "^expected a value from"),
    ("replication", "grace_ms = quick", "^expected"),
    ("replication", "fd_beacon_interval_seconds = 8", "two beacons"),
    ("replication", "fd_grace_seconds = 0.5", "^"),
    ("replication", "fd_check_interval_seconds = -3", "^expected"),
    ("storage", "engine = rocksdb", "^expected one of lsm, sled, memory"),
    ("storage", "engine = sled\n[replication.]", "unknown section"),
    ("pegasus.server", "rocksdb_block_cache_capacity = 10", "^expected a value from"),
    ("pegasus.server", "rocksdb_write_buffer_size = big", "^expected"),
    ("pegasus.server", "rocksdb_max_iteration_count = 0", "^expected a value from"),
    ("pegasus.collector", "available_detect_app =", "^is empty: expected the name of a table"),
    ("pegasus.collector", "available_detect_interval_seconds = 0", "^expected a value from"),
    ("pegasus.collector", "available_detect_timeout = 1h 5", "^expected"),
    ("pegasus.collector", "available_detect_alert_fail_count = 0", "^expected a value from"),
    ("core", "[replicaton]", "^unknown section [replicaton]; did you mean [replication]?"),
    ("core", "[network", "^"),
    ("core", "[network = x]", "^"),
    ("storage", "[core]", "^"),
];

/// The good file with a line more, first in its section: there it wins over what follows. And the line's number.
fn with(section: &str, line: &str) -> (String, usize) {
    let header = format!("[{section}]");
    let at = GOOD.lines().position(|l| l == header).unwrap() + 1;
    let mut lines: Vec<&str> = GOOD.lines().collect();
    lines.insert(at, line);
    (lines.join("\n") + "\n", at + 1)
}

#[test]
fn the_good_file_is_good() {
    let settings = Settings::read(Sources::text("config.ini", GOOD)).unwrap();
    assert_eq!(settings.warnings, []);
}

#[test]
fn each_mistake_is_named_with_its_line_and_what_was_expected() {
    for (section, line, told) in BROKEN {
        let (text, number) = with(section, line);
        let Err(mistakes) = Settings::read(Sources::text("config.ini", &text)) else {
            panic!("[{section}] {line}: nothing is wrong with it?");
        };
        let all = mistakes.to_string();
        let place = match told.strip_prefix('^') {
            Some(_) => format!("config.ini:{number}: "),
            None => "config.ini".to_owned(),
        };
        let told = told.trim_start_matches('^');
        let named =
            mistakes.0.iter().map(ToString::to_string).any(|m| m.starts_with(&place) && m.contains(told));
        assert!(named, "[{section}] {line}: {place}..{told}\n{all}");
    }
}

/// Else the follow-up hides what is to be done.
#[test]
fn a_value_that_is_wrong_is_told_of_once() {
    let text = GOOD.replace("meta1:34601", "%{meta.server.list}").replace("/data/pegasus", "%{home.dir}");
    let mistakes = Settings::read(Sources::text("config.ini", &text)).unwrap_err().0;
    let told: Vec<_> = mistakes.iter().map(|m| m.to_string()).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told.iter().all(|told| told.contains("has no value")), "{told:#?}");
}

/// As an operator meets them: not one after the other.
#[test]
fn many_mistakes_are_told_at_once() {
    let mut text = GOOD.to_owned();
    let mut wanted = Vec::new();
    let mut keys = std::collections::BTreeSet::new();
    for (section, line, told) in BROKEN.iter().rev() {
        let key = line.split('=').next().unwrap_or_default().trim();
        let own_line = told.starts_with('^') && told.len() > 1 && !line.contains('[') && !line.contains('%');
        // Nobody looks for an interface when explicit_host_address is set.
        if !own_line || key == "primary_interface" || !keys.insert((section, key)) {
            continue;
        }
        let header = format!("[{section}]\n");
        text = text.replace(&header, &format!("{header}{line}\n"));
        wanted.push((*line, told.trim_start_matches('^')));
    }
    let all = Settings::read(Sources::text("config.ini", &text)).unwrap_err().to_string();
    assert!(wanted.len() >= 40, "{}", wanted.len());
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(line, told)| {
            let number = text.lines().position(|l| l == *line).unwrap() + 1;
            !all.lines().any(|l| l.contains(&format!("config.ini:{number}: ")) && l.contains(told))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}\n{all}");
}
