//! Becoming a member: replication.md 4, safety-rules.md 3.3 and 3.4.

use pegasus_pacifica::{Effect, Event};
use pegasus_types::message::{Grant, Message};
use pegasus_types::meta::{ChangeReply, Proposal, ReplicaStatus};
use pegasus_types::{Ballot, ChangeKind, Decree, PartitionConfig};

use crate::rig::*;

const SIGNATURE: u64 = 42;

fn learn(ballot: i64, members: &str, signature: u64) -> Message {
    Message::Learn { config: config(ballot, members), signature }
}

fn fetched(decrees: std::ops::RangeInclusive<i64>, committed: i64) -> Event {
    let mutations = decrees.map(|d| mutation(d, 1)).collect();
    Event::Fetched { gpid: GPID, signature: SIGNATURE, mutations, committed: Decree(committed) }
}

fn copied(decree: i64) -> Event {
    Event::CopiedRows { gpid: GPID, signature: SIGNATURE, decree: Decree(decree) }
}

fn fetches(effects: &[Effect]) -> Vec<i64> {
    effects
        .iter()
        .filter_map(|e| match e {
            Effect::FetchLog { after, .. } => Some(after.0),
            _ => None,
        })
        .collect()
}

/// An empty learner of b at ballot 3 that has just been told to copy.
fn learner() -> Rig {
    let mut rig = Rig::new();
    let out = rig.message("b", 3, learn(3, "b c", SIGNATURE));
    assert!(matches!(out[..], [Effect::OpenReplica { .. }]), "{out:?}");
    let mut replica = recovered(PartitionConfig::unassigned(GPID, 3), 0, &[]);
    replica.learning = true;
    let out = rig.event(Event::Opened { gpid: GPID, replica });
    let start = Effect::StartCopy {
        gpid: GPID,
        from: node("b"),
        ballot: Ballot(3),
        signature: SIGNATURE,
        committed: Decree(0),
    };
    assert!(out.contains(&start), "{out:?}");
    rig
}

/// It has copied up to 12 and was taken in, in this round.
fn joined() -> (Rig, u64) {
    let mut rig = learner();
    assert_eq!(fetches(&rig.event(copied(10))), [10]);
    let out = rig.event(fetched(11..=12, 12));
    assert_eq!(applied(&out), [11, 12]);
    let (prepared, round) = joining(&out, "b").expect("it joins");
    assert_eq!(prepared, 12);
    rig.message("b", 3, Message::Joined { signature: SIGNATURE, round, committed: Decree(12) });
    (rig, round)
}

#[test]
fn rows_then_log_then_prepares_then_member() {
    let (mut rig, round) = joined();
    let prepare = Message::Prepare { mutation: mutation(13, 3), committed: Decree(12) };
    let out = rig.message("b", 3, prepare);
    assert_eq!(sent(&out, "b"), [&Message::Prepared { round, prepared: Decree(13) }]);
    let out = rig.event(Event::MetaConfig { config: config(4, "b c a") });
    assert!(out.iter().any(|e| matches!(e, Effect::SaveConfig { learning: false, .. })));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Secondary));
}

#[test]
fn a_long_log_comes_in_chunks_and_bad_ones_begin_anew() {
    let mut rig = learner();
    rig.event(copied(10));
    assert_eq!(fetches(&rig.event(fetched(11..=12, 20))), [12]);
    let out = rig.event(fetched(14..=15, 20));
    assert!(applied(&out).is_empty());
    let out = rig.pass_with(600, "b");
    assert!(out.iter().any(|e| matches!(e, Effect::StartCopy { committed: Decree(12), .. })), "{out:?}");
}

#[test]
fn a_member_that_never_joined_says_that_it_is_none() {
    let mut rig = learner();
    let out = rig.message("b", 4, Message::Configure { config: config(4, "b c a") });
    assert!(out.iter().any(|e| matches!(e, Effect::SaveConfig { learning: true, .. })), "{out:?}");
    assert!(sent(&out, "b").contains(&&Message::NotHere));
    // The same after a restart in the middle.
    let mut rig = Rig::new();
    let mut replica = recovered(config(4, "b c a"), 5, &[]);
    replica.learning = true;
    rig.event(Event::Opened { gpid: GPID, replica });
    let prepare = Message::Prepare { mutation: mutation(6, 4), committed: Decree(5) };
    assert_eq!(sent(&rig.message("b", 4, prepare), "b"), [&Message::NotHere]);
}

#[test]
fn a_replica_that_lost_acknowledged_writes_is_no_member_any_more() {
    let mut rig = Rig::new();
    let mut replica = recovered(config(4, "b c a"), 5, &[]);
    replica.intact = false;
    let out = rig.event(Event::Opened { gpid: GPID, replica });
    assert!(out.iter().any(|e| matches!(e, Effect::SaveConfig { learning: true, .. })));
    assert_eq!(sent(&out, "b"), [&Message::NotHere]);
}

#[test]
fn what_a_returning_primary_prepared_alone_is_gone() {
    let mut rig = Rig::new();
    let tail = [mutation(11, 1), mutation(12, 1)];
    rig.event(Event::Opened { gpid: GPID, replica: recovered(config(1, "a b c"), 10, &tail) });
    let out = rig.message("b", 3, learn(3, "b c", SIGNATURE));
    assert!(out.iter().any(|e| matches!(e, Effect::StartCopy { committed: Decree(10), .. })), "{out:?}");
    assert_eq!(rig.core.reports()[0].prepared, Decree(10));
}

