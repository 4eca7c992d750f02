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
use super::outbox::{BATCH_MESSAGES, CALLS_IN_FLIGHT, QUEUE_MESSAGES};
use super::replica::{DiskStats, NodeStats, ReplicaStats};
use super::*;

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
        Ok(LearnPlan::Rows { session: request.signature, decree: request.committed })
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

#[derive(Clone)]
struct MetaHandler;

impl MetaPeer for MetaHandler {
    async fn beacon(self, _: Context, beacon: Beacon) -> BeaconAck {
        BeaconAck {
            accepted: beacon.log_healthy,
            leader: Some(beacon.node),
            wants_report: beacon.draining,
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
        // Later requests are answered sooner.
        sleep(Duration::from_millis(40 - 10 * u64::try_from(request.ballot.0).unwrap())).await;
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
        let accepting = spawn_local({
            let (seen, shutdown, connections) = (seen.clone(), shutdown.clone(), connections.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (me, seen, shutdown) = (me.clone(), seen.clone(), shutdown.clone());
                    connections.borrow_mut().push(spawn_local(async move {
                        let handler = |remote: &Remote| Handler { seen, remote: Rc::new(remote.clone()) };
                        let _ = match service {
                            Service::Replica => serve_replica_peer(stream, &me, handler, &shutdown).await,
                            Service::Meta => serve_meta_peer(stream, &me, |_| MetaHandler, &shutdown).await,
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
    LearnOpen { gpid: GPID, ballot: Ballot(4), signature, committed: Decree(8) }
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

#[test]
fn every_message_of_a_replica_server_crosses() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        assert!(!peer.is_up(Class::Control), "nothing is dialled before the first call");

        let messages = [
            Message::Configure { config: config() },
            Message::State { committed: Decree(1), prepared: Decree(2) },
            Message::Prepare { mutation: mutation(3, 70_000), committed: Decree(2) },
            Message::Prepare { mutation: mutation(4, 0), committed: Decree(i64::MAX) },
            Message::Prepared { prepared: Decree(-1) },
            Message::Gap { expected: Decree(2) },
            Message::NeedConfig,
            Message::Stale,
            Message::NotHere,
            Message::Commit { committed: Decree(2) },
            Message::Learn { config: config(), signature: u64::MAX },
            Message::Join { signature: 2, prepared: Decree(3) },
            Message::FetchMore { signature: 2 },
            Message::LearnFailed { signature: 2 },
        ];
        let batch: Vec<_> = messages
            .into_iter()
            .map(|message| Envelope { gpid: GPID, ballot: Ballot(i64::MAX), message })
            .collect();
        peer.deliver(SOON, batch.clone()).await.unwrap();
        assert_eq!(*server.seen.delivered.borrow(), batch);

        let ack = peer.heartbeat(SOON, heartbeat(3)).await.unwrap();
        assert_eq!((ack.incarnation, ack.to_incarnation, ack.seq, ack.grant), (77, 5, 3, Grant::All));
        let pairs = Some(vec![(GPID, Ballot(1))]);
        let ack = peer.heartbeat(SOON, Heartbeat { pairs, ..heartbeat(4) }).await.unwrap();
        let grant = Grant::Some { granted: vec![(GPID, Ballot(1))], newer: vec![(GPID, Ballot(9))] };
        assert_eq!(ack.grant, grant);

        let plan = peer.learn_open(SOON, learn_open(1)).await.unwrap();
        assert_eq!(plan, Ok(LearnPlan::Rows { session: 1, decree: Decree(8) }));
        let refused = peer.learn_open(SOON, LearnOpen { ballot: Ballot(0), ..learn_open(1) }).await.unwrap();
        assert_eq!(refused, Err(LearnRefused::NotPrimary(Ballot(4))));
        let after = Some(Bytes::from_static(b"key"));
        let rows = RowsRequest { gpid: GPID, session: 1, after: after.clone(), max_bytes: 1 << 20 };
        let rows = peer.learn_rows(SOON, rows).await.unwrap().unwrap();
        assert_eq!((rows.body.len(), rows.last_key, rows.crc), (1 << 20, after, 5));
        let log = peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        assert_eq!(log, LogChunk { mutations: vec![mutation(3, 100)], committed: Decree(3) });

        peer.adopt(SOON, vec![(app(), config())]).await.unwrap();
        assert_eq!(*server.seen.configs.borrow(), [(app(), config())]);
        let proposals = [
            (Proposal::AddSecondary { node: Node::new("d:1") }, ErrorCode::Ok),
            (Proposal::HandOver { to: Node::new("b:1") }, ErrorCode::InvalidState),
        ];
        for (proposal, want) in proposals {
            let request = ProposalRequest { gpid: GPID, ballot: Ballot(4), proposal };
            assert_eq!(peer.propose(SOON, request).await.unwrap(), want);
        }
        assert_eq!(peer.stats(SOON).await.unwrap(), node_stats());

        assert!(Class::ALL.into_iter().all(|class| peer.is_up(class)));
        let connected = |class| PeerEvent::Connected {
            node: server.node.clone(),
            class,
            incarnation: 1,
            cluster_id: "c1".into(),
        };
        assert_eq!(*events.borrow(), [Class::Replication, Class::Control, Class::Bulk].map(connected));
    });
}

#[test]
fn every_message_of_a_meta_server_crosses() {
    local(async {
        let server = Server::start_at("127.0.0.1:0", 1, "c1", Service::Meta).await;
        let (pool, _) = pool_of("", PoolOptions::default());
        // By a name that is not the one the server publishes: resolved at the dial.
        let meta = pool.meta(&Node::new(format!("localhost:{}", server.node.port())));
        let beacon =
            Beacon { node: Node::new("a:1"), incarnation: 1, wall_us: 2, log_healthy: true, draining: false };
        let ack = meta.beacon(SOON, beacon).await.unwrap();
        assert_eq!((ack.accepted, ack.leader, ack.wants_report), (true, Some(Node::new("a:1")), false));
        assert!(pool.identity().learn_cluster_id(&ack.cluster_id));

        let sync = ConfigSync { node: Node::new("a:1"), incarnation: 1, replicas: vec![report()] };
        let ack = meta.config_sync(SOON, sync).await.unwrap();
        assert_eq!((ack.configs, ack.garbage), (vec![(app(), config())], vec![GPID]));

        let change = |ballot| ChangeRequest {
            gpid: GPID,
            ballot: Ballot(ballot),
            kind: ChangeKind::TakeOver { claimant: Node::new("b:1") },
            committed: Decree(1),
        };
        let order = RefCell::new(Vec::new());
        let ask = async |ballot| {
            let reply = meta.change(SOON, change(ballot)).await.unwrap();
            let ChangeReply::Rejected { current, why } = reply else { panic!("{reply:?}") };
            assert_eq!((current, why), (Some(config()), ballot.to_string()));
            order.borrow_mut().push(ballot);
        };
        tokio::join!(ask(1), ask(2), ask(3));
        assert_eq!(*order.borrow(), [3, 2, 1], "handlers that wait do not hold up one another");

        assert_eq!(meta.query(SOON, GPID).await.unwrap(), QueryReply::Known(app(), config()));
        assert_eq!(meta.query(SOON, Gpid::new(1, 1)).await.unwrap(), QueryReply::Unknown);
        assert_eq!(meta.cluster_view(SOON).await.unwrap().cluster_name, "onebox");
    });
}

#[test]
fn what_is_too_large_fails_one_call_only() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let too_large = peer.deliver(SOON, vec![prepare(1, MAX_FRAME_BYTES)]).await.unwrap_err();
        assert!(matches!(too_large, CallError::TooLarge(_)), "{too_large}");
        assert!(!too_large.may_have_been_executed());
        peer.deliver(SOON, vec![prepare(2, 10)]).await.unwrap();

        let rows = RowsRequest { gpid: GPID, session: HUGE_ANSWER, after: None, max_bytes: 0 };
        let (huge, small) = tokio::join!(peer.learn_rows(SOON, rows), peer.learn_log(SOON, log_request()));
        assert!(matches!(&huge, Err(CallError::Remote(why)) if why.contains("larger than")), "{huge:?}");
        assert!(small.is_ok());
        assert_eq!(events.borrow().len(), 2, "no connection broke: {:?}", events.borrow());
    });
}

#[test]
fn a_deadline_ends_the_call_but_not_its_handler() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        let slow = peer.learn_open(SHORT, learn_open(WAIT_300_MS)).await;
        assert_eq!(slow, Err(CallError::Timeout));
        assert_eq!(server.seen.finished.get(), 0, "it did not wait for the handler");
        peer.learn_log(SOON, log_request()).await.expect("the connection goes on").unwrap();
        until("the handler ends", || server.seen.finished.get() == 1).await;
        peer.learn_log(SOON, log_request()).await.expect("the late answer harms nobody").unwrap();
    });
}

#[test]
fn a_handler_outlives_its_connection() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        let call = spawn_local(async move { peer.learn_open(SOON, learn_open(WAIT_300_MS)).await });
        sleep(SHORT).await;
        server.cut_connections();
        let broken = call.await.unwrap().unwrap_err();
        assert!(matches!(broken, CallError::Lost(_)) && broken.may_have_been_executed(), "{broken}");
        until("the handler ends", || server.seen.finished.get() == 1).await;
    });
}

