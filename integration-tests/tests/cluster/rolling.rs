//! Every server is restarted in turn, as for an upgrade; clients do not notice. With pypegasus3, which learns only every 2 s
//! that a partition has moved, a caller has to try once more after 3 s.

use std::time::{Duration, Instant};

use pegasus_integration_tests::{Known, Load, TestCluster, block_on, env_or};
use pegasus_onebox::Options;

use crate::python::Callers;

/// A hand-over takes some milliseconds; the rest is a debug build on a busy machine.
const NOTICEABLE: Duration = Duration::from_secs(3);

/// How often a caller of pypegasus3 tries again: once is the promise. On a machine that compiles beside, servers of a debug
/// build stand still for seconds, and are replaced for it.
const TRIES: u32 = 3;

/// `PEGASUS_TEST_TRIES=1` tests what is promised.
#[test]
fn a_rolling_restart_of_five_fails_no_operation() {
    let cluster = TestCluster::start(Options { replicas: 5, partitions: 16, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        let known = Known::start(&table, Load::default());
        known.proceed(200, Duration::from_secs(60)).await;
        let callers =
            tokio::task::block_in_place(|| Callers::start(&cluster, env_or("PEGASUS_TEST_TRIES", TRIES)));
        let mut names = cluster.replicas();
        names.push("collector".to_owned());
        let begun = Instant::now();
        let mut longest = Duration::ZERO;
        for name in &names {
            let stopping = Instant::now();
            tokio::task::block_in_place(|| cluster.stop(name)).unwrap();
            longest = longest.max(stopping.elapsed());
            tokio::task::block_in_place(|| cluster.start_member(name)).unwrap();
            cluster.heal();
        }
        println!("pypegasus3: {}", tokio::task::block_in_place(|| callers.finish()).trim_end());
        let seen = known.finish(&table).await;
        let all: Vec<_> = (0..table.partition_count()).collect();
        let gap = seen.gap(&all, begun, begun.elapsed());
        println!(
            "{} servers in {:?}, at most {longest:?} to stop one; {} writes with gaps up to {gap:?}, {} reads up to {:?}",
            names.len(),
            begun.elapsed(),
            seen.writes,
            seen.reads,
            seen.longest_read
        );
        assert_eq!((seen.failed, seen.violations), (Vec::new(), Vec::new()));
        assert_eq!(seen.unclear, 0, "no increment is left unclear");
        assert!(gap < NOTICEABLE && longest < Duration::from_secs(30), "{gap:?}, {longest:?}");
    });
}
