use super::*;
use crate::common;

crate::section! {
    /// A test section.
    struct Demo = "replication" {
        /// In flight.
        staleness_for_commit: u32 = 20, in 1..=1000;
        /// Mode.
        durability: common::Durability = common::Durability::Sync;
        /// Disks.
        data_dirs: Vec<crate::TaggedPath> = Vec::new(), template "%{data.dirs}";
    }
}

crate::section! {
    /// A table made on the first start.
    struct Table = "meta_server.apps.*", shown as [("meta_server.apps.temp", [("app_name", "temp"), ("partition_count", "8")])] {
        /// Name.
        app_name: String = String::new();
        /// Partitions.
        partition_count: i32 = 1;
    }
}

fn sections() -> Vec<&'static SectionInfo> {
    common::SECTIONS.iter().copied().chain([Demo::INFO, Table::INFO]).collect()
}

fn load(sources: Sources) -> (Demo, common::MetaList, Loaded) {
    let mut loaded = sources.load(&sections());
    let (demo, metas) = (loaded.section(), loaded.section());
    (demo, metas, loaded)
}

fn mistakes(loaded: Loaded) -> Vec<String> {
    loaded.finish().unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn file_then_environment_then_flags() {
    let file =
        "[replication]\nstaleness_for_commit = 1\ndurability = page_cache\n[meta_server]\nserver_list = a:1";
    let (demo, metas, loaded) = load(
        Sources::text("f", file)
            .env("PEGASUS__REPLICATION__STALENESS_FOR_COMMIT", "2")
            .env("PEGASUS__META_SERVER__SERVER_LIST", "b:2")
            .set("replication.staleness_for_commit=3"),
    );
    assert_eq!(demo.staleness_for_commit, 3);
    assert_eq!(demo.durability, common::Durability::PageCache);
    assert_eq!(metas.server_list, [pegasus_types::Node::new("b:2")]);
    let effective = loaded.effective();
    let origin = |name| effective.get(name).unwrap().origin.to_string();
    assert_eq!(origin("staleness_for_commit"), "--set replication.staleness_for_commit");
    assert_eq!(origin("server_list"), "environment PEGASUS__META_SERVER__SERVER_LIST");
    assert_eq!(origin("durability"), "f:3");
    assert_eq!(origin("data_dirs"), "default");
    assert_eq!(effective.get("durability").unwrap().value, "page_cache");
    assert!(effective.get("ports").is_none() && effective.get("apps.meta.ports").is_some());
    assert_eq!(loaded.finish().unwrap(), []);
}

#[test]
fn everything_wrong_is_told_at_once_with_its_place() {
    let file = "\
[replicaton]
x = 1
[replication]
staleness_for_commit = 2o
stalenes_for_commit = 1
durability = paranoid
data_dirs = a:/x,a:/y
server_list = a:1
lease_ms = 100
[meta_server]
server_list =
[core]
data_dir = %{app.dir}
log_dir = %{app.dir}/%{log}
[zebra]
any = 1
";
    let mut loaded = Sources::text("c.ini", file)
        .env("PEGASUS__REPLICATION__DURABILTY", "sync")
        .set("replication.lease_heartbeat_ms=5")
        .set("replication.lease_mss=5")
        .set("nonsense")
        .load(&sections());
    let _: Demo = loaded.section();
    let metas: common::MetaList = loaded.section();
    metas.check(&mut loaded);
    let lease: common::Lease = loaded.section();
    loaded.mistake("replication", "lease_ms", format!("{} is too short", lease.lease_ms.as_u64()));
    let _: common::Core = loaded.section();
    let told = mistakes(loaded);
    let expected = [
        "c.ini:1: unknown section [replicaton]; did you mean [replication]?",
        "c.ini:4: [replication] staleness_for_commit = 2o: expected a whole number from 0 to 4294967295",
        "c.ini:5: [replication] stalenes_for_commit: unknown key; did you mean staleness_for_commit?",
        "c.ini:6: [replication] durability = paranoid: expected one of sync, page_cache",
        "c.ini:7: [replication] data_dirs = a:/x,a:/y: tag a stands twice",
        "c.ini:8: [replication] server_list: unknown key; it belongs into [meta_server]",
        "c.ini:9: [replication] lease_ms: 100 is too short",
        "c.ini:11: [meta_server] server_list: is empty",
        "c.ini:13: variable %{app.dir} has no value (also in line 14): replace it in the file, or give --set app.dir=VALUE or PEGASUS__VAR__APP_DIR",
        "c.ini:14: variable %{log} has no value",
        "environment PEGASUS__REPLICATION__DURABILTY: no such setting; did you mean PEGASUS__REPLICATION__DURABILITY?",
        "--set nonsense: expected section.key=value",
        "--set replication.lease_heartbeat_ms: [replication] lease_heartbeat_ms = 5: expected a value from 10 to 60000",
        "--set replication.lease_mss: no such setting, and no variable of the file; did you mean replication.lease_ms?",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "told     {told}\nexpected {expected}");
    }
}

