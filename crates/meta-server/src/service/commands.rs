//! Remote commands that operators type at the leader (operations.md 11): what it plans and knows of nodes, and what can
//! be set while it runs. Only `drain` is stored; of the rest a new leader starts from its configuration, as Apache
//! Pegasus's does.

use std::collections::BTreeSet;
use std::rc::Rc;

use pegasus_placement::balance::{Kind, Move};
use pegasus_placement::cure::Options;
use pegasus_telemetry::http::Change;
use pegasus_types::{AppId, Gpid, Node};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::orders;
use crate::leader::Leader;
use crate::role::Role;

pub const HELP: &str = "\
meta.nodes - nodes with address, state and what they hold, as JSON
meta.balance_plan - the moves that would be made now, as JSON
meta.moves - the moves that are under way
meta.work - partitions that something is done about or awaited for, and what, as JSON
meta.move move_pri|copy_pri|copy_sec <app_id.index> <from> <to> - order one move
meta.drain <node> [on|off] - empty a node that goes on working; off = no more
meta.live_percentage [0..100|DEFAULT] - below this share of alive nodes nothing is proposed
meta.lb.assign_delay_ms [milliseconds|DEFAULT] - how long a member that left is awaited; DEFAULT = as configured
meta.lb.add_secondary_max_count_for_one_node [count|DEFAULT] - learners of one node at a time
meta.lb.assign_secondary_black_list [node,...|clear] - nodes that get no copies
meta.lb.only_move_primary [true|false] - balance roles only (also meta.lb.only_primary_balancer)
meta.lb.ignored_app_list [get|set id,...|clear] - tables that are not balanced
meta.lb.get_balance_operation_count [total|move_pri|copy_pri|copy_sec|detail] - moves that are wanted";

/// Executes a command that is stored before it is answered; None = it is not one of these.
pub async fn execute_stored(leader: &Leader, name: &str, arguments: &[String]) -> Option<String> {
    if name != "meta.drain" {
        return None;
    }
    let arguments: Vec<&str> = words(arguments);
    Some(drain(leader, &arguments).await.unwrap_or_else(|why| format!("ERR: {why}")))
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect()
}

/// Executes a command of the leader; None = it is not one of these.
pub fn execute(leader: &Leader, name: &str, arguments: &[String]) -> Option<String> {
    let arguments = words(arguments);
    let result = match name.strip_prefix("meta.")? {
        "nodes" => Ok(nodes(leader).to_string()),
        "balance_plan" => Ok(plan(leader).to_string()),
        "moves" => Ok(moves(leader).to_string()),
        "work" => Ok(work(leader).to_string()),
        "move" => order_move(leader, &arguments),
        "live_percentage" => number(leader, &arguments, 100, |o| &mut o.min_alive_percent),
        "lb.assign_delay_ms" => number(leader, &arguments, u64::MAX, |o| &mut o.return_ms),
        "lb.add_secondary_max_count_for_one_node" => {
            number(leader, &arguments, usize::MAX, |o| &mut o.max_learners_per_node)
        }
        "lb.assign_secondary_black_list" => black_list(leader, &arguments),
        "lb.only_move_primary" | "lb.only_primary_balancer" => only_roles(leader, &arguments),
        "lb.ignored_app_list" => ignored(leader, &arguments),
        "lb.get_balance_operation_count" => counts(leader, &arguments),
        _ => return None,
    };
    Some(result.unwrap_or_else(|why| format!("ERR: {why}")))
}

/// Settings that can be changed while it leads, and the commands that do it.
const CHANGED_BY: [(&str, &str); 3] = [
    ("node_live_percentage_threshold_for_update", "meta.live_percentage"),
    ("replica_assign_delay_ms_for_dropouts", "meta.lb.assign_delay_ms"),
    ("add_secondary_max_count_for_one_node", "meta.lb.add_secondary_max_count_for_one_node"),
];
pub const CHANGEABLE: &[&str] = &[CHANGED_BY[0].0, CHANGED_BY[1].0, CHANGED_BY[2].0];

/// What `/updateConfig` asks for, until shutdown.
pub async fn take_changes(role: Rc<Role>, mut changes: mpsc::Receiver<Change>) {
    while let Some(Change { key, value, answer }) = changes.recv().await {
        // Who has gone needs no answer.
        drop(answer.send(change(&role, key, &value)));
    }
}

