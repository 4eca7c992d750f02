//! The bytes of every message between daemons. Postcard has neither names nor lengths: two releases that say the same
//! protocol version must write the same bytes, or they take one another's numbers for others.
//!
//! A fixture holds one message of each kind in hex, by name. Where a release changes one, it raises the version.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::time::Instant;

use futures::SinkExt;
use pegasus_types::cluster::{NodeOverview, PartitionHealth, PartitionOverview, TableOverview};
use pegasus_types::mutation::BodyBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::{ClientMessage, Request, Response, ServerError, context};
use tokio::io::duplex;

use super::super::frame::FrameOptions;
use super::super::hello::{Hello, greet};
use super::super::meta::{MetaPeerRequest, MetaPeerResponse};
use super::super::replica::{ReplicaPeerRequest, ReplicaPeerResponse};
use super::super::transport::{ClientWire, ServerWire};
use super::*;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/peer-messages.txt");
const HEAD: &str = "\
# Messages between daemons as they are on the wire, in hex. Made by crates/rpc/src/peer/tests/golden.rs, which says
# what to do when they change.
";
const WRITE: &str = "PEGASUS_WRITE_GOLDEN";
const WHAT_TO_DO: &str = "\
Releases that say the same protocol version would misread one another. Undo the change; or, if it is wanted,
raise PROTOCOL_VERSION in crates/rpc/src/peer/hello.rs and write the fixture anew:
    PEGASUS_WRITE_GOLDEN=1 cargo test -p pegasus-rpc golden
Nodes of the old and the new version will refuse one another: the release's notes have to say so.";

/// Lines `name hex` in the order of their making.
#[derive(Default)]
struct Golden(Vec<(String, String)>);

impl Golden {
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.push((name.to_owned(), hex));
    }

    fn message<T: Serialize + DeserializeOwned>(&mut self, name: &str, message: &T) -> Vec<u8> {
        let bytes = postcard::to_stdvec(message).unwrap();
        let read: T = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(postcard::to_stdvec(&read).unwrap(), bytes, "{name}: read back");
        self.bytes(name, &bytes);
        bytes
    }

    /// All variants of an enum, in its order.
    fn every<T: Serialize + DeserializeOwned>(&mut self, kind: &str, samples: Vec<(&str, T)>) {
        // Zeros are a value of whatever a variant holds: numbers, empty lists, first variants.
        let is_known = |variant: u8| {
            let bytes = [&[variant][..], &[0; 100]].concat();
            postcard::take_from_bytes::<T>(&bytes).is_ok()
        };
        let mut count = 0;
        for (name, sample) in samples {
            let bytes = self.message(&format!("{kind}.{name}"), &sample);
            assert_eq!(bytes[0], count, "{kind}.{name} has another place among its variants.\n{WHAT_TO_DO}");
            assert!(
                is_known(count),
                "{kind}.{name} is no value of zeros, so nothing is known of the next one"
            );
            count += 1;
        }
        assert!(!is_known(count), "{kind} has a variant of which there is no sample here.\n{WHAT_TO_DO}");
    }

    /// The same for enums that can tell the names of their variants.
    fn every_named<T: Serialize + DeserializeOwned + Debug>(&mut self, samples: Vec<T>) {
        let kind = std::any::type_name::<T>().rsplit("::").next().unwrap();
        let names: Vec<String> = samples.iter().map(|sample| format!("{sample:?}")).collect();
        let names = names.iter().map(|name| name.split(|c: char| !c.is_alphanumeric()).next().unwrap());
        self.every(kind, names.zip(samples).collect());
    }

    fn text(&self) -> String {
        let lines: String = self.0.iter().map(|(name, hex)| format!("{name} {hex}\n")).collect();
        format!("{HEAD}protocol {PROTOCOL_VERSION}\n{lines}")
    }
}

/// Without comments.
fn lines(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap_or((line, ""))).collect()
}

