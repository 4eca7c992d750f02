//! The cluster under test, over the client protocol.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::future::join_all;
use pegasus_rpc::wire::meta::{QueryConfigRequest, QueryConfigResponse};
use pegasus_rpc::wire::{Connection, Request, RequestHead, Response};
use pegasus_types::ErrorCode;
use pegasus_types::data::{
    ReadRequest, ReadResponseBody, StorageError, UpdateRequest, WriteRequest, WriteResponse,
};
use pegasus_types::hash::{encode_key, key_hash, partition_of};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::args::{Args, Case};
use crate::cpu::{self, Process};
use crate::measure::{self, Sample};
use crate::workload::{Operation, Values, Workload, key_name};

/// Pause of a worker after a failed operation; a cluster that refuses is not to be hammered.
const AFTER_ERROR: Duration = Duration::from_millis(20);
/// The table's places are asked for at most this often.
const REFRESH_EVERY: Duration = Duration::from_millis(200);
/// Of a row while loading; after that something is wrong.
const LOAD_ATTEMPTS: usize = 50;
/// Rows under way while loading.
const LOAD_WORKERS: usize = 200;
/// Answers of `/configs` are small.
const HTTP_ANSWER_MAX: u64 = 4 << 20;

/// The table and where its partitions are. One per run.
#[derive(Debug)]
pub struct Cluster {
    metas: Vec<SocketAddrV4>,
    table: String,
    timeout: Duration,
    routes: RefCell<Routes>,
    refreshed: Cell<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Routes {
    app_id: i32,
    partition_count: i32,
    primaries: Vec<Option<SocketAddrV4>>,
    members: BTreeSet<SocketAddrV4>,
}

impl Cluster {
    pub async fn open(args: &Args) -> Result<Rc<Self>> {
        let mut metas = Vec::new();
        for meta in &args.meta {
            let found = lookup_host(meta).await.with_context(|| format!("meta-server {meta}"))?;
            metas.extend(found.filter_map(|address| match address {
                SocketAddr::V4(address) => Some(address),
                SocketAddr::V6(_) => None,
            }));
        }
        let cluster = Self {
            metas,
            table: args.table.clone(),
            timeout: args.timeout(),
            routes: RefCell::default(),
            refreshed: Cell::new(Instant::now()),
        };
        let routes = cluster.query().await?;
        if routes.primaries.iter().any(Option::is_none) {
            bail!("table {} has partitions without a primary", cluster.table);
        }
        cluster.routes.replace(routes);
        Ok(Rc::new(cluster))
    }

    /// Every server process that takes part: metas, the table's servers, and `further` ones.
    pub fn processes(&self, further: &[String]) -> Result<Vec<Process>> {
        let metas = self.metas.iter().enumerate().map(|(i, address)| (format!("meta{}", i + 1), *address));
        let routes = self.routes.borrow();
        let replicas =
            routes.members.iter().enumerate().map(|(i, address)| (format!("replica{}", i + 1), *address));
        let mut processes: Vec<Process> = Vec::new();
        let further = further.iter().map(|text| cpu::parse_server(text).map(|(n, a)| (n.to_owned(), a)));
        for named in metas.chain(replicas).map(Ok).chain(further) {
            let (name, address) = named?;
            let found = Process::serving(&name, address)?;
            // One process may hold several roles.
            match processes.iter_mut().find(|known| known.pid == found.pid) {
                Some(known) => known.name = format!("{}+{name}", known.name),
                None => processes.push(found),
            }
        }
        Ok(processes)
    }

