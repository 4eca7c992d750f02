//! The cable of a primary, cut: a replica-server in a network namespace of its own whose end of the wire leaves the
//! bridge, so that nothing it sends arrives and nobody tells it so. Needs root and `ip` (iproute2).
//!
//! ```text
//!  namespace "hub": bridge 10.213.0.1 with this program, the meta-server, and the wires' ends w1 w2 w3
//!  namespaces "n1" "n2" "n3": one replica-server each, 10.213.0.11 and so on
//! ```

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use pegasus_client::Cluster;
use pegasus_integration_tests::block_on;
use serde::{Deserialize, Serialize};

use crate::gaps::{AFTER, Gap, under_writers};
use crate::part::Rows;

const NODES: usize = 3;
const META: &str = "10.213.0.1:34601";
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
const PROMISED: Duration = Duration::from_secs(2);
const ANSWER: &str = "gaps in ms:";

fn address(node: usize) -> String {
    format!("10.213.0.{}", 11 + node)
}

/// Names of namespaces that nobody else has.
struct Net {
    hub: String,
    nodes: Vec<String>,
}

impl Net {
    fn names(id: &str) -> Self {
        Self { hub: format!("pgr{id}h"), nodes: (1..=NODES).map(|n| format!("pgr{id}n{n}")).collect() }
    }

