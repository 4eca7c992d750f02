//! The leader's part: decide → persist → adopt → answer, one batch of jobs at a time.

use std::collections::VecDeque;

use pegasus_placement::Ledger;
use pegasus_placement::assign::Members;
use pegasus_placement::balance::{self, moves::Pace};
use pegasus_placement::cure::{self, Cure, Order};
use pegasus_placement::ledger::{Entry, Write};
use pegasus_placement::liveness::Liveness;
use pegasus_types::meta::{BeaconAck, ChangeReply, ChangeRequest, ProposalRequest, ReplicaReport};
use pegasus_types::{AppInfo, ChangeKind, Gpid, Millis, Node, PartitionConfig};
use pegasus_zk_coordination::{Fence, Op, StoreError};

use super::{Asked, Meta, TABLE, paths};
use crate::bus::{Bus, MS, Micros, Packet, Place};
use crate::checks::Checks;
use crate::host::Host;
use crate::host::clock::WALL_US;
use crate::settings::Sabotage;
use crate::store::{StoreAnswer, StoreCall, op};

/// Beacons come every second.
const GRACE_MS: u64 = 4_000;
/// Before a store that cannot be reached is tried again.
const PAUSE: Micros = 300 * MS;
/// Between two looks at what is to be cured.
const CURE_EVERY_MS: u64 = 200;

#[derive(Debug)]
enum Job {
    Change { from: Place, ask: u64, request: ChangeRequest },
    Assign(Vec<(Gpid, Members)>),
    Available,
}

#[derive(Debug)]
enum UnderWay {
    Load,
    Write { jobs: Vec<Job>, replies: Vec<Option<ChangeReply>>, writes: Vec<Write> },
}

#[derive(Debug)]
pub struct Leader {
    pub fence: Fence,
    /// None = to be loaded (again).
    ledger: Option<Ledger>,
    known_once: bool,
    cure: Cure,
    liveness: Liveness,
    jobs: VecDeque<Job>,
    under_way: Option<UnderWay>,
    again_at: Micros,
    cured_at: Millis,
}

impl Leader {
    pub fn new(now: Millis, fence: Fence, spread: bool) -> Self {
        let options = cure::Options {
            repeat_ms: 1_000,
            patience_ms: 5_000,
            missing_ms: 2_000,
            return_ms: 1_500,
            assign_wait_ms: 1_000,
            min_alive_percent: 1,
            balance: balance::Options { spread, ..balance::Options::default() },
            pace: Pace { calm_ms: 1_500, patience_ms: 4_000, pause_ms: 2_000, ..Pace::default() },
            ..cure::Options::default()
        };
        Self {
            fence,
            ledger: None,
            known_once: false,
            cure: Cure::new(options, now),
            liveness: Liveness::new(GRACE_MS),
            jobs: VecDeque::new(),
            under_way: None,
            again_at: 0,
            cured_at: Millis::ZERO,
        }
    }

    /// It has loaded what is stored, and so may answer.
    pub fn is_ready(&self) -> bool {
        self.known_once
    }

    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        self.ledger.as_ref()?.view().partition(gpid).map(|config| &**config)
    }

    fn info(&self) -> Option<AppInfo> {
        self.ledger.as_ref()?.view().table(TABLE).map(|table| table.info.clone())
    }

    fn gpids(&self) -> Vec<Gpid> {
        let ledger = self.ledger.iter();
        ledger.flat_map(|l| l.view().live_partitions().map(|(_, config)| config.gpid)).collect()
    }

    /// Every job on top of what is stored and of the jobs before it.
    fn decide(
        &self,
        ledger: &Ledger,
        jobs: &[Job],
        sabotage: Sabotage,
    ) -> (Vec<Option<ChangeReply>>, Vec<Write>) {
        let mut draft = ledger.draft();
        let mut replies = Vec::new();
        for job in jobs {
            replies.push(match job {
                Job::Change { request, .. } if self.cure.is_frozen(request.gpid) => {
                    Some(ChangeReply::Rejected { current: None, why: "frozen".to_owned() })
                }
                Job::Change { request, .. } => Some(match draft.change(request) {
                    Ok(config) => ChangeReply::Accepted(config),
                    Err(why) => ChangeReply::Rejected {
                        current: draft.view().partition(request.gpid).map(|config| (**config).clone()),
                        why: why.to_string(),
                    },
                }),
                Job::Assign(list) => {
                    for (gpid, members) in list {
                        draft.assign(*gpid, members);
                    }
                    None
                }
                Job::Available => {
                    let table = draft.view().table(TABLE);
                    if table.is_some_and(|table| self.cure.all_hold(&table.partitions)) {
                        draft.make_available(TABLE);
                    }
                    None
                }
            });
        }
        let mut writes = draft.writes();
        let claimed = |job: &Job| matches!(job, Job::Change { request, .. } if matches!(request.kind, ChangeKind::TakeOver { .. }));
        if sabotage.double_member && jobs.iter().any(claimed) {
            for write in &mut writes {
                if let Entry::Partition(config) = &mut write.entry {
                    config.secondaries.extend(config.primary.clone());
                }
            }
        }
        (replies, writes)
    }
}

