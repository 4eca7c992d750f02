//! Meta-servers: each stands for election, and the one that leads decides.
//!
//! The election, the paths and the content of the nodes are those of `pegasus_zk_coordination`; what a leader decides
//! is `pegasus_placement`'s, and how it is decided, stored, adopted and answered `pegasus_meta_core`'s. Played here are
//! the processes round them.
//!
//! ```text
//!  hosts --asks, beacons, reports--> Meta (leader) --multi, fenced--> Store
//!                                      ^ Election                       |
//!                                      '----answers, watches, session---'
//! ```

mod leader;

use pegasus_placement::Ledger;
use pegasus_placement::ledger::Write;
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::tables::{CreateTable, Limits};
use pegasus_types::meta::{BeaconAck, ChangeReply};
use pegasus_types::{AppId, Gpid, Millis, Node};
use pegasus_zk_coordination::election::{Action, Answer, Call, Event, Options};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Election, Leadership, SessionState, StoreError};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place};
use crate::checks::Checks;
use crate::host::clock::Clock;
use crate::settings::Settings;
use crate::store::{SESSION_MS, StoreAnswer, StoreCall};
use leader::Leader;

/// How often a meta looks at everything.
const ROUND: Micros = 100 * MS;
/// A call that the store has not answered by then has no clear outcome.
const CALL_TIMEOUT: Micros = 700 * MS;
/// The store is told so often that this session lives.
const PING: Micros = SESSION_MS * MS / 4;
/// Before a new session is begun after one that is over.
const NEW_SESSION: Micros = 200 * MS;

/// The one table of a run.
pub const TABLE: AppId = 1;

pub fn paths() -> Tree {
    Tree::new("/pegasus/sim")
}

/// What is stored when a run begins: the table `temp`, whose partitions nobody holds yet.
pub fn first_writes(settings: &Settings) -> Vec<Write> {
    let request = CreateTable {
        name: "temp".to_owned(),
        app_type: "pegasus".to_owned(),
        partition_count: settings.partitions,
        replica_count: 3,
        envs: std::collections::BTreeMap::new(),
        is_stateful: true,
        success_if_exist: true,
    };
    let ledger = Ledger::default();
    let mut draft = ledger.draft();
    draft.create(&Limits::default(), request, 1_700_000_000).expect("the options are legal");
    draft.writes()
}

/// Name of a meta-server, as others know it.
pub fn node_of(meta: usize) -> Node {
    Node::new(format!("m{}:34601", meta + 1))
}

pub fn index_of(node: &Node) -> Option<usize> {
    node.as_str().strip_prefix('m')?.split(':').next()?.parse::<usize>().ok()?.checked_sub(1)
}

/// What waits for an answer of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Election,
    Leader,
    Ping,
}

#[derive(Debug)]
struct Session {
    id: u64,
    /// When a ping or call was sent that was answered.
    proven: Micros,
    state: SessionState,
    election: Election,
    leadership: Leadership,
    calls: Vec<(u64, Asked, Micros)>,
    /// Watches that fired, as far as it knows.
    fired: u64,
}

#[derive(Debug)]
pub struct Meta {
    id: usize,
    clock: Clock,
    pub up: bool,
    pub paused_until: Micros,
    settings: Settings,
    session: Option<Session>,
    leader: Option<Leader>,
    pinged: Micros,
    calls: u64,
    /// No new session before this.
    session_from: Micros,
}

impl Meta {
    pub fn new(id: usize, clock: Clock, settings: Settings) -> Self {
        Self {
            id,
            clock,
            up: false,
            paused_until: 0,
            settings,
            session: None,
            leader: None,
            pinged: 0,
            calls: 0,
            session_from: 0,
        }
    }

    fn place(&self) -> Place {
        Place::Meta(self.id)
    }

    fn millis(&self, bus: &Bus) -> Millis {
        self.clock.at(bus.now)
    }

    pub fn start(&mut self, bus: &mut Bus) {
        if self.up {
            return;
        }
        bus.trace.line(bus.now, format_args!("{} starts", self.place()));
        self.up = true;
        self.paused_until = 0;
        self.session_from = bus.now;
        bus.meta_lives[self.id] += 1;
        let (meta, life) = (self.id, bus.meta_lives[self.id]);
        bus.after(0, Happening::MetaRound { meta, life });
    }

    pub fn kill(&mut self, bus: &mut Bus) {
        if self.up {
            bus.trace.line(bus.now, format_args!("{} is killed", self.place()));
            bus.meta_lives[self.id] += 1;
            self.up = false;
            self.session = None;
            self.leader = None;
        }
    }

