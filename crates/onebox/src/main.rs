//! `pegasus_onebox`: a cluster on this machine. `make onebox` and its relatives call it.

// This is a command for people at a terminal: what it prints is its purpose.
#![allow(clippy::print_stdout)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use pegasus_onebox::{Cluster, Durability, Engine, Ports, Progress, Role, Shape};

/// A new table is there within seconds; a restart with much data takes longer.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);

/// Runs a whole Pegasus cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "pegasus_onebox", version)]
struct Cli {
    /// Where the cluster lives
    #[arg(long, default_value = "onebox", global = true)]
    dir: PathBuf,
    /// Where the other programs are [default: beside this one]
    #[arg(long, global = true)]
    bin_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make and start a cluster, and wait until it is healthy; harmless when it runs
    Up {
        #[arg(long, default_value_t = 1)]
        metas: u16,
        #[arg(long, default_value_t = 3)]
        replicas: u16,
        /// Of table temp
        #[arg(long, default_value_t = 8)]
        partitions: u16,
        #[arg(long, value_enum, default_value = "sync")]
        durability: Durability,
        #[arg(long, value_enum, default_value = "lsm")]
        engine: Engine,
        /// Added to every port
        #[arg(long, default_value_t = 0)]
        port_base: u16,
    },
    /// One line per process: NAME ROLE ADDRESS PID STATE
    List,
    /// Start what does not run
    Start { name: Option<String> },
    /// Stop cleanly (SIGTERM)
    Stop { name: Option<String> },
    /// kill -9
    Kill { name: Option<String> },
    /// The end of the logs
    Logs {
        name: Option<String>,
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: usize,
    },
    /// Kill everything and remove all data
    Clear,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("onebox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let bin_dir = match &cli.bin_dir {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()?.parent().context("this program lies in no directory")?.to_owned(),
    };
    let open = || {
        Cluster::open(&cli.dir, &bin_dir)?
            .with_context(|| format!("there is no onebox in {}; `make onebox` makes one", cli.dir.display()))
    };
    match &cli.command {
        Command::Up { metas, replicas, partitions, durability, engine, port_base } => {
            let shape = Shape {
                ports: Ports::standard(*metas, *replicas, *port_base)?,
                partitions: *partitions,
                durability: *durability,
                engine: *engine,
                settings: Vec::new(),
            };
            up(cli, shape, &bin_dir)?;
        }
        Command::List => list(&open()?),
        Command::Start { name } => {
            let cluster = open()?;
            let started = cluster.start(name.as_deref())?;
            say("started", &started, "everything runs already");
        }
        Command::Stop { name } => say("stopped", &open()?.stop(name.as_deref())?, "nothing was running"),
        Command::Kill { name } => say("killed", &open()?.kill(name.as_deref())?, "nothing was running"),
        Command::Logs { name, lines } => logs(&open()?, name.as_deref(), *lines)?,
        Command::Clear => match Cluster::open(&cli.dir, &bin_dir)? {
            Some(cluster) => {
                let dir = cluster.dir().display().to_string();
                cluster.clear()?;
                println!("removed {dir}");
            }
            None => println!("there is no onebox in {}", cli.dir.display()),
        },
    }
    Ok(())
}

fn say(done: &str, names: &[String], nothing: &str) {
    if names.is_empty() { println!("{nothing}") } else { println!("{done} {}", names.join(", ")) }
}

fn list(cluster: &Cluster) {
    println!("{:<10} {:<10} {:<16} {:<8} STATE", "NAME", "ROLE", "ADDRESS", "PID");
    for line in cluster.list() {
        println!("{line}");
    }
}

fn logs(cluster: &Cluster, name: Option<&str>, lines: usize) -> anyhow::Result<()> {
    for member in cluster.members(name)? {
        let files = cluster.log_files(&member).map(|f| f.display().to_string()).join(", ");
        println!("==> {}: {files}\n{}\n", member.name, cluster.output(&member, lines));
    }
    Ok(())
}

fn up(cli: &Cli, shape: Shape, bin_dir: &Path) -> anyhow::Result<()> {
    let cluster = match Cluster::open(&cli.dir, bin_dir)? {
        Some(cluster) if *cluster.shape() != shape => bail!(
            "{} holds a onebox of another shape:\n  {}\nUse these values, or remove it with `make onebox-clear`.",
            cli.dir.display(),
            cluster.shape().words()
        ),
        Some(cluster) => cluster,
        None => {
            let cluster = Cluster::create(&cli.dir, shape, bin_dir)?;
            println!("made {}", cluster.dir().display());
            cluster
        }
    };
    say("started", &cluster.start(None)?, "everything runs already");
    wait(&cluster)?;
    println!();
    list(&cluster);
    next_steps(&cluster);
    Ok(())
}

fn wait(cluster: &Cluster) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let show = |progress: &Progress| {
        let text = match progress {
            Progress::Starting(_) => "waiting for table temp ...".to_owned(),
            Progress::Partitions { healthy, all } => {
                format!("{healthy} of {all} partitions have all replicas")
            }
        };
        // One line that changes for people, one line per change for files.
        if terminal {
            print!("\r\x1b[K{text}")
        } else {
            println!("{text}")
        }
        let _ = std::io::stdout().flush();
    };
    let result = cluster.wait_healthy(HEALTHY_WITHIN, show);
    if terminal {
        println!();
    }
    result
}

fn next_steps(cluster: &Cluster) {
    let metas = cluster.shape().metas();
    let own = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.to_owned())).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    let shell = own.join("pegasus_shell");
    let shell = shell.strip_prefix(&here).unwrap_or(&shell).display();
    let collector = cluster.addresses(Role::Collector).concat();
    let victim = "replica1";
    println!(
        "\nMeta-servers: {metas}. Table: temp. Nothing authenticates yet: keep it on this machine.\n\n\
         Try next:\n\
         1. {shell} -m {metas} set temp user:1 name Ada\n   \
            {shell} -m {metas} get temp user:1 name\n\
         2. make onebox-kill NAME={victim}, go on reading and writing, make onebox-start NAME={victim}\n\
         3. curl http://{collector}/metrics"
    );
}
