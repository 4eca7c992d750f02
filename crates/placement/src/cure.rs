//! What has to happen to each partition so that it becomes healthy again.
//!
//! ```text
//!  nobody holds it ------------------> Assign all members at once (first configuration)
//!  primary's node silent or empty ---> ask the best secondary to take over
//!  a secondary's node silent/empty --> ask the primary to remove it
//!  too many members -----------------> ask the primary to remove one
//!  too few members ------------------> ask the primary to teach one more node
//! ```
//!
//! Groups help themselves first: a secondary claims a silent primary's role and a primary removes a silent
//! secondary within a second (safety-rules.md 1.3). The cure is for what they cannot see or do. Proposals
//! are hints: each is repeated until the stored configuration shows its effect, and may be lost or ignored.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::meta::{Proposal, ProposalRequest, ReplicaReport, ReplicaStatus};
use pegasus_types::{AppId, AppStatus, Ballot, Gpid, Millis, Node, PartitionConfig};

use crate::assign::{Members, Spread};
use crate::health::write_minimum;
use crate::liveness::Liveness;
use crate::view::{ClusterView, FLAG_DROPPED, Load, Loads};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A proposal without effect is sent again after this time.
    pub repeat_ms: u64,
    /// A node that was asked to learn and does not report so for this time is given up for another one.
    pub patience_ms: u64,
    /// A member whose node reports without its replica, and again after this time, is treated as silent. One
    /// report proves nothing: a process that has just started may still be opening it.
    pub missing_ms: u64,
    /// How long a member that left is awaited before another node gets its place
    /// (`replica_assign_delay_ms_for_dropouts`), while writes work.
    pub return_ms: u64,
    /// `mutation_2pc_min_replica_count`.
    pub min_replica_count: i32,
    /// Learners that one node is asked to become at a time (`add_secondary_max_count_for_one_node`).
    pub max_learners_per_node: usize,
    /// New partitions wait so long for the other nodes, once the first one is there: the first node must not
    /// get every primary (safety-rules.md 3.6).
    pub assign_wait_ms: u64,
    /// Below this share of alive nodes the meta proposes nothing: it is more likely cut off itself
    /// (`node_live_percentage_threshold_for_update`).
    pub min_alive_percent: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            repeat_ms: 3_000,
            patience_ms: 60_000,
            missing_ms: 5_000,
            return_ms: 600_000,
            min_replica_count: 2,
            max_learners_per_node: 10,
            assign_wait_ms: 10_000,
            min_alive_percent: 50,
        }
    }
}

/// What has to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To be stored as the partition's first configuration ([`crate::change::first`]).
    Assign {
        gpid: Gpid,
        members: Members,
    },
    Propose {
        to: Node,
        request: ProposalRequest,
    },
}

/// What is to be said of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Healthy,
    Act(Order),
    /// Something is under way, or somebody is awaited.
    Wait(String),
    /// Only an operator, or the return of a node, can help.
    Stuck(String),
}

/// What is remembered of one partition between rounds. Lost with the leader: everything here can be learned
/// again or only delays.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// The last proposal: at which ballot, what, when.
    proposed: Option<(Ballot, Proposal, Millis)>,
    /// The node that is to become a member, and since when it shows no sign of learning.
    learner: Option<(Node, Millis)>,
    /// Nodes that were given up as learners.
    given_up: BTreeSet<Node>,
    /// When members left, as far as this leader saw it.
    left: BTreeMap<Node, Millis>,
    /// Members that reported without this replica: at first and at last.
    missing: BTreeMap<Node, (Millis, Millis)>,
    /// Who reported to hold it.
    holders: BTreeSet<Node>,
    /// Heirs that were asked to take over without effect, so that another one is tried next.
    asked: u32,
}

#[derive(Clone, Debug)]
pub struct Cure {
    options: Options,
    memory: BTreeMap<Gpid, Memory>,
    frozen: BTreeMap<Gpid, (Node, Ballot)>,
    /// Nodes whose last report lacked something that they should hold.
    lacking: BTreeSet<Node>,
    /// A leader knows of nobody's leaving before this.
    started: Millis,
    /// Since when some node may get replicas.
    usable_since: Option<Millis>,
}

