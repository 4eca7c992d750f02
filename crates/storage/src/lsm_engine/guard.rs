//! Calls into `lsm-tree`: its panics and errors become ours.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::engine::EngineError;
use crate::panics;

/// Runs a call into the library. A panic may leave its locks poisoned; later calls then panic too, and end here.
pub fn guarded<T>(what: &'static str, call: impl FnOnce() -> lsm_tree::Result<T>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| translate(what, e)),
        Err(panic) => Err(EngineError::Panicked(format!("{what}: {}", panics::message(&*panic)))),
    }
}

fn translate(what: &'static str, error: lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            EngineError::Corrupt(format!("{what}: a file is too short"))
        }
        lsm_tree::Error::Io(source) => EngineError::Io { what, source },
        other => EngineError::Corrupt(format!("{what}: {other:?}")),
    }
}
