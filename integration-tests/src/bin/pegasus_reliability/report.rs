use std::fmt::Write as _;
use std::time::Duration;

use pegasus_integration_tests::Seen;

/// What has been measured.
#[derive(Debug)]
pub struct Report {
    runs: usize,
    only: String,
    rows: Vec<Row>,
    pub rounds: Vec<Rounds>,
}

#[derive(Debug)]
struct Row {
    fault: &'static str,
    /// What is promised; None = nothing.
    below: Option<Duration>,
    measured: Result<Vec<Duration>, String>,
}

/// kill -9 of each process in turn and of all at once.
#[derive(Debug)]
pub struct Rounds {
    pub durability: &'static str,
    pub rounds: usize,
    pub seen: Seen,
}

impl Report {
    pub fn new(runs: usize, only: String) -> Self {
        Self { runs, only, rows: Vec::new(), rounds: Vec::new() }
    }

    pub fn wants(&self, fault: &str) -> bool {
        fault.contains(&self.only)
    }

    pub fn add(&mut self, fault: &'static str, below: Option<Duration>, gaps: Vec<Duration>) {
        if !gaps.is_empty() {
            self.rows.push(Row { fault, below, measured: Ok(gaps) });
        }
    }

    pub fn not_measured(&mut self, fault: &'static str, why: String) {
        self.rows.push(Row { fault, below: None, measured: Err(why) });
    }

    pub fn is_good(&self) -> bool {
        let kept = |row: &Row| match (&row.measured, row.below) {
            (Ok(gaps), Some(below)) => gaps.iter().all(|gap| *gap < below),
            _ => true,
        };
        self.rows.iter().all(kept)
            && self.rounds.iter().all(|r| r.seen.violations.is_empty() && r.seen.failed.is_empty())
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let _ = writeln!(
            text,
            "# Reliability, measured\n\nWritten by `make reliability`, which repeats it; {} runs of each fault, \
             {} processors, a cluster of three\nreplica-servers and a meta-server on this one machine, `durability = \
             sync`, table of 8 partitions, one writer each that writes\nas fast as it can. The gap is the longest time \
             without an acknowledged write in any partition that the fault concerns,\nas the Rust client sees it; it waits \
             1.5 s for an answer before it looks for another server. Load of the machine at the end: {}.\n",
            self.runs,
            std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        );
        text.push_str("| fault | runs | promised | worst | median |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let promised = row.below.map_or("-".to_owned(), |below| format!("< {}", ms(below)));
            let _ = match &row.measured {
                Ok(gaps) => {
                    let mut sorted = gaps.clone();
                    sorted.sort();
                    let worst = sorted.last().copied().unwrap_or_default();
                    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
                    let kept = if row.below.is_none_or(|below| worst < below) { "" } else { " (not kept)" };
                    let (fault, runs) = (row.fault, gaps.len());
                    writeln!(text, "| {fault} | {runs} | {promised} | {}{kept} | {} |", ms(worst), ms(median))
                }
                Err(why) => writeln!(text, "| {} | 0 | - | not measured: {why} | - |", row.fault),
            };
        }
        if !self.rounds.is_empty() {
            text.push_str(
                "\nkill -9 of each process in turn and of all at once, under clients that know every value:\n\n\
                 | durability | rounds | writes | reads | increments | unclear | failed | lost, stale or applied twice |\n\
                 |---|---|---|---|---|---|---|---|\n",
            );
        }
        for Rounds { durability, rounds, seen } in &self.rounds {
            let _ = writeln!(
                text,
                "| {durability} | {rounds} | {} | {} | {} | {} | {} | {} |",
                seen.writes,
                seen.reads,
                seen.incremented,
                seen.unclear,
                seen.failed.len(),
                seen.violations.len()
            );
        }
        text
    }
}

fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
