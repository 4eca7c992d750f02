//! What can be done to the cluster: by the nemesis, and by scripts.

use pegasus_mutation_log::mem_disk::Faults;
use pegasus_types::Gpid;
use pegasus_types::meta::Proposal;

use super::World;
use crate::bus::{Chore, Happening, MS, Micros, Packet, Place, SECOND, Weather};
use crate::disk;
use crate::host::Host;

/// How often a draining host looks whether it may end, and when it ends anyway.
const DRAIN_LOOK: Micros = 100 * MS;
const DRAIN_WITHIN: Micros = 10 * SECOND;
/// It stays for a while without roles, so that its groups can let go of it.
const DRAIN_LINGER: Micros = 2 * SECOND;

impl World {
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
        for meta in 0..self.metas.len() {
            self.bus.send(Place::Host(host), Place::Meta(meta), Packet::Reset(host));
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

    pub(super) fn look_at_drain(&mut self, host: usize, begun: Micros) {
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
        let disk = &self.hosts[host].disk;
        disk.set_faults(Faults { full, ..disk.faults() });
    }

    /// Something of the host's log is spoilt, which its next start finds out.
    pub fn damage_log(&mut self, host: usize) {
        let mut dice = self.bus.dice.split();
        if let Some(what) = disk::damage(&self.hosts[host].disk, &mut dice) {
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

    pub fn set_meta_chaos(&mut self, mean: Option<Micros>) {
        self.meta_chaos = mean;
        if mean.is_some() {
            self.bus.after(0, Happening::MetaNemesis);
        }
    }

    /// All faults end: everybody runs and is reached.
    pub fn heal(&mut self) {
        self.bus.trace.line(self.bus.now, format_args!("all faults end"));
        self.chaos = None;
        self.meta_chaos = None;
        self.operator.stopped = true;
        self.bus.heal();
        self.bus.weather = Weather::Calm;
        self.start_store();
        for meta in &mut self.metas {
            meta.paused_until = 0;
        }
        self.start_metas();
        for host in 0..self.hosts.len() {
            let disk = &self.hosts[host].disk;
            disk.set_faults(Faults { full: false, ..disk.faults() });
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
}
