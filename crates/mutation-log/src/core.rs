//! The writing half of the log as a value: no threads, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use pegasus_types::{Decree, LogLocation};

use crate::catalog::{Catalog, Entry, House};
use crate::disk::{Disk, LogFile};
use crate::format::{
    self, BATCH_HEADER_LEN, BatchHeader, CopyKey, MAX_BODY_LEN, Position, RECORD_HEADER_LEN, RecordHeader,
    SEGMENT_HEADER_LEN, segment_name,
};
use crate::read::{Records, read_record};
use crate::recovery::{self, Recovered, RecoverySummary};
use crate::roster::{Roster, RosterEntry};
use crate::{Completion, Durability, LogError, LogOptions, Record};

/// Largest `segment_bytes`; the rest up to 4 GiB is room for one oversized batch.
const MAX_SEGMENT_BYTES: u64 = 2 << 30;
/// Largest append: places in a batch are 32 bits wide, and nobody who counts what he sends comes near it.
const MAX_APPEND_BYTES: usize = 1 << 30;

/// The log without threads: queue, one write, one sync. [`MutationLog`](crate::MutationLog) drives it from its
/// writer thread, the simulation calls it inline and may crash the disk between any two calls.
///
/// ```text
/// enqueue* -> write -> sync -> (completions)      again until is_idle; keep_house now and then
/// ```
#[derive(Debug)]
pub struct LogCore {
    options: LogOptions,
    house: Arc<House>,
    records: Records,
    queue: VecDeque<Append>,
    queued_bytes: usize,
    active: Active,
    next_number: u64,
    next_seq: u64,
    /// Checksum of the last batch that is not a roster.
    previous: u32,
    chains: BTreeMap<CopyKey, Chain>,
    /// Copies with a failed append: the lowest decree that is missing.
    holes: BTreeMap<CopyKey, Decree>,
    /// Written, not yet synced; only in sync mode.
    unsynced: Vec<Written>,
    moving: Option<Moving>,
    buf: Vec<u8>,
}

#[derive(Debug)]
struct Active {
    number: u64,
    file: Arc<dyn LogFile>,
    seed: u32,
    offset: u64,
    /// Nothing but the roster so far.
    fresh: bool,
}

impl Active {
    /// Stands for the segment that a full disk has no room for: whatever is to be written begins a real one.
    fn none() -> Self {
        Self { number: 0, file: Arc::new(NoFile), seed: 0, offset: u64::MAX / 2, fresh: false }
    }
}

/// What the next record of a copy has to tell of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub seq: u32,
    pub highest: Decree,
}

#[derive(Debug)]
struct Append {
    records: Vec<Record>,
    /// None = needed records of an old segment, appended again.
    token: Option<u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Written {
    token: Option<u64>,
    entries: Vec<Entry>,
}

/// The oldest segment is being emptied.
#[derive(Debug)]
struct Moving {
    segment: u64,
    todo: VecDeque<(CopyKey, Decree, LogLocation)>,
}

/// What a [`write`](LogCore::write) put on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    pub records: usize,
    pub bytes: usize,
}

impl Deref for LogCore {
    type Target = Records;
    fn deref(&self) -> &Records {
        &self.records
    }
}

