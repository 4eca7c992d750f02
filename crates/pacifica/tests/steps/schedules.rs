//! Orders of events in which the core once went wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pegasus_pacifica::{Admission, Effect, Event, NodeCore, Options, Serving};
use pegasus_types::message::{Envelope, Grant, HeartbeatAck, Message};
use pegasus_types::meta::{ChangeReply, Proposal, ReplicaStatus};
use pegasus_types::{Ballot, ChangeKind, Decree, ErrorCode, Millis, Mutation, PartitionConfig};

use crate::rig::*;

const PAIR: (pegasus_types::Gpid, Ballot) = (GPID, Ballot(1));
const SIGNATURE: u64 = 42;

fn grants(effects: &[Effect]) -> bool {
    effects.iter().any(|e| matches!(e, Effect::AckHeartbeat { ack, .. } if ack.grant == Grant::All))
}

fn take_over() -> ChangeKind {
    ChangeKind::TakeOver { claimant: node("a") }
}

fn remove(member: &str) -> ChangeKind {
    ChangeKind::RemoveSecondary { primary: node("a"), node: node(member) }
}

fn add(learner: &str) -> ChangeKind {
    ChangeKind::AddSecondary { primary: node("a"), node: node(learner) }
}

/// Time passes; `alive` send heartbeats that ask nothing, `granting` grant what they are asked.
fn live(rig: &mut Rig, ms: u64, alive: &str, granting: &str) -> Vec<Effect> {
    let mut seen = Vec::new();
    for _ in 0..ms / 50 {
        let step = rig.pass_with(50, alive);
        for peer in granting.split_whitespace() {
            if let Some(beat) = last_beat(&step, peer) {
                seen.extend(rig.grant(peer, beat.seq, Grant::All));
            }
        }
        seen.extend(step);
    }
    seen
}

fn signature_of(effects: &[Effect], to: &str) -> u64 {
    sent(effects, to)
        .iter()
        .find_map(|m| match m {
            Message::Learn { signature, .. } => Some(*signature),
            _ => None,
        })
        .expect("it is called to learn")
}

// --- claims ---

/// Cut for a second with the meta away, then all is well again, but the member never grants any more.
#[test]
fn a_claim_that_failed_during_a_silence_ends_with_the_silence() {
    let mut rig = Rig::secondary();
    assert!(asked(&rig.pass(1_200)).contains(&&take_over()));
    rig.answer(1, None);
    rig.pass_with(5_000, "b");
    assert!(grants(&rig.heartbeat("b", &[PAIR])), "reads of this partition wait for ever");
}

/// The second reset comes while no new request may be sent yet.
#[test]
fn a_false_alarm_just_after_a_failed_claim_is_forgotten_too() {
    let mut rig = Rig::secondary();
    rig.event(Event::PeerReset { node: node("b") });
    rig.answer(1, None);
    rig.pass_with(50, "b");
    rig.event(Event::PeerReset { node: node("b") });
    rig.pass_with(5_000, "b");
    assert!(grants(&rig.heartbeat("b", &[PAIR])), "reads of this partition wait for ever");
}

/// A node with which nothing was shared for a while has not been listened to.
#[test]
fn who_had_nothing_to_say_is_not_silent() {
    let mut rig = Rig::new();
    rig.heartbeat("c", &[]);
    rig.pass(10_000);
    rig.event(Event::Create { config: config(1, "a b c") });
    let out = rig.pass(100);
    assert!(asked(&out).is_empty(), "c had no time to answer: {:?}", asked(&out));
}

/// Its process answers heartbeats, but opens its replicas for minutes.
#[test]
fn a_primary_that_has_restarted_and_opens_for_long_is_replaced() {
    let mut rig = Rig::secondary();
    let mut claimed = false;
    for i in 0..40 {
        let beats = rig.pass_to_beat();
        let seq = last_beat(&beats, "b").expect("it shares a partition").seq;
        let incarnation = if i < 5 { 5 } else { 6 };
        let ack = HeartbeatAck {
            incarnation,
            to_incarnation: INCARNATION,
            seq,
            grant: Grant::Some { granted: vec![], newer: vec![] },
            log_healthy: true,
        };
        let out = rig.event(Event::HeartbeatAcked { from: node("b"), ack });
        claimed |= asked(&beats).contains(&&take_over()) || asked(&out).contains(&&take_over());
        if claimed {
            // It shares nothing with b any more, so there are no heartbeats to wait for.
            break;
        }
    }
    assert!(claimed, "for 5 s it can only act at a new ballot, so anybody may ask for one");
}

