//! Remote commands (`RPC_CLI_CLI_CALL`): text in, text out.

use std::fmt::Write as _;
use std::rc::Rc;

use crate::node::Shell;

struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&Rc<Shell>, &[String]) -> String,
}

const COMMANDS: &[Command] = &[
    Command { name: "help", help: "help [command] - this list, or one line of it", run: help },
    Command { name: "server-info", help: "server-info - version, address, start", run: server_info },
    Command { name: "replica.list", help: "replica.list - every replica of this node", run: replica_list },
    Command { name: "disk.list", help: "disk.list - data directories, free space, logs", run: disk_list },
];

pub fn run(shell: &Rc<Shell>, name: &str, arguments: &[String]) -> String {
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(shell, arguments),
        None => unknown(name),
    }
}

fn unknown(name: &str) -> String {
    format!("unknown command '{name}'")
}

fn help(_: &Rc<Shell>, arguments: &[String]) -> String {
    let wanted = arguments.first();
    let lines = COMMANDS.iter().filter(|command| wanted.is_none_or(|w| w == command.name));
    lines.map(|command| command.help).collect::<Vec<_>>().join("\n")
}

fn server_info(shell: &Rc<Shell>, _: &[String]) -> String {
    format!(
        "{}, replica-server {}, up {} s",
        pegasus_telemetry::version::line(),
        shell.me,
        shell.started.elapsed().as_secs()
    )
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
        text
    })
}
