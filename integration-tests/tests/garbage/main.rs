//! Strangers on the ports of a running cluster: whatever they send, no daemon stops, none grows without bound, and a
//! normal client works all the time.
//!
//! Each kind of garbage is thrown at the ports of all three roles while writers write. Afterwards every process is still
//! the one that it was, its memory is bounded, the writers get on, and a client that comes anew is served.
//!
//! `PEGASUS_TEST_KIND=text` throws only the kinds with this in their name.
#![allow(clippy::unwrap_used, reason = "a test: also its helpers may panic")]
#![allow(clippy::print_stdout, reason = "also what a test calls tells what it does")]

mod administration;
mod frames;
mod http;
mod peers;
mod slow;
mod stranger;
mod thrift;
mod watch;

use std::time::{Duration, Instant};

use pegasus_client::Table;
use pegasus_integration_tests::{TestCluster, Writers, block_on};
use pegasus_onebox::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stranger::Target;
use watch::Watch;

const WRITERS: usize = 4;
const VALUE_BYTES: usize = 100;
/// What garbage may add to a process's memory at any time, but for half frames: buffers of connections, and what the
/// writers write meanwhile.
const MORE_KIB: u64 = 96 << 10;
/// Half frames of all connections together may take 128 MiB (`Limits::partial_bytes`).
const MORE_FOR_FRAMES_KIB: u64 = (128 << 10) + MORE_KIB;
/// Answers that clients have not taken may take 128 MiB (`Limits::unread_bytes`). Three times: connections are closed and
/// others take their place, and the allocator keeps what was freed for a second.
const MORE_FOR_ANSWERS_KIB: u64 = 3 * (128 << 10) + MORE_KIB;
/// A restarted session, a refreshed layout: no write may take longer, on a machine that also compiles.
const LONGEST_WRITE: Duration = Duration::from_secs(15);

/// Throws something at one port. What it returns is kept open until the next kind of garbage.
type Throw = fn(&Target) -> Vec<std::net::TcpStream>;

const KINDS: &[(&str, u64, Throw)] = &[
    ("random bytes", MORE_KIB, frames::random_bytes),
    ("wrong headers", MORE_KIB, frames::wrong_headers),
    ("half frames", MORE_KIB, frames::half_frames),
    ("long half frames", MORE_FOR_FRAMES_KIB, frames::long_half_frames),
    ("hostile thrift", MORE_KIB, thrift::hostile),
    ("lists of nothing", MORE_KIB, thrift::lists_of_nothing),
    ("1,000 idle connections", MORE_KIB, slow::idle),
    ("connections that come and go", MORE_KIB, slow::come_and_go),
    ("a byte now and then", MORE_KIB, slow::drop_by_drop),
    ("answers that nobody reads", MORE_KIB, slow::unread_answers),
    ("answers that nobody of many reads", MORE_FOR_ANSWERS_KIB, slow::unread_answers_of_many),
    ("HTTP", MORE_KIB, http::all),
    ("prefaces of peers", MORE_KIB, peers::prefaces),
    ("peers that talk nonsense", MORE_KIB, peers::nonsense),
    ("administration", MORE_KIB, administration::all),
];

#[test]
fn garbage_stops_nobody() {
    raise_open_files();
    let cluster = TestCluster::start(Options::default());
    let targets: Vec<_> = cluster
        .members()
        .iter()
        .map(|m| Target {
            name: m.name.clone(),
            role: m.role,
            address: m.address,
            pid: cluster.pid(&m.name).unwrap(),
        })
        .collect();
    block_on(async {
        let table = cluster.table().await;
        table.set(slow::LARGE_KEY, "", vec![b'l'; slow::LARGE_BYTES]).await.unwrap();
        let writers = Writers::start(&table, WRITERS, VALUE_BYTES);
        writers.proceed(200).await;
        let watch = Watch::start(&targets);
        let only = std::env::var("PEGASUS_TEST_KIND").unwrap_or_default();
        for (kind, more_kib, throw) in KINDS.iter().filter(|(kind, ..)| kind.contains(&only)) {
            let begun = Instant::now();
            watch.begin();
            // All ports at once.
            let thrown: Vec<_> = targets
                .iter()
                .map(|target| {
                    let target = target.clone();
                    tokio::task::spawn_blocking(move || throw(&target))
                })
                .collect();
            let mut kept = Vec::new();
            for one in thrown {
                kept.append(&mut one.await.unwrap());
            }
            writers.proceed(20).await;
            serves_a_new_client(&cluster).await;
            let grown = watch.grown_kib();
            println!(
                "{kind}: {:.1?}, {} connections kept, grown {}",
                begun.elapsed(),
                kept.len(),
                shown(&grown)
            );
            for (target, grown) in targets.iter().zip(grown) {
                assert_eq!(cluster.pid(&target.name).unwrap(), target.pid, "{kind}: {} ended", target.name);
                assert!(grown < *more_kib, "{kind}: {} has grown by {grown} KiB", target.name);
            }
            // Whatever they held is free again.
            drop(kept);
            let begun = Instant::now();
            let settled = watch.settled_kib(MORE_KIB).await;
            println!("  left {} after {:.1?}", shown(&settled), begun.elapsed());
            for (target, grown) in targets.iter().zip(settled) {
                assert!(grown < MORE_KIB, "{kind}: {} keeps {grown} KiB", target.name);
            }
        }
        let acknowledged = writers.stop(VALUE_BYTES).await;
        let longest = acknowledged.longest();
        println!("{} writes, the longest took {longest:.1?}", acknowledged.count());
        assert!(longest < LONGEST_WRITE);
        acknowledged.check(&table).await;
        let tables = cluster.client().await.tables(None).await.unwrap();
        assert_eq!(tables.iter().map(|table| &*table.name).collect::<Vec<_>>(), ["temp"], "none was made");
    });
    cluster.heal();
}

/// All ports are idled at together.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Somebody who connects now finds the table, writes and reads.
async fn serves_a_new_client(cluster: &TestCluster) {
    let table: Table = cluster.table().await;
    for partition in 0..table.partition_count() {
        let key =
            (0..).map(|n: u32| n.to_string()).find(|key| table.partition_of(key, "") == partition).unwrap();
        let value = rand::random::<[u8; 8]>();
        table.set(&key, "", value.to_vec()).await.unwrap();
        assert_eq!(table.get(&key, "").await.unwrap().as_deref(), Some(&value[..]));
    }
}

fn shown(kib: &[u64]) -> String {
    let each: Vec<_> = kib.iter().map(|kib| format!("{:.1}", *kib as f64 / 1024.0)).collect();
    format!("[{}] MiB", each.join(" "))
}
