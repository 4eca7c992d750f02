//! The ledger as nodes of the store: loading, and writes as operations.

use std::collections::VecDeque;

use pegasus_placement::Ledger;
use pegasus_placement::ledger::{Entry, Version, Write};
use pegasus_placement::tables::MAX_PARTITION_COUNT;
use pegasus_types::{AppId, AppInfo, Gpid, PartitionConfig};
use pegasus_zk_coordination::store::multis;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Datum, Op, StoreError, content};

/// Partitions that are read together. In between the leader's proofs that it leads get their turn with the store,
/// and everything else that runs on this thread.
const LOAD_BATCH: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path} cannot be read: {why}")]
    Content { path: String, why: String },
    #[error("the metadata is not whole: {0}")]
    Missing(String),
    #[error("{path} says {text:?}: what lies there is not for use")]
    NotForUse { path: String, text: String },
}

impl LoadError {
    pub fn content(path: &str, why: impl ToString) -> Self {
        Self::Content { path: path.into(), why: why.to_string() }
    }
}

/// What loading wants to know of the store next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The data of these nodes, in one round trip.
    Data(Vec<String>),
    /// The names of a node's children.
    Children(String),
}

/// The answer to a [`Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the order of the question; None = there is no such node.
    Data(Vec<Option<Datum>>),
    Children(Vec<String>),
}

#[derive(Debug)]
pub enum Progress {
    Read(Read),
    Loaded(Ledger),
}

/// Reads everything, step by step. Never makes up what is not there (replication.md 9.2, 26).
#[derive(Debug)]
pub struct Loading {
    tree: Tree,
    drained: Option<Datum>,
    at: At,
}

#[derive(Debug)]
enum At {
    Root,
    Names,
    Tables(Vec<AppId>),
    Partitions(Partitions),
}

#[derive(Debug)]
struct Partitions {
    tables: Vec<(AppInfo, Version)>,
    asked: Vec<Gpid>,
    /// Not asked for yet.
    rest: VecDeque<Gpid>,
    stored: Vec<Option<(PartitionConfig, Version)>>,
}

impl Loading {
    /// With the first thing to read.
    pub fn begin(tree: &Tree) -> (Self, Read) {
        let read = Read::Data(vec![tree.apps(), tree.drained()]);
        (Self { tree: tree.clone(), drained: None, at: At::Root }, read)
    }

    /// # Errors
    /// What is stored is damaged, incomplete, or no answer to the last question.
    pub fn found(&mut self, found: Found) -> Result<Progress, LoadError> {
        match (std::mem::replace(&mut self.at, At::Root), found) {
            (At::Root, Found::Data(data)) => self.root(data),
            (At::Names, Found::Children(names)) => self.names(names),
            (At::Tables(ids), Found::Data(data)) => self.tables(ids, data),
            (At::Partitions(partitions), Found::Data(data)) => self.partitions(partitions, data),
            (at, found) => {
                let what = format!("{at:?} was asked for, {found:?} is no answer");
                Err(LoadError::content(&self.tree.apps(), what))
            }
        }
    }

    fn root(&mut self, data: Vec<Option<Datum>>) -> Result<Progress, LoadError> {
        let mut data = data.into_iter();
        let apps = data.next().flatten().map(|datum| datum.bytes).unwrap_or_default();
        self.drained = data.next().flatten();
        if let Some(text) = content::not_for_use(&apps) {
            return Err(LoadError::NotForUse { path: self.tree.apps(), text });
        }
        self.at = At::Names;
        Ok(Progress::Read(Read::Children(self.tree.apps())))
    }

    fn names(&mut self, names: Vec<String>) -> Result<Progress, LoadError> {
        let mut ids: Vec<AppId> = Vec::with_capacity(names.len());
        for name in names {
            let path = format!("{}/{name}", self.tree.apps());
            ids.push(name.parse().map_err(|_| LoadError::content(&path, "its name is no table id"))?);
        }
        ids.sort_unstable();
        let paths = ids.iter().map(|id| self.tree.app(*id)).collect();
        self.at = At::Tables(ids);
        Ok(Progress::Read(Read::Data(paths)))
    }