#[test]
fn unknown_keys_may_be_allowed() {
    let file = "[replication]\nbrand_new = 1\n[meta_server]\nserver_list = a:1";
    let (_, _, loaded) = load(Sources::text("f", file).allow_unknown_keys(true));
    let warnings = loaded.finish().unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].to_string(), "f:2: [replication] brand_new: unknown key");
}

#[test]
fn foreign_sections_and_obsolete_keys_are_named_once() {
    let file = "\
[threadpool..default]
worker_count = 4
[threadpool.THREAD_POOL_DEFAULT]
name = default
[nfs]
max_copy_rate_megabytes = %{unreplaced.but.ignored}
[apps.meta]
type = meta
pools = THREAD_POOL_DEFAULT
[apps..default]
run = false
count = 1
[replication]
gc_disabled = false
";
    let mut loaded = Sources::text("f", file).load(&sections());
    let meta: common::MetaApp = loaded.section();
    assert!(!meta.run, "[apps..default] holds for [apps.meta]");
    let warnings: Vec<_> = loaded.finish().unwrap().iter().map(ToString::to_string).collect();
    let ignored = "f: ignored, without a meaning here:";
    assert_eq!(
        warnings,
        [
            format!("{ignored} 3 sections: [nfs], [threadpool.*] (2)"),
            format!("{ignored} [apps..default] count"),
            format!("{ignored} [apps.meta] type, pools"),
            format!("{ignored} [replication] gc_disabled"),
        ]
    );
}

#[test]
fn all_that_is_ignored_is_named_within_bounds() {
    let mut file = String::from("[replication]\n");
    let (_, keys) = crate::reference_keys::REFERENCE_KEYS.iter().find(|(s, _)| *s == "replication").unwrap();
    let old: Vec<_> = keys.iter().filter(|key| key.starts_with("log_") || key.starts_with("dup_")).collect();
    assert!(old.len() > 12);
    old.iter().for_each(|key| file += &format!("{key} = 1\n"));
    (0..300).for_each(|n| file += &format!("[f{n}]\n"));
    let warnings = Sources::text("f", &file).load(&sections()).finish().unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("300 sections: [f0], ") && warnings[0].ends_with(" and 100 more"),
        "{warnings:?}"
    );
    assert!(old.iter().all(|key| warnings[1].contains(**key)), "{warnings:?}");
}

#[test]
fn what_protects_nothing_here_is_told_by_itself() {
    let file = "[meta_server]\nenable_white_list = true\n[security]\nenable_auth = True\nenable_acl = false\n\
                [pegasus.server]\nencrypt_data_at_rest = true\n";
    let warnings = Sources::text("f", file).load(&sections()).finish().unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    for (line, key) in [
        (2, "[meta_server] enable_white_list = true is NOT enforced"),
        (4, "[security] enable_auth = true is NOT enforced"),
        (7, "[pegasus.server] encrypt_data_at_rest = true is NOT enforced"),
    ] {
        assert!(warnings.iter().any(|w| w.starts_with(&format!("f:{line}: {key}"))), "{key}: {warnings:?}");
    }
    assert_eq!(warnings.iter().filter(|w| w.contains("NOT enforced")).count(), 3, "{warnings:?}");
}

