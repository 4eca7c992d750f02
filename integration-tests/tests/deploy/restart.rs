//! `rolling_restart` of the shell, with somebody who starts again what ends, as systemd does.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pegasus_integration_tests::{TestCluster, Writers, block_on};
use pegasus_onebox::{Options, State};

use crate::servers::{programs, run};

/// Asked for between two servers: longer than a restart takes.
const PAUSE_S: u64 = 12;

/// Set when the test is over, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// When it started one again.
fn supervise(cluster: &TestCluster, over: &AtomicBool) -> Vec<Instant> {
    let mut started = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for name in cluster.replicas() {
            if cluster.status(&name).unwrap().state == State::Dead {
                match cluster.start_member(&name) {
                    Ok(_) => started.push(Instant::now()),
                    Err(error) => println!("{name}: {error:#}"), // its port may not be free yet: tried again
                }
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    started
}

#[test]
fn all_replica_servers_restart_and_no_write_fails() {
    let cluster = TestCluster::start(Options { partitions: 4, ..Options::default() });
    let pids = || cluster.replicas().iter().map(|name| cluster.pid(name).unwrap()).collect::<Vec<_>>();
    let before = pids();
    let over = AtomicBool::new(false);
    let started = std::thread::scope(|scope| {
        let until_over = Over(&over);
        let supervisor = scope.spawn(|| supervise(&cluster, &over));
        block_on(async {
            let table = cluster.table().await;
            let writers = Writers::start(&table, 4, 100);
            writers.proceed(50).await;
            let metas = cluster.metas();
            let restarting = std::thread::spawn(move || {
                let shell = programs().join("pegasus_shell");
                let pause = PAUSE_S.to_string();
                run(Command::new(shell).args([
                    "--meta",
                    &metas,
                    "rolling_restart",
                    "-w",
                    "120",
                    "-p",
                    &pause,
                ]))
            });
            while !restarting.is_finished() {
                writers.proceed(5).await;
            }
            let acknowledged = writers.stop(100).await;
            println!("{} writes, the longest {:?}", acknowledged.count(), acknowledged.longest());
            acknowledged.check(&table).await;
            let told = restarting.join().unwrap();
            println!("{told}");
            assert!(told.ends_with("3 of 3 replica-servers restarted\n"), "{told}");
        });
        drop(until_over);
        supervisor.join().unwrap()
    });
    let between: Vec<_> = started.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(between.len(), 2, "{between:?}");
    assert!(between.iter().all(|time| *time >= Duration::from_secs(PAUSE_S)), "{between:?}");
    let after = pids();
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
}
