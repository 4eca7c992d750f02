//! What a run tells while it goes on.

use std::fmt::Arguments;
use std::io::{Write, stdout};

/// A line for whoever watches. That nobody does any more, as after `| head`, ends no run of hours.
pub fn say(line: Arguments<'_>) {
    let _ = writeln!(stdout().lock(), "{line}");
}

/// As `println!`, by way of [`say`].
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => { $crate::say(format_args!($($line)*)) };
}
