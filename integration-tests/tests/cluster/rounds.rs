//! kill -9 of each process in turn and of all at once, again and again, under clients that know every value.

use std::time::Duration;

use pegasus_integration_tests::{TestCluster, block_on, die_in_turn, env_or};
use pegasus_onebox::{Durability, Options};

/// Of each durability mode in `make test`.
const SAMPLE: Duration = Duration::from_secs(80);

#[test]
fn processes_die_and_nothing_acknowledged_is_lost_or_stale_in_sync_mode() {
    rounds(Durability::Sync);
}

#[test]
fn processes_die_and_nothing_acknowledged_is_lost_or_stale_in_page_cache_mode() {
    rounds(Durability::PageCache);
}

/// `ROUNDS` sets the number of kills of each mode; else it goes on for some time.
fn rounds(durability: Durability) {
    let wanted: usize = env_or("ROUNDS", 0);
    let cluster = TestCluster::start(Options { durability, ..Options::default() });
    block_on(async {
        let table = cluster.table().await.with_timeout(Duration::from_secs(60));
        let enough = |rounds, time| if wanted > 0 { rounds >= wanted } else { time >= SAMPLE };
        let (rounds, seen) = die_in_turn(&cluster, &table, enough).await;
        println!(
            "{rounds} rounds: {} writes, {} reads, {} increments and {} unclear, the longest read took {:?}",
            seen.writes, seen.reads, seen.incremented, seen.unclear, seen.longest_read
        );
        assert_eq!((seen.failed, seen.violations), (Vec::new(), Vec::new()));
    });
}
