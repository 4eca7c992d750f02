//! Every server is restarted in turn, as for an upgrade; clients do not notice. With pypegasus3, which learns only every 2 s
//! that a partition has moved, a caller has to try once more after 3 s.
//!
//! When that client looks where the partitions are, it connects anew and forgets what it has asked for over the old
//! connections: those requests time out after 2 s more. So the last second try comes 7 s after a hand-over, and the next
//! server must not hand over before.

use std::time::{Duration, Instant};

use pegasus_integration_tests::{Known, Load, TestCluster, block_on, env_or, held, is_even};
use pegasus_onebox::Options;

use crate::python::Callers;

/// A hand-over takes some milliseconds; the rest is a debug build on a busy machine.
const NOTICEABLE: Duration = Duration::from_secs(3);

/// The balance begins when all has been well for 10 s, and takes some seconds.
const EVEN_WITHIN: Duration = Duration::from_secs(60);

/// How often a caller of pypegasus3 tries again: this is the promise. `PEGASUS_TEST_TRIES` allows more.
const TRIES: u32 = 1;

/// Until the last second try after a hand-over: 2 s until the client looks, 2 s until what it has dropped times out, 3 s of
/// pause.
const SECOND_TRIES: Duration = Duration::from_secs(7);

/// Between two servers, as `rolling_restart` of the shell has it: a server lingers for 5 s only.
const PAUSE: Duration = Duration::from_secs(3);

#[test]
fn a_rolling_restart_of_five_fails_no_operation() {
    let cluster = TestCluster::start(Options { replicas: 5, partitions: 16, ..Options::default() });
    block_on(async {
        until_even(&cluster).await;
        let table = cluster.table().await;
        let known = Known::start(&table, Load::default());
        known.proceed(200, Duration::from_secs(60)).await;
        let callers =
            tokio::task::block_in_place(|| Callers::start(&cluster, env_or("PEGASUS_TEST_TRIES", TRIES)));
        let mut names = cluster.replicas();
        names.push("collector".to_owned());
        let begun = Instant::now();
        let (mut longest, mut shortest) = (Duration::ZERO, Duration::MAX);
        for name in &names {
            let stopping = Instant::now();
            tokio::task::block_in_place(|| cluster.stop(name)).unwrap();
            longest = longest.max(stopping.elapsed());
            tokio::task::block_in_place(|| cluster.start_member(name)).unwrap();
            cluster.heal();
            tokio::time::sleep(PAUSE).await;
            if name != "collector" {
                shortest = shortest.min(stopping.elapsed());
            }
        }
        // Every replica-server had something to hand over, and lingered.
        assert!(shortest >= SECOND_TRIES, "the next server handed over {shortest:?} later");
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

/// A table that is made while some servers are starting has nothing on those until the balance gives them their share;
/// while it does, partitions move of which this test knows nothing.
async fn until_even(cluster: &TestCluster) {
    let client = cluster.client().await;
    let begun = Instant::now();
    loop {
        let now = held(&client.partitions("temp").await.unwrap());
        if now.len() == cluster.replicas().len() && is_even(&now) {
            return;
        }
        assert!(begun.elapsed() < EVEN_WITHIN, "{now:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
