//! The leader's part: what it hears, and the writer of `pegasus_meta_core` driven with the simulated store.

use std::collections::{BTreeSet, VecDeque};

use pegasus_meta_core::{
    Desk, Done, Found, Job, LoadError, Loading, Next, Outcome, Progress, Rounds, Step, Writer, WriterError,
    reported,
};
use pegasus_placement::Ledger;
use pegasus_placement::alone::Held;
use pegasus_placement::balance::moves::Pace;
use pegasus_placement::cure::{self, Cure};
use pegasus_placement::ledger::Adopted;
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::liveness::{Liveness, News};
use pegasus_placement::tables::Limits;
use pegasus_types::meta::{BeaconAck, ProposalRequest, ReplicaReport};
use pegasus_types::{AppInfo, Gpid, Millis, Node, PartitionConfig};
use pegasus_zk_coordination::{Fence, Op, StoreError, content};

use super::{Asked, Meta, paths};
use crate::bus::{Bus, MS, Micros, Packet, Place, SECOND};
use crate::checks::Checks;
use crate::host::Host;
use crate::host::clock::WALL_US;
use crate::settings::Sabotage;
use crate::store::{StoreAnswer, StoreCall};

/// Beacons come every second.
const GRACE_MS: u64 = 4_000;
/// Before a store that cannot be reached is tried again.
const PAUSE: Micros = 300 * MS;
/// Between two looks at what is to be cured.
const CURE_EVERY_MS: u64 = 200;

/// Who waits for what comes of a job.
#[derive(Debug)]
enum Ticket {
    Asker { from: Place, ask: u64 },
    Nobody,
}

/// What the store was asked.
#[derive(Debug)]
enum UnderWay {
    Nothing,
    Load(Loading),
    Store,
}

#[derive(Debug)]
pub struct Leader {
    pub fence: Fence,
    /// None = nothing was loaded yet.
    ledger: Option<Ledger>,
    /// The ledger is not to be believed any more.
    load_again: bool,
    level: FunctionLevel,
    cure: Cure,
    liveness: Liveness,
    rounds: Rounds,
    limits: Limits,
    /// They wait while the writer is busy.
    jobs: VecDeque<(Job, Ticket)>,
    writer: Writer<Ticket>,
    under_way: UnderWay,
    again_at: Micros,
    cured_at: Millis,
    /// The operator's newest.
    last_order: u64,
    /// Requests that wait for somebody else's.
    held: Held,
    /// Hosts whose connection to this meta-server is not known to be broken.
    connected: BTreeSet<Node>,
}

impl Leader {
    pub fn new(now: Millis, fence: Fence, level: FunctionLevel) -> Self {
        let options = cure::Options {
            repeat_ms: 1_000,
            patience_ms: 5_000,
            missing_ms: 2_000,
            return_ms: 1_500,
            assign_wait_ms: 1_000,
            min_alive_percent: 1,
            pace: Pace { calm_ms: 1_500, patience_ms: 4_000, pause_ms: 2_000, ..Pace::default() },
            ..cure::Options::default()
        };
        Self {
            fence,
            ledger: None,
            load_again: false,
            level,
            cure: Cure::new(options, now),
            liveness: Liveness::new(GRACE_MS),
            rounds: Rounds::default(),
            limits: Limits::default(),
            jobs: VecDeque::new(),
            writer: Writer::new(paths()),
            under_way: UnderWay::Nothing,
            again_at: 0,
            cured_at: Millis::ZERO,
            last_order: 0,
            held: Held::default(),
            connected: BTreeSet::new(),
        }
    }

