//! A rule that is left out is noticed: every checker has teeth.

use pegasus_pacifica::Sabotage as Rule;
use pegasus_sim::run::{change_leaders, leader_settings, run_with, settings};
use pegasus_sim::script::Script;
use pegasus_sim::settings::{Sabotage, Settings};
use pegasus_sim::trace::Trace;

/// Many more than the rules below need.
const SEEDS: u64 = 1_000;

/// Runs seeds until one is red for the expected reason. Other reasons do not count.
fn caught(name: &str, says: &str, break_rule: impl Fn(&mut Settings)) {
    let mut other = None;
    for seed in 1..=SEEDS {
        let mut settings = settings(seed);
        break_rule(&mut settings);
        match run_with(seed, settings, Trace::off()).result {
            Err(why) if why.contains(says) => return,
            Err(why) => other = Some(format!("seed {seed}: {why}")),
            Ok(()) => {}
        }
    }
    panic!("{name}: nobody says {says:?} in {SEEDS} seeds; but {other:?}");
}

fn without(rule: Rule, says: &str) {
    caught(&format!("{rule:?}"), says, |settings| settings.core.sabotage = rule);
}

fn wrong(name: &str, says: &str, how: impl Fn(&mut Sabotage)) {
    caught(name, says, |settings| how(&mut settings.sabotage));
}

// --- one serving primary ---

#[test]
fn no_wait_at_take_over() {
    without(Rule::NoWaitAtTakeOver, "two serving primaries");
}

#[test]
fn grants_for_anything() {
    without(Rule::GrantAnything, "two serving primaries");
}

#[test]
fn grants_counted_from_receipt() {
    without(Rule::CountFromReceipt, "two serving primaries");
}

// --- one primary per ballot ---

#[test]
fn the_old_ballot_after_a_restart() {
    without(Rule::KeepBallotAfterRestart, "two primaries of");
}

// --- committed prefix ---

#[test]
fn commits_without_the_members() {
    without(Rule::CommitAlone, "two contents of");
}

#[test]
fn inherited_writes_dropped() {
    without(Rule::DropInherited, "two contents of");
}

/// Takes a power cut while disks are slow, which chance brings together once in hundreds of seeds.
#[test]
fn acknowledged_before_it_is_logged() {
    let text = "clients 6
        run 1s
        slow-disk secondary 3s as s1
        slow-disk secondary2 3s as s2
        run 500ms
        power-off all
        run 100ms
        start s1
        start s2
        run 3s";
    let mut script = Script::parse(text).unwrap();
    assert_eq!(script.play(1, Trace::off()).0, Ok(vec![]));
    script.settings().core.sabotage = Rule::AckBeforeLog;
    let why = script.play(1, Trace::off()).0.unwrap_err();
    assert!(why.contains("two contents of") || why.contains("was answered"), "{why}");
}

#[test]
fn applied_before_it_is_committed() {
    without(Rule::ApplyEarly, "two contents of");
}

/// Chance does not find this one in a thousand seeds: too much has to come together.
#[test]
fn an_added_member_that_is_forgotten() {
    let text = include_str!("../scripts/asked-for-member.sim");
    let mut script = Script::parse(text).unwrap();
    script.settings().core.sabotage = Rule::ForgetAskedMember;
    let why = script.play(1, Trace::off()).0.unwrap_err();
    assert!(why.contains("two serving primaries"), "{why}");
}

#[test]
fn time_tags_by_the_wall_clock() {
    wrong("wall_tags", "the time tag of", |s| s.wall_tags = true);
}

// --- equal rows ---

#[test]
fn rows_that_get_lost() {
    wrong("lossy_apply", "hold different rows", |s| s.lossy_apply = true);
}

// --- one order of operations ---

#[test]
fn conditions_that_nobody_looks_at() {
    wrong("blind_cas", "no order explains", |s| s.blind_cas = true);
}

// --- metadata ---

#[test]
fn a_new_primary_that_stays_among_the_secondaries() {
    wrong("double_member", "a node is a member twice", |s| s.double_member = true);
}

/// The leader's last write is late. Meanwhile its process has come back and taken its old node away, another one leads
/// and has written elsewhere: only the fence keeps the write out.
#[test]
fn metas_that_write_without_being_the_leader() {
    let why = late_write("600ms", |s| s.no_fence = true);
    assert!(why.contains("after one with epoch"), "{why}");
}

/// Later still: what it writes over has changed twice.
#[test]
fn metas_that_write_over_whatever_is_there() {
    let why = late_write("1500ms", |s| s.blind_writes = true);
    assert!(why.contains("goes back from"), "{why}");
}

/// The answer to a creation is lost, and so was the write: whoever asked was told that the table is there.
#[test]
fn metas_that_believe_that_a_lost_answer_was_a_good_one() {
    let mut settings = leader_settings();
    settings.sabotage.believe_lost_answers = true;
    let plays = (1..=SEEDS).map(|seed| change_leaders(seed, settings.clone(), Trace::off()).result);
    let why = plays.filter_map(Result::err).find(|why| why.contains("was created, and is lost"));
    assert!(why.is_some(), "nobody noticed");
}

fn late_write(delay: &str, how: impl Fn(&mut Sabotage)) -> String {
    let text = format!(
        "metas 3
        run 2s
        lag leader store {delay} for 40ms
        remove secondary
        run 40ms
        kill-meta leader as old
        run 50ms
        start-meta old
        run 50ms
        kill n1
        kill n2
        run 3s
        start n1
        start n2"
    );
    let mut script = Script::parse(&text).expect("a good script");
    for seed in 1..=20 {
        assert_eq!(script.play(seed, Trace::off()).0, Ok(vec![]), "seed {seed}");
    }
    how(&mut script.settings().sabotage);
    let plays = (1..=20).map(|seed| script.play(seed, Trace::off()).0);
    plays.filter_map(Result::err).next().expect("nobody noticed")
}

// --- everything becomes well again ---

#[test]
fn a_meta_that_cures_nothing() {
    wrong("no_cure", "not healthy", |s| s.no_cure = true);
}

// --- acknowledged is readable ---

#[test]
fn reads_without_a_lease() {
    wrong("serve_unasked", "was answered before", |s| s.serve_unasked = true);
}

// --- decrees in order ---

#[test]
fn a_log_that_is_not_replayed() {
    wrong("skip_replay", "decrees out of order", |s| s.skip_replay = true);
}
