//! Strangers on the ports.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use pegasus_integration_tests::{TestCluster, Usage, block_on, http_get};
use pegasus_onebox::Options;

/// Connections that say nothing, per process.
const SILENT: usize = 1000;
/// What all of the below may add to a process's memory.
const MORE_KIB: u64 = 64 << 10;

#[test]
fn garbage_stops_nobody() {
    let cluster = TestCluster::start(Options::default());
    let targets: Vec<_> = cluster
        .members()
        .iter()
        .map(|m| (m.name.clone(), m.address, cluster.pid(&m.name).unwrap()))
        .collect();
    let before: Vec<_> = targets.iter().map(|(.., pid)| Usage::of(*pid)).collect();

    for (_, address, _) in &targets {
        for what in garbage() {
            throw(*address, &what);
        }
    }
    let silent: Vec<_> = targets
        .iter()
        .flat_map(|(_, address, _)| (0..SILENT).map(|_| TcpStream::connect(*address)))
        // A server may refuse or close them, it may not fall over.
        .filter_map(Result::ok)
        .collect();
    println!("{} silent connections", silent.len());

    for (name, address, _) in &targets {
        let answer = http_get(*address, "/no/such/path");
        assert!(answer.starts_with("HTTP/1.1 404"), "{name}: {answer:?}");
        let answer = http_get(*address, "/livez");
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer:?}");
    }
    block_on(async {
        let table = cluster.table().await;
        for i in 0..200 {
            table.set(format!("key {i}"), "", "value").await.unwrap();
            assert!(table.get(format!("key {i}"), "").await.unwrap().is_some());
        }
    });
    for ((name, _, pid), before) in targets.iter().zip(before) {
        assert_eq!(cluster.pid(name).unwrap(), *pid, "{name} has not been restarted");
        let now = Usage::of(*pid);
        println!("{name}: {} MB, before {} MB", now.resident_kib / 1000, before.resident_kib / 1000);
        assert!(now.resident_kib < before.resident_kib + MORE_KIB, "{name}: {before:?} {now:?}");
    }
    drop(silent);
    cluster.heal();
}

fn garbage() -> Vec<Vec<u8>> {
    let random = |n: usize| (0..n).map(|_| rand::random::<u8>()).collect::<Vec<_>>();
    let mut all: Vec<Vec<u8>> = (0..20).map(|i| random(1 << (i % 16))).collect();
    // Client frames: a header version of the future, huge lengths, half a header, a body of noise.
    let frame = |header_length: u32, body_length: u32| {
        let mut frame = b"THFT".to_vec();
        frame.extend(0u32.to_be_bytes());
        frame.extend(header_length.to_be_bytes());
        frame.extend(0u32.to_be_bytes());
        frame.extend(body_length.to_be_bytes());
        frame.resize(48, 0);
        frame
    };
    all.push(frame(48, u32::MAX));
    all.push(frame(u32::MAX, 10));
    all.push(frame(48, 1 << 30));
    all.push(frame(48, 100)[..20].to_vec());
    all.push([frame(48, 100), random(100)].concat());
    all.push([frame(48, 4000), random(4000)].concat());
    all.push(b"THFT".to_vec());
    // HTTP that never ends, and HTTP of another world.
    all.push([b"GET / HTTP/1.1\r\n".to_vec(), b"x: y\r\n".repeat(20_000)].concat());
    all.push([b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat());
    all.push(b"POST /metrics HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n".to_vec());
    all.push(b"\x16\x03\x01\x02\x00\x01\x00".to_vec());
    // The preface between servers, and then noise.
    for preface in [b"PGR1", b"RDSN"] {
        all.push([&preface[..], &random(500)].concat());
        all.push([&preface[..], &u32::MAX.to_le_bytes(), &random(100)].concat());
    }
    all
}

/// Says something, listens a moment, leaves. Errors are what one expects.
fn throw(address: SocketAddrV4, what: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
    let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
    let _ = stream.write_all(what);
    let _ = stream.read(&mut [0; 1024]);
}
