//! Broken replicas: safety-rules.md 2.8, 4.5, 4.7.

use pegasus_pacifica::{Effect, Event, Fault};
use pegasus_types::message::Message;
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{ChangeKind, Decree};

use crate::rig::*;

fn fail(rig: &mut Rig, fault: Fault) -> Vec<Effect> {
    rig.event(Event::Failed { gpid: GPID, fault, why: "test".into() })
}

#[test]
fn a_broken_primary_tells_its_heirs_and_stays_until_one_has_taken_over() {
    let mut rig = Rig::primary("a b c");
    rig.write(7);
    let out = fail(&mut rig, Fault::Log);
    assert_eq!((sent(&out, "b"), sent(&out, "c")), (vec![&Message::NotHere], vec![&Message::NotHere]));
    assert!(out.contains(&Effect::Drop { gpid: GPID, token: 7 }));
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Error));
    let out = rig.event(Event::MetaConfig { config: config(2, "b c") });
    assert!(matches!(out[..], [Effect::Quarantine { .. }]), "{out:?}");
    assert_eq!(rig.core.status(GPID), None);
}

#[test]
fn a_secondary_takes_over_from_a_primary_that_has_nothing() {
    let mut rig = Rig::secondary();
    rig.message("b", 1, Message::Commit { committed: Decree(0) });
    let out = rig.message("b", 1, Message::NotHere);
    assert_eq!(asked(&out), [&ChangeKind::TakeOver { claimant: node("a") }]);
}

#[test]
fn members_of_a_new_table_wait_for_one_another() {
    let mut rig = Rig::secondary();
    let out = rig.message("b", 1, Message::NotHere);
    assert!(asked(&out).is_empty(), "its primary has not opened yet");
    let mut rig = Rig::new();
    rig.event(Event::Create { config: config(1, "a b c") });
    let out = rig.message("b", 1, Message::NotHere);
    assert!(asked(&out).is_empty(), "its member has not opened yet");
    rig.message("b", 1, Message::State { committed: Decree(0), prepared: Decree(0) });
    let out = rig.message("b", 1, Message::NotHere);
    assert_eq!(asked(&out), [&ChangeKind::RemoveSecondary { primary: node("a"), node: node("b") }]);
}

#[test]
fn a_secondary_without_grants_to_give_asks_its_living_primary() {
    let mut rig = Rig::secondary();
    let out = rig.pass_with(2_500, "b");
    assert!(sent(&out, "b").contains(&&Message::NeedConfig));
}

#[test]
fn a_broken_copy_declines_at_every_ballot() {
    let mut rig = Rig::secondary();
    assert_eq!(sent(&fail(&mut rig, Fault::Engine), "b"), [&Message::NotHere]);
    let prepare = Message::Prepare { mutation: mutation(1, 5), committed: Decree(0) };
    assert_eq!(sent(&rig.message("b", 5, prepare), "b"), [&Message::NotHere]);
    assert!(rig.pass(5_000).iter().any(|e| matches!(e, Effect::QueryMeta { .. })));
}

#[test]
fn the_last_copy_never_vanishes() {
    let mut rig = Rig::primary("a");
    fail(&mut rig, Fault::Engine);
    assert!(rig.event(Event::MetaConfig { config: config(2, "a") }).is_empty());
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Error));
}

#[test]
fn what_cannot_be_opened_is_reported() {
    let mut rig = Rig::new();
    rig.event(Event::Opening { gpid: GPID });
    rig.event(Event::OpenFailed { gpid: GPID, why: "no such file".into() });
    assert_eq!(rig.core.reports()[0].status, ReplicaStatus::Error);
    // Records that do not fit together.
    let mut rig = Rig::new();
    let replica = recovered(config(1, "a b c"), 3, &[mutation(6, 1)]);
    rig.event(Event::Opened { gpid: GPID, replica });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Error));
}

#[test]
fn a_failed_save_stops_the_replica_before_the_new_ballot() {
    let mut rig = Rig::secondary();
    rig.disk_works = false;
    rig.event(Event::MetaConfig { config: config(2, "a c") });
    fail(&mut rig, Fault::Save);
    rig.event(Event::ConfigSaved { gpid: GPID, ballot: pegasus_types::Ballot(2), learning: false });
    assert_eq!(rig.core.status(GPID), Some(ReplicaStatus::Error));
}