    /// It has loaded what is stored, and so may answer.
    pub fn is_ready(&self) -> bool {
        self.ledger.is_some()
    }

    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        self.ledger.as_ref()?.view().partition(gpid).map(|config| &**config)
    }

    fn info(&self, gpid: Gpid) -> Option<AppInfo> {
        self.ledger.as_ref()?.view().table(gpid.app_id).map(|table| table.info.clone())
    }

    /// Has the writer do something with what is known. None = nothing was loaded yet.
    fn at_desk<R>(
        &mut self,
        (now, at): (Millis, Micros),
        act: impl FnOnce(&mut Writer<Ticket>, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        let mut desk = Desk {
            ledger: self.ledger.as_mut()?,
            cure: &mut self.cure,
            liveness: &self.liveness,
            level: self.level,
            limits: &self.limits,
            now,
            now_s: wall_s(at),
        };
        Some(act(&mut self.writer, &mut desk))
    }

    /// It has to wait for somebody else's request.
    fn is_held_back(&mut self, now: Millis, job: &Job) -> bool {
        let (Job::Change(request), Some(ledger)) = (job, &self.ledger) else { return false };
        let Some(current) = ledger.view().partition(request.gpid) else { return false };
        let last_heard = |node: &Node| {
            let known = self.liveness.get(node).filter(|known| known.alive && known.heard);
            known.filter(|_| self.connected.contains(node)).map(|known| known.last_beacon)
        };
        self.held.until(now, current, request, last_heard).is_some()
    }

    /// A multi as this leader sends it.
    fn fenced(&self, ops: Vec<Op>, sabotage: Sabotage) -> Vec<Op> {
        let fence = self.fence.checks().into_iter().filter(|_| !sabotage.no_fence && !sabotage.blind_writes);
        fence.chain(ops.into_iter().map(|op| self.spoilt(op, sabotage))).collect()
    }

    fn spoilt(&self, op: Op, sabotage: Sabotage) -> Op {
        match op {
            Op::Set { path, bytes, .. } if sabotage.blind_writes => Op::Set { path, bytes, version: None },
            Op::Set { path, bytes, version } if sabotage.double_member => {
                let Ok(mut config) = content::decode_partition(&bytes) else {
                    return Op::Set { path, bytes, version };
                };
                let old = self.config(config.gpid).and_then(|config| config.primary.clone());
                if old.is_some() && old != config.primary {
                    config.secondaries.extend(config.primary.clone());
                }
                Op::Set { path, bytes: content::encode_partition(&config).into(), version }
            }
            op => op,
        }
    }
}

impl Meta {
    /// What the leader has to do next, if it may.
    pub(super) fn lead(&mut self, bus: &mut Bus) {
        if !self.up || !self.may_decide() {
            return;
        }
        self.look_round(bus);
        let now = (self.millis(bus), bus.now);
        let Some(leader) = &mut self.leader else { return };
        if !matches!(leader.under_way, UnderWay::Nothing) || bus.now < leader.again_at {
            return;
        }
        if leader.ledger.is_none() || leader.load_again {
            let (loading, read) = Loading::begin(&paths());
            leader.under_way = UnderWay::Load(loading);
            return self.call(bus, Asked::Leader, StoreCall::Load(read));
        }
        if leader.writer.is_idle() {
            if leader.jobs.is_empty() {
                return;
            }
            let jobs = std::mem::take(&mut leader.jobs);
            let (held, ready): (VecDeque<_>, VecDeque<_>) =
                jobs.into_iter().partition(|(job, _)| leader.is_held_back(now.0, job));
            leader.jobs = held;
            leader.writer.begin(ready);
            if leader.writer.is_idle() {
                return;
            }
        }
        if let Some(step) = leader.at_desk(now, |writer, desk| writer.decide(desk)) {
            self.stepped(bus, step);
        }
    }

    fn stepped(&mut self, bus: &mut Bus, step: Step<Ticket>) {
        let (place, sabotage) = (self.place(), self.settings.sabotage);
        let Some(leader) = &mut self.leader else { return };
        announce(leader, bus, place, step.adopted);
        step.done.into_iter().for_each(|done| answer(bus, place, done));
        match step.next {
            Next::Store(ops) => {
                let (ops, epoch) = (leader.fenced(ops, sabotage), Some(leader.fence.epoch));
                leader.under_way = UnderWay::Store;
                self.call(bus, Asked::Leader, StoreCall::Write { ops, epoch });
            }
            Next::Pause => leader.again_at = bus.now + PAUSE,
            Next::Load => leader.load_again = true,
            Next::Idle => leader.rounds.touch(),
        }
    }