#[test]
fn a_handler_that_panics_costs_one_call() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let panicked = peer.learn_open(SOON, learn_open(PANIC)).await;
        assert!(matches!(panicked, Err(CallError::Remote(_))), "{panicked:?}");
        peer.learn_open(SOON, learn_open(1)).await.unwrap().unwrap();
        assert_eq!(events.borrow().len(), 1);
    });
}

#[test]
fn more_calls_than_allowed_fail_at_once() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool_of("c1", PoolOptions { max_in_flight: 2, ..PoolOptions::default() });
        let peer = pool.replica(&server.node);
        peer.learn_log(SOON, log_request()).await.unwrap().unwrap();
        let slow = || peer.learn_open(SOON, learn_open(WAIT_300_MS));
        let (first, second, third) = tokio::join!(slow(), slow(), slow());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(third, Err(CallError::Busy));
        assert!(!CallError::Busy.may_have_been_executed());
        peer.learn_log(SOON, log_request()).await.expect("the slots are free again").unwrap();
    });
}

#[test]
fn a_killed_peer_is_reported_at_once_and_found_again() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        peer.deliver(SOON, vec![prepare(1, 10)]).await.unwrap();

        server.kill();
        // Nobody calls: the loss itself starts the dial.
        let took = until("the event", || !gone(&events).is_empty()).await;
        // A few milliseconds; the rest is for a busy machine.
        assert!(took < Duration::from_millis(500), "{took:?}");
        sleep(SHORT).await;
        assert_eq!(gone(&events), [(server.node.clone(), 1)], "told once, not per connection");
        let refused = peer.heartbeat(SOON, heartbeat(2)).await.unwrap_err();
        assert_eq!(refused, CallError::Unreachable(DialError::ConnectionRefused));

        // Back with a new life; then cut off and back with the same one: each end is an event of its own.
        for (events_before, incarnation) in [(1, 2), (2, 2)] {
            let again = Server::start_at(server.node.as_str(), incarnation, "c1", Service::Replica).await;
            let start = Instant::now();
            while peer.heartbeat(SOON, heartbeat(3)).await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            let connected =
                |e: &PeerEvent| matches!(e, PeerEvent::Connected { incarnation: i, .. } if *i == incarnation);
            assert!(events.borrow().iter().any(connected));
            again.kill();
            until("the event", || gone(&events).len() > events_before).await;
            assert_eq!(gone(&events)[events_before].1, incarnation);
        }
    });
}

