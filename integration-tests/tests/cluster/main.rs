//! Clusters of real processes, and what may happen to them. One binary; the clusters come one after the other.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: also its helpers may panic, and tell what they measured"
)]

mod compaction;
mod copy_clear;
mod failover;
mod first_session;
mod garbage;
mod idle;
mod metas_gone;
mod python;
mod restart;
mod rolling;
mod rounds;
