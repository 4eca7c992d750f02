//! Rows in memory, in key order, with as many versions as open views need.
//!
//! One writer at a time; readers share a lock with it and hold it for a page of rows at most. A decree is the
//! version: a view sees, of every key, the newest row at or below its decree.
//!
//! Keys lie in the nodes of the tree, as far as they are short: a search that compares keys where their rows lie misses
//! the cache at every comparison, a fifth of a replica-server's CPU per write (docs/performance.md).

use std::borrow::Borrow;
use std::cmp::Ordering as Order;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use pegasus_types::Decree;
use pegasus_types::mutation;

use crate::engine::{EngineError, MAX_KEY_LEN, RESERVED_KEYS};

/// What a row costs beside its bytes: its slot in the tree, an allocation.
const ROW_OVERHEAD: u64 = 160;
/// Longest key that lies in the tree: with its length it takes as much room as a handle to a longer one.
const INLINE_KEY: usize = 38;
/// Rows that an iterator copies out under the lock: few at first, for those that want few.
const FIRST_PAGE: usize = 16;
const LAST_PAGE: usize = 256;

/// A value, or None = deleted.
pub type Change = Option<Bytes>;

type Rows = BTreeMap<Key, Slot>;

#[derive(Debug, Default)]
pub struct Memtable {
    rows: RwLock<Rows>,
    bytes: AtomicU64,
}

/// Ordered as its bytes are.
#[derive(Debug)]
enum Key {
    Inline { len: u8, bytes: [u8; INLINE_KEY] },
    Long(Box<[u8]>),
}