#[test]
fn a_dying_peer_whose_port_closes_last_is_reported_too() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
        // The first dials after the loss still land in the backlog of a process that will not accept them.
        server.cut_connections();
        server.shutdown.cancel();
        sleep(Duration::from_millis(4)).await;
        server.kill();
        until("the event", || !gone(&events).is_empty()).await;
    });
}

#[test]
fn a_broken_connection_to_a_living_peer_is_no_death() {
    local(async {
        let server = Server::start(1).await;
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        server.cut_connections();
        until("connected again, without a call", || events.borrow().len() == 2 && peer.is_up(Class::Control))
            .await;
        peer.heartbeat(SOON, heartbeat(2)).await.unwrap();
        assert_eq!(gone(&events), []);
    });
}

#[test]
fn a_peer_that_hangs_up_on_everyone_is_not_dialled_in_a_tight_loop() {
    local(async {
        let server = Server::start(1).await;
        server.shutdown.cancel();
        let (pool, events) = pool();
        let peer = pool.replica(&server.node);
        let failed = peer.heartbeat(SHORT, heartbeat(1)).await;
        assert!(matches!(failed, Err(CallError::Lost(_) | CallError::Timeout)), "{failed:?}");
        sleep(Duration::from_millis(500)).await;
        let dials = events.borrow().len();
        assert!((3..20).contains(&dials), "{dials} dials");
    });
}

