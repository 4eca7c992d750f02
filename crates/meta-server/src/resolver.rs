//! IPv4 addresses of nodes, for clients, who know nothing else (wire-protocol.md rule 7). Names are resolved
//! in the background, looked up again now and then, and keep their last address when that fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use pegasus_types::Node;
use tokio::time::Instant;

/// A name's address may change when its machine is replaced.
const FRESH: Duration = Duration::from_secs(30);
/// Names kept: nodes of a cluster, and a bound for what strangers could make us look up.
const MAX_NAMES: usize = 10_000;

#[derive(Clone, Debug, Default)]
pub struct Resolver(Rc<RefCell<BTreeMap<Node, Known>>>);

#[derive(Debug)]
struct Known {
    address: Option<SocketAddrV4>,
    asked: Instant,
}

impl Resolver {
    /// The address as far as it is known; a lookup is started when it is not, or old. Needs a LocalSet.
    pub fn get(&self, node: &Node) -> Option<SocketAddrV4> {
        if let Some((ip, port)) = node.ipv4() {
            return Some(SocketAddrV4::new(ip, port));
        }
        let mut names = self.0.borrow_mut();
        let address = names.get(node).and_then(|known| known.address);
        let fresh = names.get(node).is_some_and(|known| known.asked.elapsed() < FRESH);
        if !fresh && (names.len() < MAX_NAMES || names.contains_key(node)) {
            names.insert(node.clone(), Known { address, asked: Instant::now() });
            tokio::task::spawn_local(self.clone().look_up(node.clone()));
        }
        address
    }

    async fn look_up(self, node: Node) {
        match tokio::net::lookup_host(node.as_str()).await {
            Ok(mut found) => {
                let v4 = found.find_map(|address| match address {
                    SocketAddr::V4(v4) => Some(v4),
                    SocketAddr::V6(_) => None,
                });
                match (v4, self.0.borrow_mut().get_mut(&node)) {
                    (Some(v4), Some(known)) => known.address = Some(v4),
                    (None, _) => tracing::warn!(%node, "this node's name has no IPv4 address"),
                    (Some(_), None) => {}
                }
            }
            Err(error) => tracing::warn!(%node, %error, "cannot resolve a node's name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_at_once_names_soon() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let resolver = Resolver::default();
                let address = Some("127.0.0.1:7".parse().unwrap());
                assert_eq!(resolver.get(&Node::new("127.0.0.1:7")), address);
                let name = Node::new("localhost:7");
                assert_eq!(resolver.get(&name), None);
                for _ in 0..500 {
                    if resolver.get(&name).is_some() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert_eq!(resolver.get(&name), address);
                assert_eq!(resolver.0.borrow().len(), 1);
            })
            .await;
    }
}
