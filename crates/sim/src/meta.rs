//! The meta-server: one leader whose decisions are those of `pegasus_placement`, stored before anybody hears
//! of them. While it is stopped nothing gets through to it; what it has stored stays.

use std::collections::BTreeMap;

use pegasus_placement::Ledger;
use pegasus_placement::cure::{self, Cure, Order};
use pegasus_placement::ledger::Draft;
use pegasus_placement::liveness::Liveness;
use pegasus_placement::tables::{CreateTable, Limits};
use pegasus_types::meta::{ChangeReply, ChangeRequest, Proposal, ProposalRequest, ReplicaReport};
use pegasus_types::{AppId, AppInfo, Gpid, Millis, Node, PartitionConfig};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place, SECOND};
use crate::checks::Checks;
use crate::host::Host;
use crate::settings::Settings;

const ROUND: Micros = 200 * MS;
/// Beacons come every second.
const GRACE_MS: u64 = 4_000;

/// The one table of a run.
pub const TABLE: AppId = 1;

#[derive(Debug)]
pub struct Meta {
    ledger: Ledger,
    cure: Cure,
    liveness: Liveness,
    pub stopped: bool,
}

fn millis(now: Micros) -> Millis {
    Millis(now / MS)
}

fn host_of(node: &Node) -> Option<Place> {
    Host::index(node).map(Place::Host)
}

impl Meta {
    /// With the table `temp`, whose partitions nobody holds yet.
    pub fn new(settings: &Settings) -> Self {
        let options = cure::Options {
            repeat_ms: 1_000,
            patience_ms: 5_000,
            missing_ms: 2_000,
            return_ms: 1_500,
            assign_wait_ms: 1_000,
            min_alive_percent: 1,
            ..cure::Options::default()
        };
        let mut meta = Self {
            ledger: Ledger::default(),
            cure: Cure::new(options, Millis::ZERO),
            liveness: Liveness::new(GRACE_MS),
            stopped: false,
        };
        let request = CreateTable {
            name: "temp".to_owned(),
            app_type: "pegasus".to_owned(),
            partition_count: settings.partitions,
            replica_count: 3,
            envs: BTreeMap::new(),
            is_stateful: true,
            success_if_exist: true,
        };
        let mut draft = meta.ledger.draft();
        draft.create(&Limits::default(), request, 1_700_000_000).expect("the options are legal");
        let writes = draft.writes();
        meta.ledger.adopt(writes);
        meta
    }

