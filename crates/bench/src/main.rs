//! Drives a running cluster over the client protocol, closed loop, and a Redis of three beside it.
//!
//! | word | meaning |
//! |---|---|
//! | case | one mix of reads and writes at one depth |
//! | connection | one client: to Redis one socket, to Pegasus one socket to each server that holds primaries, as the real clients have |
//! | depth | operations that a connection has in flight |
//! | round | one window of each system; systems alternate, so that neighbours on the machine hit both |
//! | server CPU | user + system time of all server processes, divided by the operations of the window |
//!
//! ```text
//!  args -> cases -> round: [pegasus: workers -> window] [redis: workers -> window] -> report
//!                            workload   measure + cpu
//! ```

mod args;
mod cpu;
mod measure;
mod pegasus;
mod redis;
mod report;
mod workload;

use std::io::Write as _;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::task::LocalSet;

use crate::args::{Args, Case};
use crate::measure::Sample;
use crate::report::{CaseReport, Report, SystemReport};

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let cluster = pegasus::Cluster::open(args).await?;
    let servers = cluster.processes(&args.server)?;
    let durability = match &args.durability {
        Some(durability) => durability.clone(),
        None => cluster.durability().await,
    };
    let redis = match args.redis {
        true => Some(redis::Trio::start(args).await.context("redis (leave it out with --redis=false)")?),
        false => None,
    };
    let cases = args.cases();
    if cases.iter().any(|case| case.reads_percent > 0) {
        eprintln!("loading {} keys of {} bytes", args.keys, args.value_bytes);
        pegasus::load(&cluster, args).await?;
        if let Some(redis) = &redis {
            redis.load(args).await?;
        }
    }
    let mut report = Report::new(args, &durability, &servers);
    writeln!(std::io::stdout().lock(), "{report}")?;
    for case in cases {
        eprintln!("{case}: {} round(s) of {} s", args.rounds, args.seconds);
        let case_report = run_case(args, case, &cluster, &servers, redis.as_ref()).await?;
        writeln!(std::io::stdout().lock(), "{case_report}")?;
        report.cases.push(case_report);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn run_case(
    args: &Args,
    case: Case,
    cluster: &std::rc::Rc<pegasus::Cluster>,
    servers: &[cpu::Process],
    redis: Option<&redis::Trio>,
) -> Result<CaseReport> {
    let mut ours = Sample::default();
    let mut theirs = Sample::default();
    for _ in 0..args.rounds {
        ours.add(pegasus::run(cluster, args, case, servers).await?);
        if let Some(redis) = redis {
            theirs.add(redis.run(args, case).await?);
        }
    }
    let ours = SystemReport::new(&ours);
    let redis = redis.map(|_| SystemReport::new(&theirs));
    Ok(CaseReport::new(args, case, ours, redis))
}
