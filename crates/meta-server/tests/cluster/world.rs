//! The meta-server under test, and pretended replica-servers: they adopt what they are told, report it, and
//! do what is proposed to them, as far as a test lets them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pegasus_config::Sources;
use pegasus_meta_server::{Config, Handle, Stores};
use pegasus_rpc::peer::{
    Context, Identity, MetaClient, NodeStats, PeerPool, PoolOptions, ReplicaPeer, serve_replica_peer,
};
use pegasus_rpc::wire::client::Connection;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Request, RequestHead, Response};
use pegasus_telemetry::Shutdown;
use pegasus_types::cluster::{ClusterOverview, PartitionHealth};
use pegasus_types::learn::*;
use pegasus_types::message::{Envelope, Grant, Heartbeat, HeartbeatAck};
use pegasus_types::meta::*;
use pegasus_types::{AppInfo, AppStatus, Ballot, ChangeKind, Decree, ErrorCode, Gpid, Node, PartitionConfig};
use pegasus_zk_coordination::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub const WITHIN: Duration = Duration::from_secs(5);

/// Runs a test on the kind of runtime that the daemons have.
pub fn local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// Waits until `f` says Some; panics with `what` when that takes too long.
pub async fn until<T>(what: &str, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = f().await {
                return value;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

/// The answer with its head.
pub async fn http_get(address: impl ToSocketAddrs, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: h\r\naccept: text/plain\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A configuration with short times.
pub fn config(extra: &str) -> Config {
    config_at("127.0.0.1", 0, extra)
}

/// The same, with the meta-server at this address.
pub fn config_at(host: &str, port: u16, extra: &str) -> Config {
    let text = format!(
        "[apps.meta]\nports = {port}\n[network]\nexplicit_host_address = {host}\n\
         [replication]\ncluster_name = test\nfd_beacon_interval_seconds = 50ms\nfd_grace_seconds = 1\n\
         fd_check_interval_seconds = 50ms\n[meta_server]\ncluster_root = /pegasus/test\n{extra}\n"
    );
    let mut sections = pegasus_config::common::SECTIONS.to_vec();
    sections.extend(pegasus_meta_server::SECTIONS);
    let mut loaded = Sources::text("config.ini", &text).load(&sections);
    let config = Config::load(&mut loaded);
    config.check(&mut loaded);
    loaded.finish().unwrap();
    config
}

pub const TEMP: &str = "[meta_server.apps.temp]\npartition_count = 4";

pub struct World {
    pub store: Arc<MemoryStore>,
    shutdown: Shutdown,
    handle: Option<Handle>,
    pub meta: Node,
    pub replicas: Vec<Replica>,
    client: Connection,
    /// A peer that is no replica-server, such as the shell.
    onlooker: PeerPool,
}

impl World {
    /// A meta-server and `replicas` replica-servers.
    pub async fn start(replicas: usize, extra: &str) -> Self {
        Self::start_on(Arc::new(MemoryStore::default()), replicas, extra).await
    }

    pub async fn start_on(store: Arc<MemoryStore>, replicas: usize, extra: &str) -> Self {
        let shutdown = Shutdown::new();
        let stores = Stores::One(store.clone());
        let handle = pegasus_meta_server::start_on(config(extra), stores, shutdown.clone()).await.unwrap();
        let meta = handle.node().clone();
        let client = Connection::connect(handle.address(), WITHIN).await.unwrap();
        let me = Rc::new(Identity::new(Node::new("127.0.0.1:9"), 1, ""));
        let onlooker = PeerPool::new(me, PoolOptions::default(), |_| {});
        let mut world =
            Self { store, shutdown, handle: Some(handle), meta, replicas: Vec::new(), client, onlooker };
        for _ in 0..replicas {
            let replica = Replica::start(std::slice::from_ref(&world.meta)).await;
            world.replicas.push(replica);
        }
        world
    }

    /// Ends the meta-server; the replica-servers end when dropped.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.shutdown.trigger();
        self.ended().await
    }

    /// Waits for the end of the meta-server.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let handle = self.handle.take().unwrap();
        timeout(Duration::from_secs(10), handle.wait()).await.unwrap()
    }

    pub fn as_onlooker(&self) -> MetaClient {
        self.onlooker.meta(&self.meta)
    }

    pub async fn overview(&self) -> ClusterOverview {
        self.as_onlooker().cluster_view(WITHIN).await.unwrap()
    }

    pub async fn ask(&self, request: Request) -> Response {
        self.client.call(RequestHead::default(), &request, WITHIN * 3).await.unwrap()
    }

    pub async fn query(&self, name: &str) -> QueryConfigResponse {
        self.query_for(QueryConfigRequest { app_name: name.into(), ..Default::default() }).await
    }

    pub async fn query_for(&self, request: QueryConfigRequest) -> QueryConfigResponse {
        match self.ask(Request::QueryConfig(request)).await {
            Response::QueryConfig(response) => response,
            other => panic!("{other:?}"),
        }
    }

    pub async fn admin(&self, request: AdminRequest) -> AdminResponse {
        match self.ask(Request::Admin(request)).await {
            Response::Admin(response) => response,
            other => panic!("{other:?}"),
        }
    }

    pub async fn create(&self, name: &str, partition_count: i32, replica_count: i32) -> (ErrorCode, i32) {
        let options = CreateAppOptions {
            partition_count,
            replica_count,
            app_type: "pegasus".into(),
            is_stateful: true,
            ..Default::default()
        };
        let request = CreateAppRequest { app_name: name.into(), options };
        match self.admin(AdminRequest::CreateApp(request)).await {
            AdminResponse::CreateApp(response) => (response.err.0, response.appid),
            other => panic!("{other:?}"),
        }
    }

    pub async fn recall(&self, app_id: i32, new_name: &str) -> RecallAppResponse {
        let request = RecallAppRequest { app_id, new_app_name: new_name.into() };
        match self.admin(AdminRequest::RecallApp(request)).await {
            AdminResponse::RecallApp(response) => response,
            other => panic!("{other:?}"),
        }
    }

    pub async fn envs(&self, request: UpdateAppEnvRequest) -> (ErrorCode, String) {
        match self.admin(AdminRequest::UpdateAppEnv(request)).await {
            AdminResponse::UpdateAppEnv(response) => (response.err.0, response.hint_message),
            other => panic!("{other:?}"),
        }
    }

    pub async fn drop_table(&self, name: &str, reserve_seconds: i64) -> ErrorCode {
        let options = DropAppOptions { success_if_not_exist: false, reserve_seconds: Some(reserve_seconds) };
        match self.admin(AdminRequest::DropApp(DropAppRequest { app_name: name.into(), options })).await {
            AdminResponse::DropApp(response) => response.err.0,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until every partition of the table has `members` living members, and returns what clients see.
    pub async fn healthy(&self, name: &str, members: usize) -> QueryConfigResponse {
        until(&format!("{name} has {members} members everywhere"), async || {
            let overview = self.overview().await;
            let table = overview.tables.iter().rfind(|t| t.info.name == name)?;
            let healthy = table.info.status == AppStatus::Available
                && table
                    .partitions
                    .iter()
                    .all(|p| p.health >= PartitionHealth::WritableIll && p.config.member_count() == members);
            if healthy { Some(self.query(name).await) } else { None }
        })
        .await
    }

    pub async fn partition(&self, gpid: Gpid) -> PartitionConfig {
        match self.as_onlooker().query(WITHIN, gpid).await.unwrap() {
            QueryReply::Known(_, config) => config,
            other => panic!("{other:?}"),
        }
    }

    /// Does the leader refuse every change of it?
    pub async fn is_frozen(&self, gpid: Gpid) -> bool {
        let config = self.partition(gpid).await;
        let primary = config.primary.unwrap();
        let renew = ChangeKind::Renew { primary: primary.clone() };
        let reply = self.replica(&primary).ask(gpid, config.ballot.0, renew).await;
        matches!(reply, ChangeReply::Rejected { why, .. } if why.contains("frozen"))
    }

    pub fn replica(&self, node: &Node) -> &Replica {
        self.replicas.iter().find(|replica| replica.node == *node).unwrap()
    }
}

/// A pretended replica-server. Dropping it ends it like a kill -9.
pub struct Replica {
    pub node: Node,
    pub inner: Rc<Inner>,
    token: CancellationToken,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

pub struct Inner {
    node: Node,
    metas: Vec<Node>,
    /// Whom it asks: the leader as far as it knows.
    asked: RefCell<Node>,
    pool: PeerPool,
    incarnation: u64,
    /// Does what is proposed; off = takes notice only.
    pub obeys: Cell<bool>,
    /// Sends beacons and reports.
    pub speaks: Cell<bool>,
    /// Its beacons say that it is about to end.
    pub drains: Cell<bool>,
    pub skew_s: Cell<i64>,
    pub configs: RefCell<BTreeMap<Gpid, (AppInfo, PartitionConfig)>>,
    pub held: RefCell<BTreeMap<Gpid, ReplicaReport>>,
    pub proposals: RefCell<Vec<ProposalRequest>>,
    pub garbage: RefCell<BTreeSet<Gpid>>,
    pub cluster_id: RefCell<String>,
}

#[derive(Clone)]
struct Peer(Rc<Inner>);

impl Replica {
    pub async fn start(metas: &[Node]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::start_at(metas, listener, BTreeMap::new())
    }

    /// Kills it and starts another process at its address, which holds the same replicas.
    pub async fn restart(self) -> Self {
        let (node, metas) = (self.node.clone(), self.inner.metas.clone());
        let held = self.inner.held.take();
        drop(self);
        let listener = until("the old address is free", async || TcpListener::bind(node.as_str()).await.ok());
        Self::start_at(&metas, listener.await, held)
    }

    fn start_at(metas: &[Node], listener: TcpListener, held: BTreeMap<Gpid, ReplicaReport>) -> Self {
        let node = Node::new(listener.local_addr().unwrap().to_string());
        let identity = Rc::new(Identity::new(node.clone(), rand::random(), ""));
        let pool = PeerPool::new(identity.clone(), PoolOptions::default(), |_| {});
        let inner = Rc::new(Inner {
            node: node.clone(),
            metas: metas.to_vec(),
            asked: RefCell::new(metas[0].clone()),
            pool,
            incarnation: identity.incarnation,
            obeys: Cell::new(true),
            speaks: Cell::new(true),
            drains: Cell::new(false),
            skew_s: Cell::new(0),
            configs: RefCell::default(),
            held: RefCell::new(held),
            proposals: RefCell::default(),
            garbage: RefCell::default(),
            cluster_id: RefCell::default(),
        });
        let token = CancellationToken::new();
        let (peer, accept) = (Peer(inner.clone()), token.clone());
        spawn(&token, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (peer, identity, token) = (peer.clone(), identity.clone(), accept.clone());
                tokio::task::spawn_local(async move {
                    let _ = serve_replica_peer(stream, &identity, |_| peer, &token).await;
                });
            }
        });
        spawn(&token, beacons(inner.clone()));
        Self { node, inner, token }
    }

    pub async fn ask(&self, gpid: Gpid, ballot: i64, kind: ChangeKind) -> ChangeReply {
        let request = ChangeRequest { gpid, ballot: Ballot(ballot), kind, committed: Decree(0) };
        self.inner.meta().change(WITHIN, request).await.unwrap()
    }
}

fn spawn(token: &CancellationToken, task: impl Future<Output = ()> + 'static) {
    let token = token.clone();
    tokio::task::spawn_local(async move { token.run_until_cancelled_owned(task).await });
}

async fn beacons(inner: Rc<Inner>) {
    loop {
        if inner.speaks.get() {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
            let beacon = Beacon {
                node: inner.node.clone(),
                incarnation: inner.incarnation,
                wall_us: (wall + inner.skew_s.get() * 1_000_000) as u64,
                log_healthy: true,
                draining: inner.drains.get(),
            };
            match inner.meta().beacon(WITHIN, beacon).await {
                Ok(ack) if ack.accepted => {
                    *inner.cluster_id.borrow_mut() = ack.cluster_id;
                    if ack.wants_report {
                        inner.clone().report().await;
                    }
                }
                Ok(ack) => inner.turn_to(ack.leader),
                Err(_) => inner.turn_to(None),
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl Inner {
    pub fn meta(&self) -> MetaClient {
        self.pool.meta(&self.asked.borrow())
    }

    /// To this one, or to the next.
    fn turn_to(&self, leader: Option<Node>) {
        let mut asked = self.asked.borrow_mut();
        let at = self.metas.iter().position(|meta| *meta == *asked).unwrap_or(0);
        *asked = leader.unwrap_or_else(|| self.metas[(at + 1) % self.metas.len()].clone());
    }

    pub async fn report(self: Rc<Self>) {
        if !self.speaks.get() {
            return;
        }
        let replicas = self.held.borrow().values().cloned().collect();
        let report = ConfigSync { node: self.node.clone(), incarnation: self.incarnation, replicas };
        if let Ok(ack) = self.meta().config_sync(WITHIN, report).await {
            self.take(ack.configs);
            for gpid in ack.garbage {
                self.held.borrow_mut().remove(&gpid);
                self.garbage.borrow_mut().insert(gpid);
            }
        }
    }

    /// Adopts what is newer. True when a replica was made.
    fn take(&self, configs: Vec<(AppInfo, PartitionConfig)>) -> bool {
        let mut made = false;
        for (info, config) in configs {
            let mut held = self.held.borrow_mut();
            if held.get(&config.gpid).is_some_and(|replica| replica.ballot > config.ballot) {
                continue;
            }
            if config.is_member(&self.node) {
                let status = if config.is_primary(&self.node) {
                    ReplicaStatus::Primary
                } else {
                    ReplicaStatus::Secondary
                };
                made |= !held.contains_key(&config.gpid);
                held.insert(config.gpid, report(config.gpid, config.ballot, status));
            } else if let Some(replica) = held.get_mut(&config.gpid) {
                replica.status = ReplicaStatus::Inactive;
            }
            let mut known = self.configs.borrow_mut();
            // An answer to an earlier report may come after what was pushed since; real nodes report again and again.
            let newer = known.get(&config.gpid).is_none_or(|(old_info, old)| {
                let is_older = old_info.status != AppStatus::Creating && info.status == AppStatus::Creating;
                config.ballot >= old.ballot && !is_older
            });
            if newer {
                known.insert(config.gpid, (info, config));
            }
        }
        made
    }
}

pub fn report(gpid: Gpid, ballot: Ballot, status: ReplicaStatus) -> ReplicaReport {
    ReplicaReport {
        gpid,
        ballot,
        status,
        committed: Decree(0),
        prepared: Decree(0),
        durable: Decree(0),
        disk_tag: "d".into(),
    }
}

impl ReplicaPeer for Peer {
    async fn adopt(self, _: Context, configs: Vec<(AppInfo, PartitionConfig)>) {
        if self.0.take(configs) {
            tokio::task::spawn_local(self.0.report());
        }
    }

    async fn propose(self, _: Context, request: ProposalRequest) -> ErrorCode {
        let inner = self.0;
        inner.proposals.borrow_mut().push(request.clone());
        if !inner.obeys.get() {
            return ErrorCode::Ok;
        }
        let me = inner.node.clone();
        let kind = match request.proposal {
            Proposal::AddSecondary { node } => ChangeKind::AddSecondary { primary: me, node },
            Proposal::RemoveSecondary { node } => ChangeKind::RemoveSecondary { primary: me, node },
            Proposal::HandOver { to } => ChangeKind::HandOver { primary: me, to, stay: true },
            Proposal::TakeOver => ChangeKind::TakeOver { claimant: me },
        };
        let ProposalRequest { gpid, ballot, .. } = request;
        tokio::task::spawn_local(async move {
            let request = ChangeRequest { gpid, ballot, kind, committed: Decree(0) };
            let _ = inner.meta().change(WITHIN, request).await;
        });
        ErrorCode::Ok
    }

    async fn deliver(self, _: Context, _: Vec<Envelope>) {}

    async fn heartbeat(self, _: Context, heartbeat: Heartbeat) -> HeartbeatAck {
        HeartbeatAck {
            incarnation: self.0.incarnation,
            to_incarnation: heartbeat.incarnation,
            seq: heartbeat.seq,
            grant: Grant::All,
            log_healthy: true,
        }
    }

    async fn learn_open(self, _: Context, _: LearnOpen) -> Result<LearnPlan, LearnRefused> {
        Err(LearnRefused::Busy)
    }

    async fn learn_rows(self, _: Context, _: RowsRequest) -> Result<RowsChunk, LearnRefused> {
        Err(LearnRefused::Busy)
    }

    async fn learn_log(self, _: Context, _: LogRequest) -> Result<LogChunk, LearnRefused> {
        Err(LearnRefused::Busy)
    }

    async fn stats(self, _: Context) -> NodeStats {
        unreachable!("the meta-server does not ask")
    }
}
