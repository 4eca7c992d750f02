//! A replica-server: the shell round the core, on simulated disk, network and clock.
//!
//! | file | what |
//! |---|---|
//! | `mod` | life of the process, the step loop |
//! | `effects` | where a decision becomes IO |
//! | `files` | log, replica files, engines: what survives |
//! | `metas` | what is asked of the metas and told them |
//! | `clock` | what each machine takes for the time |
//! | `clients` | requests of clients: resolving, reading, parking |
//! | `learning` | both ends of a copy |

mod clients;
pub mod clock;
mod effects;
mod files;
mod learning;
mod metas;

use std::collections::{BTreeMap, VecDeque};

use pegasus_mutation_log::LogCore;
use pegasus_mutation_log::mem_disk::{Faults, MemDisk};
use pegasus_pacifica::{Event, Fault, NodeCore, Serving};
use pegasus_types::meta::{ChangeReply, ChangeRequest, ReplicaStatus};
use pegasus_types::{Gpid, Node};

use crate::bus::{Bus, Chore, MS, Micros, Packet, Place};
use crate::checks::Checks;
use crate::disk;
use crate::settings::Settings;
use clients::Clients;
use clock::Clock;
use files::{Append, ReplicaFile, Save};
use learning::Copying;
use metas::HOP_PAUSE;

/// What a host reaches outside of itself.
#[derive(Debug)]
pub struct Cx<'a> {
    pub bus: &'a mut Bus,
    pub checks: &'a mut Checks,
    pub settings: &'a Settings,
}

#[derive(Debug)]
pub struct Host {
    pub id: usize,
    pub node: Node,
    pub clock: Clock,
    pub disk: MemDisk,
    /// A write or sync of the log that begins now takes until then.
    pub disk_slow_until: Micros,
    pub paused_until: Micros,
    files: BTreeMap<Gpid, ReplicaFile>,
    /// The machine lost power since the process ran last.
    lost_power: bool,
    /// How many meta-servers there are.
    metas: usize,
    process: Option<Process>,
}

/// One attempt at the leader, through every meta-server if need be.
#[derive(Clone, Debug)]
struct Ask {
    request: ChangeRequest,
    hops: usize,
}

/// What ends with the process.
#[derive(Debug)]
struct Process {
    core: NodeCore,
    log: LogCore,
    incarnation: u64,
    timer_at: Option<Micros>,
    log_busy_since: Option<Micros>,
    appends: BTreeMap<u64, Append>,
    /// What a full disk has not taken, in order.
    refused: Vec<Append>,
    full_since: Option<Micros>,
    saves: VecDeque<Save>,
    opening: usize,
    /// Unanswered requests to the meta.
    asks: BTreeMap<u64, Ask>,
    /// The meta-server that is asked.
    meta: usize,
    beacon_answered: bool,
    draining: bool,
    copying: BTreeMap<Gpid, Copying>,
    clients: Clients,
    status: BTreeMap<Gpid, ReplicaStatus>,
    beacons: u64,
    numbers: u64,
}

