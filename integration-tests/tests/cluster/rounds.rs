//! kill -9 of each process in turn and of all at once, again and again, under clients that know every value.

use std::time::{Duration, Instant};

use pegasus_integration_tests::{Known, Load, TestCluster, block_on, env_or};
use pegasus_onebox::{Durability, Options};

/// Of each durability mode in `make test`.
const SECONDS: u64 = 80;

#[test]
fn processes_die_and_nothing_acknowledged_is_lost_or_stale_in_sync_mode() {
    die_in_turn(Durability::Sync);
}

#[test]
fn processes_die_and_nothing_acknowledged_is_lost_or_stale_in_page_cache_mode() {
    die_in_turn(Durability::PageCache);
}

/// `ROUNDS` sets the number of kills of each mode; else it goes on for some time.
fn die_in_turn(durability: Durability) {
    let rounds: usize = env_or("ROUNDS", 0);
    let cluster = TestCluster::start(Options { durability, ..Options::default() });
    block_on(async {
        let table = cluster.table().await.with_timeout(Duration::from_secs(60));
        let known = Known::start(&table, Load::default());
        known.proceed(100, Duration::from_secs(60)).await;
        let names: Vec<_> = cluster.members().iter().map(|member| member.name.clone()).collect();
        let begun = Instant::now();
        let mut round = 0;
        while if rounds > 0 { round < rounds } else { begun.elapsed() < Duration::from_secs(SECONDS) } {
            let victim = names.get(round % (names.len() + 1));
            let dead_for = Duration::from_millis(rand::random_range(0..1_500));
            tokio::task::block_in_place(|| match victim {
                Some(name) => cluster.kill(name),
                None => cluster.kill_all().map(drop),
            })
            .unwrap();
            tokio::time::sleep(dead_for).await;
            tokio::task::block_in_place(|| cluster.start_all()).unwrap();
            cluster.heal();
            known.proceed(50, Duration::from_secs(60)).await;
            round += 1;
        }
        let seen = known.finish(&table).await;
        println!(
            "{round} rounds in {:?}: {} writes, {} reads, {} increments and {} unclear, the longest read took {:?}",
            begun.elapsed(),
            seen.writes,
            seen.reads,
            seen.incremented,
            seen.unclear,
            seen.longest_read
        );
        assert_eq!((seen.failed, seen.violations), (Vec::new(), Vec::new()));
    });
}
