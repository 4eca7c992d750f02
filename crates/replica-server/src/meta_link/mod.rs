//! The way to the meta-servers: beacons, reports, requests for changes; and what they answer.

pub mod leader;
mod pushes;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use leader::Leader;
use pegasus_pacifica::{Event, may_begin_empty};
use pegasus_rpc::peer::{CallError, MetaClient, PeerPool};
use pegasus_types::meta::{
    Beacon, BeaconAck, ChangeReply, ChangeRequest, ConfigSync, ConfigSyncAck, QueryReply,
};
use pegasus_types::{AppInfo, ErrorCode, Gpid, Node, PartitionConfig};
use pushes::{Asked, Pushes};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::effects::note_app;
use crate::node::Shell;
use crate::replica_files;

/// A report of some thousand replicas is small; the answer likewise.
pub const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// One attempt of a change, redirects included; below the core's own `ask_timeout_ms`.
const CHANGE_WITHIN: Duration = Duration::from_millis(2_500);
const QUERY_WITHIN: Duration = Duration::from_secs(2);
/// Redirects that one attempt follows: through every meta-server of a usual cluster.
const MAX_HOPS: usize = 5;
/// Between hops, when nobody knows the leader.
const HOP_PAUSE: Duration = Duration::from_millis(100);
/// Several wishes to report soon become one report.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
/// Between beacons of a node that drains: it waits for what the leader does about it.
const DRAIN_INTERVAL: Duration = Duration::from_millis(200);
/// After a report that found no leader.
const REPORT_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct MetaLink {
    leader: RefCell<Leader>,
    report: Notify,
    pushes: RefCell<Pushes>,
    beacon: Notify,
    draining: Cell<bool>,
    /// The leader's newest answer to a beacon that said so: is it true of all nodes?
    all_draining: Cell<Option<bool>>,
    /// When a meta-server answered last, leader or not.
    answered_at: Cell<Option<Instant>>,
    /// Why the last meta-server that was asked was of no help.
    refusal: RefCell<String>,
}

/// What a meta-server answered.
enum Answer<T> {
    Here(T),
    AskAnother(Option<Node>),
}

impl MetaLink {
    pub fn new(metas: Vec<Node>) -> Self {
        Self {
            leader: RefCell::new(Leader::new(metas)),
            report: Notify::new(),
            pushes: RefCell::default(),
            beacon: Notify::new(),
            draining: Cell::default(),
            all_draining: Cell::default(),
            answered_at: Cell::default(),
            refusal: RefCell::default(),
        }
    }

    /// Has the next report sent at once.
    pub fn report_soon(&self) {
        self.report.notify_one();
    }

    /// From now on beacons say that this node drains, and are sent more often.
    pub fn begin_drain(&self) {
        self.draining.set(true);
        self.beacon.notify_one();
    }

    /// None while the leader does not know that this node drains. Else whether all nodes do.
    pub fn all_draining(&self) -> Option<bool> {
        self.all_draining.get()
    }

    /// How long ago any meta-server answered; None = never.
    pub fn silent_for(&self) -> Option<Duration> {
        self.answered_at.get().map(|at| at.elapsed())
    }

    pub fn leader(&self) -> Option<Node> {
        self.leader.borrow().current().cloned()
    }

    /// None when no leader answered; the outcome is unknown then.
    pub async fn change(&self, pool: &PeerPool, request: ChangeRequest) -> Option<ChangeReply> {
        self.ask(pool, CHANGE_WITHIN, async |meta| {
            Ok(match meta.change(CHANGE_WITHIN, request.clone()).await? {
                ChangeReply::NotLeader { leader } => Answer::AskAnother(leader),
                reply => Answer::Here(reply),
            })
        })
        .await
    }

    pub async fn query(&self, pool: &PeerPool, gpid: Gpid) -> Option<(AppInfo, PartitionConfig)> {
        self.ask(pool, QUERY_WITHIN, async |meta| {
            Ok(match meta.query(QUERY_WITHIN, gpid).await? {
                QueryReply::Known(app, config) => Answer::Here(Some((app, config))),
                QueryReply::Unknown => Answer::Here(None),
                QueryReply::NotLeader { leader } => Answer::AskAnother(leader),
            })
        })
        .await
        .flatten()
    }

