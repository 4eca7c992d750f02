use std::sync::Arc;

use pegasus_types::{Ballot, PartitionConfig};

use super::moves::{Step, step};
use super::*;
use crate::view::Table;
use crate::view::testing::*;

/// Random numbers that are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn nodes(list: impl IntoIterator<Item = usize>) -> BTreeSet<Node> {
    list.into_iter().map(node).collect()
}

fn no_disk<'a>(_: Gpid, _: &Node) -> Option<&'a str> {
    None
}

fn around(open: impl IntoIterator<Item = usize>, leaving: impl IntoIterator<Item = usize>) -> Nodes {
    Nodes { open: nodes(open), leaving: nodes(leaving) }
}

/// (id, partitions, replicas) on random ones of `holders`.
fn random_view(dice: &mut Dice, tables: &[(i32, i32, usize)], holders: &[usize]) -> ClusterView {
    let mut view = ClusterView::default();
    for &(app_id, partitions, replicas) in tables {
        let config = |index| {
            let mut free = holders.to_vec();
            let mut members: Vec<Node> =
                (0..replicas).map(|_| node(free.swap_remove(dice.below(free.len())))).collect();
            let primary = members.pop();
            let wanted = i32::try_from(replicas).unwrap();
            Arc::new(PartitionConfig {
                ballot: Ballot(1),
                primary,
                secondaries: members,
                ..PartitionConfig::unassigned(Gpid::new(app_id, index), wanted)
            })
        };
        let partitions: Vec<_> = (0..partitions).map(config).collect();
        let name = format!("t{app_id}");
        view.put_table(Table { info: info(app_id, &name, partitions.len() as i32), partitions });
    }
    view
}

/// Does a plan as the primaries would, one step after the other, and checks each configuration on the way.
fn carry_out(view: &mut ClusterView, plan: &Plan) {
    for what in &plan.moves {
        for steps in 0.. {
            assert!(steps < 5, "{what} does not end");
            let mut config = (**view.partition(what.gpid).unwrap()).clone();
            let wanted = usize::try_from(config.max_replica_count).unwrap();
            match step(&config, what) {
                Step::Done => break,
                Step::Void(why) => panic!("{what}: {why}"),
                Step::Propose(pegasus_types::meta::Proposal::AddSecondary { node }) => {
                    config.secondaries.push(node);
                }
                Step::Propose(pegasus_types::meta::Proposal::RemoveSecondary { node }) => {
                    config.secondaries.retain(|n| *n != node);
                }
                Step::Propose(pegasus_types::meta::Proposal::HandOver { to }) => {
                    config.secondaries.retain(|n| *n != to);
                    config.secondaries.extend(config.primary.replace(to));
                }
                Step::Propose(other) => panic!("{what}: {other:?}"),
            }
            let members: BTreeSet<_> = config.members().collect();
            assert_eq!(members.len(), config.member_count(), "{what}: a node twice");
            assert!((wanted..=wanted + 1).contains(&members.len()), "{what}: {config:?}");
            view.put_partition(config);
        }
    }
}

/// Largest difference of (primaries, copies) between these nodes.
fn skew<'a>(configs: impl Iterator<Item = &'a PartitionConfig>, among: &BTreeSet<Node>) -> (u32, u32) {
    let loads = Loads::of(configs);
    let spread = |count: fn(crate::view::Load) -> u32| {
        let counts = || among.iter().map(|node| count(loads.get(node)));
        counts().max().unwrap_or(0) - counts().min().unwrap_or(0)
    };
    (spread(|load| load.primaries), spread(|load| load.copies))
}

fn assert_even(view: &ClusterView, among: &BTreeSet<Node>, primaries_over_all: bool, what: &str) {
    for table in view.tables() {
        let (primaries, copies) = skew(table.partitions.iter().map(|config| &**config), among);
        assert!(primaries <= 1 && copies <= 1, "{what}: table {}: {primaries} {copies}", table.info.app_id);
    }
    let (primaries, copies) = skew(view.live_partitions().map(|(_, config)| &**config), among);
    assert!(copies <= 1 && (primaries <= 1 || !primaries_over_all), "{what}: all: {primaries} {copies}");
}