    pub fn gpids(&self) -> Vec<Gpid> {
        self.ledger.view().live_partitions().map(|(_, config)| config.gpid).collect()
    }

    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        self.ledger.view().partition(gpid).map(|config| &**config)
    }

    fn info(&self) -> Option<AppInfo> {
        self.ledger.view().table(TABLE).map(|table| table.info.clone())
    }

    pub fn start(&mut self, bus: &mut Bus) {
        self.stopped = false;
        // A new leader has heard nobody yet.
        self.liveness = Liveness::new(GRACE_MS);
        for gpid in self.gpids() {
            let members: Vec<Node> =
                self.config(gpid).into_iter().flat_map(PartitionConfig::members).cloned().collect();
            for node in members {
                self.liveness.expect(millis(bus.now), &node);
            }
        }
        bus.after(ROUND, Happening::MetaRound);
    }

    pub fn deliver(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, packet: Packet) {
        if self.stopped {
            return;
        }
        match packet {
            Packet::Change { ask, request } => {
                let reply = self.change(bus, checks, &request);
                bus.send(Place::Meta, from, Packet::ChangeReply { ask, reply });
            }
            Packet::Query(gpid) => {
                if let (Some(info), Some(config)) = (self.info(), self.config(gpid).cloned()) {
                    bus.send(Place::Meta, from, Packet::Configs(vec![(info, config)]));
                }
            }
            Packet::Beacon(beacon) => {
                let wall_us = 1_700_000_000_000_000 + bus.now;
                let news = self.liveness.beacon(millis(bus.now), wall_us, &beacon);
                if news.joined || news.restarted {
                    bus.send(Place::Meta, from, Packet::WantsReport);
                }
            }
            Packet::Report { replicas } => self.reported(bus, checks, from, &replicas),
            Packet::Route(gpid) => {
                let primary = self.config(gpid).and_then(|c| c.primary.as_ref()).and_then(Host::index);
                bus.send(Place::Meta, from, Packet::RouteIs { gpid, primary });
            }
            Packet::Envelope(_)
            | Packet::Beat(_)
            | Packet::BeatAck(_)
            | Packet::ChangeReply { .. }
            | Packet::Configs(_)
            | Packet::Propose(_)
            | Packet::WantsReport
            | Packet::LearnOpen { .. }
            | Packet::LearnPlan { .. }
            | Packet::LearnLog { .. }
            | Packet::LearnChunk { .. }
            | Packet::RouteIs { .. }
            | Packet::Reset(_)
            | Packet::Request { .. }
            | Packet::Response { .. } => {}
        }
    }

    fn change(&mut self, bus: &mut Bus, checks: &mut Checks, request: &ChangeRequest) -> ChangeReply {
        let mut draft = self.ledger.draft();
        let decided = draft.change(request);
        let writes = draft.writes();
        match decided {
            Ok(config) => {
                self.store(bus, checks, writes);
                ChangeReply::Accepted(config)
            }
            Err(why) => {
                ChangeReply::Rejected { current: self.config(request.gpid).cloned(), why: why.to_string() }
            }
        }
    }

    fn decide(&mut self, bus: &mut Bus, checks: &mut Checks, run: impl FnOnce(&mut Draft<'_>)) {
        let mut draft = self.ledger.draft();
        run(&mut draft);
        let writes = draft.writes();
        self.store(bus, checks, writes);
    }

    /// Stores, adopts, and tells everybody concerned.
    fn store(&mut self, bus: &mut Bus, checks: &mut Checks, writes: Vec<pegasus_placement::ledger::Write>) {
        for (old, new) in self.ledger.adopt(writes).configs {
            bus.trace.line(bus.now, format_args!("meta stores {new:?}"));
            checks.stored(bus.now, &old, &new);
            self.cure.changed(millis(bus.now), &old, &new);
            let Some(info) = self.info() else { continue };
            let mut told: Vec<&Node> = old.members().chain(new.members()).collect();
            told.sort();
            told.dedup();
            for node in told {
                if let Some(to) = host_of(node) {
                    bus.send(Place::Meta, to, Packet::Configs(vec![(info.clone(), new.clone())]));
                }
            }
        }
    }

    fn reported(&mut self, bus: &mut Bus, checks: &mut Checks, from: Place, replicas: &[ReplicaReport]) {
        let Place::Host(host) = from else { return };
        let node = Node::new(format!("n{}", host + 1));
        let frozen = self.cure.reported(millis(bus.now), self.ledger.view(), &node, replicas);
        for (gpid, ballot) in frozen {
            checks.violation(
                bus.now,
                format!("{node} knows ballot {ballot} of {gpid}, which was never stored"),
            );
        }
        if self.ledger.view().table(TABLE).is_some_and(|t| self.cure.all_hold(&t.partitions)) {
            self.decide(bus, checks, |draft| {
                draft.make_available(TABLE);
            });
        }
        let Some(info) = self.info() else { return };
        let reported = |gpid: Gpid| replicas.iter().find(|r| r.gpid == gpid);
        let configs: Vec<_> = self
            .gpids()
            .into_iter()
            .filter_map(|gpid| self.config(gpid))
            .filter(|c| c.is_member(&node) || reported(c.gpid).is_some_and(|r| r.ballot < c.ballot))
            .map(|config| (info.clone(), config.clone()))
            .collect();
        bus.send(Place::Meta, from, Packet::Configs(configs));
    }

    pub fn round(&mut self, bus: &mut Bus, checks: &mut Checks) {
        if self.stopped {
            return;
        }
        bus.after(ROUND, Happening::MetaRound);
        self.liveness.sweep(millis(bus.now));
        for order in self.cure.round(millis(bus.now), self.ledger.view(), &self.liveness) {
            match order {
                Order::Assign { gpid, members } => self.decide(bus, checks, |draft| {
                    draft.assign(gpid, &members);
                }),
                Order::Propose { to, request } => propose(bus, &to, request),
            }
        }
    }

    /// A planned move of the primary's role, as the balancer would order it.
    pub fn move_primary(&self, bus: &mut Bus, gpid: Gpid, to: usize) {
        let node = Node::new(format!("n{}", to + 1));
        if let Some(config) = self.config(gpid)
            && config.is_secondary(&node)
            && let Some(primary) = &config.primary
        {
            let (ballot, proposal) = (config.ballot, Proposal::HandOver { to: node });
            propose(bus, primary, ProposalRequest { gpid, ballot, proposal });
        }
    }

    /// An order to remove a member, as the balancer would give it.
    pub fn remove(&self, bus: &mut Bus, gpid: Gpid, host: usize) {
        let node = Node::new(format!("n{}", host + 1));
        if let Some(config) = self.config(gpid)
            && config.is_secondary(&node)
            && let Some(primary) = &config.primary
        {
            let (ballot, proposal) = (config.ballot, Proposal::RemoveSecondary { node });
            propose(bus, primary, ProposalRequest { gpid, ballot, proposal });
        }
    }
}

fn propose(bus: &mut Bus, to: &Node, request: ProposalRequest) {
    bus.trace.line(bus.now, format_args!("meta proposes to {to}: {request:?}"));
    if let Some(to) = host_of(to) {
        bus.send(Place::Meta, to, Packet::Propose(request));
    }
}

/// How long after the beginning every member may act: assignment, and the lease after the start.
pub const SETTLED: Micros = 4 * SECOND;
