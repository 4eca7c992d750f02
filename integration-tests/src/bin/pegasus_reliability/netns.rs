//! Network namespaces with wires that can be cut, and servers in them. Needs root and `ip` (iproute2).
//!
//! ```text
//!  namespace "hub": this program, and per bridge one address (PREFIX.1) and the wires' ends BRIDGE1 BRIDGE2 ..
//!  namespaces "n1" "n2" ..: per bridge one interface with address PREFIX.11, PREFIX.12 and so on
//! ```
//!
//! A cut wire's end leaves the bridge: nothing gets through, and nobody is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pegasus_client::Cluster;
use rustix::process::{Pid, Signal, kill_process};

#[derive(Clone, Copy, Debug)]
pub struct Bridge {
    pub name: &'static str,
    /// Three numbers: `10.213.0`.
    pub prefix: &'static str,
}

impl Bridge {
    /// Of the hub.
    pub fn hub(self) -> String {
        format!("{}.1", self.prefix)
    }

    /// Of the namespace with this number, from 0.
    pub fn address(self, place: usize) -> String {
        format!("{}.{}", self.prefix, 11 + place)
    }

    /// In the hub: lets nothing through any more.
    pub fn cut(self, place: usize) -> Result<()> {
        ip(&["link", "set", &self.wire(place), "nomaster"])
    }

    pub fn mend(self, place: usize) -> Result<()> {
        ip(&["link", "set", &self.wire(place), "master", self.name])
    }

    fn mac(self) -> String {
        let numbers = self.prefix.split('.').map(|number| number.parse().unwrap_or(0));
        let numbers: Vec<_> = numbers.map(|number: u8| format!("{number:02x}")).collect();
        format!("02:00:00:{}", numbers.join(":"))
    }

    fn wire(self, place: usize) -> String {
        format!("{}{}", self.name, place + 1)
    }
}

/// Names of namespaces that nobody else has.
#[derive(Debug)]
pub struct Net {
    hub: String,
    pub places: Vec<String>,
}

impl Net {
    pub fn names(id: &str, places: usize) -> Self {
        Self { hub: format!("pgr{id}h"), places: (1..=places).map(|n| format!("pgr{id}n{n}")).collect() }
    }

    pub fn make(&self, bridges: &[Bridge]) -> Result<()> {
        let hub = self.hub.as_str();
        for name in self.places.iter().chain([&self.hub]) {
            ip(&["netns", "add", name]).context("network namespaces cannot be made (root is needed)")?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        for bridge in bridges {
            let name = bridge.name;
            // Of its own: else it is that of a wire, and what comes in by that wire is taken also when the wire is unplugged.
            let mac = bridge.mac();
            ip(&["-n", hub, "link", "add", name, "address", &mac, "type", "bridge"])?;
            ip(&["-n", hub, "addr", "add", &format!("{}/24", bridge.hub()), "dev", name])?;
            ip(&["-n", hub, "link", "set", name, "up"])?;
            for (i, place) in self.places.iter().enumerate() {
                let (wire, to) = (bridge.wire(i), format!("{}/24", bridge.address(i)));
                ip(&["-n", hub, "link", "add", &wire, "type", "veth", "peer", "name", name, "netns", place])?;
                ip(&["-n", hub, "link", "set", &wire, "master", name, "up"])?;
                ip(&["-n", place, "addr", "add", &to, "dev", name])?;
                ip(&["-n", place, "link", "set", name, "up"])?;
            }
        }
        Ok(())
    }

    /// Runs this program again inside of the hub.
    pub fn run_inside(&self, arguments: &[&str]) -> Result<()> {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.hub]).arg(std::env::current_exe()?).args(arguments);
        ensure!(
            inside.status()?.success(),
            "the part inside of the namespaces has failed; it says why above"
        );
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.places.iter().chain([&self.hub]) {
            let _ = ip(&["netns", "del", name]); // it may not have been made
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("`ip` (package iproute2) cannot be run")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), told.trim());
    Ok(())
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Server {
    pub role: &'static str,
    /// The namespace; None = here.
    pub within: Option<String>,
    /// `section.key=value` and values of the template's variables.
    pub sets: Vec<String>,
}

/// Servers by name, each with a directory of its own. They end with this value.
#[derive(Debug)]
pub struct Servers {
    program: PathBuf,
    config: PathBuf,
    dir: PathBuf,
    servers: BTreeMap<String, (Server, Child)>,
}

impl Servers {
    pub fn new(dir: &Path) -> Result<Self> {
        let program = pegasus_onebox::find_server()?;
        let config = dir.join("config.ini");
        let printed = Command::new(&program).arg("--print-default-config").output()?;
        std::fs::write(&config, printed.stdout)?;
        Ok(Self { program, config, dir: dir.to_owned(), servers: BTreeMap::new() })
    }

    pub fn start(&mut self, name: &str, server: Server) -> Result<()> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let mut command = match &server.within {
            Some(place) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", place]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg(&self.config).args(["-app_list", server.role]);
        let own = [format!("app.dir={}", dir.display()), format!("home.dir={}", dir.display())];
        for set in own.iter().chain(&server.sets) {
            command.arg("--set").arg(set);
        }
        let out = std::fs::File::options().create(true).append(true).open(dir.join("out"))?;
        let child = command.stdout(out.try_clone()?).stderr(out).spawn()?;
        self.servers.insert(name.to_owned(), (server, child));
        Ok(())
    }

    pub fn kill(&mut self, name: &str) -> Result<()> {
        let (_, child) = self.servers.get_mut(name).with_context(|| format!("there is no {name}"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// One that was killed.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let (server, _) = self.servers.get(name).with_context(|| format!("there is no {name}"))?;
        self.start(name, server.clone())
    }

    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let (_, child) = self.servers.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }

    /// The last lines of what each has printed, for an error.
    pub fn last_words(&self) -> String {
        let end = |name| pegasus_onebox::Cluster::last_lines(&self.dir.join(name).join("out"), 3);
        self.servers.keys().map(end).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for (_, child) in self.servers.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Until all partitions of `temp` have all their replicas; also while the servers are still starting.
pub async fn wait_healthy(client: &Cluster, within: Duration) -> Result<()> {
    let begun = Instant::now();
    loop {
        match client.wait_healthy("temp", Duration::from_secs(5)).await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() >= within => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