impl Cure {
    pub fn new(options: Options, now: Millis) -> Self {
        Self {
            options,
            memory: BTreeMap::new(),
            frozen: BTreeMap::new(),
            lacking: BTreeSet::new(),
            started: now,
            usable_since: None,
        }
    }

    /// A configuration was stored.
    pub fn changed(&mut self, now: Millis, old: &PartitionConfig, new: &PartitionConfig) {
        if new.partition_flags & FLAG_DROPPED != 0 {
            self.memory.remove(&new.gpid);
            self.frozen.remove(&new.gpid);
            return;
        }
        let memory = self.memory.entry(new.gpid).or_default();
        for node in old.members().filter(|node| !new.is_member(node)) {
            memory.left.insert(node.clone(), now);
            memory.holders.remove(node);
            memory.missing.remove(node);
        }
        for node in new.members() {
            memory.left.remove(node);
            memory.given_up.remove(node);
            if memory.learner.as_ref().is_some_and(|(learner, _)| learner == node) {
                memory.learner = None;
            }
        }
        if old.primary != new.primary {
            memory.asked = 0;
        }
    }

    /// A node's full report. Returns the partitions that it knows at a higher ballot than stored, which are
    /// frozen from now on (safety-rules.md 4.4).
    pub fn reported(
        &mut self,
        now: Millis,
        view: &ClusterView,
        node: &Node,
        reports: &[ReplicaReport],
    ) -> Vec<(Gpid, Ballot)> {
        let mut newly_frozen = Vec::new();
        let mut held = BTreeSet::new();
        for report in reports {
            let Some(config) = view.partition(report.gpid) else { continue };
            if report.ballot > config.ballot && self.freeze(report.gpid, node, report.ballot) {
                newly_frozen.push((report.gpid, report.ballot));
            }
            let memory = self.memory.entry(report.gpid).or_default();
            if report.status == ReplicaStatus::Error {
                continue;
            }
            if let Some((learner, silent_since)) = &mut memory.learner
                && learner == node
                && report.status == ReplicaStatus::Learner
            {
                *silent_since = now;
            }
            held.insert(report.gpid);
        }
        self.lacking.remove(node);
        for (_, config) in view.live_partitions().filter(|(_, config)| config.is_member(node)) {
            let memory = self.memory.entry(config.gpid).or_default();
            if held.contains(&config.gpid) {
                memory.holders.insert(node.clone());
                memory.missing.remove(node);
            } else {
                memory.holders.remove(node);
                memory.missing.entry(node.clone()).or_insert((now, now)).1 = now;
                self.lacking.insert(node.clone());
            }
        }
        newly_frozen
    }

    /// A node knows this partition at a higher ballot than stored. True when that is new.
    pub fn freeze(&mut self, gpid: Gpid, node: &Node, ballot: Ballot) -> bool {
        self.frozen.insert(gpid, (node.clone(), ballot)).is_none()
    }

    pub fn frozen(&self) -> impl Iterator<Item = (&Gpid, &(Node, Ballot))> {
        self.frozen.iter()
    }

    pub fn is_frozen(&self, gpid: Gpid) -> bool {
        self.frozen.contains_key(&gpid)
    }

    /// Every member of every partition of a table has reported that it holds its replica.
    pub fn all_hold(&self, partitions: &[std::sync::Arc<PartitionConfig>]) -> bool {
        partitions.iter().all(|config| {
            config.primary.is_some()
                && self
                    .memory
                    .get(&config.gpid)
                    .is_some_and(|m| config.members().all(|n| m.holders.contains(n)))
        })
    }

    /// Should `node` report again soon? Its last report lacked something, or a new table waits for it.
    pub fn awaits_report(&self, view: &ClusterView, node: &Node) -> bool {
        let holds = |config: &PartitionConfig| {
            self.memory.get(&config.gpid).is_some_and(|memory| memory.holders.contains(node))
        };
        let mut creating = view.tables().filter(|table| table.info.status == AppStatus::Creating);
        self.lacking.contains(node)
            || creating.any(|table| table.partitions.iter().any(|c| c.is_member(node) && !holds(c)))
    }