    async fn config_sync(&self, pool: &PeerPool, report: ConfigSync) -> Option<ConfigSyncAck> {
        self.ask(pool, REPORT_WITHIN, async |meta| {
            let ack = meta.config_sync(REPORT_WITHIN, report.clone()).await?;
            Ok(if ack.err == ErrorCode::Ok { Answer::Here(ack) } else { Answer::AskAnother(ack.leader) })
        })
        .await
    }

    /// Asks the leader, following redirects, at most for `within`.
    async fn ask<T>(
        &self,
        pool: &PeerPool,
        within: Duration,
        call: impl AsyncFn(MetaClient) -> Result<Answer<T>, CallError>,
    ) -> Option<T> {
        let hops = async {
            for hop in 0..MAX_HOPS {
                if hop > 0 {
                    sleep(HOP_PAUSE).await;
                }
                let asked = self.leader()?;
                let answer = call(pool.meta(&asked)).await;
                if answer.is_ok() {
                    self.answered_at.set(Some(Instant::now()));
                }
                match answer {
                    Ok(Answer::Here(answer)) => return Some(answer),
                    Ok(Answer::AskAnother(leader)) => {
                        self.refusal.replace(format!("{asked} does not lead"));
                        self.leader.borrow_mut().redirected(&asked, leader);
                    }
                    Err(error) => {
                        self.refusal.replace(format!("{asked}: {error}"));
                        self.leader.borrow_mut().failed(&asked);
                        // It may have been done: whoever asked must find out, not repeat it elsewhere.
                        if error.may_have_been_executed() {
                            return None;
                        }
                    }
                }
            }
            None
        };
        timeout(within, hops).await.ok().flatten()
    }
}

/// Tells the leader that this node lives, until shutdown.
pub async fn beacons(shell: Rc<Shell>, interval: Duration) {
    let mut silent_since: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        let log_healthy = shell.with(|state| state.log_healthy);
        let draining = shell.meta.draining.get();
        let beacon = Beacon {
            node: shell.me.clone(),
            incarnation: shell.incarnation,
            wall_us: clock::wall_us(),
            log_healthy,
            draining,
        };
        let ack = beacon_once(&shell, beacon, interval).await;
        let accepted = ack.is_some();
        if let Some(ack) = ack.filter(|_| draining) {
            shell.meta.all_draining.set(Some(ack.all_draining));
        }
        match (accepted, silent_since) {
            (true, Some(since)) => {
                tracing::info!(after_ms = since.elapsed().as_millis() as u64, "meta leader found");
                silent_since = None;
                shell.meta.report_soon();
            }
            (false, None) => {
                let why = shell.meta.refusal.borrow();
                tracing::warn!(%why, "no meta leader accepts our beacons");
                silent_since = Some(begun);
            }
            (true, None) | (false, Some(_)) => {}
        }
        if !accepted {
            shell.with(|state| state.metrics.beacons_failed += 1);
        }
        let interval = if shell.meta.draining.get() { interval.min(DRAIN_INTERVAL) } else { interval };
        let pause = interval.saturating_sub(begun.elapsed()).max(interval / 10);
        let _ = timeout(pause, shell.meta.beacon.notified()).await;
    }
}

async fn beacon_once(shell: &Rc<Shell>, beacon: Beacon, interval: Duration) -> Option<BeaconAck> {
    let within = interval.max(Duration::from_millis(500));
    let answer = shell.meta.ask(&shell.pool, within, async |meta| {
        let ack = meta.beacon(within, beacon.clone()).await?;
        Ok(if ack.accepted { Answer::Here(ack) } else { Answer::AskAnother(ack.leader) })
    });
    let ack = answer.await?;
    if !ack.cluster_id.is_empty() && shell.pool.identity().cluster_id() != ack.cluster_id {
        note_cluster(shell, &ack.cluster_id).await;
    }
    if ack.wants_report {
        shell.meta.report_soon();
    }
    Some(ack)
}

