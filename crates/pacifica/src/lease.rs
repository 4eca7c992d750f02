//! Leases between processes: who was heard, who granted what until when (safety-rules.md 1).
//!
//! Per peer there are two sets of (partition, ballot) pairs. `mine`: this node is primary and the peer a member
//! or learner. `theirs`: this node is a member or learner, takes the peer for the primary, and has not claimed
//! its role. A heartbeat carries the digest of the sender's `mine`; when the receiver's `theirs` has the same,
//! one number grants them all.

use std::collections::{BTreeMap, VecDeque};

use pegasus_types::message::{Grant, Heartbeat, HeartbeatAck};
use pegasus_types::{Ballot, Gpid, Millis, Node};

use crate::options::Sabotage;
use crate::{Effect, Options};

/// Heartbeats whose acknowledgement may still come: more than fit into one lease, or they grant nothing.
const FLYING: usize = 64;
/// Changes of ballot send a heartbeat at once, but not more often than this (a dead peer changes the ballots of
/// many partitions in the same moment).
const URGENT_SPACING_MS: u64 = 5;
/// Gaps between ticks above this many heartbeats mean that this process itself stood still.
const STOOD_STILL_BEATS: u64 = 4;

/// Processes of a node that are remembered, so that what is left of an earlier one is not taken for a new one.
const INCARNATIONS: usize = 8;

pub(crate) type PeerId = usize;

/// A grant that one member gave for one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// State of the peer's `mine` since when the pair was in it, with whatever ballot.
    since: u64,
    /// When the heartbeat that was granted pair by pair left.
    sent: Option<Millis>,
}

impl Slot {
    pub fn granted(&mut self, sent: Millis) {
        self.sent = self.sent.max(Some(sent));
    }
}

#[derive(Debug)]
struct Given {
    ballot: Ballot,
    /// Last grant pair by pair.
    at: Option<Millis>,
}

#[derive(Debug)]
struct Flying {
    seq: u64,
    sent: Millis,
    version: u64,
}

#[derive(Debug)]
struct Peer {
    node: Node,
    /// Of its processes, newest last.
    incarnations: VecDeque<u64>,
    restarted: bool,
    heard: Millis,
    log_healthy: bool,
    mine: BTreeMap<Gpid, Ballot>,
    mine_digest: u64,
    mine_version: u64,
    theirs: BTreeMap<Gpid, Given>,
    theirs_digest: u64,
    /// Last grant of the whole of `theirs`.
    all_given: Option<Millis>,
    /// Latest heartbeat that was granted whole: state of `mine`, when it left.
    all_held: Option<(u64, Millis)>,
    /// The peer disagrees with the digest: tell the pairs.
    spell_out: bool,
    seq: u64,
    flying: VecDeque<Flying>,
    beat_at: Option<Millis>,
    urgent: bool,
}

impl Peer {
    fn shares(&self) -> bool {
        !self.mine.is_empty() || !self.theirs.is_empty()
    }

    /// Where nothing was shared there was nothing to hear: silence counts from now on, and a process that was
    /// started meanwhile is none that has restarted.
    fn begin_sharing(&mut self, now: Millis) {
        if !self.shares() {
            self.heard = self.heard.max(now);
            self.incarnations.clear();
            self.restarted = false;
        }
    }

    fn met(&mut self, incarnation: u64) {
        if self.incarnations.contains(&incarnation) {
            // The same, or a message of an earlier process that comes late.
            return;
        }
        self.restarted |= !self.incarnations.is_empty();
        if self.incarnations.len() == INCARNATIONS {
            self.incarnations.pop_front();
        }
        self.incarnations.push_back(incarnation);
    }
}

#[derive(Debug)]
pub(crate) struct Leases {
    incarnation: u64,
    peers: Vec<Peer>,
    by_node: BTreeMap<Node, PeerId>,
    next_beat: Millis,
    last_tick: Millis,
    any_urgent: bool,
    last_flush: Millis,
    pub log_healthy: bool,
}