#[test]
fn variables_from_flags_cargs_and_environment() {
    let file = "[replication]\ndata_dirs = %{data.dirs}\n[meta_server]\nserver_list = %{meta.server.list}\n\
                [core]\ndata_dir = /%dir%/%{sub}\n[pegasus.clusters]\n%{cluster.name} = x:1";
    let mut loaded = Sources::text("f", file)
        .set("data.dirs=t:/d")
        .env("PEGASUS__VAR__META_SERVER_LIST", "m:1")
        .cargs("dir=a;sub=b,cluster.name=c")
        .load(&sections());
    assert_eq!(loaded.section::<Demo>().data_dirs.len(), 1);
    assert_eq!(loaded.section::<common::MetaList>().server_list.len(), 1);
    assert_eq!(loaded.section::<common::Core>().data_dir, "/a/b");
    assert_eq!(loaded.finish().unwrap(), []);
}

#[test]
fn a_variable_that_a_flag_replaces_is_no_mistake() {
    let file = "[replication]\ndata_dirs = %{data.dirs}\n";
    let (demo, _, loaded) = load(Sources::text("f", file).set("replication.data_dirs=t:/d"));
    assert_eq!(demo.data_dirs.len(), 1);
    assert!(loaded.finish().is_ok());
}

#[test]
fn families() {
    let file = "[meta_server.apps..default]\npartition_count = 4\n[meta_server.apps.temp]\napp_name = temp\n\
                [meta_server.apps.b]\napp_name = x\npartition_count = 9\npartitions = 3";
    let mut loaded = Sources::text("f", file)
        .set("meta_server.apps.temp.partition_count=16")
        .set("meta_server.apps.flagged.app_name=f")
        .load(&sections());
    let tables = loaded.family::<Table>();
    let seen: Vec<_> =
        tables.iter().map(|(k, t)| (k.as_str(), t.app_name.as_str(), t.partition_count)).collect();
    assert_eq!(seen, [("b", "x", 9), ("flagged", "f", 4), ("temp", "temp", 16)]);
    assert_eq!(mistakes(loaded), ["f:8: [meta_server.apps.b] partitions: unknown key"]);
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.ini");
    let told = |path: &Path| mistakes(Sources::file(path).load(&sections())).join("\n");
    assert!(told(&path).contains("config.ini: is not there; pegasus_server --print-default-config"));
    std::fs::write(&path, "").unwrap();
    assert!(told(&path).ends_with("config.ini: is empty"));
    std::fs::write(&path, "; nothing").unwrap();
    assert!(told(&path).ends_with("config.ini: has no [section]"));
    std::fs::write(&path, b"[a]\nb = \xff\n").unwrap();
    assert!(told(&path).ends_with("config.ini:2: is not UTF-8 text"));
}

#[test]
fn the_default_file_reads_back_without_a_mistake_and_gives_the_defaults() {
    let text = crate::default_file(&sections());
    let mut loaded = Sources::text("config.ini", &text)
        .cargs("app.dir=/app;cluster.name=c;meta.server.list=m:1;data.dirs=t:/d")
        .load(&sections());
    assert_eq!(
        loaded.section::<Demo>(),
        Demo { data_dirs: loaded.section::<Demo>().data_dirs, ..Demo::default() }
    );
    assert_eq!(loaded.section::<common::Lease>(), common::Lease::default());
    assert_eq!(loaded.section::<common::Cluster>().cluster_name, "c");
    assert_eq!(loaded.family::<Table>().get("temp").unwrap().partition_count, 8);
    assert_eq!(loaded.finish().unwrap(), []);
    for line in text.lines() {
        assert!(line.len() <= 160, "{line}");
    }
}

#[test]
fn timing_rules() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("grace_ms = 20000", &["fd_grace_seconds"]),
        ("fd_grace_seconds = 1", &["fd_grace_seconds"]),
        ("fd_beacon_interval_seconds = 0.1\nfd_grace_seconds = 0.5", &["fd_grace_seconds"]),
        ("fd_beacon_interval_seconds = 200ms\nfd_grace_seconds = 1", &[]),
    ];
    for (text, wrong) in cases {
        let mut loaded = Sources::text("f", &format!("[replication]\n{text}")).load(&sections());
        let (lease, liveness) = (loaded.section::<common::Lease>(), loaded.section::<common::Liveness>());
        liveness.check(&lease, &mut loaded);
        let told: Vec<String> =
            loaded.finish().err().map(|m| m.0.iter().map(|m| m.text.clone()).collect()).unwrap_or_default();
        assert_eq!(told.len(), wrong.len(), "{text}: {told:?}");
        for (told, key) in told.iter().zip(*wrong) {
            assert!(told.starts_with(&format!("[replication] {key}: ")), "{text}: {told}");
        }
    }
}