    pub(super) fn leader_answered(&mut self, bus: &mut Bus, checks: &mut Checks, answered: StoreAnswer) {
        let Some(leader) = &mut self.leader else { return };
        match (std::mem::replace(&mut leader.under_way, UnderWay::Nothing), answered) {
            (UnderWay::Load(loading), StoreAnswer::Loaded(found)) => match found {
                Ok(found) => self.loaded(bus, checks, loading, found),
                Err(error) => self.load_failed(bus, checks, LoadError::Store(error)),
            },
            (UnderWay::Store, StoreAnswer::Written(result)) => self.stored(bus, result.map(|_| ())),
            _ => {}
        }
        self.lead(bus);
    }

    /// No answer has come.
    pub(super) fn leader_unanswered(&mut self, bus: &mut Bus, checks: &mut Checks, error: StoreError) {
        let Some(leader) = &mut self.leader else { return };
        match std::mem::replace(&mut leader.under_way, UnderWay::Nothing) {
            UnderWay::Load(_) => self.load_failed(bus, checks, LoadError::Store(error)),
            UnderWay::Store => self.stored(bus, Err(error)),
            UnderWay::Nothing => {}
        }
    }

    fn loaded(&mut self, bus: &mut Bus, checks: &mut Checks, mut loading: Loading, found: Found) {
        let now = self.millis(bus);
        let Some(leader) = &mut self.leader else { return };
        match loading.found(found) {
            Ok(Progress::Read(read)) => {
                leader.under_way = UnderWay::Load(loading);
                self.call(bus, Asked::Leader, StoreCall::Load(read));
            }
            Ok(Progress::Loaded(ledger)) => {
                if leader.ledger.is_none() {
                    // Nobody is declared dead before one grace time.
                    ledger.view().known_nodes().iter().for_each(|node| leader.liveness.expect(now, node));
                    let half_done = ledger.half_done().into_iter();
                    leader.jobs.extend(half_done.map(|app_id| (Job::Mend(app_id), Ticket::Nobody)));
                }
                checks.metadata.leads((self.id, bus.meta_lives[self.id]), leader.fence.epoch);
                leader.load_again = false;
                leader.ledger = Some(ledger);
            }
            Err(error) => self.load_failed(bus, checks, error),
        }
    }