/// What of `kept` is not so in `now`, with what to do about it.
fn differences(kept: &str, now: &str) -> Result<(), String> {
    let (kept, now) = (lines(kept), lines(now));
    let mut told = String::new();
    for (name, hex) in &kept {
        match now.get(name) {
            Some(other) if other == hex => {}
            Some(other) => told += &format!("{name} was\n    {hex}\nand is\n    {other}\n"),
            None => told += &format!("{name} is gone\n"),
        }
    }
    let added = now.keys().filter(|name| !kept.contains_key(*name));
    added.for_each(|name| told += &format!("{name} is new\n"));
    if told.is_empty() { Ok(()) } else { Err(format!("{told}{WHAT_TO_DO}")) }
}

#[test]
fn golden_bytes_of_peer_messages() {
    let now = local(all()).text();
    let kept = fs::read_to_string(FIXTURE).unwrap_or_default();
    if std::env::var_os(WRITE).is_some() {
        let (before, after) = (lines(&kept), lines(&now));
        if before.get("protocol") == after.get("protocol") {
            // Samples may be added to those of a version, nothing else.
            let is_still = before.iter().all(|(name, hex)| after.get(name) == Some(hex));
            assert!(is_still, "{}", differences(&kept, &now).unwrap_err());
        }
        fs::write(FIXTURE, &now).unwrap();
    } else if let Err(told) = differences(&kept, &now) {
        panic!("{told}");
    }
}

#[test]
fn a_change_without_a_new_version_is_told_with_what_to_do() {
    let kept = "# x\nprotocol 1\na 01\nb 02\n";
    assert_eq!(differences(kept, "protocol 1\na 01\nb 02\n"), Ok(()));
    for (now, told) in [
        ("protocol 1\na 01\nb 0200\n", "b was\n    02\nand is\n    0200\n"),
        ("protocol 1\na 01\n", "b is gone\n"),
        ("protocol 1\na 01\nb 02\nc 03\n", "c is new\n"),
        ("protocol 2\na 01\nb 02\n", "protocol was\n    1\nand is\n    2\n"),
    ] {
        let got = differences(kept, now).unwrap_err();
        assert!(got.starts_with(told) && got.contains("raise PROTOCOL_VERSION"), "{got}");
    }
}

async fn all() -> Golden {
    let mut all = Golden::default();
    hellos(&mut all).await;
    frames(&mut all).await;
    meta(&mut all);
    replica(&mut all);
    all.every_named(messages());
    parts(&mut all);
    all
}

// ---- connections

fn hello() -> Hello {
    Hello {
        cluster_id: "cluster".into(),
        from: node(1),
        incarnation: 0x0102_0304_0506_0708,
        service: Service::Replica,
        class: Class::Replication,
        to: node(2),
    }
}

/// What a dialer says, and what it is answered.
async fn said(hello: &Hello, me: &Identity) -> (Vec<u8>, Vec<u8>) {
    let (mut dialer, mut between) = duplex(MAX_HELLO_BYTES);
    let dial = async {
        // The other side goes away without an answer.
        greet(&mut dialer, hello).await.unwrap_err();
    };
    let hear = async {
        let mut bytes = vec![0; PREFACE.len() + 2];
        between.read_exact(&mut bytes).await.unwrap();
        let len = u16::from_le_bytes([bytes[4], bytes[5]]);
        let mut rest = vec![0; len.into()];
        between.read_exact(&mut rest).await.unwrap();
        drop(between);
        [bytes, rest].concat()
    };
    let ((), bytes) = tokio::join!(dial, hear);
    let reply = answered(&bytes, me).await;
    (bytes, reply)
}

async fn answered(hello: &[u8], me: &Identity) -> Vec<u8> {
    let (mut dialer, mut acceptor) = duplex(MAX_HELLO_BYTES);
    dialer.write_all(hello).await.unwrap();
    let _ = admit(&mut acceptor, me, Service::Replica).await; // whatever it thinks of it, it answers
    drop(acceptor);
    let mut reply = Vec::new();
    dialer.read_to_end(&mut reply).await.unwrap();
    reply
}

