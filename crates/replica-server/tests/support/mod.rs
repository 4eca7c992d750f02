//! Real replica-servers, each on a thread of its own, round a meta-server that only keeps configurations.

#![allow(dead_code, reason = "each test uses its part")]

pub mod rows;
#[path = "../../../storage/tests/conformance/small_disk.rs"]
pub mod small_disk;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pegasus_config::Sources;
use pegasus_replica_server::lost_power::{self, Accepted, Which};
use pegasus_replica_server::{Config, start};
use pegasus_rpc::listener::{self, Handlers};
use pegasus_rpc::peer::{Identity, MetaPeer, PeerPool, PoolOptions, serve_meta_peer};
use pegasus_rpc::wire::client::{CallError, Connection};
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::request::{Request, Response};
use pegasus_telemetry::Shutdown;
use pegasus_types::cluster::ClusterOverview;
use pegasus_types::data::*;
use pegasus_types::meta::*;
use pegasus_types::{AppInfo, AppStatus, Ballot, ChangeKind, ErrorCode, Gpid, Node, PartitionConfig, hash};
use tarpc::context::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub const APP: i32 = 2;
pub const WITHIN: Duration = Duration::from_secs(5);

/// A free port of this machine.
pub fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Configurations, changed as the meta leader would.
pub struct FakeMeta {
    pub node: Node,
    state: Rc<RefCell<MetaState>>,
    pool: PeerPool,
    token: CancellationToken,
}

#[derive(Default)]
struct MetaState {
    app: Option<AppInfo>,
    configs: BTreeMap<Gpid, PartitionConfig>,
    reports: BTreeMap<Node, ConfigSync>,
    garbage: Vec<Gpid>,
    draining: BTreeSet<Node>,
    /// Answers to reports are made at once and wait for this.
    late: Option<Rc<Notify>>,
    reports_taken: usize,
}

#[derive(Clone)]
struct MetaApi(Rc<RefCell<MetaState>>);

impl MetaPeer for MetaApi {
    async fn beacon(self, _: Context, beacon: Beacon) -> BeaconAck {
        if beacon.draining {
            self.0.borrow_mut().draining.insert(beacon.node);
        }
        BeaconAck {
            accepted: true,
            leader: None,
            wants_report: false,
            all_draining: false,
            cluster_id: "test-cluster".into(),
        }
    }

    async fn config_sync(self, _: Context, report: ConfigSync) -> ConfigSyncAck {
        let (ack, late) = {
            let state = &mut *self.0.borrow_mut();
            (state.config_sync(report), state.late.clone())
        };
        if let Some(late) = late {
            late.notified().await;
        }
        ack
    }

    async fn change(self, _: Context, request: ChangeRequest) -> ChangeReply {
        self.0.borrow_mut().change(request)
    }

    async fn query(self, _: Context, gpid: Gpid) -> QueryReply {
        let state = self.0.borrow();
        match (&state.app, state.configs.get(&gpid)) {
            (Some(app), Some(config)) => QueryReply::Known(app.clone(), config.clone()),
            _ => QueryReply::Unknown,
        }
    }

    async fn cluster_view(self, _: Context) -> ClusterOverview {
        ClusterOverview {
            cluster_id: String::new(),
            cluster_name: String::new(),
            leader: None,
            metas: Vec::new(),
            nodes: Vec::new(),
            tables: Vec::new(),
        }
    }
}

impl MetaState {
    fn config_sync(&mut self, report: ConfigSync) -> ConfigSyncAck {
        let node = report.node.clone();
        self.reports.insert(node.clone(), report);
        self.update_status();
        let app = self.app.clone();
        let configs = app.into_iter().flat_map(|app| {
            let mine = self.configs.values().filter(|c| c.is_member(&node)).cloned().collect::<Vec<_>>();
            mine.into_iter().map(move |config| (app.clone(), config))
        });
        let (configs, garbage) = (configs.collect(), self.garbage.clone());
        self.reports_taken += 1;
        ConfigSyncAck { err: ErrorCode::Ok, leader: None, configs, garbage }
    }

