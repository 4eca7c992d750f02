//! Take-over, removal, planned moves: safety-rules.md 1.3, 2.4; replication.md 2.6.

use pegasus_pacifica::{Admission, Effect, Event, Serving};
use pegasus_types::message::Message;
use pegasus_types::meta::{ChangeReply, Proposal, ReplicaStatus};
use pegasus_types::{Ballot, ChangeKind, Decree};

use crate::rig::*;

fn state(committed: i64, prepared: i64) -> Message {
    Message::State { committed: Decree(committed), prepared: Decree(prepared) }
}

fn removal(of: &str) -> ChangeKind {
    ChangeKind::RemoveSecondary { primary: node("a"), node: node(of) }
}

#[test]
fn nothing_happens_at_a_ballot_that_is_not_saved() {
    let mut rig = Rig::secondary();
    rig.disk_works = false;
    let out = rig.message("c", 2, Message::Configure { config: config(2, "c a") });
    assert!(matches!(out[..], [Effect::SaveConfig { learning: false, .. }]), "{out:?}");
    assert_eq!(rig.core.config(GPID).unwrap().ballot, Ballot(1));
    let out = rig.event(Event::ConfigSaved { gpid: GPID, ballot: Ballot(2), learning: false });
    assert_eq!(sent(&out, "c"), [&state(0, 0)]);
    assert_eq!(rig.core.config(GPID).unwrap().ballot, Ballot(2));
}

#[test]
fn a_new_primary_prepares_again_what_it_inherited_before_it_serves() {
    let mut rig = Rig::new();
    let tail = [mutation(4, 1), mutation(5, 1), mutation(6, 1)];
    rig.event(Event::Opened { gpid: GPID, replica: recovered(config(1, "b a c"), 4, &tail) });
    rig.pass_with(700, "b");
    let out = rig.event(Event::MetaConfig { config: config(2, "a c") });
    let logged: Vec<_> = out
        .iter()
        .filter_map(|e| match e {
            Effect::Log { ballot, mutations, .. } => Some((ballot.0, mutations.len(), mutations[0].origin.0)),
            _ => None,
        })
        .collect();
    assert_eq!(logged, [(2, 2, 1)], "both under the new ballot, with their origin");
    // c knows less of the commit point: it gets 4 again, to be compared.
    let out = rig.message("c", 2, state(3, 6));
    assert_eq!(prepares(&out, "c"), [4, 5, 6]);
    rig.all_grant("a c");
    assert_eq!((rig.serving(), rig.admission()), (Serving::Wait, Admission::Wait));
    let out = rig.message("c", 2, Message::Prepared { round: 0, prepared: Decree(6) });
    assert_eq!(applied(&out), [5, 6]);
    assert_eq!(rig.serving(), Serving::Yes);
    assert!(matches!(rig.admission(), Admission::Ready { .. }));
    assert_eq!(prepares(&rig.write(1), "c"), [7]);
}

#[test]
fn a_primary_that_lacks_committed_decrees_stands_down() {
    let mut rig = Rig::new();
    rig.event(Event::Opened { gpid: GPID, replica: recovered(config(1, "b a c"), 4, &[]) });
    rig.event(Event::MetaConfig { config: config(2, "a c") });
    let out = rig.message("c", 2, state(5, 5));
    assert_eq!(sent(&out, "c"), [&Message::NotHere]);
    assert!(out.iter().any(|e| matches!(e, Effect::SaveConfig { learning: true, .. })));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Inactive));
}

#[test]
fn a_reset_or_unanswered_member_is_removed_and_the_writes_go_on() {
    let mut rig = Rig::primary("a b c");
    rig.write(7);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    let out = rig.event(Event::PeerReset { node: node("c") });
    assert_eq!(asked(&out), [&removal("c")]);
    // No answer: asked again.
    rig.answer(1, None);
    assert_eq!(asked(&rig.pass_with(250, "b")), [&removal("c")]);
    let out = rig.accept(config(2, "a b"));
    assert!(sent(&out, "b").contains(&&Message::Configure { config: config(2, "a b") }));
    assert!(sent(&out, "c").contains(&&Message::Configure { config: config(2, "a b") }), "it may be alive");
    let out = rig.message("b", 2, state(0, 1));
    assert_eq!(prepares(&out, "b"), [1], "again under the new ballot");
    let out = rig.message("b", 2, Message::Prepared { round: 0, prepared: Decree(1) });
    assert_eq!(replies(&out), [(7, true)], "the client has waited");
}

#[test]
fn a_slow_member_is_removed_although_it_is_heard() {
    let mut rig = Rig::primary("a b c");
    rig.write(1);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    assert!(asked(&rig.pass_with(2_900, "b c")).is_empty());
    assert_eq!(asked(&rig.pass_with(200, "b c")), [&removal("c")]);
}

