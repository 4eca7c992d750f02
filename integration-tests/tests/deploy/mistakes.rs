//! What operators get wrong around the configuration: a clear end or a clear wait, and nothing damaged.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::formats::files_below;
use crate::package::http_get;
use crate::servers::{Server, hosts, programs, repository, wait};

/// A server with the shipped configuration, its variables given by the environment.
pub fn command(role: &str, dir: &Path, host: Ipv4Addr, meta: &str) -> Command {
    let mut command = Command::new(programs().join("pegasus_server"));
    command.arg(repository().join("config/config.ini")).args(["-app_list", role]);
    for (name, value) in [
        ("CLUSTER_NAME", "c"),
        ("DATA_DIRS", ""),
        ("ZK_SERVER_LIST", ""),
        ("APP_DIR", dir.to_str().unwrap()),
        ("HOME_DIR", dir.to_str().unwrap()),
        ("META_SERVER_LIST", meta),
    ] {
        command.env(format!("PEGASUS__VAR__{name}"), value);
    }
    command.env("PEGASUS__NETWORK__EXPLICIT_HOST_ADDRESS", host.to_string());
    // One copy of everything: these clusters have one server.
    command.env("PEGASUS__REPLICATION__MUTATION_2PC_MIN_REPLICA_COUNT", "1");
    // A machine that tests may be fuller than a server should be.
    command.env("PEGASUS__REPLICATION__DISK_MIN_AVAILABLE_SPACE_RATIO", "1");
    command.args(["--set", "meta_server.apps.temp.max_replica_count=1"]);
    command
}

/// Starts it and expects its end with this code, saying this.
fn fails(mut command: Command, out: &Path, code: i32, told: &[&str]) {
    let mut server = Server::start(&mut command, out);
    let status = server.wait_end();
    let printed = server.printed();
    assert_eq!(status.code(), Some(code), "{command:?}:\n{printed}");
    for part in told {
        assert!(printed.contains(part), "{part:?} is not said:\n{printed}");
    }
}

#[test]
fn what_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (home, out) = (dir.path().join("home"), dir.path().join("out"));
    let [host] = hosts();
    let meta = format!("{host}:34601");
    let taken = TcpListener::bind((host, 34801)).unwrap();
    fails(command("replica", &home, host, &meta), &out, 1, &["replica: ", "34801", "in use"]);
    drop(taken);

    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let below = file.join("below");
    fails(command("replica", &below, host, &meta), &out, 1, &[below.to_str().unwrap()]);
    fails(command("meta", Path::new("/proc/pegasus"), host, &meta), &out, 1, &["/proc/pegasus"]);

    let mut odd = command("replica", &home, host, &meta);
    odd.env("PEGASUS__REPLICATION__DATA_DIRS", format!("a:{}", below.display()));
    fails(odd, &out, 1, &["no data directory", below.to_str().unwrap()]);

    // Configurations that cannot work end with a code of their own, and nothing is written.
    let elsewhere = dir.path().join("elsewhere");
    let mut wrong = command("replica", &elsewhere, host, "");
    wrong
        .env("PEGASUS__NETWORK__PRIMARY_INTERFACE", "eth99")
        .env("PEGASUS__NETWORK__EXPLICIT_HOST_ADDRESS", "");
    wrong.args(["--set", "replication.durability=maybe"]);
    let told = [
        "3 mistakes in the configuration",
        "[network] primary_interface: no interface eth99 with an IPv4 address; there are lo (127.0.0.1)",
        "[meta_server] server_list: is empty: expected host:port of every meta-server",
        "--set replication.durability: [replication] durability = maybe: expected one of sync, page_cache",
    ];
    fails(wrong, &out, 78, &told);
    assert!(!elsewhere.exists());
    let mut missing = Command::new(programs().join("pegasus_server"));
    missing.args(["/no/such/config.ini", "-app_list", "meta"]);
    fails(missing, &out, 78, &["1 mistake ", "/no/such/config.ini: is not there", "--print-default-config"]);
    let mut proxy = command("proxy", &home, host, &meta);
    proxy.env("PEGASUS__VAR__CLUSTER_NAME", "c");
    fails(proxy, &out, 1, &["\"proxy\" is no role: expected meta, replica or collector"]);
}

