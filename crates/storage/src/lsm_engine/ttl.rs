//! What compaction drops: rows that have long expired. Also how a compaction is told to stop, and has its output
//! synced meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lsm_tree::compaction::filter::Context;
use lsm_tree::compaction::{CompactionFilter, Factory, ItemAccessor, Verdict};

use super::writeback::Writeback;
use crate::engine::{RESERVED_KEYS, Stop};
use crate::schema::{Value, may_purge};

/// Shared between a partition and the compactions of its tree.
#[derive(Debug, Default)]
pub struct Purge {
    pub newest_committed_us: AtomicU64,
    pub closed: AtomicBool,
    /// Of the compaction of everything that is under way.
    pub stop: Mutex<Option<Stop>>,
}

pub struct PurgeFactory {
    pub shared: Arc<Purge>,
    /// Of the tree.
    pub dir: PathBuf,
    pub purge_after: Duration,
}

struct PurgeFilter {
    shared: Arc<Purge>,
    stop: Option<Stop>,
    purge_after_s: u64,
    local_unix_s: u64,
    newest_committed_us: u64,
    writeback: Writeback,
}

/// The partition is being closed, or the compaction was asked to end.
pub fn stopped() -> lsm_tree::Error {
    lsm_tree::Error::Io(std::io::Error::new(std::io::ErrorKind::Interrupted, "it was asked to end"))
}

impl Factory for PurgeFactory {
    fn name(&self) -> &str {
        "long expired rows"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(PurgeFilter {
            shared: Arc::clone(&self.shared),
            stop: self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            purge_after_s: self.purge_after.as_secs(),
            local_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            newest_committed_us: self.shared.newest_committed_us.load(Ordering::Acquire),
            writeback: Writeback::new(&self.dir),
        })
    }
}

impl CompactionFilter for PurgeFilter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        if self.shared.closed.load(Ordering::Relaxed) || self.stop.as_ref().is_some_and(Stop::is_set) {
            return Err(stopped());
        }
        if item.key().starts_with(&RESERVED_KEYS) {
            return Ok(Verdict::Keep);
        }
        // A value that cannot be decoded is for reads to complain about.
        let value = item.value()?;
        self.writeback.wrote(item.key().len() + value.len());
        let Ok(value) = Value::decode(value.into()) else { return Ok(Verdict::Keep) };
        let purge =
            may_purge(value.expire_ts(), self.purge_after_s, self.local_unix_s, self.newest_committed_us);
        Ok(if purge { Verdict::Remove } else { Verdict::Keep })
    }
}
