//! Commands on where replicas are: levels, moves, nodes that leave, partitions that nobody holds.

use std::time::Duration;

use pegasus_client::MoveKind;
use pegasus_types::{Gpid, Node};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Answer, Failure, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

/// Names of the levels and their numbers in the protocol.
const LEVELS: [(&str, i32); 5] =
    [("stopped", 100), ("blind", 200), ("freezed", 300), ("steady", 400), ("lively", 500)];
/// Between looks at a node that is being emptied.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

fn level_name(number: i32) -> String {
    LEVELS
        .iter()
        .find(|(_, level)| *level == number)
        .map_or(number.to_string(), |(name, _)| format!("fl_{name}"))
}

pub async fn get_level(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let level = level_name(session.cluster.level().await?);
    out.fact("meta_level", level.as_str(), format_args!("current meta level is {level}"))?;
    Ok(Answer::Yes)
}

pub async fn set_level(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("level")?;
    args.end()?;
    let plain = name.strip_prefix("fl_").unwrap_or(&name);
    let level = LEVELS.iter().find(|(known, _)| *known == plain);
    let (_, level) = level.ok_or_else(|| {
        Usage(format!("{name:?} is not a level: stopped, blind, freezed, steady or lively"))
    })?;
    let old = level_name(session.cluster.set_level(*level).await?);
    out.fact("old_level", old.as_str(), format_args!("control meta level ok, the old level is {old}"))?;
    Ok(Answer::Yes)
}

pub async fn balance(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    if args.has('n') {
        return plan(session, args, out).await;
    }
    args.end()?;
    let gpid = gpid_flag(&args, 'g')?.ok_or_else(|| Usage("-g <app_id.index> is missing".to_owned()))?;
    let kind = match args.flag('p') {
        Some(b"move_pri") => MoveKind::MovePrimary,
        Some(b"copy_pri") => MoveKind::CopyPrimary,
        Some(b"copy_sec") => MoveKind::CopySecondary,
        _ => return Err(Usage("-p takes move_pri, copy_pri or copy_sec".to_owned()).into()),
    };
    let node = |letter| match node_flag(&args, letter) {
        Ok(None) => Err(Usage(format!("-{letter} <node> is missing"))),
        Ok(Some(node)) => Ok(node),
        Err(wrong) => Err(wrong),
    };
    let (from, to) = (node('f')?, node('t')?);
    told(out, session.cluster.propose_move(gpid, kind, &from, &to).await)
}

/// How the reference's shell tells it.
fn told(out: &mut Output<'_>, result: pegasus_client::Result<()>) -> Result {
    let (answer, code) = match result {
        Ok(()) => (Answer::Yes, "ERR_OK".to_owned()),
        Err(error) => match error.code() {
            Some(code) => (Answer::No, code.to_string()),
            None => return Err(error.into()),
        },
    };
    out.fact("result", code.as_str(), format_args!("send balance proposal result: {code}"))?;
    Ok(answer)
}

pub async fn plan(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    let told = session.cluster.leader_command("meta.balance_plan", &[]).await?;
    let plan: Value = serde_json::from_str(&told)
        .map_err(|_| pegasus_client::Error::Nonsense(format!("the plan is {told:?}")))?;
    let cell = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let moves: Vec<Vec<String>> = array(&plan, "moves")
        .iter()
        .zip(1..)
        .map(|(m, number)| {
            let mut row = vec![number.to_string()];
            row.extend(["kind", "gpid", "from", "to"].map(|key| m.get(key).map(cell).unwrap_or_default()));
            row
        })
        .collect();
    out.table("moves", &["number", "kind", "gpid", "from", "to"], &moves)?;
    let count = |when: &str, node: &str, what: &str| {
        plan.pointer(&format!("/{when}/{}/{what}", node.replace('~', "~0").replace('/', "~1")))
            .map(cell)
            .unwrap_or_default()
    };
    let nodes = plan.get("before").and_then(Value::as_object);
    let rows: Vec<Vec<String>> = nodes
        .into_iter()
        .flatten()
        .map(|(node, _)| {
            let mut row = vec![node.clone()];
            row.extend(
                ["primaries", "copies"]
                    .map(|what| format!("{} -> {}", count("before", node, what), count("after", node, what))),
            );
            row
        })
        .collect();
    out.table("nodes", &["address", "primaries", "copies"], &rows)?;
    out.fields(
        "summary",
        &[
            ("moves", moves.len().to_string()),
            ("copies_without_a_place", plan.get("unplaced").map(cell).unwrap_or_default()),
            ("meta_level", plan.get("level").map(cell).unwrap_or_default()),
        ],
    )?;
    Ok(Answer::Yes)
}