    /// A table becomes available when every member has opened its replica.
    fn update_status(&mut self) {
        let has = |node: &Node, gpid: Gpid| {
            self.reports.get(node).is_some_and(|r| r.replicas.iter().any(|r| r.gpid == gpid))
        };
        let whole = self.configs.values().all(|c| c.members().all(|node| has(node, c.gpid)));
        if let Some(app) = &mut self.app
            && whole
        {
            app.status = AppStatus::Available;
        }
    }

    fn change(&mut self, request: ChangeRequest) -> ChangeReply {
        let Some(config) = self.configs.get_mut(&request.gpid) else {
            return ChangeReply::Rejected { current: None, why: "unknown".into() };
        };
        if config.ballot != request.ballot {
            return ChangeReply::Rejected { current: Some(config.clone()), why: "other ballot".into() };
        }
        let drop_node = |config: &mut PartitionConfig, node: &Node| {
            config.secondaries.retain(|n| n != node);
            config.last_drops.push(node.clone());
        };
        match &request.kind {
            ChangeKind::TakeOver { claimant } => {
                let old = config.primary.replace(claimant.clone());
                config.secondaries.retain(|n| n != claimant);
                config.last_drops.extend(old);
            }
            ChangeKind::Renew { .. } => {}
            ChangeKind::AddSecondary { node, .. } => config.secondaries.push(node.clone()),
            ChangeKind::RemoveSecondary { node, .. } => drop_node(config, node),
            ChangeKind::HandOver { primary, to, stay } => {
                config.primary = Some(to.clone());
                config.secondaries.retain(|n| n != to);
                if *stay {
                    config.secondaries.push(primary.clone());
                }
            }
        }
        config.ballot = config.ballot.next();
        ChangeReply::Accepted(config.clone())
    }
}

