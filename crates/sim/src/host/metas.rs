//! What is asked of the meta-servers and told them, and what they say.

use pegasus_pacifica::{Event, may_begin_empty};
use pegasus_types::meta::{Beacon, ChangeReply, ChangeRequest, ReplicaStatus};
use pegasus_types::{AppInfo, Gpid, Node, PartitionConfig};

use super::files::ReplicaFile;
use super::{Ask, Cx, Host};
use crate::bus::{Chore, MS, Micros, Packet, Place, SECOND};

const BEACON_MS: u64 = 1_000;
/// Every so many beacons the node reports its replicas unasked.
const REPORT_EVERY: u64 = 3;
/// The meta gives no answer.
pub(super) const ASK_TIMEOUT: Micros = 800 * MS;
/// Between two metas that are asked the same.
pub(super) const HOP_PAUSE: Micros = 50 * MS;
/// Redirects that one attempt follows.
const MAX_HOPS: usize = 5;
/// A log that is at one write for so long stands still (safety-rules.md 1.7).
const LOG_STUCK: Micros = 5 * SECOND;

impl Host {
    pub(super) fn meta(&self) -> Place {
        Place::Meta(self.process.as_ref().map_or(0, |process| process.meta))
    }

    /// Another one leads, or at least the one that was asked does not.
    pub(super) fn redirected(&mut self, leader: Option<&Node>) {
        let Some(process) = &mut self.process else { return };
        let next = (process.meta + 1) % self.metas;
        process.meta = leader.and_then(crate::meta::index_of).unwrap_or(next);
    }

    pub(super) fn ask_again(&mut self, cx: &mut Cx<'_>, ask: u64) {
        let (meta, Some(process)) = (self.meta(), &mut self.process) else { return };
        let Some(Ask { request, hops }) = process.asks.get_mut(&ask) else { return };
        *hops += 1;
        if *hops > MAX_HOPS {
            return self.answered(cx, ask, None);
        }
        cx.bus.send(Place::Host(self.id), meta, Packet::Change { ask, request: request.clone() });
    }

    pub(super) fn answered(&mut self, cx: &mut Cx<'_>, ask: u64, reply: Option<ChangeReply>) {
        let Some(Ask { request, .. }) = self.process.as_mut().and_then(|p| p.asks.remove(&ask)) else {
            return;
        };
        let ChangeRequest { gpid, ballot: asked_at, kind, .. } = request;
        self.step(cx, Event::ChangeAnswered { gpid, asked_at, kind, reply });
    }

    /// A configuration from the meta. Only while the table is being created may a member begin empty.
    pub(super) fn configured(&mut self, cx: &mut Cx<'_>, info: &AppInfo, config: PartitionConfig) {
        let gpid = config.gpid;
        let creating = may_begin_empty(info.status, &config, &self.node);
        let opened = self.process.as_ref().is_some_and(|p| p.opening == 0);
        if creating && opened && !self.files.contains_key(&gpid) {
            let copy_id = cx.bus.dice.roll();
            let blank = PartitionConfig::unassigned(gpid, config.max_replica_count);
            self.files.insert(gpid, ReplicaFile::new(blank, false, copy_id));
            self.start_flushing(cx, gpid);
            self.step(cx, Event::Create { config });
            cx.bus.chore(self.id, 50 * MS, Chore::ReportSoon);
        } else {
            self.step(cx, Event::MetaConfig { config });
        }
    }

    pub(super) fn beacon(&mut self, cx: &mut Cx<'_>) {
        cx.bus.chore(self.id, self.clock.lasts(cx.bus.now, BEACON_MS), Chore::Beacon);
        self.send_beacon(cx);
    }

    /// From now on the metas are told that this node is about to end.
    pub fn drain(&mut self, cx: &mut Cx<'_>) {
        if let Some(process) = &mut self.process {
            process.draining = true;
            self.send_beacon(cx);
        }
    }

    pub fn is_draining(&self) -> bool {
        self.process.as_ref().is_some_and(|p| p.draining)
    }

    pub fn is_primary_of_any(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|p| p.status.values().any(|status| *status == ReplicaStatus::Primary))
    }

    /// Members are never thrown away, whatever the meta has understood.
    pub(super) fn collect(&mut self, cx: &mut Cx<'_>, gpids: Vec<Gpid>) {
        for gpid in gpids {
            let member = matches!(self.status(gpid), Some(ReplicaStatus::Primary | ReplicaStatus::Secondary));
            if self.files.contains_key(&gpid) && !member {
                self.step(cx, Event::Removed { gpid });
                self.drop_replica(gpid);
            }
        }
    }

    pub(super) fn send_beacon(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &mut self.process else { return };
        let long = |since: Option<Micros>| since.is_some_and(|since| cx.bus.now - since >= LOG_STUCK);
        let stuck = long(process.log_busy_since) || long(process.full_since);
        process.beacons += 1;
        if !std::mem::replace(&mut process.beacon_answered, false) {
            process.meta = (process.meta + 1) % self.metas;
        }
        let report = process.beacons % REPORT_EVERY == 1;
        let beacon = Beacon {
            node: self.node.clone(),
            incarnation: process.incarnation,
            wall_us: self.clock.wall_us(cx.bus.now),
            log_healthy: !stuck,
            draining: process.draining,
        };
        cx.bus.send(Place::Host(self.id), self.meta(), Packet::Beacon(beacon));
        self.step(cx, Event::LogHealth { healthy: !stuck });
        if report {
            self.report(cx);
        }
    }

    pub(super) fn report(&mut self, cx: &mut Cx<'_>) {
        let Some(process) = &self.process else { return };
        if process.opening == 0 {
            let replicas = process.core.reports();
            cx.bus.send(Place::Host(self.id), self.meta(), Packet::Report { replicas });
        }
    }
}
