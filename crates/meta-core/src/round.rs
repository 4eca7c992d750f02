//! The regular look at the cluster: who fell silent, what has to be cured or moved, which tables are ready.

use std::collections::BTreeMap;

use pegasus_placement::ClusterView;
use pegasus_placement::cure::{Cure, Order, Verdict};
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::liveness::Liveness;
use pegasus_types::meta::ProposalRequest;
use pegasus_types::{AppStatus, Gpid, Millis, Node};

use crate::decide::Job;

/// What is kept from one look to the next.
#[derive(Debug)]
pub struct Rounds {
    /// Something changed since the last look.
    is_touched: bool,
    notes: BTreeMap<Gpid, String>,
}

/// What came of a look.
#[derive(Debug, Default)]
pub struct Round {
    /// Nodes that count as dead from now on.
    pub silent: Vec<Node>,
    pub jobs: Vec<Job>,
    pub proposals: Vec<(Node, ProposalRequest)>,
    /// Partitions that cannot be cured, for another reason than at the last look.
    pub stuck: Vec<Gpid>,
    /// There is something new to show.
    pub is_news: bool,
}

impl Default for Rounds {
    /// A new leader has everything to look at.
    fn default() -> Self {
        Self { is_touched: true, notes: BTreeMap::new() }
    }
}

impl Rounds {
    /// Something changed: the next look is at everything.
    pub fn touch(&mut self) {
        self.is_touched = true;
    }

    /// What there is to say of partitions that are not healthy.
    pub fn notes(&self) -> &BTreeMap<Gpid, String> {
        &self.notes
    }

    pub fn look(
        &mut self,
        (now, level): (Millis, FunctionLevel),
        view: &ClusterView,
        cure: &mut Cure,
        liveness: &mut Liveness,
    ) -> Round {
        let silent = liveness.sweep(now);
        for node in &silent {
            tracing::warn!(%node, "no beacon for the grace time: the node counts as dead");
        }
        // A healthy cluster without news needs no look, until the next moves are due.
        let moves_due = cure.looks_again_at().is_some_and(|at| at <= now);
        if silent.is_empty() && !self.is_touched && self.notes.is_empty() && !moves_due {
            return Round::default();
        }
        self.is_touched = false;
        cure.options_mut().balance.spread = level.allows_balance();
        let known = view.known_nodes();
        liveness.forget_dead(|node| known.contains(node));
        let mut round = Round { is_news: !silent.is_empty(), silent, ..Round::default() };
        let before = std::mem::take(&mut self.notes);
        if level.allows_cure() {
            self.examine(&mut round, cure.examine(now, view, liveness), &before);
        }
        round.is_news |= before != self.notes;
        let ready = view
            .tables()
            .filter(|table| table.info.status == AppStatus::Creating && cure.all_hold(&table.partitions));
        round.jobs.extend(ready.map(|table| Job::Available(table.info.app_id)));
        round
    }

    fn examine(
        &mut self,
        round: &mut Round,
        verdicts: Vec<(Gpid, Verdict)>,
        before: &BTreeMap<Gpid, String>,
    ) {
        let mut assign = Vec::new();
        for (gpid, verdict) in verdicts {
            let note = match verdict {
                Verdict::Healthy => continue,
                Verdict::Act(Order::Assign { gpid, members }) => {
                    tracing::info!(%gpid, ?members, "a partition without members gets some");
                    assign.push((gpid, members));
                    "its members are being stored".to_owned()
                }
                Verdict::Act(Order::Propose { to, request }) => {
                    let note = format!("asked {to}: {:?}", request.proposal);
                    round.proposals.push((to, request));
                    note
                }
                Verdict::Wait(why) => why,
                Verdict::Stuck(why) => {
                    if before.get(&gpid) != Some(&why) {
                        tracing::error!(%gpid, why, "partition cannot be cured");
                        round.stuck.push(gpid);
                    }
                    why
                }
            };
            self.notes.insert(gpid, note);
        }
        if !assign.is_empty() {
            round.jobs.push(Job::Assign(assign));
        }
    }
}

#[cfg(test)]
mod tests {
    use pegasus_placement::cure;
    use pegasus_placement::tables::{CreateTable, Limits};
    use pegasus_placement::{Draft, Ledger};
    use pegasus_types::meta::{Beacon, ReplicaReport, ReplicaStatus};
    use pegasus_types::{Ballot, Decree};

    use super::*;

    const GPID: Gpid = Gpid::new(1, 0);
    const GRACE_MS: u64 = 10_000;