/// What an acknowledgement says about single partitions.
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    pub sent: Millis,
    pub granted: Vec<(Gpid, Ballot)>,
    pub newer: Vec<(Gpid, Ballot)>,
}

fn pair_hash(gpid: Gpid, ballot: Ballot) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let id = (u64::from(gpid.app_id.cast_unsigned()) << 32) | u64::from(gpid.index.cast_unsigned());
    mix(mix(id.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ ballot.0.cast_unsigned())
}

impl Leases {
    pub fn new(incarnation: u64, now: Millis) -> Self {
        Self {
            incarnation,
            peers: Vec::new(),
            by_node: BTreeMap::new(),
            next_beat: now,
            last_tick: now,
            any_urgent: false,
            last_flush: now,
            log_healthy: true,
        }
    }

    pub fn peer(&mut self, node: &Node, now: Millis) -> PeerId {
        if let Some(&id) = self.by_node.get(node) {
            return id;
        }
        let id = self.peers.len();
        self.peers.push(Peer {
            node: node.clone(),
            incarnations: VecDeque::new(),
            restarted: false,
            heard: now,
            log_healthy: true,
            mine: BTreeMap::new(),
            mine_digest: 0,
            mine_version: 0,
            theirs: BTreeMap::new(),
            theirs_digest: 0,
            all_given: None,
            all_held: None,
            spell_out: false,
            seq: 0,
            flying: VecDeque::new(),
            beat_at: None,
            urgent: false,
        });
        self.by_node.insert(node.clone(), id);
        id
    }

    /// A sign of life. Does not count while the peer's log stands still.
    pub fn heard(&mut self, node: &Node, now: Millis) {
        if let Some(&id) = self.by_node.get(node) {
            let peer = &mut self.peers[id];
            if peer.log_healthy {
                peer.heard = now;
            }
        }
    }

    pub fn is_silent(&self, id: PeerId, now: Millis, options: &Options) -> bool {
        now.since(self.peers[id].heard) > options.grace_ms
    }

    /// Has the process of this node changed since this was asked last?
    pub fn take_restarted(&mut self, node: &Node) -> bool {
        let peer = self.by_node.get(node).map(|&id| &mut self.peers[id]);
        peer.is_some_and(|peer| std::mem::take(&mut peer.restarted))
    }

    pub fn node(&self, id: PeerId) -> &Node {
        &self.peers[id].node
    }

    // --- as primary ---

    /// This node is primary of `gpid` at `ballot` and the peer belongs to the group. `slot` = what it granted
    /// so far in this reign: that stays good (safety-rules.md 1.1).
    pub fn require(
        &mut self,
        id: PeerId,
        gpid: Gpid,
        ballot: Ballot,
        slot: Option<Slot>,
        now: Millis,
    ) -> Slot {
        let peer = &mut self.peers[id];
        peer.begin_sharing(now);
        let old = peer.mine.insert(gpid, ballot);
        if old != Some(ballot) {
            if let Some(old) = old {
                peer.mine_digest = peer.mine_digest.wrapping_sub(pair_hash(gpid, old));
            }
            peer.mine_digest = peer.mine_digest.wrapping_add(pair_hash(gpid, ballot));
            peer.mine_version += 1;
        }
        let since = peer.mine_version;
        self.hurry(id);
        slot.unwrap_or(Slot { since, sent: None })
    }

    pub fn dismiss(&mut self, id: PeerId, gpid: Gpid) {
        let peer = &mut self.peers[id];
        if let Some(ballot) = peer.mine.remove(&gpid) {
            peer.mine_digest = peer.mine_digest.wrapping_sub(pair_hash(gpid, ballot));
            peer.mine_version += 1;
        }
    }

    pub fn hurry(&mut self, id: PeerId) {
        self.peers[id].urgent = true;
        self.any_urgent = true;
    }

