//! The meta-server: tables, and who holds which partition.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the sections of the configuration that it reads |
//! | `leader` | what the leader knows; shared by everything on the role's thread |
//! | `writer` | the only place that changes tables and configurations: decide → persist → adopt → answer |
//! | `rounds` | who fell silent, what has to be cured, which tables are ready |
//! | `service` | one file per caller: clients and tools, other daemons; `admin` for both RPC and HTTP |
//! | `proposer` | tells nodes what is stored and what the cure proposes |
//! | `persist` | the ledger and the store |
//! | `published` | the immutable picture for everybody who only looks |
//!
//! ```text
//!  clients, tools --RPC, HTTP--> service ---jobs---> writer ---multi---> MetaStore
//!  replica-servers --tarpc-----> service               |
//!        ^                          | beacons, reports  | stored
//!        |                          v                   v
//!        '---- proposer <---- rounds (placement::cure) and adopted configurations
//! ```
//!
//! The decisions themselves are values in `placement`. No borrow of the leader's state lives over an await.

mod clock;
pub mod config;
mod http;
mod leader;
mod metrics;
mod persist;
mod proposer;
mod published;
mod resolver;
mod rounds;
mod service;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pegasus_placement::cure::Cure;
use pegasus_placement::lint::lint;
use pegasus_placement::liveness::Liveness;
use pegasus_rpc::listener::{self, Handlers, handler};
use pegasus_rpc::peer::{Identity, PeerPool, PoolOptions, serve_meta_peer};
use pegasus_rpc::wire::server::{Limits, WireServer};
use pegasus_telemetry::{Health, Shutdown, registry};
use pegasus_types::Node;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{MetaStore, SledStore};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
pub use crate::config::{Config, SECTIONS};
use crate::leader::{Leader, State};
use crate::metrics::Metrics;
use crate::proposer::Proposer;
use crate::published::{About, Published};
use crate::resolver::Resolver;
use crate::service::client_facing::ClientFacing;
use crate::service::replica_facing::ReplicaFacing;
use crate::writer::Job;

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

    /// Returns after the shutdown, or with an error when the metadata store is lost.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.ended.await.context("the meta-server's task failed")?
    }
}

/// Starts a meta-server over the store that the configuration names. Returns when it is listening and knows
/// the stored metadata. Needs a LocalSet.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Handle> {
    let dir = config.store_dir();
    let store =
        tokio::task::spawn_blocking(move || SledStore::open(&dir)).await?.context("metadata store")?;
    start_on(config, Rc::new(store), shutdown).await
}

