//! A cluster on one thread: hosts, meta, clients, network, and the checkers that look on.

use pegasus_types::{ErrorCode, Gpid};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place, SECOND};
use crate::checks::Checks;
use crate::dice::Dice;
use crate::host::clock::Clock;
use crate::host::{Cx, Host};
use crate::meta::{self, Meta};
use crate::operator::Operator;
use crate::settings::Settings;
use crate::store::Store;
use crate::trace::Trace;
use crate::workload::{Response, Workload};

/// Rates of clocks differ by 2,000 ppm at most, which is what the leases allow for.
const MAX_DRIFT_PPM: u64 = 1_000;
/// Wall clocks are off by so much at most: above, a node is no primary (safety-rules.md 5).
const MAX_WALL_US: u64 = 60_000_000;

pub fn drift(dice: &mut Dice) -> i64 {
    i64::try_from(dice.below(2 * MAX_DRIFT_PPM + 1)).unwrap_or(0) - i64::try_from(MAX_DRIFT_PPM).unwrap_or(0)
}

pub fn wall_offset(dice: &mut Dice) -> i64 {
    i64::try_from(dice.below(2 * MAX_WALL_US)).unwrap_or(0) - i64::try_from(MAX_WALL_US).unwrap_or(0)
}

mod faults;
mod looks;

#[derive(Debug)]
pub struct World {
    pub bus: Bus,
    pub checks: Checks,
    pub hosts: Vec<Host>,
    pub metas: Vec<Meta>,
    pub store: Store,
    pub workload: Workload,
    pub operator: Operator,
    settings: Settings,
    gpids: Vec<Gpid>,
    /// Mean time between two faults; None = no faults by chance.
    pub chaos: Option<Micros>,
    /// Mean time between two faults of the metas and their store alone.
    pub meta_chaos: Option<Micros>,
}

impl World {
    pub fn new(seed: u64, settings: Settings, trace: Trace) -> Self {
        let mut dice = Dice::new(seed);
        let clock = |dice: &mut Dice| {
            let drift_ppm = drift(dice);
            Clock::new(drift_ppm, 1_000 * dice.below(1_000_000_000))
        };
        let hosts = (0..settings.hosts)
            .map(|id| {
                let mut clock = clock(&mut dice);
                if dice.permille(300) {
                    clock.set_wall_offset(wall_offset(&mut dice));
                }
                Host::new(id, settings.metas, clock)
            })
            .collect();
        let metas = (0..settings.metas).map(|id| Meta::new(id, clock(&mut dice), settings.clone())).collect();
        let store = Store::new(meta::paths(), meta::first_writes(&settings));
        let gpids = store.gpids();
        let mut world = Self {
            bus: Bus::new(dice, (settings.hosts, settings.metas), trace),
            checks: Checks::default(),
            hosts,
            metas,
            store,
            workload: Workload::new(settings.clients, settings.metas, gpids.clone()),
            operator: Operator::new(settings.metas),
            settings,
            gpids,
            chaos: None,
            meta_chaos: None,
        };
        world.start_store();
        world.start_metas();
        for host in 0..world.hosts.len() {
            world.start(host);
        }
        world.workload.start(&mut world.bus);
        if world.settings.operator {
            world.operator.start(&mut world.bus);
        }
        world
    }

    pub fn settings_durability(&self) -> pegasus_mutation_log::Durability {
        self.settings.durability
    }

    pub fn gpids(&self) -> &[Gpid] {
        &self.gpids
    }

    /// Runs for so long, or until something is wrong. False = something is wrong.
    pub fn run(&mut self, time: Micros) -> bool {
        let end = self.bus.now + time;
        while self.checks.failure().is_none() {
            let Some(what) = self.bus.next(end) else { return true };
            self.happen(what);
            self.checks.after_step(self.bus.now, &self.hosts, &self.gpids);
        }
        false
    }

