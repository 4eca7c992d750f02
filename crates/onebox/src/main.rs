//! `pegasus_onebox`: what `make onebox` and its relatives run.

mod report;
mod zookeeper_command;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::{Parser, Subcommand};
use pegasus_onebox::{Cluster, Coordination, Durability, Engine, Lock, Options, Plan, State};
use zookeeper_command::ZooKeeperCommand;

/// A new cluster takes seconds; one that has much to recover or to copy again takes longer.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);

/// Runs a whole Pegasus cluster on this machine, on 127.0.0.1.
#[derive(Debug, Parser)]
#[command(name = "pegasus_onebox", version, max_term_width = 110)]
struct Cli {
    /// Where the cluster lives: configuration, logs, data
    #[arg(long, default_value = "onebox", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the cluster if there is none, start what does not run, wait until it is healthy
    Up(Wanted),
    /// NAME ROLE ADDRESS PID STATE of every process
    List,
    /// Start a process, or all that do not run
    Start { name: Option<String> },
    /// Stop a process, or all, cleanly
    Stop { name: Option<String> },
    /// kill -9 a process, or all
    Kill { name: Option<String> },
    /// The last lines of the logs of a process, or of all
    Logs {
        name: Option<String>,
        #[arg(long, default_value_t = 20)]
        lines: usize,
    },
    /// Kill everything and remove it
    Clear,
    /// A ZooKeeper on 127.0.0.1, of Debian's package; DIR is its own
    #[command(subcommand)]
    Zookeeper(ZooKeeperCommand),
}

