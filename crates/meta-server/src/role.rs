//! The meta-server, whoever leads: what stays the same over all terms, and who leads now as far as it knows.
//!
//! ```text
//!            elected            loaded             lease over, or deposed
//!  Follows ----------> Loads ----------> Leads ------------------------> Suspended
//!     ^                  |                                                  |
//!     '------------------'--------------- another one leads ----------------'
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::Arc;

use pegasus_placement::ClusterView;
use pegasus_placement::tables::Limits;
use pegasus_rpc::peer::{Identity, PeerPool};
use pegasus_telemetry::Health;
use pegasus_types::{ErrorCode, Node};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::published::Published;
use crate::resolver::Resolver;

/// Our part of the name in `/readyz`.
const PART: &str = "leader";

/// Who leads, as far as this meta-server knows.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Another one, or nobody knows.
    Follows(Option<Node>),
    /// We were elected, and load what is stored.
    Loads,
    /// We lead; this is what we show.
    Leads(watch::Receiver<Arc<Published>>),
    /// We led, and are out of touch with the store or were deposed. Nothing is decided. Clients are answered from
    /// what was stored last while `alone`: as far as we can find out nobody else leads who could have changed it.
    Suspended { last: Arc<Published>, alone: bool },
}

impl Standing {
    /// What clients and operators may be shown.
    pub fn shown(&self) -> Option<Arc<Published>> {
        match self {
            Self::Leads(shown) => Some(shown.borrow().clone()),
            Self::Suspended { last, alone: true } => Some(last.clone()),
            Self::Suspended { .. } | Self::Follows(_) | Self::Loads => None,
        }
    }

    /// What who asks for something else is told.
    pub fn refusal(&self) -> ErrorCode {
        match self {
            Self::Loads => ErrorCode::ServiceNotActive,
            _ => ErrorCode::ForwardToOthers,
        }
    }
}

pub struct Role {
    pub me: Node,
    /// All meta-servers, ourselves included.
    pub metas: Vec<Node>,
    pub config: Config,
    pub limits: Limits,
    pub identity: Rc<Identity>,
    pub pool: PeerPool,
    pub resolver: Resolver,
    pub metrics: Rc<Metrics>,
    pub health: Health,
    in_touch: Cell<bool>,
    /// What is stored, while a standby tells it in place of a leader that is not reached.
    stored: RefCell<Option<ClusterView>>,
    /// Connections of other daemons to us.
    connected: RefCell<BTreeMap<Node, usize>>,
    /// It should be found out at once whether another one leads.
    pub look_around: Notify,
    leader: RefCell<Option<Rc<Leader>>>,
    standing: watch::Sender<Standing>,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role").field("me", &self.me).finish_non_exhaustive()
    }
}

/// One connection of another daemon, as long as this value lives.
#[derive(Debug)]
pub struct Connected {
    role: Rc<Role>,
    node: Node,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut connected = self.role.connected.borrow_mut();
        if let Some(count) = connected.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                connected.remove(&self.node);
            }
        }
    }
}

impl Role {
    pub fn new(
        config: Config,
        me: Node,
        metas: Vec<Node>,
        identity: Rc<Identity>,
        pool: PeerPool,
        metrics: Metrics,
    ) -> Self {
        let role = Self {
            me,
            metas,
            limits: config.limits(),
            config,
            identity,
            pool,
            resolver: Resolver::default(),
            metrics: Rc::new(metrics),
            health: Health::default(),
            in_touch: Cell::new(false),
            stored: RefCell::default(),
            connected: RefCell::default(),
            look_around: Notify::new(),
            leader: RefCell::default(),
            standing: watch::Sender::new(Standing::Follows(None)),
        };
        role.set(Standing::Follows(None));
        role
    }

    /// The leader, when it is us.
    pub fn leader(&self) -> Option<Rc<Leader>> {
        self.leader.borrow().clone()
    }

