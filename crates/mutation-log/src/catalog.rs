//! What is in the log and who still needs it. Shared by the writer and all readers; held only for lookups.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pegasus_types::{Decree, LogLocation};

use crate::disk::{Disk, LogFile};
use crate::error::{LogError, Lost};
use crate::format::{CopyKey, Position, seed, segment_name};
use crate::stats::LogStats;

/// The catalog, and the bell that tells the keeper of new chores.
#[derive(Debug)]
pub(crate) struct House {
    catalog: Mutex<Catalog>,
    pub chores: Condvar,
    pub disk: Arc<dyn Disk>,
}

impl House {
    pub fn new(catalog: Catalog, disk: Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Self { catalog: Mutex::new(catalog), chores: Condvar::new(), disk })
    }

    pub fn lock(&self) -> MutexGuard<'_, Catalog> {
        // Every critical section leaves the catalog consistent before anything that could panic.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what nobody needs any more and rings the keeper when there is something to do.
    pub fn collect(&self) {
        let mut catalog = self.lock();
        catalog.collect();
        if catalog.has_chores() {
            self.chores.notify_all();
        }
    }

    /// Runs one chore; false when there was none, or it failed and is to be tried later.
    pub fn do_chore(&self) -> bool {
        let Some(chore) = self.lock().next_chore() else { return false };
        match chore {
            Chore::Sync { number, file, len } => match file.sync() {
                Ok(()) => self.lock().synced(Position { segment: number, offset: len }),
                Err(error) => {
                    self.lock().set_broken(&format!("fsync of segment {number}: {error}"));
                }
            },
            Chore::Remove { number } => {
                // Oldest first and each durably: a hole in the middle would look like a lost segment.
                let removed = self.disk.remove(&segment_name(number)).and_then(|()| self.disk.sync_dir());
                if let Err(error) = removed {
                    tracing::warn!(segment = number, %error, "cannot remove a log segment, will try again");
                    let mut catalog = self.lock();
                    catalog.doomed.push_front(number);
                    catalog.remove_failed = true;
                    return false;
                }
            }
        }
        true
    }
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub file: Arc<dyn LogFile>,
    pub bytes: u64,
    /// Highest decree of each copy that has records here.
    pub copies: BTreeMap<CopyKey, Decree>,
}

#[derive(Debug, Default)]
pub(crate) struct CopyIndex {
    pub index: BTreeMap<Decree, LogLocation>,
    /// None = nobody has said yet: everything is needed.
    pub needed_from: Option<Decree>,
    /// Its last record in decree order, also when it is no longer in the log.
    pub highest: Decree,
    /// Highest commit point that any of its records told.
    pub committed: Decree,
    pub lost: Option<Lost>,
    /// Somebody has asked for it, or written, since the log was opened.
    pub claimed: bool,
}

/// One published record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub copy: CopyKey,
    pub decree: Decree,
    pub cuts: bool,
    pub committed: Decree,
    pub location: LogLocation,
}

pub(crate) enum Chore {
    Sync { number: u64, file: Arc<dyn LogFile>, len: u64 },
    Remove { number: u64 },
}

#[derive(Debug)]
pub(crate) struct Catalog {
    pub log_id: u64,
    pub segments: BTreeMap<u64, Segment>,
    /// 0 while there is none, see [`LogCore::open`](crate::LogCore::open).
    pub active: u64,
    pub copies: BTreeMap<CopyKey, CopyIndex>,
    /// Up to here the log is synced.
    pub mark: Position,
    /// A copy without any record may have lost some (see `recovery`).
    pub unsettled: bool,
    /// The writer is asked to begin a segment, to make the roster's news durable.
    pub wants_roll: bool,
    pub broken: Option<Arc<str>>,
    pub stats: LogStats,
    /// Kept for the life of the process: appends under way must not bring a forgotten copy back.
    forgotten: BTreeSet<CopyKey>,
    pins: BTreeMap<u64, usize>,
    /// So much of the log is kept although nobody needs it.
    reserve_bytes: u64,
    /// Closed segments that are not synced yet, in order.
    pub to_sync: VecDeque<u64>,
    doomed: VecDeque<u64>,
    remove_failed: bool,
}

