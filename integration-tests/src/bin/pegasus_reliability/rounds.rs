//! kill -9 of each process in turn and of all at once, under clients that know every value.

use std::fmt::Write as _;

use pegasus_integration_tests::{TestCluster, block_on, die_in_turn, say};
use pegasus_onebox::{Durability, Options};
use serde::{Deserialize, Serialize};

use crate::part::Rows;

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Rounds {
    modes: Vec<Mode>,
}

/// What the clients have seen in one durability mode.
#[derive(Debug, Deserialize, Serialize)]
struct Mode {
    durability: String,
    rounds: usize,
    writes: u64,
    reads: u64,
    increments: u64,
    /// Increments of which nobody knows whether they were executed.
    unclear: u64,
    failed: usize,
    violations: Vec<String>,
}

/// `wanted` rounds in each durability mode.
pub fn measure(wanted: usize) -> Rounds {
    let modes = [Durability::Sync, Durability::PageCache].map(|durability| mode(durability, wanted));
    Rounds { modes: modes.into() }
}

fn mode(durability: Durability, wanted: usize) -> Mode {
    let cluster = TestCluster::start(Options { durability, ..Options::default() });
    let (rounds, seen) = block_on(async {
        let table = cluster.table().await.with_timeout(std::time::Duration::from_secs(60));
        die_in_turn(&cluster, &table, |rounds, _| rounds >= wanted).await
    });
    say!("{rounds} rounds, {}: {} writes, {} reads", durability.name(), seen.writes, seen.reads);
    for violation in seen.violations.iter().chain(&seen.failed) {
        say!("  {violation}");
    }
    Mode {
        durability: durability.name().to_owned(),
        rounds,
        writes: seen.writes,
        reads: seen.reads,
        increments: seen.incremented,
        unclear: seen.unclear,
        failed: seen.failed.len(),
        violations: seen.violations,
    }
}

impl Rows for Rounds {
    const PART: &'static str = "rounds";
    const TITLE: &'static str = "Nothing is lost";

    fn text(&self) -> String {
        let mut text = "kill -9 of each process in turn and of all at once, under clients that know every value:\n\n\
             | durability | rounds | writes | reads | increments | unclear | failed | lost, stale or applied twice |\n\
             |---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for mode in &self.modes {
            let Mode { durability, rounds, writes, reads, increments, unclear, failed, violations } = mode;
            let _ = writeln!(
                text,
                "| {durability} | {rounds} | {writes} | {reads} | {increments} | {unclear} | {failed} | {} |",
                violations.len()
            );
        }
        text
    }

    fn is_kept(&self) -> bool {
        self.modes.iter().all(|mode| mode.failed == 0 && mode.violations.is_empty())
    }
}