impl FakeMeta {
    /// In the current LocalSet.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::new(listener.local_addr().unwrap().to_string());
        let me = Rc::new(Identity::new(node.clone(), 1, "test-cluster"));
        let pool = PeerPool::new(me.clone(), PoolOptions::default(), |_| {});
        let state = Rc::<RefCell<MetaState>>::default();
        let token = CancellationToken::new();
        let handlers = Handlers {
            client: None,
            http: listener::handler(|_, _| async {}),
            peer: Some(listener::handler({
                let (state, token) = (state.clone(), token.clone());
                move |stream, _| {
                    let (me, state, token) = (me.clone(), state.clone(), token.clone());
                    async move {
                        let _ = serve_meta_peer(stream, &me, |_| MetaApi(state), &token).await;
                    }
                }
            })),
        };
        let limits = listener::Limits::default();
        tokio::task::spawn_local(listener::serve(listener, handlers, limits, token.clone()));
        Self { node, state, pool, token }
    }

    /// Creates table [`APP`] and waits until every replica is there.
    pub async fn create_table(&self, partitions: i32, members: &[Node], envs: &[(&str, &str)]) {
        // Room for one more than there are.
        let max_replica_count = i32::try_from(members.len()).unwrap() + 1;
        let app = AppInfo {
            app_id: APP,
            name: "temp".into(),
            app_type: "pegasus".into(),
            status: AppStatus::Creating,
            partition_count: partitions,
            max_replica_count,
            envs: envs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            create_second: 0,
            drop_second: 0,
            expire_second: 0,
        };
        {
            let mut state = self.state.borrow_mut();
            state.app = Some(app.clone());
            for index in 0..partitions {
                let mut nodes = members.to_vec();
                nodes.rotate_left(index as usize % members.len());
                let config = PartitionConfig {
                    ballot: Ballot(1),
                    primary: Some(nodes.remove(0)),
                    secondaries: nodes,
                    ..PartitionConfig::unassigned(Gpid::new(APP, index), max_replica_count)
                };
                state.configs.insert(config.gpid, config);
            }
        }
        for node in members {
            let all = self.state.borrow().configs.values().map(|c| (app.clone(), c.clone())).collect();
            self.pool.replica(node).adopt(WITHIN, all).await.unwrap();
        }
        self.until("every replica is reported", || {
            self.state.borrow().app.as_ref().unwrap().status == AppStatus::Available
        })
        .await;
    }

    /// Stores settings and pushes them.
    pub async fn set_envs(&self, node: &Node, envs: &[(&str, &str)]) {
        let all: Vec<_> = {
            let mut state = self.state.borrow_mut();
            let app = state.app.as_mut().unwrap();
            app.envs = envs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let app = app.clone();
            state.configs.values().map(|c| (app.clone(), c.clone())).collect()
        };
        self.pool.replica(node).adopt(WITHIN, all).await.unwrap();
    }

    /// From now on answers to reports are made when asked, and given when told: one for each notification.
    pub fn answer_late(&self) -> Rc<Notify> {
        let late = Rc::new(Notify::new());
        self.state.borrow_mut().late = Some(late.clone());
        late
    }

    pub fn reports_taken(&self) -> usize {
        self.state.borrow().reports_taken
    }

    pub async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "waited too long until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn config(&self, index: i32) -> PartitionConfig {
        self.state.borrow().configs[&Gpid::new(APP, index)].clone()
    }

    /// Drops the table: nobody is a member any more, and replicas are garbage.
    pub async fn drop_table(&self, nodes: &[Node]) {
        let all: Vec<_> = {
            let mut state = self.state.borrow_mut();
            let app = state.app.clone().unwrap();
            for config in state.configs.values_mut() {
                config.ballot = config.ballot.next();
                config.primary = None;
                config.secondaries.clear();
                config.partition_flags = 1;
            }
            state.garbage = state.configs.keys().copied().collect();
            state.configs.values().map(|c| (app.clone(), c.clone())).collect()
        };
        for node in nodes {
            self.pool.replica(node).adopt(WITHIN, all.clone()).await.unwrap();
        }
    }

    /// Its port is closed from now on.
    pub fn vanish(&self) {
        self.token.cancel();
    }

    pub fn is_draining(&self, node: &Node) -> bool {
        self.state.borrow().draining.contains(node)
    }

    /// Has every partition of which `node` is the primary handed over.
    pub async fn hand_over_all(&self, node: &Node) {
        let begun = Instant::now();
        loop {
            let mine: Vec<_> =
                self.state.borrow().configs.values().filter(|c| c.is_primary(node)).cloned().collect();
            if mine.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{node} is still the primary of {mine:?}");
            for config in mine {
                let proposal = Proposal::HandOver { to: config.secondaries[0].clone() };
                let request = ProposalRequest { gpid: config.gpid, ballot: config.ballot, proposal };
                let _ = self.pool.replica(node).propose(WITHIN, request).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Lets every primary teach `node` where it is no member.
    pub async fn propose_everywhere(&self, node: &Node) {
        let all: Vec<_> = self.state.borrow().configs.values().cloned().collect();
        for config in all.into_iter().filter(|config| !config.is_member(node)) {
            let proposal = Proposal::AddSecondary { node: node.clone() };
            let request = ProposalRequest { gpid: config.gpid, ballot: config.ballot, proposal };
            let _ = self.pool.replica(config.primary.as_ref().unwrap()).propose(WITHIN, request).await;
        }
    }

    /// Lets every primary teach `node`, and waits until it is a member everywhere.
    pub async fn add_everywhere(&self, node: &Node) {
        let begun = Instant::now();
        loop {
            let missing: Vec<_> =
                self.state.borrow().configs.values().filter(|c| !c.is_member(node)).cloned().collect();
            if missing.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{node} is still no member of {missing:?}");
            self.propose_everywhere(node).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Partitions of the table of a [`Cluster`].
pub const PARTITIONS: i32 = 4;

/// Three nodes that hold a table.
pub struct Cluster {
    pub meta: FakeMeta,
    pub nodes: Vec<TestNode>,
    pub dir: tempfile::TempDir,
}

pub async fn cluster(settings: &str) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("a");
    cluster_with(dir, first, settings).await
}

/// The first node, which is the primary of every third partition, has its data elsewhere.
pub async fn cluster_with(dir: tempfile::TempDir, first: PathBuf, settings: &str) -> Cluster {
    logs();
    let meta = FakeMeta::start().await;
    let nodes: Vec<_> = [first, dir.path().join("b"), dir.path().join("c")]
        .into_iter()
        .map(|dir| TestNode::start(&meta.node, dir, settings))
        .collect();
    let members: Vec<_> = nodes.iter().map(|n| n.node.clone()).collect();
    meta.create_table(PARTITIONS, &members, &[]).await;
    Cluster { meta, nodes, dir }
}

/// Asked for by `RUST_LOG`.
fn logs() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".to_owned());
    let _ = tracing_subscriber::fmt().with_env_filter(filter + ",tarpc=off").with_test_writer().try_init();
}

/// One replica-server on its own thread.
pub struct TestNode {
    pub node: Node,
    pub dir: PathBuf,
    settings: String,
    stop: Option<tokio::sync::oneshot::Sender<Stop>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// As SIGTERM.
    Drain,
    Clean,
    /// The runtime is dropped in the middle of whatever it does.
    Kill,
}

impl TestNode {
    pub fn start(meta: &Node, dir: PathBuf, settings: &str) -> Self {
        let port = free_port();
        // The disk of these tests may be rather full.
        let ratio = match settings.contains("disk_min_available_space_ratio") {
            true => "",
            false => "disk_min_available_space_ratio = 0\n",
        };
        let settings = format!(
            "[apps.replica]\nports = {port}\n[core]\ndata_dir = {}\n[network]\nexplicit_host_address = 127.0.0.1\n\
             [meta_server]\nserver_list = {meta}\n[replication]\nfd_beacon_interval_seconds = 0.1\n\
             config_sync_interval_ms = 500\n{ratio}{settings}",
            dir.display()
        );
        let mut node =
            Self { node: Node::new(format!("127.0.0.1:{port}")), dir, settings, stop: None, thread: None };
        node.restart();
        node
    }

    pub fn restart(&mut self) {
        self.try_restart().expect("the server starts");
    }

    /// Says why it does not start.
    pub fn try_restart(&mut self) -> Result<(), String> {
        self.kill();
        let config = self.config();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (started, is_started) = std::sync::mpsc::channel();
        self.stop = Some(stop);
        self.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            let shutdown = Shutdown::new();
            local.block_on(&runtime, async {
                let handle = match start(config, shutdown.clone()).await {
                    Ok(handle) => handle,
                    Err(error) => return started.send(Err(format!("{error:#}"))).unwrap(),
                };
                started.send(Ok(())).unwrap();
                match stopped.await {
                    Ok(Stop::Drain) => shutdown.trigger(),
                    Ok(Stop::Clean) => shutdown.hurry(),
                    Ok(Stop::Kill) | Err(_) => return,
                }
                handle.wait().await.unwrap();
            });
            drop(local);
            runtime.shutdown_timeout(Duration::from_secs(2));
        }));
        is_started.recv_timeout(Duration::from_secs(20)).expect("the server starts or says why not")
    }

    fn config(&self) -> Config {
        let mut sections = pegasus_config::common::SECTIONS.to_vec();
        sections.extend(pegasus_replica_server::SECTIONS);
        let mut loaded = Sources::text("config.ini", &self.settings).load(&sections);
        let config = Config::read(&mut loaded);
        loaded.finish().unwrap();
        config
    }

    /// As an operator does it while the node is stopped.
    pub fn accept_lost_power(&self, which: &Which) -> Result<Vec<Accepted>, String> {
        lost_power::accept(&self.config(), which).map_err(|error| format!("{error:#}"))
    }

    pub fn kill(&mut self) {
        self.end(Stop::Kill);
    }

    pub fn stop(&mut self) {
        self.end(Stop::Clean);
    }

    /// Returns at once.
    pub fn begin_drain(&mut self) {
        let _ = self.stop.take().unwrap().send(Stop::Drain);
    }

    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn end(&mut self, how: Stop) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(how);
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.node.as_str().parse().unwrap()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill();
        }
    }
}

