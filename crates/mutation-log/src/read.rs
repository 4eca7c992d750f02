//! Reading the log, and saying what is still needed of it.

use std::sync::Arc;

use bytes::Bytes;
use pegasus_types::{Ballot, Decree, Gpid, LogLocation, Mutation};

use crate::catalog::{House, Pin};
use crate::disk::LogFile;
use crate::error::{LogError, Lost};
use crate::format::{CopyKey, RECORD_HEADER_LEN, RecordHeader};
use crate::stats::LogStats;
use crate::{Record, export};

/// Cheap to clone; every method may be called from any thread and waits for no fsync.
#[derive(Clone, Debug)]
pub struct Records {
    house: Arc<House>,
}

impl Records {
    pub(crate) fn new(house: Arc<House>) -> Self {
        Self { house }
    }

    /// The records of one copy with a decree above `from` (what its engine has made durable), in decree order;
    /// where a decree was logged more than once, the last one, which has the highest ballot.
    ///
    /// `Damaged` when records above `from` are lost: quarantine the copy, then [`forget`](Self::forget) it.
    pub fn replay(&self, gpid: Gpid, copy_id: u64, from: Decree) -> Result<Replay, LogError> {
        let key = CopyKey { gpid, copy_id };
        let mut catalog = self.house.lock();
        let unsettled = catalog.unsettled;
        let Some(copy) = catalog.copies.get_mut(&key) else {
            if unsettled {
                return Err(LogError::Damaged { gpid, lost: Lost::Unknown });
            }
            return Ok(Replay::new(Arc::clone(&self.house), gpid, from, Decree::ZERO, Vec::new()));
        };
        copy.claimed = true;
        match copy.lost {
            Some(Lost::UpTo(lost)) if lost <= from => {}
            Some(lost) => return Err(LogError::Damaged { gpid, lost }),
            None => {}
        }
        // A copy's decrees have no holes, so neither has what its engine still lacks.
        let mut reached = from;
        let mut places = Vec::new();
        for (decree, location) in copy.index.range(from.next()..) {
            if *decree != reached.next() {
                break;
            }
            reached = *decree;
            places.push(*location);
        }
        if reached < copy.highest {
            return Err(LogError::Damaged { gpid, lost: Lost::UpTo(copy.highest) });
        }
        Ok(Replay::new(Arc::clone(&self.house), gpid, from, copy.committed, places))
    }

    /// Mutations `from..=to` of a copy without a gap, each with the ballot under which it was logged, as far as
    /// they go into `max_bytes` of bodies (at least one). `LogGone` when `from` itself is not there.
    pub fn read_range(
        &self,
        gpid: Gpid,
        copy_id: u64,
        from: Decree,
        to: Decree,
        max_bytes: usize,
    ) -> Result<Vec<(Ballot, Mutation)>, LogError> {
        let mut places = Vec::new();
        {
            let catalog = self.house.lock();
            let copy = catalog.copies.get(&CopyKey { gpid, copy_id });
            let (mut expected, mut bytes) = (from, 0);
            if let Some(copy) = copy.filter(|_| from <= to) {
                for (decree, location) in copy.index.range(from..=to) {
                    bytes += location.len as usize;
                    if *decree != expected || (bytes > max_bytes && !places.is_empty()) {
                        break;
                    }
                    places.push(*location);
                    expected = expected.next();
                }
            }
        }
        if places.is_empty() {
            return Err(LogError::LogGone { gpid, from });
        }
        Replay::new(Arc::clone(&self.house), gpid, from, Decree::ZERO, places)
            .map(|read| read.map(|(record, _)| (record.ballot, record.mutation)))
            .collect()
    }

    /// Decrees that the log holds of a copy, lowest and highest; for the choice between log and rows when
    /// somebody learns. None = no records.
    pub fn held(&self, gpid: Gpid, copy_id: u64) -> Option<(Decree, Decree)> {
        let catalog = self.house.lock();
        let index = &catalog.copies.get(&CopyKey { gpid, copy_id })?.index;
        Some((*index.first_key_value()?.0, *index.last_key_value()?.0))
    }