impl LogCore {
    /// Recovers the log that is there. `log_id`: random, used only when there is none yet.
    ///
    /// A full disk is no reason to give up a log that can be read: it is opened without a segment to write, appends
    /// fail with `DiskFull` until one can be begun.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: LogOptions,
        log_id: u64,
    ) -> Result<(Self, RecoverySummary), LogError> {
        let options =
            LogOptions { segment_bytes: options.segment_bytes.clamp(4096, MAX_SEGMENT_BYTES), ..options };
        let Recovered { mut catalog, chains, next_number, next_seq, previous, empty, summary } =
            recovery::recover(&*disk, log_id, options.known, options.durability)?;
        let start = SegmentStart { number: next_number, next_seq, previous };
        let roster = roster_of(&catalog, &chains);
        let active = match create_segment(&*disk, log_id_and_mark(&catalog), &start, &roster) {
            Ok(active) => {
                catalog.adopt(&active.file, active.number, active.offset);
                if catalog.to_sync.is_empty() {
                    catalog.mark = Position { segment: active.number, offset: active.offset };
                }
                // Segments without records: only now, when the new roster is durable.
                for number in empty {
                    catalog.segments.remove(&number);
                    catalog.to_sync.retain(|n| *n != number);
                    disk.remove(&segment_name(number)).map_err(LogError::io("remove an empty segment"))?;
                }
                disk.sync_dir().map_err(LogError::io("sync the log's directory"))?;
                active
            }
            Err(CreateFailure::Full) if !summary.is_new => {
                tracing::error!(
                    "the disk is full: the log can be read, but takes nothing until there is room"
                );
                catalog.stats.disk_full = true;
                Active::none()
            }
            Err(failure) => return Err(failure.into_error(&mut catalog)),
        };
        let house = House::new(catalog, disk);
        let core = Self {
            options,
            records: Records::new(Arc::clone(&house)),
            house,
            queue: VecDeque::new(),
            queued_bytes: 0,
            next_number: next_number + 1,
            active,
            next_seq,
            previous,
            chains,
            holes: BTreeMap::new(),
            unsynced: Vec::new(),
            moving: None,
            buf: Vec::new(),
        };
        Ok((core, summary))
    }

    pub fn records(&self) -> &Records {
        &self.records
    }

    pub(crate) fn house(&self) -> &Arc<House> {
        &self.house
    }

    /// See [`MutationLog::append`](crate::MutationLog::append); the bound on the queue is the caller's.
    pub fn enqueue(&mut self, records: Vec<Record>, token: u64) {
        let bytes = records.iter().map(|r| r.mutation.body.len() + RECORD_HEADER_LEN).sum();
        self.queued_bytes += bytes;
        self.queue.push_back(Append { records, token: Some(token), bytes });
    }

    /// Of appends that no `write` has taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Nothing to write and nothing to sync.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.unsynced.is_empty() && self.moving.is_none()
    }

    /// Writes one batch of what is queued. Pushes the completions of what failed, and in page_cache mode those
    /// of what was written; in sync mode these come from [`sync`](Self::sync).
    pub fn write(&mut self, done: &mut Vec<Completion>) -> Appended {
        let (broken, wants_roll) = {
            let mut catalog = self.house.lock();
            (catalog.broken.clone(), std::mem::take(&mut catalog.wants_roll))
        };
        if let Some(why) = broken {
            self.fail_everything(&LogError::Broken(why), done);
            return Appended::default();
        }
        if wants_roll && let Err(error) = self.roll(done) {
            tracing::warn!(%error, "cannot begin a segment");
        }
        if self.moving.is_some() {
            self.move_some(done);
        }
        let (appends, bytes) = self.take_batch(done);
        if appends.is_empty() { Appended::default() } else { self.write_batch(appends, bytes, done) }
    }

    /// Makes what was written durable and pushes its completions. A failure is final.
    pub fn sync(&mut self, done: &mut Vec<Completion>) {
        if self.unsynced.is_empty() {
            return;
        }
        // A write behind it has failed meanwhile: nothing of this log is acknowledged any more.
        let broken = self.house.lock().broken.clone();
        if let Some(why) = broken {
            self.fail_everything(&LogError::Broken(why), done);
            return;
        }
        if let Err(error) = self.active.file.sync() {
            let why = format!("fsync of segment {}: {error}", self.active.number);
            let error = self.house.lock().set_broken(&why);
            self.fail_everything(&error, done);
            return;
        }
        let written = std::mem::take(&mut self.unsynced);
        let mut catalog = self.house.lock();
        catalog.synced(Position { segment: self.active.number, offset: self.active.offset });
        publish(&mut catalog, written, done);
    }

    /// Runs what the keeper thread does otherwise: syncs closed segments (page_cache mode), removes those that
    /// nobody needs.
    pub fn keep_house(&mut self) {
        while self.house.do_chore() {}
    }

    /// See [`MutationLog::recovery_done`](crate::MutationLog::recovery_done).
    pub fn recovery_done(&mut self) {
        self.records.settle();
    }

    /// As many appends as go into one write, those that must be refused answered.
    fn take_batch(&mut self, done: &mut Vec<Completion>) -> (Vec<Append>, usize) {
        let mut appends = Vec::new();
        let mut batch = BATCH_HEADER_LEN;
        while let Some(next) = self.queue.front() {
            if !appends.is_empty() && batch + next.bytes > self.options.max_batch_bytes {
                break;
            }
            let append = self.queue.pop_front().expect("just looked at");
            self.queued_bytes -= append.bytes;
            match self.check(&append) {
                Ok(()) => {
                    batch += append.bytes;
                    appends.push(append);
                }
                Err(error) => self.refuse(append, error, done),
            }
        }
        (appends, batch)
    }

    /// May this append go into the log? If so, it fills the holes of its copies.
    fn check(&mut self, append: &Append) -> Result<(), LogError> {
        if append.bytes > MAX_APPEND_BYTES {
            return Err(LogError::AppendTooLarge { bytes: append.bytes });
        }
        let records = &append.records;
        for record in records {
            let m = &record.mutation;
            if m.body.len() > MAX_BODY_LEN {
                return Err(LogError::TooLarge { gpid: m.gpid, decree: m.decree, bytes: m.body.len() });
            }
            if !m.verify() {
                return Err(LogError::CorruptMutation { gpid: m.gpid, decree: m.decree });
            }
        }
        if self.holes.is_empty() {
            return Ok(());
        }
        // The first record of each copy decides.
        let mut seen = BTreeSet::new();
        for record in records {
            let (key, got) = (key_of(record), record.mutation.decree);
            if let Some(expected) = self.holes.get(&key)
                && seen.insert(key)
                && got > *expected
            {
                return Err(LogError::Hole { gpid: key.gpid, got, expected: *expected });
            }
        }
        self.holes.retain(|key, _| !seen.contains(key));
        Ok(())
    }

    /// Answers an append of which nothing is in the log, and remembers where its copies have to go on.
    fn refuse(&mut self, append: Append, error: LogError, done: &mut Vec<Completion>) {
        if let Some(token) = append.token {
            for record in &append.records {
                let hole = self.holes.entry(key_of(record)).or_insert(record.mutation.decree);
                *hole = (*hole).min(record.mutation.decree);
            }
            self.house.lock().stats.failed += 1;
            done.push(Completion { token, result: Err(error) });
        }
    }

    fn write_batch(&mut self, appends: Vec<Append>, bytes: usize, done: &mut Vec<Completion>) -> Appended {
        if !self.active.fresh
            && self.active.offset + bytes as u64 > self.options.segment_bytes
            && let Err(error) = self.roll(done)
        {
            for append in appends {
                self.refuse(append, error.clone(), done);
            }
            return Appended::default();
        }
        let mut undo = Vec::new();
        let (written, count, crc) = self.encode(&appends, &mut undo);
        let at = self.active.offset;
        if let Err(error) = self.active.file.write_all_at(at, &self.buf) {
            for (key, chain) in undo.into_iter().rev() {
                self.chains.insert(key, chain);
            }
            let error = self.write_failed(&error, at);
            for append in appends {
                self.refuse(append, error.clone(), done);
            }
            return Appended::default();
        }
        let appended = Appended { records: count, bytes: self.buf.len() };
        self.active.offset = at + self.buf.len() as u64;
        self.active.fresh = false;
        self.next_seq += count as u64;
        self.previous = crc;
        let mut catalog = self.house.lock();
        catalog.stats.batches_written += 1;
        catalog.stats.records_written += count as u64;
        catalog.stats.bytes_written += self.buf.len() as u64;
        catalog.stats.disk_full = false;
        if let Some(segment) = catalog.segments.get_mut(&self.active.number) {
            segment.bytes = self.active.offset;
        }
        match self.options.durability {
            Durability::Sync => self.unsynced.extend(written),
            Durability::PageCache => publish(&mut catalog, written, done),
        }
        drop(catalog);
        // One huge batch must not cost its memory for ever.
        if self.buf.capacity() > 4 * self.options.max_batch_bytes {
            self.buf = Vec::new();
        }
        appended
    }

    /// Fills `buf` with the batch; returns what to publish, the number of records and the batch's checksum.
    fn encode(&mut self, appends: &[Append], undo: &mut Vec<(CopyKey, Chain)>) -> (Vec<Written>, usize, u32) {
        let (number, seed, at) = (self.active.number, self.active.seed, self.active.offset);
        self.buf.clear();
        self.buf.resize(BATCH_HEADER_LEN, 0);
        let mut written = Vec::with_capacity(appends.len());
        let (mut count, mut records_crc) = (0usize, 0);
        for append in appends {
            let mut entries = Vec::with_capacity(append.records.len());
            for record in &append.records {
                let m = &record.mutation;
                let key = key_of(record);
                let chain = self.chains.entry(key).or_default();
                undo.push((key, *chain));
                chain.seq = chain.seq.wrapping_add(1);
                // The log's number of the record, of which its header has the low half.
                let seq = (self.next_seq + count as u64) as u32;
                let header = RecordHeader::of(record, seq, chain.seq, chain.highest);
                chain.highest = if record.cuts { m.decree } else { chain.highest.max(m.decree) };
                let header_at = at + self.buf.len() as u64;
                let crc = header.encode(&mut self.buf, seed, header_at, &m.body);
                records_crc = crc32c::crc32c_append(records_crc, &crc.to_le_bytes());
                count += 1;
                entries.push(Entry {
                    copy: key,
                    decree: m.decree,
                    cuts: record.cuts,
                    committed: record.committed,
                    location: LogLocation {
                        segment: number,
                        offset: at + (self.buf.len() - m.body.len()) as u64,
                        len: header.body_len,
                    },
                });
            }
            written.push(Written { token: append.token, entries });
        }
        let header = BatchHeader {
            crc: 0,
            length: 0,
            count: u32::try_from(count).expect("a batch is bounded in bytes"),
            first_seq: self.next_seq,
            mark: self.house.lock().mark,
            previous: self.previous,
            records_crc,
        };
        let crc = header.seal(&mut self.buf, seed, at);
        (written, count, crc)
    }

    /// A full disk can be cut back and lives on; everything else is final.
    fn write_failed(&mut self, error: &io::Error, cut_at: u64) -> LogError {
        if !is_full(error) {
            let why = format!("write to segment {}: {error}", self.active.number);
            return self.house.lock().set_broken(&why);
        }
        // A full disk takes its time, and who serves looks into the catalog meanwhile.
        let cut = self.active.file.truncate(cut_at);
        let mut catalog = self.house.lock();
        catalog.stats.disk_full = true;
        match cut {
            Ok(()) => LogError::DiskFull,
            Err(error) => {
                catalog.set_broken(&format!("cut of segment {} on a full disk: {error}", self.active.number))
            }
        }
    }

    /// Begins a new segment.
    fn roll(&mut self, done: &mut Vec<Completion>) -> Result<(), LogError> {
        self.sync(done);
        let catalog = self.house.lock();
        if let Some(why) = &catalog.broken {
            return Err(LogError::Broken(Arc::clone(why)));
        }
        self.chains.retain(|key, _| !catalog.is_forgotten(key));
        let roster = roster_of(&catalog, &self.chains);
        let start =
            SegmentStart { number: self.next_number, next_seq: self.next_seq, previous: self.previous };
        self.next_number += 1;
        let origin = log_id_and_mark(&catalog);
        // Creating it waits for the disk: readers go on meanwhile.
        drop(catalog);
        let made = create_segment(&*self.house.disk, origin, &start, &roster);
        let mut catalog = self.house.lock();
        let active = match made {
            Ok(active) => active,
            Err(failure) => return Err(failure.into_error(&mut catalog)),
        };
        catalog.adopt(&active.file, active.number, active.offset);
        match self.options.durability {
            Durability::Sync => {
                catalog.mark = Position { segment: active.number, offset: active.offset };
            }
            Durability::PageCache if self.active.number > 0 => catalog.to_sync.push_back(self.active.number),
            Durability::PageCache => {}
        }
        self.active = active;
        if self.moving.is_none()
            && catalog.bytes() > self.options.max_log_bytes
            && let Some((oldest, _)) = catalog.oldest()
            && !catalog.pinned(oldest)
        {
            tracing::info!(segment = oldest, "the log is too long, appending needed records again");
            self.moving = Some(Moving { segment: oldest, todo: catalog.needed_records(oldest) });
        }
        drop(catalog);
        self.house.collect();
        Ok(())
    }

    /// Appends needed records of the oldest segment again; once per begun segment and at most one segment's
    /// worth, so that this never more than doubles what is written.
    fn move_some(&mut self, done: &mut Vec<Completion>) {
        // What the index says must be the whole truth: an older mutation must not land behind a newer one.
        self.sync(done);
        let Some(mut moving) = self.moving.take() else { return };
        let (mut records, mut bytes, mut buf) = (Vec::new(), 0, Vec::new());
        while bytes < self.options.max_batch_bytes
            && let Some((key, decree, place)) = moving.todo.pop_front()
        {
            let file = {
                let catalog = self.house.lock();
                let current = catalog.copies.get(&key).and_then(|c| c.index.get(&decree));
                if current == Some(&place) { catalog.file(place.segment) } else { None }
            };
            let Some((file, seed)) = file else { continue };
            match read_record(&*file, seed, place, &mut buf) {
                Ok(mut record) => {
                    // What it once cut off is gone, what follows it is not.
                    record.cuts = false;
                    bytes += record.mutation.body.len() + RECORD_HEADER_LEN;
                    records.push(record);
                }
                Err(error) => {
                    tracing::error!(%error, gpid = %key.gpid, %decree, "a needed record is damaged");
                    self.house.lock().lose(key, decree);
                }
            }
        }
        if !records.is_empty() {
            let append = Append { records, token: None, bytes };
            if self.write_batch(vec![append], bytes + BATCH_HEADER_LEN, done) == Appended::default() {
                // Disk full or broken: the segment stays.
                return;
            }
        }
        if !moving.todo.is_empty() {
            self.moving = Some(moving);
            return;
        }
        self.sync(done);
        if self.house.lock().broken.is_none() {
            self.house.lock().release(moving.segment);
            self.house.collect();
        }
    }

    fn fail_everything(&mut self, error: &LogError, done: &mut Vec<Completion>) {
        let tokens = self.unsynced.drain(..).filter_map(|w| w.token);
        let tokens: Vec<_> = tokens.chain(self.queue.drain(..).filter_map(|a| a.token)).collect();
        self.queued_bytes = 0;
        self.moving = None;
        self.house.lock().stats.failed += tokens.len() as u64;
        done.extend(tokens.into_iter().map(|token| Completion { token, result: Err(error.clone()) }));
    }
}

