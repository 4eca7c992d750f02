//! Replica-servers, collector and shell, over tarpc.

use std::rc::Rc;
use std::time::Duration;

use pegasus_meta_core::{Job, reported};
use pegasus_placement::liveness::News;
use pegasus_rpc::peer::{Context, MetaPeer, Remote};
use pegasus_types::cluster::ClusterOverview;
use pegasus_types::meta::{
    Beacon, BeaconAck, ChangeReply, ChangeRequest, ConfigSync, ConfigSyncAck, QueryReply,
};
use pegasus_types::{ErrorCode, Gpid, Node};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::clock::{wall_s, wall_us};
use crate::leader::{Leader, report_frozen};
use crate::role::{Connected, Role};
use crate::writer::Ticket;

/// One connection's handler: answers as the leader, or names it.
#[derive(Clone, Debug)]
pub struct PeerPort {
    role: Rc<Role>,
    /// Who dialled, by its hello.
    remote: Node,
    _connected: Rc<Connected>,
}

impl PeerPort {
    pub fn new(role: Rc<Role>, remote: &Remote) -> Self {
        let connected = Rc::new(role.connected(&remote.node));
        Self { role, remote: remote.node.clone(), _connected: connected }
    }

    fn leading(&self) -> Option<ReplicaFacing> {
        Some(ReplicaFacing {
            leader: self.role.leader()?,
            role: self.role.clone(),
            remote: self.remote.clone(),
        })
    }

    fn other(&self) -> Option<Node> {
        self.role.other_leader()
    }
}

/// What the leader does for one caller.
#[derive(Clone, Debug)]
struct ReplicaFacing {
    leader: Rc<Leader>,
    role: Rc<Role>,
    remote: Node,
}

impl ReplicaFacing {
    fn me(&self) -> Option<Node> {
        Some(self.leader.about.me.clone())
    }

    /// A node speaks for itself only.
    fn is_sender(&self, node: &Node) -> bool {
        let same = *node == self.remote;
        if !same {
            tracing::warn!(from = %self.remote, %node, "a node speaks for another one: ignored");
        }
        same
    }

    fn take_beacon(&self, beacon: &Beacon) -> bool {
        let node = &beacon.node;
        let mut state = self.leader.state.borrow_mut();
        let news = state.liveness.beacon(self.leader.clock.now(), wall_us(), beacon);
        if news.joined {
            tracing::info!(%node, incarnation = beacon.incarnation, "node is alive");
        } else if news.restarted {
            tracing::info!(%node, incarnation = beacon.incarnation, "node has restarted");
        }
        if let Some(skewed) = news.skew {
            let skew_s = state.liveness.get(node).map_or(0, |s| s.skew_us / 1_000_000);
            if skewed {
                tracing::warn!(%node, skew_s, "clocks differ by more than 5 s: expiry times will be wrong");
            } else {
                tracing::info!(%node, skew_s, "clocks agree again");
            }
        }
        let wants_report = news.joined
            || news.restarted
            || state.wants_report.borrow().contains(node)
            || state.cure.awaits_report(state.ledger.view(), node);
        if news.joined || news.restarted {
            state.wants_report.borrow_mut().insert(node.clone());
        }
        if news != News::default() {
            drop(state);
            // Its name should be resolved before the first client asks.
            self.leader.resolver.get(node);
            self.leader.publish();
            self.leader.touch();
        }
        wants_report
    }

    fn take_report(&self, report: &ConfigSync) -> ConfigSyncAck {
        let node = &report.node;
        let mut state = self.leader.state.borrow_mut();
        let state = &mut *state;
        if !state.liveness.is_alive(node) {
            return ConfigSyncAck { err: ErrorCode::ObjectNotFound, ..self.nothing() };
        }
        state.wants_report.borrow_mut().remove(node);
        let now = self.leader.clock.now();
        let view = state.ledger.view();
        let answer =
            reported((now, wall_s()), view, &mut state.cure, &state.liveness, node, &report.replicas);
        for (gpid, ballot) in answer.frozen {
            report_frozen(gpid, node, ballot, view.partition(gpid).map(|config| config.ballot));
        }
        for gpid in answer.strange {
            if state.strange_tables.len() < MAX_STRANGE && state.strange_tables.insert(gpid.app_id) {
                tracing::warn!(%node, %gpid, "reports a replica of a table that nobody knows");
            }
        }
        state.rounds.touch();
        self.leader.kick.notify_one();
        ConfigSyncAck {
            err: ErrorCode::Ok,
            leader: self.me(),
            configs: answer.configs,
            garbage: answer.garbage,
        }
    }

