//! Time, what will happen, and the network.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use pegasus_meta_core::{Job, Outcome};
use pegasus_types::learn::LearnRefused;
use pegasus_types::message::{Envelope, Heartbeat, HeartbeatAck};
use pegasus_types::meta::{Beacon, BeaconAck, ChangeReply, ChangeRequest, ProposalRequest, ReplicaReport};
use pegasus_types::{AppInfo, Ballot, Decree, Gpid, Mutation, Node, PartitionConfig};

use crate::dice::Dice;
use crate::engine::Rows;
use crate::store::{StoreAnswer, StoreCall};
use crate::trace::Trace;
use crate::workload::{OpId, Request, Response};

/// Microseconds since the beginning of the run; nobody in the cluster sees it.
pub type Micros = u64;

pub const MS: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Host(usize),
    Meta(usize),
    /// The coordination store.
    Store,
    Client(usize),
    /// Who makes and drops tables.
    Operator,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(i) => write!(f, "n{}", i + 1),
            Self::Meta(i) => write!(f, "m{}", i + 1),
            Self::Store => f.write_str("store"),
            Self::Client(i) => write!(f, "c{}", i + 1),
            Self::Operator => f.write_str("operator"),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Packet {
    Envelope(Envelope),
    Beat(Heartbeat),
    BeatAck(HeartbeatAck),
    Change {
        ask: u64,
        request: ChangeRequest,
    },
    ChangeReply {
        ask: u64,
        reply: ChangeReply,
    },
    Query(Gpid),
    Configs(Vec<(AppInfo, PartitionConfig)>),
    Propose(ProposalRequest),
    /// Replicas that the meta wants no more.
    Garbage(Vec<Gpid>),
    Beacon(Beacon),
    BeaconAck(BeaconAck),
    /// From a meta-server that does not lead.
    NotLeader {
        leader: Option<Node>,
    },
    /// `life` of the meta-server that calls.
    ToStore {
        session: u64,
        call: u64,
        life: u64,
        what: StoreCall,
    },
    FromStore {
        session: u64,
        call: u64,
        answer: StoreAnswer,
    },
    /// A list that the session watches has changed.
    StoreChanged {
        session: u64,
        fired: u64,
    },
    Report {
        replicas: Vec<ReplicaReport>,
    },
    /// An operator's wish.
    Order {
        ask: u64,
        job: Job,
    },
    OrderDone {
        ask: u64,
        outcome: Outcome,
    },
    LearnOpen {
        request: u64,
        gpid: Gpid,
        ballot: Ballot,
        signature: u64,
        committed: Decree,
    },
    LearnPlan {
        request: u64,
        gpid: Gpid,
        signature: u64,
        plan: Result<Option<(Rows, Decree)>, LearnRefused>,
    },
    LearnLog {
        request: u64,
        gpid: Gpid,
        signature: u64,
        after: Decree,
    },
    LearnChunk {
        request: u64,
        gpid: Gpid,
        signature: u64,
        chunk: Result<(Vec<Mutation>, Decree), LearnRefused>,
    },
    Route(Gpid),
    RouteIs {
        gpid: Gpid,
        primary: Option<usize>,
    },
    /// To a client: its connection to the host was reset.
    Reset(usize),
    Request {
        op: OpId,
        request: Request,
    },
    Response {
        op: OpId,
        response: Response,
    },
}

impl Packet {
    fn name(&self) -> &'static str {
        match self {
            Self::Envelope(_) => "message",
            Self::Beat(_) => "heartbeat",
            Self::BeatAck(_) => "heartbeat-ack",
            Self::Change { .. } => "change",
            Self::ChangeReply { .. } => "change-reply",
            Self::Query(_) => "query",
            Self::Configs(_) => "configs",
            Self::Propose(_) => "proposal",
            Self::Garbage(_) => "garbage",
            Self::Beacon(_) => "beacon",
            Self::BeaconAck(_) => "beacon-ack",
            Self::NotLeader { .. } => "not-leader",
            Self::ToStore { .. } => "to-store",
            Self::FromStore { .. } => "from-store",
            Self::StoreChanged { .. } => "store-changed",
            Self::Report { .. } => "report",
            Self::Order { .. } => "order",
            Self::OrderDone { .. } => "order-done",
            Self::LearnOpen { .. } => "learn-open",
            Self::LearnPlan { .. } => "learn-plan",
            Self::LearnLog { .. } => "learn-log",
            Self::LearnChunk { .. } => "learn-chunk",
            Self::Route(_) => "route",
            Self::RouteIs { .. } => "route-is",
            Self::Reset(_) => "reset",
            Self::Request { .. } => "request",
            Self::Response { .. } => "response",
        }
    }
}

/// Something that will happen at a host, unless its process has ended by then.
#[derive(Clone, Debug)]
pub enum Chore {
    Timer,
    Beacon,
    LogWrite,
    LogSync,
    LogAgain,
    FlushEngine(Gpid),
    Saved { gpid: Gpid, ballot: Ballot, learning: bool },
    Opened(Gpid),
    MakeReplica(PartitionConfig),
    RowsCopied { gpid: Gpid, signature: u64, rows: Rows, decree: Decree },
    AskAgain(u64),
    AskTimeout(u64),
    CopyTimeout { gpid: Gpid, request: u64 },
    ReadDone { op: OpId, from: usize, gpid: Gpid, response: Response },
    Deadline { op: OpId },
    ReportSoon,
    PeerReset(usize),
}

