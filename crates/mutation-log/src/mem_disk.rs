//! A disk in memory that loses what was not synced and fails on demand; for tests, here and in the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, LogFile};

/// Cheap to clone; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    /// As of the last `sync_dir`.
    durable_names: BTreeMap<String, usize>,
    inodes: Vec<Inode>,
    faults: Faults,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What readers see.
    data: Vec<u8>,
    /// As of the last sync.
    durable: Vec<u8>,
    /// Since then, in order.
    writes: Vec<(usize, Vec<u8>)>,
    /// Sectors that cannot be read any more.
    unreadable: BTreeSet<usize>,
}

/// What a disk loses or spoils at a time.
pub const SECTOR: usize = 512;

/// What the disk is to do wrong from now on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Every write fails with EIO.
    pub fail_writes: bool,
    /// Every fsync of a file fails, and what it should have made durable never becomes so unless it is written again.
    pub fail_syncs: bool,
    /// Files cannot grow and none can be made: of a write that would, half is written.
    pub full: bool,
    /// Writes that would make the files longer in sum fail with ENOSPC, after having filled the rest.
    pub capacity: Option<usize>,
}

impl MemDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn faults(&self) -> Faults {
        self.state().faults
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The machine stops. Of each write that was not synced, in order, `keep` says how many of its `len` bytes
    /// reached the disk; of names, that a created or removed one did when `keep(0)` is not 0.
    pub fn crash(&self, mut keep: impl FnMut(usize) -> usize) {
        let mut state = self.state();
        let State { names, durable_names, inodes, .. } = &mut *state;
        let mut after = durable_names.clone();
        let all: Vec<String> = names.keys().chain(durable_names.keys()).cloned().collect();
        for name in all {
            if names.get(&name) != durable_names.get(&name) && keep(0) != 0 {
                match names.get(&name) {
                    Some(inode) => after.insert(name, *inode),
                    None => after.remove(&name),
                };
            }
        }
        for inode in inodes.iter_mut() {
            for (at, bytes) in std::mem::take(&mut inode.writes) {
                let kept = keep(bytes.len()).min(bytes.len());
                overwrite(&mut inode.durable, at, &bytes[..kept]);
            }
            inode.data.clone_from(&inode.durable);
        }
        names.clone_from(&after);
        *durable_names = after;
    }

    /// A copy of the disk as readers see it, everything of it durable: what a killed process leaves behind.
    pub fn snapshot(&self) -> Self {
        let state = self.state();
        let mut copy =
            State { names: state.names.clone(), durable_names: state.names.clone(), ..State::default() };
        copy.inodes = state
            .inodes
            .iter()
            .map(|i| Inode { durable: i.data.clone(), writes: Vec::new(), ..i.clone() })
            .collect();
        Self { state: Arc::new(Mutex::new(copy)) }
    }

    /// Changes a file's bytes behind everybody's back, durably. Nothing happens when there is no such file.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        if let Some(inode) = state.names.get(name).copied() {
            let inode = &mut state.inodes[inode];
            change(&mut inode.data);
            inode.durable.clone_from(&inode.data);
            inode.writes.clear();
        }
    }

    /// The sector that holds this byte cannot be read until it is written again.
    pub fn spoil(&self, name: &str, at: usize) {
        let mut state = self.state();
        if let Some(inode) = state.names.get(name).copied() {
            state.inodes[inode].unreadable.insert(at / SECTOR * SECTOR);
        }
    }

    /// Names of all files, with how long they are.
    pub fn lens(&self) -> Vec<(String, usize)> {
        let state = self.state();
        state.names.iter().map(|(name, inode)| (name.clone(), state.inodes[*inode].data.len())).collect()
    }

    /// Bytes of a file, empty when there is none.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.names.get(name).map(|i| state.inodes[*i].data.clone()).unwrap_or_default()
    }
}

impl Inode {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.unreadable.retain(|sector| sector + SECTOR <= at || *sector >= end);
        overwrite(&mut self.data, at, bytes);
        self.writes.push((at, bytes.to_vec()));
    }
}

fn overwrite(data: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let end = at + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[at..end].copy_from_slice(bytes);
}

impl Disk for MemDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.faults.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(name.to_owned(), inode);
        Ok(Arc::new(MemFile { disk: self.clone(), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let inode = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemFile { disk: self.clone(), inode }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.durable_names = state.names.clone();
        Ok(())
    }
}

#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    inode: usize,
}

impl LogFile for MemFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let faults = state.faults;
        if faults.fail_writes {
            return Err(io::Error::other("injected write failure"));
        }
        let used: usize = state.names.values().map(|i| state.inodes[*i].data.len()).sum();
        let inode = &mut state.inodes[self.inode];
        let at = usize::try_from(offset).expect("memory is smaller than the address space");
        let grows = (at + bytes.len()).saturating_sub(inode.data.len());
        let over = match faults.capacity {
            _ if faults.full && grows > 0 => bytes.len().div_ceil(2),
            Some(capacity) => (used + grows).saturating_sub(capacity).min(bytes.len()),
            None => 0,
        };
        inode.write(at, &bytes[..bytes.len() - over]);
        if over > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let Inode { data, unreadable, .. } = &state.inodes[self.inode];
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        if unreadable.range(at.saturating_sub(SECTOR - 1)..end).next().is_some() {
            return Err(io::Error::other("injected read error"));
        }
        buf.copy_from_slice(data.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].data.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        let len = usize::try_from(len).map_err(io::Error::other)?;
        inode.data.truncate(len);
        // Durable at once: whether a cut survives is not what these tests are about.
        inode.durable.truncate(len);
        for (at, bytes) in &mut inode.writes {
            bytes.truncate(len.saturating_sub(*at));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.faults.fail_syncs {
            // As Linux does it: the pages count as clean from now on.
            state.inodes[self.inode].writes.clear();
            return Err(io::Error::other("injected fsync failure"));
        }
        let inode = &mut state.inodes[self.inode];
        for (at, bytes) in std::mem::take(&mut inode.writes) {
            overwrite(&mut inode.durable, at, &bytes);
        }
        Ok(())
    }
}