impl Meta {
    /// What the leader has to do next, if it may.
    pub(super) fn lead(&mut self, bus: &mut Bus, checks: &mut Checks) {
        if !self.up || !self.may_decide() {
            return;
        }
        self.look_round(bus);
        let sabotage = self.settings.sabotage;
        let place = self.place();
        let Some(leader) = &mut self.leader else { return };
        if leader.under_way.is_some() || bus.now < leader.again_at {
            return;
        }
        let Some(ledger) = &leader.ledger else {
            leader.under_way = Some(UnderWay::Load);
            return self.call(bus, Asked::Leader, StoreCall::Load);
        };
        if leader.jobs.is_empty() {
            return;
        }
        let jobs: Vec<Job> = leader.jobs.drain(..).collect();
        let (replies, writes) = leader.decide(ledger, &jobs, sabotage);
        if writes.is_empty() {
            return answer(bus, place, jobs, replies);
        }
        let paths = paths();
        let fence =
            leader.fence.checks().into_iter().filter(|_| !sabotage.no_fence && !sabotage.blind_writes);
        let ops = fence
            .chain(writes.iter().map(|write| blind_if(sabotage.blind_writes, op(&paths, write))))
            .collect();
        let epoch = Some(leader.fence.epoch);
        leader.under_way = Some(UnderWay::Write { jobs, replies, writes });
        self.call(bus, Asked::Leader, StoreCall::Write { ops, epoch });
        let _ = checks;
    }

    pub(super) fn leader_answered(&mut self, bus: &mut Bus, checks: &mut Checks, answered: StoreAnswer) {
        let now = self.millis(bus);
        let place = self.place();
        let Some(leader) = &mut self.leader else { return };
        match (leader.under_way.take(), answered) {
            (Some(UnderWay::Load), StoreAnswer::Loaded(Ok(ledger))) => {
                if !leader.known_once {
                    // Nobody is declared dead before one grace time.
                    ledger.view().known_nodes().iter().for_each(|node| leader.liveness.expect(now, node));
                }
                leader.known_once = true;
                leader.ledger = Some(ledger);
            }
            (Some(UnderWay::Load), StoreAnswer::Loaded(Err(why))) => {
                checks.violation(bus.now, format!("{place} cannot load: {why}"));
            }
            (Some(UnderWay::Write { jobs, replies, writes }), StoreAnswer::Written(Ok(_))) => {
                adopt(leader, bus, place, now, writes);
                answer(bus, place, jobs, replies);
            }
            (under_way, StoreAnswer::Written(Err(error))) => {
                leader.under_way = under_way;
                self.store_failed(bus, checks, error);
            }
            _ => {}
        }
        self.lead(bus, checks);
    }

    /// The jobs stay, and are decided again on what is stored by then: those that were done are recognised.
    pub(super) fn store_failed(&mut self, bus: &mut Bus, checks: &mut Checks, error: StoreError) {
        let Some(leader) = &mut self.leader else { return };
        let broken = leader.fence.is_broken_by(&error);
        bus.trace.line(bus.now, format_args!("m{}: {error}", self.id + 1));
        if let Some(UnderWay::Write { jobs, .. }) = leader.under_way.take() {
            jobs.into_iter().rev().for_each(|job| leader.jobs.push_front(job));
        }
        leader.again_at = bus.now + PAUSE;
        if !matches!(error, StoreError::Unavailable(_)) {
            leader.ledger = None;
        }
        if broken {
            self.leader = None;
        }
        let _ = checks;
    }

    // --- hosts ---

    pub(super) fn for_leader(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, packet: Packet) {
        let now = self.millis(bus);
        let place = self.place();
        let Some(leader) = &mut self.leader else { return };
        match packet {
            Packet::Change { ask, request } => leader.jobs.push_back(Job::Change { from, ask, request }),
            Packet::Query(gpid) => {
                if let (Some(info), Some(config)) = (leader.info(), leader.config(gpid).cloned()) {
                    bus.send(place, from, Packet::Configs(vec![(info, config)]));
                }
            }
            Packet::Beacon(beacon) => {
                let news = leader.liveness.beacon(now, WALL_US + bus.now, &beacon);
                let ack = BeaconAck {
                    accepted: true,
                    leader: None,
                    wants_report: news.joined || news.restarted,
                    all_draining: leader.liveness.all_draining(),
                    cluster_id: String::new(),
                };
                bus.send(place, from, Packet::BeaconAck(ack));
            }
            Packet::Report { replicas } => self.reported(bus, checks, from, &replicas),
            Packet::Route(gpid) => {
                if let Some(config) = leader.config(gpid) {
                    let primary = config.primary.as_ref().and_then(Host::index);
                    bus.send(place, from, Packet::RouteIs { gpid, primary });
                }
            }
            _ => {}
        }
    }

