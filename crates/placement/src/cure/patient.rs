//! One partition that has members: what has to happen to it.

use std::collections::BTreeMap;

use pegasus_types::meta::{Proposal, ProposalRequest};
use pegasus_types::{AppId, Gpid, Millis, Node, PartitionConfig};

use super::{Memory, Options, Order, Verdict, wanted};
use crate::assign::Spread;
use crate::balance::moves::{self, Moves, Step};
use crate::balance::{Kind, Move};
use crate::health::write_minimum;
use crate::liveness::Liveness;
use crate::view::{ClusterView, Load, Loads};

/// What is counted over one round.
#[derive(Debug)]
pub(super) struct Round {
    pub cluster: Loads,
    /// By table, filled when a partition of it is assigned.
    pub tables: BTreeMap<AppId, Spread>,
    learners: BTreeMap<Node, usize>,
}

impl Round {
    pub fn new(view: &ClusterView, memory: &BTreeMap<Gpid, Memory>, moves: &Moves) -> Self {
        let mut round =
            Self { cluster: Loads::of_cluster(view), tables: BTreeMap::new(), learners: BTreeMap::new() };
        let learners = memory.values().filter_map(|m| m.learner.as_ref()).map(|(node, _)| node);
        let copied = moves.iter().filter(|what| {
            what.kind != Kind::MovePrimary
                && view.partition(what.gpid).is_some_and(|config| !config.is_member(&what.to))
        });
        learners.chain(copied.map(|what| &what.to)).for_each(|node| round.add_learner(node));
        round
    }

    fn add_learner(&mut self, node: &Node) {
        *self.learners.entry(node.clone()).or_default() += 1;
        self.cluster.add_copy(node);
    }
}

/// One partition that has members, and what is known around it.
#[derive(Debug)]
pub(super) struct Patient<'a> {
    pub now: Millis,
    pub config: &'a PartitionConfig,
    pub creating: bool,
    pub liveness: &'a Liveness,
    pub options: &'a Options,
    pub started: Millis,
}

