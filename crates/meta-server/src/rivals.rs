//! While the store is out of touch: does another meta-server lead? Their own words count, and those of
//! one that is in touch.
//!
//! Without this, who led last and was cut off would send its clients astray, and who starts without the store
//! could send them nowhere.

use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use pegasus_rpc::peer::{CallError, DialError};
use pegasus_types::meta::QueryReply;
use pegasus_types::{Gpid, Node};
use tokio::time::sleep;

use crate::role::{Role, Standing};

const INTERVAL: Duration = Duration::from_secs(1);
/// For one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Any will do: only who leads answers such a question.
const SOME_PARTITION: Gpid = Gpid { app_id: 0, index: 0 };

/// What the other metas said.
enum Found {
    Leader(Node),
    /// So many did not answer: one of them may lead.
    Nobody {
        silent: usize,
    },
}

/// Runs for ever.
pub async fn run(role: Rc<Role>) {
    loop {
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = role.look_around.notified() => {}
        }
        if role.is_in_touch() {
            continue;
        }
        let found = ask(&role).await;
        // The store may have been reached meanwhile: it knows better.
        if role.is_in_touch() {
            continue;
        }
        match (role.now(), found) {
            (Standing::Follows(_) | Standing::Suspended { .. }, Found::Leader(leader)) => {
                role.follow(Some(leader));
            }
            (Standing::Follows(_), Found::Nobody { .. }) => role.follow(None),
            (Standing::Suspended { .. }, Found::Nobody { silent }) => {
                role.set_alone(silent * 2 < role.metas.len());
            }
            _ => {}
        }
    }
}

/// Does this one say of itself that it leads?
pub async fn leads(role: &Role, node: &Node) -> bool {
    let answer = role.pool.meta(node).query(ANSWER_WITHIN, SOME_PARTITION).await;
    matches!(answer, Ok(QueryReply::Known(..) | QueryReply::Unknown))
}

/// Does any other meta-server answer, or its machine in its place?
pub async fn is_any_reached(role: &Role) -> bool {
    let others = role.metas.iter().filter(|node| **node != role.me);
    let asked = others.map(|node| async {
        let answer = role.pool.meta(node).query(ANSWER_WITHIN, SOME_PARTITION).await;
        matches!(answer, Ok(_) | Err(CallError::Unreachable(DialError::ConnectionRefused)))
    });
    join_all(asked).await.contains(&true)
}

async fn ask(role: &Role) -> Found {
    let mut silent = 0;
    for node in role.metas.iter().filter(|node| **node != role.me) {
        match role.pool.meta(node).query(ANSWER_WITHIN, SOME_PARTITION).await {
            Ok(QueryReply::Known(..) | QueryReply::Unknown) => return Found::Leader(node.clone()),
            // Only who is in touch with the store names another one.
            Ok(QueryReply::NotLeader { leader: Some(leader) }) if leader != role.me => {
                return Found::Leader(leader);
            }
            Ok(QueryReply::NotLeader { .. }) | Err(CallError::Unreachable(DialError::ConnectionRefused)) => {}
            Err(_) => silent += 1,
        }
    }
    Found::Nobody { silent }
}
