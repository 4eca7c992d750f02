//! The cable of a primary, cut: a replica-server in a network namespace of its own whose end of the wire leaves the
//! bridge, so that nothing it sends arrives and nobody tells it so. This program and the meta-server are in the hub.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use pegasus_client::Cluster;
use pegasus_integration_tests::{block_on, say};
use serde::{Deserialize, Serialize};

use crate::gaps::{AFTER, Gap, under_writers};
use crate::netns::{Bridge, Net, Server, Servers, wait_healthy};
use crate::part::Rows;

const NODES: usize = 3;
const BRIDGE: Bridge = Bridge { name: "cable", prefix: "10.213.0" };
const META_PORT: u16 = 34601;
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
const PROMISED: Duration = Duration::from_secs(2);

fn meta() -> String {
    format!("{}:{META_PORT}", BRIDGE.hub())
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
    let net = Net::names(&id, NODES);
    net.make(&[BRIDGE])?;
    fs::write(dir.path().join("id"), &id)?;
    let inside = dir.path().to_str().context("a temporary directory that is text")?;
    if let Err(error) = net.run_inside(&["--cable-in", inside, "--runs", &runs.to_string()]) {
        bail!("{error:#}; the logs are in {}", dir.keep().display());
    }
    let found: Cable = serde_json::from_slice(&fs::read(dir.path().join("found.json"))?)?;
    if !found.is_kept() {
        say!("the logs that may say why are in {}", dir.keep().display());
    }
    Ok(found)
}

/// In the hub.
pub fn measure_inside(dir: &Path, runs: usize) -> Result<()> {
    let id = fs::read_to_string(dir.join("id"))?;
    let net = std::mem::ManuallyDrop::new(Net::names(&id, NODES)); // whoever has made it removes it
    let mut servers = Servers::new(dir)?;
    let sets = |host: String| {
        vec![
            "cluster.name=cable".to_owned(),
            "data.dirs=".to_owned(),
            "replication.durability=sync".to_owned(),
            format!("meta.server.list={}", meta()),
            format!("network.explicit_host_address={host}"),
        ]
    };
    servers.start("meta", Server { role: "meta", within: None, sets: sets(BRIDGE.hub()) })?;
    for (place, within) in net.places.iter().enumerate() {
        let sets = sets(BRIDGE.address(place));
        let server = Server { role: "replica", within: Some(within.clone()), sets };
        servers.start(&format!("replica{}", place + 1), server)?;
    }
    let gaps = block_on(cut_cables(runs)).with_context(|| servers.last_words())?;
    let found = Cable { gap: Gap::new("cable of a primary cut", PROMISED, &gaps) };
    fs::write(dir.join("found.json"), serde_json::to_vec(&found)?)?;
    Ok(())
}

async fn cut_cables(runs: usize) -> Result<Vec<Duration>> {
    let client = Cluster::new(&meta(), pegasus_client::Options::default())?;
    wait_healthy(&client, HEALTHY_WITHIN).await?;
    let table = client.table("temp").await?.with_timeout(Duration::from_secs(20));
    let mut gaps = Vec::new();
    for _ in 0..runs {
        wait_healthy(&client, HEALTHY_WITHIN).await?;
        let partitions = client.partitions("temp").await?;
        let led_by = |place: usize| -> Vec<i32> {
            let address = format!("{}:", BRIDGE.address(place));
            let is_led = |p: &&pegasus_types::PartitionConfig| {
                p.primary.as_ref().is_some_and(|node| node.as_str().starts_with(&address))
            };
            partitions.iter().filter(is_led).map(|p| p.gpid.index).collect()
        };
        let victim = (0..NODES).max_by_key(|place| led_by(*place).len()).unwrap_or(0);
        let fault = || async {
            BRIDGE.cut(victim).expect("the cable can be cut");
            tokio::time::sleep(AFTER).await;
        };
        let (seen, at) = under_writers(&table, fault).await;
        BRIDGE.mend(victim)?;
        let gap = seen.gap(&led_by(victim), at, AFTER);
        let when = humantime::format_rfc3339_millis(SystemTime::now() - at.elapsed());
        let address = BRIDGE.address(victim);
        say!("cable of {address} cut at {when}: {gap:?}, mended after {:?}", at.elapsed());
        gaps.push(gap);
    }
    Ok(gaps)
}