#[test]
fn a_second_process_on_the_same_data_ends_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [host] = hosts();
    let meta = format!("{host}:34601");
    let home = dir.path().join("home");
    let mut first =
        Server::start(&mut command("meta,replica", &home, host, &meta), &dir.path().join("first"));
    first.wait_printed("replica listens on");
    first.wait_printed("meta listens on");
    let out = dir.path().join("second");
    for (role, told) in
        [("replica", "in use by another process"), ("meta", "another process may have it open")]
    {
        let mut second = command(role, &home, host, &meta);
        second.args(["--set", "apps.replica.ports=0", "--set", "apps.meta.ports=0"]);
        fails(second, &out, 1, &[told, home.to_str().unwrap()]);
    }
    assert!(http_get(&format!("http://{host}:34801/livez")).starts_with("HTTP/1.0 200"));
    first.signal(Signal::INT);
    assert!(first.wait_end().success(), "{}", first.printed());
}

#[test]
fn a_server_waits_for_metas_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let [host, nobody] = hosts();
    // A name that does not exist, and an address where nobody listens.
    let metas = format!("no-such-host.invalid:34601,{nobody}:34601");
    // Two meta-servers need ZooKeeper, which these roles do not use.
    let mut waiting = command("replica,collector", dir.path(), host, &metas);
    waiting.args([
        "--set",
        "meta_server.coordination=zookeeper",
        "--set",
        "zookeeper.hosts_list=127.0.0.1:1",
    ]);
    let mut server = Server::start(&mut waiting, &dir.path().join("out"));
    server.wait_printed("collector listens on");
    wait("the collector says what it waits for", || {
        let told = http_get(&format!("http://{host}:34101/readyz"));
        if told.contains("503") && told.contains("meta leader: ") { Ok(()) } else { Err(told) }
    });
    assert!(http_get(&format!("http://{host}:34101/metrics")).contains("meta_leader_reachable{"));
    assert!(server.is_running());
    server.signal(Signal::INT);
    assert!(server.wait_end().success(), "{}", server.printed());
}