/// Starts a meta-server over a given store.
pub async fn start_on(
    config: Config,
    store: Rc<dyn MetaStore>,
    shutdown: Shutdown,
) -> anyhow::Result<Handle> {
    let address = config.network.listen_address(config.app.ports).map_err(anyhow::Error::msg)?;
    let listener = listener::bind(address, listener::BIND_PATIENCE)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let me = config.network.node(address.port()).map_err(anyhow::Error::msg)?;
    let mut metas = config.metas.server_list.clone();
    if !metas.contains(&me) {
        if !metas.is_empty() {
            tracing::warn!(%me, ?metas, "[meta_server] server_list does not name this meta-server");
        }
        metas.push(me.clone());
    }

    let tree = Tree::new(&config.meta.cluster_root);
    let cluster_id = persist::cluster_id(&*store, &tree).await?;
    let ledger = persist::load(&*store, &tree).await?;
    for fault in lint(ledger.view()) {
        tracing::error!(fault, "the stored metadata is not consistent");
    }
    let about = Arc::new(About {
        cluster_id: cluster_id.clone(),
        cluster_name: config.cluster.cluster_name.clone(),
        me: me.clone(),
        metas,
        store: store.describe(),
        root: tree.root().to_owned(),
        min_replica_count: config.writing.mutation_2pc_min_replica_count,
    });

    let role = shutdown.child();
    let registry = registry::new(&config.cluster.cluster_name, "meta", me.as_str())?;
    let metrics = Metrics::new(&registry)?;
    let identity = Rc::new(Identity::new(me.clone(), rand::random(), cluster_id));
    let pool = PeerPool::new(identity.clone(), PoolOptions::default(), |_| {});
    let wants_report = Rc::new(RefCell::new(BTreeSet::new()));
    let missed = wants_report.clone();
    let on_missed = move |node: &Node| missed.borrow_mut().extend([node.clone()]);
    let proposer = Proposer::new(pool.clone(), role.clone(), on_missed);

    let clock = Clock::start();
    let now = clock.now();
    let grace_ms = u64::try_from(config.liveness.fd_grace_seconds.0.as_millis()).unwrap_or(u64::MAX);
    let mut liveness = Liveness::new(grace_ms);
    // Nobody is declared dead before one grace time.
    ledger.view().known_nodes().iter().for_each(|node| liveness.expect(now, node));
    let (jobs, queue) = mpsc::channel(writer::MAX_JOBS);
    let level = config.meta.meta_function_level_on_start.into();
    let first_start = ledger.view().next_app_id() == 1;
    let mend: Vec<_> = ledger.half_done();
    let published = Published {
        about: about.clone(),
        level,
        view: ledger.view().clone(),
        nodes: Default::default(),
        notes: Default::default(),
        frozen: Vec::new(),
    };
    let leader = Rc::new(Leader {
        about,
        limits: config.limits(),
        level: Cell::new(level),
        clock,
        state: RefCell::new(State {
            ledger,
            liveness,
            cure: Cure::new(config.cure_options(), now),
            notes: Default::default(),
            proposed: Default::default(),
            wants_report,
            dirty: true,
            strange_tables: BTreeSet::new(),
        }),
        jobs,
        proposer,
        resolver: Resolver::default(),
        metrics,
        kick: Notify::new(),
        published: watch::Sender::new(Arc::new(published)),
    });
    leader.publish();
    for app_id in mend {
        tracing::warn!(app_id, "completing what was cut in two");
        leader.jobs.try_send(Job::Mend(app_id)).context("job queue")?;
    }
    if first_start {
        for request in config.default_tables() {
            tracing::info!(name = request.name, "first start: creating a table");
            let (answer, _) = oneshot::channel();
            leader.jobs.try_send(Job::Create { request, made: None, answer }).context("job queue")?;
        }
    }

    let health = Health::default();
    let router = {
        let base = pegasus_telemetry::http::Base::new("meta", registry, health, &config.effective);
        pegasus_telemetry::http::router(http::describe(base))
            .merge(http::router(leader.published.subscribe()))
    };
    let wire = WireServer::new(me.as_str(), Limits::default(), Rc::new(ClientFacing(leader.clone())));
    let peer_leader = leader.clone();
    let token = role.token();
    let handlers = Handlers {
        client: Some(wire),
        http: handler(move |stream, _| {
            let router = router.clone();
            async move { pegasus_telemetry::http::serve_connection(stream, router).await }
        }),
        peer: Some(handler(move |stream, from| {
            let (leader, identity, token) = (peer_leader.clone(), identity.clone(), token.clone());
            async move {
                let make = |remote: &_| ReplicaFacing::new(leader, remote);
                if let Err(error) = serve_meta_peer(stream, &identity, make, &token).await {
                    tracing::debug!(%from, %error, "peer connection ended");
                }
            }
        })),
    };
    let interval = config.liveness.fd_check_interval_seconds.0;
    role.spawn_local(listener::serve(listener, handlers, listener::Limits::default(), role.token()));
    role.spawn_local_until(rounds::run(leader.clone(), interval));
    tracing::info!(%me, cluster_id = leader.about.cluster_id, store = leader.about.store, "meta-server is listening");

    let ended = tokio::task::spawn_local(async move {
        let result = role.or(writer::run(leader, queue, store, tree)).await;
        if let Some(Err(error)) = &result {
            tracing::error!(%error, "the meta-server stops");
        }
        role.trigger();
        pool.close();
        if !role.wait_for_tasks(STOP_WITHIN).await {
            tracing::warn!("some tasks did not end in time");
        }
        result.unwrap_or(Ok(())).map_err(anyhow::Error::from)
    });
    Ok(Handle { address, node: me, ended })
}
