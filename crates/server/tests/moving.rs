//! `--move-metadata-to` and `--remove-metadata` with a real ZooKeeper, and a meta-server on what was moved. Debian's package `zookeeper` must
//! be there (`make test` sees to it).
#![allow(clippy::unwrap_used, reason = "a test: also its helpers may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pegasus_onebox::ZooKeeper;
use pegasus_zk_coordination::{MetaStore, SledStore};

const SERVER: &str = env!("CARGO_BIN_EXE_pegasus_server");
/// Of what a busy machine may take its time for.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a cluster of the reference has left.
const METADATA: &str = include_str!("../../zk-coordination/tests/fixtures/reference-cluster.txt");

/// With nodes on loopback: they are asked whether they live.
fn metadata() -> String {
    let mut text = METADATA.replace("10.0.0.", "127.9.0.");
    for n in 1..=9 {
        text = text.replace(&format!("rs{n}.example"), &format!("127.9.1.{n}"));
    }
    text
}

fn config(dir: &Path, hosts: &str) -> PathBuf {
    let file = dir.join("config.ini");
    let text = format!(
        "[apps.meta]\nports = 0\n[core]\ndata_dir = {}\n[network]\nexplicit_host_address = 127.0.0.1\n\
         [meta_server]\nserver_list = 127.0.0.1:1\ncluster_root = /pegasus/c1\ncoordination = zookeeper\n\
         [zookeeper]\nhosts_list = {hosts}\n[replication]\ncluster_name = c1\n",
        dir.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn move_to(file: &Path, store: &str) -> Output {
    Command::new(SERVER).arg(file).arg("--move-metadata-to").arg(store).output().unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A meta-server, and where it listens.
fn meta(file: &Path, dir: &Path) -> (Running, String) {
    let child =
        Command::new(SERVER).arg(file).args(["-app_list", "meta"]).stdout(Stdio::null()).spawn().unwrap();
    let running = Running(child);
    let log = dir.join("log/meta.log");
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let listens = text.lines().find(|line| line.contains("meta-server is listening"));
        let address = listens.and_then(|line| line.split("me=").nth(1)?.split_whitespace().next());
        if let Some(address) = address {
            return (running, address.to_owned());
        }
        assert!(begun.elapsed() < PATIENCE, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(address: &str, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ =
            stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer).map(drop));
    }
    answer
}

fn fill(store: &dyn MetaStore) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        store.ensure_path("/pegasus").await.unwrap();
        let text = metadata();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (path, content) = line.split_once(' ').unwrap_or((line, ""));
            store.create(path, content.to_owned().into()).await.unwrap();
        }
        store.create("/pegasus/c1/cluster_id", "an id".into()).await.unwrap();
    });
}

#[test]
fn a_cluster_moves_to_zookeeper_and_back() {
    let zookeeper = ZooKeeper::start(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = config(dir, &zookeeper.hosts());
    zookeeper.wait_serving(PATIENCE).unwrap();
    let nothing = told(&move_to(&file, "zookeeper"));
    assert!(nothing.contains("there is no embedded store"), "{nothing}");
    fill(&SledStore::open(&dir.join("meta-store")).unwrap());

    let moved = move_to(&file, "zookeeper");
    let text = told(&moved);
    assert!(moved.status.success(), "{text}");
    for part in
        ["Moved 19 nodes", "duplication to other clusters is not supported", "coordination = zookeeper"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let again = told(&move_to(&file, "zookeeper"));
    assert!(again.contains("before, completely"), "{again}");

    // A meta-server serves what was moved, and nobody moves it meanwhile.
    let (running, address) = meta(&file, dir);
    let begun = Instant::now();
    while !get(&address, "/meta/app?name=usertable&detail").contains("127.9.1.3:34801") {
        assert!(begun.elapsed() < PATIENCE, "{}", get(&address, "/meta/apps"));
        std::thread::sleep(Duration::from_millis(50));
    }
    let held = told(&move_to(&file, "embedded"));
    assert!(held.contains("leads there"), "{held}");
    drop(running);

    // Killed, it is the leader until its session ends.
    let begun = Instant::now();
    loop {
        let back = move_to(&file, "embedded");
        if back.status.success() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE && told(&back).contains("leads there"), "{}", told(&back));
        std::thread::sleep(Duration::from_millis(200));
    }
    let store = SledStore::open(&dir.join("meta-store")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let apps = runtime.block_on(store.get("/pegasus/c1/apps")).unwrap().unwrap();
    assert_eq!(&apps.bytes[..], b"unlock");
    assert!(runtime.block_on(store.get("/pegasus/c1/apps/2/3")).unwrap().is_some());
}

fn remove(file: &Path, more: &[&str]) -> (bool, String) {
    let output = Command::new(SERVER).arg(file).arg("--remove-metadata").args(more).output().unwrap();
    (output.status.success(), told(&output))
}

#[test]
fn a_cluster_that_is_not_in_use_is_removed() {
    let zookeeper = ZooKeeper::start(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = config(dir, &zookeeper.hosts());
    zookeeper.wait_serving(PATIENCE).unwrap();
    fill(&SledStore::open(&dir.join("meta-store")).unwrap());
    assert!(move_to(&file, "zookeeper").status.success());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metas = format!("meta_server.server_list={}", taken.local_addr().unwrap());

    let (running, address) = meta(&file, dir);
    let begun = Instant::now();
    while !get(&address, "/readyz").starts_with("HTTP/1.1 200") {
        assert!(begun.elapsed() < PATIENCE, "{}", get(&address, "/readyz"));
        std::thread::sleep(Duration::from_millis(50));
    }
    for (more, why) in [
        (
            ["c2", "--set", "core.logging_format=text"],
            "is the configuration of cluster \"c1\", not of \"c2\"",
        ),
        (["c1", "--set", "core.logging_format=text"], "leads there"),
        (["c1", "--set", &metas], "somebody listens on 127.0.0.1:"),
    ] {
        let (done, told) = remove(&file, &more);
        assert!(!done && told.contains(why), "{more:?}: {told}");
    }
    drop(running);
    // Killed, it is the leader until its session ends.
    let begun = Instant::now();
    let told = loop {
        let (done, told) = remove(&file, &["c1"]);
        if done {
            break told;
        }
        assert!(begun.elapsed() < PATIENCE && told.contains("leads there"), "{told}");
        std::thread::sleep(Duration::from_millis(200));
    };
    for part in ["usertable", "127.9.1.3:34801", &dir.display().to_string()] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let (done, told) = remove(&file, &["c1"]);
    assert!(!done && told.contains("/pegasus/c1 holds no cluster"), "{told}");

    // The embedded store, which says that everything moved away.
    let embedded = ["c1", "--set", "meta_server.coordination=embedded"];
    let (done, told) = remove(&file, &embedded);
    assert!(done && told.contains("Removed embedded:"), "{told}");
    let (done, told) = remove(&file, &embedded);
    assert!(!done && told.contains("holds no cluster"), "{told}");
}