    /// By its own clock it leads, and knows what is stored.
    pub fn leads(&self) -> bool {
        self.up && self.leader.as_ref().is_some_and(Leader::is_ready) && self.may_decide()
    }

    fn may_decide(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.leadership.leading().is_some())
    }

    fn known_leader(&self) -> Option<Node> {
        match &self.session.as_ref()?.leadership {
            Leadership::Standby { leader } => leader.clone().filter(|node| index_of(node) != Some(self.id)),
            Leadership::Leading(_) | Leadership::Suspended(_) | Leadership::Over => None,
        }
    }

    // --- the session ---

    pub fn round(&mut self, bus: &mut Bus, checks: &mut Checks) {
        let (meta, life) = (self.id, bus.meta_lives[self.id]);
        bus.after(ROUND, Happening::MetaRound { meta, life });
        if self.session.is_none() && bus.now >= self.session_from {
            self.begin_session(bus);
        }
        let (proven, calls) = match &mut self.session {
            Some(session) => (session.proven, std::mem::take(&mut session.calls)),
            None => return,
        };
        let late = |(_, _, sent): &(u64, Asked, Micros)| bus.now - sent >= CALL_TIMEOUT;
        let (over, open): (Vec<_>, Vec<_>) = calls.into_iter().partition(late);
        if let Some(session) = &mut self.session {
            session.calls = open;
        }
        let unknown = || StoreError::OutcomeUnknown("no answer".to_owned());
        for (_, asked, _) in over {
            match asked {
                // A lost answer of a write is of unknown outcome, of anything else it is no answer.
                Asked::Election => self.elect(bus, Event::Answer(Answer::Written(Err(unknown())))),
                Asked::Leader => self.leader_unanswered(bus, checks, unknown()),
                Asked::Ping => {}
            }
        }
        let silent = bus.now - proven >= SESSION_MS * MS * 2 / 3;
        let state = if silent { SessionState::Disconnected } else { SessionState::Connected };
        if let Some(session) = self.session.as_mut().filter(|s| s.state != state) {
            session.state = state;
            self.elect(bus, Event::Session(state));
        }
        if bus.now - self.pinged >= PING && self.session.is_some() {
            self.pinged = bus.now;
            self.call(bus, Asked::Ping, StoreCall::Ping);
        }
        self.elect(bus, Event::Tick);
        self.lead(bus);
    }

    fn begin_session(&mut self, bus: &mut Bus) {
        let id = bus.dice.roll() | 1;
        let options =
            Options { tree: paths(), lock_root: String::new(), me: node_of(self.id), session_ms: SESSION_MS };
        self.session = Some(Session {
            id,
            proven: bus.now,
            state: SessionState::Connected,
            election: Election::new(options),
            leadership: Leadership::Standby { leader: None },
            calls: Vec::new(),
            fired: 0,
        });
        bus.trace.line(bus.now, format_args!("{} begins session {id:x}", self.place()));
        self.elect(bus, Event::Start);
    }

    /// What the leader asked the store concerns nobody any more.
    fn end_term(&mut self) {
        self.leader = None;
        if let Some(session) = &mut self.session {
            session.calls.retain(|(_, asked, _)| *asked != Asked::Leader);
        }
    }

    fn end_session(&mut self, bus: &Bus) {
        self.session = None;
        self.leader = None;
        self.session_from = bus.now + NEW_SESSION;
    }

    fn call(&mut self, bus: &mut Bus, asked: Asked, what: StoreCall) {
        self.calls += 1;
        let (place, call) = (self.place(), self.calls);
        let Some(session) = &mut self.session else { return };
        session.calls.push((call, asked, bus.now));
        let life = bus.meta_lives[self.id];
        bus.send(place, Place::Store, Packet::ToStore { session: session.id, call, life, what });
    }

    fn elect(&mut self, bus: &mut Bus, event: Event) {
        let now = self.millis(bus).0;
        let Some(session) = &mut self.session else { return };
        for action in session.election.step(now, event) {
            match action {
                Action::Call(call) => {
                    let what = match call {
                        Call::Prepare(paths) => StoreCall::Prepare(paths),
                        Call::Look(path) => StoreCall::Look(path),
                        Call::Read(path) => StoreCall::Read(path),
                        Call::Write(ops) => StoreCall::Write { ops, epoch: None },
                    };
                    self.call(bus, Asked::Election, what);
                }
                Action::Tell(leadership) => self.told(bus, leadership),
            }
        }
        let Some(session) = &self.session else { return };
        if let Some(at) = session.election.next_tick() {
            let wait = self.clock.lasts(bus.now, at.saturating_sub(now));
            let (meta, life) = (self.id, bus.meta_lives[self.id]);
            // The round comes anyway.
            if wait < ROUND {
                bus.after(wait, Happening::MetaTick { meta, life });
            }
        }
    }

    fn told(&mut self, bus: &mut Bus, leadership: Leadership) {
        bus.trace.line(bus.now, format_args!("{}: {leadership:?}", self.place()));
        let now = self.millis(bus);
        match &leadership {
            Leadership::Leading(fence) => {
                let level = if self.settings.balance { FunctionLevel::Lively } else { FunctionLevel::Steady };
                if self.leader.as_ref().is_none_or(|leader| leader.fence != *fence) {
                    self.end_term();
                    self.leader = Some(Leader::new(now, fence.clone(), level));
                }
            }
            // The term is over. If the same fence comes back, everything is loaded anew.
            Leadership::Suspended(_) | Leadership::Standby { .. } => self.end_term(),
            Leadership::Over => return self.end_session(bus),
        }
        if let Some(session) = &mut self.session {
            session.leadership = leadership;
        }
    }

    // --- what arrives ---

    pub fn tick(&mut self, bus: &mut Bus) {
        self.elect(bus, Event::Tick);
        self.lead(bus);
    }

    pub fn deliver(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, packet: Packet) {
        // Who stood still must not act on what it believed before.
        self.elect(bus, Event::Tick);
        match packet {
            Packet::FromStore { session, call, answer } => self.answered(bus, checks, session, call, answer),
            Packet::StoreChanged { session, fired } => self.watches_fired(bus, session, fired),
            packet if self.leads() => self.for_leader(bus, checks, from, packet),
            Packet::Change { ask, .. } => {
                let reply = ChangeReply::NotLeader { leader: self.known_leader() };
                bus.send(self.place(), from, Packet::ChangeReply { ask, reply });
            }
            Packet::Beacon(_) => {
                let ack = BeaconAck {
                    accepted: false,
                    leader: self.known_leader(),
                    wants_report: false,
                    all_draining: false,
                    cluster_id: String::new(),
                };
                bus.send(self.place(), from, Packet::BeaconAck(ack));
            }
            Packet::Query(_) | Packet::Report { .. } | Packet::Route(_) | Packet::Order { .. } => {
                bus.send(self.place(), from, Packet::NotLeader { leader: self.known_leader() });
            }
            _ => {}
        }
        self.lead(bus);
    }

    fn answered(&mut self, bus: &mut Bus, checks: &mut Checks, id: u64, call: u64, answer: StoreAnswer) {
        let Some(session) = self.session.as_mut().filter(|s| s.id == id) else { return };
        if matches!(answer, StoreAnswer::SessionOver) {
            self.elect(bus, Event::Session(SessionState::Over));
            return;
        }
        let Some(index) = session.calls.iter().position(|(open, ..)| *open == call) else { return };
        let (_, asked, sent) = session.calls.remove(index);
        session.proven = session.proven.max(sent);
        let answer = match (asked, answer) {
            (_, StoreAnswer::Pong(fired)) => return self.watches_fired(bus, id, fired),
            (Asked::Ping, _) | (_, StoreAnswer::SessionOver) => return,
            (Asked::Leader, answer) => return self.leader_answered(bus, checks, answer),
            (Asked::Election, StoreAnswer::Prepared(result)) => Answer::Prepared(result),
            (Asked::Election, StoreAnswer::Seen(result)) => Answer::Seen(result),
            (Asked::Election, StoreAnswer::Read(result)) => Answer::Read(result),
            (Asked::Election, StoreAnswer::Written(result)) => Answer::Written(result),
            (Asked::Election, StoreAnswer::Loaded(_)) => return,
        };
        self.elect(bus, Event::Answer(answer));
    }

    fn watches_fired(&mut self, bus: &mut Bus, id: u64, fired: u64) {
        if let Some(session) = self.session.as_mut().filter(|s| s.id == id && s.fired < fired) {
            session.fired = fired;
            self.elect(bus, Event::Changed);
        }
    }

    /// An order to a primary, as the balancer or an operator would give it.
    pub fn propose(&self, bus: &mut Bus, gpid: Gpid, proposal: pegasus_types::meta::Proposal) {
        if let Some(config) = self.leader.as_ref().and_then(|leader| leader.config(gpid))
            && let Some(primary) = &config.primary
        {
            let request = pegasus_types::meta::ProposalRequest { gpid, ballot: config.ballot, proposal };
            leader::propose(bus, self.place(), primary, request);
        }
    }
}
