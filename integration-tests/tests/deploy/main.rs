//! From the package to a running cluster: what an operator has to do, done with real processes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: also its helpers may panic, and tell what they measured"
)]

mod deb;
mod docs;
mod formats;
mod mistakes;
mod notify;
mod package;
mod prometheus;
mod restart;
mod servers;
mod units;
mod walk;
