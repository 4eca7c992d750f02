//! Remote commands (`RPC_CLI_CLI_CALL`): text in, text out.

use std::fmt::Write as _;
use std::rc::Rc;

use pegasus_pacifica::Event;
use pegasus_rpc::wire::meta::RemoteCommand;
use pegasus_rpc::wire::server::ReplyTo;
use pegasus_telemetry::commands::{self, Commands};
use pegasus_telemetry::http::Change;
use pegasus_types::Gpid;
use pegasus_types::meta::{Proposal, ReplicaStatus};
use tokio::sync::mpsc;

use crate::compaction;
use crate::learn_io::rate::Rate;
use crate::node::{NodeState, Shell};

struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&Rc<Shell>, &[String]) -> String,
}

const COPY_RATE: &str = "nfs.max_copy_rate_megabytes_per_disk";
const SEND_RATE: &str = "nfs.max_send_rate_megabytes_per_disk";

const COMMANDS: &[Command] = &[
    Command { name: "help", help: "help [command] - this list, or one line of it", run: help },
    Command { name: "replica.list", help: "replica.list - every replica of this node", run: replica_list },
    Command { name: "replica.learning", help: "replica.learning - copies under way", run: learning },
    Command {
        name: "replica.query-compact",
        help: "replica.query-compact [id1,id2...] - manual compactions of replicas; id = app_id or app_id.partition",
        run: compaction::query,
    },
    Command {
        name: COPY_RATE,
        help: "nfs.max_copy_rate_megabytes_per_disk [n] - what this node copies from others, MiB/s; 0 = no limit",
        run: |shell, arguments| rate(shell, COPY_RATE, arguments, |state| &mut state.learn_rate),
    },
    Command {
        name: SEND_RATE,
        help: "nfs.max_send_rate_megabytes_per_disk [n] - what others copy from this node, MiB/s; 0 = no limit",
        run: |shell, arguments| rate(shell, SEND_RATE, arguments, |state| &mut state.teach_rate),
    },
    Command {
        name: "replica.kill_partition",
        help: "replica.kill_partition [app_id [partition_index]] - before a restart: primaries are handed over and \
               memtables written; the replicas stay open",
        run: kill_partition,
    },
    Command { name: "disk.list", help: "disk.list - data directories, free space, logs", run: disk_list },
];

pub fn answer(shell: &Rc<Shell>, command: RemoteCommand, reply: ReplyTo) {
    let RemoteCommand { cmd, arguments } = command;
    if let Some(own) = COMMANDS.iter().find(|command| command.name == cmd) {
        return reply.text((own.run)(shell, &arguments));
    }
    let common = Commands::new("replica", shell.me.as_str(), shell.started);
    tokio::task::spawn_local(async move {
        reply.text(common.answer(&cmd, &arguments).await.unwrap_or_else(|| unknown(&cmd)));
    });
}

fn unknown(name: &str) -> String {
    format!("unknown command '{name}'")
}

fn help(_: &Rc<Shell>, arguments: &[String]) -> String {
    let wanted = arguments.first();
    let all = COMMANDS.iter().map(|command| command.help).chain(commands::HELP.lines());
    let is_wanted = |line: &&str| wanted.is_none_or(|wanted| line.split(' ').next() == Some(wanted));
    all.filter(is_wanted).collect::<Vec<_>>().join("\n")
}

fn replica_list(shell: &Rc<Shell>, _: &[String]) -> String {
    shell.with(|state| {
        let mut text = String::new();
        for report in state.core.reports() {
            let disk = state.replicas.get(&report.gpid).map_or("-", |r| &state.disks[r.disk].tag);
            let _ = writeln!(
                text,
                "{} {:?} ballot {} committed {} prepared {} disk {disk}",
                report.gpid, report.status, report.ballot, report.committed, report.prepared
            );
        }
        text
    })
}

fn learning(shell: &Rc<Shell>, _: &[String]) -> String {
    shell.with(|state| {
        let mut text = String::new();
        for (gpid, copying) in &state.copying {
            let p = &copying.progress;
            let _ = writeln!(
                text,
                "{gpid} from {} for {} s: {}, {} of about {} rows, {} MB",
                p.teacher,
                p.since.elapsed().as_secs(),
                p.stage.name(),
                p.rows,
                p.of_rows.max(p.rows),
                p.bytes >> 20,
            );
        }
        let _ = writeln!(
            text,
            "{} copies under way, {} learners here",
            state.copying.len(),
            state.teaching.len()
        );
        text
    })
}

