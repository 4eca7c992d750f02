use super::*;
use crate::change;
use crate::liveness::testing::{alive, beacon};
use crate::view::testing::*;
use pegasus_types::meta::ChangeRequest;
use pegasus_types::{ChangeKind, Decree};

const NOW: Millis = Millis(1_000_000);

fn cure() -> Cure {
    Cure::new(Options::default(), NOW)
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
