//! Whole connections over loopback: a pool on one side, a listener with a recording handler on the other.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pegasus_types::cluster::ClusterOverview;
use pegasus_types::learn::{
    LearnOpen, LearnPlan, LearnRefused, LogChunk, LogRequest, RowsChunk, RowsRequest,
};
use pegasus_types::message::{Envelope, Grant, Heartbeat, HeartbeatAck, Message};
use pegasus_types::meta::{
    Beacon, BeaconAck, ChangeReply, ChangeRequest, ConfigSync, ConfigSyncAck, Proposal, ProposalRequest,
    QueryReply, ReplicaReport, ReplicaStatus,
};
use pegasus_types::{
    AppInfo, AppStatus, Ballot, ChangeKind, Decree, ErrorCode, Gpid, Mutation, Node, PartitionConfig,
};
use tarpc::context::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::hello::{Service, admit};
use super::replica::{DiskStats, NodeStats, ReplicaStats};
use super::*;

mod calls;
mod faults;
mod golden;
mod outbox;

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(60);
const GPID: Gpid = Gpid::new(2, 1);

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(Duration::from_secs(30), test).await.expect("hangs") })
}

// ---- the acceptor's side ----

/// What one server has seen; !Send on purpose.
#[derive(Default)]
struct Seen {
    delivered: RefCell<Vec<Envelope>>,
    batches: Cell<usize>,
    configs: RefCell<Vec<(AppInfo, PartitionConfig)>>,
    finished: Cell<usize>,
    /// `deliver` waits this long.
    delay: Cell<Duration>,
}

#[derive(Clone)]
struct Handler {
    seen: Rc<Seen>,
    remote: Rc<Remote>,
}

/// Requests of `learn_open` and `learn_rows` with these signatures or sessions get special treatment.
const WAIT_300_MS: u64 = 300;
const PANIC: u64 = 666;
const HUGE_ANSWER: u64 = 65;

impl ReplicaPeer for Handler {
    async fn deliver(self, _: Context, batch: Vec<Envelope>) {
        self.seen.batches.set(self.seen.batches.get() + 1);
        self.seen.delivered.borrow_mut().extend(batch);
        if !self.seen.delay.get().is_zero() {
            sleep(self.seen.delay.get()).await;
        }
    }

    async fn heartbeat(self, _: Context, heartbeat: Heartbeat) -> HeartbeatAck {
        assert_eq!(self.remote.class, Class::Control);
        let grant = match heartbeat.pairs {
            Some(pairs) => Grant::Some { granted: pairs, newer: vec![(GPID, Ballot(9))] },
            None => Grant::All,
        };
        HeartbeatAck {
            incarnation: self.remote.incarnation,
            to_incarnation: heartbeat.incarnation,
            seq: heartbeat.seq,
            grant,
            log_healthy: heartbeat.log_healthy,
        }
    }

    async fn learn_open(self, _: Context, request: LearnOpen) -> Result<LearnPlan, LearnRefused> {
        match request.signature {
            WAIT_300_MS => sleep(Duration::from_millis(300)).await,
            PANIC => panic!("asked to"),
            _ => {}
        }
        self.seen.finished.set(self.seen.finished.get() + 1);
        if request.ballot == Ballot(0) {
            return Err(LearnRefused::NotPrimary(Ballot(4)));
        }
        Ok(LearnPlan::Rows { session: request.signature, decree: request.committed, rows: 3 })
    }

    async fn learn_rows(self, _: Context, request: RowsRequest) -> Result<RowsChunk, LearnRefused> {
        assert_eq!(self.remote.class, Class::Bulk);
        let len = if request.session == HUGE_ANSWER { MAX_FRAME_BYTES } else { request.max_bytes as usize };
        Ok(RowsChunk { body: Bytes::from(vec![1; len]), crc: 5, last_key: request.after, done: false })
    }

    async fn learn_log(self, _: Context, request: LogRequest) -> Result<LogChunk, LearnRefused> {
        Ok(LogChunk { mutations: vec![mutation(request.from.0, 100)], committed: request.from })
    }

