//! | what a partition can be (replication.md 6.6) | test |
//! |---|---|
//! | healthy; a secondary dead; the primary dead with living secondaries; one member left | `one_partition` |
//! | a proposal without effect: repeated, to another heir | `proposals_repeat_and_heirs_alternate` |
//! | new, with enough, few or no nodes | `new_partitions_get_all_members_at_once_and_evenly`, `.._wait_for_enough_nodes_..` |
//! | no member alive; no members at all | `all_dead_is_reported_never_forced`, `ddd::tests::every_branch`, `.._is_revived_by_the_rule` |
//! | too few: below the minimum, nobody left, the last one back, awaited, awaited long enough | `one_partition`, `a_member_that_left_..` |
//! | too few: the one that left is black-listed or retired | `the_black_list_gets_no_copies` |
//! | too few, in many partitions at once | `learners_are_limited_per_node`, `the_last_copy_is_doubled_first` |
//! | a learner without progress | `a_learner_that_shows_no_sign_is_given_up` |
//! | too many | `one_partition`, `a_surplus_member_goes_from_where_it_should` |
//! | a member lost its replica | `a_replica_that_its_node_lost_counts_as_dead` |
//! | a member drains, returns | `a_draining_node_..`, `a_drained_node_..` |
//! | metadata back in time; the meta cut off | `metadata_that_went_back_freezes`, `a_meta_that_hears_few_proposes_nothing` |
//! | moved | `a_new_node_gets_its_share_..`, `nothing_moves_while_something_is_ill_..`, `operators_moves` |

use super::*;
use crate::change;
use crate::liveness::testing::{alive, beacon};
use crate::view::testing::*;
use crate::view::{Load, Loads};
use pegasus_types::meta::ChangeRequest;
use pegasus_types::{ChangeKind, Decree};

const NOW: Millis = Millis(1_000_000);

fn cure() -> Cure {
    Cure::new(Options::default(), NOW)
}

impl Cure {
    /// What to do now.
    fn round(&mut self, now: Millis, view: &ClusterView, liveness: &Liveness) -> Vec<Order> {
        let order = |(_, verdict)| match verdict {
            Verdict::Act(order) => Some(order),
            Verdict::Healthy | Verdict::Wait(_) | Verdict::Stuck(_) => None,
        };
        self.examine(now, view, liveness).into_iter().filter_map(order).collect()
    }
}

fn nodes(list: &[usize]) -> Liveness {
    alive(NOW, list.iter().map(|n| node(*n)))
}

/// The listed nodes are alive, `dead` are known and silent.
fn with_dead(list: &[usize], dead: &[usize]) -> Liveness {
    let mut liveness = alive(Millis(0), dead.iter().map(|n| node(*n)));
    liveness.sweep(NOW);
    for n in list {
        liveness.beacon(NOW, 1_000_000_000, &beacon(node(*n)));
    }
    liveness
}

fn proposals(orders: Vec<Order>) -> Vec<(Node, Proposal)> {
    orders
        .into_iter()
        .map(|order| match order {
            Order::Propose { to, request } => (to, request.proposal),
            Order::Assign { .. } => panic!("{order:?}"),
        })
        .collect()
}

fn report(index: i32, ballot: i64, status: ReplicaStatus) -> ReplicaReport {
    ReplicaReport {
        gpid: Gpid::new(1, index),
        ballot: Ballot(ballot),
        status,
        committed: Decree(0),
        prepared: Decree(0),
        durable: Decree(0),
        disk_tag: "d".into(),
    }
}