    fn tables(&mut self, ids: Vec<AppId>, data: Vec<Option<Datum>>) -> Result<Progress, LoadError> {
        let mut tables = Vec::with_capacity(ids.len());
        let mut gpids: VecDeque<Gpid> = VecDeque::new();
        for (app_id, datum) in ids.into_iter().zip(data) {
            let path = self.tree.app(app_id);
            let datum = datum.ok_or_else(|| LoadError::Missing(path.clone()))?;
            let info = content::decode_app(&datum.bytes).map_err(|error| LoadError::content(&path, error))?;
            if info.app_id != app_id {
                return Err(LoadError::content(&path, format!("it says that it is table {}", info.app_id)));
            }
            let count = info.partition_count;
            if !(0..=MAX_PARTITION_COUNT).contains(&count) {
                return Err(LoadError::content(&path, format!("{count} partitions are impossible")));
            }
            gpids.extend((0..count).map(|index| Gpid::new(app_id, index)));
            tables.push((info, datum.version));
        }
        let stored = Vec::with_capacity(gpids.len());
        self.next_batch(Partitions { tables, asked: Vec::new(), rest: gpids, stored })
    }

    fn partitions(
        &mut self,
        mut partitions: Partitions,
        data: Vec<Option<Datum>>,
    ) -> Result<Progress, LoadError> {
        for (gpid, datum) in partitions.asked.iter().zip(data) {
            partitions.stored.push(datum.map(|datum| partition(&self.tree, *gpid, datum)).transpose()?);
        }
        self.next_batch(partitions)
    }

    fn next_batch(&mut self, mut partitions: Partitions) -> Result<Progress, LoadError> {
        let batch = partitions.rest.len().min(LOAD_BATCH);
        if batch == 0 {
            let mut ledger = ledger(partitions)?;
            if let Some(Datum { bytes, version }) = &self.drained {
                let bad = |error| LoadError::content(&self.tree.drained(), error);
                ledger.load_drained(content::decode_drained(bytes).map_err(bad)?, *version);
            }
            return Ok(Progress::Loaded(ledger));
        }
        partitions.asked = partitions.rest.drain(..batch).collect();
        let paths = partitions.asked.iter().map(|gpid| self.tree.partition(*gpid)).collect();
        self.at = At::Partitions(partitions);
        Ok(Progress::Read(Read::Data(paths)))
    }
}

fn ledger(partitions: Partitions) -> Result<Ledger, LoadError> {
    let mut stored = partitions.stored.into_iter();
    let mut ledger = Ledger::default();
    for (info, version) in partitions.tables {
        let count = usize::try_from(info.partition_count).unwrap_or(0);
        let partitions = stored.by_ref().take(count).collect();
        ledger.load((info, version), partitions).map_err(LoadError::Missing)?;
    }
    Ok(ledger)
}

fn partition(tree: &Tree, gpid: Gpid, datum: Datum) -> Result<(PartitionConfig, Version), LoadError> {
    let path = tree.partition(gpid);
    let config = content::decode_partition(&datum.bytes).map_err(|error| LoadError::content(&path, error))?;
    if config.gpid != gpid {
        return Err(LoadError::content(&path, format!("it says that it is partition {}", config.gpid)));
    }
    Ok((config, datum.version))
}

pub fn op(tree: &Tree, write: &Write) -> Op {
    let (path, bytes) = match &write.entry {
        Entry::App(info) => (tree.app(info.app_id), content::encode_app(info)),
        Entry::Partition(config) => (tree.partition(config.gpid), content::encode_partition(config)),
        Entry::Drained(nodes) => (tree.drained(), content::encode_drained(nodes)),
    };
    match write.over {
        Some(version) => Op::set(path, bytes, version),
        None => Op::create(path, bytes),
    }
}

/// Writes with their operations, cut into multis in their order.
pub fn chunks(tree: &Tree, writes: Vec<Write>) -> Vec<(Vec<Write>, Vec<Op>)> {
    let multis = multis(writes.iter().map(|write| op(tree, write)));
    let mut writes = writes.into_iter();
    multis.into_iter().map(|ops| (writes.by_ref().take(ops.len()).collect(), ops)).collect()
}