    /// What the first server says of `durability`; "unknown" when it does not.
    pub async fn durability(&self) -> String {
        let address = self.routes.borrow().members.first().copied();
        let ask = async {
            let settings = http_get(address?, "/configs").await.ok()?;
            let (_, value) = settings.as_object()?.iter().find(|(name, _)| name.contains("durability"))?;
            let value = value.get("value").unwrap_or(value);
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        timeout(self.timeout, ask).await.ok().flatten().unwrap_or_else(|| "unknown".to_owned())
    }

    async fn query(&self) -> Result<Routes> {
        let request = QueryConfigRequest { app_name: self.table.clone(), partition_indices: Vec::new() };
        let request = Request::QueryConfig(request);
        let mut last = String::from("no meta-server given");
        for meta in &self.metas {
            let asked = async {
                let connection = Connection::connect((*meta).into(), self.timeout).await?;
                Ok::<_, anyhow::Error>(connection.call(RequestHead::default(), &request, self.timeout).await?)
            };
            last = match asked.await {
                Ok(Response::QueryConfig(answer)) if answer.err.0 == ErrorCode::Ok => {
                    return Ok(routes(&answer));
                }
                Ok(Response::QueryConfig(answer)) => answer.err.0.to_string(),
                Ok(other) => format!("strange answer {other:?}"),
                Err(error) => error.to_string(),
            };
        }
        bail!("table {}: {last}", self.table)
    }

    /// Asks again where the partitions are, unless that was done a moment ago.
    async fn refresh(&self) {
        if self.refreshed.get().elapsed() < REFRESH_EVERY {
            return;
        }
        self.refreshed.set(Instant::now());
        if let Ok(routes) = self.query().await {
            self.routes.replace(routes);
        }
    }
}

fn routes(answer: &QueryConfigResponse) -> Routes {
    let mut routes = Routes {
        app_id: answer.app_id,
        partition_count: answer.partition_count,
        primaries: vec![None; answer.partitions.len()],
        members: BTreeSet::new(),
    };
    for partition in &answer.partitions {
        let index = usize::try_from(partition.pid.0.index).unwrap_or(usize::MAX);
        if let Some(place) = routes.primaries.get_mut(index) {
            *place = partition.primary.0;
        }
        routes.members.extend(partition.primary.0);
        routes.members.extend(partition.secondaries.iter().filter_map(|secondary| secondary.0));
    }
    routes
}

async fn http_get(address: SocketAddrV4, path: &str) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(HTTP_ANSWER_MAX).read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(serde_json::from_str(body)?)
}

/// One client: a connection to each server that it needs.
struct Client {
    cluster: Rc<Cluster>,
    connections: RefCell<BTreeMap<SocketAddrV4, Connection>>,
}

impl Client {
    fn new(cluster: &Rc<Cluster>) -> Rc<Self> {
        Rc::new(Self { cluster: cluster.clone(), connections: RefCell::default() })
    }

    /// Dials every server that holds primaries, so that the window does not.
    async fn warm(&self) -> Result<()> {
        let primaries: BTreeSet<_> =
            self.cluster.routes.borrow().primaries.iter().flatten().copied().collect();
        for address in primaries {
            self.connection(address).await.with_context(|| format!("server {address}"))?;
        }
        Ok(())
    }

    async fn connection(&self, address: SocketAddrV4) -> std::io::Result<Connection> {
        let known = self.connections.borrow().get(&address).filter(|c| c.is_alive()).cloned();
        if let Some(connection) = known {
            return Ok(connection);
        }
        let connection = Connection::connect(address.into(), self.cluster.timeout).await?;
        self.connections.borrow_mut().insert(address, connection.clone());
        Ok(connection)
    }

