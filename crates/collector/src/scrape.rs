//! Asking the replica-servers: what each holds (tarpc) and what it has counted (`GET /metrics`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use pegasus_rpc::peer::{NodeStats, PeerPool};
use pegasus_types::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// One node must have answered both questions within this time: half a cluster that is down must not hold up the rest.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Nodes asked at a time.
const AT_A_TIME: usize = 16;
/// Metrics of a node: some hundred bytes per table, operation and latency bucket.
const TEXT_BYTES_MAX: usize = 32 << 20;

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
    let metrics = get(node, "/metrics").await?;
    Ok(Answer { stats, metrics })
}

/// The body of a GET, in the oldest and simplest way: the answer ends with the connection.
async fn get(node: &Node, path: &str) -> Result<String, String> {
    let fail = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(node.as_str()).await.map_err(|error| fail("connect", error))?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {node}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|error| fail("ask", error))?;
    let mut bytes = Vec::new();
    let mut limited = stream.take(TEXT_BYTES_MAX as u64 + 1);
    limited.read_to_end(&mut bytes).await.map_err(|error| fail("read", error))?;
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(format!("{path} has more than {TEXT_BYTES_MAX} bytes"));
    }
    body(String::from_utf8(bytes).map_err(|_| format!("{path} is not text"))?)
}

fn body(answer: String) -> Result<String, String> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err("not an HTTP answer".to_owned());
    };
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("answered {status:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let good = "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\na 1\n\r\n\r\n";
        assert_eq!(body(good.to_owned()), Ok("a 1\n\r\n\r\n".to_owned()));
        for bad in
            ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\nno", "SSH-2.0\r\n\r\n"]
        {
            assert!(body(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
