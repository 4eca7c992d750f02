use std::collections::BTreeMap;
use std::time::Duration;

use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse};
use pegasus_types::{AppStatus, ErrorCode, Gpid, Node};
use tokio::time::{Instant, sleep};

use crate::world::*;

#[test]
fn the_first_start_makes_the_default_table() {
    local(async {
        let mut world = World::start(0, TEMP).await;
        until("temp is being created", async || {
            (world.query("temp").await.err.0 == ErrorCode::BusyCreating).then_some(())
        })
        .await;
        assert_eq!(world.query("other").await.err.0, ErrorCode::ObjectNotFound);
        for _ in 0..3 {
            let replica = Replica::start(std::slice::from_ref(&world.meta)).await;
            world.replicas.push(replica);
            // The first nodes do not get everything.
            sleep(Duration::from_millis(200)).await;
        }
        let seen = world.healthy("temp", 3).await;
        assert_eq!((seen.err.0, seen.app_id, seen.partition_count), (ErrorCode::Ok, 1, 4));
        assert!(seen.is_stateful);
        let mut primaries: BTreeMap<Node, usize> = BTreeMap::new();
        for (index, partition) in (0..).zip(&seen.partitions) {
            assert_eq!(partition.gpid(), Gpid::new(1, index));
            assert_eq!((partition.ballot, partition.secondaries.len()), (1, 2));
            *primaries.entry(partition.primary.node().unwrap()).or_default() += 1;
        }
        assert_eq!(primaries.len(), 3, "{primaries:?}");
        assert!(primaries.values().all(|n| *n <= 2), "{primaries:?}");

        // Only some partitions, and indices out of range.
        for (wanted, got) in [(vec![2, 9], vec![2]), (vec![9, -1], vec![0, 1, 2, 3])] {
            let request = QueryConfigRequest { app_name: "temp".into(), partition_indices: wanted };
            let response = world.query_for(request).await;
            let indices: Vec<_> = response.partitions.iter().map(|p| p.gpid().index).collect();
            assert_eq!(indices, got);
        }

        let cluster_id = world.overview().await.cluster_id;
        assert!(world.replicas.iter().all(|r| *r.inner.cluster_id.borrow() == cluster_id));
        world.stop().await.unwrap();

        // The second start makes no second one.
        let again = World::start_on(world.store.clone(), 0, TEMP).await;
        let overview = again.overview().await;
        assert_eq!((overview.cluster_id, overview.tables.len()), (cluster_id, 1));
        assert_eq!(overview.nodes.len(), 3, "members are known from the configurations");
        assert_eq!(again.query("temp").await.partitions, seen.partitions);
    });
}

#[test]
fn create_use_and_drop() {
    local(async {
        let world = World::start(4, "").await;
        until("all nodes are there", async || (world.overview().await.nodes.len() == 4).then_some(())).await;
        let begun = Instant::now();
        assert_eq!(world.create("t", 8, 3).await, (ErrorCode::Ok, 1));
        assert_eq!(
            world.query("t").await.err.0,
            ErrorCode::Ok,
            "Go's admin client gives up when it has to wait"
        );
        world.healthy("t", 3).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "took {:?}", begun.elapsed());
        let loads: Vec<u32> =
            world.overview().await.nodes.iter().map(|n| n.primaries + n.secondaries).collect();
        assert_eq!(loads, [6, 6, 6, 6]);
        until("every member knows that it may not make empty replicas any more", async || {
            let available = |r: &Replica| {
                r.inner.configs.borrow().values().all(|(info, _)| info.status == AppStatus::Available)
            };
            world.replicas.iter().all(available).then_some(())
        })
        .await;

        for (name, partitions, replicas, want) in [
            ("t", 8, 3, ErrorCode::AppExist),
            ("x", 3, 3, ErrorCode::InvalidParameters),
            ("x", 1, 3, ErrorCode::InvalidParameters),
            ("x", 8, 9, ErrorCode::InvalidParameters),
            ("", 8, 3, ErrorCode::InvalidParameters),
        ] {
            assert_eq!(world.create(name, partitions, replicas).await.0, want, "{name:?} {partitions}");
        }
        assert_eq!(world.drop_table("x", 0).await, ErrorCode::AppNotExist);

        assert_eq!(world.drop_table("t", 1).await, ErrorCode::Ok);
        assert_eq!(world.query("t").await.err.0, ErrorCode::ObjectNotFound);
        until("everyone knows", async || {
            let out = |r: &Replica| r.inner.configs.borrow().values().all(|(_, c)| c.member_count() == 0);
            world.replicas.iter().all(out).then_some(())
        })
        .await;
        assert_eq!(world.create("t", 2, 2).await, (ErrorCode::Ok, 2), "ids are never reused");
        world.healthy("t", 2).await;

        // Once nobody can recall it, its replicas are garbage; not before.
        let first = &world.replicas[0];
        let garbage = || first.inner.garbage.borrow().iter().filter(|gpid| gpid.app_id == 1).count();
        assert_eq!(garbage(), 0);
        until("the replicas of the dropped table are garbage", async || {
            first.inner.clone().report().await;
            (garbage() == 6).then_some(())
        })
        .await;
        assert!(first.inner.held.borrow().keys().all(|gpid| gpid.app_id == 2));
    });
}