    /// The store answers us: who leads is learned from there. Else the other metas are asked.
    pub fn is_in_touch(&self) -> bool {
        self.in_touch.get()
    }

    pub fn set_in_touch(&self, in_touch: bool) {
        if self.in_touch.replace(in_touch) != in_touch {
            self.set(self.now());
            self.look_around.notify_one();
        }
    }

    /// What clients may be told in place of a leader that is not reached.
    pub fn stored(&self) -> Option<ClusterView> {
        self.stored.borrow().clone()
    }

    pub fn set_stored(&self, view: Option<ClusterView>) {
        *self.stored.borrow_mut() = view;
    }

    /// A process that ends closes its connections: who has none is gone, whatever its last beacon said.
    pub fn is_connected(&self, node: &Node) -> bool {
        self.connected.borrow().contains_key(node)
    }

    pub fn connected(self: &Rc<Self>, node: &Node) -> Connected {
        *self.connected.borrow_mut().entry(node.clone()).or_default() += 1;
        Connected { role: self.clone(), node: node.clone() }
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub fn now(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// The other one that leads, if we know.
    pub fn other_leader(&self) -> Option<Node> {
        match &*self.standing.borrow() {
            Standing::Follows(leader) => leader.clone(),
            _ => None,
        }
    }

    /// Its address, for clients.
    pub fn other_leader_address(&self) -> Option<SocketAddrV4> {
        self.resolver.get(&self.other_leader()?)
    }

    pub fn follow(&self, leader: Option<Node>) {
        let same = matches!(&*self.standing.borrow(), Standing::Follows(old) if *old == leader);
        if !same {
            match &leader {
                Some(leader) => {
                    tracing::info!(%leader, "standby");
                    // Its name should be resolved before the first client asks.
                    self.resolver.get(leader);
                }
                None => tracing::info!("standby; who leads is not known"),
            }
            self.set(Standing::Follows(leader));
        }
    }

    /// We were elected.
    pub fn load(&self) {
        self.set(Standing::Loads);
    }

    pub fn lead(&self, leader: Rc<Leader>) {
        let shown = leader.published.subscribe();
        *self.leader.borrow_mut() = Some(leader);
        self.set(Standing::Leads(shown));
    }

    /// Ends our leadership, if there is one.
    pub fn suspend(&self) {
        let leader = self.leader.borrow_mut().take();
        let next = match leader {
            // We may have been stopped for long, and another one may lead: looked at first.
            Some(leader) => Standing::Suspended { last: leader.published.borrow().clone(), alone: false },
            None => Standing::Follows(None),
        };
        self.set(next);
        self.look_around.notify_one();
    }

    /// What was found out about others while we are suspended.
    pub fn set_alone(&self, is_alone: bool) {
        self.standing.send_if_modified(|standing| match standing {
            Standing::Suspended { alone, .. } if *alone != is_alone => {
                *alone = is_alone;
                true
            }
            _ => false,
        });
    }

    fn set(&self, standing: Standing) {
        if !matches!(standing, Standing::Leads(_)) {
            self.leader.borrow_mut().take();
        }
        let why = match &standing {
            Standing::Leads(_) => None,
            Standing::Follows(Some(leader)) => Some(format!("standby; {leader} leads")),
            Standing::Follows(None) if self.in_touch.get() => Some("standby; nobody leads yet".to_owned()),
            Standing::Follows(None) => Some("the metadata store is not reached".to_owned()),
            Standing::Loads => Some("elected; the metadata is being loaded".to_owned()),
            Standing::Suspended { .. } => Some(
                "suspended: out of touch with the metadata store; reads and writes of data go on, changes of tables \
                 and members wait"
                    .to_owned(),
            ),
        };
        match why {
            Some(why) => self.health.not_ready(PART, why),
            None => self.health.ready(PART),
        }
        self.standing.send_replace(standing);
    }
}