    /// The copy's engine is durable up to `durable`: its records at or below are not needed for replay.
    /// Never goes back.
    pub fn set_needed_from(&self, gpid: Gpid, copy_id: u64, durable: Decree) {
        self.house.lock().set_needed_from(CopyKey { gpid, copy_id }, durable);
        self.house.collect();
    }

    /// The ids of all copies of a partition that have records here.
    pub fn copies(&self, gpid: Gpid) -> Vec<u64> {
        let catalog = self.house.lock();
        catalog.copies.keys().filter(|key| key.gpid == gpid).map(|key| key.copy_id).collect()
    }

    /// The owner of these records is here, although it may not be able to read them now:
    /// [`recovery_done`](crate::MutationLog::recovery_done) does not take them for left-overs.
    pub fn keep(&self, gpid: Gpid, copy_id: u64) {
        if let Some(copy) = self.house.lock().copies.get_mut(&CopyKey { gpid, copy_id }) {
            copy.claimed = true;
        }
    }

    /// The copy is gone for good (dropped, or quarantined after [`export`](Self::export)): nothing of it is
    /// needed, and what is still queued of it will not be found again.
    pub fn forget(&self, gpid: Gpid, copy_id: u64) {
        self.house.lock().forget(CopyKey { gpid, copy_id });
        self.house.collect();
    }

    /// Keeps the records of a copy from decree `from` on, and all later segments, until dropped. A `from` just
    /// above the last record keeps what comes.
    pub fn pin(&self, gpid: Gpid, copy_id: u64, from: Decree) -> Result<Pin, LogError> {
        let key = CopyKey { gpid, copy_id };
        let mut catalog = self.house.lock();
        let index = catalog.copies.get(&key).map(|c| &c.index);
        let highest = index.and_then(|i| Some(*i.last_key_value()?.0)).unwrap_or_default();
        if from <= highest && !index.is_some_and(|i| i.contains_key(&from)) {
            return Err(LogError::LogGone { gpid, from });
        }
        let holds = |(number, segment): (&u64, &crate::catalog::Segment)| {
            segment.copies.get(&key).is_some_and(|h| *h >= from).then_some(*number)
        };
        let number = catalog.segments.iter().find_map(holds).unwrap_or(catalog.active);
        catalog.pin(number);
        Ok(Pin::new(Arc::clone(&self.house), number))
    }

    /// So many bytes of the newest segments are kept although nobody needs them any more: a member that comes back
    /// before they have been written again finds what it missed here. 0 at the beginning. Each record that is kept
    /// costs some 50 bytes of memory.
    pub fn set_reserve(&self, bytes: u64) {
        self.house.lock().set_reserve(bytes);
        self.house.collect();
    }

    /// The copies that keep the oldest segment, each with the decree up to which it would have to be durable
    /// to let it go. Empty while there is one segment only.
    pub fn blockers(&self) -> Vec<(Gpid, u64, Decree)> {
        let catalog = self.house.lock();
        let Some((_, segment)) = catalog.oldest() else { return Vec::new() };
        catalog.needers(segment).into_iter().map(|(key, decree)| (key.gpid, key.copy_id, decree)).collect()
    }

    /// Copies all records of a copy that can still be read into a new file, for its quarantine directory, and
    /// returns how many. The file is a segment of a log of its own and durable on return. One that is there, from an
    /// attempt that came to no end, is replaced.
    pub fn export(&self, gpid: Gpid, copy_id: u64, to: &std::path::Path) -> Result<usize, LogError> {
        self.export_after(gpid, copy_id, Decree::ZERO, to)
    }

    /// As [`export`](Self::export), without the records at or below `from`.
    pub fn export_after(
        &self,
        gpid: Gpid,
        copy_id: u64,
        from: Decree,
        to: &std::path::Path,
    ) -> Result<usize, LogError> {
        let key = CopyKey { gpid, copy_id };
        let places = match self.house.lock().copies.get(&key) {
            Some(copy) => copy.index.range(from.next()..).map(|(_, place)| *place).collect(),
            None => Vec::new(),
        };
        let records = Replay::new(Arc::clone(&self.house), gpid, from, Decree::ZERO, places);
        export::write(to, copy_id, records.filter_map(Result::ok).map(|(record, _)| record))
    }