#[test]
fn what_tools_see() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let request = ListAppsRequest { status: 0, app_name_pattern: None, match_type: None };
        let AdminResponse::ListApps(apps) = world.admin(AdminRequest::ListApps(request)).await else {
            panic!()
        };
        assert_eq!((apps.err.0, apps.infos.len()), (ErrorCode::Ok, 1));
        assert_eq!((apps.infos[0].app_name.as_str(), apps.infos[0].status), ("temp", 1));
        assert_eq!((apps.infos[0].partition_count, apps.infos[0].max_replica_count), (4, 3));

        let request = ListNodesRequest { status: 1 };
        let AdminResponse::ListNodes(nodes) = world.admin(AdminRequest::ListNodes(request)).await else {
            panic!()
        };
        let listed: Vec<_> = nodes.infos.iter().filter_map(|info| info.node.node()).collect();
        let mut started: Vec<_> = world.replicas.iter().map(|r| r.node.clone()).collect();
        started.sort();
        assert_eq!(listed, started);

        let request = AdminRequest::ClusterInfo(ClusterInfoRequest {});
        let AdminResponse::ClusterInfo(info) = world.admin(request).await else { panic!() };
        assert_eq!(info.keys[0], "meta_servers");
        assert_eq!(info.values[0], world.meta.as_str());
        let level = info.keys.iter().position(|key| key == "meta_function_level").unwrap();
        assert_eq!(info.values[level], "steady");
        assert_eq!(info.keys.len(), info.values.len());
    });
}

#[test]
fn no_tables_at_a_low_level() {
    local(async {
        let extra = format!("meta_function_level_on_start = freezed\n{TEMP}");
        let world = World::start(3, &extra).await;
        assert_eq!(world.create("t", 2, 3).await.0, ErrorCode::StateFreezed);
        assert!(world.overview().await.tables.is_empty());
    });
}

#[test]
fn a_dropped_table_comes_back_with_its_data() {
    local(async {
        let mut world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let last = world.partition(Gpid::new(1, 0)).await;
        let primary = last.primary.clone().unwrap();
        assert_eq!(world.recall(1, "").await.err.0, ErrorCode::AppExist);
        assert_eq!(world.drop_table("temp", 1000).await, ErrorCode::Ok);
        assert_eq!(world.query("temp").await.err.0, ErrorCode::ObjectNotFound);
        assert_eq!(world.recall(9, "").await.err.0, ErrorCode::AppNotExist);
        assert_eq!(world.recall(1, "a b").await.err.0, ErrorCode::InvalidParameters);
        // Also when the answer of the store is lost.
        world.store.fail_next(pegasus_zk_coordination::memory_store::Fault::LoseAnswer);
        let back = world.recall(1, "again").await;
        assert_eq!((back.err.0, back.info.app_name.as_str()), (ErrorCode::Ok, "again"));
        let first = world.partition(Gpid::new(1, 0)).await;
        assert_eq!(first.primary, Some(primary), "who had everything last");
        assert!(first.ballot > last.ballot);
        // The others have old copies, which they have to renew.
        world.healthy("again", 3).await;

        assert_eq!(world.drop_table("again", 1).await, ErrorCode::Ok);
        until("its time is over", async || {
            // A name that is refused later, so that it does not come back.
            (world.recall(1, "a b").await.err.0 == ErrorCode::AppNotExist).then_some(())
        })
        .await;
        world.stop().await.unwrap();
    });
}