pub async fn drain(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("node")?;
    args.end()?;
    let wait = args.flag_as::<u64>('w')?.map(Duration::from_secs);
    let on = if args.has('u') { "off" } else { "on" };
    let node = known_name(session, &name).await?;
    let said = session.cluster.leader_command("meta.drain", &[node.clone(), on.to_owned()]).await?;
    if said != "OK" {
        out.fact("error", said.as_str(), &said)?;
        return Ok(Answer::No);
    }
    out.remark(format_args!(
        "{node} {}",
        if on == "on" { "is being emptied; it goes on working meanwhile" } else { "may hold replicas again" }
    ))?;
    let Some(wait) = wait.filter(|_| on == "on") else { return Ok(Answer::Yes) };
    let end = Instant::now() + wait;
    loop {
        let left = held(session, &node).await?;
        if left == 0 || Instant::now() >= end {
            out.fact("replicas_left", left, format_args!("{left} replicas are left on {node}"))?;
            return Ok(if left == 0 { Answer::Yes } else { Answer::No });
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Operators may name a node by its address, too.
async fn known_name(session: &Session, name: &str) -> std::result::Result<String, Failure> {
    let nodes = nodes(session).await?;
    let field = |node: &Value, key: &str| node.get(key).and_then(Value::as_str).map(str::to_owned);
    let same =
        |node: &&Value| ["node", "address"].iter().any(|key| field(node, key).as_deref() == Some(name));
    let known = nodes.iter().find(same).and_then(|node| field(node, "node"));
    known.ok_or_else(|| Usage(format!("no node is known as {name:?}; `nodes` lists them")).into())
}

/// Replicas of a node.
async fn held(session: &Session, node: &str) -> std::result::Result<u64, Failure> {
    let nodes = nodes(session).await?;
    let this = nodes.iter().find(|known| known.get("node").and_then(Value::as_str) == Some(node));
    let count = |key: &str| this.and_then(|node| node.get(key)).and_then(Value::as_u64).unwrap_or(0);
    Ok(count("primaries") + count("secondaries"))
}

/// What the leader knows of the nodes.
pub async fn nodes(session: &Session) -> std::result::Result<Vec<Value>, Failure> {
    let told = session.cluster.leader_command("meta.nodes", &[]).await?;
    serde_json::from_str(&told)
        .map_err(|_| pegasus_client::Error::Nonsense(format!("the nodes are {told:?}")).into())
}

pub async fn diagnose(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    args.end()?;
    match (gpid_flag(&args, 'g')?, node_flag(&args, 'f')?) {
        (Some(gpid), Some(node)) => return told(out, session.cluster.force_primary(gpid, &node).await),
        (None, None) => {}
        _ => return Err(Usage("-g and -f go together".to_owned()).into()),
    }
    let dead = session.cluster.diagnose().await?;
    for partition in &dead {
        let gpid = partition.config.gpid;
        let rows = partition.former.iter().map(|former| {
            let copy = former.copy.map_or("none".to_owned(), |(ballot, committed, prepared)| {
                format!("ballot {ballot}, committed {committed}, prepared {prepared}")
            });
            let node = former.node.as_ref().map_or_else(|| "?".to_owned(), Node::to_string);
            let alive = if former.alive { "alive" } else { "dead" };
            let told = if former.reported { "reported" } else { "not reported" };
            (
                json!({
                    "node": node, "alive": former.alive, "reported": former.reported, "copy": copy,
                    "left_at_ms": former.left_at_ms,
                }),
                format!("    {node}: {alive}, {told}, copy: {copy}"),
            )
        });
        let (facts, lines): (Vec<Value>, Vec<String>) = rows.unzip();
        out.fact(
            &gpid.to_string(),
            json!({ "reason": partition.reason, "former": facts }),
            format_args!("{:?}: {}\n{}", partition.config, partition.reason, lines.join("\n")),
        )?;
    }
    out.fact("dead_partitions", dead.len(), format_args!("{} partitions have no living member", dead.len()))?;
    if !dead.is_empty() {
        out.remark(
            "They go on by themselves when a member returns. To go on without: ddd_diagnose -g <partition> -f <node>, with \
             the node whose ballot, then committed, then prepared is largest.",
        )?;
    }
    Ok(if dead.is_empty() { Answer::Yes } else { Answer::No })
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn gpid_flag(args: &Args, letter: char) -> std::result::Result<Option<Gpid>, Usage> {
    let Some(word) = args.flag(letter) else { return Ok(None) };
    let word = text(word.to_vec(), "partition")?;
    word.parse().map(Some).map_err(|error| Usage(format!("-{letter}: {error}")))
}

fn node_flag(args: &Args, letter: char) -> std::result::Result<Option<Node>, Usage> {
    let Some(word) = args.flag(letter) else { return Ok(None) };
    let word = text(word.to_vec(), "node")?;
    word.parse().map(Some).map_err(|error| Usage(format!("-{letter}: {error}")))
}
