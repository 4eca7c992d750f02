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
//! A node that drains or is retired ([`crate::liveness`]) gives away its roles and copies here and in the moves
//! of [`crate::balance`], which begin when everything is well.
//!
//! Groups help themselves first: a secondary claims a silent primary's role and a primary removes a silent
//! secondary within a second (safety-rules.md 1.3). The cure is for what they cannot see or do. Proposals
//! are hints: each is repeated until the stored configuration shows its effect, and may be lost or ignored.

mod balancing;
mod patient;

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::meta::{Proposal, ProposalRequest, ReplicaReport, ReplicaStatus};
use pegasus_types::{AppStatus, Ballot, Gpid, Millis, Node, PartitionConfig};

use crate::assign::{Members, Spread};
use crate::balance;
use crate::balance::moves::{Moves, Pace};
use crate::ddd::{self, Choice, Seen};
use crate::liveness::Liveness;
use crate::view::{ClusterView, FLAG_DROPPED, Table};
pub use balancing::Counts;
use patient::{Patient, Round};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A proposal without effect is sent again after this time.
    pub repeat_ms: u64,
    /// The same for a hand-over, which takes milliseconds or is not possible now.
    pub hand_over_repeat_ms: u64,
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
    /// A secondary whose node drains is removed after this time: first the roles go, and a whole cluster that
    /// stops is left as it is.
    pub let_go_ms: u64,
    /// Learners that one node is asked to become at a time (`add_secondary_max_count_for_one_node`).
    pub max_learners_per_node: usize,
    /// New partitions wait so long for the other nodes, once the first one is there: the first node must not
    /// get every primary (safety-rules.md 3.6).
    pub assign_wait_ms: u64,
    /// Below this share of alive nodes the meta proposes nothing: it is more likely cut off itself
    /// (`node_live_percentage_threshold_for_update`).
    pub min_alive_percent: usize,
    /// Nodes that get no copies of existing partitions (`meta.lb.assign_secondary_black_list`).
    pub black_list: BTreeSet<Node>,
    /// How moves are chosen; `spread` is false until the level allows it.
    pub balance: balance::Options,
    pub pace: Pace,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            repeat_ms: 3_000,
            hand_over_repeat_ms: 1_000,
            patience_ms: 60_000,
            missing_ms: 5_000,
            return_ms: 600_000,
            min_replica_count: 2,
            let_go_ms: 1_000,
            max_learners_per_node: 10,
            assign_wait_ms: 10_000,
            min_alive_percent: 50,
            black_list: BTreeSet::new(),
            balance: balance::Options { spread: false, ..balance::Options::default() },
            pace: Pace::default(),
        }
    }
}