#[test]
fn settings_of_a_table_reach_its_nodes() {
    local(async {
        let world = World::start(3, TEMP).await;
        world.healthy("temp", 3).await;
        let set = |keys: &[&str], values: &[&str]| UpdateAppEnvRequest {
            app_name: "temp".into(),
            op: APP_ENV_SET,
            keys: Some(keys.iter().map(|k| (*k).to_owned()).collect()),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            clear_prefix: None,
        };
        let told = |ttl: u32| {
            world.replicas.iter().all(|replica| {
                let known = replica.inner.configs.borrow();
                known.values().all(|(info, _)| info.default_ttl_s() == ttl)
            })
        };
        assert_eq!(world.envs(set(&["default_ttl"], &["60"])).await, (ErrorCode::Ok, String::new()));
        until("every node knows it", async || told(60).then_some(())).await;
        let (code, hint) = world.envs(set(&["nonsense"], &["60"])).await;
        assert_eq!(
            (code, hint.as_str()),
            (ErrorCode::InvalidParameters, "app_env 'nonsense' is not supported")
        );
        for (bad, code) in [
            (set(&[], &[]), ErrorCode::InvalidParameters),
            (set(&["default_ttl"], &[]), ErrorCode::InvalidParameters),
            (UpdateAppEnvRequest { op: 9, ..set(&[], &[]) }, ErrorCode::InvalidParameters),
            (UpdateAppEnvRequest { op: APP_ENV_DEL, ..set(&[], &[]) }, ErrorCode::InvalidParameters),
            (
                UpdateAppEnvRequest { app_name: "no".into(), ..set(&["default_ttl"], &["1"]) },
                ErrorCode::AppNotExist,
            ),
        ] {
            assert_eq!(world.envs(bad.clone()).await.0, code, "{bad:?}");
        }
        let overview = world.overview().await;
        assert_eq!(overview.tables[0].info.envs.len(), 1);
        let clear = UpdateAppEnvRequest { op: APP_ENV_CLEAR, ..set(&[], &[]) };
        let (code, hint) = world.envs(clear).await;
        assert_eq!((code, hint.as_str()), (ErrorCode::Ok, "deleted keys: default_ttl"));
        until("every node forgets it", async || told(0).then_some(())).await;
    });
}

/// Tools take an error for the end, and an answer without members for "look again".
#[test]
fn a_creation_that_takes_long_is_answered_and_then_looked_at_again_and_again() {
    local(async {
        let mut world = World::start(0, "").await;
        let begun = Instant::now();
        assert_eq!(world.query("t").await.err.0, ErrorCode::ObjectNotFound);
        let answer = async {
            let created = world.create("t", 4, 3).await;
            assert_eq!(created, (ErrorCode::Ok, 1));
        };
        let early = async {
            until("it is being created", async || {
                let answer = world.query("t").await.err.0;
                (answer == ErrorCode::BusyCreating).then_some(())
            })
            .await;
        };
        tokio::join!(answer, early);
        assert!(
            begun.elapsed() > Duration::from_secs(5),
            "the answer waits for nodes: {:?}",
            begun.elapsed()
        );
        let seen = world.query("t").await;
        assert_eq!((seen.err.0, seen.partition_count, seen.partitions.len()), (ErrorCode::Ok, 4, 4));
        assert!(seen.partitions.iter().all(|p| p.primary.node().is_none() && p.secondaries.is_empty()));
        for _ in 0..3 {
            world.replicas.push(Replica::start(std::slice::from_ref(&world.meta)).await);
        }
        world.healthy("t", 3).await;
    });
}