    fn load_failed(&mut self, bus: &mut Bus, checks: &mut Checks, error: LoadError) {
        let place = self.place();
        bus.trace.line(bus.now, format_args!("{place} cannot load: {error}"));
        let Some(leader) = &mut self.leader else { return };
        match error {
            LoadError::Store(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_)) => {
                leader.again_at = bus.now + PAUSE;
            }
            error => checks.violation(bus.now, format!("{place} cannot load: {error}")),
        }
    }

    fn stored(&mut self, bus: &mut Bus, result: Result<(), StoreError>) {
        let now = (self.millis(bus), bus.now);
        let place = self.place();
        let Some(leader) = &mut self.leader else { return };
        if let Err(error) = &result {
            bus.trace.line(bus.now, format_args!("{place}: {error}"));
        }
        let believes = self.settings.sabotage.believe_lost_answers;
        let result = result
            .or_else(|error| match error {
                StoreError::OutcomeUnknown(_) if believes => Ok(()),
                error => Err(error),
            })
            .map_err(|error| if leader.fence.is_broken_by(&error) { StoreError::NotLeader } else { error });
        match leader.at_desk(now, |writer, desk| writer.stored(desk, result)) {
            None => {}
            Some(Ok(step)) => self.stepped(bus, step),
            // The election finds out what is true.
            Some(Err(WriterError::NotLeader)) => self.end_term(),
            Some(Err(error)) => {
                bus.trace.line(bus.now, format_args!("{place} gives its session up: {error}"));
                self.end_session(bus);
            }
        }
    }

    // --- hosts ---

    pub(super) fn for_leader(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, packet: Packet) {
        let now = self.millis(bus);
        let place = self.place();
        let Some(leader) = &mut self.leader else { return };
        match packet {
            Packet::Change { ask, request } => {
                leader.jobs.push_back((Job::Change(request), Ticket::Asker { from, ask }))
            }
            Packet::Query(gpid) => {
                if let (Some(info), Some(config)) = (leader.info(gpid), leader.config(gpid).cloned()) {
                    bus.send(place, from, Packet::Configs(vec![(info, config)]));
                }
            }
            Packet::Beacon(beacon) => {
                leader.connected.insert(beacon.node.clone());
                let news = leader.liveness.beacon(now, WALL_US + bus.now, &beacon);
                if news != News::default() {
                    leader.rounds.touch();
                }
                let ack = BeaconAck {
                    accepted: true,
                    leader: None,
                    wants_report: news.joined || news.restarted,
                    all_draining: leader.liveness.all_draining(),
                    cluster_id: String::new(),
                };
                bus.send(place, from, Packet::BeaconAck(ack));
            }
            Packet::Reset(host) => drop(leader.connected.remove(&Host::node_of(host))),
            // Its connection keeps the order of what it asks: what a pause has shuffled is put right.
            Packet::Order { ask, job } if ask >= leader.last_order => {
                leader.last_order = ask;
                leader.jobs.push_back((job, Ticket::Asker { from, ask }));
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
        let now = (self.millis(bus), wall_s(bus.now));
        let place = self.place();
        let (Place::Host(host), Some(leader)) = (from, &mut self.leader) else { return };
        let Some(ledger) = &leader.ledger else { return };
        let node = Host::node_of(host);
        let answer = reported(now, ledger.view(), &mut leader.cure, &leader.liveness, &node, replicas);
        for (gpid, ballot) in answer.frozen {
            let what = format!("{node} knows ballot {ballot} of {gpid}, which {place} never stored");
            checks.violation(bus.now, what);
        }
        for gpid in answer.strange {
            checks.violation(bus.now, format!("{node} holds {gpid}, of which {place} knows nothing"));
        }
        bus.send(place, from, Packet::Configs(answer.configs));
        if !answer.garbage.is_empty() {
            bus.send(place, from, Packet::Garbage(answer.garbage));
        }
        leader.rounds.touch();
    }

    fn look_round(&mut self, bus: &mut Bus) {
        let now = self.millis(bus);
        let (place, no_cure) = (self.place(), self.settings.sabotage.no_cure);
        let Some(leader) = &mut self.leader else { return };
        let Some(ledger) = &leader.ledger else { return };
        if now.since(leader.cured_at) < CURE_EVERY_MS {
            return;
        }
        leader.cured_at = now;
        let view = ledger.view();
        let found = leader.rounds.look((now, leader.level), view, &mut leader.cure, &mut leader.liveness);
        leader.jobs.extend(found.jobs.into_iter().map(|job| (job, Ticket::Nobody)));
        for (to, request) in found.proposals.into_iter().filter(|_| !no_cure) {
            propose(bus, place, &to, request);
        }
    }
}

/// What is stored is told to everybody concerned.
fn announce(leader: &Leader, bus: &mut Bus, place: Place, adopted: Adopted) {
    for (old, new) in adopted.configs {
        let Some(info) = leader.info(new.gpid) else { continue };
        let mut told: Vec<&Node> = old.members().chain(new.members()).collect();
        told.sort();
        told.dedup();
        for to in told.into_iter().filter_map(Host::index) {
            bus.send(place, Place::Host(to), Packet::Configs(vec![(info.clone(), new.clone())]));
        }
    }
}

fn answer(bus: &mut Bus, place: Place, Done { ticket, outcome, .. }: Done<Ticket>) {
    let Ticket::Asker { from, ask } = ticket else { return };
    let packet = match outcome {
        Outcome::Change(reply) => Packet::ChangeReply { ask, reply },
        outcome => Packet::OrderDone { ask, outcome },
    };
    bus.send(place, from, packet);
}

/// The wall clock of every meta-server, seconds since 1970.
fn wall_s(at: Micros) -> i64 {
    i64::try_from((WALL_US + at) / SECOND).unwrap_or(i64::MAX)
}

pub(super) fn propose(bus: &mut Bus, place: Place, to: &Node, request: ProposalRequest) {
    bus.trace.line(bus.now, format_args!("{place} proposes to {to}: {request:?}"));
    if let Some(to) = Host::index(to) {
        bus.send(place, Place::Host(to), Packet::Propose(request));
    }
}