/// What has to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// To be stored as the configuration of a partition without members ([`crate::change::first`]): all of a new
    /// one, or the one that has the best copy of an old one ([`crate::ddd`]).
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
    /// Members that reported to hold it, and on which disk.
    holders: BTreeMap<Node, String>,
    /// What nodes reported of their copies, members or not.
    seen: BTreeMap<Node, Seen>,
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
    /// Nodes that have told this leader what they hold.
    reported: BTreeSet<Node>,
    moves: Moves,
    /// Moves of the last plan, by kind, done or not.
    planned: Counts,
    counted_at: Option<Millis>,
    /// The last look found nothing to move.
    is_resting: bool,
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
            reported: BTreeSet::new(),
            moves: Moves::default(),
            planned: Counts::default(),
            counted_at: None,
            is_resting: false,
        }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What operators may change while the leader runs.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// A configuration was stored.
    pub fn changed(&mut self, now: Millis, old: &PartitionConfig, new: &PartitionConfig) {
        if new.partition_flags & FLAG_DROPPED != 0 {
            self.memory.remove(&new.gpid);
            self.frozen.remove(&new.gpid);
            self.moves.end(new.gpid);
            return;
        }
        self.moves.moved(now, new.gpid);
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
        let mut held: BTreeMap<Gpid, &ReplicaReport> = BTreeMap::new();
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
            if report.status == ReplicaStatus::Learner {
                self.moves.learns(now, report.gpid, node);
            }
            held.insert(report.gpid, report);
        }
        self.lacking.remove(node);
        self.reported.insert(node.clone());
        for (_, config) in view.live_partitions() {
            let report = held.get(&config.gpid);
            if report.is_none() && !config.is_member(node) {
                if let Some(memory) = self.memory.get_mut(&config.gpid) {
                    memory.seen.remove(node);
                }
                continue;
            }
            let memory = self.memory.entry(config.gpid).or_default();
            match report {
                Some(report) => drop(memory.seen.insert(node.clone(), Seen::of(report))),
                None => drop(memory.seen.remove(node)),
            }
            if !config.is_member(node) {
                continue;
            }
            if let Some(report) = report {
                memory.holders.insert(node.clone(), report.disk_tag.clone());
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
                    .is_some_and(|m| config.members().all(|n| m.holders.contains_key(n)))
        })
    }

    /// Should `node` report again soon? Its last report lacked something, or a new table waits for it.
    pub fn awaits_report(&self, view: &ClusterView, node: &Node) -> bool {
        let holds = |config: &PartitionConfig| {
            self.memory.get(&config.gpid).is_some_and(|memory| memory.holders.contains_key(node))
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
                liveness.is_well(member) && memory.is_some_and(|m| m.holders.contains_key(member))
            })
    }

    /// Looks at every partition.
    pub fn examine(&mut self, now: Millis, view: &ClusterView, liveness: &Liveness) -> Vec<(Gpid, Verdict)> {
        let (alive, known) = liveness.count();
        let cut_off = alive * 100 < self.options.min_alive_percent * known;
        let usable = liveness.usable().count();
        self.usable_since = if usable == 0 { None } else { self.usable_since.or(Some(now)) };
        let settled = self.usable_since.is_some_and(|since| now.since(since) >= self.options.assign_wait_ms);
        let around = Around { now, liveness, cut_off, usable, settled };
        let mut round = Round::new(view, &self.memory, &self.moves);
        let mut verdicts = Vec::new();
        // Nodes learn so much at a time: first what has one copy left.
        let mut partitions: Vec<_> = view.live_partitions().collect();
        partitions.sort_by_key(|(_, config)| config.member_count() > 1);
        for (table, config) in partitions {
            let moving = self.moves.get(config.gpid).is_some();
            let verdict = self.verdict(&around, table, config, &mut round);
            verdicts.push((config.gpid, verdict, moving));
        }
        // One that drained and has ended is dead, and nobody waits for it with this.
        let calm = !liveness.nodes().any(|(_, state)| state.alive && state.draining)
            && !view.tables().any(|table| table.info.status == AppStatus::Creating)
            && verdicts.iter().all(|(_, verdict, moving)| *moving || *verdict == Verdict::Healthy);
        self.moves.set_calm(now, calm);
        let begun = self.begin_moves(now, view, liveness);
        for (gpid, verdict, _) in &mut verdicts {
            if begun.contains(gpid)
                && let (Some(table), Some(config)) = (view.table(gpid.app_id), view.partition(*gpid))
            {
                *verdict = self.verdict(&around, table, config, &mut round);
            }
        }
        verdicts.into_iter().map(|(gpid, verdict, _)| (gpid, verdict)).collect()
    }

    fn verdict(
        &mut self,
        around: &Around<'_>,
        table: &Table,
        config: &PartitionConfig,
        round: &mut Round,
    ) -> Verdict {
        let Around { now, liveness, cut_off, usable, settled } = *around;
        let gpid = config.gpid;
        if let Some((node, ballot)) = self.frozen.get(&gpid) {
            return Verdict::Stuck(format!(
                "frozen: {node} knows ballot {ballot}, stored is {}: the metadata went back in time",
                config.ballot
            ));
        }
        if config.primary.is_none() && config.ballot != Ballot::ZERO {
            return self.revive(config, liveness);
        }
        if config.primary.is_none() && usable < wanted(config) && !settled {
            return Verdict::Wait(format!("{usable} of {} nodes are there to hold it", wanted(config)));
        }
        if config.primary.is_none() {
            return assign_first(config, table, liveness, round);
        }
        if cut_off {
            let (alive, known) = liveness.count();
            return Verdict::Wait(format!("only {alive} of {known} nodes are alive: nothing is proposed"));
        }
        let memory = self.memory.entry(gpid).or_default();
        let creating = table.info.status == AppStatus::Creating;
        let (options, started) = (&self.options, self.started);
        let patient = Patient { now, config, creating, liveness, options, started };
        if let Some(what) = self.moves.get(gpid) {
            let verdict = patient.is_whole(memory).then(|| patient.follow(memory, what)).flatten();
            match verdict {
                Some(verdict) if !self.moves.give_up(now, gpid, &self.options.pace) => return verdict,
                _ => self.moves.end(gpid),
            }
        }
        patient.verdict(memory, round)
    }

    /// Which former member has the best copy, by the rule of [`crate::ddd`].
    fn revive(&self, config: &PartitionConfig, liveness: &Liveness) -> Verdict {
        match self.choose_former(config, liveness) {
            Choice::Take(primary) => Verdict::Act(Order::Assign {
                gpid: config.gpid,
                members: Members { primary, secondaries: Vec::new() },
            }),
            Choice::Wait(why) => Verdict::Wait(why),
            Choice::Operator(why) => Verdict::Stuck(why),
        }
    }

    fn choose_former(&self, config: &PartitionConfig, liveness: &Liveness) -> Choice {
        let none = BTreeMap::new();
        let seen = self.memory.get(&config.gpid).map_or(&none, |memory| &memory.seen);
        ddd::choose(config, seen, |node| liveness.is_alive(node) && self.reported.contains(node))
    }

    /// What is known of the members, present and former, of a partition that has no living member; the newest
    /// first. None when it has one.
    pub fn diagnose(
        &self,
        now: Millis,
        config: &PartitionConfig,
        liveness: &Liveness,
    ) -> Option<ddd::Diagnosis> {
        if config.members().any(|node| liveness.is_alive(node)) || config.ballot == Ballot::ZERO {
            return None;
        }
        let memory = self.memory.get(&config.gpid);
        let former = |node: &Node| ddd::Former {
            node: node.clone(),
            left_ms_ago: memory.and_then(|m| m.left.get(node)).map(|left| now.since(*left)),
            alive: liveness.is_alive(node),
            reported: self.reported.contains(node),
            seen: memory.and_then(|m| m.seen.get(node)).copied(),
        };
        let reason = match self.choose_former(config, liveness) {
            _ if config.primary.is_some() => "no member is alive".to_owned(),
            Choice::Take(node) => format!("{node} is taken"),
            Choice::Wait(why) | Choice::Operator(why) => why,
        };
        let former = config.members().chain(config.last_drops.iter().rev()).map(former).collect();
        Some(ddd::Diagnosis { gpid: config.gpid, former, reason })
    }
}

/// What holds for all partitions of one round.
#[derive(Clone, Copy)]
struct Around<'a> {
    now: Millis,
    liveness: &'a Liveness,
    cut_off: bool,
    usable: usize,
    settled: bool,
}

fn wanted(config: &PartitionConfig) -> usize {
    usize::try_from(config.max_replica_count).unwrap_or(1).max(1)
}

fn assign_first(config: &PartitionConfig, table: &Table, liveness: &Liveness, round: &mut Round) -> Verdict {
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

#[cfg(test)]
#[path = "cure_tests.rs"]
mod tests;
