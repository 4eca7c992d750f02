use std::time::Duration;

use pegasus_types::cluster::{PartitionHealth, PartitionOverview};
use pegasus_types::meta::{ChangeReply, Proposal, QueryReply, ReplicaStatus};
use pegasus_types::{Ballot, ChangeKind, Gpid, Node};
use tokio::time::sleep;

use crate::world::*;

#[test]
fn a_dead_node_is_replaced_and_taken_in_again() {
    local(async {
        let mut world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let dead = world.replicas.remove(0);
        let node = dead.node.clone();
        let held = dead.inner.held.borrow().len();
        assert_eq!(held, 4);
        let restarted = dead.restart().await;
        // Nobody claims or removes by itself here, so the meta proposes it.
        restarted.inner.speaks.set(false);
        world.healthy("temp", 2).await;
        for index in 0..4 {
            let config = world.partition(Gpid::new(1, index)).await;
            assert!(!config.is_member(&node) && config.last_drops == [node.clone()], "{config:?}");
            assert_eq!(config.ballot, Ballot(2), "one write each");
        }
        until("it is awaited", async || {
            let overview = world.overview().await;
            let awaited = |p: &PartitionOverview| {
                p.health == PartitionHealth::WritableIll && p.note.contains("come back")
            };
            overview.tables[0].partitions.iter().all(awaited).then_some(())
        })
        .await;
        restarted.inner.speaks.set(true);
        world.healthy("temp", 3).await;
        assert!(restarted.inner.held.borrow().values().all(|r| r.status == ReplicaStatus::Secondary));
        assert_eq!(world.partition(Gpid::new(1, 0)).await.ballot, Ballot(3));
    });
}

#[test]
fn a_secondary_that_claims_wins_once() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let before = world.partition(gpid).await;
        let [first, second] = [&before.secondaries[0], &before.secondaries[1]];
        let claim = |node: &Node| ChangeKind::TakeOver { claimant: node.clone() };
        // It would be taken in again at once, at one ballot more.
        let old = before.primary.clone().unwrap();
        world.replica(&old).inner.speaks.set(false);
        let won = world.replica(first).ask(gpid, 1, claim(first)).await;
        let ChangeReply::Accepted(config) = won else { panic!("{won:?}") };
        assert_eq!((config.ballot, config.primary.as_ref()), (Ballot(2), Some(first)));
        assert_eq!(config.secondaries, std::slice::from_ref(second));
        assert_eq!(
            world.replica(first).ask(gpid, 1, claim(first)).await,
            ChangeReply::Accepted(config.clone())
        );
        let lost = world.replica(second).ask(gpid, 1, claim(second)).await;
        assert!(matches!(&lost, ChangeReply::Rejected { current: Some(c), .. } if *c == config), "{lost:?}");
        // Everybody is told, also the one that left, and it is taken in again.
        world.replica(&old).inner.speaks.set(true);
        until("the old primary knows", async || {
            let configs = world.replica(&old).inner.configs.borrow();
            (configs.get(&gpid)?.1.ballot >= Ballot(2)).then_some(())
        })
        .await;
        world.healthy("temp", 3).await;
        assert_eq!(world.query("temp").await.partitions[0].primary.node().unwrap(), *first);
    });
}

#[test]
fn a_node_asks_for_itself_only() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let config = world.partition(gpid).await;
        let (primary, secondary) = (config.primary.clone().unwrap(), config.secondaries[0].clone());
        let claim = ChangeKind::TakeOver { claimant: secondary };
        let reply = world.replica(&primary).ask(gpid, 1, claim).await;
        assert!(matches!(&reply, ChangeReply::Rejected { why, .. } if why.contains("itself")), "{reply:?}");
        let unknown = Gpid::new(7, 0);
        let renew = ChangeKind::Renew { primary: primary.clone() };
        let reply = world.replica(&primary).ask(unknown, 1, renew).await;
        assert!(matches!(reply, ChangeReply::Rejected { current: None, .. }), "{reply:?}");
        assert_eq!(world.as_onlooker().query(WITHIN, unknown).await.unwrap(), QueryReply::Unknown);
        assert_eq!(world.partition(gpid).await, config);
    });
}

