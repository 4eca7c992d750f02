//! What the leader knows, shared by everything on the role's thread.
//!
//! Tables and configurations change in the writer alone; liveness and reports are noted by the service that
//! gets them. No borrow of the state lives over an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use pegasus_meta_core::Rounds;
use pegasus_placement::Ledger;
use pegasus_placement::alone::Held;
use pegasus_placement::cure::{self, Cure};
use pegasus_placement::level::FunctionLevel;
use pegasus_placement::liveness::Liveness;
use pegasus_placement::tables::Limits;
use pegasus_types::meta::ProposalRequest;
use pegasus_types::{AppId, AppInfo, Ballot, Gpid, Node, PartitionConfig};
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::proposer::Proposer;
use crate::published::{About, Published};
use crate::resolver::Resolver;
use crate::writer::Asked;

pub struct Leader {
    pub about: Arc<About>,
    pub limits: Limits,
    /// What operators can change while it leads, as configured.
    pub configured: cure::Options,
    pub level: Cell<FunctionLevel>,
    pub clock: Clock,
    pub state: RefCell<State>,
    pub jobs: mpsc::Sender<Asked>,
    pub proposer: Proposer,
    pub resolver: Resolver,
    pub metrics: Rc<Metrics>,
    /// Tables whose creator was told that they are made before every member had its replica. Tools then look again
    /// and again until each partition has its members (admin-protocol.md 4.4), and take an error for the end.
    pub promised: RefCell<BTreeSet<AppId>>,
    /// Something changed that the next round should look at soon.
    pub kick: Notify,
    pub published: watch::Sender<Arc<Published>>,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("about", &self.about).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct State {
    pub ledger: Ledger,
    pub liveness: Liveness,
    pub cure: Cure,
    /// Requests that wait for somebody else's.
    pub held: Held,
    pub rounds: Rounds,
    /// The last proposal for each partition that is not healthy, so that repetitions are not logged.
    pub proposed: BTreeMap<Gpid, ProposalRequest>,
    /// Nodes that are asked for a full report with their next beacon.
    pub wants_report: Rc<RefCell<BTreeSet<Node>>>,
    /// Strange tables that nodes reported, so that each is told once.
    pub strange_tables: BTreeSet<i32>,
}

impl Leader {
    /// Has the next round look at everything soon.
    pub fn touch(&self) {
        self.state.borrow_mut().rounds.touch();
        self.kick.notify_one();
    }

    /// Shows the present state to everybody who only looks.
    pub fn publish(&self) {
        let state = self.state.borrow();
        let published = Published {
            about: self.about.clone(),
            level: self.level.get(),
            view: state.ledger.view().clone(),
            nodes: state.liveness.nodes().map(|(node, state)| (node.clone(), state.clone())).collect(),
            notes: state.rounds.notes().clone(),
            frozen: state.cure.frozen().map(|(gpid, _)| *gpid).collect(),
            wanted_moves: state.cure.planned(),
        };
        self.metrics.show(&published);
        self.published.send_replace(Arc::new(published));
    }

    /// Tells everyone whom a stored change concerns.
    pub fn push(&self, info: &AppInfo, old: &PartitionConfig, new: &PartitionConfig) {
        let concerned: BTreeSet<&Node> = old.members().chain(new.members()).collect();
        for node in concerned {
            self.proposer.push(node, info.clone(), new.clone());
        }
    }

    /// A node knows a higher ballot than is stored: the metadata went back in time (safety-rules.md 4.4).
    pub fn freeze(&self, gpid: Gpid, node: &Node, known: Ballot, stored: Option<Ballot>) {
        if self.state.borrow_mut().cure.freeze(gpid, node, known) {
            report_frozen(gpid, node, known, stored);
        }
    }
}

pub fn report_frozen(gpid: Gpid, node: &Node, known: Ballot, stored: Option<Ballot>) {
    let stored = stored.map_or("nothing".to_owned(), |ballot| format!("ballot {ballot}"));
    tracing::error!(
        %gpid, %node,
        "partition frozen: {node} knows ballot {known}, stored is {stored}. The metadata is older than the \
         nodes: nothing is changed or collected until an operator recovers it"
    );
}
