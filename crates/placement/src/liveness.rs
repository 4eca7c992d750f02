//! Which nodes send beacons. Decides where replicas are put; who may serve is between the members of each
//! group (safety-rules.md 1.6).

use std::collections::{BTreeMap, BTreeSet};

use pegasus_types::meta::Beacon;
use pegasus_types::{Millis, Node};

/// Skew of a node's wall clock that is worth a warning (safety-rules.md 5).
pub const SKEW_WARN_US: i64 = 5_000_000;
/// Skew above which a node is not chosen as primary.
pub const SKEW_NO_PRIMARY_US: i64 = 60_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Random per process start; 0 until the first beacon arrives at this leader.
    pub incarnation: u64,
    pub last_beacon: Millis,
    /// False once beacons failed for the grace time.
    pub alive: bool,
    /// At least one beacon came to this leader: before that the node is only presumed alive.
    pub heard: bool,
    /// It is about to end and said so.
    pub draining: bool,
    pub draining_since: Millis,
    pub log_healthy: bool,
    /// Its wall clock minus ours.
    pub skew_us: i64,
}

/// What a beacon told that was not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// First beacon of this node, or the first after it was declared dead.
    pub joined: bool,
    /// Another incarnation than before.
    pub restarted: bool,
    /// The clock skew rose above (true) or fell below (false) [`SKEW_WARN_US`].
    pub skew: Option<bool>,
    /// It began or ended to drain, or its log fell ill or recovered.
    pub condition: bool,
}

#[derive(Clone, Debug)]
pub struct Liveness {
    grace_ms: u64,
    nodes: BTreeMap<Node, NodeState>,
    /// To be emptied, by an operator's order; stored ([`crate::Ledger::drained`]).
    retired: BTreeSet<Node>,
}

impl Liveness {
    /// `grace_ms`: silence after which a node counts as dead (`fd_grace_seconds`).
    pub fn new(grace_ms: u64) -> Self {
        Self { grace_ms, nodes: BTreeMap::new(), retired: BTreeSet::new() }
    }

    /// A node that appears in the stored configurations. A new leader presumes it alive for one grace time.
    pub fn expect(&mut self, now: Millis, node: &Node) {
        self.nodes.entry(node.clone()).or_insert(NodeState {
            incarnation: 0,
            last_beacon: now,
            alive: true,
            heard: false,
            draining: false,
            draining_since: now,
            log_healthy: true,
            skew_us: 0,
        });
    }

    /// `wall_us`: our wall clock at arrival, microseconds since 1970.
    pub fn beacon(&mut self, now: Millis, wall_us: u64, beacon: &Beacon) -> News {
        self.expect(now, &beacon.node);
        let Some(state) = self.nodes.get_mut(&beacon.node) else { return News::default() };
        let skew_us = i64::try_from(i128::from(beacon.wall_us) - i128::from(wall_us)).unwrap_or(i64::MAX);
        let (was, is) = (skewed(state.skew_us, SKEW_WARN_US), skewed(skew_us, SKEW_WARN_US));
        let news = News {
            joined: !state.heard || !state.alive,
            restarted: state.incarnation != 0 && state.incarnation != beacon.incarnation,
            skew: (was != is).then_some(is),
            condition: (state.draining, state.log_healthy) != (beacon.draining, beacon.log_healthy),
        };
        *state = NodeState {
            incarnation: beacon.incarnation,
            last_beacon: now,
            alive: true,
            heard: true,
            draining: beacon.draining,
            draining_since: if state.draining { state.draining_since } else { now },
            log_healthy: beacon.log_healthy,
            skew_us,
        };
        news
    }

    /// We ourselves did not run for `ms`: nobody is silent who was not listened to.
    pub fn overslept(&mut self, now: Millis, ms: u64) {
        for state in self.nodes.values_mut() {
            state.last_beacon = (state.last_beacon + ms).min(now);
        }
    }

    /// Nodes that have just been silent for the grace time.
    pub fn sweep(&mut self, now: Millis) -> Vec<Node> {
        let mut dead = Vec::new();
        for (node, state) in &mut self.nodes {
            if state.alive && now.since(state.last_beacon) > self.grace_ms {
                state.alive = false;
                dead.push(node.clone());
            }
        }
        dead
    }

    /// Forgets dead nodes that no configuration names any more.
    pub fn forget_dead(&mut self, is_named: impl Fn(&Node) -> bool) {
        self.nodes.retain(|node, state| state.alive || is_named(node));
    }

    pub fn nodes(&self) -> impl Iterator<Item = (&Node, &NodeState)> {
        self.nodes.iter()
    }

    pub fn get(&self, node: &Node) -> Option<&NodeState> {
        self.nodes.get(node)
    }

    /// Beacons arrive, or the grace time of a new leader is not over.
    pub fn is_alive(&self, node: &Node) -> bool {
        self.nodes.get(node).is_some_and(|state| state.alive)
    }

    /// Beacons arrive and its log works.
    pub fn is_well(&self, node: &Node) -> bool {
        self.nodes.get(node).is_some_and(|s| s.alive && s.heard && s.log_healthy)
    }

    /// It is about to end: nothing is to be promoted or put onto it, and its roles are to go.
    pub fn is_draining(&self, node: &Node) -> bool {
        self.nodes.get(node).is_some_and(|s| s.draining)
    }

