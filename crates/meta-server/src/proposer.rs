//! What the meta-server tells replica-servers: stored configurations, and proposals.
//!
//! Per node there is one lane: what gathers for it while a call is under way goes with the next, and of a
//! partition only the newest is kept. What does not arrive is not repeated here: the node is asked for a
//! full report instead, and proposals are made again by the cure.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use pegasus_rpc::peer::PeerPool;
use pegasus_telemetry::Shutdown;
use pegasus_types::meta::ProposalRequest;
use pegasus_types::{AppInfo, Gpid, Node, PartitionConfig};
use tokio::sync::Notify;

/// A call that takes longer has failed.
const CALL_WITHIN: Duration = Duration::from_secs(2);
/// Configurations of one call.
const CONFIGS_PER_CALL: usize = 500;

/// The lanes to all nodes. Cheap to clone; lives in a LocalSet.
#[derive(Clone)]
pub struct Proposer {
    pool: PeerPool,
    shutdown: Shutdown,
    lanes: Rc<RefCell<BTreeMap<Node, Rc<Lane>>>>,
    /// Called with a node that may have missed something.
    on_missed: Rc<dyn Fn(&Node)>,
}

impl std::fmt::Debug for Proposer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proposer({} lanes)", self.lanes.borrow().len())
    }
}

#[derive(Default)]
struct Lane {
    waiting: RefCell<Waiting>,
    filled: Notify,
}

/// Bounded by the number of partitions.
#[derive(Default)]
struct Waiting {
    configs: BTreeMap<Gpid, (AppInfo, PartitionConfig)>,
    proposals: BTreeMap<Gpid, ProposalRequest>,
}

impl Proposer {
    pub fn new(pool: PeerPool, shutdown: Shutdown, on_missed: impl Fn(&Node) + 'static) -> Self {
        Self { pool, shutdown, lanes: Rc::default(), on_missed: Rc::new(on_missed) }
    }

    /// Tells `node` a stored configuration.
    pub fn push(&self, node: &Node, info: AppInfo, config: PartitionConfig) {
        let lane = self.lane(node);
        lane.waiting.borrow_mut().configs.insert(config.gpid, (info, config));
        lane.filled.notify_one();
    }

    pub fn propose(&self, node: &Node, request: ProposalRequest) {
        let lane = self.lane(node);
        lane.waiting.borrow_mut().proposals.insert(request.gpid, request);
        lane.filled.notify_one();
    }

    fn lane(&self, node: &Node) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(node.clone()).or_insert_with(|| {
            let lane = Rc::<Lane>::default();
            self.shutdown.spawn_local_until(self.clone().run(node.clone(), lane.clone()));
            lane
        });
        lane.clone()
    }

    async fn run(self, node: Node, lane: Rc<Lane>) {
        let client = self.pool.replica(&node);
        loop {
            let (configs, proposals) = lane.waiting.borrow_mut().take();
            if configs.is_empty() && proposals.is_empty() {
                lane.filled.notified().await;
                continue;
            }
            if !configs.is_empty()
                && let Err(error) = client.adopt(CALL_WITHIN, configs).await
            {
                tracing::debug!(%node, %error, "configurations were not delivered");
                (self.on_missed)(&node);
            }
            for request in proposals {
                let (gpid, proposal) = (request.gpid, request.proposal.clone());
                match client.propose(CALL_WITHIN, request).await {
                    Ok(code) => tracing::debug!(%node, %gpid, ?proposal, %code, "proposed"),
                    Err(error) => {
                        tracing::debug!(%node, %gpid, ?proposal, %error, "a proposal was not delivered");
                        break;
                    }
                }
            }
        }
    }
}

impl Waiting {
    /// The next of both. Proposals only go when all configurations do: they refer to them.
    fn take(&mut self) -> (Vec<(AppInfo, PartitionConfig)>, Vec<ProposalRequest>) {
        let rest = match self.configs.keys().nth(CONFIGS_PER_CALL).copied() {
            Some(key) => self.configs.split_off(&key),
            None => BTreeMap::new(),
        };
        let configs = std::mem::replace(&mut self.configs, rest).into_values().collect();
        let proposals =
            if self.configs.is_empty() { std::mem::take(&mut self.proposals) } else { BTreeMap::new() };
        (configs, proposals.into_values().collect())
    }
}