    /// A replica that its node reported may be put away: the group is whole without it and does not want it
    /// back. Never decided for a partition that is frozen or a node that is ahead.
    pub fn is_surplus(
        &self,
        config: &PartitionConfig,
        liveness: &Liveness,
        report: &ReplicaReport,
        node: &Node,
    ) -> bool {
        let memory = self.memory.get(&config.gpid);
        !config.is_member(node)
            && !self.is_frozen(config.gpid)
            && report.ballot <= config.ballot
            && report.status != ReplicaStatus::Learner
            && memory.is_none_or(|m| m.learner.as_ref().is_none_or(|(learner, _)| learner != node))
            && config.member_count() >= wanted(config)
            && config.members().all(|member| {
                liveness.is_usable(member) && memory.is_some_and(|m| m.holders.contains(member))
            })
    }

    /// Looks at every partition. Returns what to do now; [`Cure::examine`] tells the rest.
    pub fn round(&mut self, now: Millis, view: &ClusterView, liveness: &Liveness) -> Vec<Order> {
        self.examine(now, view, liveness)
            .into_iter()
            .filter_map(|(_, verdict)| match verdict {
                Verdict::Act(order) => Some(order),
                Verdict::Healthy | Verdict::Wait(_) | Verdict::Stuck(_) => None,
            })
            .collect()
    }

    /// Like [`Cure::round`], with the verdict on every partition.
    pub fn examine(&mut self, now: Millis, view: &ClusterView, liveness: &Liveness) -> Vec<(Gpid, Verdict)> {
        let (alive, known) = liveness.count();
        let cut_off = alive * 100 < self.options.min_alive_percent * known;
        let usable = liveness.usable().count();
        self.usable_since = if usable == 0 { None } else { self.usable_since.or(Some(now)) };
        let settled = self.usable_since.is_some_and(|since| now.since(since) >= self.options.assign_wait_ms);
        let mut round = Round::new(view, &self.memory);
        let mut verdicts = Vec::new();
        for (table, config) in view.live_partitions() {
            let verdict = if let Some((node, ballot)) = self.frozen.get(&config.gpid) {
                Verdict::Stuck(format!(
                    "frozen: {node} knows ballot {ballot}, stored is {}: the metadata went back in time",
                    config.ballot
                ))
            } else if config.primary.is_none() && usable < wanted(config) && !settled {
                Verdict::Wait(format!("{usable} of {} nodes are there to hold it", wanted(config)))
            } else if config.primary.is_none() {
                assign_first(config, table, liveness, &mut round)
            } else if cut_off {
                Verdict::Wait(format!("only {alive} of {known} nodes are alive: nothing is proposed"))
            } else {
                let memory = self.memory.entry(config.gpid).or_default();
                let creating = table.info.status == AppStatus::Creating;
                let patient = Patient {
                    now,
                    config,
                    creating,
                    liveness,
                    options: &self.options,
                    started: self.started,
                };
                patient.verdict(memory, &mut round)
            };
            verdicts.push((config.gpid, verdict));
        }
        verdicts
    }
}

/// What is counted over one round.
struct Round {
    cluster: Loads,
    /// By table, filled when a partition of it is assigned.
    tables: BTreeMap<AppId, Spread>,
    learners: BTreeMap<Node, usize>,
}

impl Round {
    fn new(view: &ClusterView, memory: &BTreeMap<Gpid, Memory>) -> Self {
        let mut cluster = Loads::of_cluster(view);
        let mut learners: BTreeMap<Node, usize> = BTreeMap::new();
        for (node, _) in memory.values().filter_map(|m| m.learner.as_ref()) {
            *learners.entry(node.clone()).or_default() += 1;
            cluster.add_copy(node);
        }
        Self { cluster, tables: BTreeMap::new(), learners }
    }
}

fn wanted(config: &PartitionConfig) -> usize {
    usize::try_from(config.max_replica_count).unwrap_or(1).max(1)
}

