//! Every peer that this process talks to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use pegasus_types::Node;
use tokio_util::sync::CancellationToken;

use super::hello::{Accepted, Class, Identity};
use super::meta::MetaClient;
use super::replica::ReplicaClient;

/// What a pool tells about its peers, from a task of its own (never from inside a call).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// A connection stands. `incarnation` differs from the last one when the peer has restarted.
    Connected { node: Node, class: Class, incarnation: u64, cluster_id: String },
    /// A standing connection broke and the next dial was refused: most likely the process is gone
    /// (safety-rules.md 1.3). Told once until a connection stands again, though several may break; tens of
    /// milliseconds after the loss at most.
    ResetAndRefused { node: Node, incarnation: u64 },
}

/// How a pool dials and calls.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Connect and hello.
    pub dial_timeout: Duration,
    /// Pause after the first failed dial; doubled after each further one.
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// Control connections carry the leases and are tried again sooner.
    pub control_pause_max: Duration,
    /// Calls under way per connection; a call beyond it fails at once with `Busy`.
    pub max_in_flight: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(1),
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(1),
            control_pause_max: Duration::from_millis(300),
            max_in_flight: 512,
        }
    }
}

pub(crate) struct Shared {
    pub(crate) me: Rc<Identity>,
    pub(crate) options: PoolOptions,
    pub(crate) closed: CancellationToken,
    events: Box<dyn Fn(PeerEvent)>,
    /// The incarnation whose end was reported last, per node: three connections break, one event is told.
    reported: RefCell<BTreeMap<Node, u64>>,
}

impl Shared {
    pub(crate) fn note_up(&self, node: &Node, class: Class, accepted: &Accepted) {
        let Accepted { cluster_id, incarnation, .. } = accepted.clone();
        // The same process may be cut off, come back and die later.
        self.reported.borrow_mut().remove(node);
        (self.events)(PeerEvent::Connected { node: node.clone(), class, incarnation, cluster_id });
    }

    pub(crate) fn note_reset_and_refused(&self, node: &Node, incarnation: u64) {
        let before = self.reported.borrow_mut().insert(node.clone(), incarnation);
        if before != Some(incarnation) {
            (self.events)(PeerEvent::ResetAndRefused { node: node.clone(), incarnation });
        }
    }
}

/// Connections to peers, by node. Cheap to clone; the last clone closes them. Lives in a LocalSet.
#[derive(Clone)]
pub struct PeerPool(Rc<Inner>);

struct Inner {
    shared: Rc<Shared>,
    replicas: RefCell<BTreeMap<Node, ReplicaClient>>,
    metas: RefCell<BTreeMap<Node, MetaClient>>,
}

impl PeerPool {
    pub fn new(me: Rc<Identity>, options: PoolOptions, events: impl Fn(PeerEvent) + 'static) -> Self {
        let shared = Shared {
            me,
            options,
            closed: CancellationToken::new(),
            events: Box::new(events),
            reported: RefCell::default(),
        };
        Self(Rc::new(Inner {
            shared: Rc::new(shared),
            replicas: RefCell::default(),
            metas: RefCell::default(),
        }))
    }

    pub fn identity(&self) -> &Rc<Identity> {
        &self.0.shared.me
    }

    /// The replica-server `node`. Nothing is dialled before the first call.
    pub fn replica(&self, node: &Node) -> ReplicaClient {
        let mut replicas = self.0.replicas.borrow_mut();
        replicas.entry(node.clone()).or_insert_with(|| ReplicaClient::new(&self.0.shared, node)).clone()
    }

    /// The meta-server at `node`.
    pub fn meta(&self, node: &Node) -> MetaClient {
        let mut metas = self.0.metas.borrow_mut();
        metas.entry(node.clone()).or_insert_with(|| MetaClient::new(&self.0.shared, node)).clone()
    }

    /// `node` was heard from otherwise (it dialled us): dial it again without waiting out a pause.
    pub fn heard_from(&self, node: &Node) {
        if let Some(client) = self.0.replicas.borrow().get(node) {
            client.end_pause();
        }
        if let Some(client) = self.0.metas.borrow().get(node) {
            client.end_pause();
        }
    }

    /// Ends all connections; calls under way fail with `Lost`.
    pub fn close(&self) {
        self.0.shared.closed.cancel();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl fmt::Debug for PeerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (replicas, metas) = (self.0.replicas.borrow().len(), self.0.metas.borrow().len());
        f.debug_struct("PeerPool").field("replicas", &replicas).field("metas", &metas).finish()
    }
}
