//! A cluster on one thread: hosts, meta, clients, network, and the checkers that look on.

use pegasus_types::meta::{Proposal, ReplicaStatus};
use pegasus_types::{ErrorCode, Gpid, Node};

use crate::bus::{Bus, Chore, Happening, MS, Micros, Packet, Place, SECOND, Weather};
use crate::checks::Checks;
use crate::dice::Dice;
use crate::host::clock::Clock;
use crate::host::{Cx, Host};
use crate::meta::{self, Meta};
use crate::settings::Settings;
use crate::store::Store;
use crate::trace::Trace;
use crate::workload::{Response, Workload};

/// Rates of clocks differ by 2,000 ppm at most, which is what the leases allow for.
const MAX_DRIFT_PPM: u64 = 1_000;
/// Wall clocks are off by so much at most: above, a node is no primary (safety-rules.md 5).
const MAX_WALL_US: u64 = 60_000_000;

/// How often a draining host looks whether it may end, and when it ends anyway.
const DRAIN_LOOK: Micros = 100 * MS;
const DRAIN_WITHIN: Micros = 10 * SECOND;
/// It stays for a while without roles, so that its groups can let go of it.
const DRAIN_LINGER: Micros = 2 * SECOND;

pub fn drift(dice: &mut Dice) -> i64 {
    i64::try_from(dice.below(2 * MAX_DRIFT_PPM + 1)).unwrap_or(0) - i64::try_from(MAX_DRIFT_PPM).unwrap_or(0)
}

pub fn wall_offset(dice: &mut Dice) -> i64 {
    i64::try_from(dice.below(2 * MAX_WALL_US)).unwrap_or(0) - i64::try_from(MAX_WALL_US).unwrap_or(0)
}

