//! A disk that forgets what was not synced, for the log of `pegasus_mutation_log`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pegasus_mutation_log::{Disk, LogFile};

use crate::dice::Dice;

/// Cheap to clone; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    /// As of the last `sync_dir`.
    durable_names: BTreeMap<String, usize>,
    files: Vec<Contents>,
    fail_syncs: bool,
    full: bool,
}

/// What a disk loses or spoils at a time.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Contents {
    data: Vec<u8>,
    /// What the writes since the last sync have replaced, oldest first.
    undo: Vec<Undo>,
    /// Sectors that cannot be read any more.
    unreadable: BTreeSet<usize>,
}

#[derive(Debug)]
struct Undo {
    offset: usize,
    replaced: Vec<u8>,
    len_before: usize,
    len: usize,
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every fsync fails, until the next start.
    pub fn break_syncs(&self) {
        self.state().fail_syncs = true;
    }

    pub fn repair(&self) {
        self.state().fail_syncs = false;
    }

    /// No space is left, or there is some again.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Something that was written comes back otherwise: a bit, a sector of zeros, or a sector that cannot be read.
    /// Gives what, or None when there is nothing to spoil.
    pub fn damage(&self, dice: &mut Dice) -> Option<String> {
        let mut state = self.state();
        let State { names, files, .. } = &mut *state;
        let written: Vec<_> = names.iter().filter(|(_, file)| !files[**file].data.is_empty()).collect();
        let (name, file) = dice.pick(&written).map(|(name, file)| ((*name).clone(), **file))?;
        let contents = &mut files[file];
        let at = usize::try_from(dice.below(contents.data.len() as u64)).ok()?;
        let sector = at / SECTOR * SECTOR;
        let end = (sector + SECTOR).min(contents.data.len());
        let what = match dice.below(3) {
            0 => {
                contents.data[at] ^= 1 << dice.below(8);
                format!("a bit of {name} at {at}")
            }
            1 => {
                contents.data[sector..end].fill(0);
                format!("zeros in {name} at {sector}")
            }
            _ => {
                contents.unreadable.insert(sector);
                format!("{name} cannot be read at {sector}")
            }
        };
        Some(what)
    }

    /// The machine loses power: each write that was not synced reaches the disk whole, in part, or not at all.
    pub fn lose_power(&self, dice: &mut Dice) {
        let mut state = self.state();
        let State { names, durable_names, files, .. } = &mut *state;
        for file in files.iter_mut() {
            file.lose_power(dice);
        }
        let all: Vec<String> = names.keys().chain(durable_names.keys()).cloned().collect();
        let mut after = durable_names.clone();
        for name in all {
            if names.get(&name) != durable_names.get(&name) && dice.permille(500) {
                match names.get(&name) {
                    Some(file) => after.insert(name, *file),
                    None => after.remove(&name),
                };
            }
        }
        names.clone_from(&after);
        *durable_names = after;
    }
}

impl Contents {
    fn lose_power(&mut self, dice: &mut Dice) {
        let mut written = Vec::new();
        while let Some(undo) = self.undo.pop() {
            let end = undo.offset + undo.len;
            written.push((undo.offset, self.data[undo.offset..end].to_vec()));
            self.data[undo.offset..undo.offset + undo.replaced.len()].copy_from_slice(&undo.replaced);
            self.data.truncate(undo.len_before);
        }
        for (offset, bytes) in written.into_iter().rev() {
            let kept = match dice.below(3) {
                0 => 0,
                1 => bytes.len(),
                _ => usize::try_from(dice.below(bytes.len() as u64)).unwrap_or(0),
            };
            self.overwrite(offset, &bytes[..kept]);
        }
    }

    fn overwrite(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if bytes.is_empty() {
            return;
        }
        // A sector that is written is replaced.
        self.unreadable.retain(|sector| sector + SECTOR <= offset || *sector >= end);
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(bytes);
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let len_before = self.data.len();
        let end = (offset + bytes.len()).min(len_before);
        let replaced = self.data.get(offset..end).unwrap_or_default().to_vec();
        self.overwrite(offset, bytes);
        self.undo.push(Undo { offset, replaced, len_before, len: bytes.len() });
    }
}

fn usize_of(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut state = self.state();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.files.len();
        state.files.push(Contents::default());
        state.names.insert(name.to_owned(), file);
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = *self.state().names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.durable_names = state.names.clone();
        let mut used = vec![false; state.files.len()];
        for file in state.names.values() {
            used[*file] = true;
        }
        for (file, _) in used.iter().enumerate().filter(|(_, used)| !**used) {
            // Nobody can open it any more; handles that are open read nothing of it here.
            state.files[file] = Contents::default();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl LogFile for SimFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let (full, file) = (state.full, &mut state.files[self.file]);
        let at = usize_of(offset)?;
        if full && at + bytes.len() > file.data.len() {
            // What still fits is written.
            file.write(at, &bytes[..bytes.len() / 2]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write(at, bytes);
        Ok(())
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let at = usize_of(offset)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut spoilt = state.files[self.file].unreadable.range(at.saturating_sub(SECTOR - 1)..end);
        if spoilt.next().is_some() {
            return Err(io::Error::other("injected read error"));
        }
        buf.copy_from_slice(state.files[self.file].data.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].data.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let file = &mut state.files[self.file];
        // Durable at once, with all before it: recovery cuts only what it has read.
        file.undo.clear();
        file.data.truncate(usize_of(len)?);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.fail_syncs {
            return Err(io::Error::other("injected fsync failure"));
        }
        state.files[self.file].undo.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_no_more_and_a_bad_sector_is_good_again_when_written() {
        let disk = SimDisk::default();
        let file = disk.create("a").unwrap();
        file.write_all_at(0, &[7; 2_000]).unwrap();
        disk.set_full(true);
        assert_eq!(file.write_all_at(1_990, &[1; 20]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.create("b").unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_all_at(0, &[1; 20]).unwrap();
        disk.set_full(false);
        let mut found = BTreeSet::new();
        for seed in 0..20 {
            let what = disk.damage(&mut Dice::new(seed)).unwrap();
            found.extend(["bit", "zeros", "cannot be read"].into_iter().filter(|kind| what.contains(kind)));
        }
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(file.read_exact_at(0, &mut [0; 2_000]).is_err());
        let len = usize::try_from(file.len().unwrap()).unwrap();
        file.write_all_at(0, &vec![0; len]).unwrap();
        file.read_exact_at(0, &mut vec![0; len]).unwrap();
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_be_torn() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::default();
            let file = disk.create("a").unwrap();
            file.write_all_at(0, b"synced").unwrap();
            file.sync().unwrap();
            disk.sync_dir().unwrap();
            file.write_all_at(3, b"lost, perhaps").unwrap();
            disk.create("b").unwrap();
            disk.lose_power(&mut Dice::new(seed));
            let file = disk.open("a").unwrap();
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_exact_at(0, &mut bytes).unwrap();
            let whole = b"synlost, perhaps";
            let kept = bytes.iter().zip(whole).skip(3).take_while(|(a, b)| a == b).count();
            assert!(bytes.len() >= 6 && bytes[..3] == *b"syn");
            torn += usize::from(kept > 0 && kept < 13);
        }
        assert!(torn > 5, "{torn}");
    }
}
