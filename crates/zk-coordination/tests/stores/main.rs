//! One suite for all stores, and what only a real ZooKeeper can show. Debian's package `zookeeper` must be
//! installed (`make test` sees to it); each test that needs one starts its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "figures, for who runs it with --nocapture")]

mod ensemble;
mod suite;
mod zookeeper;

use std::sync::Arc;

use pegasus_zk_coordination::{MemoryStore, SessionState, SledStore};

#[tokio::test]
async fn memory() {
    let first = Arc::new(MemoryStore::default());
    let second = Arc::new(first.join());
    suite::of_one_session(&(first.clone() as suite::Store)).await;
    suite::of_two_sessions(first.clone(), second, async { first.set_state(SessionState::Over) }).await;
}

#[tokio::test]
async fn embedded() {
    let dir = tempfile::tempdir().unwrap();
    let store: suite::Store = Arc::new(SledStore::open(dir.path()).unwrap());
    suite::of_one_session(&store).await;
}