impl Key {
    fn new(key: &[u8]) -> Self {
        let mut bytes = [0; INLINE_KEY];
        match (bytes.get_mut(..key.len()), u8::try_from(key.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(key);
                Self::Inline { len, bytes }
            }
            _ => Self::Long(key.into()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Order {
        self.as_slice().cmp(other.as_slice())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Key {}

#[derive(Debug)]
struct Slot {
    decree: Decree,
    /// Key and value in one allocation of their own: neither a body nor the frame that it came in is kept alive.
    row: Bytes,
    key_len: u16,
    is_deleted: bool,
    older: Option<Box<Slot>>,
}

impl Slot {
    fn new(decree: Decree, key: &[u8], value: Option<&[u8]>) -> Self {
        let mut row = Vec::with_capacity(key.len() + value.map_or(0, <[u8]>::len));
        row.extend_from_slice(key);
        row.extend_from_slice(value.unwrap_or_default());
        Self {
            decree,
            row: row.into(),
            key_len: u16::try_from(key.len()).expect("keys are validated: at most MAX_KEY_LEN bytes"),
            is_deleted: value.is_none(),
            older: None,
        }
    }

    fn at(&self, decree: Decree) -> Option<&Self> {
        let mut slot = self;
        while slot.decree > decree {
            slot = slot.older.as_deref()?;
        }
        Some(slot)
    }

    fn key(&self) -> Bytes {
        self.row.slice(..usize::from(self.key_len))
    }

    fn change(&self) -> Change {
        (!self.is_deleted).then(|| self.row.slice(usize::from(self.key_len)..))
    }

    fn bytes(&self) -> u64 {
        self.row.len() as u64 + ROW_OVERHEAD
    }
}

/// Checks a body as a whole, so that a bad one changes nothing.
pub fn validate(body: &[u8]) -> Result<(), EngineError> {
    for op in mutation::ops(body) {
        let op = op.map_err(|damage| EngineError::Corrupt(damage.to_string()))?;
        if op.key.len() < 2 || op.key.len() > MAX_KEY_LEN || op.key.starts_with(&RESERVED_KEYS) {
            return Err(EngineError::Corrupt(format!("a key of {} bytes in a mutation", op.key.len())));
        }
    }
    Ok(())
}

impl Memtable {
    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the operations of a validated body. Versions newer than every view are overwritten in place.
    /// `is_bottom` = there is nothing below that a delete would have to hide.
    pub fn apply(&self, decree: Decree, body: &[u8], views: &Views, is_bottom: bool) {
        let newest_view = views.newest();
        let mut rows = self.write();
        for op in mutation::ops(body).flatten() {
            if is_bottom && op.value.is_none() && newest_view.is_none() {
                if let Some(gone) = rows.remove(op.key) {
                    self.bytes.fetch_sub(gone.bytes(), Ordering::Relaxed);
                }
                continue;
            }
            let new = Slot::new(decree, op.key, op.value.map(|value| value.bytes));
            self.bytes.fetch_add(new.bytes(), Ordering::Relaxed);
            match rows.entry(Key::new(op.key)) {
                Entry::Vacant(entry) => drop(entry.insert(new)),
                Entry::Occupied(entry) => {
                    let slot = entry.into_mut();
                    let seen = newest_view.is_some_and(|view| view >= slot.decree) && slot.decree != decree;
                    let mut old = std::mem::replace(slot, new);
                    if seen {
                        slot.older = Some(Box::new(old));
                    } else {
                        self.bytes.fetch_sub(old.bytes(), Ordering::Relaxed);
                        slot.older = old.older.take();
                    }
                }
            }
        }
    }

    /// Outer None = nothing is known of this key here.
    pub fn get(&self, key: &[u8], at: Decree) -> Option<Change> {
        self.read().get(key)?.at(at).map(Slot::change)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Keys with what becomes of them, in order or against it, as of `at`.
    pub fn range(
        self: &Arc<Self>,
        lo: Bound<Bytes>,
        hi: Bound<Bytes>,
        reverse: bool,
        at: Decree,
    ) -> MemtableIter {
        MemtableIter {
            table: Arc::clone(self),
            rest: Some((lo, hi)),
            reverse,
            at,
            page: Vec::new().into_iter(),
            page_len: FIRST_PAGE,
        }
    }
}

/// Whether no key lies between the bounds; `BTreeMap::range` panics on some of these.
pub fn is_empty_range(lo: &Bound<Bytes>, hi: &Bound<Bytes>) -> bool {
    match (lo, hi) {
        (Bound::Included(lo), Bound::Included(hi)) => lo > hi,
        (Bound::Included(lo) | Bound::Excluded(lo), Bound::Included(hi) | Bound::Excluded(hi)) => lo >= hi,
        _ => false,
    }
}

#[derive(Debug)]
pub struct MemtableIter {
    table: Arc<Memtable>,
    /// What no page has covered yet.
    rest: Option<(Bound<Bytes>, Bound<Bytes>)>,
    reverse: bool,
    at: Decree,
    page: std::vec::IntoIter<(Bytes, Change)>,
    page_len: usize,
}

impl MemtableIter {
    fn fill(&mut self) {
        let Some((lo, hi)) = self.rest.take().filter(|(lo, hi)| !is_empty_range(lo, hi)) else { return };
        let rows = self.table.read();
        let mut range =
            rows.range::<[u8], _>((lo.as_ref().map(|key| &key[..]), hi.as_ref().map(|key| &key[..])));
        let mut last = None;
        let mut page = Vec::with_capacity(self.page_len);
        let mut looked_at = 0;
        while looked_at < self.page_len
            && let Some((_, slot)) = if self.reverse { range.next_back() } else { range.next() }
        {
            looked_at += 1;
            last = Some(slot);
            if let Some(seen) = slot.at(self.at) {
                page.push((seen.key(), seen.change()));
            }
        }
        let unfinished = looked_at == self.page_len;
        let last = last.map(Slot::key);
        drop(rows);
        if unfinished && let Some(last) = last {
            self.rest =
                Some(if self.reverse { (lo, Bound::Excluded(last)) } else { (Bound::Excluded(last), hi) });
        }
        self.page = page.into_iter();
        self.page_len = (self.page_len * 4).min(LAST_PAGE);
    }
}

impl Iterator for MemtableIter {
    type Item = (Bytes, Change);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.page.next() {
                return Some(row);
            }
            self.rest.as_ref()?;
            self.fill();
        }
    }
}

/// The decrees at which views of a partition are open.
#[derive(Debug)]
pub struct Views {
    open: Mutex<BTreeMap<Decree, usize>>,
    /// -1 = none.
    newest: AtomicI64,
}

impl Default for Views {
    fn default() -> Self {
        Self { open: Mutex::default(), newest: AtomicI64::new(-1) }
    }
}

impl Views {
    /// The writer must be kept out meanwhile.
    pub fn open(self: &Arc<Self>, decree: Decree) -> OpenView {
        self.change(|open| *open.entry(decree).or_insert(0) += 1);
        OpenView { views: Arc::clone(self), decree }
    }

    fn newest(&self) -> Option<Decree> {
        Some(Decree(self.newest.load(Ordering::Acquire))).filter(|decree| *decree >= Decree::ZERO)
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<Decree, usize>)) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut open);
        self.newest.store(open.last_key_value().map_or(-1, |(decree, _)| decree.0), Ordering::Release);
    }
}

/// Keeps the versions of one view alive.
#[derive(Debug)]
pub struct OpenView {
    views: Arc<Views>,
    pub decree: Decree,
}

impl Drop for OpenView {
    fn drop(&mut self) {
        self.views.change(|open| {
            if let Some(count) = open.get_mut(&self.decree) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&self.decree);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use pegasus_types::mutation::BodyBuilder;

    use super::*;

    fn body(changes: &[(&str, Option<&str>)]) -> Bytes {
        let mut body = BodyBuilder::default();
        for (key, value) in changes {
            match value {
                Some(value) => body.put(key.as_bytes(), [value.as_bytes(), b""]),
                None => body.delete(key.as_bytes()),
            }
        }
        body.finish()
    }

    fn all(table: &Arc<Memtable>, at: i64, reverse: bool) -> String {
        let rows = table.range(Bound::Unbounded, Bound::Unbounded, reverse, Decree(at));
        let text = |b: &Bytes| String::from_utf8(b.to_vec()).unwrap();
        rows.map(|(k, v)| format!("{}={}", text(&k), v.map_or("-".into(), |v| text(&v))))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn views_keep_the_versions_that_they_see() {
        let (table, views) = (Arc::new(Memtable::default()), Arc::new(Views::default()));
        let apply = |decree, changes: &[_]| table.apply(Decree(decree), &body(changes), &views, false);
        apply(1, &[("aa", Some("1")), ("bb", Some("1"))]);
        let one = views.open(Decree(1));
        apply(2, &[("aa", Some("2")), ("bb", None), ("cc", Some("2"))]);
        let two = views.open(Decree(2));
        apply(3, &[("aa", Some("3")), ("aa", Some("4"))]);
        assert_eq!(all(&table, 1, false), "aa=1 bb=1");
        assert_eq!(all(&table, 2, false), "aa=2 bb=- cc=2");
        assert_eq!(all(&table, 3, true), "cc=2 bb=- aa=4");
        assert_eq!(table.get(b"aa", Decree(1)), Some(Some("1".into())));
        assert_eq!(table.get(b"bb", Decree(2)), Some(None));
        assert_eq!(table.get(b"cc", Decree(1)), None);
        drop(two);
        apply(4, &[("aa", Some("5"))]);
        assert_eq!(all(&table, 1, false), "aa=1 bb=1");
        drop(one);
        assert_eq!(views.newest(), None);
    }

    #[test]
    fn memory_is_counted_and_overwriting_is_free() {
        let (table, views) = (Arc::new(Memtable::default()), Arc::new(Views::default()));
        for decree in 1..100 {
            table.apply(Decree(decree), &body(&[("key", Some("value"))]), &views, false);
        }
        assert_eq!((table.bytes(), table.len()), (8 + ROW_OVERHEAD, 1));
        table.apply(Decree(100), &body(&[("key", None)]), &views, false);
        assert_eq!((table.bytes(), table.len()), (3 + ROW_OVERHEAD, 1));
        table.apply(Decree(101), &body(&[("key", None)]), &views, true);
        assert_eq!((table.bytes(), table.len()), (0, 0));
    }

    #[test]
    fn long_ranges_come_in_pages() {
        let (table, views) = (Arc::new(Memtable::default()), Arc::new(Views::default()));
        let keys: Vec<String> = (0..2000).map(|i| format!("{i:04}")).collect();
        for (i, key) in keys.iter().enumerate() {
            table.apply(Decree(i as i64 + 1), &body(&[(key, Some("v"))]), &views, false);
        }
        for reverse in [false, true] {
            for (lo, hi) in
                [(Bound::Unbounded, Bound::Unbounded), (Bound::Excluded("0100"), Bound::Included("1900"))]
            {
                let owned = |bound: Bound<&str>| bound.map(|key| Bytes::copy_from_slice(key.as_bytes()));
                let got: Vec<_> =
                    table.range(owned(lo), owned(hi), reverse, Decree(3000)).map(|(key, _)| key).collect();
                let mut want: Vec<_> = keys
                    .iter()
                    .filter(|key| std::ops::RangeBounds::<str>::contains(&(lo, hi), key.as_str()))
                    .map(|key| Bytes::copy_from_slice(key.as_bytes()))
                    .collect();
                if reverse {
                    want.reverse();
                }
                assert_eq!(got, want);
            }
        }
        let empty =
            table.range(Bound::Excluded("5".into()), Bound::Excluded("5".into()), false, Decree(3000));
        assert_eq!(empty.count(), 0);
    }

    #[test]
    fn long_keys_are_ordered_among_short_ones() {
        let (table, views) = (Arc::new(Memtable::default()), Arc::new(Views::default()));
        let lengths = [2, 3, INLINE_KEY - 1, INLINE_KEY, INLINE_KEY + 1, 200, MAX_KEY_LEN];
        let keys = |first: char| lengths.map(|len| format!("{first}{}", "k".repeat(len - 1)));
        for (i, key) in keys('b').iter().chain(&keys('a')).enumerate() {
            table.apply(Decree(i as i64 + 1), &body(&[(key, Some(&key[..2]))]), &views, false);
        }
        let rows = table.range(Bound::Unbounded, Bound::Unbounded, false, Decree(99));
        assert!(rows.map(|(key, _)| key).eq(keys('a').into_iter().chain(keys('b'))));
        for key in keys('b') {
            assert_eq!(table.get(key.as_bytes(), Decree(99)), Some(Some("bk".into())));
            assert_eq!(table.get(&key.as_bytes()[..key.len() - 1], Decree(0)), None);
        }
    }

    #[test]
    fn bad_bodies_are_refused() {
        validate(&body(&[("ok", Some("")), ("ok", None)])).unwrap();
        validate(b"").unwrap();
        let long = "k".repeat(MAX_KEY_LEN + 1);
        for bad in [body(&[("", None)]), body(&[("k", None)]), body(&[(&long, None)])] {
            assert!(validate(&bad).is_err());
        }
        let mut reserved = BodyBuilder::default();
        reserved.put(b"\xff\xffd", [b"x", b""]);
        assert!(validate(&reserved.finish()).is_err());
        assert!(validate(&body(&[("ok", Some("value"))])[..10]).is_err());
    }
}
