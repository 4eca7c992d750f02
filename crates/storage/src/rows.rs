//! A partition as a stream of chunks: what a learner copies (safety-rules.md 3.4).
//!
//! The teacher pins a view and answers [`chunk`] after [`chunk`]; a chunk is a mutation body of puts with a
//! checksum, and the last key of one is where the next begins, so a broken stream resumes where it was. The
//! learner feeds them to [`Loading`] and ends with [`Loading::finish`], which returns when everything is durable.
//!
//! Rows of a fuzzy view ([`crate::Contract::LowerBound`]) may be newer than its decree; they are right once the
//! log up to the decree at the end of the stream is applied on top (replication.md 10).

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pegasus_types::Decree;
use pegasus_types::learn::RowsChunk;
use pegasus_types::mutation::{self, BodyBuilder};

use crate::engine::{EngineError, PartitionEngine, View};
use crate::schema::{self, TimeTag};

/// Rows that a chunk may hold, so that many tiny rows do not hold up the node.
const MAX_ROWS: usize = 4096;
/// What the learner asks for is cut to this; a frame must hold it.
pub const MAX_CHUNK_BYTES: usize = 4 << 20;

/// The next rows of `view` after key `after`: at least one, then until `max_bytes` are reached.
pub fn chunk(view: &dyn View, after: Option<&[u8]>, max_bytes: usize) -> Result<RowsChunk, EngineError> {
    let max_bytes = max_bytes.min(MAX_CHUNK_BYTES);
    let lo = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut body = BodyBuilder::default();
    let mut last_key = None;
    let mut done = true;
    for (rows, row) in view.range(lo, Bound::Unbounded, false).enumerate() {
        let (key, value) = row?;
        if rows > 0 && (rows == MAX_ROWS || body.len() + key.len() + value.stored().len() > max_bytes) {
            done = false;
            break;
        }
        body.put(&key, [value.stored(), b""]);
        last_key = Some(key);
    }
    let body = body.finish();
    Ok(RowsChunk { crc: crc32c::crc32c(&body), body, last_key, done })
}

/// A fresh partition that rows are copied into.
#[derive(Debug)]
pub struct Loading {
    engine: Arc<dyn PartitionEngine>,
    last_key: Option<Bytes>,
    done: bool,
    rows: u64,
    /// Largest time tag of a row.
    newest_us: u64,
}

impl Loading {
    /// `engine` has never applied anything: rows that are already there would survive although the teacher has
    /// them no more (replication.md 10.2 R7).
    pub fn new(engine: Arc<dyn PartitionEngine>) -> Result<Self, EngineError> {
        let applied = engine.applied_decree();
        if applied != Decree::ZERO {
            return Err(EngineError::DecreeNotGrowing { applied, asked: Decree::ZERO });
        }
        Ok(Self { engine, last_key: None, done: false, rows: 0, newest_us: 0 })
    }

    /// # Errors
    /// [`EngineError::Corrupt`] when the chunk is damaged or does not follow the last one; nothing of it was taken.
    pub fn add(&mut self, chunk: &RowsChunk) -> Result<(), EngineError> {
        let corrupt = |why: &str| EngineError::Corrupt(format!("rows chunk: {why}"));
        if crc32c::crc32c(&chunk.body) != chunk.crc {
            return Err(corrupt("checksum differs"));
        }
        let mut last: Option<&[u8]> = self.last_key.as_deref();
        let mut rows = 0;
        let mut newest_us = self.newest_us;
        for op in mutation::ops(&chunk.body) {
            let op = op.map_err(|damage| corrupt(&damage.to_string()))?;
            let Some(value) = op.value.filter(|_| last.is_none_or(|last| last < op.key)) else {
                return Err(corrupt("not puts in key order after the last chunk"));
            };
            newest_us = newest_us.max(schema::time_tag_of(value.bytes).map_or(0, TimeTag::timestamp_us));
            (last, rows) = (Some(op.key), rows + 1);
        }
        if last != chunk.last_key.as_deref().or(self.last_key.as_deref()) {
            return Err(corrupt("last key differs"));
        }
        self.engine.load(&chunk.body)?;
        if chunk.last_key.is_some() {
            self.last_key = chunk.last_key.clone();
        }
        self.done |= chunk.done;
        self.rows += rows;
        self.newest_us = newest_us;
        Ok(())
    }

