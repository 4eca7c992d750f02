//! What kind of cluster.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::ZooKeeperPlan;

/// More processes than this on one machine are a typing mistake.
const REPLICAS_MAX: u16 = 64;
/// One leads, the others only wait.
const METAS_MAX: u16 = 9;
/// Of table `temp`: every partition costs each replica-server memory.
const PARTITIONS_MAX: u32 = 1024;

/// When a write counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Durability {
    /// It is on the disks of all replicas.
    #[default]
    Sync,
    /// All replicas' operating systems have it.
    #[value(name = "page_cache")]
    PageCache,
}

/// Where replicas keep their data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Engine {
    #[default]
    Lsm,
    Sled,
}

/// Where the meta-servers keep their metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Coordination {
    /// In a directory of the only meta-server.
    #[default]
    Embedded,
    /// In a ZooKeeper of the cluster's own, which also elects the leader.
    Zookeeper,
}

impl Coordination {
    /// As the configuration file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Zookeeper => "zookeeper",
        }
    }
}

impl Durability {
    /// As the configuration file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::PageCache => "page_cache",
        }
    }
}

impl Engine {
    /// As the configuration file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::Sled => "sled",
        }
    }
}

/// How a cluster is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub metas: u16,
    pub replicas: u16,
    /// Of table `temp`; a power of two, at least 2.
    pub partitions: u32,
    pub durability: Durability,
    pub engine: Engine,
    #[serde(default)]
    pub coordination: Coordination,
    /// Servers of its ZooKeeper: 1, 3, 5 or 7.
    #[serde(default = "one")]
    pub zookeepers: u16,
    pub collector: bool,
    /// Further settings of every process, `section.key=value`.
    pub sets: Vec<String>,
}

fn one() -> u16 {
    1
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metas: 1,
            replicas: 3,
            partitions: 8,
            durability: Durability::Sync,
            engine: Engine::Lsm,
            coordination: Coordination::Embedded,
            zookeepers: 1,
            collector: true,
            sets: Vec::new(),
        }
    }
}

impl Options {
    /// What cannot work is refused before anything is started.
    pub fn check(&self) -> Result<()> {
        if self.metas == 0 || self.replicas == 0 {
            bail!("a cluster has at least one meta-server and one replica-server");
        }
        if self.metas > 1 && self.coordination == Coordination::Embedded {
            bail!(
                "METAS={}: several meta-servers choose their leader through ZooKeeper: COORDINATION=zookeeper",
                self.metas
            );
        }
        if self.metas > METAS_MAX {
            bail!("METAS={}: at most {METAS_MAX}", self.metas);
        }
        if let Some(zookeeper) = self.zookeeper(Ipv4Addr::LOCALHOST, 0) {
            zookeeper.check()?;
        }
        if self.replicas > REPLICAS_MAX {
            bail!("REPLICAS={}: at most {REPLICAS_MAX}", self.replicas);
        }
        if !self.partitions.is_power_of_two() || !(2..=PARTITIONS_MAX).contains(&self.partitions) {
            bail!("PARTITIONS={}: a power of two from 2 to {PARTITIONS_MAX}", self.partitions);
        }
        if self.engine == Engine::Sled && self.durability == Durability::PageCache {
            bail!(
                "ENGINE=sled does not keep its promises with DURABILITY=page_cache: use DURABILITY=sync, or ENGINE=lsm"
            );
        }
        if let Some(set) =
            self.sets.iter().find(|set| !set.split_once('=').is_some_and(|(k, _)| k.contains('.')))
        {
            bail!("--set {set}: expected section.key=value");
        }
        Ok(())
    }

    /// Copies of each partition of `temp`.
    pub fn copies(&self) -> u16 {
        self.replicas.min(3)
    }

    fn zookeeper(&self, host: Ipv4Addr, port_base: u16) -> Option<ZooKeeperPlan> {
        let plan = ZooKeeperPlan {
            servers: self.zookeepers,
            host,
            port_base,
            sync: self.durability == Durability::Sync,
        };
        (self.coordination == Coordination::Zookeeper).then_some(plan)
    }
}

/// Options and the place where a cluster lives. Fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub options: Options,
    pub host: Ipv4Addr,
    /// Added to every port.
    pub port_base: u16,
}

impl Plan {
    const FILE: &str = "cluster.json";

    /// The cluster's own ZooKeeper, if it has one.
    pub fn zookeeper(&self) -> Option<ZooKeeperPlan> {
        self.options.zookeeper(self.host, self.port_base)
    }

    /// As one would give it to `make onebox`.
    pub fn words(&self) -> String {
        let Options {
            metas, replicas, partitions, durability, engine, coordination, zookeepers, sets, ..
        } = &self.options;
        let coordination = match coordination {
            Coordination::Embedded => String::new(),
            Coordination::Zookeeper => format!("COORDINATION=zookeeper SERVERS={zookeepers} "),
        };
        let sets: String = sets.iter().map(|set| format!(" --set {set}")).collect();
        format!(
            "METAS={metas} {coordination}REPLICAS={replicas} PARTITIONS={partitions} DURABILITY={} ENGINE={} PORT_BASE={}{sets}",
            durability.name(),
            engine.name(),
            self.port_base
        )
    }

    /// None when there is no cluster in `dir`.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(Self::FILE);
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} is not readable; `make onebox-clear` removes it", file.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    pub fn remove(dir: &Path) -> Result<()> {
        crate::cluster::remove_if_there(&dir.join(Self::FILE))
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let (file, new) = (dir.join(Self::FILE), dir.join("cluster.json.tmp"));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        let good = Options::default();
        good.check().unwrap();
        let sled = Options { engine: Engine::Sled, ..good.clone() };
        sled.check().unwrap();
        for (bad, why) in [
            (Options { metas: 3, ..good.clone() }, "COORDINATION=zookeeper"),
            (Options { metas: 10, coordination: Coordination::Zookeeper, ..good.clone() }, "at most 9"),
            (Options { metas: 0, ..good.clone() }, "at least one"),
            (Options { replicas: 0, ..good.clone() }, "at least one"),
            (Options { replicas: 65, ..good.clone() }, "at most 64"),
            (Options { partitions: 3, ..good.clone() }, "power of two"),
            (Options { partitions: 1, ..good.clone() }, "power of two"),
            (Options { durability: Durability::PageCache, ..sled }, "DURABILITY=sync"),
            (Options { sets: vec!["a=b".into()], ..good }, "section.key=value"),
        ] {
            let told = bad.check().unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_plan_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Plan::read(dir.path()).unwrap(), None);
        let plan = Plan { options: Options::default(), host: Ipv4Addr::LOCALHOST, port_base: 100 };
        plan.write(dir.path()).unwrap();
        assert_eq!(Plan::read(dir.path()).unwrap(), Some(plan));
        // One that was made before there was a choice.
        let file = dir.path().join(Plan::FILE);
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        json["options"]
            .as_object_mut()
            .unwrap()
            .retain(|key, _| key != "coordination" && key != "zookeepers");
        std::fs::write(&file, json.to_string()).unwrap();
        assert_eq!(Plan::read(dir.path()).unwrap().unwrap().options, Options::default());
        std::fs::write(dir.path().join(Plan::FILE), "{").unwrap();
        assert!(Plan::read(dir.path()).unwrap_err().to_string().contains("onebox-clear"));
    }
}