impl Patient<'_> {
    pub fn verdict(&self, memory: &mut Memory, round: &mut Round) -> Verdict {
        let Some(primary) = &self.config.primary else { return Verdict::Healthy };
        if !self.liveness.is_alive(primary) {
            return self.replace_primary(memory, round, "its node is silent");
        }
        if self.is_missing(memory, primary) {
            return self.replace_primary(memory, round, "its node does not hold the replica");
        }
        let gone = |node: &&Node| !self.liveness.is_alive(node) || self.is_missing(memory, node);
        if let Some(gone) = self.config.secondaries.iter().find(gone) {
            return self.propose(memory, primary, Proposal::RemoveSecondary { node: gone.clone() });
        }
        if self.liveness.is_draining(primary) {
            return self.relieve_primary(memory, round, primary);
        }
        if let Some(node) = self.config.secondaries.iter().find(|node| self.liveness.is_draining(node)) {
            return self.let_go(memory, primary, node);
        }
        match self.config.member_count() {
            count if count > wanted(self.config) => self.remove_surplus(memory, round, primary),
            count if count < wanted(self.config) => self.add_member(memory, round, primary),
            _ => Verdict::Healthy,
        }
    }

    /// Nobody is ill, leaves or lacks: the partition may be moved.
    pub fn is_whole(&self, memory: &Memory) -> bool {
        let well = |node: &Node| {
            self.liveness.is_alive(node) && !self.liveness.is_draining(node) && !self.is_missing(memory, node)
        };
        self.config.primary.is_some()
            && self.config.member_count() >= wanted(self.config)
            && self.config.members().all(well)
    }

    /// The next step of a move of a partition that is whole. None: it is over, done or not.
    pub fn follow(&self, memory: &mut Memory, what: &Move) -> Option<Verdict> {
        let primary = self.config.primary.as_ref()?;
        let proposal = match moves::step(self.config, what) {
            Step::Propose(proposal) => proposal,
            Step::Done | Step::Void(_) => return None,
        };
        let to_is_well = self.liveness.is_alive(&what.to) && !self.liveness.is_draining(&what.to);
        if !to_is_well || (self.liveness.is_retired(&what.to) && !self.config.is_member(&what.to)) {
            return None;
        }
        Some(match self.propose(memory, primary, proposal) {
            Verdict::Wait(_) => Verdict::Wait(what.to_string()),
            other => other,
        })
    }

    /// The primary's node is about to end: one of the others gets the role, while the old one can still hand it
    /// over without a wait.
    fn relieve_primary(&self, memory: &mut Memory, round: &mut Round, primary: &Node) -> Verdict {
        let heirs = self.heirs(memory, round, |node| self.liveness.is_usable(node));
        // Not the one that was asked last, in vain.
        let asked = match &memory.proposed {
            Some((at, Proposal::HandOver { to }, _)) if *at == self.config.ballot => Some(to),
            _ => None,
        };
        let Some(heir) = heirs.iter().find(|heir| Some(*heir) != asked).or(heirs.first()) else {
            return Verdict::Wait(format!("{primary} is draining and nobody can take over"));
        };
        match self.propose(memory, primary, Proposal::HandOver { to: heir.clone() }) {
            Verdict::Act(order) => {
                round.cluster.add_primary(heir);
                Verdict::Act(order)
            }
            Verdict::Wait(_) => Verdict::Wait(format!("{primary} is draining: it hands over")),
            other => other,
        }
    }

    /// A secondary's node is about to end: writes should not have to find out. It stays where they need it.
    fn let_go(&self, memory: &mut Memory, primary: &Node, node: &Node) -> Verdict {
        let minimum = write_minimum(self.options.min_replica_count, self.config.max_replica_count);
        let drains_since = self.liveness.get(node).map_or(self.now, |state| state.draining_since);
        if self.config.member_count() <= minimum || self.now.since(drains_since) < self.options.let_go_ms {
            return Verdict::Wait(format!("{node} is draining"));
        }
        self.propose(memory, primary, Proposal::RemoveSecondary { node: node.clone() })
    }

    /// One member too many: one that is to leave, else one on the fullest node.
    fn remove_surplus(&self, memory: &mut Memory, round: &Round, primary: &Node) -> Verdict {
        let rank = |node: &&Node| (self.liveness.is_retired(node), round.cluster.get(node).copies);
        match self.config.secondaries.iter().max_by_key(rank) {
            Some(node) => self.propose(memory, primary, Proposal::RemoveSecondary { node: node.clone() }),
            None => Verdict::Healthy,
        }
    }

    /// Secondaries that could become primary, the best first.
    fn heirs(&self, memory: &Memory, round: &Round, may: impl Fn(&Node) -> bool) -> Vec<Node> {
        let mut heirs: Vec<Node> = self
            .config
            .secondaries
            .iter()
            .filter(|node| may(node) && !self.is_missing(memory, node))
            .cloned()
            .collect();
        heirs.sort_by_key(|node| {
            let load: Load = round.cluster.get(node);
            (!self.liveness.is_fit_for_primary(node), load.primaries, load.copies)
        });
        heirs
    }

    fn is_missing(&self, memory: &Memory, node: &Node) -> bool {
        // A node that makes the directories of a new table gets some more time.
        let patience = self.options.missing_ms * if self.creating { 4 } else { 1 };
        memory.missing.get(node).is_some_and(|(first, last)| last.since(*first) >= patience)
    }

    /// All secondaries have everything that was acknowledged: any of them will do.
    fn replace_primary(&self, memory: &mut Memory, round: &mut Round, why: &str) -> Verdict {
        let heirs = self.heirs(memory, round, |node| self.liveness.is_alive(node));
        if heirs.is_empty() {
            let members: Vec<_> = self.config.members().map(Node::as_str).collect();
            return Verdict::Stuck(format!("no member is alive: waiting for one of {}", members.join(", ")));
        }
        let heir = heirs[memory.asked as usize % heirs.len()].clone();
        match self.propose(memory, &heir, Proposal::TakeOver) {
            Verdict::Act(order) => {
                memory.asked = memory.asked.wrapping_add(1);
                // The next dead primary of this round goes to somebody else.
                round.cluster.add_primary(&heir);
                Verdict::Act(order)
            }
            Verdict::Wait(_) => Verdict::Wait(format!("primary: {why}; {heir} is to take over")),
            other => other,
        }
    }

    fn add_member(&self, memory: &mut Memory, round: &mut Round, primary: &Node) -> Verdict {
        if let Some((node, silent_since)) = memory.learner.clone() {
            let failed =
                !self.liveness.is_usable(&node) || self.now.since(silent_since) > self.options.patience_ms;
            if !failed {
                return self.teach(memory, primary, node);
            }
            memory.learner = None;
            memory.given_up.insert(node);
        }
        let candidate = match self.candidate(memory, round) {
            Ok(node) => node,
            Err(waiting) => return Verdict::Wait(waiting),
        };
        memory.learner = Some((candidate.clone(), self.now));
        round.add_learner(&candidate);
        self.teach(memory, primary, candidate)
    }

    fn teach(&self, memory: &mut Memory, primary: &Node, node: Node) -> Verdict {
        match self.propose(memory, primary, Proposal::AddSecondary { node: node.clone() }) {
            Verdict::Wait(_) => Verdict::Wait(format!("{node} is to learn from {primary}")),
            other => other,
        }
    }

    /// The node that gets the missing copy: the one that left last and is back, since it has most of the
    /// data; else, once nobody is awaited any more, the one that holds least.
    fn candidate(&self, memory: &mut Memory, round: &Round) -> Result<Node, String> {
        let free =
            |node: &Node| round.learners.get(node).copied().unwrap_or(0) < self.options.max_learners_per_node;
        let mut given_up = std::mem::take(&mut memory.given_up);
        let eligible = |node: &Node| {
            self.is_there(memory, node)
                && !self.config.is_member(node)
                && !self.options.black_list.contains(node)
        };
        if !self.liveness.usable().any(|node| eligible(node) && !given_up.contains(node)) {
            // Everybody failed once: start over.
            given_up.clear();
        }
        let fresh = |node: &Node| eligible(node) && !given_up.contains(node);
        let result = self.choose(memory, round, &fresh, &free);
        memory.given_up = given_up;
        result
    }

    fn choose(
        &self,
        memory: &Memory,
        round: &Round,
        eligible: &dyn Fn(&Node) -> bool,
        free: &dyn Fn(&Node) -> bool,
    ) -> Result<Node, String> {
        if let Some(node) = self.config.last_drops.iter().rev().find(|node| eligible(node)) {
            return if free(node) { Ok(node.clone()) } else { Err(format!("{node} learns enough already")) };
        }
        if let Some((node, since)) = self.awaited(memory) {
            let left_ms = self.options.return_ms.saturating_sub(self.now.since(since));
            return Err(format!("waiting {} s more for {node} to come back", left_ms / 1000));
        }
        let mut candidates: Vec<&Node> = self.liveness.usable().filter(|node| eligible(node)).collect();
        if candidates.is_empty() {
            return Err("no other node is there to hold a copy".into());
        }
        candidates.retain(|node| free(node));
        candidates
            .into_iter()
            .min_by_key(|node| round.cluster.get(node).copies)
            .cloned()
            .ok_or_else(|| "every other node learns enough already".into())
    }

    /// May get a replica, and has been heard since it left: a group that removed a member knows sooner that
    /// its node is gone than its missing beacons tell.
    fn is_there(&self, memory: &Memory, node: &Node) -> bool {
        let last_beacon = self.liveness.get(node).map(|state| state.last_beacon);
        self.liveness.is_usable(node) && memory.left.get(node) < last_beacon.as_ref()
    }

    /// The member that left last, while it is worth waiting for.
    fn awaited(&self, memory: &Memory) -> Option<(&Node, Millis)> {
        let minimum = write_minimum(self.options.min_replica_count, self.config.max_replica_count);
        if self.config.member_count() < minimum {
            return None;
        }
        let node = self.config.last_drops.last()?;
        if self.options.black_list.contains(node) || self.liveness.is_retired(node) {
            return None;
        }
        let since = memory.left.get(node).copied().unwrap_or(self.started);
        (self.now.since(since) < self.options.return_ms && !self.is_there(memory, node))
            .then_some((node, since))
    }

    /// The order, unless the same one went out a moment ago.
    fn propose(&self, memory: &mut Memory, to: &Node, proposal: Proposal) -> Verdict {
        let ballot = self.config.ballot;
        // One after the other may be asked to take the role, but not at the same time.
        let is_role = |what: &Proposal| matches!(what, Proposal::TakeOver | Proposal::HandOver { .. });
        let repeat_ms = match proposal {
            Proposal::HandOver { .. } => self.options.hand_over_repeat_ms,
            _ => self.options.repeat_ms,
        };
        if let Some((at, what, when)) = &memory.proposed
            && *at == ballot
            && (*what == proposal || is_role(what) && is_role(&proposal))
            && self.now.since(*when) < repeat_ms
        {
            return Verdict::Wait("proposed".into());
        }
        memory.proposed = Some((ballot, proposal.clone(), self.now));
        Verdict::Act(Order::Propose {
            to: to.clone(),
            request: ProposalRequest { gpid: self.config.gpid, ballot, proposal },
        })
    }
}
