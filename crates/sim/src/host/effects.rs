//! The only place where a decision of the core becomes IO.

use std::collections::VecDeque;

use pegasus_pacifica::{Effect, Event, Recovered};
use pegasus_types::message::Envelope;
use pegasus_types::meta::ReplicaStatus;
use pegasus_types::{Decree, Gpid, Mutation, Node, PartitionConfig};

use super::files::{ReplicaFile, Save};
use super::metas::ASK_TIMEOUT;
use super::{Ask, Cx, Host};
use crate::bus::{Chore, MS, Packet, Place};

impl Host {
    /// Begins an effect; what it reports at once goes to `events`.
    pub(super) fn begin(&mut self, cx: &mut Cx<'_>, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::SaveConfig { gpid, config, learning } => self.save(cx, Save { gpid, config, learning }),
            Effect::OpenReplica { config, .. } => {
                cx.bus.chore(self.id, MS, Chore::MakeReplica(config));
            }
            Effect::Log { gpid, ballot, committed, cuts, mutations } => {
                self.pend(gpid, &mutations);
                self.log(cx, gpid, (ballot, committed, cuts), mutations);
            }
            Effect::Send { to, envelope } => self.send(cx, &to, envelope),
            Effect::SendHeartbeat { to, heartbeat } => self.send_packet(cx, &to, Packet::Beat(heartbeat)),
            Effect::AckHeartbeat { to, ack } => self.send_packet(cx, &to, Packet::BeatAck(ack)),
            Effect::Apply { gpid, mutations } => self.apply(cx, gpid, &mutations, events),
            Effect::Reply { token, result, .. } => self.reply(cx, token, result),
            Effect::Drop { token, .. } => self.forget_write(token),
            Effect::AskMeta { request } => {
                let (meta, Some(process)) = (self.meta(), &mut self.process) else { return };
                let ask = process.number();
                process.asks.insert(ask, Ask { request: request.clone(), hops: 0 });
                cx.bus.send(Place::Host(self.id), meta, Packet::Change { ask, request });
                cx.bus.chore(self.id, ASK_TIMEOUT, Chore::AskTimeout(ask));
            }
            Effect::QueryMeta { gpid } => {
                cx.bus.send(Place::Host(self.id), self.meta(), Packet::Query(gpid));
            }
            Effect::StartCopy { gpid, from, ballot, signature, committed } => {
                self.start_copy(cx, gpid, &from, ballot, signature, committed);
            }
            Effect::FetchLog { gpid, from, signature, after } => {
                self.fetch_log(cx, gpid, &from, signature, after);
            }
            Effect::StopCopy { gpid } => {
                if let Some(process) = &mut self.process {
                    process.copying.remove(&gpid);
                }
            }
            Effect::RoleChanged { gpid, status, ballot } => {
                let Some(process) = &mut self.process else { return };
                let before = process.status.insert(gpid, status);
                if before != Some(status) {
                    process.clients.clear_pending(gpid);
                }
                cx.checks.role_changed(cx.bus.now, self.id, cx.bus.lives[self.id], gpid, status, ballot);
            }
            Effect::Quarantine { gpid, why } => {
                cx.bus.trace.line(cx.bus.now, format_args!("{} puts {gpid} aside: {why}", self.node));
                self.drop_replica(gpid);
            }
            Effect::Dump { gpid, why, .. } => {
                cx.checks.violation(cx.bus.now, format!("{} {gpid}: invariant: {why}", self.node));
            }
        }
    }

    /// Not before the log knows of all replicas that were here: it would take the new one's records for those of
    /// a copy that is gone.
    pub(super) fn open_for_learning(&mut self, cx: &mut Cx<'_>, config: PartitionConfig) {
        if self.process.as_ref().is_some_and(|p| p.opening > 0) {
            return cx.bus.chore(self.id, 5 * MS, Chore::MakeReplica(config));
        }
        let gpid = config.gpid;
        let blank = PartitionConfig::unassigned(gpid, config.max_replica_count);
        self.files.insert(gpid, ReplicaFile::new(blank.clone(), true, cx.bus.dice.roll()));
        self.start_flushing(cx, gpid);
        let replica = Recovered {
            config: blank,
            learning: true,
            intact: true,
            applied: Decree::ZERO,
            committed: Decree::ZERO,
            tail: Vec::new(),
        };
        self.step(cx, Event::Opened { gpid, replica });
    }

    fn send(&self, cx: &mut Cx<'_>, to: &Node, envelope: Envelope) {
        self.send_packet(cx, to, Packet::Envelope(envelope));
    }

    pub(super) fn send_packet(&self, cx: &mut Cx<'_>, to: &Node, packet: Packet) {
        if let Some(to) = Self::index(to) {
            cx.bus.send(Place::Host(self.id), Place::Host(to), packet);
        }
    }

    fn apply(&mut self, cx: &mut Cx<'_>, gpid: Gpid, mutations: &[Mutation], events: &mut VecDeque<Event>) {
        let lossy = cx.settings.sabotage.lossy_apply && !self.is_primary(gpid);
        let Some(file) = self.files.get_mut(&gpid) else { return };
        for mutation in mutations {
            cx.checks.committed(cx.bus.now, self.id, mutation);
            if let Err(why) = file.engine.apply(mutation) {
                return cx.checks.order_violated(cx.bus.now, self.id, gpid, &why);
            }
            if lossy && cx.bus.dice.permille(5) {
                file.engine.lose_a_row();
            }
            cx.checks.applied(cx.bus.now, self.id, gpid, mutation.decree, file.engine.digest());
        }
        self.unpend(gpid);
        if let Some(last) = mutations.last() {
            events.push_back(Event::Applied { gpid, upto: last.decree });
        }
    }

    pub(super) fn is_primary(&self, gpid: Gpid) -> bool {
        self.status(gpid) == Some(ReplicaStatus::Primary)
    }
}