    pub fn stats(&self) -> LogStats {
        let catalog = self.house.lock();
        LogStats {
            segments: catalog.segments.len(),
            bytes: catalog.bytes(),
            broken: catalog.broken.as_deref().map(str::to_owned),
            ..catalog.stats.clone()
        }
    }

    /// See [`MutationLog::recovery_done`](crate::MutationLog::recovery_done). True = the writer has to make
    /// the news durable.
    pub(crate) fn settle(&self) -> bool {
        let mut catalog = self.house.lock();
        let unclaimed: Vec<_> = catalog.copies.iter().filter(|(_, c)| !c.claimed).map(|(k, _)| *k).collect();
        for key in &unclaimed {
            tracing::info!(gpid = %key.gpid, copy = key.copy_id, "records of a copy that is no longer here");
            catalog.forget(*key);
        }
        let news = catalog.unsettled || catalog.has_forgotten();
        catalog.unsettled = false;
        catalog.wants_roll |= news;
        drop(catalog);
        self.house.collect();
        news
    }
}

/// Iterator over records and where their bodies lie. Holds no lock between records; a record whose segment has
/// been removed meanwhile reads as `LogGone`.
#[derive(Debug)]
pub struct Replay {
    house: Arc<House>,
    gpid: Gpid,
    from: Decree,
    committed: Decree,
    places: std::vec::IntoIter<LogLocation>,
    file: Option<(u64, Arc<dyn LogFile>, u32)>,
    buf: Vec<u8>,
}

impl Replay {
    pub(crate) fn new(
        house: Arc<House>,
        gpid: Gpid,
        from: Decree,
        committed: Decree,
        places: Vec<LogLocation>,
    ) -> Self {
        Self { house, gpid, from, committed, places: places.into_iter(), file: None, buf: Vec::new() }
    }

    /// Highest commit point that any record of the copy tells.
    pub fn committed(&self) -> Decree {
        self.committed
    }

    fn read(&mut self, place: LogLocation) -> Result<Record, LogError> {
        if self.file.as_ref().is_none_or(|(number, ..)| *number != place.segment) {
            let gone = LogError::LogGone { gpid: self.gpid, from: self.from };
            let (file, seed) = self.house.lock().file(place.segment).ok_or(gone)?;
            self.file = Some((place.segment, file, seed));
        }
        let (_, file, seed) = self.file.as_ref().expect("set above");
        read_record(&**file, *seed, place, &mut self.buf)
    }
}

impl Iterator for Replay {
    type Item = Result<(Record, LogLocation), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.places.next()?;
        Some(self.read(place).map(|record| (record, place)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

impl ExactSizeIterator for Replay {}

/// Reads one record and verifies header and body.
pub(crate) fn read_record(
    file: &dyn LogFile,
    seed: u32,
    place: LogLocation,
    buf: &mut Vec<u8>,
) -> Result<Record, LogError> {
    let bad = LogError::BadRecord { segment: place.segment, offset: place.offset };
    let Some(start) = place.offset.checked_sub(RECORD_HEADER_LEN as u64) else { return Err(bad) };
    buf.resize(RECORD_HEADER_LEN + place.len as usize, 0);
    if let Err(error) = file.read_exact_at(start, buf) {
        tracing::warn!(segment = place.segment, offset = start, %error, "cannot read the log");
        return Err(bad);
    }
    let header = RecordHeader::decode(buf, seed, start).ok_or_else(|| bad.clone())?;
    let body = &buf[RECORD_HEADER_LEN..];
    if header.body_len != place.len || !header.body_matches(body) {
        return Err(bad);
    }
    Ok(header.into_record(Bytes::copy_from_slice(body)))
}
