//! What the commands print.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use pegasus_onebox::{Cluster, Role};

/// `NAME ROLE ADDRESS PID STATE` of every process. The heading is for people only.
pub fn list(cluster: &Cluster) -> Result<()> {
    if io::stdout().is_terminal() {
        println!("{}", row(["NAME", "ROLE", "ADDRESS", "PID", "STATE"]));
    }
    for member in cluster.members() {
        let status = cluster.status(&member.name)?;
        let pid = status.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let address = member.address.to_string();
        println!("{}", row([&member.name, member.role.name(), &address, &pid, status.state.name()]));
        if status.outdated {
            eprintln!(
                "{}: still runs an earlier build; make onebox-stop onebox starts the new one",
                member.name
            );
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

/// `verb` and the names; without names `nothing` is true of all that was asked for.
pub fn done(verb: &str, names: &[String], nothing: &str) {
    match names {
        [] => println!("it {nothing}"),
        _ => println!("{verb} {}", names.join(", ")),
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
        println!("==> {}: {} <==\n{}\n", member.name, file.display(), Cluster::last_lines(&file, lines));
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
            print!("\r\x1b[2K{missing}");
        } else {
            println!("{missing}");
        }
        let _ = io::stdout().flush(); // nobody looks
    }

    pub fn end(&self) {
        if io::stdout().is_terminal() && !self.shown.is_empty() {
            print!("\r\x1b[2K");
        }
    }
}

/// The cluster is up: where everything is, and what to try now.
pub fn welcome(dir: &Path, cluster: &Cluster, took: Duration) -> Result<()> {
    let options = &cluster.plan().options;
    println!(
        "table temp is healthy: {} partitions, {} replicas each, durability {}, engine {} (after {:.1} s)\n",
        options.partitions,
        options.copies(),
        options.durability.name(),
        options.engine.name(),
        took.as_secs_f64()
    );
    list(cluster)?;
    let metas = cluster.metas();
    let shell = shell();
    println!(
        "\nlogs and data: {}    nothing authenticates yet: for this machine and trusted networks only\n\nTry:",
        dir.display()
    );
    println!("  1. the shell      {shell} -m {metas} set temp user:1 name Ada");
    println!("                    {shell} -m {metas} get temp user:1 name");
    println!("                    {shell} -m {metas}             (then: help)");
    println!(
        "  2. your program   README.md, \"A first session\": the Python client from PyPI, the Rust client"
    );
    if let Some(collector) = cluster.members().iter().find(|member| member.role == Role::Collector) {
        println!("  3. a failure      make onebox-kill NAME=replica2    then read and write on, and look:");
        println!("                    curl -s http://{}/metrics | grep healthy", collector.address);
        println!("                    make onebox-start NAME=replica2");
    }
    println!("\nmake onebox-stop stops it, make onebox-clear removes it.");
    Ok(())
}

/// The shell beside our own program, as short as it can be typed from here.
fn shell() -> String {
    let Ok(own) = std::env::current_exe() else { return "pegasus_shell".to_owned() };
    let shell = own.with_file_name("pegasus_shell");
    let here = std::env::current_dir().unwrap_or_default();
    shell.strip_prefix(&here).unwrap_or(&shell).display().to_string()
}
