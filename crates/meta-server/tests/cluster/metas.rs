//! Several meta-servers in this process, each with sessions of its own with one tree in memory.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_meta_server::{Handle, Stores};
use pegasus_placement::Ledger;
use pegasus_rpc::peer::{Identity, MetaClient, PeerPool, PoolOptions};
use pegasus_rpc::wire::client::Connection;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Request, RequestHead, Response};
use pegasus_telemetry::Shutdown;
use pegasus_types::{ErrorCode, Gpid, Node};
use pegasus_zk_coordination::{MemoryStore, MetaStore, Mode, Op, SessionState, content};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::world::*;

/// Short, so that a lease ends within a test; long enough for a busy machine.
const SESSION: Duration = Duration::from_millis(1500);
const LOCK: &str = "/pegasus/test/lock/dsn.meta.server.leader";

pub struct Metas {
    tree: Arc<MemoryStore>,
    metas: Vec<Meta>,
    pub replicas: Vec<Replica>,
    onlooker: PeerPool,
    shutdown: Shutdown,
}

struct Meta {
    handle: Handle,
    shutdown: Shutdown,
    client: Connection,
    /// The last session that it has begun.
    session: Rc<RefCell<Option<Arc<MemoryStore>>>>,
}

impl Drop for Metas {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl Metas {
    pub async fn start(count: u16, replicas: usize) -> Self {
        Self::start_beside(count, replicas, &[]).await
    }

    /// With three replica-servers and the table `t`; and who leads.
    pub async fn with_table(count: u16) -> (Self, usize) {
        let metas = Self::start(count, 3).await;
        let leader = metas.leader().await;
        assert_eq!(created(metas.ask(leader, create("t")).await), ErrorCode::Ok);
        (metas, leader)
    }

    /// Beside meta-servers that the others only know of.
    pub async fn start_beside(count: u16, replicas: usize, others: &[SocketAddr]) -> Self {
        let tree = Arc::new(MemoryStore::default());
        let shutdown = Shutdown::new();
        let host = format!("127.{}.{}.1", rand::random_range(1..=254), rand::random_range(0..=255));
        let ours = (1..=count).map(|port| format!("{host}:{}", 34600 + port));
        let list = ours.chain(others.iter().map(SocketAddr::to_string)).collect::<Vec<_>>().join(",");
        let mut metas = Vec::new();
        for port in 1..=count {
            let extra = format!(
                "server_list = {list}\ncoordination = zookeeper\n[zookeeper]\nhosts_list = not looked at\n"
            );
            let config = config_at(&host, 34600 + port, &extra);
            let session = Rc::new(RefCell::new(None));
            let (source, last) = (tree.clone(), session.clone());
            let open = move || {
                let mut store = source.join();
                store.set_session_timeout(SESSION);
                let store = Arc::new(store);
                *last.borrow_mut() = Some(store.clone());
                Box::pin(std::future::ready(Ok(store as Arc<dyn MetaStore>))) as _
            };
            let stores = Stores::Sessions(Rc::new(open));
            let shutdown = shutdown.child();
            let handle = pegasus_meta_server::start_on(config, stores, shutdown.clone()).await.unwrap();
            let client = Connection::connect(handle.address(), WITHIN).await.unwrap();
            metas.push(Meta { handle, shutdown, client, session });
        }
        let me = Rc::new(Identity::new(Node::new("127.0.0.1:9"), 1, ""));
        let onlooker = PeerPool::new(me, PoolOptions::default(), |_| {});
        let mut all = Self { tree, metas, replicas: Vec::new(), onlooker, shutdown };
        all.add_replicas(replicas).await;
        all
    }

    pub async fn add_replicas(&mut self, count: usize) {
        let nodes: Vec<Node> = self.metas.iter().map(|meta| meta.handle.node().clone()).collect();
        for _ in 0..count {
            self.replicas.push(Replica::start(&nodes).await);
        }
    }

    pub fn node(&self, at: usize) -> Node {
        self.metas[at].handle.node().clone()
    }

    pub fn address(&self, at: usize) -> SocketAddr {
        self.metas[at].handle.address()
    }

    pub fn peer(&self, at: usize) -> MetaClient {
        self.onlooker.meta(self.metas[at].handle.node())
    }

    /// Its present session with the store.
    pub fn session(&self, at: usize) -> Arc<MemoryStore> {
        self.metas[at].session.borrow().clone().expect("it has begun one")
    }

    /// Its process dies, and its session stays as long as the store does not notice.
    pub async fn kill(&self, at: usize) {
        self.session(at).set_state(SessionState::Disconnected);
        self.metas[at].shutdown.trigger();
        until("nobody listens there", async || {
            TcpStream::connect(self.address(at)).await.is_err().then_some(())
        })
        .await;
    }

    /// The store forgets a session whose owner it does not hear.
    pub fn forget_session(&self, at: usize) {
        self.session(at).expire();
    }

    /// Another session, for looking.
    pub fn observer(&self) -> MemoryStore {
        self.tree.join()
    }