/// Disks belong to one cluster for ever (safety-rules.md 4.3).
async fn note_cluster(shell: &Rc<Shell>, cluster_id: &str) {
    let (dirs, id) = (shell.dirs.clone(), cluster_id.to_owned());
    let bound = tokio::task::spawn_blocking(move || dirs.bind_cluster(&id).map_err(|e| e.to_string())).await;
    match bound.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(()) if shell.pool.identity().learn_cluster_id(cluster_id) => {
            tracing::info!(cluster_id, "joined the cluster");
        }
        Ok(()) => tracing::error!(cluster_id, "the meta leader belongs to another cluster"),
        Err(why) => tracing::error!(cluster_id, why, "this node's disks do not belong to this cluster"),
    }
}

/// Reports all replicas, periodically and when something changed, until shutdown.
pub async fn reports(shell: Rc<Shell>, interval: Duration) {
    loop {
        let report = shell.with(|state| {
            let mut replicas = state.core.reports();
            for report in &mut replicas {
                if let Some(replica) = state.replicas.get(&report.gpid) {
                    report.durable = replica.engine.durable_decree();
                    report.disk_tag.clone_from(&state.disks[replica.disk].tag);
                }
            }
            // A report without what is still being opened would make these garbage or lost.
            (state.opening == 0).then(|| ConfigSync {
                node: shell.me.clone(),
                incarnation: shell.incarnation,
                replicas,
            })
        });
        let asked = shell.meta.pushes.borrow().ask();
        let pause = match report {
            None => REPORT_RETRY,
            Some(report) => match shell.meta.config_sync(&shell.pool, report).await {
                Some(ack) => {
                    adopt_answer(&shell, asked, ack.configs);
                    replica_files::collect(&shell, ack.garbage);
                    interval
                }
                None => REPORT_RETRY,
            },
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shell.meta.report.notified() => sleep(REPORT_PAUSE).await,
        }
    }
}

/// What the meta pushes.
pub fn adopt_push(shell: &Rc<Shell>, configs: Vec<(AppInfo, PartitionConfig)>) {
    for (_, config) in &configs {
        shell.meta.pushes.borrow_mut().pushed(config.gpid);
    }
    adopt(shell, configs);
}

/// What the meta has answered; not what was pushed since the question. That is asked once more.
fn adopt_answer(shell: &Rc<Shell>, asked: Asked, mut configs: Vec<(AppInfo, PartitionConfig)>) {
    let all = configs.len();
    configs.retain(|(_, config)| !shell.meta.pushes.borrow().overtook(asked, config.gpid));
    if configs.len() < all {
        shell.meta.report_soon();
    }
    adopt(shell, configs);
}

/// Asks the meta for what it has stored of a partition, and adopts the answer.
pub async fn refresh(shell: &Rc<Shell>, gpid: Gpid) {
    let asked = shell.meta.pushes.borrow().ask();
    if let Some(known) = shell.meta.query(&shell.pool, gpid).await {
        adopt_answer(shell, asked, vec![known]);
    }
}

fn adopt(shell: &Rc<Shell>, configs: Vec<(AppInfo, PartitionConfig)>) {
    let mut new = Vec::new();
    let mut is_out = false;
    shell.with(|state| {
        for (app, config) in configs {
            note_app(state, app.clone());
            let gpid = config.gpid;
            if state.replicas.contains_key(&gpid) {
                is_out |= !config.is_member(&shell.me);
                replica_files::update_app(state, shell, &app, gpid);
            } else if may_begin_empty(app.status, &config, &shell.me) && state.opening == 0 {
                new.push((app, config));
                continue;
            }
            state.events.push_back(Event::MetaConfig { config });
        }
    });
    for (app, config) in new {
        replica_files::create(shell, app, config);
    }
    if is_out {
        // Whoever is removed is not asked back before it has been heard again; the group may be too small for writes.
        shell.meta.beacon.notify_one();
    }
    shell.wake.notify_one();
}
