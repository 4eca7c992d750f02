//! What a cluster consists of.

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use crate::member::{Member, Role};

/// More processes than this on one machine are a slip of the finger.
const MOST_REPLICAS: u16 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Durability {
    Sync,
    PageCache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    Lsm,
    Sled,
}

/// First port of each role; further members get the next ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub metas: Vec<u16>,
    pub replicas: Vec<u16>,
    pub collector: u16,
}

impl Ports {
    /// Pegasus's own, each plus `base`: 34601.., 34801.., 34101.
    pub fn standard(metas: u16, replicas: u16, base: u16) -> anyhow::Result<Self> {
        ensure!(base <= 30_000, "PORT_BASE={base} leads beyond port 65535: at most 30000");
        let from = |first: u16, n: u16| (0..n).map(|i| base + first + i).collect();
        Ok(Self { metas: from(34_601, metas), replicas: from(34_801, replicas), collector: base + 34_101 })
    }
}

/// How a onebox is built. Stays as it was made until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub ports: Ports,
    /// Of table `temp`.
    pub partitions: u16,
    pub durability: Durability,
    pub engine: Engine,
    /// Further settings of all processes: (section, key, value).
    #[serde(default)]
    pub settings: Vec<(String, String, String)>,
}

impl Shape {
    /// Says what is impossible before anything is started.
    pub fn check(&self) -> anyhow::Result<()> {
        let Ports { metas, replicas, .. } = &self.ports;
        ensure!(!metas.is_empty(), "METAS=0: a cluster needs a meta-server");
        ensure!(
            metas.len() == 1,
            "METAS={}: several meta-servers elect a leader through ZooKeeper, which is not supported yet; use METAS=1",
            metas.len()
        );
        ensure!(
            (1..=usize::from(MOST_REPLICAS)).contains(&replicas.len()),
            "REPLICAS={}: expected 1 to {MOST_REPLICAS}",
            replicas.len()
        );
        ensure!(
            self.partitions >= 2 && self.partitions.is_power_of_two(),
            "PARTITIONS={}: expected a power of two, at least 2",
            self.partitions
        );
        if self.engine == Engine::Sled && self.durability == Durability::PageCache {
            bail!("ENGINE=sled needs DURABILITY=sync: sled does not say what it has on disk");
        }
        Ok(())
    }

    /// In the order in which they are started.
    pub fn members(&self) -> Vec<Member> {
        let numbered = |role: Role, ports: &[u16]| {
            let member =
                |(i, port): (usize, &u16)| Member { name: format!("{role}{}", i + 1), role, port: *port };
            ports.iter().enumerate().map(member).collect::<Vec<_>>()
        };
        let mut members = numbered(Role::Meta, &self.ports.metas);
        members.extend(numbered(Role::Replica, &self.ports.replicas));
        members.push(Member {
            name: Role::Collector.to_string(),
            role: Role::Collector,
            port: self.ports.collector,
        });
        members
    }

    /// `host:port,host:port`, as clients want it.
    pub fn metas(&self) -> String {
        self.ports.metas.iter().map(|p| format!("127.0.0.1:{p}")).collect::<Vec<_>>().join(",")
    }

    /// Copies of each partition of `temp`: three, or as many as there are nodes.
    pub fn copies(&self) -> usize {
        self.ports.replicas.len().min(3)
    }

    /// How to make the same again, as words for `make onebox`.
    pub fn words(&self) -> String {
        let durability = match self.durability {
            Durability::Sync => "sync",
            Durability::PageCache => "page_cache",
        };
        let engine = match self.engine {
            Engine::Lsm => "lsm",
            Engine::Sled => "sled",
        };
        format!(
            "METAS={} REPLICAS={} PARTITIONS={} DURABILITY={durability} ENGINE={engine} PORT_BASE={}",
            self.ports.metas.len(),
            self.ports.replicas.len(),
            self.partitions,
            self.ports.collector.saturating_sub(34_101),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(metas: u16, replicas: u16) -> Shape {
        Shape {
            ports: Ports::standard(metas, replicas, 1000).unwrap(),
            partitions: 8,
            durability: Durability::Sync,
            engine: Engine::Lsm,
            settings: Vec::new(),
        }
    }

    #[test]
    fn names_and_ports() {
        let members = shape(1, 2).members();
        let told: Vec<_> = members.iter().map(|m| format!("{} {}", m.name, m.port)).collect();
        assert_eq!(told, ["meta1 35601", "replica1 35801", "replica2 35802", "collector 35101"]);
        assert_eq!(shape(1, 2).metas(), "127.0.0.1:35601");
        assert_eq!((shape(1, 2).copies(), shape(1, 5).copies()), (2, 3));
        assert!(shape(1, 2).words().ends_with("PORT_BASE=1000"));
    }

    #[test]
    fn impossible_shapes() {
        assert!(shape(1, 3).check().is_ok());
        let told = |shape: Shape| shape.check().unwrap_err().to_string();
        assert!(told(shape(0, 3)).contains("METAS=0"));
        assert!(told(shape(2, 3)).contains("ZooKeeper"));
        assert!(told(shape(1, 0)).contains("REPLICAS=0"));
        assert!(told(Shape { partitions: 3, ..shape(1, 3) }).contains("power of two"));
        let sled = Shape { engine: Engine::Sled, durability: Durability::PageCache, ..shape(1, 3) };
        assert!(told(sled).contains("DURABILITY=sync"));
        assert!(Ports::standard(1, 3, 40_000).is_err());
    }
}