#[test]
fn a_higher_ballot_than_stored_freezes_the_partition() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 1);
        let primary = world.partition(gpid).await.primary.unwrap();
        let replica = world.replica(&primary);
        replica.inner.held.borrow_mut().insert(gpid, report(gpid, Ballot(5), ReplicaStatus::Primary));
        replica.inner.clone().report().await;
        let renew = ChangeKind::Renew { primary: primary.clone() };
        for ballot in [1, 5] {
            let reply = replica.ask(gpid, ballot, renew.clone()).await;
            assert!(
                matches!(&reply, ChangeReply::Rejected { why, .. } if why.contains("frozen")),
                "{reply:?}"
            );
        }
        until("it is told", async || {
            let note = world.overview().await.tables[0].partitions[1].note.clone();
            note.contains("ballot 5").then_some(())
        })
        .await;
        // The others go on.
        let other = Gpid::new(1, 0);
        let primary = world.partition(other).await.primary.unwrap();
        let reply =
            world.replica(&primary).ask(other, 1, ChangeKind::Renew { primary: primary.clone() }).await;
        assert!(matches!(reply, ChangeReply::Accepted(_)), "{reply:?}");
        // A change request at a higher ballot freezes as well.
        let third = Gpid::new(1, 2);
        let primary = world.partition(third).await.primary.unwrap();
        let reply =
            world.replica(&primary).ask(third, 9, ChangeKind::Renew { primary: primary.clone() }).await;
        assert!(matches!(reply, ChangeReply::Rejected { .. }), "{reply:?}");
        assert!(world.is_frozen(third).await);
    });
}

#[test]
fn all_members_dead_is_reported_and_not_forced() {
    local(async {
        let mut world = World::start(2, "node_live_percentage_threshold_for_update = 0").await;
        until("both are there", async || (world.overview().await.nodes.len() == 2).then_some(())).await;
        world.create("t", 2, 2).await;
        world.healthy("t", 2).await;
        let before = world.query("t").await.partitions;
        let survivor = Replica::start(std::slice::from_ref(&world.meta)).await;
        for replica in &world.replicas {
            replica.inner.speaks.set(false);
        }
        until("all are dead", async || {
            let overview = world.overview().await;
            let dead = |p: &PartitionOverview| {
                p.health == PartitionHealth::Dead && p.note.contains("no member is alive")
            };
            overview.tables[0].partitions.iter().all(dead).then_some(())
        })
        .await;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(world.query("t").await.partitions, before);
        assert!(survivor.inner.proposals.borrow().is_empty());
        // One of them comes back and takes over what it was a secondary of.
        world.replicas.remove(0).inner.speaks.set(false);
        world.replicas[0].inner.speaks.set(true);
        let node = world.replicas[0].node.clone();
        until("it leads both", async || {
            let seen = world.query("t").await.partitions;
            seen.iter().all(|p| p.primary.node().as_ref() == Some(&node)).then_some(())
        })
        .await;
    });
}

#[test]
fn proposals_that_nobody_follows_are_repeated() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        for replica in &world.replicas {
            replica.inner.obeys.set(false);
        }
        let victim = &world.replicas[0];
        victim.inner.speaks.set(false);
        let heir = &world.replicas[1];
        let asked = || {
            let proposals = heir.inner.proposals.borrow();
            proposals.iter().filter(|p| matches!(p.proposal, Proposal::RemoveSecondary { .. })).count()
        };
        until("it is asked", async || (asked() > 0).then_some(())).await;
        let (gpid, first) = {
            let proposals = heir.inner.proposals.borrow();
            (proposals[0].gpid, proposals.len())
        };
        until("it is asked again", async || (heir.inner.proposals.borrow().len() > first).then_some(()))
            .await;
        assert_eq!(world.partition(gpid).await.ballot, Ballot(1));
    });
}

#[test]
fn a_wrong_clock_is_shown() {
    local(async {
        let world = World::start(1, "").await;
        for skew_s in [100, 0] {
            world.replicas[0].inner.skew_s.set(skew_s);
            until("the skew is shown", async || {
                let shown = world.overview().await.nodes.first()?.clock_skew_us / 1_000_000;
                ((skew_s - 1..=skew_s).contains(&shown)).then_some(())
            })
            .await;
        }
    });
}
