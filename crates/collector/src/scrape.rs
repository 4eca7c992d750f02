//! Asking the replica-servers: what each holds (tarpc) and what it has counted (`GET /metrics`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use pegasus_client::http_get;
use pegasus_rpc::peer::{NodeStats, PeerPool};
use pegasus_types::Node;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// One node must have answered both questions within this time: half a cluster that is down must not hold up the rest.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Nodes asked at a time.
const AT_A_TIME: usize = 16;

/// What one replica-server said.
#[derive(Debug)]
pub struct Answer {
    pub stats: NodeStats,
    /// Prometheus text.
    pub metrics: String,
}

/// Asks all nodes at once. Who does not answer is in the map with the reason.
pub async fn all(pool: &PeerPool, nodes: &[Node]) -> BTreeMap<Node, Result<Answer, String>> {
    let slots = Rc::new(Semaphore::new(AT_A_TIME));
    let mut asking = JoinSet::new();
    for node in nodes {
        let (pool, node, slots) = (pool.clone(), node.clone(), slots.clone());
        asking.spawn_local(async move {
            let _slot = slots.acquire().await;
            let answer = timeout(ANSWER_WITHIN, ask(&pool, &node)).await;
            (node, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(done) = asking.join_next().await {
        answers.extend(done.ok()); // a task that panicked has logged it, and its node has not answered
    }
    answers
}

async fn ask(pool: &PeerPool, node: &Node) -> Result<Answer, String> {
    let stats = pool.replica(node).stats(ANSWER_WITHIN).await.map_err(|error| error.to_string())?;
    let metrics = http_get(node, "/metrics").await?;
    Ok(Answer { stats, metrics })
}