    fn make(&self) -> Result<()> {
        let hub = self.hub.as_str();
        for name in self.nodes.iter().chain([&self.hub]) {
            ip(&["netns", "add", name]).context("network namespaces cannot be made (root is needed)")?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        // Of its own: else it is that of a wire, and what comes in by that wire is taken also when the wire is unplugged.
        ip(&["-n", hub, "link", "add", "bridge", "address", "02:00:00:00:00:01", "type", "bridge"])?;
        ip(&["-n", hub, "addr", "add", "10.213.0.1/24", "dev", "bridge"])?;
        ip(&["-n", hub, "link", "set", "bridge", "up"])?;
        for (i, node) in self.nodes.iter().enumerate() {
            let wire = format!("w{}", i + 1);
            let to = format!("{}/24", address(i));
            ip(&["-n", hub, "link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", node])?;
            ip(&["-n", hub, "link", "set", &wire, "master", "bridge", "up"])?;
            ip(&["-n", node, "addr", "add", &to, "dev", "eth0"])?;
            ip(&["-n", node, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.nodes.iter().chain([&self.hub]) {
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

#[derive(Debug, Deserialize, Serialize)]
pub struct Cable {
    gap: Gap,
}

impl Rows for Cable {
    const PART: &'static str = "cable";
    const TITLE: &'static str = "A cable is cut";

    fn text(&self) -> String {
        format!(
            "Each replica-server in a network namespace of its own; the primary's end of its wire leaves the bridge, so that\n\
             nothing gets through and nobody is told. `durability = sync`.\n\n{}",
            Gap::table(std::slice::from_ref(&self.gap))
        )
    }

    fn is_kept(&self) -> bool {
        self.gap.is_kept()
    }
}

/// Makes the namespaces and runs this program again inside of them.
pub fn measure(runs: usize) -> Result<Cable> {
    let dir = tempfile::Builder::new().prefix("pgr").tempdir()?;
    let id = std::process::id().to_string();
    let net = Net::names(&id);
    net.make()?;
    std::fs::write(dir.path().join("id"), &id)?;
    let program = std::env::current_exe()?;
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", &net.hub]).arg(program).arg("--cable-in").arg(dir.path());
    let output = inside.args(["--runs", &runs.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "));
    }
    let line = text.lines().find_map(|line| line.strip_prefix(ANSWER)).context("no answer")?;
    let gaps = line.split_whitespace().map(|ms| Ok(Duration::from_millis(ms.parse()?)));
    let gaps: Vec<_> = gaps.collect::<Result<_>>()?;
    let cable = Cable { gap: Gap::new("cable of a primary cut", PROMISED, &gaps) };
    if !cable.is_kept() {
        println!("the logs that may say why are in {}", dir.keep().display());
    }
    Ok(cable)
}

/// Processes that end with this value.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Processes {
    /// `within`: a network namespace, or here.
    fn start(&mut self, within: Option<&str>, dir: &Path, role: &str, host: &str) -> Result<()> {
        let server = pegasus_onebox::find_server()?;
        let config = dir.join("config.ini");
        if !config.exists() {
            let printed = Command::new(&server).arg("--print-default-config").output()?;
            std::fs::write(&config, printed.stdout)?;
        }
        let app_dir = dir.join(format!("{role}-{host}"));
        std::fs::create_dir_all(&app_dir)?;
        let sets = [
            "cluster.name=cable".to_owned(),
            format!("app.dir={}", app_dir.display()),
            format!("home.dir={}", app_dir.display()),
            "data.dirs=".to_owned(),
            "replication.durability=sync".to_owned(),
            format!("meta.server.list={META}"),
            format!("network.explicit_host_address={host}"),
        ];
        let mut command = match within {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(&server);
                command
            }
            None => Command::new(&server),
        };
        command.arg(&config).args(["-app_list", role]);
        for set in &sets {
            command.arg("--set").arg(set);
        }
        let out = std::fs::File::create(app_dir.join("out"))?;
        let child = command.stdout(out.try_clone()?).stderr(out).spawn()?;
        self.0.push(child);
        Ok(())
    }
}

/// In namespace "hub".
pub fn measure_inside(dir: &Path, runs: usize) -> Result<()> {
    let id = std::fs::read_to_string(dir.join("id"))?;
    let net = std::mem::ManuallyDrop::new(Net::names(&id)); // whoever has made it removes it
    let mut processes = Processes(Vec::new());
    processes.start(None, dir, "meta", "10.213.0.1")?;
    for (i, node) in net.nodes.iter().enumerate() {
        processes.start(Some(node), dir, "replica", &address(i))?;
    }
    let gaps = block_on(cut_cables(runs)).with_context(|| ends_of_logs(dir))?;
    let list: Vec<_> = gaps.iter().map(|gap| gap.as_millis().to_string()).collect();
    println!("{ANSWER} {}", list.join(" "));
    Ok(())
}

async fn cut_cables(runs: usize) -> Result<Vec<Duration>> {
    let client = Cluster::new(META, pegasus_client::Options::default())?;
    wait_healthy(&client).await?;
    let table = client.table("temp").await?.with_timeout(Duration::from_secs(20));
    let mut gaps = Vec::new();
    for _ in 0..runs {
        wait_healthy(&client).await?;
        let partitions = client.partitions("temp").await?;
        let led_by = |node: usize| -> Vec<i32> {
            let address = format!("{}:", address(node));
            let is_led = |p: &&pegasus_types::PartitionConfig| {
                p.primary.as_ref().is_some_and(|node| node.as_str().starts_with(&address))
            };
            partitions.iter().filter(is_led).map(|p| p.gpid.index).collect()
        };
        let victim = (0..NODES).max_by_key(|node| led_by(*node).len()).unwrap_or(0);
        let wire = format!("w{}", victim + 1);
        let fault = || async {
            ip(&["link", "set", &wire, "nomaster"]).expect("the cable can be cut");
            tokio::time::sleep(AFTER).await;
        };
        let (seen, at) = under_writers(&table, fault).await;
        ip(&["link", "set", &wire, "master", "bridge"])?;
        let gap = seen.gap(&led_by(victim), at, AFTER);
        let when = humantime::format_rfc3339_millis(SystemTime::now() - at.elapsed());
        println!("cable of {} cut at {when}: {gap:?}, mended after {:?}", address(victim), at.elapsed());
        gaps.push(gap);
    }
    Ok(gaps)
}

async fn wait_healthy(client: &Cluster) -> Result<()> {
    let begun = Instant::now();
    loop {
        match client.wait_healthy("temp", Duration::from_secs(5)).await {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() >= HEALTHY_WITHIN => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn ends_of_logs(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let outs = entries.flatten().map(|entry| entry.path().join("out")).filter(|path| path.exists());
    let mut outs: Vec<PathBuf> = outs.collect();
    outs.sort();
    outs.iter().map(|out| pegasus_onebox::Cluster::last_lines(out, 3)).collect::<Vec<_>>().join("; ")
}
