//! A rule that is left out is noticed: each checker has teeth.

use pegasus_pacifica::Sabotage as Rule;
use pegasus_sim::run::{run_with, settings};
use pegasus_sim::trace::Trace;

/// What the first red seed says. A rule that no seed misses would be a rule too many, or a checker too few.
fn caught(rule: Rule, seeds: u64) -> (u64, String) {
    let found = (1..=seeds).find_map(|seed| {
        let mut settings = settings(seed);
        settings.core.sabotage = rule;
        let outcome = run_with(seed, settings, Trace::off());
        outcome.result.err().map(|why| (seed, why))
    });
    found.unwrap_or((0, "nothing".to_owned()))
}

#[test]
fn all() {
    for rule in [
        Rule::NoWaitAtTakeOver,
        Rule::GrantAnything,
        Rule::CountFromReceipt,
        Rule::ForgetAskedMember,
        Rule::KeepBallotAfterRestart,
        Rule::CommitAlone,
        Rule::AckBeforeLog,
        Rule::DropInherited,
        Rule::ApplyEarly,
        Rule::TakeStale,
    ] {
        let begun = std::time::Instant::now();
        let (seed, why) = caught(rule, 1000);
        println!("{rule:?}: seed {seed} after {:?}: {}", begun.elapsed(), &why[..why.len().min(300)]);
    }
}
