//! Runs seeds, or a script, and says how to see a red one again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use pegasus_sim::run::{Metas, Outcome, change_leaders, leader_settings, run};
use pegasus_sim::script::Script;
use pegasus_sim::trace::Trace;

/// A deterministic cluster: the same seed runs the same way, byte for byte.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this one only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Play this script instead of chance.
    #[arg(long)]
    script: Option<PathBuf>,
    /// Runs seeds in which little else happens than that the leader of the metas changes, until it has done so this
    /// many times.
    #[arg(long)]
    leader_changes: Option<u64>,
    /// Threads; each runs seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let trace = || if args.trace { Trace::on() } else { Trace::off() };
    if let Some(path) = &args.script {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let script = Script::parse(&text).map_err(anyhow::Error::msg)?;
        let (result, trace) = script.play(args.seed.unwrap_or(1), trace());
        say(trace.text());
        return Ok(match result {
            Ok(gaps) => {
                say(&format!("as expected; gaps: {gaps:?} ms\n"));
                ExitCode::SUCCESS
            }
            Err(why) => {
                say(&format!("{}: {why}\n", path.display()));
                ExitCode::FAILURE
            }
        });
    }
    if let Some(seed) = args.seed {
        let outcome = if args.leader_changes.is_some() {
            change_leaders(seed, leader_settings(), trace())
        } else {
            run(seed, trace())
        };
        say(outcome.trace.text());
        say(&format!("{}\n", outcome.report().unwrap_or_else(|| summary(&[outcome]))));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(wanted) = args.leader_changes {
        return Ok(until_leader_changes(wanted, args.from));
    }
    let workers: Vec<_> = (0..args.threads)
        .map(|worker| {
            let seeds = (args.from..args.from + args.seeds).filter(move |s| s % args.threads == worker);
            std::thread::spawn(move || seeds.map(run_quietly).collect::<Vec<_>>())
        })
        .collect();
    let mut outcomes = Vec::new();
    for worker in workers {
        outcomes.extend(worker.join().map_err(|_| anyhow::anyhow!("a run panicked"))?);
    }
    say(&format!("{}\n", summary(&outcomes)));
    let red = outcomes.iter().any(|o| o.result.is_err());
    Ok(if red { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn until_leader_changes(wanted: u64, from: u64) -> ExitCode {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let sum =
        |outcomes: &[Outcome], of: fn(&Metas) -> u64| outcomes.iter().map(|o| of(&o.metas)).sum::<u64>();
    for seed in from.. {
        let outcome = change_leaders(seed, leader_settings(), Trace::off());
        if let Some(report) = outcome.report() {
            say(&format!("{report}\n"));
        }
        outcomes.push(outcome);
        if sum(&outcomes, |m| m.leader_changes) >= wanted {
            break;
        }
    }
    say(&format!("{}\n", summary(&outcomes)));
    say(&format!(
        "{} leader changes, {} writes of metadata, {} tables created, {} dropped, {} recalled\n",
        sum(&outcomes, |m| m.leader_changes),
        sum(&outcomes, |m| m.writes),
        sum(&outcomes, |m| m.tables_created),
        sum(&outcomes, |m| m.tables_dropped),
        sum(&outcomes, |m| m.tables_recalled),
    ));
    if outcomes.iter().any(|o| o.result.is_err()) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run_quietly(seed: u64) -> Outcome {
    let outcome = run(seed, Trace::off());
    if let Some(report) = outcome.report() {
        say(&format!("{report}\n"));
    }
    outcome
}

fn summary(outcomes: &[Outcome]) -> String {
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let looked = sum(|o| o.figures.looked).max(1);
    format!(
        "{} seeds, {} red: {} steps, {} ballots, {} take-overs, {} learned, {} commits, {} writes acknowledged, \
         {} reads, served {} % of the instants, healed within {} ms",
        outcomes.len(),
        outcomes.iter().filter(|o| o.result.is_err()).count(),
        sum(|o| o.figures.steps),
        sum(|o| o.figures.ballots),
        sum(|o| o.figures.take_overs),
        sum(|o| o.figures.learned),
        sum(|o| o.figures.commits),
        sum(|o| o.acknowledged),
        sum(|o| o.reads),
        sum(|o| o.figures.served) * 100 / looked,
        outcomes.iter().map(|o| o.figures.healed_ms).max().unwrap_or(0),
    )
}

fn say(text: &str) {
    use std::io::Write as _;
    // A reader that has gone away (`| head`) is not an error of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