// --- members ---

/// Its process lives, but it grants nothing: it claims, or opens for minutes, or its replica is stuck.
#[test]
fn a_member_that_never_grants_is_removed_though_nothing_is_written() {
    let mut rig = Rig::primary("a b c");
    let out = live(&mut rig, 15_000, "b c", "b");
    assert_eq!(rig.serving(), Serving::Wait);
    assert!(asked(&out).contains(&&remove("c")), "nobody can read for 15 s, and nobody does anything");
}

#[test]
fn a_member_that_was_cut_off_for_a_second_while_the_meta_was_away_stays() {
    let mut rig = Rig::primary("a b c");
    let out = live(&mut rig, 1_500, "b", "b");
    assert!(asked(&out).contains(&&remove("c")));
    rig.answer(1, None);
    // c is back and grants; there is nothing to write.
    live(&mut rig, 4_000, "b c", "b c");
    rig.answer(1, None);
    let out = live(&mut rig, 4_000, "b c", "b c");
    assert!(asked(&out).is_empty(), "a healthy member is to be removed: {:?}", asked(&out));
}

#[test]
fn a_slow_member_that_moves_is_not_sent_everything_again() {
    let mut rig = Rig::primary("a b");
    for token in 0..100 {
        rig.write(token);
    }
    let mut again = 0;
    for acked in (5..=100).step_by(5) {
        let out = live(&mut rig, 100, "b", "b");
        again += prepares(&out, "b").len();
        rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(acked) });
    }
    assert_eq!(again, 0, "prepares that were sent again");
}

#[test]
fn a_lost_commit_is_told_again() {
    let mut rig = Rig::primary("a b");
    rig.write(1);
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    let out = live(&mut rig, 10_000, "b", "b");
    let commits = sent(&out, "b").iter().filter(|m| matches!(m, Message::Commit { .. })).count();
    assert!(commits >= 2, "a follower that missed the only one never shows the write to its readers");
}

/// Bodies are slices of whole receive buffers (types::blob).
#[test]
fn what_a_follower_keeps_does_not_pin_what_it_received() {
    struct Frame(Vec<u8>, Arc<AtomicUsize>);
    impl AsRef<[u8]> for Frame {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Frame {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let live = Arc::new(AtomicUsize::new(0));
    let mut rig = Rig::secondary();
    for decree in 1..=200 {
        live.fetch_add(1, Ordering::Relaxed);
        let frame = Bytes::from_owner(Frame(vec![7; 64 << 10], live.clone()));
        let mutation =
            Mutation::new(GPID, Decree(decree), Ballot(1), decree.unsigned_abs(), frame.slice(..100));
        rig.message("b", 1, Message::Prepare { mutation, committed: Decree(decree - 1) });
    }
    rig.message("b", 1, Message::Commit { committed: Decree(200) });
    let pinned = live.load(Ordering::Relaxed);
    assert!(pinned < 20, "{pinned} buffers are kept for 100 bytes each, all applied");
}

// --- requests to the meta ---

/// Two requests at one ballot: the answer of the first comes after it was given up.
#[test]
fn a_late_answer_belongs_to_its_own_request() {
    let mut rig = Rig::primary("a b");
    let out = rig.event(Event::PeerReset { node: node("b") });
    assert_eq!(asked(&out), [&remove("b")]);
    let out = rig.propose(1, Proposal::AddSecondary { node: node("c") });
    let signature = signature_of(&out, "c");
    live(&mut rig, 1_000, "b c", "b c");
    // b is well after all.
    rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(0) });
    rig.message("c", 1, Message::Join { signature, round: 5, prepared: Decree(0) });
    let out = live(&mut rig, 3_000, "b c", "b c");
    assert!(asked(&out).contains(&&add("c")), "{:?}", asked(&out));
    // The refusal of the removal.
    let refusal = ChangeReply::Rejected { current: Some(config(1, "a b")), why: "level".into() };
    rig.answer_to(1, remove("b"), Some(refusal));
    // The addition may be stored at any moment, so nothing is committed without c.
    rig.write(9);
    let out = rig.message("b", 1, Message::Prepared { round: 0, prepared: Decree(1) });
    assert!(replies(&out).is_empty(), "acknowledged without c, which may be a member by now");
}

