//! Sessions with the metadata store, one after another; in each this meta-server stands for election and
//! follows what comes of it.

use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_meta_core::WriterError;
use pegasus_telemetry::Shutdown;
use pegasus_types::Node;
use pegasus_zk_coordination::store::StoreFuture;
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{
    Election, FencedStore, Leadership, MetaStore, SessionState, StoreError, election,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::isolation;
use crate::persist;
use crate::published::About;
use crate::role::{Role, Standing};
use crate::stand_in;
use crate::term;

/// After a session that failed, so that a store in trouble is not flooded.
const PAUSE: Duration = Duration::from_secs(1);
/// After a term that failed: another meta-server has its turn first.
const FAILED_TERM_PAUSE: Duration = Duration::from_secs(5);
/// A store that is asked to take our place back answers within milliseconds, or not at all.
const RESIGN_WITHIN: Duration = Duration::from_secs(2);
/// In an error of several hundred bytes the rest is repetition.
const MAX_REASON: usize = 500;

/// Why a session is given up by a leader that reaches the store.
#[derive(Debug, thiserror::Error)]
#[error("no node and no other meta-server is reached: another one is to lead")]
struct Isolated;

/// Where sessions come from.
#[derive(Clone)]
pub enum Stores {
    /// The one of this process: when it is lost the meta-server ends.
    One(Arc<dyn MetaStore>),
    /// A new session after each that is over.
    Sessions(Rc<dyn Fn() -> StoreFuture<Arc<dyn MetaStore>>>),
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(store) => write!(f, "One({})", store.describe()),
            Self::Sessions(_) => f.write_str("Sessions"),
        }
    }
}

/// Runs until the shutdown. Fails when a store of the kind [`Stores::One`] is lost or unusable.
pub async fn run(role: &Rc<Role>, stores: Stores, shutdown: &Shutdown) -> anyhow::Result<()> {
    let tree = Tree::new(&role.config.meta.cluster_root);
    let mut told = String::new();
    loop {
        let store = match &stores {
            Stores::One(store) => Ok(store.clone()),
            Stores::Sessions(open) => match shutdown.or(open()).await {
                Some(opened) => opened,
                None => return Ok(()),
            },
        };
        let result = match store {
            Ok(store) => {
                told.clear();
                let result = session(role, &store, &tree, shutdown).await;
                role.set_in_touch(false);
                if let Standing::Follows(Some(_)) = role.now() {
                    role.follow(None);
                }
                result
            }
            Err(error) => Err(error.into()),
        };
        if shutdown.is_triggered() {
            return Ok(());
        }
        let pause = match (result, &stores) {
            (Ok(()), Stores::One(_)) => anyhow::bail!("the metadata store is lost: the session is over"),
            (Err(error), Stores::One(_)) => return Err(error),
            (Ok(()), Stores::Sessions(_)) => {
                tracing::warn!("the session with the metadata store is over; making a new one");
                PAUSE
            }
            (Err(error), Stores::Sessions(_)) => {
                let why: String = format!("{error:#}").chars().take(MAX_REASON).collect();
                // Once, not with every try.
                if why != told {
                    tracing::error!(
                        why,
                        "this session with the metadata store was of no use; trying again and again"
                    );
                    told = why;
                }
                if error.is::<WriterError>() || error.is::<Isolated>() { FAILED_TERM_PAUSE } else { PAUSE }
            }
        };
        if shutdown.or(sleep(pause)).await.is_none() {
            return Ok(());
        }
    }
}

/// Returns when the session is over or given back after the shutdown.
async fn session(
    role: &Rc<Role>,
    store: &Arc<dyn MetaStore>,
    tree: &Tree,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let known = Some(role.identity.cluster_id()).filter(|id| !id.is_empty());
    let Some(cluster_id) = shutdown.or(persist::cluster_id(&**store, tree, known.as_deref())).await else {
        return Ok(());
    };
    let cluster_id = cluster_id?;
    role.identity.learn_cluster_id(&cluster_id);
    let about = Arc::new(About {
        cluster_id,
        cluster_name: role.config.cluster.cluster_name.clone(),
        me: role.me.clone(),
        metas: role.metas.clone(),
        store: store.describe(),
        root: tree.root().to_owned(),
        min_replica_count: role.config.writing.mutation_2pc_min_replica_count,
    });
    let options = election::Options {
        tree: tree.clone(),
        lock_root: role.config.meta.distributed_lock_service_parameters.clone(),
        me: role.me.clone(),
        session_ms: u64::try_from(store.session_timeout().as_millis()).unwrap_or(u64::MAX),
    };
    let (tell, leadership) = watch::channel(Leadership::Standby { leader: None });
    let stop = shutdown.child();
    let mut follow = pin!(follow(role, about, store, tree, leadership, shutdown));
    let mut elect = pin!(election::run(&**store, Election::new(options), &tell, stop.triggered()));
    tokio::select! {
        // Its last word was that it is over.
        () = &mut elect => follow.await,
        result = &mut follow => {
            stop.trigger();
            // Without a store there is nobody to give it back to.
            if timeout(RESIGN_WITHIN, &mut elect).await.is_err() {
                tracing::warn!("the store does not answer: our place there ends with the session");
            }
            result
        }
    }
}

/// Does what the election says, until nothing more comes of it or the shutdown.
async fn follow(
    role: &Rc<Role>,
    about: Arc<About>,
    store: &Arc<dyn MetaStore>,
    tree: &Tree,
    mut leadership: watch::Receiver<Leadership>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let mut session = store.session();
    let line = tree.leader_lock(&role.config.meta.distributed_lock_service_parameters);
    loop {
        let is_connected = *session.borrow_and_update() == SessionState::Connected;
        let now = leadership.borrow_and_update().clone();
        let in_touch = is_connected && !matches!(now, Leadership::Suspended(_));
        role.set_in_touch(in_touch);
        match now {
            Leadership::Leading(fence) => {
                let stop = shutdown.child();
                let fenced = FencedStore::new(store.clone(), fence.clone());
                let result = {
                    let mut lead = pin!(term::lead(role, about.clone(), &fenced, tree, &stop));
                    let deposed = leadership.wait_for(|now| now.leading() != Some(&fence));
                    tokio::select! {
                        result = &mut lead => result,
                        _ = deposed => {
                            stop.trigger();
                            lead.await
                        }
                        () = isolation::found(role, &**store, &line) => {
                            stop.trigger();
                            lead.await?;
                            return Err(Isolated.into());
                        }
                    }
                };
                match result {
                    // The election finds out what is true.
                    Ok(()) | Err(WriterError::NotLeader | WriterError::Store(StoreError::SessionOver)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Leadership::Standby { leader } => {
                role.follow(leader.filter(|leader: &Node| in_touch && *leader != role.me));
            }
            Leadership::Suspended(_) => {}
            Leadership::Over => return Ok(()),
        }
        let standby = in_touch && matches!(*leadership.borrow(), Leadership::Standby { .. });
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            _ = session.changed() => {}
            () = shutdown.triggered() => return Ok(()),
            () = stand_in::run(role, &**store, tree), if standby => {}
        }
    }
}