/// Speaks to whoever is the primary, as the real client does.
pub struct Client<'a> {
    pub meta: &'a FakeMeta,
    pub partitions: i32,
    connections: RefCell<BTreeMap<Node, Connection>>,
}

pub fn key(hash_key: &str, sort_key: &str) -> Bytes {
    hash::encode_key(hash_key.as_bytes(), sort_key.as_bytes()).unwrap()
}

impl<'a> Client<'a> {
    pub fn new(meta: &'a FakeMeta, partitions: i32) -> Self {
        Self { meta, partitions, connections: RefCell::default() }
    }

    pub async fn connection(&self, node: &Node) -> std::io::Result<Connection> {
        if let Some(c) = self.connections.borrow().get(node).filter(|c| c.is_alive()) {
            return Ok(c.clone());
        }
        let connection = Connection::connect(node.as_str().parse().unwrap(), WITHIN).await?;
        self.connections.borrow_mut().insert(node.clone(), connection.clone());
        Ok(connection)
    }

    pub fn index_of(&self, hash_key: &str) -> i32 {
        hash::partition_of(hash::crc64(hash_key.as_bytes()), self.partitions)
    }

    pub fn head(&self, index: i32) -> RequestHead {
        RequestHead { app_id: APP, partition_index: index, ..Default::default() }
    }