#[test]
fn a_node_of_another_cluster_is_not_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let [host, other] = hosts();
    let (home, first, second) = (dir.path().join("node"), dir.path().join("one"), dir.path().join("two"));
    let out = |name: &str| dir.path().join(name);
    let mut meta =
        Server::start(&mut command("meta", &first, other, &format!("{other}:34601")), &out("meta1"));
    meta.wait_printed("meta listens on");
    let mut node =
        Server::start(&mut command("replica", &home, host, &format!("{other}:34601")), &out("node1"));
    let reps = home.join("replica/reps");
    wait("replicas", || match fs::read_dir(&reps).map(Iterator::count) {
        Ok(8) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    node.signal(Signal::INT);
    meta.signal(Signal::INT);
    assert!(node.wait_end().success() && meta.wait_end().success());

    // Another cluster takes the place of the first one's meta-server.
    let mut meta =
        Server::start(&mut command("meta", &second, other, &format!("{other}:34601")), &out("meta2"));
    meta.wait_printed("meta listens on");
    let node = Server::start(&mut command("replica", &home, host, &format!("{other}:34601")), &out("node2"));
    wait("the node says that it belongs elsewhere", || {
        let said = node.printed() + &fs::read_to_string(home.join("log/replica.log")).unwrap_or_default();
        if said.contains("belong") { Ok(()) } else { Err(said) }
    });
    let nodes = http_get(&format!("http://{other}:34601/meta/nodes"));
    assert!(nodes.contains("\"alive_node_count\":\"0\""), "{nodes}");
    // Nothing of it was touched: with its own meta-server it serves again.
    meta.signal(Signal::INT);
    meta.wait_end();
    drop(node);
    let mut meta =
        Server::start(&mut command("meta", &first, other, &format!("{other}:34601")), &out("meta3"));
    meta.wait_printed("meta listens on");
    let node = Server::start(&mut command("replica", &home, host, &format!("{other}:34601")), &out("node3"));
    wait("all primaries are back", || {
        let told = http_get(&format!("http://{host}:34801/replica/list"));
        let primaries = told.matches("\"Primary\"").count();
        if primaries == 8 { Ok(()) } else { Err(told) }
    });
    drop(node);
}

#[test]
fn a_disk_that_is_not_mounted_is_missing_and_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let [host] = hosts();
    let (home, meta) = (dir.path().join("home"), format!("{host}:34601"));
    let disks = [dir.path().join("ssd1"), dir.path().join("ssd2")];
    let start = |n: u32| {
        let mut command = command("meta,replica", &home, host, &meta);
        let list = format!("ssd1:{},ssd2:{}", disks[0].display(), disks[1].display());
        command.env("PEGASUS__REPLICATION__DATA_DIRS", list);
        let mut server = Server::start(&mut command, &dir.path().join(format!("out{n}")));
        server.wait_printed("replica listens on");
        server
    };
    let primaries = |wanted: usize| {
        wait("primaries", || {
            let told = http_get(&format!("http://{host}:34801/replica/list"));
            let found = told.matches("\"Primary\"").count();
            if found == wanted { Ok(()) } else { Err(format!("{found} of {wanted}: {told}")) }
        });
    };
    let end = |mut server: Server| {
        server.signal(Signal::INT);
        assert!(server.wait_end().success(), "{}", server.printed());
    };
    let server = start(1);
    primaries(8);
    // Before that nobody has written to it, and replicas that are missing may be made again.
    wait("the table is made", || {
        let told = http_get(&format!("http://{host}:34601/meta/apps"));
        if told.contains("AVAILABLE") { Ok(()) } else { Err(told) }
    });
    end(server);

    // The place where the second one is mounted, without it.
    let away = dir.path().join("away");
    fs::rename(&disks[1], &away).unwrap();
    fs::create_dir(&disks[1]).unwrap();
    let server = start(2);
    primaries(4);
    let said = server.printed();
    let why = "its marker is missing although it had one: the disk is not mounted";
    assert!(said.contains(why) && said.contains(disks[1].to_str().unwrap()), "{said}");
    end(server);
    let mut written = BTreeMap::new();
    files_below(&disks[1], &mut written);
    written.retain(|file, _| !file.ends_with(".pegasus-lock"));
    assert!(written.is_empty(), "under the mount: {written:?}");

    fs::remove_dir_all(&disks[1]).unwrap();
    fs::rename(&away, &disks[1]).unwrap();
    let server = start(3);
    primaries(8);
    end(server);
}

#[test]
fn a_meta_server_waits_for_zookeeper() {
    let dir = tempfile::tempdir().unwrap();
    let [host, nobody] = hosts();
    let mut waiting = command("meta", dir.path(), host, &format!("{host}:34601"));
    waiting.args(["--set", "meta_server.coordination=zookeeper"]);
    waiting.args(["--set", &format!("zookeeper.hosts_list=no-such-host.invalid:2181,{nobody}:2181")]);
    let mut server = Server::start(&mut waiting, &dir.path().join("out"));
    server.wait_printed("meta listens on");
    assert!(http_get(&format!("http://{host}:34601/livez")).starts_with("HTTP/1.0 200"));
    let ready = http_get(&format!("http://{host}:34601/readyz"));
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("leader: "), "{ready}");
    wait("it says where it looks for ZooKeeper", || {
        let said = server.printed();
        if said.contains(&format!("{nobody}:2181")) { Ok(()) } else { Err(said) }
    });
    assert!(server.is_running());
    server.signal(Signal::INT);
    assert!(server.wait_end().success(), "{}", server.printed());
}