    fn beacon(&self, beacon: &Beacon) -> BeaconAck {
        let accepted = self.is_sender(&beacon.node);
        let wants_report = accepted && self.take_beacon(beacon);
        let all_draining = accepted && self.leader.state.borrow().liveness.all_draining();
        let cluster_id = self.leader.about.cluster_id.clone();
        BeaconAck { accepted, leader: self.me(), wants_report, all_draining, cluster_id }
    }

    fn config_sync(&self, report: &ConfigSync) -> ConfigSyncAck {
        if !self.is_sender(&report.node) {
            return ConfigSyncAck { err: ErrorCode::InvalidParameters, ..self.nothing() };
        }
        self.take_report(report)
    }

    async fn change(&self, request: ChangeRequest) -> ChangeReply {
        let gpid = request.gpid;
        let current = || {
            let state = self.leader.state.borrow();
            state.ledger.view().partition(gpid).map(|config| (**config).clone())
        };
        let rejected = |why: &str| ChangeReply::Rejected { current: current(), why: why.into() };
        if !self.is_sender(request.kind.asker()) {
            return rejected("a node asks for itself only");
        }
        let stored = current().map(|config| config.ballot);
        if stored.is_some_and(|stored| request.ballot > stored) {
            self.leader.freeze(gpid, &self.remote, request.ballot, stored);
        }
        while self.is_held_back(&request) {
            sleep(HOLD_LOOK).await;
        }
        let (answer, answered) = oneshot::channel();
        if self.leader.jobs.try_send((Job::Change(request), Ticket::Change(answer))).is_err() {
            return ChangeReply::NotLeader { leader: self.me() };
        }
        // The writer is gone: so is the leader.
        answered.await.unwrap_or(ChangeReply::NotLeader { leader: None })
    }

    /// It has to wait for somebody else's request ([`pegasus_placement::alone`]).
    fn is_held_back(&self, request: &ChangeRequest) -> bool {
        let state = &mut *self.leader.state.borrow_mut();
        let Some(current) = state.ledger.view().partition(request.gpid) else { return false };
        let liveness = &state.liveness;
        let last_heard = |node: &Node| {
            let known = liveness.get(node).filter(|known| known.alive && known.heard);
            known.filter(|_| self.role.is_connected(node)).map(|known| known.last_beacon)
        };
        state.held.until(self.leader.clock.now(), current, request, last_heard).is_some()
    }

    fn nothing(&self) -> ConfigSyncAck {
        ConfigSyncAck { err: ErrorCode::Ok, leader: self.me(), configs: Vec::new(), garbage: Vec::new() }
    }
}

/// Between looks at a request that is held back.
const HOLD_LOOK: Duration = Duration::from_millis(50);

/// Tables told as strange: nodes of other clusters could name many.
const MAX_STRANGE: usize = 1000;

impl MetaPeer for PeerPort {
    async fn beacon(self, _: Context, beacon: Beacon) -> BeaconAck {
        match self.leading() {
            Some(here) => here.beacon(&beacon),
            None => BeaconAck {
                accepted: false,
                leader: self.other(),
                wants_report: false,
                all_draining: false,
                cluster_id: String::new(),
            },
        }
    }

    async fn config_sync(self, _: Context, report: ConfigSync) -> ConfigSyncAck {
        match self.leading() {
            Some(here) => here.config_sync(&report),
            None => ConfigSyncAck {
                err: ErrorCode::ForwardToOthers,
                leader: self.other(),
                configs: Vec::new(),
                garbage: Vec::new(),
            },
        }
    }

    async fn change(self, _: Context, request: ChangeRequest) -> ChangeReply {
        match self.leading() {
            Some(here) => here.change(request).await,
            None => ChangeReply::NotLeader { leader: self.other() },
        }
    }

    async fn query(self, _: Context, gpid: Gpid) -> QueryReply {
        let Some(here) = self.leading() else {
            // Other metas ask this way who leads. What we only heard ourselves is no news: two that heard it once
            // would confirm it to each other for ever.
            let leader = self.other().filter(|_| self.role.is_in_touch());
            return QueryReply::NotLeader { leader };
        };
        let state = here.leader.state.borrow();
        let view = state.ledger.view();
        match (view.table(gpid.app_id), view.partition(gpid)) {
            (Some(table), Some(config)) => QueryReply::Known(table.info.clone(), (**config).clone()),
            _ => QueryReply::Unknown,
        }
    }

    async fn cluster_view(self, _: Context) -> ClusterOverview {
        match self.leading() {
            Some(here) => here.leader.published.borrow().overview(),
            None => ClusterOverview {
                cluster_id: self.role.identity.cluster_id(),
                cluster_name: self.role.config.cluster.cluster_name.clone(),
                leader: self.other(),
                metas: self.role.metas.clone(),
                nodes: Vec::new(),
                tables: Vec::new(),
            },
        }
    }
}