async fn hellos(all: &mut Golden) {
    let me = Identity::new(node(2), 0x1112_1314_1516_1718, "cluster");
    let (bytes, accepted) = said(&hello(), &me).await;
    all.bytes("hello", &bytes);
    all.bytes("reply.accepted", &accepted);
    let mut later = bytes;
    later[6..8].copy_from_slice(&0x7fff_u16.to_le_bytes());
    all.bytes("reply.other_version", &answered(&later, &me).await);
    for (name, hello) in [
        ("reply.other_cluster", Hello { cluster_id: "other".into(), ..hello() }),
        ("reply.other_service", Hello { service: Service::Meta, ..hello() }),
        ("reply.other_node", Hello { to: node(3), ..hello() }),
    ] {
        all.bytes(name, &said(&hello, &me).await.1);
    }
    all.every_named(vec![
        Refusal::OtherVersion(0x0102),
        Refusal::OtherCluster("cluster".into()),
        Refusal::OtherService(Service::Meta),
        Refusal::OtherNode(node(1)),
    ]);
    all.every_named(vec![Service::Replica, Service::Meta]);
    all.every_named(Class::ALL.to_vec());
}

async fn frames(all: &mut Golden) {
    const ID: u64 = 0x0102_0304_0506_0708;
    let (dialer, acceptor) = duplex(1 << 10);
    let mut between = (Vec::new(), Vec::new());
    let mut client = ClientWire::<_, MetaPeerRequest, MetaPeerResponse>::new(dialer, FrameOptions::default());
    let mut context = context::current();
    // Beyond what a frame can say, so that no time passes meanwhile.
    context.deadline = Instant::now() + Duration::from_secs(100 * 86_400);
    let message = MetaPeerRequest::Query { gpid: GPID };
    let trace_context = context.trace_context;
    client.send(ClientMessage::Request(Request { context, id: ID, message })).await.unwrap();
    client.send(ClientMessage::Cancel { trace_context, request_id: ID }).await.unwrap();
    drop(client);
    let mut acceptor = acceptor;
    acceptor.read_to_end(&mut between.0).await.unwrap();

    let (dialer, acceptor) = duplex(1 << 10);
    let mut server =
        ServerWire::<_, MetaPeerRequest, MetaPeerResponse>::new(acceptor, FrameOptions::default());
    let message = Ok(MetaPeerResponse::Query(QueryReply::Unknown));
    server.send(Response { request_id: ID, message }).await.unwrap();
    let message = Err(ServerError::new(std::io::ErrorKind::Other, "why".to_owned()));
    server.send(Response { request_id: ID, message }).await.unwrap();
    drop(server);
    let mut dialer = dialer;
    dialer.read_to_end(&mut between.1).await.unwrap();

    let names = [["frame.request", "frame.cancel"], ["frame.answer", "frame.failure"]];
    for (mut bytes, names) in [between.0, between.1].iter().map(|bytes| &bytes[..]).zip(names) {
        for name in names {
            let len = u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            let (frame, rest) = bytes.split_at(4 + len);
            all.bytes(name, frame);
            bytes = rest;
        }
        assert!(bytes.is_empty());
    }
}

// ---- services