    async fn put(&self, key: u64, value: Bytes) -> Result<(), String> {
        let name = key_name(key);
        let encoded = encode_key(name.as_bytes(), b"").expect("short");
        let request = UpdateRequest { key: encoded, value, expire_ts_seconds: 0 };
        match self.call(&name, &Request::Write(WriteRequest::Put(request))).await? {
            Response::Write(WriteResponse::Update(answer)) if answer.error == StorageError::Ok.code() => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn get(&self, key: u64, value_bytes: usize) -> Result<(), String> {
        let name = key_name(key);
        let key = encode_key(name.as_bytes(), b"").expect("short");
        match self.call(&name, &Request::Read(ReadRequest::Get { key })).await? {
            Response::Read(ReadResponseBody::Get(answer)) if answer.error == StorageError::Ok.code() => {
                let len = answer.value.len();
                if len == value_bytes { Ok(()) } else { Err(format!("a value of {len} bytes")) }
            }
            other => Err(format!("{other:?}")),
        }
    }

    async fn call(&self, hash_key: &str, request: &Request) -> Result<Response, String> {
        let hash = key_hash(hash_key.as_bytes(), b"");
        let (head, primary) = {
            let routes = self.cluster.routes.borrow();
            let index = partition_of(hash, routes.partition_count);
            let head = RequestHead {
                app_id: routes.app_id,
                partition_index: index,
                partition_hash: hash,
                ..RequestHead::default()
            };
            (head, usize::try_from(index).ok().and_then(|index| *routes.primaries.get(index)?))
        };
        let attempt = async {
            let primary = primary.ok_or("no primary")?;
            let connection = self.connection(primary).await.map_err(|e| e.to_string())?;
            connection.call(head, request, self.cluster.timeout).await.map_err(|e| e.to_string())
        };
        let result = attempt.await;
        if result.is_err() {
            sleep(AFTER_ERROR).await;
            self.cluster.refresh().await;
        }
        result
    }
}

/// One window of `case`.
pub async fn run(cluster: &Rc<Cluster>, args: &Args, case: Case, servers: &[Process]) -> Result<Sample> {
    let workload = Workload::new(args, case);
    let clients: Vec<_> = (0..args.connections).map(|_| Client::new(cluster)).collect();
    for client in &clients {
        client.warm().await?;
    }
    let value_bytes = args.value_bytes;
    measure::window(args, servers, |recorder| {
        let mut workers = Vec::new();
        for slot in 0..case.depth * clients.len() {
            let client = clients[slot % clients.len()].clone();
            let mut workload = workload.with_seed(slot as u64);
            let recorder = recorder.clone();
            workers.push(spawn_local(async move {
                while recorder.goes_on() {
                    let start = Instant::now();
                    let result = match workload.next() {
                        Operation::Put { key, value } => client.put(key, value).await,
                        Operation::Get { key } => client.get(key, value_bytes).await,
                    };
                    recorder.done(start, 1, result);
                }
            }));
        }
        workers
    })
    .await
}

/// Writes every key once.
pub async fn load(cluster: &Rc<Cluster>, args: &Args) -> Result<()> {
    let client = Client::new(cluster);
    client.warm().await?;
    let values = Values::new(args.value_bytes);
    let next = Cell::new(0);
    let workers = (0..LOAD_WORKERS).map(async |seed| {
        let mut rng = SmallRng::seed_from_u64(seed as u64);
        loop {
            let key = next.replace(next.get() + 1);
            if key >= args.keys {
                return Ok(());
            }
            let mut attempts = 0;
            while let Err(why) = client.put(key, values.next(&mut rng)).await {
                attempts += 1;
                if attempts == LOAD_ATTEMPTS {
                    bail!("loading key {key}: {why}");
                }
            }
        }
    });
    join_all(workers).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use clap::Parser;
    use pegasus_rpc::wire::meta::{Address, PartitionConfiguration};
    use pegasus_rpc::wire::server::WireServer;
    use pegasus_rpc::wire::thrift::{ErrorName, WireGpid};
    use pegasus_rpc::wire::{ClientService, Limits, ReplyTo};
    use pegasus_types::Gpid;
    use pegasus_types::data::{ReadResponse, UpdateResponse};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    const PARTITIONS: i32 = 4;

    /// Meta and replica-server in one, in memory.
    struct OneNode {
        address: SocketAddrV4,
        rows: RefCell<HashMap<Bytes, Bytes>>,
    }

    impl ClientService for OneNode {
        fn call(&self, head: RequestHead, _: usize, request: Request, reply: ReplyTo) {
            let right_partition = |key: &Bytes| {
                let hash = pegasus_types::hash::encoded_key_hash(key).unwrap();
                head.app_id == 2 && partition_of(hash, PARTITIONS) == head.partition_index
            };
            match request {
                Request::QueryConfig(_) => {
                    let partition = |index| PartitionConfiguration {
                        pid: WireGpid(Gpid::new(2, index)),
                        primary: Address(Some(self.address)),
                        ..PartitionConfiguration::default()
                    };
                    reply.query_config(QueryConfigResponse {
                        err: ErrorName(ErrorCode::Ok),
                        app_id: 2,
                        partition_count: PARTITIONS,
                        is_stateful: true,
                        partitions: (0..PARTITIONS).map(partition).collect(),
                    });
                }
                Request::Write(WriteRequest::Put(put)) if right_partition(&put.key) => {
                    self.rows.borrow_mut().insert(put.key, put.value);
                    reply.write(WriteResponse::Update(UpdateResponse::default()));
                }
                Request::Read(ReadRequest::Get { key }) if right_partition(&key) => {
                    let value = self.rows.borrow().get(&key).cloned();
                    let error = if value.is_some() { StorageError::Ok } else { StorageError::NotFound };
                    let value = value.unwrap_or_default();
                    reply.read(ReadResponseBody::Get(ReadResponse {
                        error: error.code(),
                        value,
                        ..ReadResponse::default()
                    }));
                }
                _ => reply.error(ErrorCode::InvalidParameters),
            }
        }
    }

    #[test]
    fn a_whole_run_against_one_node() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
            let node = Rc::new(OneNode { address, rows: RefCell::default() });
            let server = WireServer::new(address.to_string(), Limits::default(), node.clone());
            spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    spawn_local(server.clone().serve(stream));
                }
            });
            let meta = address.to_string();
            let args = ["--connections", "3", "--keys", "500", "--value-bytes", "300", "--seconds", "1"];
            let args = ["pegasus_bench", "--warm-up-seconds", "0", "--meta", &meta].into_iter().chain(args);
            let args = Args::parse_from(args);

            let cluster = Cluster::open(&args).await.unwrap();
            let servers = cluster.processes(&[]).unwrap();
            assert_eq!(servers, [Process { name: "meta1+replica1".into(), pid: std::process::id() }]);
            assert_eq!(cluster.durability().await, "unknown");

            load(&cluster, &args).await.unwrap();
            assert_eq!(node.rows.borrow().len(), 500);
            let sample = run(&cluster, &args, Case { reads_percent: 50, depth: 4 }, &servers).await.unwrap();
            assert_eq!((sample.errors, sample.first_error.as_deref()), (0, None));
            assert!(sample.operations() > 100, "{}", sample.operations());
            assert!(sample.server_cpu[0].1 > 0);

            node.rows.borrow_mut().clear();
            let sample = run(&cluster, &args, Case { reads_percent: 100, depth: 1 }, &servers).await.unwrap();
            assert_eq!(sample.operations(), 0);
            assert!(sample.errors > 0 && sample.first_error.is_some());
        });
    }
}
