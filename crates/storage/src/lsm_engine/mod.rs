//! In work.

use std::path::Path;
use std::sync::Arc;

use crate::engine::*;

#[derive(Debug)]
pub struct LsmFactory;

impl LsmFactory {
    pub fn new(_: EngineOptions) -> Self {
        Self
    }
}

impl EngineFactory for LsmFactory {
    fn kind(&self) -> EngineKind {
        EngineKind::Lsm
    }
    fn open(&self, _: &Path) -> Result<Arc<dyn PartitionEngine>, EngineError> {
        Err(EngineError::WrongEngine("in work".to_owned()))
    }
    fn stats(&self) -> FactoryStats {
        FactoryStats::default()
    }
    fn pressure(&self) -> Pressure {
        Pressure::None
    }
}
