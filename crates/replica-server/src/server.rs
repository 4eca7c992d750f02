//! The wiring of a replica-server, top to bottom.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use pegasus_config::common::Durability;
use pegasus_mutation_log::{Completion, Known, LogOptions, MutationLog};
use pegasus_pacifica::{Event, NodeCore};
use pegasus_rpc::listener::{self, Handlers};
use pegasus_rpc::peer::{Identity, PeerEvent, PeerPool, PoolOptions, serve_replica_peer};
use pegasus_rpc::port;
use pegasus_rpc::wire::server::{Limits as WireLimits, WireServer};
use pegasus_storage::data_dir::{DirSpec, DiskState};
use pegasus_storage::{DataDirs, new_factory};
use pegasus_telemetry::{Health, Shutdown, registry};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::disk::{Disk, Finished, Logged};
use crate::file_lanes::FileLanes;
use crate::load::{self, Found};
use crate::meta_link::{self, MetaLink};
use crate::node::{NodeState, Settings, Shell};
use crate::partition::driver;
use crate::service::client_api::ClientApi;
use crate::service::http;
use crate::service::peer_api::PeerApi;
use crate::workers::Workers;
use crate::{clock, compaction, drain, learn_io, watch};

/// At shutdown: until the last answers are out, and until memtables are on disk.
const STOP_WITHIN: Duration = Duration::from_secs(3);
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// A running replica-server.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    shell: Rc<Shell>,
    health: Health,
    driving: tokio::task::JoinHandle<()>,
    listening: tokio::task::JoinHandle<()>,
}

/// Starts on the current thread, which must be inside a `LocalSet`. Returns when the port is open; replicas go on
/// being opened, `/readyz` says so. When `asked` is triggered the node drains before it stops.
pub async fn start(config: Config, asked: Shutdown) -> anyhow::Result<Handle> {
    let health = Health::starting();
    let shutdown = Shutdown::new();

    let address = config.network.listen_address(config.app.ports).map_err(|why| anyhow!(why))?;
    let listener =
        port::bind(address, port::BIND_PATIENCE).await.with_context(|| format!("listen on {address}"))?;
    let address = listener.local_addr().context("own address")?;
    let me = config.network.node(address.port()).map_err(|why| anyhow!(why))?;
    let incarnation = rand::random();

    let (dirs, disks, completions) = open_disks(&config, &me).await?;
    let found = find_replicas(&dirs, &disks).await?;

    let core = NodeCore::new(me.clone(), incarnation, config.core_options(), clock::boot_ms());
    let identity = Rc::new(Identity::new(me.clone(), incarnation, dirs.cluster_id().unwrap_or_default()));
    let (peer_events, heard) = mpsc::unbounded_channel();
    let pool =
        PeerPool::new(identity.clone(), PoolOptions::default(), move |event| drop(peer_events.send(event)));
    let shell = Rc::new(Shell {
        me: me.clone(),
        cluster_name: config.cluster.cluster_name.clone(),
        incarnation,
        settings: settings(&config),
        factory: new_factory(config.engine_kind(), config.engine_options()),
        pool,
        meta: MetaLink::new(config.metas.server_list.clone()),
        lanes: Rc::new(FileLanes::default()),
        shutdown: shutdown.clone(),
        learning: Arc::new(Semaphore::new(config.replication.learn_app_max_concurrent_count as usize)),
        copiers: Workers::start("copy", learn_io::THREADS).context("start the threads of copies")?,
        compactors: Workers::start("compact-all", compaction::THREADS)
            .context("start the threads of manual compactions")?,
        dirs,
        state: RefCell::new(NodeState::new(core, disks)),
        wake: Notify::new(),
        started: Instant::now(),
    });

    shell.with(|state| {
        state.slow = config.slow_threshold();
        state.learn_rate.set(config.nfs.max_copy_rate_megabytes_per_disk);
        state.teach_rate.set(config.nfs.max_send_rate_megabytes_per_disk);
        // Before anything is freed.
        state.disks.iter().for_each(|disk| disk.log.set_reserve(shell.settings.log_reserve_bytes));
    });
    // Before anything is heard from the network, the core knows what lies here.
    shell.with(|state| state.opening = found.len());
    shell.post_all(found.iter().map(|found| Event::Opening { gpid: found.replica.gpid }));
    shell.with(|state| state.turn(&shell, clock::boot_ms()));

    let driving = shutdown.spawn_local(driver::run(shell.clone()));
    shutdown.spawn_local_until(log_completions(shell.clone(), completions));
    shutdown.spawn_local_until(hear_of_peers(shell.clone(), heard));
    let loading = health.clone();
    shutdown.spawn_local_until({
        let shell = shell.clone();
        async move {
            load::all(shell, found).await;
            loading.ready(Health::START);
        }
    });
    let interval = config.liveness.fd_beacon_interval_seconds.0;
    shutdown.spawn_local_until(meta_link::beacons(shell.clone(), interval));
    let interval = config.replication.config_sync_interval_ms.0;
    shutdown.spawn_local_until(meta_link::reports(shell.clone(), interval));
    let space_every = config.replication.disk_stat_interval_seconds.0;
    shutdown.spawn_local_until(watch::run(shell.clone(), space_every));

    let registry = registry::new(&config.cluster.cluster_name, "replica", me.as_str())?;
    let router = http::routes(&shell, registry, health.clone(), &config.shown);
    let token = CancellationToken::new();
    let handlers = Handlers {
        client: Some(WireServer::new(
            me.as_str(),
            WireLimits::default(),
            Rc::new(ClientApi(Rc::downgrade(&shell))),
        )),
        http: listener::handler(move |stream, _| {
            pegasus_telemetry::http::serve_connection(stream, router.clone())
        }),
        peer: Some(peer_handler(&shell, identity, token.clone())),
    };
    let listening = tokio::task::spawn_local(listener::serve(
        listener,
        handlers,
        listener::Limits::default(),
        token.clone(),
    ));
    tokio::task::spawn_local({
        let shutdown = shutdown.clone();
        async move {
            shutdown.triggered().await;
            token.cancel();
        }
    });
    let linger = config.replication.drain_linger_ms.0;
    shutdown.spawn_local_until(drain::run(shell.clone(), asked, health.clone(), linger));
    tracing::info!(node = %me, durability = ?config.replication.durability, engine = config.engine_kind().name(), "listening");
    Ok(Handle { address, shell, health, driving, listening })
}

