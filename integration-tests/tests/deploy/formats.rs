//! Releases beside one another: what an earlier one has written is read, what a later one has written or says is
//! refused, clearly and without harm.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use pegasus_client::Cluster;
use pegasus_integration_tests::block_on;
use rustix::process::Signal;

use crate::mistakes::command;
use crate::servers::{PATIENCE, Server, hosts, repository, run, wait};

/// Made by `fixtures/make.sh` of the release that they are named after.
const RELEASES: [&str; 1] = ["release-0.1.0.tar.gz"];
/// Of the server in them: a node is its address.
const HOST: Ipv4Addr = Ipv4Addr::new(127, 99, 88, 77);

fn unpack(release: &str, dir: &Path) {
    let file = repository().join("integration-tests/tests/deploy/fixtures").join(release);
    run(Command::new("tar").arg("xzf").arg(file).arg("-C").arg(dir));
}

pub fn files_below(dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
}

/// CRC-32C bit by bit: a header that is whole, of a version that nobody has written yet.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn make_marker_newer(home: &Path) {
    let file = home.join(".pegasus-disk");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("pegasus-disk 1 ", "pegasus-disk 2 ", 1)).unwrap();
}

fn make_log_newer(home: &Path) {
    let file = home.join("replica/log/log.000000000002");
    let mut bytes = fs::read(&file).unwrap();
    assert_eq!(bytes[8..12], [1, 0, 0, 0], "the version in a segment's header");
    bytes[8] = 2;
    bytes[12..16].fill(0);
    let crc = crc32c(&bytes[..64]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    fs::write(&file, bytes).unwrap();
}

/// Of one replica alone, as when somebody has copied it here from another node.
fn make_replica_newer(home: &Path) {
    let replicas = fs::read_dir(home.join("replica/reps")).unwrap();
    let mut files: Vec<_> = replicas.map(|entry| entry.unwrap().path().join(".replica-meta")).collect();
    files.sort();
    assert!(files.len() > 1, "another one stays as it is");
    let text = fs::read_to_string(&files[0]).unwrap();
    fs::write(&files[0], text.replacen("pegasus-replica-meta 1 ", "pegasus-replica-meta 2 ", 1)).unwrap();
}

/// One test, as there is only one address.
#[test]
fn what_other_releases_have_written() {
    let meta = format!("{HOST}:34601");
    for release in RELEASES {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        unpack(release, &home);
        let mut server =
            Server::start(&mut command("meta,replica", &home, HOST, &meta), &dir.path().join("out"));
        server.wait_printed("replica listens on");
        block_on(async {
            let cluster = Cluster::connect(&meta).await.unwrap();
            let table = cluster.table("temp").await.unwrap().with_timeout(PATIENCE);
            for kind in ["table", "log"] {
                for n in 1..=20 {
                    let value = table.get(format!("{kind}{n}"), "s").await.unwrap();
                    assert_eq!(
                        value.as_deref(),
                        Some(format!("value{n}").as_bytes()),
                        "{release}: {kind}{n}"
                    );
                }
            }
            table.set("new", "s", "value").await.unwrap();
        });
        server.signal(Signal::INT);
        assert!(server.wait_end().success(), "{release}: {}", server.printed());
    }

    type Change = fn(&Path);
    let later: [(&str, Change, &str); 3] = [
        ("the marker", make_marker_newer, "/.pegasus-disk has format version 2; this program knows up to 1"),
        ("the log", make_log_newer, "segment 2: format version 2 is newer than this program"),
        ("a replica", make_replica_newer, "/.replica-meta has format version 2; this program knows up to 1"),
    ];
    for (what, change, told) in later {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        unpack(RELEASES[RELEASES.len() - 1], &home);
        change(&home);
        let mut before = BTreeMap::new();
        files_below(&home, &mut before);
        let mut replica = command("replica", &home, HOST, &meta);
        replica.env("PEGASUS__CORE__LOG_DIR", dir.path().join("log"));
        let mut server = Server::start(&mut replica, &dir.path().join("out"));
        let status = server.wait_end();
        let printed = server.printed();
        assert_eq!(status.code(), Some(1), "{what}: {printed}");
        assert!(printed.contains(told), "{what}: {printed}");
        let mut after = BTreeMap::new();
        files_below(&home, &mut after);
        let changed: Vec<_> = before.keys().filter(|file| before.get(*file) != after.get(*file)).collect();
        assert!(changed.is_empty() && after.len() == before.len(), "{what}: changed {changed:?}");
    }
}

/// A hello of a later release; its body is its own affair.
const LATER_HELLO: &[u8] = b"PGR1\x05\x00\x02\x00xyz";
/// Length and version alone: what follows is not looked at.
const LATER_REPLY: &[u8] = b"\x05\x00\x02\x00xyz";

#[test]
fn peers_of_a_later_release_are_told_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let [host, other] = hosts();
    // A meta-server of a later release: whatever is said to it, its answer has another version.
    let listener = TcpListener::bind((other, 34601)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut hello = [0; 64];
            let _ = stream.read(&mut hello).and_then(|_| stream.write_all(LATER_REPLY)); // the server sees to it
        }
    });
    let home = dir.path().join("home");
    let mut replica = command("replica", &home, host, &format!("{other}:34601"));
    let server = Server::start(&mut replica, &dir.path().join("out"));
    wait("the replica-server says why it is not taken in", || {
        let said = server.printed() + &fs::read_to_string(home.join("log/replica.log")).unwrap_or_default();
        if said.contains("it speaks protocol version 2, we speak 1") { Ok(()) } else { Err(said) }
    });

    // And one that dials is told ours; the log says so, too.
    let mut stream = TcpStream::connect((host, 34801)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(LATER_HELLO).unwrap();
    let mut reply = [0; 4];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[2..], [1, 0], "our version: {reply:?}");
    let from = stream.local_addr().unwrap().to_string();
    wait("the replica-server says whom it has turned away", || {
        let log = fs::read_to_string(home.join("log/replica.log")).unwrap_or_default();
        let told =
            |line: &str| line.contains("a peer of another release was turned away") && line.contains(&from);
        if log.lines().any(told) { Ok(()) } else { Err(log) }
    });
}