/// Settings that `/updateConfig` can change.
pub const CHANGEABLE: &[&str] = &["max_copy_rate_megabytes_per_disk", "max_send_rate_megabytes_per_disk"];

pub async fn take_changes(shell: Rc<Shell>, mut changes: mpsc::Receiver<Change>) {
    while let Some(Change { key, value, answer }) = changes.recv().await {
        let changed = megabytes(&value).map(|wanted| {
            tracing::info!(key, wanted, "changed by /updateConfig");
            shell.with(|state| match key == CHANGEABLE[0] {
                true => state.learn_rate.set(wanted),
                false => state.teach_rate.set(wanted),
            });
        });
        // Who has gone needs no answer.
        drop(answer.send(changed.map_err(|why| format!("ERR_INVALID_PARAMETERS: {value:?}: {why}"))));
    }
}

fn megabytes(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "expected a number of MiB/s")
}

/// Shows a limit, or changes it until the next start.
fn rate(shell: &Rc<Shell>, name: &str, arguments: &[String], of: fn(&mut NodeState) -> &mut Rate) -> String {
    let wanted = match arguments.first().map(|text| megabytes(text)) {
        None => None,
        Some(Ok(wanted)) => Some(wanted),
        Some(Err(why)) => return format!("ERR: {name} {}: {why}", arguments[0]),
    };
    shell.with(|state| {
        let rate = of(state);
        if let Some(wanted) = wanted {
            rate.set(wanted);
            tracing::info!(name, wanted, "changed by a remote command");
        }
        format!("{name} = {}", rate.megabytes_per_second())
    })
}

/// Apache Pegasus closes the replicas, so that a restart finds primaries elsewhere and little to replay. Here that much is
/// done without closing any: a copy that leaves its group would have to be made anew.
fn kill_partition(shell: &Rc<Shell>, arguments: &[String]) -> String {
    let numbers: Result<Vec<i32>, _> = arguments.iter().map(|text| text.parse()).collect();
    let (app, index) = match numbers.as_deref() {
        Ok([]) => (None, None),
        Ok([app]) => (Some(*app), None),
        Ok([app, index]) => (Some(*app), Some(*index)),
        _ => return "ERR_INVALID_PARAMETERS".to_owned(),
    };
    let is_meant = |gpid: &Gpid| {
        app.is_none_or(|app| app == gpid.app_id) && index.is_none_or(|index| index == gpid.index)
    };
    let mut orders = Vec::new();
    let mut count = 0_usize;
    shell.with(|state| {
        for (gpid, replica) in state.replicas.iter().filter(|(gpid, _)| is_meant(gpid)) {
            count += 1;
            let (gpid, engine) = (*gpid, replica.engine.clone());
            let written = move || {
                if let Err(error) = engine.flush(true) {
                    tracing::warn!(%gpid, %error, "flush by a remote command");
                }
            };
            drop(shell.lanes.run(gpid, written));
            if state.core.status(gpid) != Some(ReplicaStatus::Primary) {
                continue;
            }
            let Some(config) = state.core.config(gpid) else { continue };
            let others = &config.secondaries;
            if let Some(to) = others.get(gpid.index as usize % others.len().max(1)) {
                let (ballot, proposal) = (config.ballot, Proposal::HandOver { to: to.clone() });
                orders.push(Event::Propose { gpid, ballot, proposal });
            }
        }
    });
    if count == 0 && index.is_some() {
        return "ERR_OBJECT_NOT_FOUND".to_owned();
    }
    tracing::warn!(count, hand_over = orders.len(), "a remote command prepares replicas for a restart");
    shell.post_all(orders);
    "ERR_OK".to_owned()
}

fn disk_list(shell: &Rc<Shell>, _: &[String]) -> String {
    shell.with(|state| {
        let mut text = String::new();
        for disk in &state.disks {
            let condition = match &disk.broken {
                Some(why) => format!("broken: {why}"),
                None if disk.full => "full".to_owned(),
                None => "normal".to_owned(),
            };
            let _ = writeln!(
                text,
                "{} {} available {} of {} MB, log {} MB, {condition}",
                disk.tag,
                disk.root.display(),
                disk.available_bytes >> 20,
                disk.capacity_bytes >> 20,
                disk.log.stats().bytes >> 20,
            );
        }
        for (dir, why) in shell.left_out(&state.disks) {
            let _ = writeln!(
                text,
                "{} {} available 0 of 0 MB, log 0 MB, broken: {why}",
                dir.tag(),
                dir.path().display()
            );
        }
        text
    })
}
