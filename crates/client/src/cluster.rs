//! The entrance: a cluster, its tables, and what an operator may ask of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pegasus_rpc::wire::meta::{
    APP_ENV_CLEAR, APP_ENV_DEL, APP_ENV_SET, ClusterInfoRequest, CreateAppOptions, CreateAppRequest,
    DropAppOptions, DropAppRequest, ListAppsRequest, ListNodesRequest, NODE_ALIVE, RecallAppRequest,
    RemoteCommand, UpdateAppEnvRequest,
};
use pegasus_rpc::wire::{AdminRequest, AdminResponse, Request, RequestHead, Response};
use pegasus_types::{AppId, AppInfo, AppStatus, ErrorCode, Node, PartitionConfig};
use tokio::time::{Instant, sleep};

use crate::deadline::Attempts;
use crate::error::{Error, Result};
use crate::meta::{Metas, final_error};
use crate::names::Names;
use crate::pool::Pool;
use crate::resolver::Resolver;
use crate::retry::Failure;
use crate::table::Table;

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long one operation may take with all its attempts. Default 5 s.
    pub timeout: Duration,
    /// How long one attempt of an operation that may be repeated waits for its answer. Default 1.5 s.
    pub attempt_timeout: Duration,
    /// How long a change to a table may take. Default 30 s: the servers answer when its partitions are stored.
    pub admin_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_millis(1500),
            admin_timeout: Duration::from_secs(30),
        }
    }
}

/// A Pegasus cluster. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub struct Inner {
    pub metas: Arc<Metas>,
    pub pool: Arc<Pool>,
    pub options: Options,
}

/// How a table is to be made.
#[derive(Clone, Debug)]
pub struct CreateTable {
    /// A power of two, at least 2.
    pub partitions: i32,
    pub replicas: i32,
    pub envs: BTreeMap<String, String>,
    /// A table of this name and shape that exists already is no error.
    pub if_missing: bool,
}

impl Default for CreateTable {
    fn default() -> Self {
        Self { partitions: 8, replicas: 3, envs: BTreeMap::new(), if_missing: false }
    }
}

/// A replica-server as the meta-server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    pub node: Node,
    pub alive: bool,
}

/// Between looks at a table that is waited for.
const HEALTH_INTERVAL: Duration = Duration::from_millis(100);

impl Cluster {
    /// Connects to the cluster of these meta-servers (`host:port`, separated by commas) and waits until its
    /// leader answers.
    pub async fn connect(metas: &str) -> Result<Self> {
        let cluster = Self::new(metas, Options::default())?;
        cluster.info().await?;
        Ok(cluster)
    }

    /// As [`Self::connect`], with other options and without asking anything yet.
    pub fn new(metas: &str, options: Options) -> Result<Self> {
        Self::with_names(metas, options, Names::default())
    }

    pub(crate) fn with_names(metas: &str, options: Options, names: Names) -> Result<Self> {
        let pool = Arc::new(Pool::default());
        let metas = Arc::new(Metas::new(metas, pool.clone(), names)?);
        Ok(Self { inner: Arc::new(Inner { metas, pool, options }) })
    }

    /// The meta-servers that it was given.
    pub fn metas(&self) -> &[Node] {
        self.inner.metas.nodes()
    }

    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Opens a table that exists.
    pub async fn table(&self, name: &str) -> Result<Table> {
        let resolver = Resolver::open(name, self.inner.metas.clone(), self.inner.options.timeout).await?;
        Ok(Table::new(self.inner.clone(), resolver))
    }

    /// Where the partitions of a table live now, by index.
    pub async fn partitions(&self, name: &str) -> Result<Vec<PartitionConfig>> {
        let response = self.inner.metas.query_config(name, self.inner.options.timeout).await?;
        Ok(response.partitions.iter().map(|partition| partition.to_config()).collect())
    }