/// Whether the replica-server is well, for whoever supervises the process. On its thread.
#[derive(Debug)]
pub struct Vitals {
    shell: std::rc::Weak<Shell>,
    health: Health,
}

impl Vitals {
    /// Turns of the loop so far. It hands everything to the logs, and turns at least once a second.
    pub fn turns(&self) -> u64 {
        self.shell.upgrade().map_or(0, |shell| shell.with(|state| state.metrics.turns))
    }

    /// What lay on the disks at the start is open, or known to be broken.
    pub fn is_loaded(&self) -> bool {
        !self.health.waits_for(Health::START)
    }
}

impl Handle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn vitals(&self) -> Vitals {
        Vitals { shell: Rc::downgrade(&self.shell), health: self.health.clone() }
    }

    /// Ends after shutdown was triggered, within a bound.
    pub async fn wait(self) -> anyhow::Result<()> {
        let Self { shell, driving, mut listening, .. } = self;
        let mut failed = None;
        tokio::select! {
            ended = &mut listening => ended.context("the listener's task")?,
            // Without the loop nothing is served, but heartbeats would still be answered: better to be gone.
            ended = driving => if !shell.shutdown.is_triggered() {
                failed = Some(anyhow!("the loop has ended: {ended:?}"));
                shell.shutdown.trigger();
            },
        }
        if !listening.is_finished() {
            listening.await.context("the listener's task")?;
        }
        if !shell.shutdown.wait_for_tasks(STOP_WITHIN).await {
            tracing::warn!("some tasks did not end in time");
        }
        shell.pool.close();
        flush_engines(&shell).await;
        tracing::info!("stopped");
        failed.map_or(Ok(()), Err)
    }
}

