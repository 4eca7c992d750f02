//! How long writes stop when something happens to a cluster, and whether anything is lost: measured on clusters of real
//! processes on this machine, written as a table (`make reliability`).
#![allow(clippy::print_stdout, reason = "a program that tells what it measures")]

mod cable;
mod faults;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use pegasus_integration_tests::{TestCluster, block_on, die_in_turn};
use pegasus_onebox::{Durability, Options};

use report::{Report, Rounds};

/// Measures the gap in writes for each kind of fault, and kills processes in rounds under clients that know every value.
#[derive(Debug, Parser)]
#[command(name = "pegasus_reliability")]
struct Args {
    /// Runs of each fault.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Rounds of kill -9 in each durability mode; 0 = none.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// Runs of all meta-servers down; as many as of the others if not given.
    #[arg(long)]
    metas_down_runs: Option<usize>,
    /// For how long all meta-servers are down in a run.
    #[arg(long, default_value_t = 60)]
    metas_down_seconds: u64,
    /// Where the table goes.
    #[arg(long, default_value = "docs/reliability.md")]
    out: PathBuf,
    /// Only faults whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Inside of the network namespace that this program has made: where its directory is.
    #[arg(long, hide = true)]
    cable_in: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(dir) = &args.cable_in {
        return cable::measure_inside(dir, args.runs);
    }
    let mut report = Report::new(args.runs, args.only.clone());
    {
        let cluster = TestCluster::start(Options { durability: Durability::Sync, ..Options::default() });
        let metas_down = faults::MetasDown {
            runs: args.metas_down_runs.unwrap_or(args.runs),
            time: Duration::from_secs(args.metas_down_seconds),
        };
        block_on(faults::measure(&cluster, args.runs, metas_down, &mut report));
    }
    const CABLE: &str = "cable of a primary cut";
    if report.wants(CABLE) {
        match cable::measure(args.runs) {
            Ok(gaps) => report.add(CABLE, Some(Duration::from_secs(2)), gaps),
            Err(why) => report.not_measured(CABLE, format!("{why:#}")),
        }
    }
    for durability in [Durability::Sync, Durability::PageCache] {
        if args.rounds > 0 {
            report.rounds.push(rounds(durability, args.rounds));
        }
    }
    std::fs::write(&args.out, report.text()).with_context(|| format!("write {}", args.out.display()))?;
    println!("{}", report.text());
    anyhow::ensure!(report.is_good(), "not all promises are kept");
    Ok(())
}

fn rounds(durability: Durability, wanted: usize) -> Rounds {
    let cluster = TestCluster::start(Options { durability, ..Options::default() });
    let (rounds, seen) = block_on(async {
        let table = cluster.table().await.with_timeout(Duration::from_secs(60));
        die_in_turn(&cluster, &table, |rounds, _| rounds >= wanted).await
    });
    println!("{rounds} rounds, {}: {} writes, {} reads", durability.name(), seen.writes, seen.reads);
    for violation in seen.violations.iter().chain(&seen.failed) {
        println!("  {violation}");
    }
    Rounds { durability: durability.name(), rounds, seen }
}
