//! How long writes stop when something happens to a cluster, and whether anything is lost: measured on clusters of real
//! processes on this machine, in parts that can be run apart (`make reliability`).
//!
//! Each part is a file here with a struct that implements [`part::Rows`]. What it has found goes to a file of its own
//! (`target/reliability/PART.json`); the document is written anew from all the files that there are.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test"))]

mod cable;
mod gaps;
mod metas;
mod netns;
mod part;
mod rounds;
mod scale;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use pegasus_integration_tests::say;

use part::{Circumstances, save, section};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The gap in writes after kill -9, SIGSTOP, and a planned move.
    Gaps,
    /// The same when all meta-servers are down.
    MetasDown,
    /// The same after a cable cut, in network namespaces; needs root.
    Cable,
    /// kill -9 in rounds under clients that know every value.
    Rounds,
    /// Faults of meta-servers and of ZooKeeper.
    Metas,
    /// A node added, another one removed.
    Scale,
}

/// Measures how long writes stop and whether anything is lost, and writes it down.
#[derive(Debug, Parser)]
#[command(name = "pegasus_reliability")]
struct Args {
    /// What is measured; repeatable. All if not given.
    #[arg(long = "part")]
    parts: Vec<Part>,
    /// Measures nothing: writes the document from what there is.
    #[arg(long, conflicts_with = "parts")]
    render: bool,
    /// Runs of each fault.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Rounds of kill -9 in each durability mode.
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// For how long all meta-servers are down in a run.
    #[arg(long, default_value_t = 60)]
    metas_down_seconds: u64,
    /// Data of the part `scale`.
    #[arg(long, default_value_t = 5_000)]
    scale_mb: usize,
    /// Only faults whose name contains this, of the gaps. For a look: nothing is kept.
    #[arg(long)]
    only: Option<String>,
    /// Where the parts keep what they have found.
    #[arg(long, default_value = "target/reliability")]
    results: PathBuf,
    /// The document.
    #[arg(long, default_value = "docs/reliability.md")]
    out: PathBuf,
    /// For how long all of ZooKeeper is down, once; 0 = not at all.
    #[arg(long, default_value_t = 600)]
    zookeeper_gone_seconds: u64,
    /// Inside of the network namespace that this program has made: where its directory is.
    #[arg(long, hide = true)]
    metas_in: Option<PathBuf>,
    #[arg(long, hide = true)]
    cable_in: Option<PathBuf>,
}

impl Args {
    fn zookeeper_gone(&self) -> Duration {
        Duration::from_secs(self.zookeeper_gone_seconds)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(dir) = &args.metas_in {
        return metas::measure_inside(dir, args.runs, args.zookeeper_gone());
    }
    if let Some(dir) = &args.cable_in {
        return cable::measure_inside(dir, args.runs);
    }
    if let Some(only) = &args.only {
        say!("{}", part::Rows::text(&gaps::measure(args.runs, only)));
        return Ok(());
    }
    let all = if args.render { &[] } else { Part::value_variants() };
    let parts = if args.parts.is_empty() { all } else { &args.parts };
    let mut wrong = Vec::new();
    for part in parts {
        say!("{part:?}");
        // One that cannot be measured here leaves what it had found before, and the others are measured.
        match run(*part, &args) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{part:?}: not all promises are kept")),
            Err(error) => wrong.push(format!("{part:?}: {error:#}")),
        }
        std::fs::write(&args.out, document(&args.results)?)
            .with_context(|| format!("write {}", args.out.display()))?;
    }
    if args.render {
        std::fs::write(&args.out, document(&args.results)?)
            .with_context(|| format!("write {}", args.out.display()))?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Whether everything that is promised is true.
fn run(part: Part, args: &Args) -> Result<bool> {
    let circumstances = Circumstances::begin()?;
    let results = &args.results;
    match part {
        Part::Gaps => save(results, circumstances, gaps::measure(args.runs, "")),
        Part::MetasDown => {
            let down = Duration::from_secs(args.metas_down_seconds);
            save(results, circumstances, gaps::measure_metas_down(args.runs, down))
        }
        Part::Cable => save(results, circumstances, cable::measure(args.runs)?),
        Part::Rounds => save(results, circumstances, rounds::measure(args.rounds)),
        Part::Metas => save(results, circumstances, metas::measure(args.runs, args.zookeeper_gone())?),
        Part::Scale => save(results, circumstances, scale::measure(args.scale_mb)?),
    }
}

fn document(results: &Path) -> Result<String> {
    let sections = [
        "# Reliability, measured\n\nWritten by `make reliability`, which repeats it; `make reliability PARTS=\"cable rounds\"` \
         repeats these parts only.\n"
            .to_owned(),
        section::<gaps::Gaps>(results)?,
        section::<gaps::MetasDown>(results)?,
        section::<cable::Cable>(results)?,
        section::<rounds::Rounds>(results)?,
        section::<metas::Metas>(results)?,
        section::<scale::Scale>(results)?,
    ];
    Ok(sections.join("\n"))
}
