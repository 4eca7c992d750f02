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
/// Ages are told in whole seconds: a process must have this age, so that the next one can be told from it.
const OLD_ENOUGH: Duration = Duration::from_secs(3);
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
    let before = loop {
        let up = uptime(session, node).await.ok_or("it does not answer")?;
        if up >= OLD_ENOUGH {
            break up;
        }
        sleep(LOOK_INTERVAL).await;
    };
    let asked = Instant::now();
    let told =
        session.cluster.remote_command(node, "server.stop", &[]).await.map_err(|error| error.to_string())?;
    if !told.starts_with("OK") {
        return Err(format!("it does not end: {told}"));
    }
    loop {
        if uptime(session, node).await.is_some_and(|up| is_another(before, asked.elapsed(), up)) {
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

/// Whether a process of age `up` is another one than that of age `before`, so much later. Whole seconds are cut off.
fn is_another(before: Duration, later: Duration, up: Duration) -> bool {
    up + Duration::from_secs(2) <= before + later
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

    /// The old process answers for a while after it was told to end; it must not be taken for the new one.
    #[test]
    fn an_old_process_is_never_taken_for_a_new_one() {
        let ms = Duration::from_millis;
        let told = |age: Duration| Duration::from_secs(age.as_secs());
        for before in (3_000..9_000).step_by(130) {
            for later in (0..30_000).step_by(170) {
                let (asked, old) = (told(ms(before)), told(ms(before + later)));
                assert!(!is_another(asked, ms(later), old), "{before} {later}");
                let fresh = told(ms(later.saturating_sub(100)));
                assert!(is_another(asked, ms(later), fresh) || later < 100, "{before} {later}: never found");
            }
        }
    }

    #[test]
    fn uptimes() {
        let told = "Pegasus Server 0.1.0 (x) debug, replica-server 127.0.0.1:34801, up 17 s";
        assert_eq!(read_uptime(told), Some(Duration::from_secs(17)));
        for nonsense in ["", "up s", "up 1 m", "unknown command 'server-info'"] {
            assert_eq!(read_uptime(nonsense), None, "{nonsense}");
        }
    }
}