    pub fn holds(&self, id: PeerId, slot: &Slot, now: Millis, options: &Options) -> bool {
        self.granted_at(id, slot).is_some_and(|sent| sent + options.lease_ms > now)
    }

    /// When the newest heartbeat left that the peer answered with a grant.
    pub fn granted_at(&self, id: PeerId, slot: &Slot) -> Option<Millis> {
        let whole =
            self.peers[id].all_held.filter(|(version, _)| *version >= slot.since).map(|(_, sent)| sent);
        whole.max(slot.sent)
    }

    // --- as member ---

    pub fn start_granting(&mut self, id: PeerId, gpid: Gpid, ballot: Ballot, now: Millis) {
        let peer = &mut self.peers[id];
        peer.begin_sharing(now);
        let before = peer.theirs.get(&gpid).map(|g| (g.ballot, g.at));
        if let Some((old, _)) = before {
            peer.theirs_digest = peer.theirs_digest.wrapping_sub(pair_hash(gpid, old));
        }
        peer.theirs_digest = peer.theirs_digest.wrapping_add(pair_hash(gpid, ballot));
        peer.theirs.insert(gpid, Given { ballot, at: before.and_then(|(_, at)| at) });
    }

    /// When this node granted the peer anything for the partition last, or perhaps did.
    pub fn stop_granting(&mut self, id: PeerId, gpid: Gpid) -> Option<Millis> {
        let peer = &mut self.peers[id];
        let given = peer.theirs.remove(&gpid)?;
        peer.theirs_digest = peer.theirs_digest.wrapping_sub(pair_hash(gpid, given.ballot));
        given.at.max(peer.all_given)
    }

    /// As [`stop_granting`](Self::stop_granting), without stopping.
    pub fn last_given(&self, id: PeerId, gpid: Gpid) -> Option<Millis> {
        let peer = &self.peers[id];
        peer.theirs.get(&gpid)?.at.max(peer.all_given)
    }

    /// Answers a heartbeat. `ballot_of` = the ballot at which this node holds a partition.
    pub fn answer(
        &mut self,
        from: &Node,
        beat: &Heartbeat,
        now: Millis,
        options: &Options,
        ballot_of: impl Fn(Gpid) -> Option<Ballot>,
    ) -> HeartbeatAck {
        let id = self.peer(from, now);
        let peer = &mut self.peers[id];
        peer.met(beat.incarnation);
        peer.log_healthy = beat.log_healthy;
        if beat.log_healthy {
            peer.heard = now;
        }
        let count = u32::try_from(peer.theirs.len()).unwrap_or(u32::MAX);
        let grant = if options.sabotage == Sabotage::GrantAnything
            || (beat.digest == peer.theirs_digest && beat.count == count)
        {
            if count > 0 {
                peer.all_given = Some(now);
            }
            Grant::All
        } else if let Some(pairs) = &beat.pairs {
            let (mut granted, mut newer) = (Vec::new(), Vec::new());
            for &(gpid, ballot) in pairs {
                match peer.theirs.get_mut(&gpid) {
                    Some(given) if given.ballot == ballot => {
                        given.at = Some(now);
                        granted.push((gpid, ballot));
                    }
                    _ => {
                        if let Some(mine) = ballot_of(gpid).filter(|mine| *mine > ballot) {
                            newer.push((gpid, mine));
                        }
                    }
                }
            }
            if granted.len() == pairs.len() { Grant::All } else { Grant::Some { granted, newer } }
        } else if beat.count == 0 {
            Grant::All
        } else {
            Grant::SendPairs
        };
        HeartbeatAck {
            incarnation: self.incarnation,
            to_incarnation: beat.incarnation,
            seq: beat.seq,
            grant,
            log_healthy: self.log_healthy,
        }
    }

    // --- heartbeats out, acknowledgements in ---