fn meta(all: &mut Golden) {
    let beacon = Beacon {
        node: node(1),
        incarnation: 0x0102_0304_0506_0708,
        wall_us: 1_700_000_000_123_456,
        log_healthy: true,
        draining: false,
    };
    let report = ConfigSync { node: node(1), incarnation: 300, replicas: vec![report()] };
    let change = ChangeRequest {
        gpid: Gpid::new(5, 6),
        ballot: Ballot(700),
        kind: ChangeKind::Renew { primary: node(1) },
        committed: Decree(800),
    };
    all.every(
        "MetaPeerRequest",
        vec![
            ("Beacon", MetaPeerRequest::Beacon { beacon }),
            ("ConfigSync", MetaPeerRequest::ConfigSync { report }),
            ("Change", MetaPeerRequest::Change { request: change }),
            ("Query", MetaPeerRequest::Query { gpid: Gpid::new(5, 6) }),
            ("ClusterView", MetaPeerRequest::ClusterView {}),
        ],
    );
    let ack = ConfigSyncAck {
        err: ErrorCode::ForwardToOthers,
        leader: Some(node(2)),
        configs: vec![(app(), config())],
        garbage: vec![Gpid::new(7, 8)],
    };
    all.every(
        "MetaPeerResponse",
        vec![
            ("Beacon", MetaPeerResponse::Beacon(beacon_ack([true, false, false]))),
            ("ConfigSync", MetaPeerResponse::ConfigSync(ack)),
            ("Change", MetaPeerResponse::Change(ChangeReply::Accepted(config()))),
            ("Query", MetaPeerResponse::Query(QueryReply::Known(app(), config()))),
            ("ClusterView", MetaPeerResponse::ClusterView(overview())),
        ],
    );
    // Their order among themselves.
    all.message("BeaconAck.wants_report", &beacon_ack([false, true, false]));
    all.message("BeaconAck.all_draining", &beacon_ack([false, false, true]));
    all.every_named(vec![
        ChangeReply::Accepted(config()),
        ChangeReply::Rejected { current: Some(config()), why: "why".into() },
        ChangeReply::NotLeader { leader: Some(node(2)) },
    ]);
    all.every_named(vec![
        QueryReply::Known(app(), config()),
        QueryReply::Unknown,
        QueryReply::NotLeader { leader: Some(node(2)) },
    ]);
}

fn replica(all: &mut Golden) {
    let heartbeat = Heartbeat {
        incarnation: 0x0102_0304_0506_0708,
        seq: 300,
        digest: 0x1112_1314_1516_1718,
        count: 2,
        pairs: Some(vec![(Gpid::new(5, 6), Ballot(700))]),
        log_healthy: true,
    };
    let learn = LearnOpen {
        gpid: Gpid::new(5, 6),
        ballot: Ballot(700),
        signature: 0x0102_0304_0506_0708,
        committed: Decree(800),
        resume: Some(900),
    };
    let rows = RowsRequest {
        gpid: Gpid::new(5, 6),
        session: 900,
        after: Some(Bytes::from_static(b"key")),
        max_bytes: 1 << 20,
    };
    let log = LogRequest {
        gpid: Gpid::new(5, 6),
        signature: 0x0102_0304_0506_0708,
        from: Decree(801),
        max_bytes: 1 << 20,
    };
    let proposal = ProposalRequest {
        gpid: Gpid::new(5, 6),
        ballot: Ballot(700),
        proposal: Proposal::HandOver { to: node(2) },
    };
    all.every(
        "ReplicaPeerRequest",
        vec![
            ("Deliver", ReplicaPeerRequest::Deliver { batch: vec![envelope(), envelope()] }),
            ("Heartbeat", ReplicaPeerRequest::Heartbeat { heartbeat }),
            ("LearnOpen", ReplicaPeerRequest::LearnOpen { request: learn }),
            ("LearnRows", ReplicaPeerRequest::LearnRows { request: rows }),
            ("LearnLog", ReplicaPeerRequest::LearnLog { request: log }),
            ("Adopt", ReplicaPeerRequest::Adopt { configs: vec![(app(), config())] }),
            ("Propose", ReplicaPeerRequest::Propose { request: proposal }),
            ("Stats", ReplicaPeerRequest::Stats {}),
        ],
    );
    let ack = HeartbeatAck {
        incarnation: 0x0102_0304_0506_0708,
        to_incarnation: 0x1112_1314_1516_1718,
        seq: 300,
        grant: Grant::SendPairs,
        log_healthy: true,
    };
    let plan = LearnPlan::Rows { session: 900, decree: Decree(800), rows: 1000 };
    let chunk =
        RowsChunk { body: body(), crc: 0x0102_0304, last_key: Some(Bytes::from_static(b"key")), done: true };
    let log = LogChunk { mutations: vec![whole_mutation()], committed: Decree(800) };
    all.every(
        "ReplicaPeerResponse",
        vec![
            ("Deliver", ReplicaPeerResponse::Deliver(())),
            ("Heartbeat", ReplicaPeerResponse::Heartbeat(ack)),
            ("LearnOpen", ReplicaPeerResponse::LearnOpen(Ok(plan))),
            ("LearnRows", ReplicaPeerResponse::LearnRows(Ok(chunk))),
            ("LearnLog", ReplicaPeerResponse::LearnLog(Ok(log))),
            ("Adopt", ReplicaPeerResponse::Adopt(())),
            ("Propose", ReplicaPeerResponse::Propose(ErrorCode::InvalidState)),
            ("Stats", ReplicaPeerResponse::Stats(stats())),
        ],
    );
    all.message("ReplicaPeerResponse.refused", &ReplicaPeerResponse::LearnOpen(Err(LearnRefused::Busy)));
}

