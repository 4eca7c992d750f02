//! The meta-server: tables, and who holds which partition.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the sections of the configuration that it reads |
//! | `session` | sessions with the metadata store, and the election in each |
//! | `role` | who leads, as far as this meta-server knows; shared by everything on the role's thread |
//! | `rivals` | who leads while the store is out of touch |
//! | `stand_in` | a standby tells clients what is stored while the leader is not reached |
//! | `isolation` | a leader whom nobody reaches gives its role back |
//! | `term` | one term as leader, from loading to giving up |
//! | `leader` | what the leader of one term knows |
//! | `writer` | the only place that changes tables and configurations: decide → persist → adopt → answer |
//! | `rounds` | the regular look: when it comes, and what is done with what it finds |
//! | `service` | one file per caller: clients and tools, other daemons; `admin` for both RPC and HTTP |
//! | `proposer` | tells nodes what is stored and what the cure proposes |
//! | `persist` | loading the ledger from the store, and the cluster's id |
//! | `published` | the immutable picture for everybody who only looks |
//! | `http` | pages about the cluster, its nodes and its tables |
//! | `metrics` | what is counted |
//! | `resolver` | addresses of nodes, for clients |
//! | `clock` | the clocks, read nowhere else |
//! | `moving`, `removing` | commands for operators: the metadata to another store, or away |
//!
//! ```text
//!  session --elected--> term --makes--> Leader
//!
//!  clients, tools --RPC, HTTP--> service ---jobs---> writer ---fenced multi---> MetaStore
//!  replica-servers --tarpc-----> service               |
//!        ^                          | beacons, reports  | stored
//!        |                          v                   v
//!        '---- proposer <---- rounds (placement::cure) and adopted configurations
//! ```
//!
//! The decisions themselves are values in `placement`, the way of one through the store is `meta_core::Writer`. No borrow
//! of the leader's state lives over an await.

mod clock;
pub mod config;
mod http;
mod isolation;
mod leader;
mod metrics;
mod moving;
mod persist;
mod proposer;
mod published;
mod removing;
mod resolver;
mod rivals;
mod role;
mod rounds;
mod service;
mod session;
mod stand_in;
mod term;
mod writer;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pegasus_rpc::listener::{self, Handlers, handler};
use pegasus_rpc::peer::{Identity, PeerPool, PoolOptions, look_up, serve_meta_peer};
use pegasus_rpc::port;
use pegasus_rpc::wire::server::{Limits, WireServer};
use pegasus_telemetry::commands::Commands;
use pegasus_telemetry::{Shutdown, registry};
use pegasus_types::Node;
use pegasus_zk_coordination::{MetaStore, SledStore, ZooKeeperStore};
use tokio::task::JoinHandle;

pub use crate::config::{Config, Coordination, SECTIONS};
use crate::metrics::Metrics;
pub use crate::moving::move_metadata_to;
pub use crate::removing::{Removed, remove_metadata};
use crate::role::{Role, Standing};
use crate::service::client_facing::ClientPort;
use crate::service::replica_facing::PeerPort;
pub use crate::session::Stores;

/// Tasks get this long to end after a shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A running meta-server.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    node: Node,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Under which others know it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Returns after the shutdown, or with an error when an embedded metadata store is lost.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.ended.await.context("the meta-server's task failed")?
    }
}

/// Starts a meta-server over the store that the configuration names. Needs a LocalSet.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Handle> {
    let stores = match config.meta.coordination {
        Coordination::Embedded => {
            let dir = config.store_dir();
            let store = tokio::task::spawn_blocking(move || SledStore::open(&dir))
                .await?
                .context("metadata store")?;
            Stores::One(Arc::new(store))
        }
        Coordination::Zookeeper => {
            let options = config.zookeeper_options()?;
            Stores::Sessions(Rc::new(move || {
                let options = options.clone();
                Box::pin(async move {
                    let store = ZooKeeperStore::connect(&options).await?;
                    Ok(Arc::new(store) as Arc<dyn MetaStore>)
                })
            }))
        }
    };
    start_on(config, stores, shutdown).await
}