#[derive(Debug)]
pub struct World {
    pub bus: Bus,
    pub checks: Checks,
    pub hosts: Vec<Host>,
    pub metas: Vec<Meta>,
    pub store: Store,
    pub workload: Workload,
    settings: Settings,
    gpids: Vec<Gpid>,
    /// Mean time between two faults; None = no faults by chance.
    pub chaos: Option<Micros>,
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
            settings,
            gpids,
            chaos: None,
        };
        world.start_store();
        world.start_metas();
        for host in 0..world.hosts.len() {
            world.start(host);
        }
        world.workload.start(&mut world.bus);
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
            Happening::Nemesis => crate::nemesis::strike(self),
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
                }
            }
            Place::Client(client) => self.workload.deliver(&mut self.bus, &mut self.checks, client, packet),
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

    // --- what can be done to it ---

    pub fn start(&mut self, host: usize) {
        self.at_host(host, Host::start);
    }

    /// kill -9; with `power`, the machine goes down with everything that was not synced.
    pub fn kill(&mut self, host: usize, power: bool) {
        if !self.hosts[host].is_up() {
            return;
        }
        self.at_host(host, |h, cx| h.kill(cx, power));
        if power {
            // A dead machine resets nothing.
            return;
        }
        for client in 0..self.settings.clients {
            self.bus.send(Place::Host(host), Place::Client(client), Packet::Reset(host));
        }
        for peer in 0..self.hosts.len() {
            let reached = !self.bus.is_cut(Place::Host(host), Place::Host(peer));
            if peer != host && reached && self.hosts[peer].is_up() && self.bus.dice.permille(950) {
                let delay = self.bus.dice.below(5 * MS);
                self.bus.chore(peer, delay, Chore::PeerReset(host));
            }
        }
    }

    /// SIGTERM: its roles are handed over, then its process ends.
    pub fn drain(&mut self, host: usize) {
        if self.hosts[host].is_up() {
            self.bus.trace.line(self.bus.now, format_args!("n{} drains", host + 1));
            self.at_host(host, Host::drain);
            let (life, begun) = (self.bus.lives[host], self.bus.now);
            self.bus.after(DRAIN_LOOK, Happening::LookAtDrain { host, life, begun });
        }
    }

    fn look_at_drain(&mut self, host: usize, begun: Micros) {
        let passed = self.bus.now - begun;
        let handed_over = passed >= DRAIN_LINGER && !self.hosts[host].is_primary_of_any();
        if handed_over || passed >= DRAIN_WITHIN {
            self.kill(host, false);
        } else {
            let life = self.bus.lives[host];
            self.bus.after(DRAIN_LOOK, Happening::LookAtDrain { host, life, begun });
        }
    }

    pub fn pause(&mut self, host: usize, time: Micros) {
        self.bus.trace.line(self.bus.now, format_args!("n{} stands still for {} ms", host + 1, time / MS));
        self.hosts[host].paused_until = self.bus.now + time;
    }

    pub fn cut(&mut self, a: Place, b: Place, time: Micros, both_ways: bool) {
        self.bus.trace.line(self.bus.now, format_args!("cut {a} -> {b} for {} ms", time / MS));
        let until = self.bus.now + time;
        self.bus.cut(a, b, until);
        if both_ways {
            self.bus.cut(b, a, until);
        }
    }

    /// What is sent in this time arrives so much later.
    pub fn lag(&mut self, from: Place, to: Place, time: Micros, delay: Micros) {
        self.bus.trace.line(self.bus.now, format_args!("{from} -> {to} takes {} ms more", delay / MS));
        self.bus.lag(from, to, self.bus.now + time, delay);
    }

    pub fn isolate(&mut self, host: usize, time: Micros) {
        let places = (0..self.hosts.len()).map(Place::Host).chain((0..self.metas.len()).map(Place::Meta));
        for other in places.filter(|p| *p != Place::Host(host)).collect::<Vec<_>>() {
            self.cut(Place::Host(host), other, time, true);
        }
        for client in 0..self.settings.clients {
            self.cut(Place::Host(host), Place::Client(client), time, true);
        }
    }

    /// A peer sees a reset and a refusal, though nothing is wrong with the host.
    pub fn false_reset(&mut self, of: usize, at: usize) {
        self.bus.trace.line(self.bus.now, format_args!("n{} sees n{} reset", at + 1, of + 1));
        self.bus.chore(at, 0, Chore::PeerReset(of));
    }

    pub fn slow_disk(&mut self, host: usize, time: Micros) {
        self.bus.trace.line(self.bus.now, format_args!("n{} disk slow for {} ms", host + 1, time / MS));
        self.hosts[host].disk_slow_until = self.bus.now + time;
    }

    pub fn break_disk(&mut self, host: usize) {
        self.bus.trace.line(self.bus.now, format_args!("n{} disk fails its fsyncs", host + 1));
        self.at_host(host, Host::break_disk);
    }

    /// Nobody has room for the log any more, until the time is over.
    pub fn fill_disk(&mut self, host: usize, full: bool) {
        let what = if full { "is full" } else { "has room again" };
        self.bus.trace.line(self.bus.now, format_args!("n{} disk {what}", host + 1));
        self.hosts[host].disk.set_full(full);
    }

    /// Something of the host's log is spoilt, which its next start finds out.
    pub fn damage_log(&mut self, host: usize) {
        let mut dice = self.bus.dice.split();
        if let Some(what) = self.hosts[host].disk.damage(&mut dice) {
            self.bus.trace.line(self.bus.now, format_args!("n{} disk loses {what}", host + 1));
            self.checks.expect_damage(host);
        }
    }

    pub fn damage_rows(&mut self, host: usize, gpid: Gpid) {
        self.bus.trace.line(self.bus.now, format_args!("n{} finds bad rows of {gpid}", host + 1));
        self.checks.expect_damage(host);
        self.at_host(host, |h, cx| h.rows_damaged(cx, gpid));
    }

    pub fn set_drift(&mut self, host: usize, drift_ppm: i64) {
        self.bus.trace.line(self.bus.now, format_args!("n{} clock drifts {drift_ppm} ppm", host + 1));
        self.hosts[host].clock.set_drift(self.bus.now, drift_ppm);
    }

    pub fn set_wall(&mut self, host: usize, offset_us: i64) {
        self.bus.trace.line(self.bus.now, format_args!("n{} wall clock is {offset_us} us off", host + 1));
        self.hosts[host].clock.set_wall_offset(offset_us);
    }

    // --- metas and store ---

    pub fn stop_metas(&mut self) {
        for meta in 0..self.metas.len() {
            self.kill_meta(meta);
        }
    }

    pub fn kill_meta(&mut self, meta: usize) {
        self.metas[meta].kill(&mut self.bus);
    }

    pub fn start_metas(&mut self) {
        for meta in 0..self.metas.len() {
            self.metas[meta].start(&mut self.bus);
        }
    }

    pub fn pause_meta(&mut self, meta: usize, time: Micros) {
        self.bus.trace.line(self.bus.now, format_args!("m{} stands still for {} ms", meta + 1, time / MS));
        self.metas[meta].paused_until = self.bus.now + time;
    }

    pub fn leader(&self) -> Option<usize> {
        self.metas.iter().position(|meta| meta.leads() && meta.paused_until <= self.bus.now)
    }

    pub fn stop_store(&mut self) {
        self.bus.trace.line(self.bus.now, format_args!("store stops"));
        self.store.stopped = true;
    }

    pub fn start_store(&mut self) {
        if self.bus.now == 0 || self.store.stopped {
            self.bus.trace.line(self.bus.now, format_args!("store starts"));
            self.store.start(&mut self.bus);
        }
    }

    fn propose(&mut self, gpid: Gpid, proposal: Proposal) {
        if let Some(leader) = self.leader() {
            self.metas[leader].propose(&mut self.bus, gpid, proposal);
        }
    }

    /// A planned move of the primary's role, as the balancer would order it.
    pub fn move_primary(&mut self, gpid: Gpid, to: usize) {
        let to = self.hosts[to].node.clone();
        if self.store.config(gpid).is_some_and(|config| config.is_secondary(&to)) {
            self.propose(gpid, Proposal::HandOver { to });
        }
    }

    /// An order to remove a member, as the balancer would give it.
    pub fn remove_member(&mut self, gpid: Gpid, host: usize) {
        let node = self.hosts[host].node.clone();
        if self.store.config(gpid).is_some_and(|config| config.is_secondary(&node)) {
            self.propose(gpid, Proposal::RemoveSecondary { node });
        }
    }

    pub fn set_weather(&mut self, weather: Weather) {
        self.bus.weather = weather;
    }

    pub fn set_chaos(&mut self, mean: Option<Micros>) {
        self.chaos = mean;
        if mean.is_some() {
            self.bus.after(0, Happening::Nemesis);
        }
    }

    /// All faults end: everybody runs and is reached.
    pub fn heal(&mut self) {
        self.bus.trace.line(self.bus.now, format_args!("all faults end"));
        self.chaos = None;
        self.bus.heal();
        self.bus.weather = Weather::Calm;
        self.start_store();
        for meta in &mut self.metas {
            meta.paused_until = 0;
        }
        self.start_metas();
        for host in 0..self.hosts.len() {
            self.hosts[host].disk.set_full(false);
            self.hosts[host].paused_until = 0;
            self.hosts[host].disk_slow_until = 0;
            if self.checks.needs_restart(host) || self.hosts[host].is_draining() {
                self.kill(host, false);
            }
            if !self.hosts[host].is_up() {
                self.bus.after(10 * MS, Happening::StartHost(host));
            }
        }
    }

    // --- what can be asked of it ---

    fn member(&self, gpid: Gpid, index: usize) -> Option<usize> {
        Host::index(self.store.config(gpid)?.members().nth(index)?)
    }

    pub fn primary(&self, gpid: Gpid) -> Option<usize> {
        Host::index(self.store.config(gpid)?.primary.as_ref()?)
    }

    /// Beginning with 1.
    pub fn secondary(&self, gpid: Gpid, number: usize) -> Option<usize> {
        self.member(gpid, number).filter(|_| number > 0)
    }

    /// How many primaries each machine has.
    pub fn primaries(&self) -> Vec<usize> {
        let mut counts = vec![0; self.hosts.len()];
        for host in self.gpids.iter().filter_map(|gpid| self.primary(*gpid)) {
            counts[host] += 1;
        }
        counts
    }

    pub fn is_balanced(&self) -> bool {
        let counts = self.primaries();
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        self.all_healthy() && most.unwrap_or(0) <= least.unwrap_or(0) + 1
    }

    pub fn is_serving(&self, gpid: Gpid) -> bool {
        self.hosts.iter().any(|h| h.serving(self.bus.now, gpid))
    }

    /// The partition has all its members, each in its role, and the primary serves.
    pub fn is_healthy(&self, gpid: Gpid) -> bool {
        let Some(config) = self.store.config(gpid) else { return false };
        let wanted = usize::try_from(config.max_replica_count).unwrap_or(0).min(self.hosts.len());
        let status = |node: &Node| Host::index(node).and_then(|h| self.hosts[h].status(gpid));
        config.member_count() == wanted
            && config.primary.as_ref().is_some_and(|p| status(p) == Some(ReplicaStatus::Primary))
            && config.secondaries.iter().all(|s| status(s) == Some(ReplicaStatus::Secondary))
            && self.is_serving(gpid)
    }

    pub fn all_healthy(&self) -> bool {
        self.gpids.iter().all(|gpid| self.is_healthy(*gpid))
    }

    /// Everything that anybody was told is there, at every member, and the members are equal. To be asked when
    /// all is healthy and nobody writes any more.
    pub fn compare_members(&self) -> Result<(), String> {
        for &gpid in &self.gpids {
            let Some(config) = self.store.config(gpid) else { continue };
            let members: Vec<_> = config.members().filter_map(Host::index).collect();
            let Some(first) = members.first().and_then(|h| self.hosts[*h].engine(gpid)) else {
                return Err(format!("{gpid} has no primary"));
            };
            for key in Workload::keys() {
                let shown = self.checks.history.floor(gpid, &key);
                let held = first.get(&key).map(|row| row.decree).unwrap_or_default();
                if held < shown {
                    return Err(format!("{gpid} {key:?}: decree {shown} was answered, {held} is there"));
                }
            }
            for host in members {
                let Some(engine) = self.hosts[host].engine(gpid) else {
                    return Err(format!("n{} has no {gpid}", host + 1));
                };
                if engine.rows() != first.rows() {
                    return Err(format!("n{} differs from its primary in {gpid}", host + 1));
                }
            }
        }
        Ok(())
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
