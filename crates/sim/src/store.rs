//! The coordination store: one service that keeps a tree of nodes and knows sessions, as ZooKeeper does. The tree is
//! `pegasus_zk_coordination`'s own; what is simulated is the way there, its pauses, and how sessions end.

use std::collections::{BTreeMap, BTreeSet};

use pegasus_meta_core::{Found, Loading, Progress, Read, op};
use pegasus_placement::Ledger;
use pegasus_placement::ledger::Write;
use pegasus_types::{Gpid, PartitionConfig};
use pegasus_zk_coordination::election::Candidate;
use pegasus_zk_coordination::memory_tree::{Changed, MemoryTree, SessionId};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Datum, Op, OpResult, StoreError};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place, SECOND};
use crate::checks::Checks;

/// A session ends when the store has heard nothing of it for so long.
pub const SESSION_MS: u64 = 2_000;
/// How often the store looks for sessions that are over.
const ROUND: Micros = 100 * MS;
/// A watch may take its time.
const WATCH_LATE: Micros = 2 * SECOND;
/// Session of whoever set the store up.
const NOBODY: SessionId = 0;

#[derive(Clone, Debug)]
pub enum StoreCall {
    /// Here I am.
    Ping,
    Prepare(Vec<String>),
    /// Candidates with their content; the list is watched from now on.
    Look(String),
    Read(String),
    /// With the number of the reign, when a leader writes.
    Write {
        ops: Vec<Op>,
        epoch: Option<u64>,
    },
    /// One step of loading tables and partitions: others may write between two of them.
    Load(Read),
}

#[derive(Clone, Debug)]
pub enum StoreAnswer {
    /// How many watches of the session have fired so far: a client that was cut off learns from it what it missed,
    /// as ZooKeeper's does when it sets its watches again.
    Pong(u64),
    SessionOver,
    Prepared(Result<(), StoreError>),
    Seen(Result<Vec<Candidate>, StoreError>),
    Read(Result<Option<Datum>, StoreError>),
    Written(Result<Vec<OpResult>, StoreError>),
    Loaded(Result<Found, StoreError>),
}

#[derive(Debug)]
pub struct Store {
    tree: MemoryTree,
    paths: Tree,
    /// When each session was heard last, and whose it is.
    sessions: BTreeMap<SessionId, (Micros, Place)>,
    ended: BTreeSet<SessionId>,
    /// Lists of children that are watched: by whom.
    watches: BTreeMap<String, BTreeSet<SessionId>>,
    fired: BTreeMap<SessionId, u64>,
    pub stopped: bool,
    /// What is stored, decoded.
    truth: Ledger,
    /// Sessions that ended, for the figures.
    pub expired: u64,
}

impl Store {
    /// With this metadata in it, as if somebody had created the tables long ago.
    pub fn new(paths: Tree, writes: Vec<Write>) -> Self {
        let mut tree = MemoryTree::default();
        let root = paths.root();
        let parents = root.match_indices('/').skip(1).map(|(end, _)| root[..end].to_owned());
        let mut ops: Vec<Op> = parents.map(|path| Op::create(path, "")).collect();
        ops.extend([Op::create(root, ""), Op::create(paths.apps(), "unlock")]);
        ops.extend(writes.iter().map(|write| op(&paths, write)));
        tree.multi(NOBODY, &ops).expect("the tree is empty and the parents come first");
        let mut store = Self {
            tree,
            paths,
            sessions: BTreeMap::new(),
            ended: BTreeSet::new(),
            watches: BTreeMap::new(),
            fired: BTreeMap::new(),
            stopped: false,
            truth: Ledger::default(),
            expired: 0,
        };
        store.truth = store.load().expect("it was just written");
        store
    }

    pub fn start(&mut self, bus: &mut Bus) {
        self.stopped = false;
        // A new leader of an ensemble gives every session its full time again.
        for (heard, _) in self.sessions.values_mut() {
            *heard = bus.now;
        }
        bus.after(ROUND, Happening::StoreRound);
    }

    pub fn gpids(&self) -> Vec<Gpid> {
        self.truth.view().live_partitions().map(|(_, config)| config.gpid).collect()
    }

    pub fn config(&self, gpid: Gpid) -> Option<&PartitionConfig> {
        self.truth.view().partition(gpid).map(|config| &**config)
    }

    /// Ends the sessions that were silent for too long.
    pub fn round(&mut self, bus: &mut Bus) {
        if self.stopped {
            return;
        }
        bus.after(ROUND, Happening::StoreRound);
        let silent = |heard: Micros| bus.now - heard > SESSION_MS * MS;
        let over: Vec<SessionId> =
            self.sessions.iter().filter(|(_, (heard, _))| silent(*heard)).map(|(id, _)| *id).collect();
        for session in over {
            bus.trace.line(bus.now, format_args!("store ends session {session:x}"));
            self.expired += 1;
            self.sessions.remove(&session);
            self.ended.insert(session);
            let changed = self.tree.end_session(session);
            self.fire(bus, &changed);
        }
    }