// --- learners ---

/// Nodes that are called and have no disk for a replica.
#[test]
fn learners_that_never_come_do_not_take_the_place_of_others() {
    let mut rig = Rig::primary("a b");
    rig.propose(1, Proposal::AddSecondary { node: node("c") });
    rig.propose(1, Proposal::AddSecondary { node: node("d") });
    live(&mut rig, 120_000, "b c d", "b");
    let out = rig.propose(1, Proposal::AddSecondary { node: node("e") });
    assert!(!sent(&out, "e").is_empty(), "the partition never gets its third copy");
}

fn joined_learner() -> Rig {
    let mut rig = Rig::new();
    rig.message("b", 3, Message::Learn { config: config(3, "b c"), signature: SIGNATURE });
    let mut replica = recovered(PartitionConfig::unassigned(GPID, 3), 0, &[]);
    replica.learning = true;
    rig.event(Event::Opened { gpid: GPID, replica });
    rig.event(Event::CopiedRows { gpid: GPID, signature: SIGNATURE, decree: Decree(10) });
    let nothing =
        Event::Fetched { gpid: GPID, signature: SIGNATURE, mutations: vec![], committed: Decree(10) };
    let out = rig.event(nothing);
    let (prepared, round) = joining(&out, "b").expect("it joins");
    assert_eq!(prepared, 10);
    rig.message("b", 3, Message::Joined { signature: SIGNATURE, round, committed: Decree(10) });
    rig
}

/// Its log hangs, and it asks its silent primary whether the session still exists.
#[test]
fn a_learner_never_tells_that_it_holds_what_is_not_in_its_log() {
    let mut rig = joined_learner();
    rig.disk_works = false;
    rig.message("b", 3, Message::Prepare { mutation: mutation(11, 3), committed: Decree(10) });
    let out = rig.pass_with(5_000, "b");
    for message in sent(&out, "b") {
        if let Message::Join { prepared, .. } | Message::Prepared { prepared, .. } = message {
            assert!(*prepared <= Decree(10), "{message:?}");
        }
    }
}

/// Cores with disks that work, and everything between them in the hands of the test.
struct Net {
    now: Millis,
    cores: BTreeMap<&'static str, NodeCore>,
    wire: Vec<(&'static str, &'static str, Envelope)>,
    replies: Vec<(u64, bool)>,
    asked: Vec<ChangeKind>,
    fetches: Vec<(u64, Decree)>,
    copies: Vec<(u64, Decree)>,
    /// No heartbeats to this one, so no grants from it.
    unheard: &'static str,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Net {
    fn new() -> Self {
        let now = Millis(10_000);
        let core = |n: &'static str| (n, NodeCore::new(node(n), n.len() as u64 + 7, Options::default(), now));
        Self {
            now,
            cores: NAMES.into_iter().map(core).collect(),
            wire: Vec::new(),
            replies: Vec::new(),
            asked: Vec::new(),
            fetches: Vec::new(),
            copies: Vec::new(),
            unheard: "",
        }
    }

