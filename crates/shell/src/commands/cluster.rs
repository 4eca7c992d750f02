//! Commands on the cluster and its servers.

use std::collections::BTreeMap;

use futures::future::join_all;
use pegasus_types::{AppStatus, Node};
use serde_json::json;

use super::placement;
use super::stats::{self, unknown_target};
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
    let mut usage = BTreeMap::new();
    if args.has('u') {
        columns.extend(stats::USAGE_COLUMNS);
        let alive: Vec<_> =
            nodes.iter().filter(|state| state.alive).map(|state| state.node.clone()).collect();
        usage = stats::usage(session, &alive, out).await?;
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
            if args.has('u') {
                let unknown = || vec!["-".to_owned(); stats::USAGE_COLUMNS.len()];
                row.extend(usage.remove(&state.node).unwrap_or_else(unknown));
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
    let nodes = placement::nodes(session).await.unwrap_or_default();
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

/// The servers that `-l` names or that are of the kind of `-t`; all without either.
pub async fn servers(session: &Session, args: &Args) -> Result<Vec<Node>> {
    if let Some(named) = args.flag('l') {
        let parse = |server: &str| server.parse::<Node>().map_err(|error| Usage(format!("-l: {error}")));
        return Ok(text(named.to_vec(), "servers")?
            .split(',')
            .map(parse)
            .collect::<std::result::Result<_, _>>()?);
    }
    let kind = args.flag('t').map(|kind| text(kind.to_vec(), "kind")).transpose()?;
    let (metas, replicas) = match kind.as_deref() {
        None | Some("all") => (true, true),
        Some("meta-server") => (true, false),
        Some("replica-server") => (false, true),
        Some(other) => return Err(unknown_target(other).into()),
    };
    let mut servers = if metas { session.cluster.metas().to_vec() } else { Vec::new() };
    if replicas {
        let mut nodes: Vec<_> = session.cluster.nodes().await?.into_iter().map(|state| state.node).collect();
        nodes.sort();
        servers.extend(nodes);
    }
    Ok(servers)
}

pub async fn server_info(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    let servers = servers(session, &args).await?;
    args.end()?;
    call(session, &servers, "server-info", &[], out).await
}

pub async fn remote_command(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let command = args.text("command")?;
    let arguments = args.rest().into_iter().map(|word| text(word, "argument"));
    let arguments: Vec<_> = arguments.collect::<std::result::Result<_, Usage>>()?;
    let servers = servers(session, &args).await?;
    call(session, &servers, &command, &arguments, out).await
}

/// What each of the servers answers.
async fn call(
    session: &Session,
    servers: &[Node],
    command: &str,
    arguments: &[String],
    out: &mut Output<'_>,
) -> Result {
    let answers =
        join_all(servers.iter().map(|server| session.cluster.remote_command(server, command, arguments)));
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
