//! What a primary sees when it resolves a write: the engine under the writes in flight.

use std::cell::{Cell, RefCell};

use pegasus_storage::ops::Reader;
use pegasus_storage::{EngineError, PartitionEngine, Value};

use super::inflight::Inflight;

#[derive(Debug)]
pub struct Overlay<'a, R> {
    inflight: RefCell<&'a mut Inflight<R>>,
    engine: &'a dyn PartitionEngine,
    saw_pending: Cell<bool>,
}

impl<'a, R> Overlay<'a, R> {
    pub fn new(inflight: &'a mut Inflight<R>, engine: &'a dyn PartitionEngine) -> Self {
        Self { inflight: RefCell::new(inflight), engine, saw_pending: Cell::new(false) }
    }

    /// Something that was read is not committed yet.
    pub fn saw_pending(&self) -> bool {
        self.saw_pending.get()
    }
}

impl<R> Reader for Overlay<'_, R> {
    fn get(&self, key: &[u8]) -> Result<Option<Value>, EngineError> {
        let Some(pending) = self.inflight.borrow_mut().overlay(key) else { return self.engine.get(key) };
        self.saw_pending.set(true);
        pending
            .map(|stored| Value::decode(stored).map_err(|error| EngineError::Corrupt(error.to_string())))
            .transpose()
    }
}