#[test]
fn a_peer_that_was_never_there_is_no_death_and_no_queue() {
    local(async {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (pool, events) = pool();
        let peer = pool.replica(&Node::new(free.to_string()));
        let dials =
            async || tokio::join!(peer.heartbeat(SOON, heartbeat(1)), peer.heartbeat(SOON, heartbeat(2)));
        let start = Instant::now();
        for _ in 0..100 {
            let refused = Err(CallError::Unreachable(DialError::ConnectionRefused));
            assert_eq!(dials().await, (refused.clone(), refused));
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(*events.borrow(), []);

        // Heard from: no pause is waited out.
        let server = Server::start_at(&free.to_string(), 1, "c1", Service::Replica).await;
        pool.heard_from(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
    });
}

#[test]
fn a_peer_that_says_nothing_costs_only_the_deadline() {
    local(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Node::new(listener.local_addr().unwrap().to_string());
        let (pool, events) =
            pool_of("c1", PoolOptions { dial_timeout: Duration::from_millis(200), ..PoolOptions::default() });
        let peer = pool.replica(&node);
        // It accepts (its kernel does), but never answers the hello.
        assert_eq!(peer.heartbeat(SHORT, heartbeat(1)).await, Err(CallError::Timeout));
        let late = peer.heartbeat(SOON, heartbeat(1)).await;
        assert_eq!(late, Err(CallError::Unreachable(DialError::Timeout)));

        // It says hello, and nothing more.
        let _mute = spawn_local(async move {
            let me = Identity::new(Node::new(listener.local_addr().unwrap().to_string()), 1, "c1");
            let mut held = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if admit(&mut stream, &me, Service::Replica).await.is_ok() {
                    held.push(stream);
                }
            }
        });
        sleep(Duration::from_millis(400)).await;
        for _ in 0..3 {
            assert_eq!(peer.heartbeat(SHORT, heartbeat(1)).await, Err(CallError::Timeout));
        }
        assert_eq!(gone(&events), []);
    });
}

#[test]
fn strangers_are_refused() {
    local(async {
        let server = Server::start(1).await;
        let (other_cluster, _) = pool_of("c2", PoolOptions::default());
        let refused = other_cluster.replica(&server.node).heartbeat(SOON, heartbeat(1)).await;
        let refusal = DialError::Refused(Refusal::OtherCluster("c1".into()));
        assert_eq!(refused, Err(CallError::Unreachable(refusal)));

        let (pool, _) = pool();
        let refused = pool.meta(&server.node).query(SOON, GPID).await.unwrap_err();
        assert!(refused.to_string().contains("Replica server"), "{refused}");
        let alias = Node::new(format!("localhost:{}", server.node.port()));
        let refused = pool.replica(&alias).heartbeat(SOON, heartbeat(1)).await.unwrap_err();
        assert!(refused.to_string().contains(server.node.as_str()), "{refused}");
        let unknown = pool.replica(&Node::new("no-such-host.invalid:1")).heartbeat(SOON, heartbeat(1)).await;
        assert!(matches!(unknown, Err(CallError::Unreachable(DialError::Resolve(_)))), "{unknown:?}");

        for garbage in [b"PGR1\xff\xff".as_slice(), b"GET / HTTP/1.1\r\n\r\n", &[0; 2000]] {
            let mut stream = TcpStream::connect(server.node.as_str()).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let mut rest = Vec::new();
            // Closed, by an end or a reset.
            let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the stranger is turned away");
            assert!(rest.is_empty());
        }
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
    });
}

#[test]
fn a_malformed_frame_ends_that_connection_only() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        peer.heartbeat(SOON, heartbeat(1)).await.unwrap();
        let bytes = b"\x00\x00\x00\x00";
        for frame in [&[0xff; 8][..], b"\x09\x00\x00\x00\x01\0\0\0\0\0\0\0\0", bytes] {
            let mut stream = TcpStream::connect(server.node.as_str()).await.unwrap();
            let hello = hello::Hello {
                cluster_id: String::new(),
                from: Node::new("x:1"),
                incarnation: 1,
                service: Service::Replica,
                class: Class::Bulk,
                to: server.node.clone(),
            };
            hello::greet(&mut stream, &hello).await.unwrap();
            stream.write_all(frame).await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("the connection ends");
        }
        peer.heartbeat(SOON, heartbeat(2)).await.unwrap();
    });
}

