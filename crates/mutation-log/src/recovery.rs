//! What a log holds after a crash: torn tails are cut, damage is reported, nothing is guessed.
//!
//! **Torn or damaged** (safety-rules.md 2.5). Each batch header tells the *mark*: up to where the log was synced
//! before that batch was written. The highest mark in any valid header is proven. Where the chain of whole
//! batches breaks at or above it, a write was under way or had never been synced: the log is cut there.
//! Where it breaks below, acknowledged bytes have been destroyed: everything that can still be read is kept,
//! and the loss is assigned to copies.
//!
//! **Whose records are lost.** A copy is damaged when
//! - its own counter jumps (`copy seq`), or the roster of a later segment has seen more of it than is there;
//! - the header of a lost body names it;
//! - at [`replay`](crate::Records::replay) a decree between its durable one and its highest is missing;
//! - the log's counter says that more records are missing than these rules explain, and nothing later than the
//!   loss proves the copy complete.
//!
//! Copies that are none of these go on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use pegasus_types::{Decree, Gpid, LogLocation};

use crate::catalog::{Catalog, CopyIndex, Segment};
use crate::core::Chain;
use crate::disk::{Disk, LogFile};
use crate::error::{LogError, Lost};
use crate::format::{
    self, BATCH_HEADER_LEN, CopyKey, Kind, Position, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN,
    SegmentHeader, segment_name,
};
use crate::options::{Durability, Known};
use crate::roster::{self, Roster};
use crate::scan::{Found, Piece, scan};

/// A first segment that was never finished is at most this long: nothing but its roster of nobody. A longer file
/// without any valid header is a log that has been destroyed.
const UNBORN_BYTES: u64 =
    (SEGMENT_HEADER_LEN + BATCH_HEADER_LEN + RECORD_HEADER_LEN + roster::EMPTY_LEN) as u64;
/// Bytes that are tried at once when a read fails, so that one bad sector costs no more than it must.
const SECTOR_BYTES: usize = 4096;

/// What was found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoverySummary {
    /// Random, made with the log. To be kept elsewhere, see [`Known`].
    pub log_id: u64,
    /// There was none before.
    pub is_new: bool,
    pub segments: usize,
    pub bytes: u64,
    pub records: usize,
    /// The log ended in a write that was never finished (or, in page_cache mode, never synced).
    pub cut: Option<Cut>,
    /// Destroyed stretches below the synced mark.
    pub damaged: Vec<DamagedRegion>,
    /// Copies that have lost records, as far as it is known by now.
    pub lost: Vec<(Gpid, u64, Lost)>,
    /// Records are missing that belong to nobody known: a copy without any record is not to be trusted.
    pub unsettled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub segment: u64,
    pub offset: u64,
    pub bytes: u64,
    /// Readable records among them, of writes that nobody was told are durable.
    pub records: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRegion {
    pub segment: u64,
    pub from: u64,
    pub to: u64,
}

pub(crate) struct Recovered {
    /// Without an active segment.
    pub catalog: Catalog,
    pub chains: BTreeMap<CopyKey, Chain>,
    pub next_number: u64,
    pub next_seq: u64,
    pub previous: u32,
    /// Segments without records, to be removed once there is a new roster.
    pub empty: Vec<u64>,
    pub summary: RecoverySummary,
}

