//! Names, roles and addresses, as a function of the plan.

use std::net::SocketAddrV4;

use anyhow::{Result, bail};

use crate::{Plan, ZooKeeper};

const META_PORT: u16 = 34601;
const REPLICA_PORT: u16 = 34801;
const COLLECTOR_PORT: u16 = 34101;
/// Above this a port of some member does not fit into 16 bits.
const PORT_BASE_MAX: u16 = 30_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    ZooKeeper,
    Meta,
    Replica,
    Collector,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::ZooKeeper => "zookeeper",
            Self::Meta => "meta",
            Self::Replica => "replica",
            Self::Collector => "collector",
        }
    }
}

/// One process of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub role: Role,
    pub address: SocketAddrV4,
}

/// In the order in which they are started and listed.
pub fn members(plan: &Plan) -> Result<Vec<Member>> {
    if plan.port_base > PORT_BASE_MAX {
        bail!("PORT_BASE={}: at most {PORT_BASE_MAX}, or the ports do not fit", plan.port_base);
    }
    let member = |name: String, role, port: u16| Member {
        name,
        role,
        address: SocketAddrV4::new(plan.host, port + plan.port_base),
    };
    let zookeepers = plan.zookeeper().into_iter().flat_map(|zookeeper| {
        zookeeper.numbers().map(move |number| Member {
            name: ZooKeeper::name(number),
            role: Role::ZooKeeper,
            address: zookeeper.client_address(number),
        })
    });
    let metas = (0..plan.options.metas).map(|i| member(format!("meta{}", i + 1), Role::Meta, META_PORT + i));
    let replicas = (0..plan.options.replicas)
        .map(|i| member(format!("replica{}", i + 1), Role::Replica, REPLICA_PORT + i));
    let collector =
        plan.options.collector.then(|| member("collector".into(), Role::Collector, COLLECTOR_PORT));
    Ok(zookeepers.chain(metas).chain(replicas).chain(collector).collect())
}

/// `host:port,host:port` of the meta-servers.
pub fn meta_list(members: &[Member]) -> String {
    list(members, Role::Meta)
}

/// `host:port,host:port` of the servers of ZooKeeper; empty without.
pub fn zookeeper_list(members: &[Member]) -> String {
    list(members, Role::ZooKeeper)
}

fn list(members: &[Member], role: Role) -> String {
    let those = members.iter().filter(|member| member.role == role);
    those.map(|member| member.address.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{Coordination, Options};

    #[test]
    fn names_and_ports() {
        let plan = Plan { options: Options::default(), host: Ipv4Addr::LOCALHOST, port_base: 1000 };
        let members = members(&plan).unwrap();
        let lines: Vec<_> =
            members.iter().map(|m| format!("{} {} {}", m.name, m.role.name(), m.address)).collect();
        assert_eq!(
            lines,
            [
                "meta1 meta 127.0.0.1:35601",
                "replica1 replica 127.0.0.1:35801",
                "replica2 replica 127.0.0.1:35802",
                "replica3 replica 127.0.0.1:35803",
                "collector collector 127.0.0.1:35101",
            ]
        );
        assert_eq!(meta_list(&members), "127.0.0.1:35601");
        assert_eq!(zookeeper_list(&members), "");
        assert!(super::members(&Plan { port_base: 30_001, ..plan }).is_err());
    }
    #[test]
    fn several_metas_with_a_zookeeper_of_their_own() {
        let options = Options {
            metas: 2,
            replicas: 1,
            coordination: Coordination::Zookeeper,
            zookeepers: 3,
            collector: false,
            ..Options::default()
        };
        let plan = Plan { options, host: Ipv4Addr::new(127, 1, 2, 3), port_base: 0 };
        let members = members(&plan).unwrap();
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["zookeeper1", "zookeeper2", "zookeeper3", "meta1", "meta2", "replica1"]);
        assert_eq!(zookeeper_list(&members), "127.1.2.3:22181,127.1.2.3:22182,127.1.2.3:22183");
        assert_eq!(meta_list(&members), "127.1.2.3:34601,127.1.2.3:34602");
    }
}
