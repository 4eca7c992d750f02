//! Many partitions over a real ZooKeeper, with replica-servers that only pretend to hold data: how long a leader takes
//! to start, how long until every partition of a dead node has a new primary, how much is stored. The figures are
//! printed; docs/zookeeper.md has those of the long run (`PEGASUS_TEST_PARTITIONS=10000`).

use std::time::Duration;

use futures::{StreamExt, stream};
use pegasus_config::{Ms, Seconds};
use pegasus_meta_server::{Config, Handle};
use pegasus_onebox::ZooKeeper;
use pegasus_rpc::peer::{Identity, PeerPool, PoolOptions};
use pegasus_rpc::wire::client::Connection;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Request, RequestHead, Response};
use pegasus_telemetry::Shutdown;
use pegasus_types::meta::{ChangeReply, QueryReply};
use pegasus_types::{AppStatus, ChangeKind, ErrorCode, Gpid, Node, PartitionConfig};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::zk_store::{Access, Options};
use pegasus_zk_coordination::{ZooKeeperStore, survey};
use tokio::time::{Instant, sleep};

use crate::world::*;

/// Of one table.
const MOST_PARTITIONS: i32 = 1024;
/// Each is primary of a fifth.
const NODES: usize = 5;
/// Requests of all groups under way at a time.
const CLAIMS_AT_ONCE: usize = 512;
/// Of everything here, in a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn many_partitions() {
    let wanted = std::env::var("PEGASUS_TEST_PARTITIONS").map_or(256, |text| text.parse::<i32>().unwrap());
    let per_table = wanted.min(MOST_PARTITIONS);
    let tables = (wanted + per_table - 1) / per_table;
    let zookeeper = ZooKeeper::start(1).unwrap();
    zookeeper.wait_serving(Duration::from_secs(60)).unwrap();
    local(async {
        let meta = Meta::start(&zookeeper.hosts()).await;
        let mut replicas = Vec::new();
        for _ in 0..NODES {
            replicas.push(Replica::start(&[meta.node()]).await);
        }
        let begun = Instant::now();
        for n in 0..tables {
            meta.create(&format!("t{n}"), per_table).await;
        }
        println!(
            "{} partitions in {tables} tables were created in {:?}",
            tables * per_table,
            begun.elapsed()
        );

        let options = Options {
            hosts: zookeeper.hosts(),
            session_timeout: Duration::from_secs(10),
            user: None,
            access: Access::Everyone,
        };
        let store = ZooKeeperStore::connect(&options).await.unwrap();
        let all = survey::read_all(&store, &Tree::new("/pegasus/test")).await.unwrap();
        let bytes: usize = all.iter().map(|(path, bytes)| path.len() + bytes.len()).sum();
        println!("{} nodes in ZooKeeper, {bytes} bytes", all.len());

        // A node dies, and its groups claim their new primaries.
        let victim = replicas.remove(0);
        let led: Vec<PartitionConfig> = {
            let known = victim.inner.configs.borrow();
            let configs = known.values().map(|(_, config)| config.clone());
            configs.filter(|config| config.is_primary(&victim.node)).collect()
        };
        assert!(led.len() * NODES * 2 > all.len() / 2, "{} of {}", led.len(), all.len());
        drop(victim);
        let claim = async |config: PartitionConfig| {
            let claimant = config.secondaries[0].clone();
            let replica = replicas.iter().find(|replica| replica.node == claimant).unwrap();
            let reply = replica.ask(config.gpid, config.ballot.0, ChangeKind::TakeOver { claimant }).await;
            assert!(matches!(reply, ChangeReply::Accepted(_)), "{reply:?}");
        };
        let (begun, claims) = (Instant::now(), led.len());
        stream::iter(led).for_each_concurrent(CLAIMS_AT_ONCE, claim).await;
        println!("{claims} partitions have a new primary after {:?}", begun.elapsed());
        assert!(begun.elapsed() < PATIENCE);

        // A new leader.
        let address = meta.stop().await;
        let begun = Instant::now();
        let meta = Meta::start_at(&zookeeper.hosts(), address).await;
        meta.known(Gpid::new(tables, per_table - 1)).await;
        println!("a leader serves {:?} after the start of its process", begun.elapsed());
        meta.stop().await;
    });
}

struct Meta {
    handle: Handle,
    shutdown: Shutdown,
}

impl Meta {
    async fn start(hosts: &str) -> Self {
        Self::start_at(hosts, 0).await
    }

    async fn start_at(hosts: &str, port: u16) -> Self {
        let extra = format!("coordination = zookeeper\n[zookeeper]\nhosts_list = {hosts}\n");
        let mut config: Config = config_at("127.0.0.1", port, &extra);
        // This process plays all nodes: none of them is dead when it has a lot to do.
        config.liveness.fd_grace_seconds = Seconds::new(60);
        config.zookeeper.timeout_ms = Ms::new(30_000);
        let shutdown = Shutdown::new();
        let handle = pegasus_meta_server::start(config, shutdown.clone()).await.unwrap();
        Self { handle, shutdown }
    }

    /// Its port.
    async fn stop(self) -> u16 {
        let port = self.handle.address().port();
        self.shutdown.trigger();
        self.handle.wait().await.unwrap();
        port
    }

    fn node(&self) -> Node {
        self.handle.node().clone()
    }

    /// Waits until the table is there.
    async fn create(&self, name: &str, partition_count: i32) {
        let client = Connection::connect(self.handle.address(), WITHIN).await.unwrap();
        let options = CreateAppOptions {
            partition_count,
            replica_count: 3,
            app_type: "pegasus".into(),
            is_stateful: true,
            success_if_exist: true,
            ..Default::default()
        };
        let request = AdminRequest::CreateApp(CreateAppRequest { app_name: name.into(), options });
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let answer =
                client.call(RequestHead::default(), &Request::Admin(request.clone()), PATIENCE).await;
            let Response::Admin(AdminResponse::CreateApp(answer)) = answer.unwrap() else { panic!() };
            let tables = AdminRequest::ListApps(ListAppsRequest::default());
            let tables =
                client.call(RequestHead::default(), &Request::Admin(tables), PATIENCE).await.unwrap();
            let Response::Admin(AdminResponse::ListApps(tables)) = tables else { panic!() };
            let is_there =
                |info: &AppInfoMessage| info.app_name == name && info.status == AppStatus::Available as i32;
            if answer.err.0 == ErrorCode::Ok && tables.infos.iter().any(is_there) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{name} does not become available");
    }

    /// Waits until a leader knows it.
    async fn known(&self, gpid: Gpid) {
        let me = std::rc::Rc::new(Identity::new(Node::new("127.0.0.1:9"), 1, ""));
        let pool = PeerPool::new(me, PoolOptions::default(), |_| {});
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Ok(QueryReply::Known(..)) = pool.meta(&self.node()).query(WITHIN, gpid).await {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody leads");
    }
}