fn assign_first(
    config: &PartitionConfig,
    table: &crate::view::Table,
    liveness: &Liveness,
    round: &mut Round,
) -> Verdict {
    if config.ballot != Ballot::ZERO {
        return Verdict::Stuck("it had members once and has none: an operator must choose".into());
    }
    let nodes: Vec<Node> = liveness.usable().cloned().collect();
    let spread = round
        .tables
        .entry(config.gpid.app_id)
        .or_insert_with(|| Spread::of(table.partitions.iter().map(|config| &**config)));
    let fit = |node: &Node| liveness.is_fit_for_primary(node);
    match spread.place(wanted(config), &nodes, fit, &mut round.cluster) {
        Some(members) => Verdict::Act(Order::Assign { gpid: config.gpid, members }),
        None => Verdict::Wait("no node is there to hold it".into()),
    }
}

/// One partition that has members, and what is known around it.
struct Patient<'a> {
    now: Millis,
    config: &'a PartitionConfig,
    creating: bool,
    liveness: &'a Liveness,
    options: &'a Options,
    started: Millis,
}

impl Patient<'_> {
    fn verdict(&self, memory: &mut Memory, round: &mut Round) -> Verdict {
        let Some(primary) = &self.config.primary else { return Verdict::Healthy };
        if !self.liveness.is_alive(primary) {
            return self.replace_primary(memory, round, "its node is silent");
        }
        if self.is_missing(memory, primary) {
            return self.replace_primary(memory, round, "its node does not hold the replica");
        }
        if let Some(gone) = self
            .config
            .secondaries
            .iter()
            .find(|node| !self.liveness.is_alive(node) || self.is_missing(memory, node))
        {
            return self.propose(memory, primary, Proposal::RemoveSecondary { node: gone.clone() });
        }
        match self.config.member_count() {
            count if count > wanted(self.config) => {
                let load = |node: &&Node| round.cluster.get(node).copies;
                match self.config.secondaries.iter().max_by_key(load) {
                    Some(node) => {
                        self.propose(memory, primary, Proposal::RemoveSecondary { node: node.clone() })
                    }
                    None => Verdict::Healthy,
                }
            }
            count if count < wanted(self.config) => self.add_member(memory, round, primary),
            _ => Verdict::Healthy,
        }
    }

    fn is_missing(&self, memory: &Memory, node: &Node) -> bool {
        // A node that makes the directories of a new table gets some more time.
        let patience = self.options.missing_ms * if self.creating { 4 } else { 1 };
        memory.missing.get(node).is_some_and(|(first, last)| last.since(*first) >= patience)
    }

    /// All secondaries have everything that was acknowledged: any of them will do.
    fn replace_primary(&self, memory: &mut Memory, round: &mut Round, why: &str) -> Verdict {
        let mut heirs: Vec<&Node> = self
            .config
            .secondaries
            .iter()
            .filter(|node| self.liveness.is_alive(node) && !self.is_missing(memory, node))
            .collect();
        heirs.sort_by_key(|node| {
            let load: Load = round.cluster.get(node);
            (!self.liveness.is_fit_for_primary(node), load.primaries, load.copies)
        });
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
        *round.learners.entry(candidate.clone()).or_default() += 1;
        round.cluster.add_copy(&candidate);
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
        let eligible = |node: &Node| self.is_there(memory, node) && !self.config.is_member(node);
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
        let since = memory.left.get(node).copied().unwrap_or(self.started);
        (self.now.since(since) < self.options.return_ms && !self.is_there(memory, node))
            .then_some((node, since))
    }

    /// The order, unless the same one went out a moment ago.
    fn propose(&self, memory: &mut Memory, to: &Node, proposal: Proposal) -> Verdict {
        let ballot = self.config.ballot;
        if let Some((at, what, when)) = &memory.proposed
            && *at == ballot
            && (*what == proposal || proposal == Proposal::TakeOver)
            && self.now.since(*when) < self.options.repeat_ms
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

#[cfg(test)]
#[path = "cure_tests.rs"]
mod tests;
