//! The log against disks that lose, tear, flip and fail; one binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod basics;
mod damage;
mod faults;
mod kill;
mod model;
mod support;
mod threads;
mod torn;