fn change(role: &Role, key: &str, value: &str) -> Result<(), String> {
    let leader = role.leader().ok_or("ERR_FORWARD_TO_OTHERS: this meta-server does not lead")?;
    let invalid = |why: &str| format!("ERR_INVALID_PARAMETERS: {why}");
    if !value.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(invalid(&format!("{value:?} is not a number")));
    }
    let command = CHANGED_BY.iter().find(|(name, _)| *name == key).map_or("", |(_, command)| command);
    match execute(&leader, command, &[value.to_owned()]).as_deref() {
        Some("OK") => Ok(()),
        Some(why) => Err(invalid(why.trim_start_matches("ERR: "))),
        None => Err(invalid(key)),
    }
}

type Outcome = Result<String, String>;

fn done() -> Outcome {
    Ok("OK".to_owned())
}

/// What a node is, in one word.
pub fn state_of(leader: &Leader, node: &Node) -> &'static str {
    let state = leader.state.borrow();
    match state.liveness.get(node) {
        Some(known) if !known.alive => "UNALIVE",
        Some(known) if known.draining => "DRAINING",
        _ if state.liveness.is_retired(node) => "RETIRED",
        Some(known) if !known.log_healthy => "LOG_FAILED",
        Some(known) if known.heard => "ALIVE",
        _ => "PRESUMED",
    }
}

fn nodes(leader: &Leader) -> Value {
    let loads = leader.published.borrow().loads();
    let names: Vec<Node> = leader.state.borrow().liveness.nodes().map(|(node, _)| node.clone()).collect();
    let show = |node: &Node| {
        let load = loads.get(node);
        json!({
            "node": node.as_str(),
            "address": leader.resolver.get(node).map(|address| address.to_string()),
            "state": state_of(leader, node),
            "primaries": load.primaries,
            "secondaries": load.copies - load.primaries,
        })
    };
    names.iter().map(show).collect()
}

fn plan(leader: &Leader) -> Value {
    let state = leader.state.borrow();
    let view = state.ledger.view();
    let plan = state.cure.plan(view, &state.liveness, true);
    let before = leader.published.borrow().loads();
    let loads = |loads: &pegasus_placement::view::Loads| -> Value {
        let show = |node: &Node| {
            let load = loads.get(node);
            (node.to_string(), json!({ "primaries": load.primaries, "copies": load.copies }))
        };
        Value::Object(state.liveness.nodes().map(|(node, _)| show(node)).collect())
    };
    let moves: Vec<Value> = plan
        .moves
        .iter()
        .map(|m| {
            json!({
                "kind": m.kind.name(), "gpid": m.gpid.to_string(), "from": m.from.as_str(), "to": m.to.as_str()
            })
        })
        .collect();
    json!({
        "level": leader.level.get().to_string(),
        "moves": moves,
        "unplaced": plan.unplaced,
        "before": loads(&before),
        "after": loads(&plan.after),
    })
}

fn moves(leader: &Leader) -> Value {
    leader.state.borrow().cure.moves().map(|what| Value::String(what.to_string())).collect()
}

/// Every partition that `partitions_in_work` counts.
fn work(leader: &Leader) -> Value {
    let published = leader.published.borrow();
    let show = |(gpid, note): (&Gpid, &String)| {
        let table = published.view.table(gpid.app_id).map(|table| table.info.name.clone());
        json!({ "gpid": gpid.to_string(), "table": table, "note": note })
    };
    published.notes.iter().map(show).collect()
}

fn order_move(leader: &Leader, arguments: &[&str]) -> Outcome {
    let [kind, gpid, from, to] = arguments else {
        return Err("it takes a kind, a partition, a node and a node".to_owned());
    };
    let what = Move {
        kind: Kind::by_name(kind).ok_or_else(|| format!("{kind:?} is not move_pri, copy_pri or copy_sec"))?,
        gpid: gpid_of(gpid)?,
        from: node_of(from)?,
        to: node_of(to)?,
    };
    orders::request_move(leader, what)?;
    done()
}

async fn drain(leader: &Leader, arguments: &[&str]) -> Outcome {
    let (node, on) = match arguments {
        [node] | [node, "on"] => (node, true),
        [node, "off"] => (node, false),
        _ => return Err("it takes a node, and on or off".to_owned()),
    };
    orders::drain(leader, &node_of(node)?, on).await?;
    done()
}

