//! Manual compaction, for tools that ask the meta-server: to start it is a change of the table's settings; how far it
//! is, is asked of the table's servers.

use std::collections::BTreeSet;
use std::time::Duration;

use pegasus_placement::envs::{COMPACT_ONCE, CompactNow, EnvChange};
use pegasus_placement::tables::TableError;
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{Connection, ErrorName, Request, RequestHead, Response};
use pegasus_telemetry::time::Calendar;
use pegasus_types::{AppId, ErrorCode, Node};

use crate::clock::wall_s;
use crate::leader::Leader;

/// Tools wait 5 s and more.
const ASK_WITHIN: Duration = Duration::from_secs(2);
const COMMAND: &str = "replica.query-compact";
const PERIODIC: &str = "manual_compact.periodic.trigger_time";

/// The change of settings that starts one.
pub fn start(leader: &Leader, request: &StartManualCompactRequest) -> Result<EnvChange, TableError> {
    let state = leader.state.borrow();
    let error = |code, hint: &str| TableError { code, hint: hint.into() };
    let table = state.ledger.view().table_by_name(&request.app_name);
    let table = table.ok_or_else(|| error(ErrorCode::AppNotExist, "app cannot be found"))?;
    let now = CompactNow {
        trigger_s: request.trigger_time,
        target_level: request.target_level,
        bottommost: request.bottommost,
        most_running: request.max_running_count,
    };
    now.change(&table.info, wall_s())
}

pub fn started(app_name: &str) -> String {
    format!("the replicas of table {app_name} are compacted; {COMMAND} tells how far they are")
}

/// Percent of the replicas that the table should have.
pub async fn query(leader: &Leader, request: &QueryManualCompactRequest) -> QueryManualCompactResponse {
    let refuse = |code, hint: String| QueryManualCompactResponse {
        err: ErrorName(code),
        hint_msg: hint,
        progress: None,
    };
    let asked = {
        let state = leader.state.borrow();
        let Some(table) = state.ledger.view().table_by_name(&request.app_name) else {
            return refuse(ErrorCode::AppNotExist, "app cannot be found".to_owned());
        };
        let envs = &table.info.envs;
        let once_s = envs.get(COMPACT_ONCE).and_then(|text| text.parse::<u64>().ok()).filter(|s| *s > 0);
        if once_s.is_none() && !envs.contains_key(PERIODIC) {
            let why = format!(
                "the table's settings ask for no manual compaction: neither {COMPACT_ONCE} nor {PERIODIC}"
            );
            return refuse(ErrorCode::InvalidState, why);
        }
        let wanted: usize = table
            .partitions
            .iter()
            .map(|config| usize::try_from(config.max_replica_count).unwrap_or(0))
            .sum();
        let nodes: BTreeSet<Node> =
            table.partitions.iter().flat_map(|config| config.members().cloned()).collect();
        (table.info.app_id, since(once_s), wanted, nodes)
    };
    let (app_id, since, wanted, nodes) = asked;
    let answers = nodes.iter().map(async |node| (node, ask(leader, node, app_id).await));
    let (mut finished, mut silent) = (0, Vec::new());
    for (node, answer) in futures::future::join_all(answers).await {
        match answer {
            Some(text) => finished += count_finished(&text, &since),
            None => silent.push(node.as_str()),
        }
    }
    let percent = (finished * 100).checked_div(wanted).unwrap_or(0).min(100);
    let hint_msg = match silent.is_empty() {
        true => format!("{finished} of {wanted} replicas are compacted"),
        false => {
            format!("{finished} of {wanted} replicas are compacted; no answer from {}", silent.join(", "))
        }
    };
    QueryManualCompactResponse {
        err: ErrorName(ErrorCode::Ok),
        hint_msg,
        progress: i32::try_from(percent).ok(),
    }
}

/// As replicas write it when they finish in that second.
fn since(once_s: Option<u64>) -> String {
    once_s.map_or_else(String::new, |s| Calendar::from_unix_ms(s.saturating_mul(1000)).date_time())
}

async fn ask(leader: &Leader, node: &Node, app_id: AppId) -> Option<String> {
    let address = leader.resolver.get(node)?;
    let command = RemoteCommand { cmd: COMMAND.to_owned(), arguments: vec![app_id.to_string()] };
    let call = async {
        let connection = Connection::connect(address.into(), ASK_WITHIN).await.ok()?;
        let request = Request::RemoteCommand(command);
        match connection.call(RequestHead::default(), &request, ASK_WITHIN).await.ok()? {
            Response::Text(text) => Some(text),
            _ => None,
        }
    };
    tokio::time::timeout(ASK_WITHIN, call).await.ok().flatten()
}

/// Replicas that have finished since then and are at none now.
fn count_finished(answer: &str, since: &str) -> usize {
    let is_finished = |line: &str| {
        let (_, json) = line.split_once(" : ")?;
        let told: serde_json::Value = serde_json::from_str(json).ok()?;
        let field = |name: &str| told[name].as_str();
        let rests = field("recent_enqueue_at")? == "-" && field("recent_start_at")? == "-";
        let last = field("last_finish")?;
        Some(rests && last != "-" && last >= since)
    };
    answer.lines().filter(|line| is_finished(line).unwrap_or(false)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_tell_is_counted() {
        let line = |enqueued: &str, started: &str, finished: &str| {
            format!(
                "    2.0@127.0.0.1:34801@P : {{\"last_finish\":\"{finished}\",\"last_used_ms\":\"7\",\
                 \"recent_enqueue_at\":\"{enqueued}\",\"recent_start_at\":\"{started}\"}}"
            )
        };
        let trigger = since(Some(1_795_651_200));
        assert_eq!(trigger, "2026-11-26 00:00:00");
        for (told, expected) in [
            (line("-", "-", "-"), 0),
            (line("-", "-", "2026-11-25 23:59:59.999"), 0),
            (line("-", "-", "2026-11-26 00:00:00.001"), 1),
            (line("2026-11-26 00:00:01.000", "-", "2026-11-26 00:00:00.001"), 0),
            (line("-", "2026-11-26 00:00:01.000", "2026-11-26 00:00:00.001"), 0),
            ("    2.1@127.0.0.1:34801 : not found".to_owned(), 0),
            ("unknown command".to_owned(), 0),
        ] {
            let answer = format!("1 processed, 0 not found\n{told}\n{told}");
            assert_eq!(count_finished(&answer, &trigger), 2 * expected, "{told}");
        }
        assert_eq!(count_finished(&line("-", "-", "2026-11-25 23:59:59.999"), &since(None)), 1);
    }
}
