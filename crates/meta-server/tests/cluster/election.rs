//! Several meta-servers over one tree of metadata.

use std::net::SocketAddr;
use std::time::Duration;

use pegasus_placement::lint::lint;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse};
use pegasus_types::meta::{ChangeReply, QueryReply};
use pegasus_types::{AppStatus, Ballot, ChangeKind, ErrorCode, Gpid};
use pegasus_zk_coordination::memory_store::Fault;
use pegasus_zk_coordination::{MetaStore, SessionState, content};
use tokio::time::{Instant, sleep};

use crate::metas::*;
use crate::world::*;

#[test]
fn standbys_name_the_leader_to_everybody() {
    local(async {
        let (metas, leader) = Metas::with_table(3).await;
        let SocketAddr::V4(address) = metas.address(leader) else { panic!() };
        for at in (0..3).filter(|at| *at != leader) {
            until("the standby follows", async || {
                metas.http(at, "/readyz").await.contains("leads").then_some(())
            })
            .await;
            let answer = metas.query(at, "t").await;
            assert_eq!(answer.err.0, ErrorCode::ForwardToOthers);
            assert_eq!(answer.partitions[0].primary, Address(Some(address)));
            assert_eq!(created(metas.ask(at, create("u")).await), ErrorCode::ForwardToOthers);
            let AdminResponse::ListApps(tables) =
                metas.ask(at, AdminRequest::ListApps(ListAppsRequest::default())).await
            else {
                panic!()
            };
            assert_eq!(tables.err.0, ErrorCode::ForwardToOthers);
            let answer = metas.http(at, "/meta/app?name=t&detail").await;
            assert!(answer.starts_with("HTTP/1.1 307 "), "{answer}");
            let location = format!("location: http://{address}/meta/app?name=t&detail\r\n");
            assert!(answer.contains(&location), "{answer}");
            let ready = metas.http(at, "/readyz").await;
            assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
            assert!(ready.contains(&format!("standby; {address} leads")), "{ready}");
            assert!(metas.http(at, "/livez").await.starts_with("HTTP/1.1 200 "));

            let named = Some(metas.node(leader));
            let peer = metas.peer(at);
            let reply = peer.query(WITHIN, Gpid::new(1, 0)).await.unwrap();
            assert_eq!(reply, QueryReply::NotLeader { leader: named.clone() });
            assert_eq!(peer.cluster_view(WITHIN).await.unwrap().leader, named);
        }
        assert!(metas.http(leader, "/readyz").await.starts_with("HTTP/1.1 200 "));
        assert!(metas.http(leader, "/meta/apps").await.starts_with("HTTP/1.1 200 "));
        // The replica-servers found it, wherever they asked first.
        metas.healthy("t").await;
    });
}

#[test]
fn leaders_come_and_go_and_nothing_is_lost() {
    const CHANGES: usize = 6;
    local(async {
        let metas = Metas::start(3, 3).await;
        let mut names = Vec::new();
        let mut led = Vec::new();
        for n in 0..CHANGES {
            let leader = metas.leader().await;
            led.push(leader);
            let name = format!("t{n}");
            assert_eq!(created(metas.ask(leader, create(&name)).await), ErrorCode::Ok);
            names.push(name);
            metas.session(leader).set_state(SessionState::Over);
            until("another one leads", async || {
                let now = metas.try_leader().await?;
                (now != leader || metas.epoch().await > n as u64 + 1).then_some(())
            })
            .await;
        }
        assert!(
            led.iter().any(|at| led.iter().filter(|l| *l == at).count() > 1),
            "nobody led twice: {led:?}"
        );
        let leader = metas.leader().await;
        for name in &names {
            let answer = metas.query(leader, name).await;
            assert_eq!((answer.err.0, answer.partition_count), (ErrorCode::Ok, 2), "{name}");
        }
        assert_eq!(metas.epoch().await, CHANGES as u64 + 1, "one epoch per leader");
        let ledger = metas.stored().await;
        assert_eq!(lint(ledger.view()), [""; 0]);
        assert_eq!(ledger.view().tables().count(), CHANGES);
    });
}

