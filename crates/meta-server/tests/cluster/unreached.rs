//! Somebody is not reached: a leader by a standby, a leader by everybody, a member by its primary.

use std::net::SocketAddr;
use std::time::Duration;

use pegasus_rpc::wire::meta::*;
use pegasus_types::meta::ChangeReply;
use pegasus_types::{ChangeKind, ErrorCode, Gpid};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::metas::*;
use crate::world::*;

#[test]
fn a_standby_tells_what_is_stored_while_the_leader_is_not_reached() {
    local(async {
        let (metas, old) = Metas::with_table(3).await;
        metas.healthy("t").await;
        let before = metas.query(old, "t").await;
        let standby = (old + 1) % 3;
        until("the standby names the leader", async || {
            let answer = metas.query(standby, "t").await;
            (answer.err.0 == ErrorCode::ForwardToOthers && !answer.partitions.is_empty()).then_some(())
        })
        .await;
        // The leader dies, and the store goes on waiting for its session.
        metas.kill(old).await;
        until("the standby tells it in its place", async || {
            (metas.query(standby, "t").await == before).then_some(())
        })
        .await;
        let unknown = metas.query(standby, "made since").await;
        assert_eq!(unknown.err.0, ErrorCode::ForwardToOthers, "it may be there by now");
        let refused = created(metas.ask(standby, create("u")).await);
        assert_eq!(refused, ErrorCode::ForwardToOthers, "it decides nothing");

        metas.forget_session(old);
        let new = until("another one leads", async || {
            let leaders = (0..3).filter(|at| *at != old);
            for at in leaders {
                if metas.peer(at).cluster_view(WITHIN).await.is_ok_and(|v| v.leader == Some(metas.node(at))) {
                    return Some(at);
                }
            }
            None
        })
        .await;
        let SocketAddr::V4(address) = metas.address(new) else { panic!() };
        let other = (0..3).find(|at| *at != old && *at != new).unwrap();
        until("the other one sends clients to it", async || {
            let answer = metas.query(other, "t").await;
            let named = answer.partitions.first().map(|p| p.primary);
            (answer.err.0 == ErrorCode::ForwardToOthers && named == Some(Address(Some(address))))
                .then_some(())
        })
        .await;
    });
}

#[test]
fn a_leader_whom_nobody_reaches_gives_its_role_to_the_next_in_line() {
    local(async {
        // Connections to them are made, and nobody ever says a word.
        let (one, two) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let others = [one.local_addr().unwrap(), two.local_addr().unwrap()];
        let metas = Metas::start_beside(1, 0, &others).await;
        metas.leader().await;
        let heir = metas.observer();
        metas.stand_in_line(&heir).await;
        until("it leads no longer", async || {
            metas.http(0, "/readyz").await.starts_with("HTTP/1.1 503 ").then_some(())
        })
        .await;
        until("it stands behind the other one", async || {
            let line = metas.line().await;
            (line.len() == 2 && line[1] > line[0]).then_some(())
        })
        .await;
        assert_eq!(metas.epoch().await, 1);
        assert_eq!(metas.try_leader().await, None);
    });
}

#[test]
fn a_primary_is_not_left_alone_while_its_last_member_is_heard() {
    local(async {
        let mut world = World::start(2, "").await;
        until("the table is there", async || {
            (world.create("t", 2, 2).await.0 == ErrorCode::Ok).then_some(())
        })
        .await;
        world.healthy("t", 2).await;
        world.replicas.iter().for_each(|replica| replica.inner.obeys.set(false));
        let gpid = Gpid::new(1, 0);
        let config = world.partition(gpid).await;
        let (primary, secondary) = (config.primary.clone().unwrap(), config.secondaries[0].clone());
        let remove = ChangeKind::RemoveSecondary { primary: primary.clone(), node: secondary.clone() };
        let take_over = ChangeKind::TakeOver { claimant: secondary.clone() };
        // The claim comes later, and wins.
        let (asker, claimant) = (world.replica(&primary), world.replica(&secondary));
        let claim = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            claimant.ask(gpid, config.ballot.0, take_over).await
        };
        let (removed, claimed) = tokio::join!(asker.ask(gpid, config.ballot.0, remove), claim);
        assert!(matches!(claimed, ChangeReply::Accepted(_)), "{claimed:?}");
        assert!(matches!(removed, ChangeReply::Rejected { .. }), "{removed:?}");

        // Of the other partition nobody claims anything: the wait has an end.
        let gpid = Gpid::new(1, 1);
        let config = world.partition(gpid).await;
        let (primary, secondary) = (config.primary.clone().unwrap(), config.secondaries[0].clone());
        let remove = ChangeKind::RemoveSecondary { primary: primary.clone(), node: secondary.clone() };
        let begun = Instant::now();
        let removed = world.replica(&primary).ask(gpid, config.ballot.0, remove).await;
        assert!(matches!(removed, ChangeReply::Accepted(_)), "{removed:?}");
        assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());

        // One that is dead is not waited for.
        until("the table is there", async || {
            (world.create("u", 2, 2).await.0 == ErrorCode::Ok).then_some(())
        })
        .await;
        world.replicas.iter().for_each(|replica| replica.inner.obeys.set(true));
        world.healthy("u", 2).await;
        let gpid = Gpid::new(2, 0);
        let config = world.partition(gpid).await;
        let (primary, secondary) = (config.primary.clone().unwrap(), config.secondaries[0].clone());
        world.replicas.retain(|replica| replica.node != secondary);
        let remove = ChangeKind::RemoveSecondary { primary: primary.clone(), node: secondary };
        let begun = Instant::now();
        let removed = world.replica(&primary).ask(gpid, config.ballot.0, remove).await;
        assert!(matches!(removed, ChangeReply::Accepted(_)), "{removed:?}");
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    });
}
