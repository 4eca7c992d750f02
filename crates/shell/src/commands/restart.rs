//! `rolling_restart`: replica-servers are restarted one after the other, never two at a time.
//!
//! ```text
//!  all tables healthy? ─▶ server.stop: the node hands over and ends ─▶ its supervisor starts it ─▶ it answers, tables healthy ─▶ next
//! ```
//!
//! Whatever does not come about in time ends it: a cluster that is not whole must not lose one more.

use std::time::Duration;

use pegasus_types::{AppStatus, Node};
use tokio::time::{Instant, sleep};

use super::{Answer, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

/// For one node: to hand over, to end, to be started and loaded, and for its replicas to catch up.
const WITHIN: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A node that has ended needs no longer to be found gone.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub async fn rolling_restart(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let within = args.flag_as::<u64>('w')?.map_or(WITHIN, Duration::from_secs);
    let mut nodes = Vec::new();
    for word in args.rest() {
        nodes.push(text(word, "node")?.parse::<Node>().map_err(|error| Usage(error.to_string()))?);
    }
    let known = session.cluster.nodes().await?;
    if let Some(stranger) = nodes.iter().find(|node| !known.iter().any(|state| state.node == **node)) {
        return Err(
            Usage(format!("{stranger} is no replica-server of this cluster: `nodes` lists them")).into()
        );
    }
    if nodes.is_empty() {
        nodes = known.iter().filter(|state| state.alive).map(|state| state.node.clone()).collect();
        nodes.sort();
    }
    let mut done = 0;
    for (n, node) in nodes.iter().enumerate() {
        let begun = Instant::now();
        let restarted = restart(session, node, within).await;
        let place = format!("{} of {}", n + 1, nodes.len());
        match restarted {
            Ok(()) => out.remark(format_args!("{place}: {node} is back, {} s", begun.elapsed().as_secs()))?,
            Err(why) => {
                let stopped = format!("{place}: {node}: {why}. Nothing more is restarted");
                out.fact("stopped", stopped.as_str(), &stopped)?;
                break;
            }
        }
        done += 1;
    }
    out.fact("restarted", done, format_args!("{done} of {} replica-servers restarted", nodes.len()))?;
    Ok(if done == nodes.len() { Answer::Yes } else { Answer::No })
}

/// The reason when it does not come back whole.
async fn restart(session: &Session, node: &Node, within: Duration) -> std::result::Result<(), String> {
    let by = Instant::now() + within;
    healthy(session, by).await.map_err(|why| format!("before: {why}"))?;
    let before = uptime(session, node).await.ok_or("it does not answer")?;
    let asked = Instant::now();
    let told =
        session.cluster.remote_command(node, "server.stop", &[]).await.map_err(|error| error.to_string())?;
    if !told.starts_with("OK") {
        return Err(format!("it does not end: {told}"));
    }
    loop {
        // The new process is younger than the order.
        let younger = |up: &Duration| *up <= asked.elapsed() && *up < before + asked.elapsed();
        if uptime(session, node).await.filter(younger).is_some() {
            break;
        }
        if Instant::now() >= by {
            return Err(format!(
                "it has not come back within {} s: does a supervisor start it again (systemd, Restart=always)?",
                within.as_secs()
            ));
        }
        sleep(LOOK_INTERVAL).await;
    }
    healthy(session, by).await
}

/// Every table has all its replicas.
async fn healthy(session: &Session, by: Instant) -> std::result::Result<(), String> {
    let tables =
        session.cluster.tables(Some(AppStatus::Available)).await.map_err(|error| error.to_string())?;
    for table in tables {
        let left = by.saturating_duration_since(Instant::now()).max(LOOK_INTERVAL);
        session
            .cluster
            .wait_healthy(&table.name, left)
            .await
            .map_err(|error| format!("table {}: {error}", table.name))?;
    }
    Ok(())
}

/// Of its process, in whole seconds.
async fn uptime(session: &Session, node: &Node) -> Option<Duration> {
    let asking = session.cluster.remote_command(node, "server-info", &[]);
    let told = tokio::time::timeout(ANSWER_WITHIN, asking).await.ok()?.ok()?;
    read_uptime(&told)
}

/// `..., up 12 s`
fn read_uptime(told: &str) -> Option<Duration> {
    let (_, up) = told.rsplit_once("up ")?;
    up.trim().strip_suffix(" s")?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes() {
        let told = "Pegasus Server 0.1.0 (x) debug, replica-server 127.0.0.1:34801, up 17 s";
        assert_eq!(read_uptime(told), Some(Duration::from_secs(17)));
        for nonsense in ["", "up s", "up 1 m", "unknown command 'server-info'"] {
            assert_eq!(read_uptime(nonsense), None, "{nonsense}");
        }
    }
}
