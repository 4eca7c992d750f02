//! `rolling_restart` of the shell, with somebody who starts again what ends, as systemd does.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pegasus_integration_tests::{TestCluster, Writers, block_on};
use pegasus_onebox::{Options, State};

use crate::servers::{programs, run};

/// Set when the test is over, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn supervise(cluster: &TestCluster, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        for name in cluster.replicas() {
            if cluster.status(&name).unwrap().state == State::Dead
                && let Err(error) = cluster.start_member(&name)
            {
                println!("{name}: {error:#}"); // its port may not be free yet: tried again
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn all_replica_servers_restart_and_no_write_fails() {
    let cluster = TestCluster::start(Options { partitions: 4, ..Options::default() });
    let pids = || cluster.replicas().iter().map(|name| cluster.pid(name).unwrap()).collect::<Vec<_>>();
    let before = pids();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| supervise(&cluster, &over));
        block_on(async {
            let table = cluster.table().await;
            let writers = Writers::start(&table, 4, 100);
            writers.proceed(50).await;
            let metas = cluster.metas();
            let restarting = std::thread::spawn(move || {
                let shell = programs().join("pegasus_shell");
                run(Command::new(shell).args(["--meta", &metas, "rolling_restart", "-w", "120"]))
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
    });
    let after = pids();
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
}
