//! In work.

use std::path::Path;
use std::sync::Arc;

use crate::engine::*;

#[derive(Debug)]
pub struct SledFactory;

impl SledFactory {
    pub fn new(_: EngineOptions) -> Self {
        Self
    }
}

impl EngineFactory for SledFactory {
    fn kind(&self) -> EngineKind {
        EngineKind::Sled
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
