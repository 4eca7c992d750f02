use std::time::Duration;

use pegasus_meta_server::{Config, start};
use pegasus_rpc::wire::client::Connection;
use pegasus_telemetry::Shutdown;
use pegasus_types::meta::ChangeReply;
use pegasus_types::{Ballot, ChangeKind, ErrorCode, Gpid};
use pegasus_zk_coordination::memory_store::Fault;
use pegasus_zk_coordination::{MemoryStore, MetaStore, Op, SessionState, content};
use tokio::time::sleep;

use crate::world::*;

#[test]
fn lost_answers_and_lost_requests_do_no_harm() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let primary = world.partition(gpid).await.primary.unwrap();
        // Nobody heals in between.
        world.replica(&primary).inner.obeys.set(false);
        for (ballot, fault) in [(1, Fault::LoseAnswer), (2, Fault::LoseRequest)] {
            let node = world.partition(gpid).await.secondaries[0].clone();
            world.store.fail_next(fault);
            let remove = ChangeKind::RemoveSecondary { primary: primary.clone(), node };
            let reply = world.replica(&primary).ask(gpid, ballot, remove).await;
            let ChangeReply::Accepted(next) = reply else { panic!("{fault:?}: {reply:?}") };
            assert_eq!(next.ballot, Ballot(ballot + 1), "{fault:?}");
            assert_eq!(world.partition(gpid).await, next, "{fault:?}");
        }
        world.store.fail_next(Fault::LoseAnswer);
        assert_eq!(world.create("t", 2, 3).await, (ErrorCode::Ok, 2));
        world.store.fail_next(Fault::LoseRequest);
        assert_eq!(world.create("u", 2, 3).await, (ErrorCode::Ok, 3));
        world.healthy("t", 3).await;
        world.store.fail_next(Fault::LoseAnswer);
        assert_eq!(world.drop_table("t", 100).await, ErrorCode::Ok);
    });
}

#[test]
fn what_somebody_else_wrote_wins() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let before = world.partition(gpid).await;
        let other: &dyn MetaStore = &world.store.join();
        let datum = other.get("/pegasus/test/apps/1/0").await.unwrap().unwrap();
        let mut changed = content::decode_partition(&datum.bytes).unwrap();
        assert_eq!(changed, before);
        changed.ballot = Ballot(7);
        let bytes = content::encode_partition(&changed);
        other.multi(vec![Op::set("/pegasus/test/apps/1/0", bytes, datum.version)]).await.unwrap();
        let primary = before.primary.unwrap();
        let reply =
            world.replica(&primary).ask(gpid, 1, ChangeKind::Renew { primary: primary.clone() }).await;
        let ChangeReply::Rejected { current: Some(current), .. } = reply else { panic!("{reply:?}") };
        assert_eq!(current.ballot, Ballot(7));
        assert_eq!(world.partition(gpid).await.ballot, Ballot(7));
    });
}

#[test]
fn a_store_that_is_away_delays_and_a_lost_one_ends_the_server() {
    local(async {
        let mut world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let gpid = Gpid::new(1, 0);
        let primary = world.partition(gpid).await.primary.unwrap();
        world.store.set_state(SessionState::Disconnected);
        let renew = ChangeKind::Renew { primary: primary.clone() };
        let back = async {
            sleep(Duration::from_millis(300)).await;
            assert_eq!(world.query("temp").await.err.0, ErrorCode::Ok, "queries go on");
            world.store.set_state(SessionState::Connected);
        };
        let (reply, ()) = tokio::join!(world.replica(&primary).ask(gpid, 1, renew), back);
        assert!(matches!(reply, ChangeReply::Accepted(_)), "{reply:?}");

        world.store.set_state(SessionState::Over);
        let error = world.ended().await.unwrap_err();
        assert!(error.to_string().contains("session"), "{error}");
    });
}

#[test]
fn a_creation_that_was_cut_in_two_is_completed() {
    local(async {
        let store = std::sync::Arc::new(MemoryStore::default());
        {
            let mut world = World::start_on(store.clone(), 0, "").await;
            let direct: &dyn MetaStore = &store.join();
            tokio::select! {
                answer = world.create("t", 4, 2) => panic!("no node has it, yet it is answered: {answer:?}"),
                () = until("the table is stored", async || {
                    let stored = direct.children("/pegasus/test/apps/1").await;
                    stored.is_ok_and(|partitions| partitions.len() == 4).then_some(())
                }) => {}
            }
            world.stop().await.unwrap();
        }
        let direct: &dyn MetaStore = &store.join();
        for index in 1..4 {
            direct.delete(&format!("/pegasus/test/apps/1/{index}"), None).await.unwrap();
        }
        let world = World::start_on(store.clone(), 2, "").await;
        world.healthy("t", 2).await;
        assert_eq!(direct.children("/pegasus/test/apps/1").await.unwrap(), ["0", "1", "2", "3"]);
    });
}

#[test]
fn the_embedded_store_survives_a_restart() {
    local(async {
        let dir = tempfile::tempdir().unwrap();
        let config = || -> Config {
            let mut config = config(TEMP);
            config.core.data_dir = dir.path().display().to_string();
            config
        };
        let mut ids = Vec::new();
        for run in 0..2 {
            let shutdown = Shutdown::new();
            let handle =
                until("the store is free", async || start(config(), shutdown.clone()).await.ok()).await;
            let replicas = [
                Replica::start(std::slice::from_ref(handle.node())).await,
                Replica::start(std::slice::from_ref(handle.node())).await,
            ];
            let client = Connection::connect(handle.address(), WITHIN).await;
            assert!(client.is_ok());
            until("it knows its cluster", async || {
                let id = replicas[0].inner.cluster_id.borrow().clone();
                (!id.is_empty()).then_some(id)
            })
            .await;
            ids.push(replicas[0].inner.cluster_id.borrow().clone());
            shutdown.trigger();
            handle.wait().await.unwrap();
            assert_eq!(ids.len(), run + 1);
        }
        assert_eq!(ids[0], ids[1]);
    });
}
