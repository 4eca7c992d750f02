//! Who may serve: safety-rules.md 1.

use pegasus_pacifica::{Effect, Event, Options, Serving};
use pegasus_types::message::{Grant, Message};
use pegasus_types::meta::Proposal;
use pegasus_types::{Ballot, ChangeKind, Decree, ErrorCode};

use crate::rig::*;

fn grant_of(effects: &[Effect]) -> &Grant {
    effects
        .iter()
        .find_map(|e| match e {
            Effect::AckHeartbeat { ack, .. } => Some(&ack.grant),
            _ => None,
        })
        .expect("every heartbeat is answered")
}

#[test]
fn a_primary_serves_only_while_every_member_grants() {
    let mut rig = Rig::primary("a b c");
    let beats = rig.pass_to_beat();
    let sent_at = rig.now;
    // b answers late: its grant counts from the sending.
    rig.pass(500);
    rig.grant("b", last_beat(&beats, "b").unwrap().seq, Grant::All);
    rig.grant("c", last_beat(&beats, "c").unwrap().seq, Grant::All);
    assert_eq!(rig.serving(), Serving::Yes);
    rig.now = sent_at + 599;
    assert_eq!(rig.serving(), Serving::Yes);
    rig.now = sent_at + 601;
    assert_eq!(rig.serving(), Serving::Wait);
    assert_eq!(Rig::secondary().serving(), Serving::No(ErrorCode::InvalidState));
}

#[test]
fn one_member_without_grant_is_enough_to_stop() {
    let mut rig = Rig::primary("a b c");
    for _ in 0..6 {
        let beats = rig.pass(150);
        rig.grant("b", last_beat(&beats, "b").unwrap().seq, Grant::All);
    }
    assert_eq!(rig.serving(), Serving::Wait);
}

#[test]
fn an_answer_to_an_earlier_life_grants_nothing() {
    let mut rig = Rig::primary("a b");
    rig.pass(500);
    let beats = rig.pass(150);
    let seq = last_beat(&beats, "b").unwrap().seq;
    let ack = pegasus_types::message::HeartbeatAck {
        incarnation: 5,
        to_incarnation: INCARNATION + 1,
        seq,
        grant: Grant::All,
        log_healthy: true,
    };
    rig.event(Event::HeartbeatAcked { from: node("b"), ack });
    assert_eq!(rig.serving(), Serving::Wait);
    rig.grant("b", seq, Grant::All);
    assert_eq!(rig.serving(), Serving::Yes);
}

#[test]
fn nobody_acts_before_one_lease_after_the_start() {
    let mut rig = Rig::new();
    rig.event(Event::Create { config: config(1, "a") });
    rig.pass(650);
    assert_eq!(rig.serving(), Serving::Wait);
    rig.pass(2);
    assert_eq!(rig.serving(), Serving::Yes, "a primary without secondaries has nobody to grant");
}

#[test]
fn a_restarted_primary_asks_for_a_new_ballot_first() {
    let mut rig = Rig::new();
    let out = rig.event(Event::Opened { gpid: GPID, replica: recovered(config(4, "a b c"), 0, &[]) });
    assert_eq!(asked(&out), [&ChangeKind::Renew { primary: node("a") }]);
    rig.pass(5_000);
    assert_eq!(rig.serving(), Serving::No(ErrorCode::InvalidState));
    let out = rig.accept(config(5, "a b c"));
    assert_eq!(sent(&out, "b"), [&Message::Configure { config: config(5, "a b c") }]);
    assert_eq!(rig.serving(), Serving::Wait);
}

#[test]
fn a_member_grants_its_primary_until_it_claims() {
    let mut rig = Rig::secondary();
    let pair = (GPID, Ballot(1));
    assert_eq!(*grant_of(&rig.heartbeat("b", &[pair])), Grant::All);
    // Another primary, another ballot.
    let nothing = Grant::Some { granted: vec![], newer: vec![] };
    assert_eq!(*grant_of(&rig.heartbeat("c", &[pair])), nothing);
    assert_eq!(*grant_of(&rig.heartbeat("b", &[(GPID, Ballot(2))])), nothing);
    let newer = Grant::Some { granted: vec![], newer: vec![(GPID, Ballot(1))] };
    assert_eq!(*grant_of(&rig.heartbeat("b", &[(GPID, Ballot(0))])), newer);
    let out = rig.event(Event::PeerReset { node: node("b") });
    assert_eq!(asked(&out), [&ChangeKind::TakeOver { claimant: node("a") }]);
    assert_eq!(*grant_of(&rig.heartbeat("b", &[pair])), nothing);
}