    fn reported(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, replicas: &[ReplicaReport]) {
        let now = self.millis(bus);
        let place = self.place();
        let (Place::Host(host), Some(leader)) = (from, &mut self.leader) else { return };
        let Some(ledger) = &leader.ledger else { return };
        let node = Host::node_of(host);
        for (gpid, ballot) in leader.cure.reported(now, ledger.view(), &node, replicas) {
            checks.violation(
                bus.now,
                format!("{node} knows ballot {ballot} of {gpid}, which {place} never stored"),
            );
        }
        let creating = |status| status == pegasus_types::AppStatus::Creating;
        let table = ledger.view().table(TABLE);
        if table.is_some_and(|t| creating(t.info.status) && leader.cure.all_hold(&t.partitions)) {
            leader.jobs.push_back(Job::Available);
        }
        let Some(info) = leader.info() else { return };
        let reported = |gpid: Gpid| replicas.iter().find(|r| r.gpid == gpid);
        let configs: Vec<_> = leader
            .gpids()
            .into_iter()
            .filter_map(|gpid| leader.config(gpid))
            .filter(|c| c.is_member(&node) || reported(c.gpid).is_some_and(|r| r.ballot < c.ballot))
            .map(|config| (info.clone(), config.clone()))
            .collect();
        bus.send(place, from, Packet::Configs(configs));
        let surplus = |report: &&ReplicaReport| {
            let config = leader.config(report.gpid);
            config.is_some_and(|config| leader.cure.is_surplus(config, &leader.liveness, report, &node))
        };
        let garbage: Vec<Gpid> = replicas.iter().filter(surplus).map(|report| report.gpid).collect();
        if !garbage.is_empty() {
            bus.send(place, from, Packet::Garbage(garbage));
        }
    }

    fn look_round(&mut self, bus: &mut Bus) {
        let now = self.millis(bus);
        let (place, no_cure) = (self.place(), self.settings.sabotage.no_cure);
        let Some(leader) = &mut self.leader else { return };
        let Some(ledger) = &leader.ledger else { return };
        if now.since(leader.cured_at) < CURE_EVERY_MS || leader.under_way.is_some() {
            return;
        }
        leader.cured_at = now;
        leader.liveness.sweep(now);
        let mut assign = Vec::new();
        for order in leader.cure.round(now, ledger.view(), &leader.liveness) {
            match order {
                Order::Assign { gpid, members } => assign.push((gpid, members)),
                Order::Propose { to, request } if !no_cure => propose(bus, place, &to, request),
                Order::Propose { .. } => {}
            }
        }
        if !assign.is_empty() {
            leader.jobs.push_back(Job::Assign(assign));
        }
    }
}

/// What is stored is adopted and told to everybody concerned.
fn adopt(leader: &mut Leader, bus: &mut Bus, place: Place, now: Millis, writes: Vec<Write>) {
    let Some(ledger) = &mut leader.ledger else { return };
    let configs = ledger.adopt(writes).configs;
    let info = leader.info();
    for (old, new) in configs {
        leader.cure.changed(now, &old, &new);
        let Some(info) = &info else { continue };
        let mut told: Vec<&Node> = old.members().chain(new.members()).collect();
        told.sort();
        told.dedup();
        for to in told.into_iter().filter_map(Host::index) {
            bus.send(place, Place::Host(to), Packet::Configs(vec![(info.clone(), new.clone())]));
        }
    }
}

fn answer(bus: &mut Bus, place: Place, jobs: Vec<Job>, replies: Vec<Option<ChangeReply>>) {
    for (job, reply) in jobs.into_iter().zip(replies) {
        if let (Job::Change { from, ask, .. }, Some(reply)) = (job, reply) {
            bus.send(place, from, Packet::ChangeReply { ask, reply });
        }
    }
}

fn blind_if(blind: bool, op: Op) -> Op {
    match op {
        Op::Set { path, bytes, .. } if blind => Op::Set { path, bytes, version: None },
        op => op,
    }
}

pub(super) fn propose(bus: &mut Bus, place: Place, to: &Node, request: ProposalRequest) {
    bus.trace.line(bus.now, format_args!("{place} proposes to {to}: {request:?}"));
    if let Some(to) = Host::index(to) {
        bus.send(place, Place::Host(to), Packet::Propose(request));
    }
}