#[test]
fn a_session_goes_on_at_a_new_ballot_of_the_same_primary() {
    let (mut rig, round) = joined();
    let out = rig.message("b", 4, learn(4, "b", SIGNATURE));
    let again = joining(&out, "b").unwrap();
    assert!(again.0 == 12 && again.1 != round);
    assert!(!out.iter().any(|e| matches!(e, Effect::StopCopy { .. })));
    // Another primary: another session, or none.
    rig.event(Event::MetaConfig { config: config(5, "c") });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Inactive));
}

#[test]
fn a_session_that_the_primary_forgot_ends() {
    let (mut rig, round) = joined();
    let out = rig.pass_with(3_500, "b");
    assert_eq!(joining(&out, "b"), Some((12, round)));
    rig.message("b", 3, Message::LearnFailed { signature: SIGNATURE + 1 });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Learner));
    rig.message("b", 3, Message::LearnFailed { signature: SIGNATURE });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Inactive));
}

/// The primary's side: a with b, teaching c.
fn teaching() -> (Rig, u64) {
    let mut rig = Rig::primary("a b");
    let out = rig.propose(1, Proposal::AddSecondary { node: node("c") });
    let [Message::Learn { signature, .. }] = sent(&out, "c")[..] else { panic!("{out:?}") };
    let signature = *signature;
    (rig, signature)
}

#[test]
fn a_learner_counts_from_its_joining_on() {
    let (mut rig, signature) = teaching();
    rig.write(1);
    assert_eq!(applied(&rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) })), [1]);
    let out = rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(0) });
    assert_eq!(prepares(&out, "c"), [1]);
    rig.write(2);
    assert!(applied(&rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(2) })).is_empty());
    assert_eq!(applied(&rig.message("c", 1, Message::Prepared { round: 5, prepared: Decree(2) })), [2]);
}

#[test]
fn a_silent_learner_goes_back_to_copying_and_delays_nobody() {
    let (mut rig, signature) = teaching();
    rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(0) });
    rig.write(1);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    let out = rig.pass_with(250, "b");
    assert_eq!(applied(&out), [1]);
    assert!(sent(&out, "c").contains(&&Message::FetchMore { signature, round: 5 }));
}

#[test]
fn it_is_asked_for_when_it_has_all_and_grants() {
    let (mut rig, signature) = teaching();
    rig.write(1);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(0) });
    let beats = rig.pass(150);
    assert!(
        asked(&rig.grant("c", last_beat(&beats, "c").unwrap().seq, Grant::All)).is_empty(),
        "1 is missing"
    );
    let out = rig.message("c", 1, Message::Prepared { round: 5, prepared: Decree(1) });
    let add = ChangeKind::AddSecondary { primary: node("a"), node: node("c") };
    assert_eq!(asked(&out), [&add]);
    // Refused for good: no longer counted, and told so.
    let current = Some(config(1, "a b"));
    let out = rig.answer(1, Some(ChangeReply::Rejected { current, why: "full".into() }));
    assert_eq!(sent(&out, "c"), [&Message::LearnFailed { signature }]);
}

#[test]
fn a_whole_group_takes_one_more_member_when_the_meta_asks_and_no_second() {
    let teach = |rig: &mut Rig, ballot, pupil: &str, members: &str| {
        let out = rig.propose(ballot, Proposal::AddSecondary { node: node(pupil) });
        let [Message::Learn { signature, .. }] = sent(&out, pupil)[..] else { panic!("{out:?}") };
        let signature = *signature;
        rig.message(pupil, ballot, Message::Join { signature, round: 5, prepared: Decree(0) });
        rig.all_grant(&format!("{members} {pupil}"));
        let out = rig.message(pupil, ballot, Message::Prepared { round: 5, prepared: Decree(0) });
        asked(&out).into_iter().cloned().collect::<Vec<_>>()
    };
    let mut rig = Rig::primary("a b c");
    rig.all_grant("a b c");
    let add = ChangeKind::AddSecondary { primary: node("a"), node: node("d") };
    assert_eq!(teach(&mut rig, 1, "d", "a b c"), [add]);
    rig.accept(config(2, "a b c d"));
    for member in ["b", "c", "d"] {
        rig.message(member, 2, Message::State { committed: Decree(0), prepared: Decree(0) });
    }
    assert_eq!(teach(&mut rig, 2, "e", "a b c d"), []);
}

#[test]
fn strangers_and_the_far_behind() {
    let (mut rig, signature) = teaching();
    let out = rig.message("c", 1, Message::Join { signature: signature + 1, round: 5, prepared: Decree(0) });
    assert_eq!(sent(&out, "c"), [&Message::LearnFailed { signature: signature + 1 }]);
    assert!(rig.core.teach(GPID, Ballot(1), signature).is_ok());
    assert!(rig.core.teach(GPID, Ballot(1), signature + 1).is_err());
    let out = rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(9) });
    assert_eq!(
        sent(&out, "c"),
        [&Message::FetchMore { signature, round: 5 }],
        "it claims what nobody prepared"
    );
    // A node that knows nothing of a partition says so.
    let mut rig = Rig::new();
    let prepare = Message::Prepare { mutation: mutation(6, 4), committed: Decree(5) };
    assert_eq!(sent(&rig.message("b", 4, prepare.clone()), "b"), [&Message::NotHere]);
    rig.event(Event::Opening { gpid: GPID });
    assert!(rig.message("b", 4, prepare).is_empty(), "it is being opened");
}