/// What is not given: as the cluster was made; in a new one the default.
#[derive(Debug, clap::Args)]
struct Wanted {
    /// Meta-servers [default: 1]
    #[arg(long)]
    metas: Option<u16>,
    /// Replica-servers [default: 3]; more than a cluster has are added to it
    #[arg(long)]
    replicas: Option<u16>,
    /// Partitions of table temp [default: 8]
    #[arg(long)]
    partitions: Option<u32>,
    /// When a write counts as done [default: sync]
    #[arg(long, value_enum)]
    durability: Option<Durability>,
    /// Storage engine [default: lsm]
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// Where the metadata lives; several meta-servers need zookeeper [default: embedded]
    #[arg(long, value_enum)]
    coordination: Option<Coordination>,
    /// Servers of the cluster's own ZooKeeper: 1, 3, 5 or 7 [default: 1]
    #[arg(long)]
    zookeepers: Option<u16>,
    /// Added to the ports 34601.. (meta), 34801.. (replica), 34101 (collector), 22181.. (ZooKeeper) [default: 0]
    #[arg(long)]
    port_base: Option<u16>,
    /// A further setting of all processes of a new cluster; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
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

fn run(cli: &Cli) -> Result<()> {
    let dir = &cli.dir;
    match &cli.command {
        Command::Up(wanted) => up(dir, wanted),
        Command::List => match Cluster::open(dir)? {
            Some(cluster) => report::list(&cluster),
            None => report::none(dir),
        },
        Command::Logs { name, lines } => match Cluster::open(dir)? {
            Some(cluster) => report::logs(&cluster, name.as_deref(), *lines),
            None => report::none(dir),
        },
        Command::Zookeeper(command) => zookeeper_command::run(dir, command),
        Command::Start { name } => on_existing(dir, |cluster, _lock| start(&cluster, name.as_deref())),
        Command::Stop { name } => on_existing(dir, |cluster, _lock| stop(&cluster, name.as_deref())),
        Command::Kill { name } => on_existing(dir, |cluster, _lock| kill(&cluster, name.as_deref())),
        Command::Clear => on_existing(dir, |cluster, lock| {
            cluster.remove()?;
            lock.remove()?;
            report::say(format!("removed {}", dir.display()));
            Ok(())
        }),
    }
}

fn lock(dir: &Path) -> Result<Lock> {
    Lock::take(dir, || eprintln!("another command works on {}: waiting for it", dir.display()))
}

/// Without a cluster there is nothing to do, which is no failure.
fn on_existing(dir: &Path, act: impl FnOnce(Cluster, Lock) -> Result<()>) -> Result<()> {
    if Plan::read(dir)?.is_none() {
        return report::none(dir);
    }
    let lock = lock(dir)?;
    match Cluster::open(dir)? {
        Some(cluster) => act(cluster, lock),
        None => {
            lock.remove()?; // the command that we waited for has removed it
            report::none(dir)
        }
    }
}

fn up(dir: &Path, wanted: &Wanted) -> Result<()> {
    let begun = Instant::now();
    wanted.options(Options::default()).check()?; // before anything is made
    let lock = lock(dir)?;
    let (cluster, started) = match Cluster::open(dir)? {
        Some(mut cluster) => {
            let more = wanted.more_replicas(cluster.plan());
            wanted.check_same(dir, cluster.plan(), more)?;
            let mut started = start_or_advise(&cluster, None)?;
            for _ in 0..more {
                started.push(cluster.add_replica()?);
            }
            (cluster, started)
        }
        None => match create(dir, wanted) {
            Err(error) => {
                lock.remove()?;
                return Err(error);
            }
            created => created?,
        },
    };
    report::started(&started, cluster.members().len());
    for member in cluster.members() {
        if cluster.status(&member.name)?.state == State::Paused {
            report::say(format!("{} was paused: goes on", member.name));
            cluster.resume(&member.name)?;
        }
    }
    let mut progress = report::Progress::default();
    let waited = cluster.wait_healthy_telling(HEALTHY_WITHIN, &mut |missing| progress.show(missing));
    progress.end();
    if let Err(error) = waited {
        bail!(
            "{error:#}\nIt goes on trying. Look: make onebox-list, make onebox-logs. Anew: make onebox-clear onebox"
        );
    }
    report::welcome(dir, &cluster, begun.elapsed())
}

/// All or nothing: what is left of a failed try would decide over the next one.
fn create(dir: &Path, wanted: &Wanted) -> Result<(Cluster, Vec<String>)> {
    let cluster = Cluster::create(dir, wanted.plan())?;
    match start_or_advise(&cluster, None) {
        Ok(started) => Ok((cluster, started)),
        Err(error) => {
            cluster.remove()?;
            Err(error)
        }
    }
}

fn start(cluster: &Cluster, name: Option<&str>) -> Result<()> {
    let started = start_or_advise(cluster, name)?;
    report::done("started", &started, name, "runs");
    Ok(())
}

fn start_or_advise(cluster: &Cluster, name: Option<&str>) -> Result<Vec<String>> {
    let started = match name {
        Some(name) => {
            cluster.start_member(name).map(|new| new.then(|| name.to_owned()).into_iter().collect())
        }
        None => cluster.start_all(),
    };
    started.map_err(|error| match error.to_string().contains(" is in use by ") {
        true => anyhow!(
            "nothing was started.\n{error}\nStop what has the port, or use others: make onebox ONEBOX_DIR=onebox2 \
             PORT_BASE=1000"
        ),
        false => error,
    })
}

fn stop(cluster: &Cluster, name: Option<&str>) -> Result<()> {
    let stopped = match name {
        Some(name) => one(cluster, name, Cluster::stop)?,
        None => cluster.stop_all()?,
    };
    report::done("stopped", &stopped, name, "is stopped");
    Ok(())
}

fn kill(cluster: &Cluster, name: Option<&str>) -> Result<()> {
    let killed = match name {
        Some(name) => one(cluster, name, Cluster::kill)?,
        None => cluster.kill_all()?,
    };
    report::done("killed", &killed, name, "is stopped");
    Ok(())
}

/// The name, if it ran.
fn one(cluster: &Cluster, name: &str, end: impl Fn(&Cluster, &str) -> Result<()>) -> Result<Vec<String>> {
    let ran = cluster.status(name)?.state.is_alive();
    end(cluster, name)?;
    Ok(ran.then(|| name.to_owned()).into_iter().collect())
}

impl Wanted {
    fn options(&self, default: Options) -> Options {
        Options {
            metas: self.metas.unwrap_or(default.metas),
            replicas: self.replicas.unwrap_or(default.replicas),
            partitions: self.partitions.unwrap_or(default.partitions),
            durability: self.durability.unwrap_or(default.durability),
            engine: self.engine.unwrap_or(default.engine),
            coordination: self.coordination.unwrap_or(default.coordination),
            zookeepers: self.zookeepers.unwrap_or(default.zookeepers),
            sets: if self.set.is_empty() { default.sets } else { self.set.clone() },
            collector: default.collector,
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            options: self.options(Options::default()),
            host: Ipv4Addr::LOCALHOST,
            port_base: self.port_base.unwrap_or(0),
        }
    }

    /// How many replica-servers a cluster gets beyond those that it has.
    fn more_replicas(&self, plan: &Plan) -> u16 {
        self.replicas.map_or(0, |wanted| wanted.saturating_sub(plan.options.replicas))
    }

    /// A cluster stays as it was made, but may grow.
    fn check_same(&self, dir: &Path, plan: &Plan, more: u16) -> Result<()> {
        let grown = Options { replicas: plan.options.replicas + more, ..plan.options.clone() };
        let same = self.options(plan.options.clone()) == grown
            && self.port_base.is_none_or(|base| base == plan.port_base);
        if !same {
            bail!(
                "{} holds a onebox that was made with {}\nIt may get more REPLICAS. Without values `make onebox` takes these; for others clear \
                 it first: make onebox-clear (or make a second one: ONEBOX_DIR=onebox2 PORT_BASE=1000)",
                dir.display(),
                plan.words()
            );
        }
        Ok(())
    }
}