    /// Makes a table and tells its id. It may not be usable at once: [`Self::wait_healthy`].
    pub async fn create_table(&self, name: &str, table: &CreateTable) -> Result<AppId> {
        let options = CreateAppOptions {
            partition_count: table.partitions,
            replica_count: table.replicas,
            success_if_exist: table.if_missing,
            app_type: "pegasus".to_owned(),
            is_stateful: true,
            envs: table.envs.clone(),
            atomic_idempotent: None,
        };
        let request = CreateAppRequest { app_name: name.to_owned(), options };
        match self.admin(AdminRequest::CreateApp(request), table.if_missing).await? {
            AdminResponse::CreateApp(response) => Ok(response.appid),
            other => Err(nonsense(&other)),
        }
    }

    /// Drops a table; its data is kept for a while (`reserve`, None = the server's default) and can be recalled.
    pub async fn drop_table(&self, name: &str, if_exists: bool, reserve: Option<Duration>) -> Result<()> {
        let reserve_seconds = reserve.map(|time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        let options = DropAppOptions { success_if_not_exist: if_exists, reserve_seconds };
        let request = DropAppRequest { app_name: name.to_owned(), options };
        self.admin(AdminRequest::DropApp(request), if_exists).await.map(drop)
    }

    /// Brings a dropped table back, under `new_name` unless that is empty.
    pub async fn recall_table(&self, id: AppId, new_name: &str) -> Result<AppInfo> {
        let request = RecallAppRequest { app_id: id, new_app_name: new_name.to_owned() };
        match self.admin(AdminRequest::RecallApp(request), false).await? {
            AdminResponse::RecallApp(response) => Ok(response.info.into()),
            other => Err(nonsense(&other)),
        }
    }

    /// All tables, or those with `status`.
    pub async fn tables(&self, status: Option<AppStatus>) -> Result<Vec<AppInfo>> {
        let request = ListAppsRequest { status: status.unwrap_or_default() as i32, ..Default::default() };
        match self.look(AdminRequest::ListApps(request)).await? {
            AdminResponse::ListApps(response) => Ok(response.infos.into_iter().map(AppInfo::from).collect()),
            other => Err(nonsense(&other)),
        }
    }

    /// The replica-servers.
    pub async fn nodes(&self) -> Result<Vec<NodeState>> {
        match self.look(AdminRequest::ListNodes(ListNodesRequest { status: 0 })).await? {
            AdminResponse::ListNodes(response) => {
                let infos = response.infos.into_iter();
                Ok(infos
                    .filter_map(|info| {
                        Some(NodeState { node: info.node.node()?, alive: info.status == NODE_ALIVE })
                    })
                    .collect())
            }
            other => Err(nonsense(&other)),
        }
    }

    /// Facts about the cluster: (name, value), in the server's order.
    pub async fn info(&self) -> Result<Vec<(String, String)>> {
        self.info_within(self.inner.options.timeout).await
    }

    async fn info_within(&self, within: Duration) -> Result<Vec<(String, String)>> {
        let request = AdminRequest::ClusterInfo(ClusterInfoRequest {});
        match self.inner.metas.admin(request, true, within).await? {
            AdminResponse::ClusterInfo(response) => {
                Ok(response.keys.into_iter().zip(response.values).collect())
            }
            other => Err(nonsense(&other)),
        }
    }

    /// The meta-server that leads, as it calls itself.
    pub(crate) async fn leader(&self, within: Duration) -> Result<Node> {
        let info = self.info_within(within).await?;
        let leader =
            info.iter().find(|(key, _)| key == "primary_meta_server").map(|(_, value)| value.as_str());
        let leader = leader.ok_or_else(|| Error::Nonsense("nobody names the leader".to_owned()))?;
        leader.parse().map_err(|_| Error::Nonsense(format!("the leader is {leader:?}")))
    }

    /// Sets environment variables of a table. Tells what the server says about it, mostly nothing.
    pub async fn set_envs(&self, name: &str, envs: &BTreeMap<String, String>) -> Result<String> {
        self.change_envs(UpdateAppEnvRequest {
            app_name: name.to_owned(),
            op: APP_ENV_SET,
            keys: Some(envs.keys().cloned().collect()),
            values: Some(envs.values().cloned().collect()),
            clear_prefix: None,
        })
        .await
    }

    /// Deletes environment variables of a table. Tells which.
    pub async fn delete_envs(&self, name: &str, keys: Vec<String>) -> Result<String> {
        self.change_envs(UpdateAppEnvRequest {
            app_name: name.to_owned(),
            op: APP_ENV_DEL,
            keys: Some(keys),
            values: None,
            clear_prefix: None,
        })
        .await
    }

    /// Deletes the environment variables of a table that begin with `prefix.`, or all when it is empty. Tells which.
    pub async fn clear_envs(&self, name: &str, prefix: &str) -> Result<String> {
        self.change_envs(UpdateAppEnvRequest {
            app_name: name.to_owned(),
            op: APP_ENV_CLEAR,
            keys: None,
            values: None,
            clear_prefix: Some(prefix.to_owned()),
        })
        .await
    }

    async fn change_envs(&self, request: UpdateAppEnvRequest) -> Result<String> {
        match self.admin(AdminRequest::UpdateAppEnv(request), true).await? {
            AdminResponse::UpdateAppEnv(response) => Ok(response.hint_message),
            other => Err(nonsense(&other)),
        }
    }

    /// Waits until every partition of the table has a primary and all its replicas.
    pub async fn wait_healthy(&self, name: &str, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        loop {
            let last = match self.partitions(name).await {
                Ok(partitions) => {
                    let healthy = partitions.iter().filter(|partition| is_healthy(partition)).count();
                    if healthy == partitions.len() {
                        return Ok(());
                    }
                    let last = format!("{healthy} of {} partitions have all replicas", partitions.len());
                    Error::Timeout { last, unreachable: false }
                }
                Err(error @ Error::Timeout { .. }) => error,
                Err(error @ Error::Meta { code: ErrorCode::BusyCreating, .. }) => {
                    Error::Timeout { last: error.to_string(), unreachable: false }
                }
                Err(error) => return Err(error),
            };
            if Instant::now() >= end {
                return Err(last);
            }
            sleep(HEALTH_INTERVAL).await;
        }
    }

    /// Has one server execute a command that an operator typed, and tells what it says.
    pub async fn remote_command(&self, server: &Node, command: &str, arguments: &[String]) -> Result<String> {
        self.call_server(server, command, arguments).await.map_err(final_error)
    }

    async fn call_server(
        &self,
        server: &Node,
        command: &str,
        arguments: &[String],
    ) -> std::result::Result<String, Failure> {
        let time = Attempts::within(self.inner.options.timeout);
        let left = || time.left().unwrap_or_default();
        let address = SocketAddr::V4(self.inner.metas.names.resolve(server, left()).await?);
        let within = left();
        let request = RemoteCommand { cmd: command.to_owned(), arguments: arguments.to_vec() };
        let connection = self.inner.pool.get(address, within).await?;
        let response = connection
            .call(RequestHead::default(), &Request::RemoteCommand(request), within)
            .await
            .map_err(|error| Failure::Call { address: address.to_string(), error })?;
        match response {
            Response::Text(text) => Ok(text),
            other => Ok(format!("{other:?}")),
        }
    }

    /// A question that changes nothing.
    async fn look(&self, request: AdminRequest) -> Result<AdminResponse> {
        self.inner.metas.admin(request, true, self.inner.options.timeout).await
    }

    async fn admin(&self, request: AdminRequest, repeatable: bool) -> Result<AdminResponse> {
        self.inner.metas.admin(request, repeatable, self.inner.options.admin_timeout).await
    }
}

/// A primary and as many members as wanted.
pub fn is_healthy(partition: &PartitionConfig) -> bool {
    let wanted = usize::try_from(partition.max_replica_count).unwrap_or(1);
    partition.primary.is_some() && partition.member_count() >= wanted
}

pub fn nonsense(response: &AdminResponse) -> Error {
    Error::Nonsense(format!("{response:?}"))
}
