//! The replicas of this process and everything that happens to them, on one thread.
//!
//! [`Shell`] is shared by all tasks of the thread; [`NodeState`] is what they change. Nobody holds it across an
//! await. Whatever happens becomes an [`Event`], is posted, and is worked off by the driver in one turn of the
//! loop together with all else that has come meanwhile.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use pegasus_pacifica::{Effect, Event, NodeCore};
use pegasus_rpc::peer::{Outbox, PeerPool};
use pegasus_storage::data_dir::{DataDir, DiskState};
use pegasus_storage::ops::ReadLimits;
use pegasus_storage::{DataDirs, EngineFactory};
use pegasus_telemetry::Shutdown;
use pegasus_types::message::HeartbeatAck;
use pegasus_types::{AppId, AppInfo, Gpid, Node};
use tokio::sync::Notify;

use crate::cold::LoopReads;
use crate::compaction::Compactions;
use crate::disk::Disk;
use crate::file_lanes::FileLanes;
use crate::learn_io::Teaching;
use crate::learn_io::rate::Rate;
use crate::learn_io::sessions::Sessions;
use crate::load::Broken;
use crate::meta_link::MetaLink;
use crate::metrics::Metrics;
use crate::partition::Replica;
use crate::reads::{OffLoop, Parked};
use crate::slow::Threshold;
use crate::throttle::Delayed;
use crate::waitlist::Waitlist;
use crate::workers::Workers;

/// Settings that the loop looks at.
#[derive(Clone, Debug)]
pub struct Settings {
    /// 0 = no limit.
    pub max_write_bytes: usize,
    pub read_limits: ReadLimits,
    pub reject_when_full: bool,
    /// Mutations kept for peers that lag; replay keeps as many.
    pub recent: usize,
    pub page_cache: bool,
    /// Of a disk's log; above it nothing may keep more of it.
    pub max_log_bytes: u64,
    /// Of a disk's log, kept for members that come back.
    pub log_reserve_bytes: u64,
    /// A disk with less free space counts as full.
    pub least_free_percent: u64,
    /// Between two manual compactions of a replica.
    pub compact_interval_s: u64,
}

pub struct Shell {
    pub me: Node,
    pub cluster_name: String,
    pub incarnation: u64,
    pub settings: Settings,
    pub factory: Arc<dyn EngineFactory>,
    pub pool: PeerPool,
    pub meta: MetaLink,
    pub lanes: Rc<FileLanes>,
    pub shutdown: Shutdown,
    /// Copies that run at a time.
    pub learning: Arc<tokio::sync::Semaphore>,
    /// Read and take the rows of copies.
    pub copiers: Workers,
    /// Compact whole replicas.
    pub compactors: Workers,
    pub dirs: Arc<DataDirs>,
    pub state: RefCell<NodeState>,
    pub wake: Notify,
    pub started: Instant,
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell")
            .field("me", &self.me)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// What the tasks of the loop share and change.
pub struct NodeState {
    pub core: NodeCore,
    pub replicas: HashMap<Gpid, Replica>,
    /// Found on disk and not openable.
    pub broken: HashMap<Gpid, Broken>,
    pub disks: Vec<Disk>,
    /// Tables by id, as the meta told last.
    pub apps: BTreeMap<AppId, Arc<AppInfo>>,
    pub metrics: Metrics,
    pub teaching: Sessions<Teaching>,
    pub outboxes: HashMap<Node, Outbox>,
    /// Copies under way: session and the task that does it.
    pub copying: HashMap<Gpid, crate::learn_io::Copying>,
    /// Rows of copies that are not whole yet.
    pub partials: HashMap<Gpid, crate::learn_io::Partial>,
    pub slow: Threshold,
    pub learn_rate: Rate,
    pub teach_rate: Rate,
    /// Replicas whose meta file is being changed to another life.
    pub switching: BTreeSet<Gpid>,
    pub events: VecDeque<Event>,
    /// Partitions with queued writes.
    pub listed: Vec<Gpid>,
    pub parked: Waitlist<Parked>,
    /// Something happened that may let parked reads go on.
    pub unpark: bool,
    /// Of the last mutation that was proposed.
    pub last_token: u64,
    /// Answer to the heartbeat that is being stepped.
    pub heartbeat_ack: Option<HeartbeatAck>,
    pub log_healthy: bool,
    /// Replicas that are still being opened since the start.
    pub opening: usize,
    /// Replicas that are being made for tables that are being created.
    pub creating: BTreeSet<Gpid>,
    pub ranged_reads: OffLoop,
    pub cold_reads: OffLoop,
    pub loop_reads: LoopReads,
    pub delayed: Delayed,
    pub compactions: Compactions,
    pub(crate) effects: Vec<Effect>,
}

impl NodeState {
    pub fn new(core: NodeCore, disks: Vec<Disk>) -> Self {
        Self {
            core,
            replicas: HashMap::new(),
            broken: HashMap::new(),
            disks,
            apps: BTreeMap::new(),
            metrics: Metrics::default(),
            teaching: Sessions::new(rand::random()),
            outboxes: HashMap::new(),
            copying: HashMap::new(),
            partials: HashMap::new(),
            slow: Threshold::default(),
            learn_rate: Rate::new(0, Instant::now()),
            teach_rate: Rate::new(0, Instant::now()),
            switching: BTreeSet::new(),
            events: VecDeque::new(),
            listed: Vec::new(),
            parked: Waitlist::default(),
            unpark: false,
            last_token: 0,
            heartbeat_ack: None,
            log_healthy: true,
            opening: 0,
            creating: BTreeSet::new(),
            ranged_reads: OffLoop::ranged(),
            cold_reads: OffLoop::cold(),
            loop_reads: LoopReads::default(),
            delayed: Delayed::default(),
            compactions: Compactions::default(),
            effects: Vec::new(),
        }
    }
}

impl Shell {
    /// Runs `f` on the state. Not to be nested.
    pub fn with<R>(&self, f: impl FnOnce(&mut NodeState) -> R) -> R {
        f(&mut self.state.borrow_mut())
    }

    /// Disks that were broken at the start, and why: none of `disks`, but told of like those that break later.
    pub fn left_out<'a>(&'a self, disks: &'a [Disk]) -> impl Iterator<Item = (&'a DataDir, String)> {
        let is_out = |dir: &&DataDir| disks.iter().all(|disk| disk.tag != dir.tag());
        self.dirs.iter().filter(is_out).filter_map(|dir| match dir.state() {
            DiskState::Broken(why) => Some((dir, why)),
            DiskState::Normal | DiskState::SpaceInsufficient => None,
        })
    }

    /// For the next turn of the loop.
    pub fn post(&self, event: Event) {
        self.state.borrow_mut().events.push_back(event);
        self.wake.notify_one();
    }

    pub fn post_all(&self, events: impl IntoIterator<Item = Event>) {
        self.state.borrow_mut().events.extend(events);
        self.wake.notify_one();
    }
}