/// So that the next start has little to replay. What is not flushed in time is in the log.
async fn flush_engines(shell: &Rc<Shell>) {
    let partials = shell.with(|state| std::mem::take(&mut state.partials));
    let engines: Vec<_> = shell.with(|state| {
        state.outboxes.clear();
        state.copying.clear();
        state.compactions.stop_all();
        state.replicas.drain().map(|(gpid, replica)| (gpid, replica.engine)).collect()
    });
    let work = move || {
        drop(partials);
        for (gpid, engine) in engines {
            if let Err(error) = engine.flush(true) {
                tracing::warn!(%gpid, %error, "flush at shutdown");
            }
        }
    };
    if tokio::time::timeout(FLUSH_WITHIN, tokio::task::spawn_blocking(work)).await.is_err() {
        tracing::info!("engines are not flushed completely; the log has the rest");
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        max_write_bytes: usize::try_from(config.replication.max_allowed_write_size.0).unwrap_or(usize::MAX),
        read_limits: config.read_limits(),
        reject_when_full: config.replication.reject_write_when_disk_insufficient,
        recent: config.core_options().recent,
        page_cache: config.replication.durability == Durability::PageCache,
        max_log_bytes: config.log_options().max_log_bytes,
        log_reserve_bytes: config.log_reserve_bytes(),
        least_free_percent: config.least_free_percent(),
        compact_interval_s: u64::try_from(config.server.manual_compact_min_interval_seconds).unwrap_or(0),
    }
}

type Completions = mpsc::UnboundedReceiver<(usize, Vec<Completion>)>;

/// Data directories, and the log of each that can be used.
async fn open_disks(
    config: &Config,
    me: &pegasus_types::Node,
) -> anyhow::Result<(Arc<DataDirs>, Vec<Disk>, Completions)> {
    let specs: Vec<DirSpec> =
        config.data_dirs().into_iter().map(|(tag, path)| DirSpec { tag, path }).collect();
    let least = config.least_free_percent();
    let (node, options) = (me.clone(), config.log_options());
    let ignore_broken = config.replication.ignore_broken_disk;
    // Bounded by what the loop has given the logs: it appends, and takes the completions.
    let (done, completions) = mpsc::unbounded_channel();
    let opening = tokio::task::spawn_blocking(move || {
        let dirs = DataDirs::open(&specs, &node, least).context("data directories")?;
        if options.durability == pegasus_mutation_log::Durability::PageCache {
            dirs.note_unsynced();
        }
        let mut disks = Vec::new();
        for dir in dirs.iter() {
            if let DiskState::Broken(why) = dir.state() {
                anyhow::ensure!(ignore_broken, "{}: {why}", dir.path().display());
                tracing::error!(disk = dir.tag(), why, "going on without this disk");
                continue;
            }
            let (index, done) = (disks.len(), done.clone());
            let on_done = move |completions| drop(done.send((index, completions)));
            let begun = Instant::now();
            // An emptied log would make every replica look sound and lack what only the log had.
            let known = match dir.log_id() {
                Some(id) => Known::Id(id),
                None if dir.has_replicas() => Known::Exists,
                None => Known::Nothing,
            };
            let options = LogOptions { known, ..options.clone() };
            match MutationLog::open(&dir.log_dir(), options, Box::new(on_done)) {
                Ok((log, summary)) => {
                    dir.note_log(summary.log_id);
                    let ms = begun.elapsed().as_millis() as u64;
                    tracing::info!(disk = dir.tag(), ?summary, ms, "mutation log opened");
                    let mut disk = Disk::new(dir.tag().to_owned(), dir.path().to_owned(), log);
                    disk.lost_power_unsynced = dir.lost_power_unsynced();
                    disks.push(disk);
                }
                Err(error) if ignore_broken => dir.mark_broken(&format!("mutation log: {error}")),
                Err(error) => return Err(error).context(format!("mutation log of disk {}", dir.tag())),
            }
        }
        if disks.is_empty() {
            let why = dirs.iter().filter_map(|dir| match dir.state() {
                DiskState::Broken(why) => Some(format!("{}: {why}", dir.path().display())),
                DiskState::Normal | DiskState::SpaceInsufficient => None,
            });
            anyhow::bail!("no data directory can be used: {}", why.collect::<Vec<_>>().join("; "));
        }
        Ok((Arc::new(dirs), disks))
    });
    let (dirs, disks) = opening.await.context("opening the disks")??;
    Ok((dirs, disks, completions))
}