    /// What a leader knows of three nodes and a table.
    struct Office {
        rounds: Rounds,
        ledger: Ledger,
        cure: Cure,
        liveness: Liveness,
        level: FunctionLevel,
    }

    impl Office {
        fn new() -> Self {
            let mut office = Self {
                rounds: Rounds::default(),
                ledger: Ledger::default(),
                cure: Cure::new(cure::Options::default(), Millis::ZERO),
                liveness: Liveness::new(GRACE_MS),
                level: FunctionLevel::Steady,
            };
            let request = CreateTable {
                name: "t".into(),
                app_type: "pegasus".into(),
                partition_count: 2,
                replica_count: 3,
                envs: BTreeMap::new(),
                is_stateful: true,
                success_if_exist: false,
            };
            office.store(|draft| drop(draft.create(&Limits::default(), request, 9).unwrap()));
            for node in nodes() {
                let beacon = Beacon { node, incarnation: 1, wall_us: 9, log_healthy: true, draining: false };
                office.liveness.beacon(Millis::ZERO, 9, &beacon);
            }
            office
        }

        fn store(&mut self, change: impl FnOnce(&mut Draft<'_>)) {
            let mut draft = self.ledger.draft();
            change(&mut draft);
            let writes = draft.writes();
            for (old, new) in self.ledger.adopt(writes).configs {
                self.cure.changed(Millis::ZERO, &old, &new);
            }
            self.rounds.touch();
        }

        fn all_report(&mut self) {
            let report = |index| ReplicaReport {
                gpid: Gpid::new(1, index),
                ballot: Ballot(1),
                status: ReplicaStatus::Secondary,
                committed: Decree(0),
                prepared: Decree(0),
                durable: Decree(0),
                disk_tag: String::new(),
            };
            for node in nodes() {
                self.cure.reported(Millis::ZERO, self.ledger.view(), &node, &[report(0), report(1)]);
            }
            self.rounds.touch();
        }

        fn look(&mut self, ms: u64) -> Round {
            let at = (Millis(ms), self.level);
            self.rounds.look(at, self.ledger.view(), &mut self.cure, &mut self.liveness)
        }

        /// Its table is available and has its members.
        fn healthy() -> Self {
            let mut office = Self::new();
            let [Job::Assign(assign)] = &office.look(0).jobs[..] else { panic!("nothing to assign") };
            let assign = assign.clone();
            office.store(|draft| assert!(assign.iter().all(|(gpid, members)| draft.assign(*gpid, members))));
            assert!(office.look(0).jobs.is_empty(), "nobody has said that it holds its replica");
            office.all_report();
            assert!(matches!(office.look(0).jobs[..], [Job::Available(1)]));
            office.store(|draft| assert!(draft.make_available(1)));
            office.look(0);
            assert_eq!(*office.rounds.notes(), BTreeMap::new());
            office
        }
    }

    fn nodes() -> impl Iterator<Item = Node> {
        (1..=3).map(|n| Node::new(format!("n{n}:1")))
    }

    #[test]
    fn silence_is_news_and_a_healthy_cluster_has_none() {
        let mut office = Office::healthy();
        let round = office.look(GRACE_MS);
        assert!(!round.is_news && round.silent.is_empty());
        let round = office.look(GRACE_MS + 1);
        assert!(round.is_news && round.silent.len() == 3, "{round:?}");
        assert!(office.rounds.notes()[&GPID].contains("0 of 3 nodes"), "{:?}", office.rounds.notes());
        let round = office.look(GRACE_MS + 2);
        assert!(!round.is_news && round.silent.is_empty(), "told once");
    }

    #[test]
    fn what_is_not_touched_is_not_looked_at_and_what_is_stuck_is_told_once() {
        let mut office = Office::healthy();
        office.cure.freeze(GPID, &Node::new("n1:1"), Ballot(9));
        assert!(office.look(1).stuck.is_empty());
        office.rounds.touch();
        let round = office.look(2);
        assert!(round.is_news && round.stuck == [GPID], "{round:?}");
        let round = office.look(3);
        assert!(!round.is_news && round.stuck.is_empty() && !office.rounds.notes().is_empty());
    }

    #[test]
    fn below_steady_nothing_is_cured() {
        let mut office = Office::new();
        office.level = FunctionLevel::Freezed;
        assert!(office.look(0).jobs.is_empty());
        office.level = FunctionLevel::Steady;
        office.rounds.touch();
        assert!(matches!(office.look(1).jobs[..], [Job::Assign(_)]));
    }
}