fn messages() -> Vec<Message> {
    let (signature, round) = (0x0102_0304_0506_0708, 0x1112);
    vec![
        Message::Configure { config: config() },
        Message::State { committed: Decree(800), prepared: Decree(900) },
        Message::Prepare { mutation: whole_mutation(), committed: Decree(800) },
        Message::Prepared { prepared: Decree(900), round },
        Message::Gap { expected: Decree(801), round },
        Message::NeedConfig,
        Message::Stale,
        Message::NotHere,
        Message::Commit { committed: Decree(800) },
        Message::Learn { config: config(), signature },
        Message::Join { signature, round, prepared: Decree(900) },
        Message::Joined { signature, round, committed: Decree(800) },
        Message::FetchMore { signature, round },
        Message::LearnFailed { signature },
        Message::Released,
    ]
}

/// Enums inside them.
fn parts(all: &mut Golden) {
    let pairs = |ballot| vec![(Gpid::new(5, 6), Ballot(ballot))];
    all.every_named(vec![
        Grant::All,
        Grant::SendPairs,
        Grant::Some { granted: pairs(700), newer: pairs(701) },
    ]);
    all.every_named(vec![LearnPlan::Log, LearnPlan::Rows { session: 900, decree: Decree(800), rows: 1000 }]);
    all.every_named(vec![
        LearnRefused::NotPrimary(Ballot(700)),
        LearnRefused::NoSession(900),
        LearnRefused::LogGone(Decree(800)),
        LearnRefused::Busy,
        LearnRefused::Failed("why".into()),
    ]);
    all.every_named(vec![
        ChangeKind::TakeOver { claimant: node(1) },
        ChangeKind::Renew { primary: node(1) },
        ChangeKind::AddSecondary { primary: node(1), node: node(2) },
        ChangeKind::RemoveSecondary { primary: node(1), node: node(2) },
        ChangeKind::HandOver { primary: node(1), to: node(2), stay: true },
    ]);
    all.every_named(vec![
        Proposal::AddSecondary { node: node(2) },
        Proposal::RemoveSecondary { node: node(2) },
        Proposal::HandOver { to: node(2) },
        Proposal::TakeOver,
    ]);
    all.every_named(vec![
        ReplicaStatus::Inactive,
        ReplicaStatus::Primary,
        ReplicaStatus::Secondary,
        ReplicaStatus::Learner,
        ReplicaStatus::Error,
    ]);
    all.every_named(vec![
        PartitionHealth::Dead,
        PartitionHealth::Unreadable,
        PartitionHealth::Unwritable,
        PartitionHealth::WritableIll,
        PartitionHealth::Healthy,
    ]);
    all.every_named((0..=7).map(|n| AppStatus::from_wire(n).unwrap()).collect());
    all.every_named(ErrorCode::ALL.to_vec());
}