fn key_of(record: &Record) -> CopyKey {
    CopyKey { gpid: record.mutation.gpid, copy_id: record.copy_id }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn publish(catalog: &mut Catalog, written: Vec<Written>, done: &mut Vec<Completion>) {
    for w in written {
        catalog.insert(&w.entries);
        if let Some(token) = w.token {
            let locations = w.entries.iter().map(|e| e.location).collect();
            done.push(Completion { token, result: Ok(locations) });
        }
    }
}

fn roster_of(catalog: &Catalog, chains: &BTreeMap<CopyKey, Chain>) -> Roster {
    let entry = |(key, chain): (&CopyKey, &Chain)| RosterEntry {
        copy: *key,
        copy_seq: chain.seq,
        highest: chain.highest,
        lost: catalog.copies.get(key).and_then(|c| c.lost),
    };
    Roster { unsettled: catalog.unsettled, entries: chains.iter().map(entry).collect() }
}

/// See [`Active::none`].
#[derive(Debug)]
struct NoFile;

impl LogFile for NoFile {
    fn write_all_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn read_exact_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

struct SegmentStart {
    number: u64,
    next_seq: u64,
    previous: u32,
}

enum CreateFailure {
    Full,
    Fatal(String),
}

impl CreateFailure {
    fn into_error(self, catalog: &mut Catalog) -> LogError {
        match self {
            Self::Full => {
                catalog.stats.disk_full = true;
                LogError::DiskFull
            }
            Self::Fatal(why) => catalog.set_broken(&why),
        }
    }
}

fn log_id_and_mark(catalog: &Catalog) -> (u64, Position) {
    (catalog.log_id, catalog.mark)
}

/// Header and roster in one write; file and name are durable on return.
fn create_segment(
    disk: &dyn Disk,
    (log_id, mark): (u64, Position),
    start: &SegmentStart,
    roster: &Roster,
) -> Result<Active, CreateFailure> {
    let number = start.number;
    let name = segment_name(number);
    let seed = format::seed(log_id, number);
    let body = roster.encode();
    let mut data = format::encode_segment_header(log_id, number).to_vec();
    let mut batch = vec![0; BATCH_HEADER_LEN];
    let record_at = (SEGMENT_HEADER_LEN + BATCH_HEADER_LEN) as u64;
    // As in every record header, the low half.
    let crc =
        RecordHeader::of_roster(&body, start.next_seq as u32).encode(&mut batch, seed, record_at, &body);
    let header = BatchHeader {
        crc: 0,
        length: 0,
        count: 1,
        first_seq: start.next_seq,
        mark,
        previous: start.previous,
        records_crc: crc32c::crc32c(&crc.to_le_bytes()),
    };
    header.seal(&mut batch, seed, SEGMENT_HEADER_LEN as u64);
    data.extend(batch);

    let failed = |what: &str, error: &io::Error| {
        if is_full(error) {
            // Whatever is left of it is found and removed at the next start.
            let _ = disk.remove(&name);
            CreateFailure::Full
        } else {
            CreateFailure::Fatal(format!("{what} of segment {number}: {error}"))
        }
    };
    let file = disk.create(&name).map_err(|e| failed("creation", &e))?;
    file.write_all_at(0, &data).map_err(|e| failed("first write", &e))?;
    let fatal =
        |what: &str, error: io::Error| CreateFailure::Fatal(format!("{what} of segment {number}: {error}"));
    file.sync().map_err(|e| fatal("fsync", e))?;
    disk.sync_dir().map_err(|e| fatal("fsync of the directory", e))?;
    Ok(Active { number, file, seed, offset: data.len() as u64, fresh: true })
}