    fn event(&mut self, at: &'static str, event: Event) {
        let effects = self.cores.get_mut(at).expect("it is there").step(self.now, event);
        for effect in effects {
            let name =
                |n: &pegasus_types::Node| *NAMES.iter().find(|x| **x == n.as_str()).expect("one of us");
            match effect {
                Effect::SaveConfig { gpid, config, learning } => {
                    self.event(at, Event::ConfigSaved { gpid, ballot: config.ballot, learning });
                }
                Effect::Log { gpid, ballot, mutations, .. } => {
                    let upto = mutations.last().expect("something to log").decree;
                    self.event(at, Event::Logged { gpid, ballot, upto });
                }
                Effect::Apply { gpid, mutations } => {
                    let upto = mutations.last().expect("something to apply").decree;
                    self.event(at, Event::Applied { gpid, upto });
                }
                Effect::Send { to, envelope } => self.wire.push((at, name(&to), envelope)),
                Effect::SendHeartbeat { to, heartbeat } => {
                    let to = name(&to);
                    if self.cores.contains_key(to) && to != self.unheard {
                        self.event(to, Event::Heartbeat { from: node(at), heartbeat });
                    }
                }
                Effect::AckHeartbeat { to, ack } => {
                    let to = name(&to);
                    self.event(to, Event::HeartbeatAcked { from: node(at), ack });
                }
                Effect::OpenReplica { gpid, .. } => {
                    let mut replica = recovered(PartitionConfig::unassigned(gpid, 3), 0, &[]);
                    replica.learning = true;
                    self.event(at, Event::Opened { gpid, replica });
                }
                Effect::StartCopy { signature, committed, .. } => self.copies.push((signature, committed)),
                Effect::FetchLog { signature, after, .. } => self.fetches.push((signature, after)),
                Effect::AskMeta { request } => self.asked.push(request.kind),
                Effect::Reply { token, result, .. } => self.replies.push((token, result.is_ok())),
                _ => {}
            }
        }
    }

    /// Delivers what is under way to `to`; what `keep` picks stays on the wire.
    fn deliver(&mut self, to: &str, keep: impl Fn(&Message) -> bool) {
        let (now, later) = std::mem::take(&mut self.wire)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, t, e)| *t == to && !keep(&e.message));
        self.wire = later;
        for (from, to, envelope) in now {
            self.event(to, Event::Received { from: node(from), envelope });
        }
    }

    fn settle(&mut self) {
        while !self.wire.is_empty() {
            for name in NAMES {
                self.deliver(name, |_| false);
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now + 10;
            for name in NAMES {
                if self.cores.get(name).is_some_and(|c| c.next_timer().is_some_and(|at| at <= self.now)) {
                    self.event(name, Event::Tick);
                }
            }
        }
    }

    fn write(&mut self, token: u64) {
        let body = Bytes::from(format!("body {token}"));
        self.event("a", Event::Write { gpid: GPID, token, timestamp_us: 5, body });
    }

    /// The answer of an honest teacher.
    fn fetched(&mut self, at: &'static str, mutations: Vec<Mutation>) {
        let (signature, _) = self.fetches.pop().expect("it fetches");
        let committed = self.cores["a"].committed(GPID).expect("a has it");
        self.event(at, Event::Fetched { gpid: GPID, signature, mutations, committed });
    }

    fn prepared(&self, at: &str) -> Decree {
        self.cores[at].reports()[0].prepared
    }
}

fn prepare_of(net: &Net, to: &str, decree: i64) -> Mutation {
    net.wire
        .iter()
        .find_map(|(_, t, e)| match &e.message {
            Message::Prepare { mutation, .. } if *t == to && mutation.decree.0 == decree => {
                Some(mutation.clone())
            }
            _ => None,
        })
        .expect("on its way")
}