    pub fn deliver(
        &mut self,
        bus: &mut Bus,
        checks: &mut Checks,
        from: Place,
        author_life: u64,
        (session, call, what): (SessionId, u64, StoreCall),
    ) {
        if self.stopped {
            return;
        }
        if self.ended.contains(&session) {
            let answer = StoreAnswer::SessionOver;
            return bus.send(Place::Store, from, Packet::FromStore { session, call, answer });
        }
        self.sessions.insert(session, (bus.now, from));
        let answer = match what {
            StoreCall::Ping => StoreAnswer::Pong(self.fired.get(&session).copied().unwrap_or(0)),
            StoreCall::Prepare(paths) => StoreAnswer::Prepared(self.prepare(session, &paths)),
            StoreCall::Look(path) => {
                let seen = self.look(&path);
                if seen.is_ok() {
                    self.watches.entry(path).or_default().insert(session);
                }
                StoreAnswer::Seen(seen)
            }
            StoreCall::Read(path) => StoreAnswer::Read(self.tree.get(&path)),
            StoreCall::Load(read) => StoreAnswer::Loaded(self.find(&read)),
            StoreCall::Write { ops, epoch } => {
                let done = self.tree.multi(session, &ops);
                if let (Ok(_), Some(epoch)) = (&done, epoch) {
                    self.look_on(bus, checks, (from, author_life), epoch);
                }
                StoreAnswer::Written(done.map(|(results, changed)| {
                    self.fire(bus, &changed);
                    results
                }))
            }
        };
        bus.send(Place::Store, from, Packet::FromStore { session, call, answer });
    }

    /// A leader has written.
    fn look_on(&mut self, bus: &mut Bus, checks: &mut Checks, (from, life): (Place, u64), epoch: u64) {
        let Place::Meta(meta) = from else { return };
        match self.load() {
            Err(why) => checks.violation(bus.now, format!("the metadata is not whole: {why}")),
            Ok(ledger) => {
                if let Err(what) = checks.metadata.written((meta, life), epoch, ledger.view()) {
                    checks.violation(bus.now, what);
                }
                if let Err(what) = checks.tables.written(ledger.view()) {
                    checks.violation(bus.now, what);
                }
                for (_, new) in ledger.view().live_partitions() {
                    if let Some(old) = self.truth.view().partition(new.gpid).filter(|old| *old != new) {
                        bus.trace.line(bus.now, format_args!("m{} stores {new:?}", meta + 1));
                        checks.stored(bus.now, old, new);
                    }
                }
                self.truth = ledger;
            }
        }
    }

    fn fire(&mut self, bus: &mut Bus, changed: &Changed) {
        for path in &changed.parents {
            for session in self.watches.remove(path).unwrap_or_default() {
                let Some((_, place)) = self.sessions.get(&session) else { continue };
                let place = *place;
                let fired = self.fired.entry(session).or_default();
                *fired += 1;
                let packet = Packet::StoreChanged { session, fired: *fired };
                let late = if bus.dice.permille(200) { bus.dice.below(WATCH_LATE) } else { 0 };
                bus.after(late, Happening::SendLate { from: Place::Store, to: place, packet });
            }
        }
    }

    fn prepare(&mut self, session: SessionId, paths: &[String]) -> Result<(), StoreError> {
        for path in paths {
            let ends = path.match_indices('/').skip(1).map(|(end, _)| end).chain([path.len()]);
            for end in ends {
                match self.tree.multi(session, &[Op::create(&path[..end], "")]) {
                    Ok(_) | Err(StoreError::NodeExists(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn look(&self, path: &str) -> Result<Vec<Candidate>, StoreError> {
        let names = self.tree.children(path)?;
        let candidate = |name: String| {
            let datum = self.tree.get(&format!("{path}/{name}")).ok()??;
            Some(Candidate { address: String::from_utf8(datum.bytes.to_vec()).ok()?, name })
        };
        Ok(names.into_iter().filter_map(candidate).collect())
    }

    fn find(&self, read: &Read) -> Result<Found, StoreError> {
        Ok(match read {
            Read::Data(paths) => {
                Found::Data(paths.iter().map(|path| self.tree.get(path)).collect::<Result<_, _>>()?)
            }
            Read::Children(path) => Found::Children(self.tree.children(path)?),
        })
    }

    /// Everything, as a meta-server reads it.
    fn load(&self) -> Result<Ledger, String> {
        let (mut loading, mut read) = Loading::begin(&self.paths);
        loop {
            let found = self.find(&read).map_err(|error| error.to_string())?;
            match loading.found(found).map_err(|error| error.to_string())? {
                Progress::Read(next) => read = next,
                Progress::Loaded(ledger) => return Ok(ledger),
            }
        }
    }
}
