//! A partition to try operations on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pegasus_types::data::{UpdateRequest, WriteRequest, WriteResponse};
use pegasus_types::hash::encode_key;
use pegasus_types::mutation::BodyBuilder;
use pegasus_types::time::epoch_seconds;
use pegasus_types::{Decree, LogLocation};

use super::{DecideAt, ReadAt, ReadLimits, Resolved, resolve};
use crate::engine::PartitionEngine;
use crate::memory_engine::MemoryEngine;
use crate::schema::Value;

const NOW_US: u64 = 1_700_000_000_000_000;

pub const AT: DecideAt =
    DecideAt { timestamp_us: NOW_US, epoch_now: epoch_seconds(NOW_US), default_ttl_s: 0, cluster_id: 1 };

pub const READ_AT: ReadAt = ReadAt {
    epoch_now: AT.epoch_now,
    limits: ReadLimits {
        multi_get_iterations: 3000,
        multi_get_bytes: 30 << 20,
        scan_iterations: 1000,
        time: Duration::from_secs(30),
    },
};

#[derive(Debug)]
pub struct Store {
    engine: Arc<dyn PartitionEngine>,
}

impl Default for Store {
    fn default() -> Self {
        Self::over(Arc::new(MemoryEngine::default()))
    }
}

impl Store {
    pub fn over(engine: Arc<dyn PartitionEngine>) -> Self {
        Self { engine }
    }

    pub fn engine(&self) -> &dyn PartitionEngine {
        &*self.engine
    }

    pub fn write(&mut self, request: &WriteRequest) -> Resolved {
        self.write_at(request, &AT)
    }

    /// Resolves and applies.
    pub fn write_at(&mut self, request: &WriteRequest, at: &DecideAt) -> Resolved {
        let mut body = BodyBuilder::default();
        let resolved = resolve(request, &self.engine(), at, &mut body).unwrap();
        match &resolved {
            Resolved::Write(_) => {
                let decree = self.engine.applied_decree().next();
                self.engine.apply(decree, at.timestamp_us, &body.finish(), LogLocation::default()).unwrap();
            }
            Resolved::Unchanged(_) | Resolved::Refused(_) => assert!(body.is_empty()),
        }
        resolved
    }

    pub fn put(&mut self, hash_key: &str, sort_key: &str, value: &str) {
        self.put_until(hash_key, sort_key, value, 0);
    }

    pub fn put_until(&mut self, hash_key: &str, sort_key: &str, value: &str, expire_ts_seconds: i32) {
        let key = encode_key(hash_key.as_bytes(), sort_key.as_bytes()).unwrap();
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.write(&WriteRequest::Put(UpdateRequest { key, value, expire_ts_seconds }));
    }

    pub fn remove(&mut self, hash_key: &str, sort_key: &str) {
        let key = encode_key(hash_key.as_bytes(), sort_key.as_bytes()).unwrap();
        self.write(&WriteRequest::Remove { key });
    }

    pub fn get(&self, key: &[u8]) -> Option<Value> {
        self.engine.get(key).unwrap()
    }

    pub fn is_untouched(&self) -> bool {
        self.engine.applied_decree() == Decree::ZERO
    }
}

/// The error number of a write's answer.
pub fn error_of(resolved: &Resolved) -> i32 {
    let (Resolved::Write(answer) | Resolved::Unchanged(answer) | Resolved::Refused(answer)) = resolved;
    match answer {
        WriteResponse::Update(a) => a.error,
        WriteResponse::MultiRemove(a) => a.error,
        WriteResponse::Incr(a) => a.error,
        WriteResponse::Check(a) => a.error,
    }
}