fn number<T>(leader: &Leader, arguments: &[&str], most: T, field: fn(&mut Options) -> &mut T) -> Outcome
where
    T: std::str::FromStr + std::fmt::Display + PartialOrd + Copy,
{
    let mut state = leader.state.borrow_mut();
    let value = field(state.cure.options_mut());
    match arguments {
        [] => Ok(value.to_string()),
        [text] => {
            let new: T = match *text {
                "DEFAULT" => *field(&mut leader.configured.clone()),
                text => text.parse().map_err(|_| format!("{text:?} is not a number"))?,
            };
            if new > most {
                return Err(format!("{text} is more than {most}"));
            }
            tracing::warn!(from = %value, to = %new, "an operator sets a number");
            *value = new;
            state.rounds.touch();
            done()
        }
        _ => Err("it takes one number, or none".to_owned()),
    }
}

fn black_list(leader: &Leader, arguments: &[&str]) -> Outcome {
    let mut state = leader.state.borrow_mut();
    let list = &mut state.cure.options_mut().black_list;
    match arguments {
        [] => Ok(list.iter().map(Node::as_str).collect::<Vec<_>>().join(",")),
        ["clear"] => {
            list.clear();
            done()
        }
        [names] => {
            let new = names.split(',').map(node_of).collect::<Result<BTreeSet<_>, _>>()?;
            tracing::warn!(?new, "an operator sets the black list");
            *list = new;
            done()
        }
        _ => Err("it takes one list, clear, or nothing".to_owned()),
    }
}

fn only_roles(leader: &Leader, arguments: &[&str]) -> Outcome {
    let mut state = leader.state.borrow_mut();
    let copies = &mut state.cure.options_mut().balance.copies;
    match arguments {
        [] => Ok((!*copies).to_string()),
        [text] => {
            *copies = !text.parse::<bool>().map_err(|_| format!("{text:?} is not true or false"))?;
            done()
        }
        _ => Err("it takes true, false or nothing".to_owned()),
    }
}

fn ignored(leader: &Leader, arguments: &[&str]) -> Outcome {
    let mut state = leader.state.borrow_mut();
    let list = &mut state.cure.options_mut().balance.ignored;
    match arguments {
        [] | ["get"] => Ok(list.iter().map(AppId::to_string).collect::<Vec<_>>().join(",")),
        ["clear"] => {
            list.clear();
            done()
        }
        ["set", ids] => {
            let id = |text: &str| text.parse::<AppId>().map_err(|_| format!("{text:?} is not a table's id"));
            *list = ids.split(',').map(id).collect::<Result<_, _>>()?;
            done()
        }
        _ => Err("it takes get, set id,..., or clear".to_owned()),
    }
}

fn counts(leader: &Leader, arguments: &[&str]) -> Outcome {
    let counts = leader.state.borrow().cure.planned();
    let (role, primary, secondary) = (counts.move_primary, counts.copy_primary, counts.copy_secondary);
    let answer = match arguments {
        [] | ["total"] => json!({ "total": counts.total() }),
        ["move_pri"] => json!({ "move_pri": role }),
        ["copy_pri"] => json!({ "copy_pri": primary }),
        ["copy_sec"] => json!({ "copy_sec": secondary }),
        ["detail"] => {
            json!({ "move_pri": role, "copy_pri": primary, "copy_sec": secondary, "total": counts.total() })
        }
        _ => return Err("it takes total, move_pri, copy_pri, copy_sec or detail".to_owned()),
    };
    Ok(answer.to_string())
}

fn node_of(text: impl AsRef<str>) -> Result<Node, String> {
    text.as_ref().trim().parse::<Node>().map_err(|error| error.to_string())
}

fn gpid_of(text: &str) -> Result<Gpid, String> {
    text.parse::<Gpid>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_and_nodes_are_read() {
        assert_eq!(gpid_of("2.13"), Ok(Gpid::new(2, 13)));
        for bad in ["2", "2.x", "", ".", "2.1.3"] {
            assert!(gpid_of(bad).is_err(), "{bad}");
        }
        assert!(node_of("no port").is_err() && node_of("a:1").is_ok());
    }
}