#[test]
fn any_cluster_becomes_even_and_leaving_nodes_empty() {
    for seed in 1..=300 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let replicas = 1 + dice.below(4);
        let holders = replicas + dice.below(6);
        let leaving = dice.below(holders - replicas + 1);
        let joined = dice.below(4);
        let mixed = dice.below(3) == 0;
        let tables: Vec<_> = (1..=1 + dice.below(5))
            .map(|id| {
                let replicas = if mixed { 1 + dice.below(replicas) } else { replicas };
                (id as i32, 1 + dice.below(40) as i32, replicas)
            })
            .collect();
        let mut view = random_view(&mut dice, &tables, &(1..=holders).collect::<Vec<_>>());
        let around = around(leaving + 1..=holders + joined, 1..=leaving);
        let what = format!("seed {seed}: {tables:?} on {holders}, {leaving} leave, {joined} join");
        let plan = plan(&view, &around, &no_disk, &Options::default());
        // The beginning of a plan is the plan's beginning.
        let enough = 1 + dice.below(9);
        let begin = super::plan(&view, &around, &no_disk, &Options { enough, ..Options::default() });
        assert_eq!(begin.moves.get(..enough), plan.moves.get(..enough), "{what}");
        carry_out(&mut view, &plan);
        assert_eq!((plan.unplaced, &plan.after), (0, &Loads::of_cluster(&view)), "{what}");
        for node in &around.leaving {
            assert_eq!(plan.after.get(node).copies, 0, "{what}");
        }
        assert_even(&view, &around.open, !mixed, &what);
        let again = super::plan(&view, &around, &no_disk, &Options::default());
        assert_eq!(again.moves, [], "{what}: nothing is left to do");
    }
}

#[test]
fn a_new_node_takes_its_share_and_little_else_moves() {
    let mut dice = Dice(7);
    let mut view = random_view(&mut dice, &[(1, 8, 3), (2, 16, 3)], &[1, 2, 3]);
    let first = plan(&view, &around(1..=3, []), &no_disk, &Options::default());
    assert!(first.moves.iter().all(|m| m.kind == Kind::MovePrimary), "{:?}", first.moves);
    carry_out(&mut view, &first);
    let joined = plan(&view, &around(1..=4, []), &no_disk, &Options::default());
    let copied = joined.count(Kind::CopySecondary) + joined.count(Kind::CopyPrimary);
    assert_eq!((copied, joined.after.get(&node(4)).copies), (18, 18), "72 copies, a fourth moves");
    assert_eq!(joined.after.get(&node(4)).primaries, 6);
    assert!(
        joined.moves.iter().all(|m| m.kind == Kind::MovePrimary || m.to == node(4)),
        "{:?}",
        joined.moves
    );
}

#[test]
fn only_roles_and_only_what_must() {
    let mut dice = Dice(9);
    let view = random_view(&mut dice, &[(1, 16, 2), (2, 8, 2)], &[1, 2, 3]);
    let around = around(2..=4, [1]);
    let roles_only = plan(&view, &around, &no_disk, &Options { copies: false, ..Options::default() });
    let off = |m: &Move| m.kind == Kind::MovePrimary || m.from == node(1);
    assert!(roles_only.moves.iter().all(off), "only the leaving node's copies move");
    assert_eq!(roles_only.after.get(&node(1)).copies, 0);
    let emptied = plan(&view, &around, &no_disk, &Options { spread: false, ..Options::default() });
    assert!(emptied.moves.iter().all(|m| m.from == node(1)), "{:?}", emptied.moves);
    let spared = Options { ignored: BTreeSet::from([1]), ..Options::default() };
    let spared = plan(&view, &around, &no_disk, &spared);
    assert!(spared.moves.iter().all(|m| m.gpid.app_id == 2 || m.from == node(1)), "{:?}", spared.moves);
}

#[test]
fn where_nobody_else_is_copies_stay() {
    let mut dice = Dice(3);
    let view = random_view(&mut dice, &[(1, 4, 3)], &[1, 2, 3]);
    let plan = plan(&view, &around(2..=3, [1]), &no_disk, &Options::default());
    assert_eq!((plan.unplaced, plan.after.get(&node(1)).copies), (4, 4));
    assert_eq!(plan.after.get(&node(1)).primaries, 0, "roles are handed over all the same");
}

#[test]
fn the_fullest_disk_gives_first() {
    let view = view_of((0..6).map(|index| config(index, 1, 2, &[1])).collect());
    // Of node 1: four copies on one disk, two on the other.
    let disk =
        |gpid: Gpid, node_: &Node| (*node_ == node(1)).then_some(if gpid.index < 2 { "a" } else { "b" });
    let plan = plan(&view, &around([1, 2, 3], []), &disk, &Options::default());
    let copied = plan.moves.iter().filter(|m| m.kind != Kind::MovePrimary && m.from == node(1));
    let given: Vec<_> = copied.collect();
    assert_eq!(given.len(), 2, "{:?}", plan.moves);
    assert!(given.iter().all(|m| m.gpid.index >= 2), "{given:?}");
}