#[test]
fn a_member_that_does_not_have_it_is_removed() {
    let mut rig = Rig::primary("a b c");
    assert_eq!(asked(&rig.message("b", 1, Message::NotHere)), [&removal("b")]);
    let mut rig = Rig::primary("a b c");
    assert!(asked(&rig.message("b", 0, Message::NotHere)).is_empty(), "of an older ballot");
    assert_eq!(asked(&rig.propose(1, Proposal::RemoveSecondary { node: node("c") })), [&removal("c")]);
}

#[test]
fn a_lost_answer_is_told_by_the_stored_configuration() {
    let mut rig = Rig::primary("a b c");
    rig.event(Event::PeerReset { node: node("c") });
    let current = Some(config(2, "a b"));
    rig.answer(1, Some(ChangeReply::Rejected { current, why: "stale ballot".into() }));
    assert_eq!(rig.core.config(GPID), Some(&config(2, "a b")));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Primary));
}

#[test]
fn a_deposed_primary_drops_what_it_does_not_know_and_serves_no_more() {
    let mut rig = Rig::primary("a b c");
    rig.write(7);
    rig.disk_works = false;
    rig.event(Event::MetaConfig { config: config(2, "b c") });
    assert_ne!(rig.serving(), Serving::Yes, "from the moment that it is known");
    rig.disk_works = true;
    let out = rig.event(Event::ConfigSaved { gpid: GPID, ballot: Ballot(2), learning: false });
    assert!(out.contains(&Effect::Drop { gpid: GPID, token: 7 }));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Inactive));
    assert_eq!(replies(&rig.write(8)), [(8, false)]);
}

#[test]
fn a_planned_move_finishes_its_writes_first() {
    let mut rig = Rig::primary("a b c");
    rig.write(7);
    let out = rig.propose(1, Proposal::HandOver { to: node("b") });
    assert!(asked(&out).is_empty());
    assert_eq!(rig.admission(), Admission::Wait);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    let out = rig.message("c", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    assert_eq!(replies(&out), [(7, true)]);
    assert_eq!(sent(&out, "b"), [&Message::Released]);
    let hand_over = ChangeKind::HandOver { primary: node("a"), to: node("b"), stay: true };
    assert_eq!(asked(&out), [&hand_over]);
    assert_eq!(rig.serving(), Serving::Wait);
    let out = rig.accept(config(2, "b a c"));
    assert!(sent(&out, "b").contains(&&Message::Configure { config: config(2, "b a c") }));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Secondary));
}

#[test]
fn a_refused_move_goes_on_with_a_new_ballot_and_a_stuck_one_is_given_up() {
    let mut rig = Rig::primary("a b");
    rig.propose(1, Proposal::HandOver { to: node("b") });
    rig.answer(1, Some(ChangeReply::Rejected { current: Some(config(1, "a b")), why: "level".into() }));
    let out = rig.pass_with(250, "b");
    assert_eq!(asked(&out), [&ChangeKind::Renew { primary: node("a") }], "it promised not to serve at 1");
    rig.accept(config(2, "a b"));
    rig.message("b", 2, state(0, 0));
    rig.all_grant("a b");
    assert_eq!(rig.serving(), Serving::Yes);

    let mut rig = Rig::primary("a b");
    rig.write(1);
    rig.propose(1, Proposal::HandOver { to: node("b") });
    assert_eq!(rig.admission(), Admission::Wait);
    rig.pass_with(600, "b");
    assert!(matches!(rig.admission(), Admission::Ready { .. }));
}

#[test]
fn a_replaced_decree_voids_what_followed_it() {
    let mut rig = Rig::new();
    let tail = [mutation(5, 1), mutation(6, 1)];
    rig.event(Event::Opened { gpid: GPID, replica: recovered(config(1, "b a c"), 4, &tail) });
    rig.event(Event::MetaConfig { config: config(2, "c a") });
    let first = Message::Prepare { mutation: mutation(5, 2), committed: Decree(4) };
    let out = rig.message("c", 2, first);
    assert_eq!(sent(&out, "c"), [&Message::Prepared { round: 0, prepared: Decree(5) }]);
    let out = rig.message("b", 1, Message::NeedConfig);
    assert_eq!(sent(&out, "b"), [&Message::Configure { config: config(2, "c a") }]);
    // As primary it knows nothing of the old 6.
    rig.event(Event::MetaConfig { config: config(3, "a") });
    let report = rig.core.reports();
    assert_eq!((report[0].committed, report[0].prepared), (Decree(5), Decree(5)));
}