impl Catalog {
    pub fn new(log_id: u64) -> Self {
        Self {
            log_id,
            segments: BTreeMap::new(),
            active: 0,
            copies: BTreeMap::new(),
            mark: Position::default(),
            unsettled: false,
            wants_roll: false,
            broken: None,
            stats: LogStats::default(),
            forgotten: BTreeSet::new(),
            pins: BTreeMap::new(),
            reserve_bytes: 0,
            to_sync: VecDeque::new(),
            doomed: VecDeque::new(),
            remove_failed: false,
        }
    }

    /// Publishes records of one segment. Those of one copy mostly come together, and are looked up together: readers
    /// wait for this.
    pub fn insert(&mut self, entries: &[Entry]) {
        for run in entries.chunk_by(|a, b| a.copy == b.copy) {
            self.insert_run(run[0].copy, run);
        }
    }

    fn insert_run(&mut self, key: CopyKey, run: &[Entry]) {
        if self.forgotten.contains(&key) {
            return;
        }
        let copy = self.copies.entry(key).or_default();
        // A copy without records is written before anybody has asked for it.
        copy.claimed = true;
        let mut top = Decree::ZERO;
        for entry in run {
            if entry.cuts {
                copy.index.split_off(&entry.decree);
                copy.highest = entry.decree;
            }
            copy.index.insert(entry.decree, entry.location);
            copy.highest = copy.highest.max(entry.decree);
            copy.committed = copy.committed.max(entry.committed);
            top = top.max(entry.decree);
        }
        let segment = self.segments.get_mut(&run[0].location.segment);
        let segment = segment.expect("segments outlive the publication of their records");
        let highest = segment.copies.entry(key).or_default();
        *highest = (*highest).max(top);
    }

    /// A segment that has just been created becomes the one that is written.
    pub fn adopt(&mut self, file: &Arc<dyn LogFile>, number: u64, bytes: u64) {
        self.active = number;
        self.segments.insert(number, Segment { file: Arc::clone(file), bytes, copies: BTreeMap::new() });
    }

    /// A record that was needed cannot be read.
    pub fn lose(&mut self, key: CopyKey, decree: Decree) {
        if let Some(copy) = self.copies.get_mut(&key) {
            Lost::UpTo(decree).add_to(&mut copy.lost);
        }
    }

    /// The file of a segment with the seed of its checksums.
    pub fn file(&self, number: u64) -> Option<(Arc<dyn LogFile>, u32)> {
        Some((Arc::clone(&self.segments.get(&number)?.file), seed(self.log_id, number)))
    }

    pub fn is_forgotten(&self, copy: &CopyKey) -> bool {
        self.forgotten.contains(copy)
    }

    pub fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    pub fn forget(&mut self, key: CopyKey) {
        self.copies.remove(&key);
        self.forgotten.insert(key);
    }