#[test]
fn a_leader_without_the_store_shows_what_it_knows_and_decides_nothing() {
    local(async {
        let (metas, leader) = Metas::with_table(3).await;
        let before = metas.query(leader, "t").await;
        let primary = before.partitions[0].primary.node().unwrap();
        // ZooKeeper is gone for all of them.
        (0..3).for_each(|at| metas.session(at).set_state(SessionState::Disconnected));
        until("the leader is suspended", async || {
            metas.http(leader, "/readyz").await.contains("suspended").then_some(())
        })
        .await;
        until("clients are answered, once the others were asked", async || {
            (metas.query(leader, "t").await == before).then_some(())
        })
        .await;
        assert!(metas.http(leader, "/meta/app?name=t").await.starts_with("HTTP/1.1 200 "));
        assert_eq!(created(metas.ask(leader, create("u")).await), ErrorCode::ForwardToOthers);
        let renew = ChangeKind::Renew { primary: primary.clone() };
        let request = pegasus_types::meta::ChangeRequest {
            gpid: Gpid::new(1, 0),
            ballot: Ballot(1),
            kind: renew,
            committed: pegasus_types::Decree(0),
        };
        let refused = metas.peer(leader).change(WITHIN, request).await.unwrap();
        assert_eq!(refused, ChangeReply::NotLeader { leader: None });
        for at in (0..3).filter(|at| *at != leader) {
            until("a standby that knows nothing names nobody", async || {
                let answer = metas.query(at, "t").await;
                (answer == QueryConfigResponse::forward(None)).then_some(())
            })
            .await;
        }
        // A while later it is back, and so is the leader.
        (0..3).for_each(|at| metas.session(at).set_state(SessionState::Connected));
        let again = metas.leader().await;
        assert_eq!(again, leader, "its place was kept");
        assert_eq!(created(metas.ask(leader, create("u")).await), ErrorCode::Ok);
    });
}

#[test]
fn who_is_cut_off_sends_its_clients_to_the_new_leader() {
    local(async {
        let (metas, old) = Metas::with_table(3).await;
        // The store does not hear the leader any more, and the leader does not hear of it.
        metas.session(old).set_state(SessionState::Disconnected);
        until("it is suspended", async || {
            metas.http(old, "/readyz").await.contains("suspended").then_some(())
        })
        .await;
        metas.forget_session(old);
        let new = until("another one leads", async || {
            let leaders = metas.leaders().await;
            leaders.into_iter().find(|at| *at != old)
        })
        .await;
        let address = metas.address(new);
        until("the old one names it", async || {
            let answer = metas.query(old, "t").await;
            let named = answer.partitions.first().and_then(|p| p.primary.0).map(SocketAddr::V4);
            (answer.err.0 == ErrorCode::ForwardToOthers && named == Some(address)).then_some(())
        })
        .await;
        assert_eq!(created(metas.ask(new, create("u")).await), ErrorCode::Ok);
        // It comes back and joins the line.
        metas.session(old).set_state(SessionState::Over);
        until("it follows", async || metas.http(old, "/readyz").await.contains("standby;").then_some(()))
            .await;
        assert_eq!(metas.leader().await, new);
    });
}

#[test]
fn a_deposed_leader_cannot_write() {
    local(async {
        let (metas, old) = Metas::with_table(2).await;
        // Somebody takes its place away; it does not know it yet.
        metas.remove_node_of_leader().await;
        let code = created(metas.ask(old, create("u")).await);
        assert_ne!(code, ErrorCode::Ok, "{code}");
        let leader = metas.leader().await;
        assert_eq!(created(metas.ask(leader, create("u")).await), ErrorCode::Ok);
        assert_eq!(lint(metas.stored().await.view()), [""; 0]);
    });
}

#[test]
fn a_new_leader_waits_its_grace_before_it_declares_anybody_dead() {
    local(async {
        let (metas, old) = Metas::with_table(2).await;
        metas.healthy("t").await;
        let silent = &metas.replicas[0];
        metas.replicas.iter().for_each(|replica| replica.inner.speaks.set(false));
        let begun = Instant::now();
        metas.session(old).set_state(SessionState::Over);
        until("a leader loads", async || metas.try_leader().await).await;
        metas.replicas[1..].iter().for_each(|replica| replica.inner.speaks.set(true));
        let alive = async || {
            let at = metas.try_leader().await?;
            let view = metas.peer(at).cluster_view(WITHIN).await.ok()?;
            view.nodes.iter().find(|n| n.node == silent.node).map(|n| n.alive)
        };
        until("it counts as dead", async || (alive().await == Some(false)).then_some(())).await;
        assert!(begun.elapsed() >= Duration::from_secs(1), "before its grace: {:?}", begun.elapsed());
        sleep(Duration::from_millis(200)).await;
        // The others were heard in time and stay.
        let view = metas.peer(metas.leader().await).cluster_view(WITHIN).await.unwrap();
        assert_eq!(view.nodes.iter().filter(|n| n.alive).count(), 2);
    });
}

