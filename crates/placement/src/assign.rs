//! Where the partitions of a new table go: primaries and copies spread evenly, over the table first, then
//! over the cluster.

use std::collections::BTreeMap;

use pegasus_types::{Node, PartitionConfig};

use crate::view::{Load, Loads};

/// Members of one new partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    pub primary: Node,
    pub secondaries: Vec<Node>,
}

/// Places the partitions of one table, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    table: Loads,
    /// How often a secondary stands beside a primary: when a node dies its primaries should go to many.
    pairs: BTreeMap<(Node, Node), u32>,
}

impl Spread {
    /// Starts from what the table has already.
    pub fn of<'a>(configs: impl Iterator<Item = &'a PartitionConfig> + Clone) -> Self {
        let mut pairs: BTreeMap<(Node, Node), u32> = BTreeMap::new();
        for config in configs.clone() {
            let primary = config.primary.iter().cycle();
            for (primary, secondary) in primary.zip(&config.secondaries) {
                *pairs.entry((primary.clone(), secondary.clone())).or_default() += 1;
            }
        }
        Self { table: Loads::of(configs), pairs }
    }

    /// Members for one more partition. With fewer nodes than `replica_count` every node gets a copy; None
    /// without nodes. Only nodes that are fit become primaries, unless there is none. `cluster` is what
    /// nodes hold of everything, and is brought up to date.
    pub fn place(
        &mut self,
        replica_count: usize,
        nodes: &[Node],
        fit_for_primary: impl Fn(&Node) -> bool,
        cluster: &mut Loads,
    ) -> Option<Members> {
        let primary_rank = |node: &&Node| {
            let (t, c): (Load, Load) = (self.table.get(node), cluster.get(node));
            (!fit_for_primary(node), t.primaries, t.copies, c.primaries, c.copies)
        };
        let primary = nodes.iter().min_by_key(primary_rank)?.clone();
        self.table.add_primary(&primary);
        cluster.add_primary(&primary);
        let mut secondaries: Vec<Node> = Vec::new();
        while secondaries.len() + 1 < replica_count {
            let rank = |node: &&Node| {
                let pair = self.pairs.get(&(primary.clone(), (*node).clone())).copied().unwrap_or(0);
                let c = cluster.get(node);
                (self.table.get(node).copies, pair, c.copies, c.primaries)
            };
            let candidates = nodes.iter().filter(|n| **n != primary && !secondaries.contains(n));
            let Some(node) = candidates.min_by_key(rank).cloned() else { break };
            self.table.add_copy(&node);
            cluster.add_copy(&node);
            *self.pairs.entry((primary.clone(), node.clone())).or_default() += 1;
            secondaries.push(node);
        }
        Some(Members { primary, secondaries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::node;

    fn place(partitions: usize, replicas: usize, nodes: usize) -> (Vec<Members>, Loads) {
        let nodes: Vec<_> = (1..=nodes).map(node).collect();
        let (mut spread, mut cluster) = (Spread::default(), Loads::default());
        let place = |_| spread.place(replicas, &nodes, |_| true, &mut cluster);
        let placed: Vec<_> = (0..partitions).filter_map(place).collect();
        assert_eq!(spread.table, cluster);
        (placed, cluster)
    }

    #[test]
    fn primaries_and_copies_differ_by_one_at_most() {
        for (partitions, replicas, nodes) in
            [(8, 3, 3), (8, 3, 4), (8, 3, 5), (64, 3, 7), (4, 1, 3), (16, 2, 5), (256, 3, 10), (32, 5, 6)]
        {
            let (placed, loads) = place(partitions, replicas, nodes);
            assert_eq!(placed.len(), partitions);
            for members in &placed {
                let mut all = members.secondaries.clone();
                all.push(members.primary.clone());
                all.sort();
                all.dedup();
                assert_eq!(all.len(), replicas);
            }
            let spread_of = |f: fn(Load) -> u32| {
                let counts: Vec<_> = (1..=nodes).map(|n| f(loads.get(&node(n)))).collect();
                counts.iter().max().unwrap() - counts.iter().min().unwrap()
            };
            assert!(spread_of(|l| l.primaries) <= 1, "{partitions} x {replicas} on {nodes}: {loads:?}");
            assert!(spread_of(|l| l.copies) <= 1, "{partitions} x {replicas} on {nodes}: {loads:?}");
        }
    }

    #[test]
    fn a_dead_primary_is_replaced_by_many() {
        let (placed, _) = place(60, 3, 6);
        let mut heirs: BTreeMap<&Node, usize> = BTreeMap::new();
        for members in placed.iter().filter(|m| m.primary == node(1)) {
            for secondary in &members.secondaries {
                *heirs.entry(secondary).or_default() += 1;
            }
        }
        assert_eq!(heirs.len(), 5, "{heirs:?}");
        assert!(heirs.values().all(|n| (3..=5).contains(n)), "{heirs:?}");
    }

    #[test]
    fn too_few_nodes_and_unfit_ones() {
        assert_eq!(place(4, 3, 0).0, []);
        let (placed, _) = place(2, 3, 1);
        assert!(placed.iter().all(|m| m.primary == node(1) && m.secondaries.is_empty()));
        let nodes: Vec<_> = (1..=3).map(node).collect();
        let (mut spread, mut cluster) = (Spread::default(), Loads::default());
        for _ in 0..6 {
            let members = spread.place(3, &nodes, |n| *n != node(2), &mut cluster).unwrap();
            assert!(members.primary != node(2) && members.secondaries.len() == 2);
        }
    }

    #[test]
    fn the_cluster_breaks_ties() {
        let nodes: Vec<_> = (1..=3).map(node).collect();
        let mut cluster = Loads::default();
        cluster.add_primary(&node(1));
        cluster.add_primary(&node(2));
        let placed = Spread::default().place(1, &nodes, |_| true, &mut cluster);
        assert_eq!(placed.unwrap().primary, node(3));
    }
}
