//! A cluster in one thread: meta-servers and replica-servers on real sockets that share one map of rows.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use pegasus_rpc::listener::{self, Handlers};
use pegasus_rpc::wire::meta::{
    AppInfoMessage, ClusterInfoResponse, CreateAppResponse, ListAppsResponse, ListNodesResponse, NodeInfo,
    PartitionConfiguration, QueryConfigResponse, UpdateAppEnvResponse,
};
use pegasus_rpc::wire::server::WireServer;
use pegasus_rpc::wire::{
    self, AdminRequest, AdminResponse, ClientService, ErrorName, ReplyTo, Request, RequestHead,
};
use pegasus_types::data::*;
use pegasus_types::hash::{encode_key, encoded_key_hash, partition_of};
use pegasus_types::time::epoch_seconds;
use pegasus_types::{Ballot, ErrorCode, Gpid, Node, PartitionConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

pub const PARTITIONS: i32 = 4;
pub const APP_ID: i32 = 2;

/// What a replica-server does with its next data requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    Refuse(ErrorCode),
    /// Executes it and dies without an answer.
    ExecuteAndDie,
    /// Executes it, does not answer, lives on.
    ExecuteSilently,
    ForgetScans,
}

#[derive(Default)]
pub struct World {
    pub rows: BTreeMap<Bytes, (Bytes, i32)>,
    /// Index of the replica-server that is the primary of everything.
    pub primary: usize,
    pub tricks: VecDeque<Trick>,
    pub data_requests: u32,
    pub queries: u32,
    /// Index of the leading meta-server; None = nobody is ready.
    pub leader: Option<usize>,
    /// Meta-servers below this index take requests and never answer.
    pub hanging_metas: usize,
    /// Requests that were left hanging.
    pub hung: u32,
    /// Changes of settings, as they were asked for: table, keys, values, prefix.
    pub envs: Vec<String>,
    /// What the leader answers to the remote command `meta.work`.
    pub work: String,
    /// What the leader tells over HTTP of the partitions of the table: fully healthy, unhealthy, for writes, for reads.
    pub health: [usize; 4],
    metas: Vec<SocketAddrV4>,
    replicas: Vec<SocketAddrV4>,
    stops: Vec<CancellationToken>,
    scans: BTreeMap<i64, Scan>,
    last_scan: i64,
    pub cleared_scans: u32,
}

struct Scan {
    rows: VecDeque<KeyValue>,
    batch: usize,
    count_only: bool,
}

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// The handle of a running fake; its thread ends with it.
pub struct Fake {
    pub metas: String,
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
}

impl Fake {
    pub fn start(metas: usize, replicas: usize) -> Self {
        let (jobs, mut todo) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let (started, address) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let world = Rc::new(RefCell::new(World {
                    leader: Some(0),
                    health: [4, 0, 0, 0],
                    ..World::default()
                }));
                for index in 0..metas {
                    let address = serve(&world, Role::Meta(index)).await;
                    world.borrow_mut().metas.push(address);
                }
                for index in 0..replicas {
                    let address = serve(&world, Role::Replica(index)).await;
                    world.borrow_mut().replicas.push(address);
                }
                let metas: Vec<_> = world.borrow().metas.iter().map(SocketAddrV4::to_string).collect();
                started.send(metas.join(",")).unwrap();
                while let Some(job) = todo.recv().await {
                    job(&mut world.borrow_mut());
                }
            });
        });
        Self { metas: address.recv().unwrap(), jobs }
    }

    /// Looks at or changes the world.
    pub fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut World) -> R + Send + 'static) -> R {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move |world| done.send(f(world)).unwrap())).ok().unwrap();
        result.recv().unwrap()
    }
}

impl World {
    /// As kill -9 of a replica-server.
    pub fn kill(&self, replica: usize) {
        self.stops[self.metas.len() + replica].cancel();
    }

    /// As kill -9 of a meta-server.
    pub fn kill_meta(&self, meta: usize) {
        self.stops[meta].cancel();
    }
}

#[derive(Clone, Copy)]
enum Role {
    Meta(usize),
    Replica(usize),
}

struct Service {
    world: Rc<RefCell<World>>,
    role: Role,
}

