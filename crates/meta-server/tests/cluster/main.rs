//! A whole meta-server in this process, with replica-servers that only pretend to hold data.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod election;
mod failures;
mod http;
mod many;
mod metadata;
mod metas;
mod moves;
mod tables;
mod unreached;
mod world;