impl Process {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Host {
    pub fn new(id: usize, metas: usize, clock: Clock) -> Self {
        Self {
            id,
            node: Self::node_of(id),
            clock,
            disk: MemDisk::default(),
            disk_slow_until: 0,
            paused_until: 0,
            files: BTreeMap::new(),
            lost_power: false,
            metas,
            process: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// The whole machine is down, so that nobody even refuses.
    pub fn is_dark(&self) -> bool {
        self.process.is_none() && self.lost_power
    }

    pub fn node_of(id: usize) -> Node {
        Node::new(format!("n{}:34801", id + 1))
    }

    pub fn index(node: &Node) -> Option<usize> {
        node.as_str().strip_prefix('n')?.split(':').next()?.parse::<usize>().ok()?.checked_sub(1)
    }

    // --- life ---

    pub fn start(&mut self, cx: &mut Cx<'_>) {
        if self.process.is_some() {
            return;
        }
        self.disk.set_faults(Faults { fail_syncs: false, ..self.disk.faults() });
        self.paused_until = 0;
        cx.bus.lives[self.id] += 1;
        let incarnation = cx.bus.dice.roll();
        let opened = match self.open_log(cx) {
            // Too much is gone: somebody puts a new disk in.
            Err(_) if cx.checks.is_faulty(self.id) => {
                self.disk = MemDisk::default();
                self.files.clear();
                self.open_log(cx)
            }
            other => other,
        };
        let log = match opened {
            Ok(log) => log,
            Err(why) => return cx.checks.violation(cx.bus.now, format!("{}: {why}", self.node)),
        };
        let core = NodeCore::new(
            self.node.clone(),
            incarnation,
            cx.settings.core.clone(),
            self.clock.at(cx.bus.now),
        );
        cx.bus.trace.line(cx.bus.now, format_args!("{} starts", self.node));
        let gpids: Vec<Gpid> = self.files.keys().copied().collect();
        self.process = Some(Process {
            core,
            log,
            incarnation,
            timer_at: None,
            log_busy_since: None,
            appends: BTreeMap::new(),
            refused: Vec::new(),
            full_since: None,
            saves: VecDeque::new(),
            opening: gpids.len(),
            asks: BTreeMap::new(),
            meta: 0,
            beacon_answered: true,
            draining: false,
            copying: BTreeMap::new(),
            clients: Clients::default(),
            status: BTreeMap::new(),
            beacons: 0,
            numbers: 0,
        });
        for gpid in gpids {
            self.step(cx, Event::Opening { gpid });
            let delay = cx.bus.dice.between(MS, 20 * MS);
            cx.bus.chore(self.id, delay, Chore::Opened(gpid));
        }
        if let Some(process) = &mut self.process
            && process.opening == 0
        {
            process.log.recovery_done();
        }
        cx.bus.chore(self.id, 0, Chore::Beacon);
        self.step(cx, Event::Tick);
    }

    /// The process ends without any warning; with `power`, so does the machine.
    pub fn kill(&mut self, cx: &mut Cx<'_>, power: bool) {
        let Some(process) = self.process.take() else { return };
        cx.bus.lives[self.id] += 1;
        let how = if power { "loses power" } else { "is killed" };
        cx.bus.trace.line(cx.bus.now, format_args!("{} {how}", self.node));
        for save in process.saves {
            // It may have reached the disk just before.
            if cx.bus.dice.permille(500) {
                self.save_done(&save);
            } else {
                break;
            }
        }
        for file in self.files.values_mut() {
            file.engine.restart();
        }
        if power {
            self.lost_power = true;
            let mut dice = cx.bus.dice.split();
            disk::lose_power(&self.disk, &mut dice);
        }
        cx.checks.process_ended(self.id);
    }

    // --- what happens to it ---

    pub fn deliver(&mut self, cx: &mut Cx<'_>, from: Place, packet: Packet) {
        if self.process.is_none() {
            return;
        }
        let peer = match from {
            Place::Host(i) => Self::node_of(i),
            Place::Meta(_) | Place::Store | Place::Client(_) | Place::Operator => Node::new(from.to_string()),
        };
        match packet {
            Packet::Envelope(envelope) => self.step(cx, Event::Received { from: peer, envelope }),
            Packet::Beat(heartbeat) => self.step(cx, Event::Heartbeat { from: peer, heartbeat }),
            Packet::BeatAck(ack) => self.step(cx, Event::HeartbeatAcked { from: peer, ack }),
            Packet::ChangeReply { ask, reply: ChangeReply::NotLeader { leader } } => {
                self.redirected(leader.as_ref());
                cx.bus.chore(self.id, HOP_PAUSE, Chore::AskAgain(ask));
            }
            Packet::ChangeReply { ask, reply } => self.answered(cx, ask, Some(reply)),
            Packet::BeaconAck(ack) => {
                let Some(process) = &mut self.process else { return };
                process.beacon_answered = true;
                if !ack.accepted {
                    self.redirected(ack.leader.as_ref());
                }
                if ack.wants_report {
                    self.report(cx);
                }
            }
            Packet::Garbage(gpids) => self.collect(cx, gpids),
            Packet::NotLeader { leader } => self.redirected(leader.as_ref()),
            Packet::Configs(configs) => {
                for (info, config) in configs {
                    self.configured(cx, &info, config);
                }
            }
            Packet::Propose(request) => {
                let (gpid, ballot, proposal) = (request.gpid, request.ballot, request.proposal);
                self.step(cx, Event::Propose { gpid, ballot, proposal });
            }
            Packet::LearnOpen { request, gpid, ballot, signature, committed } => {
                self.teach_open(cx, (from, request), gpid, ballot, signature, committed);
            }
            Packet::LearnPlan { request, gpid, signature, plan } => {
                self.learn_plan(cx, request, gpid, signature, plan);
            }
            Packet::LearnLog { request, gpid, signature, after } => {
                self.teach_log(cx, (from, request), gpid, signature, after);
            }
            Packet::LearnChunk { request, gpid, signature, chunk } => {
                self.learn_chunk(cx, request, gpid, signature, chunk);
            }
            Packet::Request { op, request } => {
                if let Place::Client(client) = from {
                    self.request(cx, client, op, request);
                }
            }
            Packet::Change { .. }
            | Packet::Query(_)
            | Packet::Beacon(_)
            | Packet::ToStore { .. }
            | Packet::FromStore { .. }
            | Packet::StoreChanged { .. }
            | Packet::Report { .. }
            | Packet::Order { .. }
            | Packet::OrderDone { .. }
            | Packet::Route(_)
            | Packet::RouteIs { .. }
            | Packet::Reset(_)
            | Packet::Response { .. } => {}
        }
    }

    pub fn chore(&mut self, cx: &mut Cx<'_>, chore: Chore) {
        let Some(process) = &mut self.process else { return };
        match chore {
            Chore::Timer => {
                if process.timer_at.is_some_and(|at| at <= cx.bus.now) {
                    process.timer_at = None;
                    self.step(cx, Event::Tick);
                }
            }
            Chore::Beacon => self.beacon(cx),
            Chore::ReportSoon => self.report(cx),
            Chore::LogWrite => self.log_write(cx),
            Chore::LogSync => self.log_sync(cx),
            Chore::LogAgain => self.log_again(cx),
            Chore::FlushEngine(gpid) => self.flush_engine(cx, gpid),
            Chore::Saved { gpid, ballot, learning } => self.saved(cx, gpid, ballot, learning),
            Chore::Opened(gpid) => self.opened(cx, gpid),
            Chore::MakeReplica(config) => self.open_for_learning(cx, config),
            Chore::RowsCopied { gpid, signature, rows, decree } => {
                self.rows_copied(cx, gpid, signature, rows, decree);
            }
            Chore::AskAgain(ask) => self.ask_again(cx, ask),
            Chore::AskTimeout(ask) => {
                if process.asks.contains_key(&ask) {
                    self.redirected(None);
                    self.answered(cx, ask, None);
                }
            }
            Chore::CopyTimeout { gpid, request } => self.copy_timeout(cx, gpid, request),
            Chore::ReadDone { op, from, gpid, response } => self.read_done(cx, op, from, gpid, response),
            Chore::Deadline { op } => self.deadline(cx, op),
            Chore::PeerReset(peer) => {
                self.step(cx, Event::PeerReset { node: Self::node_of(peer) });
            }
        }
    }

    // --- the core ---

    fn step(&mut self, cx: &mut Cx<'_>, event: Event) {
        let now = self.clock.at(cx.bus.now);
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            if cx.bus.trace.is_on() {
                cx.bus.trace.line(cx.bus.now, format_args!("{} <- {event:?}", self.node));
            }
            let Some(process) = &mut self.process else { return };
            process.core.step_into(now, event, &mut effects);
            for effect in effects.drain(..) {
                if cx.bus.trace.is_on() {
                    cx.bus.trace.line(cx.bus.now, format_args!("{} -> {effect:?}", self.node));
                }
                self.begin(cx, effect, &mut events);
            }
        }
        self.unpark(cx);
        self.arm(cx);
    }

    fn arm(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        let Some(wanted) = process.core.next_timer() else { return };
        let wait = wanted.since(self.clock.at(cx.bus.now));
        let at = cx.bus.now + self.clock.lasts(cx.bus.now, wait);
        if process.timer_at.is_none_or(|armed| at < armed) {
            process.timer_at = Some(at);
            cx.bus.chore(self.id, at - cx.bus.now, Chore::Timer);
        }
    }

    // --- to be looked at by checkers ---

    /// Scrubbing finds that the rows of a replica are damaged.
    pub fn rows_damaged(&mut self, cx: &mut Cx<'_>, gpid: Gpid) {
        let why = "a table does not match its checksum".to_owned();
        self.step(cx, Event::Failed { gpid, fault: Fault::Engine, why });
    }

    /// A paused process is judged by its clock: what it has read before may still be on its way.
    pub fn serving(&self, now: Micros, gpid: Gpid) -> bool {
        let now = self.clock.at(now);
        self.process.as_ref().is_some_and(|p| p.core.serving(now, gpid) == Serving::Yes)
    }

    pub fn status(&self, gpid: Gpid) -> Option<ReplicaStatus> {
        self.process.as_ref()?.core.status(gpid)
    }

    pub fn engine(&self, gpid: Gpid) -> Option<&crate::engine::Engine> {
        Some(&self.files.get(&gpid)?.engine)
    }
}