#[derive(Clone, Debug)]
pub enum Happening {
    Deliver {
        from: Place,
        to: Place,
        life: u64,
        packet: Packet,
    },
    Chore {
        host: usize,
        life: u64,
        chore: Chore,
    },
    StartHost(usize),
    /// Is there anything left that a draining host would have to hand over?
    LookAtDrain {
        host: usize,
        life: u64,
        begun: Micros,
    },
    /// A host with a broken disk gets a good one and starts anew.
    Replace(usize),
    EmptyDisk(usize),
    StartMeta(usize),
    KillMeta(usize),
    MetaRound {
        meta: usize,
        life: u64,
    },
    MetaTick {
        meta: usize,
        life: u64,
    },
    StartStore,
    StoreRound,
    /// What is sent only now.
    SendLate {
        from: Place,
        to: Place,
        packet: Packet,
    },
    ClientNext(usize),
    /// The client asks the metas once more for its route.
    ClientAsk(usize),
    ClientTimeout {
        client: usize,
        op: OpId,
    },
    /// The operator's next order.
    OperatorNext,
    OperatorAsk,
    /// The order with this number has taken too long.
    OperatorAgain(u64),
    Nemesis,
    /// A fault of a meta-server or of the store.
    MetaNemesis,
}

#[derive(Debug)]
struct Item {
    at: Micros,
    seq: u64,
    what: Happening,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// How bad the weather is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Everything arrives within 2 ms and in order.
    Calm,
    /// 2 % are lost, 2 % of the messages come twice, 3 % are late by up to 1.5 s, anything overtakes anything.
    Stormy,
}

#[derive(Debug)]
pub struct Bus {
    pub now: Micros,
    seq: u64,
    queue: BinaryHeap<Reverse<Item>>,
    pub dice: Dice,
    pub weather: Weather,
    /// One-way cuts: until when nothing gets from one place to another.
    cuts: BTreeMap<(Place, Place), Micros>,
    /// Until when what is sent from one place to another takes so much longer.
    lags: BTreeMap<(Place, Place), (Micros, Micros)>,
    /// Last arrival on a connection, which is of one life of a meta-server, in calm weather.
    last: BTreeMap<(Place, Place, u64), Micros>,
    /// Which life each host is in: what was sent to an earlier one is lost.
    pub lives: Vec<u64>,
    pub meta_lives: Vec<u64>,
    pub trace: Trace,
}

impl Bus {
    pub fn new(dice: Dice, (hosts, metas): (usize, usize), trace: Trace) -> Self {
        Self {
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            dice,
            weather: Weather::Calm,
            cuts: BTreeMap::new(),
            lags: BTreeMap::new(),
            last: BTreeMap::new(),
            lives: vec![0; hosts],
            meta_lives: vec![0; metas],
            trace,
        }
    }

    pub fn at(&mut self, at: Micros, what: Happening) {
        self.seq += 1;
        self.queue.push(Reverse(Item { at: at.max(self.now), seq: self.seq, what }));
    }

    pub fn after(&mut self, delay: Micros, what: Happening) {
        self.at(self.now + delay, what);
    }

    pub fn chore(&mut self, host: usize, delay: Micros, chore: Chore) {
        let life = self.lives[host];
        self.after(delay, Happening::Chore { host, life, chore });
    }

    /// The next thing, with the time moved to it; None when it lies beyond `end`.
    pub fn next(&mut self, end: Micros) -> Option<Happening> {
        if self.queue.peek().is_none_or(|Reverse(item)| item.at > end) {
            self.now = self.now.max(end);
            return None;
        }
        let Reverse(item) = self.queue.pop()?;
        self.now = self.now.max(item.at);
        Some(item.what)
    }

    pub fn cut(&mut self, from: Place, to: Place, until: Micros) {
        self.cuts.insert((from, to), until);
    }

    pub fn lag(&mut self, from: Place, to: Place, until: Micros, delay: Micros) {
        self.lags.insert((from, to), (until, delay));
    }

    pub fn heal(&mut self) {
        self.lags.clear();
        self.cuts.clear();
    }

    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| *until > self.now)
    }

    fn delay(&mut self) -> Micros {
        let x = self.dice.below(1000);
        match self.weather {
            Weather::Calm => self.dice.between(100, 2 * MS),
            Weather::Stormy if x < 800 => self.dice.between(100, 2 * MS),
            Weather::Stormy if x < 970 => self.dice.between(2 * MS, 80 * MS),
            Weather::Stormy => self.dice.between(80 * MS, 1500 * MS),
        }
    }

    pub fn send(&mut self, from: Place, to: Place, packet: Packet) {
        // A session with the store is a connection: it breaks now and then, and nothing overtakes anything.
        let session = from == Place::Store || to == Place::Store;
        let lost = self.weather == Weather::Stormy && self.dice.permille(if session { 4 } else { 20 });
        if lost || self.is_cut(from, to) {
            if self.trace.is_on() {
                self.trace.line(self.now, format_args!("{from} -> {to} {} lost", packet.name()));
            }
            return;
        }
        let life = match to {
            Place::Host(host) => self.lives[host],
            Place::Meta(meta) => self.meta_lives[meta],
            Place::Store | Place::Client(_) | Place::Operator => 0,
        };
        let mut delay = self.delay();
        if let Some((_, more)) = self.lags.get(&(from, to)).filter(|(until, _)| *until > self.now) {
            delay += more;
        }
        if self.weather == Weather::Calm || session {
            // One connection: nothing overtakes anything.
            let connection = if let Packet::ToStore { life, .. } = &packet { *life } else { 0 };
            let last = self.last.entry((from, to, connection)).or_default();
            delay = delay.max((*last + 1).saturating_sub(self.now));
            *last = self.now + delay;
        }
        if self.weather == Weather::Stormy && matches!(packet, Packet::Envelope(_)) && self.dice.permille(20)
        {
            let packet = packet.clone();
            let later = self.delay();
            self.after(later, Happening::Deliver { from, to, life, packet });
        }
        self.after(delay, Happening::Deliver { from, to, life, packet });
    }
}