    async fn adopt(self, _: Context, configs: Vec<(AppInfo, PartitionConfig)>) {
        self.seen.configs.borrow_mut().extend(configs);
    }

    async fn propose(self, _: Context, request: ProposalRequest) -> ErrorCode {
        match request.proposal {
            Proposal::AddSecondary { .. } => ErrorCode::Ok,
            _ => ErrorCode::InvalidState,
        }
    }

    async fn stats(self, _: Context) -> NodeStats {
        node_stats()
    }
}

/// Answers changes in the order of falling ballots from 3, whatever the order in which they came.
#[derive(Clone)]
struct MetaHandler {
    turn: Rc<Cell<i64>>,
}

impl MetaPeer for MetaHandler {
    async fn beacon(self, _: Context, beacon: Beacon) -> BeaconAck {
        BeaconAck {
            accepted: beacon.log_healthy,
            leader: Some(beacon.node),
            wants_report: beacon.draining,
            all_draining: false,
            cluster_id: "c1".into(),
        }
    }

    async fn config_sync(self, _: Context, report: ConfigSync) -> ConfigSyncAck {
        ConfigSyncAck {
            err: ErrorCode::Ok,
            leader: Some(report.node),
            configs: vec![(app(), config())],
            garbage: report.replicas.iter().map(|r| r.gpid).collect(),
        }
    }

    async fn change(self, _: Context, request: ChangeRequest) -> ChangeReply {
        while self.turn.get() != request.ballot.0 {
            sleep(Duration::from_millis(1)).await;
        }
        self.turn.set(self.turn.get() - 1);
        ChangeReply::Rejected { current: Some(config()), why: request.ballot.to_string() }
    }

    async fn query(self, _: Context, gpid: Gpid) -> QueryReply {
        if gpid == GPID { QueryReply::Known(app(), config()) } else { QueryReply::Unknown }
    }

    async fn cluster_view(self, _: Context) -> ClusterOverview {
        ClusterOverview {
            cluster_id: "c1".into(),
            cluster_name: "onebox".into(),
            leader: None,
            metas: vec![Node::new("a:1")],
            nodes: Vec::new(),
            tables: Vec::new(),
        }
    }
}

fn mutation(decree: i64, bytes: usize) -> Mutation {
    Mutation::new(GPID, Decree(decree), Ballot(3), 7, Bytes::from(vec![3; bytes]))
}

fn config() -> PartitionConfig {
    PartitionConfig {
        primary: Some(Node::new("a:1")),
        secondaries: vec![Node::new("b:1"), Node::new("c:1")],
        ballot: Ballot(4),
        ..PartitionConfig::unassigned(GPID, 3)
    }
}

fn app() -> AppInfo {
    AppInfo {
        app_id: 2,
        name: "temp".into(),
        app_type: "pegasus".into(),
        status: AppStatus::Available,
        partition_count: 8,
        max_replica_count: 3,
        envs: [("default_ttl".to_owned(), "1".to_owned())].into(),
        create_second: 1,
        drop_second: 0,
        expire_second: 0,
    }
}

fn report() -> ReplicaReport {
    ReplicaReport {
        gpid: GPID,
        ballot: Ballot(4),
        status: ReplicaStatus::Learner,
        committed: Decree(1),
        prepared: Decree(2),
        durable: Decree(0),
        disk_tag: "d0".into(),
    }
}

fn node_stats() -> NodeStats {
    let disk =
        DiskStats { tag: "d0".into(), healthy: true, capacity_bytes: 9, available_bytes: 5, log_bytes: 2 };
    let replica = ReplicaStats {
        report: report(),
        reads: 1,
        writes: 2,
        read_bytes: 3,
        write_bytes: 4,
        failed: 5,
        disk_bytes: 6,
        estimated_rows: 7,
    };
    NodeStats {
        node: Node::new("a:1"),
        incarnation: u64::MAX,
        uptime_ms: 8,
        version: "0.1".into(),
        memory_bytes: 9,
        disks: vec![disk],
        replicas: vec![replica],
    }
}

