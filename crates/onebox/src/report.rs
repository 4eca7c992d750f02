//! What the commands print.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use pegasus_onebox::{Cluster, Role};

/// A closed pipe (`make onebox | head`) is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// `NAME ROLE ADDRESS PID STATE` of every process. The heading is for people only.
pub fn list(cluster: &Cluster) -> Result<()> {
    if io::stdout().is_terminal() {
        say(row(["NAME", "ROLE", "ADDRESS", "PID", "STATE"]));
    }
    for member in cluster.members() {
        let status = cluster.status(&member.name)?;
        let pid = status.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let address = member.address.to_string();
        say(row([&member.name, member.role.name(), &address, &pid, status.state.name()]));
        if status.outdated {
            eprintln!("{} still runs an earlier build: make onebox-stop onebox", member.name);
        }
    }
    Ok(())
}

fn row([name, role, address, pid, state]: [&str; 5]) -> String {
    format!("{name:<10} {role:<10} {address:<18} {pid:<8} {state}")
}

pub fn none(dir: &Path) -> Result<()> {
    eprintln!("there is no onebox in {}: make onebox starts one", dir.display());
    Ok(())
}

/// What `make onebox` had to start.
pub fn started(names: &[String], all: usize) {
    match names.len() {
        0 => say(format!("all {all} processes run already")),
        n if n == all => say(format!("started {}", names.join(", "))),
        n => say(format!("{} of {all} processes ran already; started {}", all - n, names.join(", "))),
    }
}

/// What was done to whom; without names it was done to nobody because of `nothing`.
pub fn done(verb: &str, names: &[String], asked: Option<&str>, nothing: &str) {
    match (names, asked) {
        ([], Some(name)) => say(format!("{name} {nothing} already")),
        ([], None) => say(format!("nothing to do: everything {nothing} already")),
        (names, _) => say(format!("{verb} {}", names.join(", "))),
    }
}

pub fn logs(cluster: &Cluster, name: Option<&str>, lines: usize) -> Result<()> {
    let members = match name {
        Some(name) => std::slice::from_ref(cluster.member(name)?),
        None => cluster.members(),
    };
    for member in members {
        let log = cluster.log_file(member);
        // One that could not even start has no log, but has said why.
        let file = if log.exists() { log } else { cluster.out_file(member) };
        let end = Cluster::last_lines(&file, lines);
        say(format!("==> {}: {} <==\n{end}\n", member.name, file.display()));
    }
    Ok(())
}

/// What is still missing: one changing line at a terminal, else a line per change.
#[derive(Debug, Default)]
pub struct Progress {
    shown: String,
}

impl Progress {
    pub fn show(&mut self, missing: &str) {
        if missing == self.shown {
            return;
        }
        missing.clone_into(&mut self.shown);
        if io::stdout().is_terminal() {
            let _ = write!(io::stdout(), "\r\x1b[2K{missing}"); // nobody looks
            let _ = io::stdout().flush();
        } else {
            say(missing);
        }
    }

    /// The changing line makes room.
    pub fn end(&self) {
        if io::stdout().is_terminal() && !self.shown.is_empty() {
            let _ = write!(io::stdout(), "\r\x1b[2K");
        }
    }
}

/// The cluster is up: where everything is, and what to try now. `dir` as it was typed.
pub fn welcome(dir: &Path, cluster: &Cluster, took: Duration) -> Result<()> {
    let options = &cluster.plan().options;
    say(format!(
        "table temp is healthy: {} partitions, {} replicas each, durability {}, engine {}, metadata {} (after {:.1} s)\n",
        options.partitions,
        options.copies(),
        options.durability.name(),
        options.engine.name(),
        options.coordination.name(),
        took.as_secs_f64()
    ));
    list(cluster)?;
    let metas = cluster.metas();
    let shell = shell();
    let dir = dir.display().to_string();
    let make = if dir == "onebox" { "make".to_owned() } else { format!("make ONEBOX_DIR={dir}") };
    say(format!(
        "\nlogs and data: {dir}/   Nothing authenticates yet: this machine and trusted networks only.\n"
    ));
    say("Try next:");
    say("1. the shell (without a command it is interactive)");
    say(format!("     {shell} -m {metas} set temp user:1 name Ada"));
    say(format!("     {shell} -m {metas} get temp user:1 name"));
    say("2. the Python client, as it comes from PyPI");
    say("     python3 -m venv target/python && target/python/bin/pip install -q pypegasus3");
    say(format!("     target/python/bin/python docs/first_session.py {metas}"));
    if let Some(collector) = cluster.members().iter().find(|member| member.role == Role::Collector) {
        let victim = if options.replicas > 1 { "replica2" } else { "replica1" };
        say("3. a failure: kill a server, read and write on, look at the tables' health, start it again");
        say(format!("     {make} onebox-kill NAME={victim}"));
        say(format!("     curl -s http://{}/metrics | grep healthy", collector.address));
        say(format!("     {make} onebox-start NAME={victim}"));
    }
    say(format!(
        "\nREADME.md has more. `{make} onebox-stop` stops all this, `{make} onebox-clear` removes it."
    ));
    Ok(())
}

/// The shell beside our own program, as short as it can be typed from here.
fn shell() -> String {
    let Ok(own) = std::env::current_exe() else { return "pegasus_shell".to_owned() };
    let shell = own.with_file_name("pegasus_shell");
    let here = std::env::current_dir().unwrap_or_default();
    shell.strip_prefix(&here).unwrap_or(&shell).display().to_string()
}
