//! Commands on the cluster and its servers.

use std::collections::BTreeMap;

use futures::future::join_all;
use pegasus_types::{AppStatus, Node};
use serde_json::json;

use super::tables::{Roles, count_roles};
use super::{Answer, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

pub async fn nodes(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let mut nodes = session.cluster.nodes().await?;
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    let states = node_states(session).await;
    let mut roles = BTreeMap::new();
    let mut columns = vec!["address", "status"];
    if args.has('d') {
        columns.extend(["replica_count", "primary_count", "secondary_count"]);
        for table in session.cluster.tables(Some(AppStatus::Available)).await? {
            count_roles(&session.cluster.partitions(&table.name).await?, &mut roles);
        }
    }
    let rows: Vec<_> = nodes
        .iter()
        .map(|state| {
            let plain = if state.alive { "ALIVE" } else { "UNALIVE" };
            let told = states.get(state.node.as_str()).map_or(plain, String::as_str);
            let mut row = vec![state.node.to_string(), told.to_owned()];
            if args.has('d') {
                let Roles { primary, secondary } = roles.get(&state.node).copied().unwrap_or_default();
                row.extend([primary + secondary, primary, secondary].map(|count| count.to_string()));
            }
            row
        })
        .collect();
    out.table("details", &columns, &rows)?;
    let alive = nodes.iter().filter(|state| state.alive).count();
    out.fields(
        "summary",
        &[
            ("total_node_count", nodes.len().to_string()),
            ("alive_node_count", alive.to_string()),
            ("unalive_node_count", (nodes.len() - alive).to_string()),
        ],
    )?;
    Ok(Answer::Yes)
}

/// What the leader calls the state of each node, by address: DRAINING and RETIRED are known to no other command. Empty
/// when it does not say.
async fn node_states(session: &Session) -> BTreeMap<String, String> {
    let told = session.cluster.leader_command("meta.nodes", &[]).await.unwrap_or_default();
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap_or_default();
    let state = |node: &serde_json::Value| {
        let text = |key: &str| node.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
        Some((text("address")?, text("state")?))
    };
    nodes.iter().filter_map(state).collect()
}

pub async fn cluster_info(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let info = session.cluster.info().await?;
    let fields: Vec<_> = info.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    out.fields("cluster_info", &fields)?;
    Ok(Answer::Yes)
}

pub async fn remote_command(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let servers = args.flag('l').ok_or_else(|| Usage("-l host:port[,...] is missing".to_owned()))?;
    let servers = text(servers.to_vec(), "servers")?;
    let servers: Vec<Node> = servers
        .split(',')
        .map(|server| server.parse().map_err(|error| Usage(format!("-l: {error}"))))
        .collect::<std::result::Result<_, Usage>>()?;
    let command = args.text("command")?;
    let arguments: Vec<_> = args
        .rest()
        .into_iter()
        .map(|word| text(word, "argument"))
        .collect::<std::result::Result<_, Usage>>()?;
    let answers =
        join_all(servers.iter().map(|server| session.cluster.remote_command(server, &command, &arguments)));
    let mut all = true;
    for (server, answer) in servers.iter().zip(answers.await) {
        all &= answer.is_ok();
        let (acked, message) = match answer {
            Ok(message) => (true, message),
            Err(error) => (false, error.to_string()),
        };
        let outcome = if acked { "succeed" } else { "failed" };
        out.fact(
            server.as_str(),
            json!({ "acked": acked, "message": message }),
            format_args!("CALL [{server}] {outcome}: {message}"),
        )?;
    }
    Ok(if all { Answer::Yes } else { Answer::No })
}