#[test]
fn shutdown_brings_running_answers_out() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let peer = pool.replica(&server.node);
        server.seen.delay.set(Duration::from_millis(20));
        let call = spawn_local({
            let peer = peer.clone();
            async move { peer.deliver(SOON, vec![prepare(1, 10)]).await }
        });
        until("it runs", || server.seen.batches.get() == 1).await;
        server.stop_listening();
        server.shutdown.cancel();
        call.await.unwrap().expect("answered while the server went down");
        let after = peer.deliver(SOON, vec![prepare(2, 10)]).await.unwrap_err();
        assert!(matches!(after, CallError::Unreachable(_) | CallError::Lost(_)), "{after}");
    });
}

#[test]
fn a_closed_pool_leaves_no_connection() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        pool.replica(&server.node).heartbeat(SOON, heartbeat(1)).await.unwrap();
        drop(pool);
        until("the server sees the end", || server.connections.borrow().iter().all(JoinHandle::is_finished))
            .await;
    });
}

#[test]
fn an_outbox_batches_and_keeps_the_order() {
    const MESSAGES: i64 = 20_000;
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for decree in 0..MESSAGES {
            // Bursts of all lengths, every size of value up to 2 KiB; waits now and then.
            assert!(outbox.push(prepare(decree, usize::try_from(decree * 37 % 2048).unwrap())));
            if decree % 97 == 0 {
                tokio::task::yield_now().await;
            }
            if decree % 1999 == 0 {
                sleep(Duration::from_millis(2)).await;
            }
        }
        until("all have arrived", || outbox.stats().delivered == MESSAGES as u64).await;
        assert_eq!(decrees(&server.seen.delivered.borrow()), (0..MESSAGES).collect::<Vec<_>>());
        let stats = outbox.stats();
        assert_eq!((stats.failed, stats.refused, stats.queued, stats.queued_bytes), (0, 0, 0, 0));
        assert!(stats.calls < 2_000, "{stats:?}");
        assert_eq!(server.seen.batches.get() as u64, stats.calls);
    });
}

#[test]
fn what_one_turn_sends_is_one_call() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for turn in 1..=3 {
            (0..100).for_each(|decree| assert!(outbox.push(prepare(decree, 10))));
            until("delivered", || outbox.stats().delivered == 100 * turn).await;
            assert_eq!(outbox.stats().calls, turn);
        }
    });
}

#[test]
fn a_broken_connection_loses_messages_but_never_reorders_or_repeats() {
    local(async {
        let server = Server::start(1).await;
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        for decree in 0..5_000 {
            outbox.push(prepare(decree, 500));
            if decree % 10 == 0 {
                tokio::task::yield_now().await;
            }
            if decree % 1_000 == 500 {
                server.cut_connections();
            }
        }
        let settled = |stats: OutboxStats| stats.queued == 0 && stats.delivered + stats.failed == 5_000;
        until("all have been tried", || settled(outbox.stats())).await;
        let got = decrees(&server.seen.delivered.borrow());
        assert!(got.windows(2).all(|w| w[0] < w[1]), "{got:?}");
        assert_eq!(got.last(), Some(&4_999), "the new connection is used");
        assert!(outbox.stats().delivered <= got.len() as u64);
    });
}

#[test]
fn a_peer_that_hangs_fills_a_bounded_queue() {
    local(async {
        let server = Server::start(1).await;
        server.seen.delay.set(Duration::from_secs(60));
        let (pool, _) = pool();
        let outbox = Outbox::new(pool.replica(&server.node));
        let in_flight = CALLS_IN_FLIGHT * BATCH_MESSAGES;
        for decree in 0..(QUEUE_MESSAGES + in_flight + 100) as i64 {
            outbox.push(prepare(decree, 0));
            if decree % 5_000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let stats = outbox.stats();
        assert_eq!(stats.queued, QUEUE_MESSAGES);
        assert!(stats.refused >= 100, "{stats:?}");
        assert!(stats.calls <= CALLS_IN_FLIGHT as u64, "{stats:?}");
        // By bytes as well.
        let outbox = Outbox::new(pool.replica(&server.node));
        let pushed = (0..200).filter(|decree| outbox.push(prepare(*decree, 1 << 20))).count();
        assert!((60..70).contains(&pushed), "{pushed}");
    });
}
