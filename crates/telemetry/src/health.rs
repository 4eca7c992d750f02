//! Why a role is not ready, in words for `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the parts of one role: each names what it still waits for.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Health {
    /// The part that [`Self::starting`] waits for.
    pub const START: &str = "start";

    /// Not ready until `ready(START)`.
    pub fn starting() -> Self {
        let health = Self::default();
        health.not_ready(Self::START, "starting");
        health
    }

    pub fn not_ready(&self, part: &'static str, why: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, why.into());
    }

    pub fn ready(&self, part: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    pub fn waits_for(&self, part: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(part)
    }

    /// Empty = ready.
    pub fn reasons(&self) -> Vec<String> {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.iter().map(|(part, why)| format!("{part}: {why}")).collect()
    }
}
