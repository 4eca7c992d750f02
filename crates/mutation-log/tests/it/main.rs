//! The log against disks that lose, tear, flip and fail; one binary.

// Helpers are not `#[test]` functions, but only tests call them.
#![allow(clippy::unwrap_used)]

mod basics;
mod damage;
mod faults;
mod kill;
mod model;
mod support;
mod threads;
mod torn;
