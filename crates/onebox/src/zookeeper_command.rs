//! `pegasus_onebox zookeeper ..`: what `make zookeeper` runs.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use pegasus_onebox::{State, ZooKeeper, ZooKeeperPlan};

use crate::report::say;

/// A JVM on a busy machine takes seconds, an election one more.
const SERVING_WITHIN: Duration = Duration::from_secs(120);

/// A ZooKeeper on 127.0.0.1, of Debian's package
#[derive(Debug, Subcommand)]
pub enum ZooKeeperCommand {
    /// Make it if there is none, start what does not run, wait until it serves
    Up {
        /// 1, or an ensemble of 3, 5 or 7 [default: 1]
        #[arg(long)]
        servers: Option<u16>,
        /// Added to the ports 22181.., 22888.. and 23888.. [default: 0]
        #[arg(long)]
        port_base: Option<u16>,
    },
    /// NAME ADDRESS PID STATE of every server
    List,
    /// Stop every server, cleanly; what it holds stays
    Stop,
    /// Kill everything and remove it
    Clear,
}

pub fn run(dir: &Path, command: &ZooKeeperCommand) -> Result<()> {
    if let ZooKeeperCommand::Up { servers, port_base } = command {
        return up(dir, *servers, *port_base);
    }
    let Some(zookeeper) = ZooKeeper::open(dir)? else {
        eprintln!("there is no ZooKeeper in {}: make zookeeper starts one", dir.display());
        return Ok(());
    };
    match command {
        ZooKeeperCommand::Up { .. } => {}
        ZooKeeperCommand::List => list(&zookeeper)?,
        ZooKeeperCommand::Stop => match names(&zookeeper.stop_all()?).as_str() {
            "" => say("nothing to do: no server runs"),
            names => say(format!("stopped {names}")),
        },
        ZooKeeperCommand::Clear => {
            zookeeper.remove()?;
            // Not empty when somebody else's files lie there.
            let _ = std::fs::remove_dir(dir);
            say(format!("removed {}", dir.display()));
        }
    }
    Ok(())
}

fn up(dir: &Path, servers: Option<u16>, port_base: Option<u16>) -> Result<()> {
    let (zookeeper, new) = match ZooKeeper::open(dir)? {
        Some(zookeeper) => {
            let plan = zookeeper.plan();
            if servers.is_some_and(|n| n != plan.servers) || port_base.is_some_and(|n| n != plan.port_base) {
                bail!(
                    "{} holds one with SERVERS={} PORT_BASE={}: make zookeeper-clear first, which removes what it holds",
                    dir.display(),
                    plan.servers,
                    plan.port_base
                );
            }
            (zookeeper, false)
        }
        None => {
            let (servers, port_base) = (servers.unwrap_or(1), port_base.unwrap_or(0));
            let plan = ZooKeeperPlan { servers, host: Ipv4Addr::LOCALHOST, port_base, sync: true };
            (ZooKeeper::create(dir, plan)?, true)
        }
    };
    match zookeeper.start_all() {
        Ok(started) if started.is_empty() => say("every server runs already"),
        Ok(started) => say(format!("started {}", names(&started))),
        Err(error) => {
            if new {
                zookeeper.remove()?;
                let _ = std::fs::remove_dir(dir);
            }
            return Err(error);
        }
    }
    for number in zookeeper.numbers() {
        if zookeeper.state(number)? == State::Paused {
            zookeeper.resume(number)?;
        }
    }
    zookeeper.wait_serving(SERVING_WITHIN)?;
    say(format!("\nZooKeeper serves at {}; it stays up until make zookeeper-stop.\n", zookeeper.hosts()));
    say("In config.ini:   [meta_server] coordination = zookeeper");
    say(format!("                 [zookeeper] hosts_list = {}", zookeeper.hosts()));
    say(format!("To look inside:  /usr/share/zookeeper/bin/zkCli.sh -server {}", zookeeper.address(1)));
    Ok(())
}

fn list(zookeeper: &ZooKeeper) -> Result<()> {
    for number in zookeeper.numbers() {
        let pid = zookeeper.pid(number)?.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = zookeeper.state(number)?.name();
        let mode = zookeeper.mode(number).unwrap_or_else(|| "-".to_owned());
        let address = zookeeper.address(number).to_string();
        say(format!("{:<11} {address:<18} {pid:<8} {state:<8} {mode}", ZooKeeper::name(number)));
    }
    Ok(())
}

fn names(numbers: &[u16]) -> String {
    numbers.iter().map(|number| ZooKeeper::name(*number)).collect::<Vec<_>>().join(", ")
}