#[test]
fn one_partition() {
    let add = |n| Proposal::AddSecondary { node: node(n) };
    let remove = |n| Proposal::RemoveSecondary { node: node(n) };
    // stored members and drops, alive, dead -> proposal
    type Case = (&'static str, PartitionConfig, Liveness, Option<(usize, Proposal)>);
    let dropped = |primary, secondaries: &[usize], drops: &[usize]| PartitionConfig {
        last_drops: drops.iter().map(|n| node(*n)).collect(),
        ..config(0, 5, primary, secondaries)
    };
    let cases: Vec<Case> = vec![
        ("whole", config(0, 5, 1, &[2, 3]), nodes(&[1, 2, 3]), None),
        ("dead secondary", config(0, 5, 1, &[2, 3]), with_dead(&[1, 2], &[3]), Some((1, remove(3)))),
        ("dead primary", config(0, 5, 1, &[2, 3]), with_dead(&[2, 3], &[1]), Some((2, Proposal::TakeOver))),
        ("one left", config(0, 5, 1, &[2, 3]), with_dead(&[3, 4], &[1, 2]), Some((3, Proposal::TakeOver))),
        ("missing, no node", dropped(1, &[2], &[3]), with_dead(&[1, 2], &[3]), None),
        ("missing, returned", dropped(1, &[2], &[3]), nodes(&[1, 2, 3, 4]), Some((1, add(3)))),
        ("missing, awaited", dropped(1, &[2], &[3]), with_dead(&[1, 2, 4], &[3]), None),
        ("below the minimum", dropped(1, &[], &[3]), with_dead(&[1, 4], &[3]), Some((1, add(4)))),
        ("nobody ever left", config(0, 5, 1, &[2]), nodes(&[1, 2, 4]), Some((1, add(4)))),
        ("newest drop first", dropped(1, &[2], &[3, 4]), nodes(&[1, 2, 3, 4]), Some((1, add(4)))),
        ("too many", config(0, 5, 1, &[2, 3, 4]), nodes(&[1, 2, 3, 4]), Some((1, remove(4)))),
    ];
    for (name, stored, liveness, want) in cases {
        let view = view_of(vec![stored]);
        let got = proposals(cure().round(NOW, &view, &liveness));
        assert_eq!(got, want.map(|(to, p)| (node(to), p)).into_iter().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn all_dead_is_reported_never_forced() {
    let view = view_of(vec![config(0, 5, 1, &[2, 3])]);
    let liveness = with_dead(&[4, 5, 6], &[1, 2, 3]);
    let verdicts = cure().examine(NOW, &view, &liveness);
    assert!(matches!(&verdicts[0].1, Verdict::Stuck(why) if why.contains("34801")), "{verdicts:?}");
    assert!(cure().diagnose(NOW, view.partition(Gpid::new(1, 0)).unwrap(), &liveness).is_some());
    let empty = PartitionConfig { ballot: Ballot(9), ..config(0, 9, 0, &[]) };
    let verdicts = cure().examine(NOW, &view_of(vec![empty]), &liveness);
    assert!(matches!(&verdicts[0].1, Verdict::Stuck(why) if why.contains("operator")), "{verdicts:?}");
}

#[test]
fn new_partitions_get_all_members_at_once_and_evenly() {
    let mut cure = cure();
    let unassigned = (0..4).map(|i| config(i, 0, 0, &[])).collect();
    let mut view = view_of(unassigned);
    assert_eq!(cure.round(NOW, &view, &nodes(&[])), []);
    let orders = cure.round(NOW, &view, &nodes(&[1, 2, 3, 4]));
    assert_eq!(orders.len(), 4);
    for order in orders {
        let Order::Assign { gpid, members } = order else { panic!() };
        let first = change::first(view.partition(gpid).unwrap(), members.primary, members.secondaries);
        view.put_partition(first);
    }
    let loads = Loads::of_cluster(&view);
    for n in 1..=4 {
        assert_eq!(loads.get(&node(n)), Load { primaries: 1, copies: 3 }, "node {n}");
    }
    assert_eq!(cure.round(NOW, &view, &nodes(&[1, 2, 3, 4])), []);
}

#[test]
fn new_partitions_wait_for_enough_nodes_but_not_for_ever() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 0, 0, &[])]);
    let two = |at| alive(at, [node(1), node(2)]);
    assert_eq!(cure.round(NOW, &view, &two(NOW)), []);
    assert_eq!(cure.round(NOW + 9_999, &view, &two(NOW + 9_999)), []);
    let orders = cure.round(NOW + 10_000, &view, &two(NOW + 10_000));
    assert!(matches!(&orders[..], [Order::Assign { members, .. }] if members.secondaries == [node(2)]));
    assert_eq!(cure.round(NOW + 20_000, &view, &Liveness::new(1)), [], "all gone");
    assert_eq!(cure.round(NOW + 30_000, &view, &two(NOW + 30_000)), [], "the wait starts again");
}