async fn serve(world: &Rc<RefCell<World>>, role: Role) -> SocketAddrV4 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port());
    let service = Rc::new(Service { world: world.clone(), role });
    let told = world.clone();
    let http = listener::handler(move |stream, _| tell(stream, told.clone(), role));
    let client = WireServer::new(address.to_string(), wire::Limits::default(), service);
    let handlers = Handlers { client: Some(client), http, peer: None };
    let limits = listener::Limits { drain: Duration::ZERO, ..Default::default() };
    let stop = CancellationToken::new();
    world.borrow_mut().stops.push(stop.clone());
    spawn_local(listener::serve(socket, handlers, limits, stop));
    address
}

/// Answers a GET, if there is something to tell.
async fn tell(mut stream: TcpStream, world: Rc<RefCell<World>>, role: Role) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let Some(page) = world.borrow().http_page(role, path) else { return };
    stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{page}").as_bytes()).await.unwrap();
}

impl ClientService for Service {
    fn call(&self, head: RequestHead, _: usize, request: Request, reply: ReplyTo) {
        let mut world = self.world.borrow_mut();
        match self.role {
            Role::Meta(index) => world.meta(index, request, reply),
            Role::Replica(index) => world.replica(index, head, request, reply),
        }
    }
}

impl World {
    fn meta(&mut self, index: usize, request: Request, reply: ReplyTo) {
        if index < self.hanging_metas {
            self.hung += 1;
            return;
        }
        let err = match self.leader {
            None => ErrorCode::ServiceNotActive,
            Some(leader) if leader != index => ErrorCode::ForwardToOthers,
            Some(_) => ErrorCode::Ok,
        };
        match request {
            Request::QueryConfig(_) if err == ErrorCode::ForwardToOthers => {
                reply
                    .query_config(QueryConfigResponse::forward(self.leader.map(|leader| self.metas[leader])));
            }
            Request::QueryConfig(_) if err != ErrorCode::Ok => {
                reply.query_config(QueryConfigResponse::error(err))
            }
            Request::QueryConfig(query) if query.app_name == "t" => {
                self.queries += 1;
                reply.query_config(self.layout());
            }
            Request::QueryConfig(_) => {
                reply.query_config(QueryConfigResponse::error(ErrorCode::ObjectNotFound));
            }
            Request::Admin(request) => {
                let err = ErrorName(err);
                let response = match request {
                    AdminRequest::ListApps(_) => {
                        let table = AppInfoMessage {
                            status: 1,
                            app_type: "pegasus".into(),
                            app_name: "t".into(),
                            app_id: APP_ID,
                            partition_count: PARTITIONS,
                            max_replica_count: 2,
                            create_second: 1_700_000_000,
                            ..Default::default()
                        };
                        AdminResponse::ListApps(ListAppsResponse {
                            err,
                            infos: vec![table],
                            hint_message: None,
                        })
                    }
                    AdminRequest::ListNodes(_) => {
                        let info = |address: &SocketAddrV4| NodeInfo { status: 1, node: (*address).into() };
                        let infos = self.replicas.iter().map(info).collect();
                        AdminResponse::ListNodes(ListNodesResponse { err, infos })
                    }
                    AdminRequest::ClusterInfo(_) => AdminResponse::ClusterInfo(ClusterInfoResponse {
                        err,
                        keys: vec!["primary_meta_server".into(), "cluster_name".into()],
                        values: vec![
                            self.leader.map(|leader| self.metas[leader].to_string()).unwrap_or_default(),
                            "fake".into(),
                        ],
                    }),
                    AdminRequest::UpdateAppEnv(update) => {
                        let list = |words: Option<Vec<String>>| words.unwrap_or_default().join(",");
                        let (keys, values) = (list(update.keys), list(update.values));
                        let prefix = update.clear_prefix.unwrap_or_default();
                        self.envs.push(format!("{} {keys} {values} {prefix}", update.app_name));
                        let hint_message = String::new();
                        AdminResponse::UpdateAppEnv(UpdateAppEnvResponse { err, hint_message })
                    }
                    AdminRequest::CreateApp(create) if create.app_name == "t" => {
                        let err = ErrorName(ErrorCode::AppExist);
                        AdminResponse::CreateApp(CreateAppResponse { err, appid: 0 })
                    }
                    AdminRequest::CreateApp(_) => {
                        AdminResponse::CreateApp(CreateAppResponse { err, appid: 3 })
                    }
                    _ => return reply.error(ErrorCode::HandlerNotFound),
                };
                reply.admin(response);
            }
            Request::RemoteCommand(command) if command.cmd == "meta.work" => reply.text(self.work.clone()),
            _ => reply.error(ErrorCode::HandlerNotFound),
        }
    }