pub(crate) fn recover(
    disk: &dyn Disk,
    new_log_id: u64,
    known: Known,
    durability: Durability,
) -> Result<Recovered, LogError> {
    let names = disk.list().map_err(LogError::io("list the log's directory"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| format::segment_number(n)).collect();
    numbers.sort_unstable();
    let next_number = numbers.last().map_or(1, |n| n + 1);
    let mut files = open_all(disk, &numbers)?;
    let Some(log_id) = identify(&files, known)? else {
        for file in files {
            remove(disk, file.number)?;
        }
        return Ok(Recovered {
            catalog: Catalog::new(new_log_id),
            chains: BTreeMap::new(),
            next_number,
            next_seq: 0,
            previous: 0,
            empty: Vec::new(),
            summary: RecoverySummary { log_id: new_log_id, is_new: true, ..RecoverySummary::default() },
        });
    };
    let mark = proven_mark(&files, log_id)?;
    let mut summary = RecoverySummary { log_id, ..RecoverySummary::default() };
    let mut audit = Audit::default();
    let mut walk = Walk::default();
    // One segment at a time: what is kept of it is its index.
    let mut torn = None;
    for file in &mut files {
        let pieces = file.scan(log_id)?;
        file.empty = is_empty(&pieces);
        for piece in &pieces {
            let before = walk.previous;
            if let Some(found) = walk.step(file.number, piece) {
                if found.from >= mark {
                    torn = Some(found.from);
                    walk.previous = before;
                    break;
                }
                summary.damaged.push(DamagedRegion {
                    segment: found.from.segment,
                    from: found.from.offset,
                    to: found.to,
                });
            }
            piece.entries.iter().for_each(|found| audit.take(file.number, found));
        }
        if torn.is_some() {
            break;
        }
    }
    if let Some(torn) = torn {
        summary.cut = Some(cut(disk, &mut files, torn, log_id)?);
    }
    audit.suspect();

    let mut catalog = Catalog::new(log_id);
    for file in &files {
        let segment = Segment { file: Arc::clone(&file.file), bytes: file.len, copies: BTreeMap::new() };
        catalog.segments.insert(file.number, segment);
    }
    summary.records = audit.records;
    let next_seq = audit.expected.unwrap_or(0);
    let chains = audit.fill(&mut catalog);
    let empty = files.iter().filter(|f| f.empty).map(|f| f.number).collect();
    settle_tail(&files, mark, durability, &mut catalog)?;

    summary.segments = files.len();
    summary.bytes = catalog.bytes();
    summary.unsettled = catalog.unsettled;
    summary.lost = catalog.copies.iter().filter_map(|(k, c)| Some((k.gpid, k.copy_id, c.lost?))).collect();
    for region in &summary.damaged {
        tracing::error!(segment = region.segment, from = region.from, to = region.to, "the log is damaged");
    }
    if let Some(cut) = summary.cut {
        tracing::warn!(
            segment = cut.segment,
            offset = cut.offset,
            bytes = cut.bytes,
            "cut the torn end of the log"
        );
    }
    Ok(Recovered {
        catalog,
        chains,
        next_number,
        next_seq,
        previous: walk.previous.unwrap_or(0),
        empty,
        summary,
    })
}

struct SegmentFile {
    number: u64,
    file: Arc<dyn LogFile>,
    len: u64,
    header: SegmentHeader,
    /// Whole, and nothing but rosters.
    empty: bool,
}

fn open_all(disk: &dyn Disk, numbers: &[u64]) -> Result<Vec<SegmentFile>, LogError> {
    let open = |number: &u64| {
        let file = disk.open(&segment_name(*number)).map_err(LogError::io("open a log segment"))?;
        let len = file.len().map_err(LogError::io("measure a log segment"))?;
        let mut head = vec![0; SEGMENT_HEADER_LEN.min(usize::try_from(len).unwrap_or(usize::MAX))];
        let header = match file.read_exact_at(0, &mut head) {
            Ok(()) => format::decode_segment_header(&head),
            Err(_) => SegmentHeader::Invalid,
        };
        Ok(SegmentFile { number: *number, file, len, header, empty: false })
    };
    numbers.iter().map(open).collect()
}

/// None = there is no log yet.
fn identify(files: &[SegmentFile], known: Known) -> Result<Option<u64>, LogError> {
    match (find_log_id(files)?, known) {
        (Some(found), Known::Id(id)) if found != id => {
            let why = "belongs to another log than the one that was here before".into();
            Err(LogError::Unusable { segment: files.first().map_or(0, |f| f.number), why })
        }
        (Some(found), _) => Ok(Some(found)),
        (None, Known::Id(id)) if proven_mark(files, id)? > Position::default() => Ok(Some(id)),
        (None, Known::Id(_) | Known::Exists) => Err(LogError::Gone),
        (None, Known::Nothing) => match files {
            [] => Ok(None),
            [only] if only.len <= UNBORN_BYTES => Ok(None),
            [first, ..] => {
                let why = "no valid header in any segment".into();
                Err(LogError::Unusable { segment: first.number, why })
            }
        },
    }
}

/// The id that the headers agree on; None = no header is valid.
fn find_log_id(files: &[SegmentFile]) -> Result<Option<u64>, LogError> {
    let mut log_id = None;
    for file in files {
        let unusable = |why: String| LogError::Unusable { segment: file.number, why };
        match file.header {
            SegmentHeader::Newer { version } => {
                return Err(unusable(format!("format version {version} is newer than this program")));
            }
            SegmentHeader::Valid { number, .. } if number != file.number => {
                return Err(unusable(format!("this is the file of segment {number}")));
            }
            SegmentHeader::Valid { log_id: id, .. } if *log_id.get_or_insert(id) != id => {
                return Err(unusable("belongs to the log of another disk".into()));
            }
            SegmentHeader::Valid { .. } | SegmentHeader::Invalid => {}
        }
    }
    Ok(log_id)
}

impl SegmentFile {
    fn scan(&self, log_id: u64) -> Result<Vec<Piece>, LogError> {
        let data = read_all(&*self.file, self.len)?;
        let header_len = (SEGMENT_HEADER_LEN as u64).min(self.len);
        let mut pieces = Vec::new();
        if self.header == SegmentHeader::Invalid {
            pieces.push(Piece { at: 0, end: header_len, whole: false, entries: Vec::new() });
        }
        pieces.extend(scan(&data, header_len, self.number, format::seed(log_id, self.number)));
        Ok(pieces)
    }
}

fn is_empty(pieces: &[Piece]) -> bool {
    pieces.iter().all(|p| p.whole) && records(pieces) == 0
}

fn records(pieces: &[Piece]) -> usize {
    pieces.iter().flat_map(|p| &p.entries).filter(|e| matches!(e, Found::Record(..))).count()
}

/// Unreadable sectors come as zeros: to the scan they are what they are, bytes that prove nothing.
fn read_all(file: &dyn LogFile, len: u64) -> Result<Vec<u8>, LogError> {
    let len = usize::try_from(len).map_err(|_| LogError::Io {
        what: "read a log segment",
        error: Arc::new(io::Error::from(io::ErrorKind::FileTooLarge)),
    })?;
    let mut data = vec![0; len];
    if file.read_exact_at(0, &mut data).is_ok() {
        return Ok(data);
    }
    data.fill(0);
    for (i, sector) in data.chunks_mut(SECTOR_BYTES).enumerate() {
        let at = (i * SECTOR_BYTES) as u64;
        if let Err(error) = file.read_exact_at(at, sector) {
            tracing::error!(at, %error, "cannot read a part of the log");
            sector.fill(0);
        }
    }
    Ok(data)
}

/// Marks never go back, so that the newest segment in which any batch header is valid tells the highest.
fn proven_mark(files: &[SegmentFile], log_id: u64) -> Result<Position, LogError> {
    for file in files.iter().rev() {
        let pieces = file.scan(log_id)?;
        let marks = pieces.iter().flat_map(|p| &p.entries).filter_map(|e| match e {
            Found::Batch(header) => Some(header.mark),
            _ => None,
        });
        if let Some(mark) = marks.max() {
            return Ok(mark);
        }
    }
    Ok(Position::default())
}

struct Break {
    from: Position,
    /// End of the stretch in the segment of `from`.
    to: u64,
}

/// Follows the chain of whole batches.
#[derive(Default)]
struct Walk {
    /// Checksum that the next batch has to name; None = unknown, as at the start and after a broken piece.
    previous: Option<u32>,
    end: Option<Position>,
}

impl Walk {
    /// Takes the next piece and says whether the chain is interrupted at or before it.
    fn step(&mut self, segment: u64, piece: &Piece) -> Option<Break> {
        let at = Position { segment, offset: piece.at };
        let found = match piece.entries.first() {
            _ if !piece.whole => Some(Break { from: at, to: piece.end }),
            // Both sides are whole, but something has been between them.
            Some(Found::Batch(header)) if self.previous.is_some_and(|crc| crc != header.previous) => {
                let from = self.end.unwrap_or(at);
                Some(Break { from, to: from.offset })
            }
            _ => None,
        };
        self.end = Some(Position { segment, offset: piece.end });
        self.previous = match &piece.entries[..] {
            _ if !piece.whole => None,
            // Rosters do not count: an empty segment may be removed.
            [Found::Batch(header), Found::Roster(..)] => Some(self.previous.unwrap_or(header.previous)),
            [Found::Batch(header), ..] => Some(header.crc),
            _ => self.previous,
        };
        found
    }
}

/// Removes everything from `torn` on, the newest first, so that a crash in between leaves a longer log and
/// not one with a hole.
fn cut(disk: &dyn Disk, files: &mut Vec<SegmentFile>, torn: Position, log_id: u64) -> Result<Cut, LogError> {
    let mut cut = Cut { segment: torn.segment, offset: torn.offset, bytes: 0, records: 0 };
    while let Some(file) = files.pop_if(|f| f.number > torn.segment) {
        cut.bytes += file.len;
        cut.records += records(&file.scan(log_id)?);
        remove(disk, file.number)?;
    }
    let Some(mut last) = files.pop() else { return Ok(cut) };
    let pieces = last.scan(log_id)?;
    let (kept, gone) = pieces.split_at(pieces.iter().take_while(|p| p.end <= torn.offset).count());
    cut.bytes += last.len - torn.offset;
    cut.records += records(gone);
    if torn.offset <= SEGMENT_HEADER_LEN as u64 {
        remove(disk, last.number)?;
        return Ok(cut);
    }
    if torn.offset < last.len {
        last.file.truncate(torn.offset).map_err(LogError::io("cut a log segment"))?;
        last.file.sync().map_err(LogError::io("sync a log segment after the cut"))?;
    }
    last.len = torn.offset;
    last.empty = is_empty(kept);
    files.push(last);
    Ok(cut)
}

fn remove(disk: &dyn Disk, number: u64) -> Result<(), LogError> {
    disk.remove(&segment_name(number)).map_err(LogError::io("remove a log segment"))?;
    disk.sync_dir().map_err(LogError::io("sync the log's directory"))
}

/// Makes what was recovered as durable as the mode promises, before anybody acts on it.
fn settle_tail(
    files: &[SegmentFile],
    mark: Position,
    durability: Durability,
    catalog: &mut Catalog,
) -> Result<(), LogError> {
    catalog.mark = mark;
    let unsynced = files.iter().filter(|f| f.number >= mark.segment);
    if durability == Durability::PageCache {
        catalog.to_sync.extend(unsynced.map(|f| f.number));
        return Ok(());
    }
    for file in unsynced {
        // Written again, not only synced: after a failed fsync the kernel may take pages for clean that the
        // disk never got (safety-rules.md 2.8).
        let from = if file.number == mark.segment { mark.offset.min(file.len) } else { 0 };
        let mut at = from;
        let mut buf = vec![0; 1 << 20];
        while at < file.len {
            let n = buf.len().min(usize::try_from(file.len - at).unwrap_or(usize::MAX));
            file.file.read_exact_at(at, &mut buf[..n]).map_err(LogError::io("read the end of the log"))?;
            file.file.write_all_at(at, &buf[..n]).map_err(LogError::io("rewrite the end of the log"))?;
            at += n as u64;
        }
        file.file.sync().map_err(LogError::io("sync the end of the log"))?;
        catalog.mark = Position { segment: file.number, offset: file.len };
    }
    Ok(())
}

/// Follows the counters through all that was found.
#[derive(Default)]
struct Audit {
    copies: BTreeMap<CopyKey, Seen>,
    /// Number of the next record of the log.
    expected: Option<u64>,
    /// Records that the log's counter misses since the last roster, and those of them whose owner is known.
    missing: u64,
    explained: u64,
    /// Counts what was taken; when the last loss was noticed.
    event: usize,
    last_loss: usize,
    unsettled: bool,
    records: usize,
    /// Highest decree of each copy in each segment.
    segments: BTreeMap<u64, BTreeMap<CopyKey, Decree>>,
}

#[derive(Default)]
struct Seen {
    chain: Chain,
    committed: Decree,
    lost: Option<Lost>,
    index: BTreeMap<Decree, LogLocation>,
    event: usize,
}

impl Audit {
    fn take(&mut self, segment: u64, found: &Found) {
        self.event += 1;
        match found {
            Found::Batch(header) => self.reach(header.first_seq),
            Found::Record(header, place) => {
                self.records += 1;
                let seen = self.record(header);
                seen.committed = seen.committed.max(header.committed);
                seen.index.insert(header.decree, *place);
                let highest = self.segments.entry(segment).or_default().entry(header.copy).or_default();
                *highest = (*highest).max(header.decree);
            }
            Found::BodyLost(header) if header.kind == Kind::Mutation => {
                Lost::UpTo(header.decree).add_to(&mut self.record(header).lost);
            }
            Found::BodyLost(_) => {}
            Found::Roster(header, roster) => {
                self.reach(self.widen(header.log_seq));
                self.roster(roster);
            }
        }
    }

    /// A record header holds the low half of its number; the high half follows from what was before it.
    fn widen(&self, low: u32) -> u64 {
        let expected = self.expected.unwrap_or(0);
        expected + u64::from(low.wrapping_sub(expected as u32))
    }

    fn reach(&mut self, seq: u64) {
        if let Some(expected) = self.expected
            && seq > expected
        {
            self.missing += seq - expected;
            self.last_loss = self.event;
        }
        self.expected = Some(self.expected.map_or(seq, |expected| expected.max(seq)));
    }

    fn record(&mut self, header: &RecordHeader) -> &mut Seen {
        let seq = self.widen(header.log_seq);
        self.reach(seq);
        self.expected = Some(seq + 1);
        self.evidence(header.copy, header.copy_seq.wrapping_sub(1), header.previous);
        let seen = self.copies.entry(header.copy).or_default();
        let highest = if header.cuts { header.decree } else { header.previous.max(header.decree) };
        seen.chain = Chain { seq: header.copy_seq, highest };
        if header.cuts {
            seen.index.split_off(&header.decree);
        }
        seen
    }

    /// Something says that the copy had `seq` records, up to `highest`, before this point.
    fn evidence(&mut self, copy: CopyKey, seq: u32, highest: Decree) {
        let known = self.copies.contains_key(&copy);
        let seen = self.copies.entry(copy).or_default();
        let more = seq.wrapping_sub(seen.chain.seq);
        // The first that is seen of a copy tells nothing of losses: older segments are removed by right.
        if known && more > 0 {
            // One of the lost may have cut the tail, so that `highest` has become less.
            Lost::UpTo(highest.max(seen.chain.highest)).add_to(&mut seen.lost);
            self.explained += u64::from(more);
        }
        seen.chain = Chain { seq, highest };
        seen.event = self.event;
    }

    fn roster(&mut self, roster: &Roster) {
        // Who is not in it was forgotten.
        let listed: BTreeSet<CopyKey> = roster.entries.iter().map(|entry| entry.copy).collect();
        self.copies.retain(|key, _| listed.contains(key));
        for entry in &roster.entries {
            self.evidence(entry.copy, entry.copy_seq, entry.highest);
            if let (Some(lost), Some(seen)) = (entry.lost, self.copies.get_mut(&entry.copy)) {
                lost.add_to(&mut seen.lost);
            }
        }
        // It accounts for everything before it.
        (self.missing, self.explained) = (0, 0);
        self.unsettled = roster.unsettled;
    }

    /// Losses without an owner hit everybody of whom nothing later is known.
    fn suspect(&mut self) {
        if self.missing <= self.explained {
            return;
        }
        self.unsettled = true;
        for seen in self.copies.values_mut().filter(|seen| seen.event < self.last_loss) {
            Lost::Unknown.add_to(&mut seen.lost);
        }
    }

    fn fill(self, catalog: &mut Catalog) -> BTreeMap<CopyKey, Chain> {
        catalog.unsettled = self.unsettled;
        let mut chains = BTreeMap::new();
        for (number, mut copies) in self.segments {
            copies.retain(|key, _| self.copies.contains_key(key));
            if let Some(segment) = catalog.segments.get_mut(&number) {
                segment.copies = copies;
            }
        }
        for (key, seen) in self.copies {
            chains.insert(key, seen.chain);
            let copy = CopyIndex {
                index: seen.index,
                highest: seen.chain.highest,
                committed: seen.committed,
                lost: seen.lost,
                ..CopyIndex::default()
            };
            catalog.copies.insert(key, copy);
        }
        chains
    }
}