    pub fn set_needed_from(&mut self, key: CopyKey, durable: Decree) {
        let copy = self.copies.entry(key).or_default();
        copy.claimed = true;
        if copy.needed_from.is_none_or(|known| known < durable) {
            copy.needed_from = Some(durable);
        }
        if matches!(copy.lost, Some(Lost::UpTo(lost)) if lost <= durable) {
            copy.lost = None;
        }
    }

    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.bytes).sum()
    }

    /// Who holds this segment, and up to which decree.
    pub fn needers(&self, segment: &Segment) -> Vec<(CopyKey, Decree)> {
        let needs = |(key, highest): (&CopyKey, &Decree)| {
            // Records above the copy's own highest have been cut off.
            let needed = self
                .copies
                .get(key)
                .is_some_and(|c| c.needed_from.is_none_or(|n| (*highest).min(c.highest) > n));
            needed.then_some((*key, *highest))
        };
        segment.copies.iter().filter_map(needs).collect()
    }

    pub fn oldest(&self) -> Option<(u64, &Segment)> {
        // The newest stays, also while the disk is too full to begin another: its roster is the one that counts.
        self.segments.first_key_value().map(|(n, s)| (*n, s)).filter(|_| self.segments.len() > 1)
    }

    pub fn pinned(&self, number: u64) -> bool {
        self.pins.first_key_value().is_some_and(|(lowest, _)| *lowest <= number)
    }

    /// Only ever the oldest segments: then a number that is missing in the middle is a loss.
    fn collect(&mut self) {
        while let Some((number, segment)) = self.oldest() {
            if self.pinned(number)
                || self.bytes() - segment.bytes < self.reserve_bytes
                || !self.needers(segment).is_empty()
            {
                return;
            }
            let segment = self.segments.remove(&number).expect("it was the oldest");
            self.drop_places(number, segment.copies);
            self.to_sync.retain(|n| *n != number);
            self.doomed.push_back(number);
            self.remove_failed = false;
        }
    }

    /// After its needed records have been appended again elsewhere.
    pub fn release(&mut self, number: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            let copies = std::mem::take(&mut segment.copies);
            // What was not needed was not moved.
            self.drop_places(number, copies);
        }
    }

    /// Takes a segment's records out of the index. Readers wait meanwhile, so only its own copies are looked at.
    fn drop_places(&mut self, number: u64, copies: BTreeMap<CopyKey, Decree>) {
        for (key, highest) in copies {
            let Some(copy) = self.copies.get_mut(&key) else { continue };
            let places = copy.index.range(..=highest).filter(|(_, location)| location.segment == number);
            let gone: Vec<_> = places.map(|(decree, _)| *decree).collect();
            for decree in gone {
                copy.index.remove(&decree);
            }
        }
    }

    /// Records of a segment that are still needed, in log order.
    pub fn needed_records(&self, number: u64) -> VecDeque<(CopyKey, Decree, LogLocation)> {
        let Some(segment) = self.segments.get(&number) else { return VecDeque::new() };
        let mut records = Vec::new();
        for (key, highest) in self.needers(segment) {
            let copy = &self.copies[&key];
            let after = copy.needed_from.map_or(Bound::Unbounded, Bound::Excluded);
            if copy.needed_from.is_some_and(|n| n >= highest) {
                continue;
            }
            for (decree, location) in copy.index.range((after, Bound::Included(highest))) {
                if location.segment == number {
                    records.push((key, *decree, *location));
                }
            }
        }
        records.sort_by_key(|(.., location)| location.offset);
        records.into()
    }

    pub fn set_reserve(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    pub fn pin(&mut self, number: u64) {
        *self.pins.entry(number).or_default() += 1;
    }

    fn unpin(&mut self, number: u64) {
        if let Some(count) = self.pins.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&number);
            }
        }
    }

    pub fn synced(&mut self, position: Position) {
        self.mark = self.mark.max(position);
        self.stats.syncs += 1;
    }

    pub fn set_broken(&mut self, why: &str) -> LogError {
        if self.broken.is_none() {
            tracing::error!(why, "the log is broken, nothing is acknowledged any more");
        }
        LogError::Broken(Arc::clone(self.broken.get_or_insert_with(|| Arc::from(why))))
    }

    pub fn has_chores(&self) -> bool {
        (!self.doomed.is_empty() && !self.remove_failed)
            || (!self.to_sync.is_empty() && self.broken.is_none())
    }

    fn next_chore(&mut self) -> Option<Chore> {
        if !self.has_chores() {
            return None;
        }
        if !self.remove_failed
            && let Some(number) = self.doomed.pop_front()
        {
            return Some(Chore::Remove { number });
        }
        let number = self.to_sync.pop_front()?;
        let segment = self.segments.get(&number)?;
        Some(Chore::Sync { number, file: Arc::clone(&segment.file), len: segment.bytes })
    }
}

/// Keeps a segment and all later ones. Dropped = released.
#[derive(Debug)]
pub struct Pin {
    house: Arc<House>,
    segment: u64,
}

impl Pin {
    /// The caller has counted it with [`Catalog::pin`].
    pub(crate) fn new(house: Arc<House>, segment: u64) -> Self {
        Self { house, segment }
    }

    pub fn segment(&self) -> u64 {
        self.segment
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.house.lock().unpin(self.segment);
        self.house.collect();
    }
}