struct Server {
    node: Node,
    seen: Rc<Seen>,
    shutdown: CancellationToken,
    accepting: JoinHandle<()>,
    connections: Rc<RefCell<Vec<JoinHandle<()>>>>,
}

impl Server {
    async fn start(incarnation: u64) -> Self {
        Self::start_at("127.0.0.1:0", incarnation, "c1", Service::Replica).await
    }

    async fn start_at(address: &str, incarnation: u64, cluster: &str, service: Service) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let node = Node::new(listener.local_addr().unwrap().to_string());
        let me = Rc::new(Identity::new(node.clone(), incarnation, cluster));
        let seen = Rc::<Seen>::default();
        let shutdown = CancellationToken::new();
        let connections = Rc::<RefCell<Vec<JoinHandle<()>>>>::default();
        let meta = MetaHandler { turn: Rc::new(Cell::new(3)) };
        let accepting = spawn_local({
            let (seen, shutdown, connections) = (seen.clone(), shutdown.clone(), connections.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (me, seen, shutdown) = (me.clone(), seen.clone(), shutdown.clone());
                    let meta = meta.clone();
                    connections.borrow_mut().push(spawn_local(async move {
                        let handler = |remote: &Remote| Handler { seen, remote: Rc::new(remote.clone()) };
                        let _ = match service {
                            Service::Replica => serve_replica_peer(stream, &me, handler, &shutdown).await,
                            Service::Meta => serve_meta_peer(stream, &me, |_| meta, &shutdown).await,
                        };
                    }));
                }
            }
        });
        Self { node, seen, shutdown, accepting, connections }
    }

    fn stop_listening(&self) {
        self.accepting.abort();
    }

    fn cut_connections(&self) {
        for connection in self.connections.borrow_mut().drain(..) {
            connection.abort();
        }
    }

    /// As the kernel does it to a killed process.
    fn kill(&self) {
        self.stop_listening();
        self.cut_connections();
    }
}

// ---- the dialer's side ----

type Events = Rc<RefCell<Vec<PeerEvent>>>;

fn pool_of(cluster: &str, options: PoolOptions) -> (PeerPool, Events) {
    let events = Events::default();
    let me = Rc::new(Identity::new(Node::new("127.0.0.9:9"), 77, cluster));
    let pool = PeerPool::new(me, options, {
        let events = events.clone();
        move |event| events.borrow_mut().push(event)
    });
    (pool, events)
}

fn pool() -> (PeerPool, Events) {
    pool_of("c1", PoolOptions::default())
}

fn heartbeat(seq: u64) -> Heartbeat {
    Heartbeat { incarnation: 5, seq, digest: 6, count: 1, pairs: None, log_healthy: true }
}

fn learn_open(signature: u64) -> LearnOpen {
    LearnOpen { gpid: GPID, ballot: Ballot(4), signature, committed: Decree(8), resume: None }
}

fn log_request() -> LogRequest {
    LogRequest { gpid: GPID, signature: 1, from: Decree(3), max_bytes: 10 }
}

fn prepare(decree: i64, bytes: usize) -> Envelope {
    let message = Message::Prepare { mutation: mutation(decree, bytes), committed: Decree(decree - 1) };
    Envelope { gpid: GPID, ballot: Ballot(3), message }
}

fn decrees(delivered: &[Envelope]) -> Vec<i64> {
    let decree = |envelope: &Envelope| match &envelope.message {
        Message::Prepare { mutation, .. } => mutation.decree.0,
        other => panic!("{other:?}"),
    };
    delivered.iter().map(decree).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "never: {what}");
        sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

fn gone(events: &Events) -> Vec<(Node, u64)> {
    let gone = |event: &PeerEvent| match event {
        PeerEvent::ResetAndRefused { node, incarnation } => Some((node.clone(), *incarnation)),
        PeerEvent::Connected { .. } => None,
    };
    events.borrow().iter().filter_map(gone).collect()
}
