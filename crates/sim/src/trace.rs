//! The log of a run: the same seed writes the same bytes.

use std::fmt::{Arguments, Write as _};

#[derive(Debug, Default)]
pub struct Trace {
    text: Option<String>,
}

impl Trace {
    pub fn off() -> Self {
        Self { text: None }
    }

    pub fn on() -> Self {
        Self { text: Some(String::new()) }
    }

    pub fn is_on(&self) -> bool {
        self.text.is_some()
    }

    pub fn line(&mut self, now: u64, what: Arguments<'_>) {
        if let Some(text) = &mut self.text {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:>9}.{:03} {what}", now / 1000, now % 1000);
        }
    }

    pub fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}