#[test]
fn proposals_repeat_and_heirs_alternate() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 5, 1, &[2, 3])]);
    let liveness = with_dead(&[2, 3], &[1]);
    let at = |cure: &mut Cure, ms| proposals(cure.round(NOW + ms, &view, &liveness));
    assert_eq!(at(&mut cure, 0), [(node(2), Proposal::TakeOver)]);
    assert_eq!(at(&mut cure, 2_999), []);
    assert_eq!(at(&mut cure, 3_000), [(node(3), Proposal::TakeOver)]);
    assert_eq!(at(&mut cure, 6_000), [(node(2), Proposal::TakeOver)]);
}

#[test]
fn many_dead_primaries_go_to_many_heirs() {
    let view = view_of((0..6).map(|i| config(i, 5, 1, &[2, 3, 4])).collect());
    let got = proposals(cure().round(NOW, &view, &with_dead(&[2, 3, 4], &[1])));
    for n in 2..=4 {
        assert_eq!(got.iter().filter(|(to, _)| *to == node(n)).count(), 2, "node {n}");
    }
}

#[test]
fn a_learner_that_shows_no_sign_is_given_up() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 5, 1, &[2])]);
    let liveness = nodes(&[1, 2, 3, 4]);
    let mut at = |ms, reporting: Option<usize>| {
        if let Some(n) = reporting {
            cure.reported(NOW + ms, &view, &node(n), &[report(0, 5, ReplicaStatus::Learner)]);
        }
        proposals(cure.round(NOW + ms, &view, &liveness))
    };
    let add = |n| [(node(1), Proposal::AddSecondary { node: node(n) })];
    assert_eq!(at(0, None), add(3));
    assert_eq!(at(40_000, Some(3)), add(3));
    assert_eq!(at(90_000, None), add(3), "it learns since 50 s ago");
    assert_eq!(at(100_001, None), add(4));
    assert_eq!(at(160_002, None), add(3), "everybody failed once: start over");
}

#[test]
fn a_member_that_left_is_awaited_and_then_replaced() {
    let mut cure = cure();
    let before = config(0, 5, 1, &[2, 3]);
    let remove = ChangeKind::RemoveSecondary { primary: node(1), node: node(3) };
    let request = ChangeRequest { gpid: before.gpid, ballot: Ballot(5), kind: remove, committed: Decree(0) };
    let after = change::apply(&before, &request).unwrap();
    cure.changed(NOW + 5_000, &before, &after);
    let view = view_of(vec![after]);
    let not_heard_since = nodes(&[1, 2, 3, 4]);
    assert_eq!(proposals(cure.clone().round(NOW + 5_001, &view, &not_heard_since)), []);
    let heard_again = alive(NOW + 5_001, (1..=4).map(node));
    let want = [(node(1), Proposal::AddSecondary { node: node(3) })];
    assert_eq!(proposals(cure.clone().round(NOW + 5_001, &view, &heard_again)), want);
    let liveness = with_dead(&[1, 2, 4], &[3]);
    let at = |cure: &mut Cure, ms| proposals(cure.round(NOW + ms, &view, &liveness));
    assert_eq!(at(&mut cure, 604_999), []);
    assert_eq!(at(&mut cure, 605_000), [(node(1), Proposal::AddSecondary { node: node(4) })]);
}

#[test]
fn a_replica_that_its_node_lost_counts_as_dead() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 5, 1, &[2, 3]), config(1, 5, 2, &[1, 3])]);
    let liveness = nodes(&[1, 2, 3]);
    for n in [2, 3] {
        let both = [report(0, 5, ReplicaStatus::Secondary), report(1, 5, ReplicaStatus::Primary)];
        cure.reported(NOW, &view, &node(n), &both);
    }
    let lost = [report(0, 5, ReplicaStatus::Error)];
    cure.reported(NOW, &view, &node(1), &lost);
    assert!(cure.awaits_report(&view, &node(1)) && !cure.awaits_report(&view, &node(2)));
    assert_eq!(proposals(cure.round(NOW + 9_000, &view, &liveness)), [], "one report proves nothing");
    cure.reported(NOW + 4_999, &view, &node(1), &lost);
    assert_eq!(proposals(cure.round(NOW + 9_000, &view, &liveness)), []);
    cure.reported(NOW + 5_000, &view, &node(1), &lost);
    let got = proposals(cure.round(NOW + 9_000, &view, &liveness));
    let want = [(node(3), Proposal::TakeOver), (node(2), Proposal::RemoveSecondary { node: node(1) })];
    assert_eq!(got, want, "partition 0 and 1");
    let whole = [report(0, 5, ReplicaStatus::Primary), report(1, 5, ReplicaStatus::Secondary)];
    cure.reported(NOW + 9_000, &view, &node(1), &whole);
    assert!(!cure.awaits_report(&view, &node(1)));
    assert_eq!(proposals(cure.round(NOW + 20_000, &view, &liveness)), []);
}