/// In `metas`, a host name that means `me` becomes `me`: lists have names, a process has found out its address.
async fn know_self(metas: &mut [Node], me: &Node) {
    let Some((ip, port)) = me.ipv4() else { return };
    if metas.contains(me) {
        return;
    }
    let mine = SocketAddr::from((ip, port));
    let looking_up =
        metas.iter_mut().filter(|node| node.port() == port).map(async |node| match look_up(node).await {
            Ok(found) if found.contains(&mine) => *node = me.clone(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%node, %error, "a name in [meta_server] server_list has no address"),
        });
    futures::future::join_all(looking_up).await;
}

/// Starts a meta-server over given stores. Returns when it is listening; over an embedded store when it leads.
pub async fn start_on(config: Config, stores: Stores, shutdown: Shutdown) -> anyhow::Result<Handle> {
    let address = config.network.listen_address(config.app.ports).map_err(anyhow::Error::msg)?;
    let listener = port::bind(address, port::BIND_PATIENCE)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let me = config.network.node(address.port()).map_err(anyhow::Error::msg)?;
    let mut metas = config.metas.server_list.clone();
    know_self(&mut metas, &me).await;
    if !metas.contains(&me) {
        if !metas.is_empty() {
            tracing::warn!(%me, ?metas, "[meta_server] server_list does not name this meta-server");
        }
        metas.push(me.clone());
    }

    let tasks = shutdown.child();
    let registry = registry::new(&config.cluster.cluster_name, "meta", me.as_str())?;
    let metrics = Metrics::new(&registry)?;
    let identity = Rc::new(Identity::new(me.clone(), rand::random(), ""));
    let pool = PeerPool::new(identity.clone(), PoolOptions::default(), |_| {});
    let effective = config.effective.clone();
    let role = Rc::new(Role::new(config, me.clone(), metas, identity.clone(), pool.clone(), metrics));

    let router = {
        let base = pegasus_telemetry::http::Base::new("meta", registry, role.health.clone(), &effective);
        let (base, changes) = base.changeable(service::commands::CHANGEABLE);
        tasks.spawn_local_until(service::commands::take_changes(role.clone(), changes));
        pegasus_telemetry::http::router(http::describe(base)).merge(http::router(role.standing()))
    };
    let commands = Commands::new("meta", me.as_str(), std::time::Instant::now());
    let wire = WireServer::new(me.as_str(), Limits::default(), Rc::new(ClientPort(role.clone(), commands)));
    let (peer_role, token) = (role.clone(), tasks.token());
    let handlers = Handlers {
        client: Some(wire),
        http: handler(move |stream, _| {
            let router = router.clone();
            async move { pegasus_telemetry::http::serve_connection(stream, router).await }
        }),
        peer: Some(handler(move |stream, from| {
            let (role, identity, token) = (peer_role.clone(), identity.clone(), token.clone());
            async move {
                let make = |remote: &_| PeerPort::new(role, remote);
                if let Err(error) = serve_meta_peer(stream, &identity, make, &token).await {
                    tracing::debug!(%from, %error, "peer connection ended");
                }
            }
        })),
    };
    tasks.spawn_local(listener::serve(listener, handlers, listener::Limits::default(), tasks.token()));
    tasks.spawn_local_until(rivals::run(role.clone()));
    tracing::info!(%me, ?stores, "meta-server is listening");

    let waits_for_lead = matches!(stores, Stores::One(_));
    let mut standing = role.standing();
    let mut ended = tokio::task::spawn_local(async move {
        let result = session::run(&role, stores, &tasks).await;
        if let Err(error) = &result {
            tracing::error!("the meta-server stops: {error:#}");
        }
        tasks.trigger();
        pool.close();
        if !tasks.wait_for_tasks(STOP_WITHIN).await {
            tracing::warn!("some tasks did not end in time");
        }
        result
    });
    if waits_for_lead {
        tokio::select! {
            _ = standing.wait_for(|now| matches!(now, Standing::Leads(_))) => {}
            result = &mut ended => {
                result.context("the meta-server's task failed")??;
                anyhow::bail!("stopped before it led");
            }
        }
    }
    Ok(Handle { address, node: me, ended })
}