/// a is primary of b; c has joined as a learner, and copies of a `FetchMore` to it are still on the wire.
fn with_joined_learner_and_doubled_fetch_more() -> (Net, Envelope) {
    let mut net = Net::new();
    net.event("a", Event::Create { config: config(1, "a b") });
    net.event("b", Event::Create { config: config(1, "a b") });
    net.settle();
    net.pass(1_000);
    net.settle();
    net.unheard = "c";
    net.event(
        "a",
        Event::Propose {
            gpid: GPID,
            ballot: Ballot(1),
            proposal: Proposal::AddSecondary { node: node("c") },
        },
    );
    net.settle();
    let (signature, decree) = net.copies.pop().expect("it copies");
    net.event("c", Event::CopiedRows { gpid: GPID, signature, decree });
    net.fetched("c", vec![]);
    // Joins; its first prepare is lost, so it is sent back to copying.
    net.deliver("a", |_| false);
    net.deliver("c", |_| false);
    net.write(1);
    let first = prepare_of(&net, "c", 1);
    net.wire.retain(|(_, to, _)| *to != "c");
    net.settle();
    net.asked.clear();
    net.pass(250);
    let more =
        net.wire.iter().find(|(_, to, e)| *to == "c" && matches!(e.message, Message::FetchMore { .. }));
    let doubled = more.expect("silent for 200 ms").2.clone();
    net.settle();
    assert_eq!(net.replies, [(1, true)]);
    net.fetched("c", vec![first]);
    net.settle();
    assert_eq!(net.prepared("c"), Decree(1));
    net.unheard = "";
    (net, doubled)
}

/// A doubled `FetchMore` makes a learner forget what it has acknowledged, and it becomes a member like that.
#[test]
fn an_acknowledged_write_survives_a_doubled_fetch_more() {
    let (mut net, doubled) = with_joined_learner_and_doubled_fetch_more();
    net.write(2);
    net.deliver("c", |_| false);
    assert_eq!(net.prepared("c"), Decree(2), "c acknowledges 2");
    net.deliver("a", |m| !matches!(m, Message::Prepared { .. }));
    // The copy arrives, while b has not answered yet.
    net.event("c", Event::Received { from: node("a"), envelope: doubled });
    if !net.fetches.is_empty() {
        net.fetched("c", vec![]);
    }
    net.deliver("a", |_| false);
    net.deliver("c", |_| false);
    // b answers: 2 is committed and the client told.
    net.deliver("b", |_| false);
    net.deliver("a", |_| false);
    assert_eq!(net.replies, [(1, true), (2, true)]);
    // The addition of c was asked for long ago and is stored now; then a dies.
    net.pass(150);
    assert!(net.asked.contains(&add("c")), "{:?}", net.asked);
    net.event("c", Event::MetaConfig { config: config(2, "a b c") });
    net.cores.remove("a");
    net.wire.clear();
    net.event("c", Event::MetaConfig { config: config(3, "c b") });
    net.event("b", Event::MetaConfig { config: config(3, "c b") });
    net.settle();
    net.pass(2_000);
    net.settle();
    let serves = matches!(net.cores["c"].admit_write(net.now, GPID), Admission::Ready { .. });
    assert!(!serves || net.prepared("c") >= Decree(2), "write 2 was acknowledged to its client and is lost");
}

/// page_cache mode, and the whole cluster lost power. Nobody can tell which of the copies lacks acknowledged writes,
/// and the mark on disk does not tell a copy that lost its newest writes from a half-copied learner, so none of them
/// takes the lead: the copies stay as they are, for an operator. (replication.md 9.3b wants the largest of them to
/// go on, once all are there. That is not built.)
#[test]
fn when_every_member_lost_power_the_group_waits_and_keeps_what_it_has() {
    let mut net = Net::new();
    for (at, prepared) in [("a", 5), ("b", 6), ("c", 5)] {
        let tail: Vec<_> = (1..=prepared).map(|d| mutation(d, 1)).collect();
        let mut replica = recovered(config(4, "a b c"), 0, &tail);
        replica.intact = false;
        net.event(at, Event::Opened { gpid: GPID, replica });
    }
    for _ in 0..60 {
        net.pass(1_000);
        net.settle();
    }
    assert!(net.asked.is_empty(), "{:?}", net.asked);
    for (at, prepared) in [("a", 5), ("b", 6), ("c", 5)] {
        assert_eq!(net.cores[at].serving(net.now, GPID), Serving::No(ErrorCode::InvalidState));
        let report = &net.cores[at].reports()[0];
        assert_eq!((report.status, report.prepared), (ReplicaStatus::Inactive, Decree(prepared)));
    }
}