#[test]
fn a_table_is_ready_when_every_member_holds_its_replica() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 1, 1, &[2]), config(1, 1, 2, &[1])]);
    let partitions = view.table(1).unwrap().partitions.clone();
    let both = [report(0, 1, ReplicaStatus::Inactive), report(1, 1, ReplicaStatus::Secondary)];
    cure.reported(NOW, &view, &node(1), &both);
    assert!(!cure.all_hold(&partitions));
    cure.reported(NOW, &view, &node(2), &both[..1]);
    assert!(!cure.all_hold(&partitions));
    cure.reported(NOW, &view, &node(2), &both);
    assert!(cure.all_hold(&partitions));
    assert!(!cure.all_hold(&[config(0, 0, 0, &[]).into()]));

    let mut creating = view.clone();
    creating.put_info(pegasus_types::AppInfo { status: AppStatus::Creating, ..info(1, "t", 2) });
    let mut new = super::Cure::new(Options::default(), NOW);
    assert!(new.awaits_report(&creating, &node(1)) && !new.awaits_report(&creating, &node(3)));
    assert!(!new.awaits_report(&view, &node(1)), "nothing is being created");
    new.reported(NOW, &creating, &node(1), &both);
    assert!(!new.awaits_report(&creating, &node(1)));
}

#[test]
fn metadata_that_went_back_freezes() {
    let mut cure = cure();
    let view = view_of(vec![config(0, 5, 1, &[2, 3])]);
    let liveness = with_dead(&[2, 3, 4], &[1]);
    let ahead = [report(0, 6, ReplicaStatus::Secondary), report(7, 9, ReplicaStatus::Inactive)];
    assert_eq!(cure.reported(NOW, &view, &node(2), &ahead), [(Gpid::new(1, 0), Ballot(6))]);
    assert_eq!(cure.reported(NOW, &view, &node(2), &ahead), [], "told once");
    assert!(cure.is_frozen(Gpid::new(1, 0)));
    assert_eq!(cure.round(NOW, &view, &liveness), []);
    assert!(matches!(&cure.examine(NOW, &view, &liveness)[0].1, Verdict::Stuck(s) if s.contains("frozen")));
}

#[test]
fn a_meta_that_hears_few_proposes_nothing() {
    let view = view_of(vec![config(0, 5, 1, &[2, 3])]);
    assert_eq!(cure().round(NOW, &view, &with_dead(&[1], &[2, 3])), []);
    let verdicts = cure().examine(NOW, &view, &with_dead(&[1], &[2, 3]));
    assert!(matches!(&verdicts[0].1, Verdict::Wait(why) if why.contains("1 of 3")), "{verdicts:?}");
}

#[test]
fn learners_are_limited_per_node() {
    let mut cure = Cure::new(Options { max_learners_per_node: 2, ..Options::default() }, NOW);
    let view = view_of((0..5).map(|i| config(i, 5, 1, &[2])).collect());
    let got = proposals(cure.round(NOW, &view, &nodes(&[1, 2, 3, 4])));
    for n in 3..=4 {
        let asked = got.iter().filter(|(_, p)| *p == Proposal::AddSecondary { node: node(n) }).count();
        assert_eq!(asked, 2, "node {n}: {got:?}");
    }
}