    /// Those that say of themselves that they lead.
    pub async fn leaders(&self) -> Vec<usize> {
        let mut leaders = Vec::new();
        for at in 0..self.metas.len() {
            let view = self.peer(at).cluster_view(WITHIN).await;
            if view.is_ok_and(|view| view.leader == Some(self.node(at))) {
                leaders.push(at);
            }
        }
        leaders
    }

    pub async fn try_leader(&self) -> Option<usize> {
        self.leaders().await.pop()
    }

    pub async fn leader(&self) -> usize {
        until("somebody leads", async || self.try_leader().await).await
    }

    /// How often somebody was elected.
    pub async fn epoch(&self) -> u64 {
        let store: &dyn MetaStore = &*self.tree;
        let datum = store.get("/pegasus/test/leader_epoch").await.unwrap();
        datum.map_or(0, |datum| String::from_utf8_lossy(&datum.bytes).trim().parse().unwrap())
    }

    /// What lies in the store.
    pub async fn stored(&self) -> Ledger {
        let store: &dyn MetaStore = &*self.tree;
        let mut ledger = Ledger::default();
        for id in store.children("/pegasus/test/apps").await.unwrap() {
            let path = format!("/pegasus/test/apps/{id}");
            let app = store.get(&path).await.unwrap().unwrap();
            let info = content::decode_app(&app.bytes).unwrap();
            let mut partitions = Vec::new();
            for index in 0..info.partition_count {
                let datum = store.get(&format!("{path}/{index}")).await.unwrap();
                partitions.push(datum.map(|d| (content::decode_partition(&d.bytes).unwrap(), d.version)));
            }
            ledger.load((info, app.version), partitions).unwrap();
        }
        ledger
    }

    /// Stands in line and does nothing, as long as the session lives.
    pub async fn stand_in_line(&self, session: &MemoryStore) {
        let store: &dyn MetaStore = session;
        let path = format!("{LOCK}/LOCKNODE");
        let op = Op::Create { path, bytes: "127.0.0.1:9".into(), mode: Mode::EphemeralSequential };
        store.multi(vec![op]).await.unwrap();
    }

    pub async fn remove_node_of_leader(&self) {
        let store: &dyn MetaStore = &*self.tree;
        let first = store.children(LOCK).await.unwrap().remove(0);
        store.multi(vec![Op::Delete { path: format!("{LOCK}/{first}"), version: None }]).await.unwrap();
    }

    /// Names of those who stand in line, the leader's first.
    pub async fn line(&self) -> Vec<String> {
        let store: &dyn MetaStore = &*self.tree;
        store.children(LOCK).await.unwrap()
    }

    async fn call(&self, at: usize, request: Request) -> Response {
        self.metas[at].client.call(RequestHead::default(), &request, WITHIN * 4).await.unwrap()
    }

    pub async fn query(&self, at: usize, name: &str) -> QueryConfigResponse {
        let request = QueryConfigRequest { app_name: name.into(), ..Default::default() };
        match self.call(at, Request::QueryConfig(request)).await {
            Response::QueryConfig(response) => response,
            other => panic!("{other:?}"),
        }
    }

    pub async fn ask(&self, at: usize, request: AdminRequest) -> AdminResponse {
        match self.call(at, Request::Admin(request)).await {
            Response::Admin(response) => response,
            other => panic!("{other:?}"),
        }
    }

    /// What `cmd` with its arguments is answered.
    pub async fn command(&self, at: usize, line: &str) -> String {
        let mut words = line.split(' ').map(str::to_owned);
        let cmd = words.next().unwrap();
        match self.call(at, Request::RemoteCommand(RemoteCommand { cmd, arguments: words.collect() })).await {
            Response::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// Asks without waiting for the answer.
    pub fn ask_and_forget(&self, at: usize, request: AdminRequest) -> JoinHandle<()> {
        let client = self.metas[at].client.clone();
        tokio::task::spawn_local(async move {
            let _ = client.call(RequestHead::default(), &Request::Admin(request), WITHIN).await;
        })
    }

    pub async fn http(&self, at: usize, path: &str) -> String {
        http_get(self.address(at), path).await
    }

    /// Waits until each partition of the table has three members.
    pub async fn healthy(&self, name: &str) {
        until(&format!("{name} is whole"), async || {
            let at = self.try_leader().await?;
            let view = self.peer(at).cluster_view(WITHIN).await.ok()?;
            let table = view.tables.iter().find(|table| table.info.name == name)?;
            table.partitions.iter().all(|p| p.config.member_count() == 3).then_some(())
        })
        .await;
        let at = self.leader().await;
        let config = self.query(at, name).await;
        assert!(config.partitions.iter().all(|p| p.gpid() != Gpid::new(0, 0)), "{config:?}");
    }
}

pub fn create(name: &str) -> AdminRequest {
    let options = CreateAppOptions {
        partition_count: 2,
        replica_count: 3,
        app_type: "pegasus".into(),
        is_stateful: true,
        success_if_exist: true,
        ..Default::default()
    };
    AdminRequest::CreateApp(CreateAppRequest { app_name: name.into(), options })
}

pub fn created(answer: AdminResponse) -> ErrorCode {
    match answer {
        AdminResponse::CreateApp(answer) => answer.err.0,
        other => panic!("{other:?}"),
    }
}