    pub fn acknowledged(
        &mut self,
        from: &Node,
        ack: HeartbeatAck,
        now: Millis,
        options: &Options,
    ) -> Option<Acknowledged> {
        let &id = self.by_node.get(from)?;
        if ack.to_incarnation != self.incarnation {
            return None;
        }
        let peer = &mut self.peers[id];
        peer.met(ack.incarnation);
        peer.log_healthy = ack.log_healthy;
        if ack.log_healthy {
            peer.heard = now;
        }
        let index = peer.flying.iter().position(|f| f.seq == ack.seq)?;
        let flying = peer.flying.remove(index)?;
        let sent = if options.sabotage == Sabotage::CountFromReceipt { now } else { flying.sent };
        let mut result = Acknowledged { sent, ..Acknowledged::default() };
        match ack.grant {
            Grant::All => {
                if peer.all_held.is_none_or(|(_, before)| before <= sent) {
                    peer.all_held = Some((flying.version, sent));
                }
                if flying.version == peer.mine_version {
                    peer.spell_out = false;
                }
            }
            Grant::SendPairs => {
                if !peer.spell_out {
                    peer.spell_out = true;
                    self.hurry(id);
                }
            }
            Grant::Some { granted, newer } => {
                peer.spell_out = true;
                result.granted = granted;
                result.newer = newer;
            }
        }
        Some(result)
    }

    /// The regular heartbeats, when they are due. Gives the peers that are silent.
    pub fn tick(&mut self, now: Millis, options: &Options, out: &mut Vec<Effect>) -> Vec<PeerId> {
        if now.since(self.last_tick) > options.heartbeat_ms * STOOD_STILL_BEATS {
            // Not the peers were silent, but this process could not hear them: they get a new grace.
            for peer in &mut self.peers {
                peer.heard = peer.heard.max(now - options.grace_ms / 2);
            }
        }
        self.last_tick = now;
        if now < self.next_beat {
            return Vec::new();
        }
        self.next_beat = now + options.heartbeat_ms;
        for id in 0..self.peers.len() {
            if self.peers[id].shares() {
                self.beat(id, now, out);
            }
        }
        (0..self.peers.len())
            .filter(|&id| self.peers[id].shares() && self.is_silent(id, now, options))
            .collect()
    }

    /// Heartbeats that cannot wait.
    pub fn flush_urgent(&mut self, now: Millis, out: &mut Vec<Effect>) {
        if !self.any_urgent {
            return;
        }
        self.any_urgent = false;
        self.last_flush = now;
        for id in 0..self.peers.len() {
            let peer = &self.peers[id];
            if !peer.urgent {
                continue;
            }
            if peer.beat_at.is_none_or(|at| now.since(at) >= URGENT_SPACING_MS) {
                if peer.shares() {
                    self.beat(id, now, out);
                } else {
                    self.peers[id].urgent = false;
                }
            } else {
                self.any_urgent = true;
            }
        }
    }

    pub fn next_timer(&self) -> Millis {
        if self.any_urgent { self.next_beat.min(self.last_flush + URGENT_SPACING_MS) } else { self.next_beat }
    }

    fn beat(&mut self, id: PeerId, now: Millis, out: &mut Vec<Effect>) {
        let peer = &mut self.peers[id];
        peer.seq += 1;
        peer.urgent = false;
        peer.beat_at = Some(now);
        if peer.flying.len() == FLYING {
            peer.flying.pop_front();
        }
        peer.flying.push_back(Flying { seq: peer.seq, sent: now, version: peer.mine_version });
        let pairs = peer.spell_out.then(|| peer.mine.iter().map(|(&g, &b)| (g, b)).collect());
        out.push(Effect::SendHeartbeat {
            to: peer.node.clone(),
            heartbeat: Heartbeat {
                incarnation: self.incarnation,
                seq: peer.seq,
                digest: peer.mine_digest,
                count: u32::try_from(peer.mine.len()).unwrap_or(u32::MAX),
                pairs,
                log_healthy: self.log_healthy,
            },
        });
    }
}
