//! Two-phase commit: replication.md 2.3, safety-rules.md 2.3.

use pegasus_pacifica::{Admission, Effect};
use pegasus_types::message::Message;
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{Ballot, Decree, ErrorCode, Mutation};

use crate::rig::*;

fn ack(rig: &mut Rig, from: &str, ballot: i64, prepared: i64) -> Vec<Effect> {
    rig.message(from, ballot, Message::Prepared { round: 0, prepared: Decree(prepared) })
}

#[test]
fn a_write_is_logged_and_sent_at_once_and_commits_when_all_have_it() {
    let mut rig = Rig::primary("a b c");
    rig.disk_works = false;
    let out = rig.write(7);
    assert!(matches!(&out[0], Effect::Log { mutations, .. } if mutations[0].decree == Decree(1)));
    assert_eq!((prepares(&out, "b"), prepares(&out, "c")), (vec![1], vec![1]));
    assert_eq!(out.len(), 3);

    assert!(ack(&mut rig, "b", 1, 1).is_empty());
    assert!(ack(&mut rig, "c", 1, 1).is_empty(), "the own log is still missing");
    let logged = pegasus_pacifica::Event::Logged { gpid: GPID, ballot: Ballot(1), upto: Decree(1) };
    let out = rig.event(logged);
    assert_eq!(applied(&out), [1]);
    assert!(replies(&out).is_empty(), "not before it can be read");
    let out = rig.event(pegasus_pacifica::Event::Applied { gpid: GPID, upto: Decree(1) });
    assert_eq!(replies(&out), [(7, true)]);
}

#[test]
fn acks_are_cumulative_and_commits_in_order() {
    let mut rig = Rig::primary("a b");
    for token in 1..=3 {
        assert!(replies(&rig.write(token)).is_empty());
    }
    let out = ack(&mut rig, "b", 1, 2);
    assert_eq!((applied(&out), replies(&out)), (vec![1, 2], vec![(1, true), (2, true)]));
    assert!(ack(&mut rig, "b", 1, 1).is_empty(), "an older one tells nothing");
    assert_eq!(applied(&ack(&mut rig, "b", 1, 99)), [3], "no more than was prepared");
}

#[test]
fn the_commit_point_travels_with_prepares_and_is_told_when_idle() {
    let mut rig = Rig::primary("a b");
    rig.write(1);
    ack(&mut rig, "b", 1, 1);
    let out = rig.write(2);
    let carried =
        sent(&out, "b").iter().any(|m| matches!(m, Message::Prepare { committed, .. } if committed.0 == 1));
    assert!(carried);
    ack(&mut rig, "b", 1, 2);
    let out = rig.pass_with(150, "b");
    assert!(sent(&out, "b").contains(&&Message::Commit { committed: Decree(2) }));
    assert!(sent(&rig.pass_with(300, "b"), "b").is_empty(), "once is enough");
}

#[test]
fn a_full_window_and_missing_members_refuse() {
    let mut rig = Rig::primary("a b");
    let Admission::Ready { slots } = rig.admission() else { panic!("not ready") };
    for token in 0..slots as u64 {
        rig.write(token);
    }
    assert_eq!(rig.admission(), Admission::Full);
    assert_eq!(replies(&rig.write(999)), [(999, false)]);
    let mut alone = Rig::primary("a");
    assert_eq!(alone.admission(), Admission::Refused(ErrorCode::NotEnoughMember));
    assert_eq!(replies(&alone.write(1)), [(1, false)]);
    let mut secondary = Rig::secondary();
    assert_eq!(secondary.admission(), Admission::Refused(ErrorCode::InvalidState));
    assert_eq!(replies(&secondary.write(1)), [(1, false)]);
}

#[test]
fn what_is_lost_on_the_way_is_sent_again() {
    let mut rig = Rig::primary("a b");
    rig.write(1);
    rig.write(2);
    assert_eq!(prepares(&rig.pass_with(350, "b"), "b"), [1, 2]);
    let out = rig.message("b", 1, Message::Gap { round: 0, expected: Decree(2) });
    assert_eq!(prepares(&out, "b"), [2]);
    ack(&mut rig, "b", 1, 2);
    assert!(prepares(&rig.pass_with(700, "b"), "b").is_empty());
}

fn prepare(decree: i64, origin: i64, committed: i64) -> Message {
    Message::Prepare { mutation: mutation(decree, origin), committed: Decree(committed) }
}

#[test]
fn a_secondary_acknowledges_what_is_in_its_log_and_applies_what_is_committed() {
    let mut rig = Rig::secondary();
    rig.disk_works = false;
    let out = rig.message("b", 1, prepare(1, 1, 0));
    assert!(matches!(out[..], [Effect::Log { .. }]), "{out:?}");
    let logged = pegasus_pacifica::Event::Logged { gpid: GPID, ballot: Ballot(1), upto: Decree(1) };
    assert_eq!(sent(&rig.event(logged), "b"), [&Message::Prepared { round: 0, prepared: Decree(1) }]);
    rig.disk_works = true;
    let out = rig.message("b", 1, prepare(2, 1, 1));
    assert_eq!(applied(&out), [1]);
    let out = rig.message("b", 1, Message::Commit { committed: Decree(2) });
    assert_eq!(applied(&out), [2]);
}

#[test]
fn order_duplicates_and_strangers_at_a_secondary() {
    let mut rig = Rig::secondary();
    let gap = |d| Message::Gap { round: 0, expected: Decree(d) };
    assert_eq!(sent(&rig.message("b", 1, prepare(2, 1, 0)), "b"), [&gap(1)]);
    assert!(rig.message("b", 1, prepare(3, 1, 0)).is_empty(), "it was told just now");
    rig.message("b", 1, prepare(1, 1, 0));
    let again = rig.message("b", 1, prepare(1, 1, 0));
    assert_eq!(sent(&again, "b"), [&Message::Prepared { round: 0, prepared: Decree(1) }]);
    assert_eq!(again.len(), 1, "not logged twice");
    // A member that is not the primary, an older and a newer ballot.
    assert!(rig.message("c", 1, prepare(2, 1, 0)).is_empty());
    assert_eq!(sent(&rig.message("b", 0, prepare(2, 1, 0)), "b"), [&Message::Stale]);
    assert_eq!(sent(&rig.message("b", 9, prepare(2, 1, 0)), "b"), [&Message::NeedConfig]);
}

#[test]
fn damage_on_the_way_is_not_acknowledged_and_a_contradiction_stops_the_replica() {
    let mut rig = Rig::secondary();
    let damaged = Mutation { timestamp_us: 1, ..mutation(1, 1) };
    assert!(rig.message("b", 1, Message::Prepare { mutation: damaged, committed: Decree(0) }).is_empty());
    rig.message("b", 1, prepare(1, 1, 0));
    rig.message("b", 1, prepare(2, 1, 1));
    let other = Mutation::new(GPID, Decree(1), Ballot(1), 9, "other".into());
    let out = rig.message("b", 1, Message::Prepare { mutation: other, committed: Decree(1) });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Error));
    assert_eq!(sent(&out, "b"), [&Message::NotHere]);
}