    /// It stays, and is to be emptied.
    pub fn is_retired(&self, node: &Node) -> bool {
        self.retired.contains(node)
    }

    pub fn retired(&self) -> &BTreeSet<Node> {
        &self.retired
    }

    pub fn set_retired(&mut self, nodes: BTreeSet<Node>) {
        self.retired = nodes;
    }

    /// May get new replicas.
    pub fn is_usable(&self, node: &Node) -> bool {
        self.is_well(node) && !self.is_draining(node) && !self.is_retired(node)
    }

    /// May be chosen as primary.
    pub fn is_fit_for_primary(&self, node: &Node) -> bool {
        self.is_usable(node)
            && self.nodes.get(node).is_some_and(|state| !skewed(state.skew_us, SKEW_NO_PRIMARY_US))
    }

    /// No node would remain: whoever drains has nobody to hand anything over to.
    pub fn all_draining(&self) -> bool {
        self.nodes.values().filter(|state| state.alive).all(|state| state.draining)
    }

    pub fn usable(&self) -> impl Iterator<Item = &Node> {
        self.nodes.keys().filter(|node| self.is_usable(node))
    }

    /// (alive, known): a meta that hears only a small part of its nodes is more likely cut off itself.
    pub fn count(&self) -> (usize, usize) {
        (self.nodes.values().filter(|s| s.alive).count(), self.nodes.len())
    }
}

fn skewed(skew_us: i64, limit: i64) -> bool {
    skew_us.unsigned_abs() > limit.unsigned_abs()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub fn beacon(node: Node) -> Beacon {
        Beacon { node, incarnation: 1, wall_us: 1_000_000_000, log_healthy: true, draining: false }
    }

    /// All of these nodes have just sent a beacon.
    pub fn alive(now: Millis, nodes: impl IntoIterator<Item = Node>) -> Liveness {
        let mut liveness = Liveness::new(10_000);
        for node in nodes {
            liveness.beacon(now, 1_000_000_000, &beacon(node));
        }
        liveness
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::view::testing::node;

    const WALL: u64 = 1_000_000_000;

    #[test]
    fn silence_kills_and_a_beacon_revives() {
        let mut liveness = Liveness::new(10_000);
        liveness.expect(Millis(0), &node(1));
        assert!(liveness.is_alive(&node(1)) && !liveness.is_usable(&node(1)), "presumed, not heard");
        let news = liveness.beacon(Millis(5_000), WALL, &beacon(node(2)));
        assert_eq!(news, News { joined: true, ..News::default() });
        assert_eq!(liveness.sweep(Millis(10_000)), []);
        assert_eq!(liveness.sweep(Millis(10_001)), [node(1)]);
        assert_eq!(liveness.sweep(Millis(10_002)), [], "told once");
        assert!(!liveness.is_alive(&node(1)) && liveness.is_usable(&node(2)));
        assert_eq!(liveness.count(), (1, 2));
        assert!(liveness.beacon(Millis(20_000), WALL, &beacon(node(1))).joined);
        assert!(liveness.is_usable(&node(1)));
        liveness.sweep(Millis(20_000));
        liveness.forget_dead(|_| false);
        assert_eq!(liveness.count(), (1, 1));
    }

    #[test]
    fn nobody_is_blamed_for_our_own_sleep() {
        let mut liveness = alive(Millis(1_000), [node(1), node(2)]);
        liveness.beacon(Millis(31_000), WALL, &beacon(node(2)));
        liveness.overslept(Millis(31_000), 29_000);
        assert_eq!(liveness.sweep(Millis(31_000)), []);
        assert_eq!(liveness.sweep(Millis(40_001)), [node(1)], "its silence before and after counts");
        assert_eq!(liveness.sweep(Millis(41_001)), [node(2)]);
    }

    #[test]
    fn a_beacon_carries_health_skew_and_incarnation() {
        let mut liveness = alive(Millis(0), [node(1)]);
        let ahead = |us: u64| Beacon { wall_us: WALL + us, ..beacon(node(1)) };
        assert_eq!(liveness.beacon(Millis(1), WALL, &ahead(6_000_000)).skew, Some(true));
        assert_eq!(liveness.beacon(Millis(2), WALL, &ahead(7_000_000)).skew, None);
        assert!(liveness.is_fit_for_primary(&node(1)));
        liveness.beacon(Millis(3), WALL, &ahead(61_000_000));
        assert!(liveness.is_usable(&node(1)) && !liveness.is_fit_for_primary(&node(1)));
        assert_eq!(liveness.beacon(Millis(4), WALL, &ahead(0)).skew, Some(false));

        assert!(liveness.beacon(Millis(5), WALL, &Beacon { incarnation: 2, ..beacon(node(1)) }).restarted);
        assert!(liveness.beacon(Millis(6), WALL, &Beacon { draining: true, ..beacon(node(1)) }).condition);
        assert!(liveness.is_alive(&node(1)) && !liveness.is_usable(&node(1)));
        assert!(liveness.all_draining());
        liveness.beacon(Millis(6), WALL, &beacon(node(2)));
        assert!(!liveness.all_draining());
        liveness.beacon(Millis(7), WALL, &Beacon { log_healthy: false, ..beacon(node(1)) });
        assert!(!liveness.is_usable(&node(1)));
    }
}