#[test]
fn silence_makes_a_secondary_claim_and_a_living_primary_does_not() {
    let mut rig = Rig::secondary();
    assert!(asked(&rig.pass_with(3_000, "b")).is_empty());
    assert!(asked(&rig.pass(850)).is_empty());
    assert_eq!(asked(&rig.pass(300)), [&ChangeKind::TakeOver { claimant: node("a") }]);
}

#[test]
fn a_claim_that_comes_to_nothing_gives_the_grant_back() {
    let mut rig = Rig::secondary();
    let pair = (GPID, Ballot(1));
    rig.event(Event::PeerReset { node: node("b") });
    rig.answer(1, None);
    assert_eq!(*grant_of(&rig.heartbeat("b", &[pair])), Grant::All);
}

#[test]
fn the_new_primary_waits_out_its_own_last_grant() {
    for (released, wait) in [(None, true), (Some(1), false), (Some(0), true)] {
        let mut rig = Rig::secondary();
        rig.pass_with(2_000, "b");
        rig.heartbeat("b", &[(GPID, Ballot(1))]);
        let granted_at = rig.now;
        if let Some(ballot) = released {
            rig.message("b", ballot, Message::Released);
        }
        rig.event(Event::MetaConfig { config: config(2, "a c") });
        rig.message("c", 2, Message::State { committed: Decree(0), prepared: Decree(0) });
        rig.all_grant("a c");
        assert_eq!(rig.serving(), if wait { Serving::Wait } else { Serving::Yes }, "{released:?}");
        rig.now = granted_at + Options::default().lease_is_over_ms() - 1;
        assert_eq!(rig.serving() == Serving::Wait, wait);
        rig.now = rig.now + 1;
        assert_eq!(rig.serving(), Serving::Yes);
    }
}

#[test]
fn a_member_that_was_asked_for_must_grant_until_it_is_surely_refused() {
    let mut rig = Rig::primary("a b");
    let signature = learn_c(&mut rig);
    rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(0) });
    assert_eq!(rig.serving(), Serving::Yes, "a learner need not grant");
    let beats = rig.pass(150);
    rig.grant("b", last_beat(&beats, "b").unwrap().seq, Grant::All);
    rig.grant("c", last_beat(&beats, "c").unwrap().seq, Grant::All);
    assert_eq!(asked(&rig.pass(50)), [&ChangeKind::AddSecondary { primary: node("a"), node: node("c") }]);
    rig.answer(1, None);
    for _ in 0..5 {
        let beats = rig.pass(150);
        rig.grant("b", last_beat(&beats, "b").unwrap().seq, Grant::All);
    }
    assert_eq!(rig.serving(), Serving::Wait, "c may be a member by now");
    // A new ballot without it settles the matter.
    rig.accept(config(2, "a b"));
    assert_eq!(rig.serving(), Serving::Yes, "the grant of b is good for the new ballot too");
}

fn learn_c(rig: &mut Rig) -> u64 {
    let out = rig.propose(1, Proposal::AddSecondary { node: node("c") });
    match sent(&out, "c")[..] {
        [Message::Learn { signature, .. }] => *signature,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_whose_log_stands_still_is_silent_and_claims_nothing() {
    let mut rig = Rig::secondary();
    for _ in 0..30 {
        let heartbeat = pegasus_types::message::Heartbeat {
            incarnation: 5,
            seq: 1,
            digest: 1,
            count: 0,
            pairs: None,
            log_healthy: false,
        };
        rig.event(Event::Heartbeat { from: node("b"), heartbeat });
        if !asked(&rig.pass(50)).is_empty() {
            return;
        }
    }
    panic!("b was taken for healthy");
}

#[test]
fn a_node_with_a_stuck_log_claims_nothing() {
    let mut rig = Rig::secondary();
    rig.event(Event::LogHealth { healthy: false });
    assert!(asked(&rig.pass(3_000)).is_empty());
}

#[test]
fn a_process_that_stood_still_does_not_blame_the_others() {
    let mut rig = Rig::secondary();
    rig.now = rig.now + 20_000;
    assert!(asked(&rig.event(Event::Tick)).is_empty());
    assert!(asked(&rig.pass_with(1_000, "b")).is_empty());
}