    /// One attempt at the present primary.
    pub async fn once(
        &self,
        hash_key: &str,
        request: &Request,
        within: Duration,
    ) -> Result<Response, CallError> {
        let index = self.index_of(hash_key);
        let primary = self.meta.config(index).primary.unwrap();
        let lost = |e: std::io::Error| CallError::NotSent(e.to_string());
        let connection = self.connection(&primary).await.map_err(lost)?;
        connection.call(self.head(index), request, within).await
    }

    /// Repeats until it succeeds; for idempotent requests.
    pub async fn call(&self, hash_key: &str, request: Request) -> Response {
        let begun = Instant::now();
        loop {
            match self.once(hash_key, &request, Duration::from_secs(1)).await {
                Ok(response) => return response,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(15), "{request:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn put(&self, hash_key: &str, sort_key: &str, value: &str) -> i64 {
        match self.call(hash_key, put(hash_key, sort_key, value)).await {
            Response::Write(WriteResponse::Update(r)) => {
                assert_eq!(r.error, 0);
                r.decree
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn get(&self, hash_key: &str, sort_key: &str) -> Option<String> {
        let get = Request::Read(ReadRequest::Get { key: key(hash_key, sort_key) });
        match self.call(hash_key, get).await {
            Response::Read(ReadResponseBody::Get(r)) if r.error == 0 => {
                Some(String::from_utf8(r.value.to_vec()).unwrap())
            }
            Response::Read(ReadResponseBody::Get(r)) if r.error == 1 => None,
            other => panic!("{other:?}"),
        }
    }
}

pub fn put(hash_key: &str, sort_key: &str, value: &str) -> Request {
    Request::Write(WriteRequest::Put(UpdateRequest {
        key: key(hash_key, sort_key),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expire_ts_seconds: 0,
    }))
}

pub async fn http_get(node: &TestNode, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(node.address()).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: h\r\naccept: text/plain\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// The value of a metric without labels of its own.
pub async fn metric(node: &TestNode, name: &str) -> f64 {
    let text = http_get(node, "/metrics").await;
    let line = text.lines().find(|line| line.starts_with(name)).expect("the metric is there");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Runs a test in a LocalSet, with logs when asked for by `RUST_LOG`.
pub fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, test());
}

/// Ends every connection of this process, and so of all its nodes, that leads to `node`. How many there were.
pub fn break_connections_to(node: &TestNode) -> usize {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut broken = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        let Ok(fd) = pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) else { continue };
        let peer = rustix::net::getpeername(&fd).ok().flatten().and_then(|a| SocketAddr::try_from(a).ok());
        if peer == Some(node.address()) && rustix::net::shutdown(&fd, rustix::net::Shutdown::Both).is_ok() {
            broken += 1;
        }
    }
    broken
}
