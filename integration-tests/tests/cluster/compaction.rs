//! Manual compaction, asked for by a table's settings and by the request of tools, while clients read and write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pegasus_client::Table;
use pegasus_integration_tests::{TestCluster, Writers, block_on, http_get, metric};
use pegasus_onebox::{Durability, Options};
use pegasus_rpc::wire::meta::{QueryManualCompactRequest, StartManualCompactRequest};
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Connection, Request, RequestHead, Response};
use pegasus_types::{ErrorCode, Node};

const PARTITIONS: usize = 8;
const REPLICAS: usize = 3 * PARTITIONS;
const ROWS: usize = 8_000;
const ROW_BYTES: usize = 2_000;
/// Of so many rows one stays.
const ONE_OF: usize = 5;
const WITHIN: Duration = Duration::from_secs(120);
const CALL_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn every_replica_is_compacted_once_and_clients_do_not_notice() {
    let sets = ["pegasus.server.rocksdb_write_buffer_size=256K", "replication.config_sync_interval_ms=1000"];
    let cluster = TestCluster::start(Options {
        durability: Durability::PageCache,
        sets: sets.map(str::to_owned).to_vec(),
        ..Options::default()
    });
    block_on(async {
        let table = cluster.table().await;
        for version in 0..2 {
            each_row(|i| {
                let table = table.clone();
                async move { table.set(key(i), "", value(i, version)).await.unwrap() }
            })
            .await;
        }
        each_row(|i| {
            let table = table.clone();
            async move {
                if !i.is_multiple_of(ONE_OF) {
                    table.del(key(i), "").await.unwrap();
                }
            }
        })
        .await;
        assert_eq!(states(&cluster), BTreeMap::from([("idle", REPLICAS)]));
        assert_eq!(progress(&cluster, "temp").await.0, ErrorCode::InvalidState, "none was asked for");
        let before = disk_bytes(&cluster);

        let writers = Writers::start(&table, 4, 300);
        let readers = Readers::start(&table);
        writers.proceed(100).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let envs = [("manual_compact.once.trigger_time", now.to_string())];
        let envs = envs.map(|(name, value)| (name.to_owned(), value)).into();
        let hint = cluster.client().await.set_envs("temp", &envs).await.unwrap();
        assert_eq!(hint, "");
        let begun = Instant::now();
        all_finished(&cluster).await;
        let took = begun.elapsed();
        writers.proceed(200).await;
        let after = disk_bytes(&cluster);
        println!("{REPLICAS} replicas compacted in {took:?}: {before} bytes before, {after} after");
        let live = (3 * ROWS / ONE_OF * ROW_BYTES) as u64;
        assert!(before > 4 * live && (live..2 * live).contains(&after), "{before} {after}, rows have {live}");
        let acknowledged = writers.stop(300).await;
        println!("the longest write took {:?}, {} reads", acknowledged.longest(), readers.stop().await);
        acknowledged.check(&table).await;

        // It is remembered by who starts again.
        let finished = last_finishes(&cluster, None).await;
        assert_eq!(finished.len(), REPLICAS);
        let name = &cluster.replicas()[0];
        tokio::task::block_in_place(|| {
            cluster.kill(name).unwrap();
            cluster.start_member(name).unwrap();
        });
        cluster.heal();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(last_finishes(&cluster, None).await, finished, "none runs again");
        assert_eq!(states(&cluster), BTreeMap::from([("finished", REPLICAS)]));

        // The same, as admin-cli asks for it.
        let app_name = "temp".to_owned();
        let start = StartManualCompactRequest { app_name: "none".to_owned(), ..Default::default() };
        assert_eq!(start_at(&cluster, start).await.0, ErrorCode::AppNotExist);
        let start = StartManualCompactRequest {
            app_name: app_name.clone(),
            target_level: Some(-1),
            bottommost: Some(true),
            max_running_count: Some(1),
            ..Default::default()
        };
        let asked_at = Instant::now();
        let (code, hint) = start_at(&cluster, start.clone()).await;
        assert!(code == ErrorCode::Ok && hint.contains("replica.query-compact"), "{code} {hint}");
        loop {
            let (code, hint, progress) = progress(&cluster, &app_name).await;
            assert!(code == ErrorCode::Ok && asked_at.elapsed() < WITHIN, "{code} {hint} {progress:?}");
            if progress == Some(100) {
                break;
            }
            // One at a time, as was asked.
            for member in servers(&cluster) {
                let running = metric(member.address, "pegasus_replica_rdb_manual_compact_running_tasks");
                assert!(running <= 1.0, "{running}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let again = last_finishes(&cluster, None).await;
        assert!(finished.iter().all(|(gpid, at)| again[gpid] > *at), "{finished:?} {again:?}");

        // Two commands of operators: one replica, and one that there is not.
        assert_eq!(last_finishes(&cluster, Some("1.0,1.7")).await.len(), 6);
        let envs = [("manual_compact.disabled".to_owned(), "true".to_owned())].into();
        cluster.client().await.set_envs("temp", &envs).await.unwrap();
        assert_eq!(start_at(&cluster, start).await.0, ErrorCode::OperationDisabled);
    });
}

fn key(i: usize) -> String {
    format!("row {i}")
}

/// Does not compress.
fn value(i: usize, version: usize) -> Vec<u8> {
    let mut state = (i * 2 + version) as u64;
    (0..ROW_BYTES)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Many at a time.
async fn each_row<F: Future<Output = ()> + Send + 'static>(work: impl Fn(usize) -> F) {
    use futures::StreamExt as _;
    futures::stream::iter((0..ROWS).map(work)).for_each_concurrent(64, |work| work).await;
}

/// Clients that read the rows that stay, and do not accept anything else.
struct Readers {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Readers {
    fn start(table: &Table) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (table, stopped) = (table.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) {
                let i = reads * 7 % ROWS;
                let row = table.get(key(i), "").await.unwrap();
                let expected = i.is_multiple_of(ONE_OF).then(|| value(i, 1));
                assert_eq!(row.as_deref(), expected.as_deref(), "row {i}");
                reads += 1;
            }
            reads
        });
        Self { stop, task }
    }

    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn servers(cluster: &TestCluster) -> impl Iterator<Item = &pegasus_onebox::Member> {
    cluster.members().iter().filter(|member| member.name.starts_with("replica"))
}

fn json(member: &pegasus_onebox::Member, path: &str) -> serde_json::Value {
    let answer = http_get(member.address, path);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

/// Replicas of table `temp` by state; states without any are left out.
fn states(cluster: &TestCluster) -> BTreeMap<&'static str, usize> {
    let mut all = BTreeMap::new();
    for member in servers(cluster) {
        let told = json(member, "/replica/manual_compaction?app_id=1");
        for state in ["idle", "queuing", "running", "finished"] {
            *all.entry(state).or_insert(0) += told["status"][state].as_u64().unwrap() as usize;
        }
    }
    all.retain(|_, count| *count > 0);
    all
}

async fn all_finished(cluster: &TestCluster) {
    let begun = Instant::now();
    while states(cluster) != BTreeMap::from([("finished", REPLICAS)]) {
        assert!(begun.elapsed() < WITHIN, "{:?}", states(cluster));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Of all replicas.
fn disk_bytes(cluster: &TestCluster) -> u64 {
    let of = |member: &pegasus_onebox::Member| {
        let told = json(member, "/replica/list");
        told["replicas"].as_array().unwrap().iter().map(|r| r["disk_bytes"].as_u64().unwrap()).sum::<u64>()
    };
    servers(cluster).map(of).sum()
}

/// When each replica of table `temp` (or those with these ids) was compacted last, as the remote command says.
async fn last_finishes(cluster: &TestCluster, ids: Option<&str>) -> BTreeMap<String, String> {
    let client = cluster.client().await;
    let mut all = BTreeMap::new();
    for member in servers(cluster) {
        let server = Node::new(member.address.to_string());
        let arguments = [ids.unwrap_or("1").to_owned()];
        let told = client.remote_command(&server, "replica.query-compact", &arguments).await.unwrap();
        let mut lines = told.lines();
        let first = lines.next().unwrap();
        assert!(first.ends_with(" processed, 0 not found"), "{told}");
        for line in lines {
            let (replica, json) = line.trim().split_once(" : ").unwrap();
            // The role may change.
            let (replica, _) = replica.rsplit_once('@').unwrap();
            let json: serde_json::Value = serde_json::from_str(json).unwrap();
            all.insert(replica.to_owned(), json["last_finish"].as_str().unwrap().to_owned());
        }
    }
    all
}

async fn admin(cluster: &TestCluster, request: AdminRequest) -> AdminResponse {
    let meta = cluster.metas().parse().unwrap();
    let connection = Connection::connect(meta, CALL_WITHIN).await.unwrap();
    let answer = connection.call(RequestHead::default(), &Request::Admin(request), CALL_WITHIN).await;
    match answer.unwrap() {
        Response::Admin(response) => response,
        other => panic!("{other:?}"),
    }
}

async fn start_at(cluster: &TestCluster, request: StartManualCompactRequest) -> (ErrorCode, String) {
    match admin(cluster, AdminRequest::StartManualCompact(request)).await {
        AdminResponse::StartManualCompact(response) => (response.err.0, response.hint_msg),
        other => panic!("{other:?}"),
    }
}

async fn progress(cluster: &TestCluster, app_name: &str) -> (ErrorCode, String, Option<i32>) {
    let request = QueryManualCompactRequest { app_name: app_name.to_owned() };
    match admin(cluster, AdminRequest::QueryManualCompact(request)).await {
        AdminResponse::QueryManualCompact(response) => (response.err.0, response.hint_msg, response.progress),
        other => panic!("{other:?}"),
    }
}