#[test]
fn a_new_leader_goes_on_with_an_operators_drain() {
    local(async {
        let (metas, old) = Metas::with_table(2).await;
        metas.healthy("t").await;
        let node = metas.replicas[0].node.clone();
        assert_eq!(metas.command(old, &format!("meta.drain {node}")).await, "OK");
        let store = metas.observer();
        let store: &dyn MetaStore = &store;
        let stored = store.get("/pegasus/test/drained_nodes").await.unwrap().unwrap();
        assert_eq!(&stored.bytes[..], format!(r#"{{"nodes":["{node}"]}}"#).as_bytes());

        metas.session(old).set_state(SessionState::Over);
        let new = until("another one leads", async || {
            let leader = metas.try_leader().await?;
            (metas.epoch().await == 2).then_some(leader)
        })
        .await;
        until("it knows the order", async || {
            metas.command(new, "meta.nodes").await.contains("\"RETIRED\"").then_some(())
        })
        .await;
        assert_eq!(metas.command(new, &format!("meta.drain {node} off")).await, "OK");
        assert!(!metas.command(new, "meta.nodes").await.contains("\"RETIRED\""));
        let stored = store.get("/pegasus/test/drained_nodes").await.unwrap().unwrap();
        assert_eq!(&stored.bytes[..], br#"{"nodes":[]}"#);
    });
}

#[test]
fn a_new_leader_finishes_what_the_old_one_began() {
    local(async {
        let metas = Metas::start(2, 0).await;
        let old = metas.leader().await;
        // Stored, and nobody is there who could hold it: it stays AS_CREATING.
        metas.session(old).fail_next(Fault::LoseAnswer);
        let asked = metas.ask_and_forget(old, create("t"));
        until("it is stored", async || {
            let view = metas.stored().await;
            view.view().table_by_name("t").map(|table| assert_eq!(table.info.status, AppStatus::Creating))
        })
        .await;
        metas.session(old).set_state(SessionState::Over);
        asked.abort();
        let mut metas = metas;
        metas.add_replicas(3).await;
        metas.healthy("t").await;
    });
}

#[test]
fn a_store_of_another_cluster_is_not_used() {
    local(async {
        let metas = Metas::start(1, 0).await;
        metas.leader().await;
        let store = metas.observer();
        let store: &dyn MetaStore = &store;
        let datum = store.get("/pegasus/test/cluster_id").await.unwrap().unwrap();
        store.set("/pegasus/test/cluster_id", "another".into(), datum.version).await.unwrap();
        metas.session(0).set_state(SessionState::Over);
        until("it leads no more", async || {
            metas.http(0, "/readyz").await.starts_with("HTTP/1.1 503 ").then_some(())
        })
        .await;
        sleep(Duration::from_millis(1500)).await;
        assert!(metas.try_leader().await.is_none());
        store.set("/pegasus/test/cluster_id", datum.bytes, datum.version + 1).await.unwrap();
        metas.leader().await;
    });
}

#[test]
fn metadata_from_an_old_snapshot_is_frozen() {
    local(async {
        let (metas, leader) = Metas::with_table(2).await;
        metas.healthy("t").await;
        let tree = metas.observer();
        let store: &dyn MetaStore = &tree;
        let path = "/pegasus/test/apps/1/0";
        let snapshot = store.get(path).await.unwrap().unwrap();
        let gpid = Gpid::new(1, 0);
        let config = content::decode_partition(&snapshot.bytes).unwrap();
        let primary = config.primary.clone().unwrap();
        let holder = metas.replicas.iter().find(|replica| replica.node == primary).unwrap();
        let renew = ChangeKind::Renew { primary };
        let reply = holder.ask(gpid, config.ballot.0, renew.clone()).await;
        assert!(matches!(reply, ChangeReply::Accepted(_)), "{reply:?}");
        until("its node knows the new ballot", async || {
            holder.inner.held.borrow().get(&gpid).filter(|held| held.ballot > config.ballot).map(drop)
        })
        .await;
        // An operator restores ZooKeeper: sessions are gone, the metadata is old.
        let now = store.get(path).await.unwrap().unwrap();
        store.set(path, snapshot.bytes.clone(), now.version).await.unwrap();
        metas.session(leader).set_state(SessionState::Over);
        let leader = until("the next leader reports it", async || {
            let leader = metas.try_leader().await?;
            let metrics = metas.http(leader, "/metrics").await;
            let frozen = metrics.lines().find(|line| line.starts_with("frozen_partitions"));
            frozen.is_some_and(|line| line.ends_with(" 1")).then_some(leader)
        })
        .await;
        let reply = holder.ask(gpid, config.ballot.0, renew).await;
        assert!(matches!(&reply, ChangeReply::Rejected { why, .. } if why.contains("frozen")), "{reply:?}");
        assert_eq!(store.get(path).await.unwrap().unwrap().bytes, snapshot.bytes, "it is not overwritten");
        // The other partition lives on.
        let other = metas.query(leader, "t").await.partitions[1].to_config();
        let keeper = other.primary.clone().unwrap();
        let holder = metas.replicas.iter().find(|replica| replica.node == keeper).unwrap();
        let reply = holder.ask(Gpid::new(1, 1), other.ballot.0, ChangeKind::Renew { primary: keeper }).await;
        assert!(matches!(reply, ChangeReply::Accepted(_)), "{reply:?}");
    });
}
