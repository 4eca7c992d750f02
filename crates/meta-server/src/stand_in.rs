//! A standby whose leader is not reached tells clients where tables lie, from what is stored.
//!
//! Between a leader's death and the end of its session with the store nobody else may lead, and new clients would find
//! nobody who knows the layout. What is stored may be old only if a leader lives whom we alone do not reach; the
//! client is then refused by a node that is not the primary any more, and asks again.

use std::time::Duration;

use pegasus_zk_coordination::MetaStore;
use pegasus_zk_coordination::tree::Tree;
use tokio::time::{Instant, sleep};

use crate::role::Role;
use crate::{persist, rivals};

/// Between looks at the leader.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is stored is read again after this time: a leader whom others reach may have changed it.
const RELOAD: Duration = Duration::from_secs(3);

/// Takes back what is told, however this ends.
struct Told<'a>(&'a Role);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.set_stored(None);
    }
}

/// Runs for ever, beside a standby that is in touch with the store.
pub async fn run(role: &Role, store: &dyn MetaStore, tree: &Tree) {
    let _told = Told(role);
    let mut loaded: Option<Instant> = None;
    loop {
        sleep(INTERVAL).await;
        let leader = role.other_leader();
        if let Some(leader) = &leader
            && rivals::leads(role, leader).await
        {
            role.set_stored(None);
            loaded = None;
        } else if loaded.is_none_or(|at| at.elapsed() >= RELOAD) {
            match persist::load(store, tree).await {
                Ok(ledger) => {
                    if loaded.is_none() {
                        tracing::info!(?leader, "the leader is not reached: clients are told what is stored");
                    }
                    role.set_stored(Some(ledger.view().clone()));
                    loaded = Some(Instant::now());
                }
                Err(error) => {
                    tracing::warn!(%error, "the leader is not reached, and what is stored is not read")
                }
            }
        }
    }
}