    /// As `run`, until something holds. None = it does not hold in time.
    pub fn run_until(&mut self, time: Micros, holds: impl Fn(&Self) -> bool) -> Option<Micros> {
        let begin = self.bus.now;
        while self.bus.now < begin + time {
            if holds(self) {
                return Some(self.bus.now - begin);
            }
            if !self.run(20 * MS) {
                return None;
            }
        }
        holds(self).then_some(time)
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Deliver { from, to, life, packet } => self.deliver(from, to, life, packet),
            Happening::Chore { host, life, chore } => {
                if self.bus.lives[host] == life
                    && !self.held_up(host, |h| Happening::Chore { host: h, life, chore: chore.clone() })
                {
                    self.at_host(host, |h, cx| h.chore(cx, chore));
                }
            }
            Happening::StartHost(host) => self.start(host),
            Happening::LookAtDrain { host, life, begun } => {
                if self.bus.lives[host] == life {
                    self.look_at_drain(host, begun);
                }
            }
            Happening::Replace(host) => {
                self.kill(host, false);
                self.start(host);
            }
            Happening::EmptyDisk(host) => self.fill_disk(host, false),
            Happening::KillMeta(meta) => self.kill_meta(meta),
            Happening::StartMeta(meta) => self.metas[meta].start(&mut self.bus),
            Happening::MetaRound { meta, life } => {
                if self.is_this_life(meta, life)
                    && !self.meta_held_up(meta, Happening::MetaRound { meta, life })
                {
                    self.metas[meta].round(&mut self.bus, &mut self.checks);
                }
            }
            Happening::MetaTick { meta, life } => {
                if self.is_this_life(meta, life)
                    && !self.meta_held_up(meta, Happening::MetaTick { meta, life })
                {
                    self.metas[meta].tick(&mut self.bus);
                }
            }
            Happening::StartStore => self.start_store(),
            Happening::StoreRound => self.store.round(&mut self.bus),
            Happening::SendLate { from, to, packet } => self.bus.send(from, to, packet),
            Happening::ClientAsk(client) => self.workload.ask(&mut self.bus, client),
            Happening::ClientNext(client) => self.workload.next(&mut self.bus, &mut self.checks, client),
            Happening::ClientTimeout { client, op } => {
                self.workload.timed_out(&mut self.bus, &mut self.checks, client, op);
            }
            Happening::OperatorNext => self.operator.next(&mut self.bus, &mut self.checks),
            Happening::OperatorAsk => self.operator.ask(&mut self.bus),
            Happening::OperatorAgain(ask) => self.operator.again(&mut self.bus, ask),
            Happening::Nemesis => crate::nemesis::strike(self),
            Happening::MetaNemesis => crate::nemesis::strike_metas_again(self),
        }
    }

    fn deliver(&mut self, from: Place, to: Place, life: u64, packet: Packet) {
        match to {
            Place::Host(host) => {
                if self.bus.lives[host] != life || !self.hosts[host].is_up() {
                    if let (Packet::Request { op, .. }, false) = (&packet, self.hosts[host].is_dark()) {
                        // Nobody listens: the client's connection is refused.
                        let response = Response::Refused(ErrorCode::NetworkFailure);
                        self.bus.send(to, from, Packet::Response { op: *op, response });
                    }
                    return;
                }
                let again = |_| Happening::Deliver { from, to, life, packet: packet.clone() };
                if !self.held_up(host, again) {
                    self.at_host(host, |h, cx| h.deliver(cx, from, packet));
                }
            }
            Place::Meta(meta) => {
                let again = Happening::Deliver { from, to, life, packet: packet.clone() };
                if self.is_this_life(meta, life) && !self.meta_held_up(meta, again) {
                    self.metas[meta].deliver(&mut self.bus, &mut self.checks, from, packet);
                }
            }
            Place::Store => {
                if let Packet::ToStore { session, call, life, what } = packet {
                    self.store.deliver(&mut self.bus, &mut self.checks, from, life, (session, call, what));
                    if self.settings.operator {
                        self.gpids = self.store.gpids();
                    }
                }
            }
            Place::Client(client) => self.workload.deliver(&mut self.bus, &mut self.checks, client, packet),
            Place::Operator => self.operator.deliver(&mut self.bus, &mut self.checks, packet),
        }
    }

    /// A paused process gets everything when it goes on.
    fn held_up(&mut self, host: usize, again: impl Fn(usize) -> Happening) -> bool {
        let until = self.hosts[host].paused_until;
        let paused = until > self.bus.now;
        if paused {
            let jitter = self.bus.dice.below(3 * MS);
            self.bus.at(until + jitter, again(host));
        }
        paused
    }

    fn is_this_life(&self, meta: usize, life: u64) -> bool {
        self.metas[meta].up && self.bus.meta_lives[meta] == life
    }

    fn meta_held_up(&mut self, meta: usize, again: Happening) -> bool {
        let until = self.metas[meta].paused_until;
        let paused = until > self.bus.now;
        if paused {
            let jitter = self.bus.dice.below(MS);
            self.bus.at(until + jitter, again);
        }
        paused
    }

    fn at_host(&mut self, host: usize, run: impl FnOnce(&mut Host, &mut Cx<'_>)) {
        let mut cx = Cx { bus: &mut self.bus, checks: &mut self.checks, settings: &self.settings };
        run(&mut self.hosts[host], &mut cx);
    }

    /// Ends all faults, lets the cluster heal within `time`, and looks at everything.
    pub fn settle(&mut self, time: Micros) -> Result<(), String> {
        let failed = |world: &Self| world.checks.failure().map(str::to_owned);
        self.heal();
        // What was under way is over after this.
        self.run(2 * SECOND);
        let healed = self.run_until(time, Self::all_healthy);
        self.checks.figures.healed_ms = healed.map_or(0, |t| 2_000 + t / MS);
        if healed.is_none() {
            let sick: Vec<_> = self.gpids.iter().filter(|g| !self.is_healthy(**g)).collect();
            let configs: Vec<_> = sick.iter().filter_map(|g| self.store.config(**g)).collect();
            return Err(failed(self)
                .unwrap_or(format!("not healthy {} s after the last fault: {configs:?}", time / SECOND)));
        }
        self.workload.only_reads = true;
        self.run(2 * SECOND);
        self.workload.stopped = true;
        self.run(SECOND);
        // A slow disk may hold the last writes for some time.
        self.run_until(10 * SECOND, |world| world.compare_members().is_ok());
        match failed(self) {
            Some(why) => Err(why),
            None => {
                self.compare_members()?;
                self.checks.history.has_an_order()
            }
        }
    }
}