#[test]
fn the_last_copy_is_doubled_first() {
    let mut cure = Cure::new(Options { max_learners_per_node: 1, ..Options::default() }, NOW);
    let view = view_of(vec![config(0, 5, 1, &[2]), config(1, 5, 1, &[2]), config(2, 5, 1, &[])]);
    let orders = cure.round(NOW, &view, &nodes(&[1, 2, 3]));
    let asked: Vec<_> = orders
        .into_iter()
        .map(|order| match order {
            Order::Propose { request, .. } => (request.gpid.index, request.proposal),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked[0], (2, Proposal::AddSecondary { node: node(3) }), "{asked:?}");
    assert!(asked.iter().all(|(index, _)| *index == 2), "node 3 learns one at a time: {asked:?}");
}

#[test]
fn a_surplus_member_goes_from_where_it_should() {
    let view = view_of(vec![config(0, 5, 1, &[2, 3, 4]), config(1, 5, 2, &[3, 1]), config(2, 5, 1, &[2, 3])]);
    let mut liveness = nodes(&[1, 2, 3, 4]);
    let removed = |liveness: &Liveness| proposals(cure().round(NOW, &view, liveness));
    assert_eq!(removed(&liveness), [(node(1), Proposal::RemoveSecondary { node: node(3) })], "the fullest");
    liveness.set_retired([node(4)].into());
    assert_eq!(
        removed(&liveness),
        [(node(1), Proposal::RemoveSecondary { node: node(4) })],
        "it is to leave"
    );
}

#[test]
fn surplus_replicas() {
    let mut cure = cure();
    let stored = config(0, 5, 1, &[2, 3]);
    let view = view_of(vec![stored.clone()]);
    let liveness = nodes(&[1, 2, 3, 4]);
    let old = report(0, 4, ReplicaStatus::Inactive);
    assert!(!cure.is_surplus(&stored, &liveness, &old, &node(4)), "nobody reported yet");
    for n in 1..=3 {
        cure.reported(NOW, &view, &node(n), &[report(0, 5, ReplicaStatus::Secondary)]);
    }
    assert!(cure.is_surplus(&stored, &liveness, &old, &node(4)));
    assert!(!cure.is_surplus(&stored, &liveness, &old, &node(3)), "a member");
    assert!(!cure.is_surplus(&stored, &with_dead(&[1, 2, 4], &[3]), &old, &node(4)), "a member is dead");
    assert!(!cure.is_surplus(&stored, &liveness, &report(0, 5, ReplicaStatus::Learner), &node(4)));
    let ahead = report(0, 6, ReplicaStatus::Inactive);
    assert!(!cure.is_surplus(&stored, &liveness, &ahead, &node(4)));
    let ill = config(0, 5, 1, &[2]);
    assert!(!cure.is_surplus(&ill, &liveness, &old, &node(4)));
}

#[test]
fn a_draining_node_gives_its_roles_at_once_and_its_copies_soon() {
    let view = view_of(vec![config(0, 5, 1, &[2, 3]), config(1, 5, 1, &[2, 3]), config(2, 5, 2, &[1, 3])]);
    let drain = |liveness: &mut Liveness, n, at| {
        liveness.beacon(
            at,
            1_000_000_000,
            &pegasus_types::meta::Beacon { draining: true, ..beacon(node(n)) },
        );
    };
    let mut liveness = nodes(&[1, 2, 3, 4]);
    drain(&mut liveness, 1, NOW);
    let mut cure = cure();
    let hand = |n| (node(1), Proposal::HandOver { to: node(n) });
    assert_eq!(
        proposals(cure.round(NOW, &view, &liveness)),
        [hand(3), hand(2)],
        "to those with fewest primaries"
    );
    assert_eq!(proposals(cure.round(NOW + 20, &view, &liveness)), [], "asked a moment ago");
    drain(&mut liveness, 1, NOW + 900);
    let got = proposals(cure.round(NOW + 1_000, &view, &liveness));
    let want = [hand(2), hand(3), (node(2), Proposal::RemoveSecondary { node: node(1) })];
    assert_eq!(got, want, "asked again, somebody else; and its copy is let go");
    // A cluster that stops as a whole is left as it is.
    for n in [2, 3, 4] {
        drain(&mut liveness, n, NOW + 1_000);
    }
    assert_eq!(proposals(super::Cure::new(Options::default(), NOW).round(NOW + 9_000, &view, &liveness)), []);
    // Where writes need it, it stays.
    let mut two = nodes(&[1, 2, 3]);
    drain(&mut two, 2, NOW);
    let small = view_of(vec![config(0, 5, 1, &[2])]);
    assert_eq!(proposals(super::Cure::new(Options::default(), NOW).round(NOW + 5_000, &small, &two)), []);
}

#[test]
fn a_drained_node_gets_its_copy_back_when_it_returns() {
    let mut cure = cure();
    let before = config(0, 5, 2, &[1, 3]);
    let remove = ChangeKind::RemoveSecondary { primary: node(2), node: node(1) };
    let request = ChangeRequest { gpid: before.gpid, ballot: Ballot(5), kind: remove, committed: Decree(0) };
    let after = change::apply(&before, &request).unwrap();
    cure.changed(NOW, &before, &after);
    let view = view_of(vec![after]);
    let mut liveness = alive(NOW + 500, (1..=4).map(node));
    let leaving = pegasus_types::meta::Beacon { draining: true, ..beacon(node(1)) };
    liveness.beacon(NOW + 500, 1_000_000_000, &leaving);
    assert_eq!(proposals(cure.round(NOW + 600, &view, &liveness)), [], "not while it drains, nor to node 4");
    liveness.beacon(NOW + 3_000, 1_000_000_000, &beacon(node(1)));
    let add = (node(2), Proposal::AddSecondary { node: node(1) });
    assert_eq!(proposals(cure.round(NOW + 3_000, &view, &liveness)), [add]);
}

/// Does at once what is proposed, as the groups would, and checks that nothing is ever short of a copy. Returns how many
/// proposals it took.
fn settle(cure: &mut Cure, view: &mut ClusterView, alive_nodes: usize, retired: &[usize]) -> usize {
    let (mut now, mut done, mut idle) = (NOW, 0, 0);
    while idle < 100 {
        now = now + 1_000;
        let mut liveness = alive(now, (1..=alive_nodes).map(node));
        liveness.set_retired(retired.iter().map(|n| node(*n)).collect());
        let orders = cure.round(now, view, &liveness);
        idle = if orders.is_empty() { idle + 1 } else { 0 };
        for (to, gpid, proposal) in orders.into_iter().map(|order| match order {
            Order::Propose { to, request } => (to, request.gpid, request.proposal),
            other => panic!("{other:?}"),
        }) {
            let before = view.partition(gpid).unwrap().clone();
            let kind = match proposal {
                Proposal::AddSecondary { node } => ChangeKind::AddSecondary { primary: to, node },
                Proposal::RemoveSecondary { node } => ChangeKind::RemoveSecondary { primary: to, node },
                Proposal::HandOver { to: heir } => ChangeKind::HandOver { primary: to, to: heir, stay: true },
                Proposal::TakeOver => ChangeKind::TakeOver { claimant: to },
            };
            let request = ChangeRequest { gpid, ballot: before.ballot, kind, committed: Decree(0) };
            let after = change::apply(&before, &request).unwrap();
            assert!(after.member_count() >= 3, "{before:?} -> {after:?}");
            view.put_partition(after.clone());
            cure.changed(now, &before, &after);
            assert_eq!(crate::lint::lint(view), [""; 0]);
            done += 1;
        }
    }
    done
}

#[test]
fn a_new_node_gets_its_share_and_a_retired_one_is_emptied() {
    let spread = |on| Options {
        balance: balance::Options { spread: on, ..balance::Options::default() },
        ..Options::default()
    };
    let three = || {
        view_of(
            (0..16)
                .map(|i| {
                    config(i, 5, 1 + i as usize % 3, &[1 + (i as usize + 1) % 3, 1 + (i as usize + 2) % 3])
                })
                .collect(),
        )
    };
    let loads = |view: &ClusterView| {
        let loads = Loads::of_cluster(view);
        (1..=4).map(|n| loads.get(&node(n))).map(|load| (load.primaries, load.copies)).collect::<Vec<_>>()
    };
    // At steady nothing is moved, but counted.
    let (mut view, mut steady) = (three(), Cure::new(spread(false), NOW));
    assert_eq!(settle(&mut steady, &mut view, 4, &[]), 0);
    let planned = Counts { move_primary: 4, copy_primary: 0, copy_secondary: 12 };
    assert_eq!(steady.planned(), planned);
    // At lively it is.
    let mut lively = Cure::new(spread(true), NOW);
    let proposals = settle(&mut lively, &mut view, 4, &[]);
    assert_eq!(loads(&view), [(4, 12); 4]);
    assert!((4 + 2 * 12..=8 + 2 * 12).contains(&proposals), "{proposals}");
    // A retired node is emptied at steady, too.
    let mut steady = Cure::new(spread(false), NOW);
    settle(&mut steady, &mut view, 4, &[4]);
    assert_eq!(loads(&view)[3], (0, 0));
    settle(&mut Cure::new(spread(true), NOW), &mut view, 4, &[4]);
    let mut even = loads(&view);
    even.sort_unstable();
    assert_eq!(even, [(0, 0), (5, 16), (5, 16), (6, 16)]);
    // With nowhere to go they stay.
    let before = view.clone();
    settle(&mut Cure::new(spread(true), NOW), &mut view, 3, &[3]);
    assert_eq!(Loads::of_cluster(&view).get(&node(3)), Load { primaries: 0, copies: 16 });
    assert_eq!(before.known_nodes(), view.known_nodes());
}

#[test]
fn nothing_moves_while_something_is_ill_and_moves_end_when_it_falls_ill() {
    let options = Options { balance: balance::Options::default(), ..Options::default() };
    let view = view_of((0..8).map(|i| config(i, 5, 1, &[2, 3])).collect());
    let at = |ms| alive(NOW + ms, (1..=4).map(node));
    let mut cure = Cure::new(options.clone(), NOW);
    assert_eq!(cure.round(NOW, &view, &at(0)), []);
    assert_eq!(cure.looks_again_at(), Some(NOW + 10_000));
    let begun = proposals(cure.round(NOW + 10_000, &view, &at(10_000)));
    assert!(!begun.is_empty() && cure.moves().count() == begun.len(), "{begun:?}");
    // Node 3 dies: every member of every group is needed to heal.
    let mut liveness = at(10_000);
    for n in [1, 2, 4] {
        liveness.beacon(NOW + 25_000, 1_000_000_000, &beacon(node(n)));
    }
    liveness.sweep(NOW + 25_000);
    let got = proposals(cure.round(NOW + 25_000, &view, &liveness));
    assert!(got.iter().all(|(_, p)| *p == Proposal::RemoveSecondary { node: node(3) }), "{got:?}");
    assert_eq!((got.len(), cure.moves().count(), cure.looks_again_at()), (8, 0, None));
    // One that drained and has ended does not stop the others for ever; one whose clock is wrong gets nothing.
    let mut liveness = alive(Millis(0), [node(9)]);
    liveness.beacon(Millis(0), 1, &pegasus_types::meta::Beacon { draining: true, ..beacon(node(9)) });
    liveness.sweep(NOW);
    for n in 1..=4 {
        liveness.beacon(NOW, 1_000_000_000, &beacon(node(n)));
    }
    let mut cure = Cure::new(options.clone(), NOW);
    cure.round(NOW, &view, &liveness);
    assert_eq!(cure.looks_again_at(), Some(NOW + 10_000));
    let wrong = pegasus_types::meta::Beacon { wall_us: 99_000_000_000, ..beacon(node(4)) };
    liveness.beacon(NOW, 1_000_000_000, &wrong);
    let plan = cure.plan(&view, &liveness, true);
    assert!(plan.moves.iter().all(|what| what.to != node(4)), "{:?}", plan.moves);
    // A creating table: no moves either.
    let mut creating = view.clone();
    creating.put_info(pegasus_types::AppInfo { status: AppStatus::Creating, ..info(1, "t", 8) });
    let mut cure = Cure::new(options, NOW);
    cure.round(NOW, &creating, &at(0));
    assert_eq!(cure.round(NOW + 20_000, &creating, &at(20_000)), []);
}

#[test]
fn operators_moves() {
    use crate::balance::{Kind, Move};
    let view = view_of(vec![config(0, 5, 1, &[2, 3])]);
    let liveness = nodes(&[1, 2, 3, 4]);
    let make = |kind, from, to| Move { gpid: Gpid::new(1, 0), kind, from: node(from), to: node(to) };
    for (what, want) in [
        (make(Kind::MovePrimary, 1, 2), Ok((1, Proposal::HandOver { to: node(2) }))),
        (make(Kind::CopySecondary, 2, 4), Ok((1, Proposal::AddSecondary { node: node(4) }))),
        (make(Kind::CopyPrimary, 1, 4), Ok((1, Proposal::AddSecondary { node: node(4) }))),
        (make(Kind::MovePrimary, 2, 3), Err("not the primary")),
        (make(Kind::CopySecondary, 1, 4), Err("is the primary")),
        (make(Kind::CopySecondary, 2, 3), Err("has left")),
        (make(Kind::MovePrimary, 1, 5), Err("cannot take")),
    ] {
        let mut cure = cure();
        match (cure.request_move(NOW, &view, &liveness, what.clone()), want) {
            (Ok(()), Ok((to, proposal))) => {
                assert_eq!(proposals(cure.round(NOW, &view, &liveness)), [(node(to), proposal)], "{what}");
                let other = make(Kind::MovePrimary, 1, 3);
                assert!(cure.request_move(NOW, &view, &liveness, other).unwrap_err().contains("under way"));
                cure.stop_moves();
                assert_eq!(proposals(cure.round(NOW + 9_000, &view, &liveness)), [], "{what}");
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{what}: {why}"),
            (got, want) => panic!("{what}: {got:?} {want:?}"),
        }
    }
}

#[test]
fn a_partition_without_members_is_revived_by_the_rule() {
    let stored = PartitionConfig { last_drops: vec![node(1), node(2)], ..config(0, 7, 0, &[]) };
    let view = view_of(vec![stored.clone()]);
    let liveness = nodes(&[1, 2, 3]);
    let mut cure = cure();
    assert_eq!(cure.round(NOW, &view, &liveness), [], "nobody has reported");
    let copy = |ballot, committed| ReplicaReport {
        committed: Decree(committed),
        prepared: Decree(committed),
        ..report(0, ballot, ReplicaStatus::Inactive)
    };
    cure.reported(NOW, &view, &node(1), &[copy(5, 9)]);
    assert_eq!(cure.round(NOW, &view, &liveness), []);
    let diagnosis = cure.diagnose(NOW, &stored, &liveness).unwrap();
    assert!(diagnosis.reason.contains("34802"), "{diagnosis:?}");
    assert_eq!(diagnosis.former.iter().map(|f| f.reported).collect::<Vec<_>>(), [false, true]);
    cure.reported(NOW, &view, &node(2), &[copy(6, 9)]);
    let order =
        |n| Order::Assign { gpid: stored.gpid, members: Members { primary: node(n), secondaries: vec![] } };
    assert_eq!(cure.clone().round(NOW, &view, &liveness), [order(2)]);
    let revived = change::first(&stored, node(2), vec![]);
    assert_eq!(revived, PartitionConfig { last_drops: vec![node(1)], ..config(0, 8, 2, &[]) });
    cure.reported(NOW, &view, &node(2), &[]);
    assert_eq!(cure.round(NOW, &view, &liveness), [order(1)]);
    assert!(cure.diagnose(NOW, &config(0, 7, 1, &[2]), &liveness).is_none(), "members live");
}

#[test]
fn the_black_list_gets_no_copies() {
    let options = Options { black_list: BTreeSet::from([node(3)]), ..Options::default() };
    let mut cure = Cure::new(options.clone(), NOW);
    let view = view_of(vec![config(0, 5, 1, &[2])]);
    let got = proposals(cure.round(NOW, &view, &nodes(&[1, 2, 3, 4])));
    assert_eq!(got, [(node(1), Proposal::AddSecondary { node: node(4) })]);
    // Nor is one of it awaited.
    let left = PartitionConfig { last_drops: vec![node(3)], ..config(0, 5, 1, &[2]) };
    let mut other = Cure::new(options, NOW);
    let got = proposals(other.round(NOW, &view_of(vec![left.clone()]), &with_dead(&[1, 2, 4], &[3])));
    assert_eq!(got, [(node(1), Proposal::AddSecondary { node: node(4) })]);
    let mut retired = with_dead(&[1, 2, 4], &[3]);
    retired.set_retired([node(3)].into());
    let got = proposals(super::Cure::new(Options::default(), NOW).round(NOW, &view_of(vec![left]), &retired));
    assert_eq!(got, [(node(1), Proposal::AddSecondary { node: node(4) })]);
    let verdicts = cure.examine(NOW + 70_000, &view, &alive(NOW + 70_000, (1..=3).map(node)));
    assert!(matches!(&verdicts[0].1, Verdict::Wait(why) if why.contains("no other node")), "{verdicts:?}");
}