    fn http_page(&self, role: Role, path: &str) -> Option<String> {
        let leads = matches!(role, Role::Meta(index) if self.leader == Some(index));
        let [full, ill, unwritable, unreadable] = self.health.map(|count| count.to_string());
        match path {
            "/meta/apps?detail" if leads => Some(format!(
                r#"{{"healthy_info":{{"{APP_ID}":{{"app_id":"{APP_ID}","app_name":"t","partition_count":"{PARTITIONS}",
                "fully_healthy":"{full}","unhealthy":"{ill}","write_unhealthy":"{unwritable}",
                "read_unhealthy":"{unreadable}"}}}}}}"#
            )),
            "/meta/app?name=t" if leads => Some(format!(
                r#"{{"healthy":{{"fully_healthy_partition_count":"{full}","unhealthy_partition_count":"{ill}",
                "write_unhealthy_partition_count":"{unwritable}","read_unhealthy_partition_count":"{unreadable}"}}}}"#
            )),
            _ => None,
        }
    }

    fn layout(&self) -> QueryConfigResponse {
        let node = |index: usize| Node::new(self.replicas[index].to_string());
        let partitions = (0..PARTITIONS)
            .map(|index| {
                let config = PartitionConfig {
                    ballot: Ballot(1),
                    primary: Some(node(self.primary)),
                    secondaries: (0..self.replicas.len()).filter(|i| *i != self.primary).map(node).collect(),
                    ..PartitionConfig::unassigned(Gpid::new(APP_ID, index), 2)
                };
                let address = |node: &Node| node.ipv4().map(|(ip, port)| SocketAddrV4::new(ip, port));
                PartitionConfiguration::new(&config, address)
            })
            .collect();
        QueryConfigResponse {
            app_id: APP_ID,
            partition_count: PARTITIONS,
            is_stateful: true,
            partitions,
            ..Default::default()
        }
    }

    fn replica(&mut self, index: usize, head: RequestHead, request: Request, reply: ReplyTo) {
        self.data_requests += 1;
        if index != self.primary || head.app_id != APP_ID {
            return reply.error(ErrorCode::InvalidState);
        }
        match self.tricks.pop_front() {
            None => self.execute(&head, request, Some(reply)),
            Some(Trick::Refuse(code)) => reply.error(code),
            Some(Trick::ExecuteAndDie) => {
                self.execute(&head, request, None);
                self.kill(index);
                drop(reply);
            }
            Some(Trick::ExecuteSilently) => {
                self.execute(&head, request, None);
                drop(reply);
            }
            Some(Trick::ForgetScans) => {
                self.scans.clear();
                self.execute(&head, request, Some(reply));
            }
        }
    }

    fn execute(&mut self, head: &RequestHead, request: Request, reply: Option<ReplyTo>) {
        match request {
            Request::Read(read) => {
                if let (Some(response), Some(reply)) = (self.read(head, read), reply) {
                    reply.read(response);
                }
            }
            Request::Write(write) => {
                let response = self.write(head, write);
                if let Some(reply) = reply {
                    reply.write(response);
                }
            }
            _ => {
                if let Some(reply) = reply {
                    reply.text("done");
                }
            }
        }
    }

    /// The key, after a look at whether the client routed it right.
    fn routed(head: &RequestHead, key: Bytes) -> Bytes {
        let hash = encoded_key_hash(&key).unwrap();
        assert_eq!((head.partition_hash, head.partition_index), (hash, partition_of(hash, PARTITIONS)));
        key
    }

    fn write(&mut self, head: &RequestHead, write: WriteRequest) -> WriteResponse {
        let update = || WriteResponse::Update(UpdateResponse::default());
        match write {
            WriteRequest::Put(put) => {
                self.rows.insert(Self::routed(head, put.key), (put.value, put.expire_ts_seconds));
                update()
            }
            WriteRequest::Remove { key } => {
                self.rows.remove(&Self::routed(head, key));
                update()
            }
            WriteRequest::MultiPut(put) => {
                for kv in put.kvs {
                    let key = Self::routed(head, encode_key(&put.hash_key, &kv.key).unwrap());
                    self.rows.insert(key, (kv.value, put.expire_ts_seconds));
                }
                update()
            }
            WriteRequest::MultiRemove(remove) => {
                for sort_key in &remove.sort_keys {
                    self.rows.remove(&Self::routed(head, encode_key(&remove.hash_key, sort_key).unwrap()));
                }
                let count = remove.sort_keys.len() as i64;
                WriteResponse::MultiRemove(MultiRemoveResponse { count, ..Default::default() })
            }
            WriteRequest::Incr(incr) => {
                let row = self.rows.entry(Self::routed(head, incr.key)).or_default();
                let old = std::str::from_utf8(&row.0).unwrap();
                let Ok(old) = (if old.is_empty() { Ok(0) } else { old.parse::<i64>() }) else {
                    return WriteResponse::Incr(IncrResponse { error: 4, ..Default::default() });
                };
                let new_value = old + incr.increment;
                row.0 = new_value.to_string().into();
                WriteResponse::Incr(IncrResponse { new_value, ..Default::default() })
            }
            WriteRequest::CheckAndSet(check) => {
                let set = Mutate {
                    sort_key: if check.set_diff_sort_key {
                        check.set_sort_key
                    } else {
                        check.check_sort_key.clone()
                    },
                    value: check.set_value,
                    ..Default::default()
                };
                self.check_and_mutate(CheckAndMutateRequest {
                    hash_key: check.hash_key,
                    check_sort_key: check.check_sort_key,
                    check_type: check.check_type,
                    check_operand: check.check_operand,
                    mutate_list: vec![set],
                    return_check_value: check.return_check_value,
                })
            }
            WriteRequest::CheckAndMutate(check) => self.check_and_mutate(check),
        }
    }

    fn check_and_mutate(&mut self, check: CheckAndMutateRequest) -> WriteResponse {
        let key = |sort_key: &Bytes| encode_key(&check.hash_key, sort_key).unwrap();
        let old = self.rows.get(&key(&check.check_sort_key)).map(|row| row.0.clone());
        let passed = match CheckType::from_wire(check.check_type).unwrap() {
            CheckType::ValueNotExist => old.is_none(),
            CheckType::BytesEqual => old.as_ref() == Some(&check.check_operand),
            other => panic!("{other:?}"),
        };
        for change in check.mutate_list.iter().filter(|_| passed) {
            match change.operation {
                0 => drop(self.rows.insert(key(&change.sort_key), (change.value.clone(), 0))),
                _ => drop(self.rows.remove(&key(&change.sort_key))),
            }
        }
        WriteResponse::Check(CheckAndSetResponse {
            error: if passed { 0 } else { 13 },
            check_value_returned: check.return_check_value,
            check_value_exist: check.return_check_value && old.is_some(),
            check_value: old.filter(|_| check.return_check_value).unwrap_or_default(),
            ..Default::default()
        })
    }

    fn read(&mut self, head: &RequestHead, read: ReadRequest) -> Option<ReadResponseBody> {
        Some(match read {
            ReadRequest::Get { key } => {
                ReadResponseBody::Get(match self.rows.get(&Self::routed(head, key)) {
                    Some(row) => ReadResponse { value: row.0.clone(), ..Default::default() },
                    None => ReadResponse { error: 1, ..Default::default() },
                })
            }
            ReadRequest::Ttl { key } => {
                ReadResponseBody::Ttl(match self.rows.get(&Self::routed(head, key)) {
                    Some((_, 0)) => TtlResponse { ttl_seconds: -1, ..Default::default() },
                    Some((_, expire)) => {
                        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
                        let now = i32::try_from(epoch_seconds(u64::try_from(now).unwrap())).unwrap();
                        TtlResponse { ttl_seconds: expire - now, ..Default::default() }
                    }
                    None => TtlResponse { error: 1, ..Default::default() },
                })
            }
            ReadRequest::SortkeyCount { hash_key } => {
                let prefix = encode_key(&hash_key, b"").unwrap();
                let count = self.rows.keys().filter(|key| key.starts_with(&prefix)).count() as i64;
                ReadResponseBody::SortkeyCount(CountResponse { count, ..Default::default() })
            }
            // As if 3 rows were the limit of bytes.
            ReadRequest::MultiGet(get) => {
                let found = |sort_key: &Bytes| {
                    let row = self.rows.get(&encode_key(&get.hash_key, sort_key).unwrap())?;
                    Some(KeyValue { key: sort_key.clone(), value: row.0.clone(), expire_ts_seconds: None })
                };
                let prefix = encode_key(&get.hash_key, b"").unwrap();
                let all = self
                    .rows
                    .keys()
                    .filter(|key| key.starts_with(&prefix))
                    .map(|key| key.slice(prefix.len()..));
                let wanted = if get.sort_keys.is_empty() { all.collect() } else { get.sort_keys.clone() };
                let mut kvs: Vec<_> = wanted.iter().filter_map(found).collect();
                let error = if kvs.len() > 3 { 7 } else { 0 };
                kvs.truncate(3);
                ReadResponseBody::MultiGet(MultiGetResponse { error, kvs, ..Default::default() })
            }
            ReadRequest::BatchGet(get) => {
                let found = |key: FullKey| {
                    let encoded = encode_key(&key.hash_key, &key.sort_key).unwrap();
                    let index = partition_of(encoded_key_hash(&encoded).unwrap(), PARTITIONS);
                    assert_eq!(index, head.partition_index);
                    let value = self.rows.get(&encoded)?.0.clone();
                    Some(FullData { hash_key: key.hash_key, sort_key: key.sort_key, value })
                };
                let data = get.keys.into_iter().filter_map(found).collect();
                ReadResponseBody::BatchGet(BatchGetResponse { data, ..Default::default() })
            }
            ReadRequest::GetScanner(get) => {
                let wanted = |key: &Bytes| {
                    let below = if get.stop_inclusive { *key <= get.stop_key } else { *key < get.stop_key };
                    let above =
                        if get.start_inclusive { *key >= get.start_key } else { *key > get.start_key };
                    let here =
                        partition_of(encoded_key_hash(key).unwrap(), PARTITIONS) == head.partition_index;
                    below && above && here
                };
                let row = |(key, (value, expire_ts)): (&Bytes, &(Bytes, i32))| KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    expire_ts_seconds: get.return_expire_ts.map(|_| *expire_ts),
                };
                let rows = self.rows.iter().filter(|(key, _)| wanted(key)).map(row).collect();
                let batch = usize::try_from(get.batch_size).unwrap();
                self.page(Scan { rows, batch, count_only: get.only_return_count == Some(true) })
            }
            ReadRequest::Scan(scan) => match self.scans.remove(&scan.context_id) {
                Some(scan) => self.page(scan),
                None => ReadResponseBody::Scan(ScanResponse { error: 1, ..Default::default() }),
            },
            ReadRequest::ClearScanner { context_id } => {
                self.cleared_scans += u32::from(self.scans.remove(&context_id).is_some());
                return None;
            }
        })
    }

    fn page(&mut self, mut scan: Scan) -> ReadResponseBody {
        let kvs: Vec<_> = scan.rows.drain(..scan.batch.min(scan.rows.len())).collect();
        let kv_count = scan.count_only.then(|| i32::try_from(kvs.len()).unwrap());
        let kvs = if scan.count_only { Vec::new() } else { kvs };
        let context_id = if scan.rows.is_empty() {
            SCAN_COMPLETED
        } else {
            self.last_scan += 1;
            self.scans.insert(self.last_scan, scan);
            self.last_scan
        };
        ReadResponseBody::Scan(ScanResponse { kvs, context_id, kv_count, ..Default::default() })
    }
}
