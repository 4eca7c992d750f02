use std::time::{Duration, Instant};

use pegasus_client::Table;

use crate::{Known, Load, Seen, TestCluster};

/// A process is dead for a part of this time.
const DEAD_MS: u64 = 1_500;
/// Writes between two kills, and how long they may take at most.
const BETWEEN: (u64, Duration) = (50, Duration::from_secs(60));

/// kill -9 of each process in turn and of all at once under clients that know every value, until `enough` says so of
/// the number of rounds and the time. How many rounds there were, and what the clients have seen.
///
/// # Panics
/// When a process cannot be killed or started, or the cluster does not heal.
pub async fn die_in_turn(
    cluster: &TestCluster,
    table: &Table,
    enough: impl Fn(usize, Duration) -> bool,
) -> (usize, Seen) {
    let known = Known::start(table, Load::default());
    known.proceed(BETWEEN.0, BETWEEN.1).await;
    let names: Vec<_> = cluster.members().iter().map(|member| member.name.clone()).collect();
    let begun = Instant::now();
    let mut round = 0;
    while !enough(round, begun.elapsed()) {
        let victim = names.get(round % (names.len() + 1));
        let killed = tokio::task::block_in_place(|| match victim {
            Some(name) => cluster.kill(name),
            None => cluster.kill_all().map(drop),
        });
        killed.expect("it can be killed");
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..DEAD_MS))).await;
        tokio::task::block_in_place(|| cluster.start_all()).expect("it starts again");
        cluster.heal();
        known.proceed(BETWEEN.0, BETWEEN.1).await;
        round += 1;
    }
    (round, known.finish(table).await)
}