// ---- what messages are made of; all numbers differ, and those of one type are longer than a byte

fn node(n: u8) -> Node {
    Node::new(format!("10.0.0.{n}:34801"))
}

fn app() -> AppInfo {
    AppInfo {
        app_id: 5,
        name: "table".into(),
        app_type: "pegasus".into(),
        status: AppStatus::Dropped,
        partition_count: 8,
        max_replica_count: 3,
        envs: [("default_ttl".to_owned(), "60".to_owned())].into(),
        create_second: 1_700_000_001,
        drop_second: 1_700_000_002,
        expire_second: 1_700_000_003,
    }
}

fn config() -> PartitionConfig {
    PartitionConfig {
        gpid: Gpid::new(5, 6),
        ballot: Ballot(700),
        max_replica_count: 3,
        primary: Some(node(1)),
        secondaries: vec![node(2)],
        last_drops: vec![node(3), node(4)],
        last_committed: Decree(800),
        partition_flags: 1,
    }
}

fn body() -> Bytes {
    let mut body = BodyBuilder::default();
    body.put(b"key", [b"head", b"value"]);
    body.delete(b"gone");
    body.finish()
}

fn whole_mutation() -> Mutation {
    Mutation::new(Gpid::new(5, 6), Decree(900), Ballot(699), 1_700_000_000_123_456, body())
}

fn envelope() -> Envelope {
    let message = Message::Prepare { mutation: whole_mutation(), committed: Decree(800) };
    Envelope { gpid: Gpid::new(5, 6), ballot: Ballot(700), message }
}

fn report() -> ReplicaReport {
    ReplicaReport {
        gpid: Gpid::new(5, 6),
        ballot: Ballot(700),
        status: ReplicaStatus::Learner,
        committed: Decree(800),
        prepared: Decree(900),
        durable: Decree(750),
        disk_tag: "ssd1".into(),
    }
}

fn beacon_ack([accepted, wants_report, all_draining]: [bool; 3]) -> BeaconAck {
    let leader = Some(node(2));
    BeaconAck { accepted, leader, wants_report, all_draining, cluster_id: "cluster".into() }
}

fn overview() -> ClusterOverview {
    let node_overview = NodeOverview {
        node: node(1),
        alive: true,
        draining: false,
        log_healthy: true,
        clock_skew_us: -300,
        primaries: 201,
        secondaries: 202,
    };
    let partition =
        PartitionOverview { config: config(), health: PartitionHealth::WritableIll, note: "note".into() };
    ClusterOverview {
        cluster_id: "cluster".into(),
        cluster_name: "name".into(),
        leader: Some(node(2)),
        metas: vec![node(2), node(3)],
        nodes: vec![node_overview],
        tables: vec![TableOverview { info: app(), partitions: vec![partition] }],
    }
}

fn stats() -> NodeStats {
    let disk = DiskStats {
        tag: "ssd1".into(),
        healthy: true,
        capacity_bytes: 1 << 40,
        available_bytes: 1 << 39,
        log_bytes: 1 << 30,
    };
    let replica = ReplicaStats {
        report: report(),
        reads: 301,
        writes: 302,
        read_bytes: 303,
        write_bytes: 304,
        failed: 305,
        disk_bytes: 306,
        estimated_rows: 307,
    };
    NodeStats {
        node: node(1),
        incarnation: 0x0102_0304_0506_0708,
        uptime_ms: 100_000,
        version: "0.1.0".into(),
        memory_bytes: 1 << 28,
        disks: vec![disk],
        replicas: vec![replica],
    }
}