async fn find_replicas(dirs: &Arc<DataDirs>, disks: &[Disk]) -> anyhow::Result<Vec<Found>> {
    let tags: Vec<String> = disks.iter().map(|disk| disk.tag.clone()).collect();
    let dirs = dirs.clone();
    let looking = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<Found>> {
        let mut found: Vec<Found> = Vec::new();
        for (disk, tag) in tags.iter().enumerate() {
            let Some(dir) = dirs.get(tag) else { continue };
            for replica in dir.replicas().with_context(|| format!("replicas of disk {tag}"))? {
                found.push(Found { disk, replica });
            }
        }
        Ok(load::newest(found))
    });
    looking.await.context("looking for replicas")?
}

/// Carries the ends of appends from the logs' threads to the loop.
async fn log_completions(shell: Rc<Shell>, mut completions: Completions) {
    let mut finished = Finished::default();
    while let Some(first) = completions.recv().await {
        shell.with(|state| {
            let mut next = Some(first);
            while let Some((index, batch)) = next {
                for completion in batch {
                    state.disks[index].complete(completion, &mut finished);
                }
                state.logged(&shell, index, &mut finished);
                next = completions.try_recv().ok();
            }
        });
        shell.wake.notify_one();
    }
}

impl NodeState {
    /// Tells the core what is durable, and keeps where it lies.
    fn logged(&mut self, shell: &Shell, disk: usize, finished: &mut Finished) {
        let mut told: Option<Event> = None;
        let now_us = clock::mono_us();
        for Logged { gpid, copy_id, ballot, decree, location } in finished.logged.drain(..) {
            // Records of an earlier life vouch for nothing of this one.
            match self.replicas.get_mut(&gpid).filter(|replica| replica.copy_id == copy_id) {
                Some(replica) => {
                    replica.locations.set(decree, location);
                    replica.stages.logged(decree, now_us);
                }
                None => continue,
            }
            match &mut told {
                Some(Event::Logged { gpid: g, ballot: b, upto }) if (*g, *b) == (gpid, ballot) => {
                    *upto = (*upto).max(decree);
                }
                _ => {
                    self.events.extend(told.take());
                    told = Some(Event::Logged { gpid, ballot, upto: decree });
                }
            }
        }
        self.events.extend(told);
        for (gpid, why) in finished.failed.drain(..) {
            tracing::error!(%gpid, why, "log");
            self.events.push_back(Event::Failed { gpid, fault: pegasus_pacifica::Fault::Log, why });
        }
        if let Some(why) = finished.broken.take() {
            self.disk_broken(shell, disk, &why);
        }
    }
}

async fn hear_of_peers(shell: Rc<Shell>, mut events: mpsc::UnboundedReceiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::ResetAndRefused { node, incarnation } => {
                tracing::warn!(%node, incarnation, "peer is gone: its connection broke and the next was refused");
                shell.post(Event::PeerReset { node });
            }
            PeerEvent::Connected { node, class, .. } => tracing::debug!(%node, ?class, "peer connected"),
        }
    }
}

fn peer_handler(shell: &Rc<Shell>, me: Rc<Identity>, token: CancellationToken) -> listener::Handler {
    let shell = shell.clone();
    listener::handler(move |stream, from| {
        let (shell, me, token) = (shell.clone(), me.clone(), token.clone());
        async move {
            let hello = |remote: &pegasus_rpc::peer::Remote| {
                shell.pool.heard_from(&remote.node);
                PeerApi { shell: shell.clone(), from: remote.node.clone() }
            };
            if let Err(error) = serve_replica_peer(stream, &me, hello, &token).await {
                tracing::debug!(%from, %error, "peer connection ended");
            }
        }
    })
}