    /// Where to go on.
    pub fn after(&self) -> Option<&Bytes> {
        self.last_key.as_ref()
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn engine(&self) -> &Arc<dyn PartitionEngine> {
        &self.engine
    }

    /// All rows of the view at `decree` are here: makes them durable. The newest time that the partition knows of is
    /// then that of its newest row, but no later than `now_us`: our own clock is no witness of what was committed, and
    /// one that runs ahead would purge rows that live (safety-rules.md 5).
    pub fn finish(self, decree: Decree, now_us: u64) -> Result<(), EngineError> {
        if !self.done {
            return Err(EngineError::Corrupt("rows end before the last chunk".to_owned()));
        }
        self.engine.finish_load(decree, self.newest_us.min(now_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_engine::MemoryEngine;
    use crate::ops::test_support::{AT, Store};

    fn teacher() -> Store {
        let mut store = Store::default();
        for i in 0..50 {
            store.put("h", &format!("{i:02}"), &"v".repeat(i));
        }
        store.remove("h", "07");
        store
    }

    fn all(view: &dyn View) -> Vec<(Bytes, Bytes)> {
        view.range(Bound::Unbounded, Bound::Unbounded, false)
            .map(|row| row.map(|(key, value)| (key, value.stored().clone())).unwrap())
            .collect()
    }

    #[test]
    fn a_copy_in_chunks_equals_the_view() {
        let mut teacher = teacher();
        let view = teacher.engine().view().unwrap();
        let learner: Arc<dyn PartitionEngine> = Arc::new(MemoryEngine::default());
        let mut loading = Loading::new(Arc::clone(&learner)).unwrap();
        let mut chunks = 0;
        while !loading.is_done() {
            teacher.put("h", "00", &format!("changed meanwhile {chunks}"));
            let after = loading.after().cloned();
            loading.add(&chunk(&*view, after.as_deref(), 300).unwrap()).unwrap();
            chunks += 1;
        }
        assert_eq!((loading.rows(), chunks > 5), (49, true));
        loading.finish(view.decree(), u64::MAX).unwrap();
        assert_eq!(learner.newest_timestamp_us(), AT.timestamp_us, "not what our clock says");
        assert_eq!((learner.applied_decree(), learner.durable_decree()), (Decree(51), Decree(51)));
        assert_eq!(all(&*learner.view().unwrap()), all(&*view));
        assert!(Loading::new(learner).is_err(), "only a fresh engine takes rows");
    }

    #[test]
    fn damage_and_disorder_are_refused() {
        let teacher = teacher();
        let view = teacher.engine().view().unwrap();
        let mut loading = Loading::new(Arc::new(MemoryEngine::default())).unwrap();
        let first = chunk(&*view, None, 300).unwrap();
        let second = chunk(&*view, first.last_key.as_deref(), 300).unwrap();
        let mut flipped = first.body.to_vec();
        flipped[40] ^= 1;
        assert!(loading.add(&RowsChunk { body: flipped.into(), ..first.clone() }).is_err());
        loading.add(&first).unwrap();
        assert!(loading.add(&first).is_err(), "twice");
        assert!(loading.add(&RowsChunk { last_key: None, ..second.clone() }).is_err());
        let mut delete = BodyBuilder::default();
        delete.delete(b"\0\x01zz");
        let body = delete.finish();
        let crc = crc32c::crc32c(&body);
        assert!(loading.add(&RowsChunk { body, crc, last_key: None, done: false }).is_err());
        loading.add(&second).unwrap();
        assert!(loading.finish(Decree(51), 0).is_err(), "unfinished");
    }

    #[test]
    fn an_empty_partition_is_one_empty_chunk() {
        let store = Store::default();
        let got = chunk(&*store.engine().view().unwrap(), None, 100).unwrap();
        assert_eq!(got, RowsChunk { body: Bytes::new(), crc: 0, last_key: None, done: true });
    }
}
