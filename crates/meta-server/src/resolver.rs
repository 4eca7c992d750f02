//! IPv4 addresses of nodes, for clients, who know nothing else (wire-protocol.md rule 7). Names are resolved
//! in the background, looked up again now and then, and keep their last address when that fails.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use pegasus_rpc::peer::look_up;
use pegasus_types::Node;
use tokio::time::Instant;

/// A name's address may change when its machine is replaced.
const FRESH: Duration = Duration::from_secs(30);
/// Names kept: nodes of a cluster, and a bound for what strangers could make us look up.
const MAX_NAMES: usize = 10_000;
/// A name that nobody has asked for so long is forgotten.
const UNUSED: Duration = Duration::from_secs(3600);
/// Looked for that often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct Resolver(Rc<RefCell<Names>>);

#[derive(Debug, Default)]
struct Names {
    known: BTreeMap<Node, Known>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    address: Option<SocketAddrV4>,
    looked_up: Instant,
    asked: Instant,
}

impl Resolver {
    /// The address as far as it is known; a lookup is started when it is not, or old. Needs a LocalSet.
    pub fn get(&self, node: &Node) -> Option<SocketAddrV4> {
        if let Some((ip, port)) = node.ipv4() {
            return Some(SocketAddrV4::new(ip, port));
        }
        let (address, is_due) = self.0.borrow_mut().ask(node, Instant::now());
        if is_due {
            tokio::task::spawn_local(self.clone().learn(node.clone()));
        }
        address
    }

    async fn learn(self, node: Node) {
        match look_up(&node).await {
            Ok(found) => {
                let v4 = found.iter().find_map(|address| match address {
                    SocketAddr::V4(v4) => Some(*v4),
                    SocketAddr::V6(_) => None,
                });
                match (v4, self.0.borrow_mut().known.get_mut(&node)) {
                    (Some(v4), Some(known)) => known.address = Some(v4),
                    (None, _) => tracing::warn!(%node, "this node's name has no IPv4 address"),
                    (Some(_), None) => {}
                }
            }
            Err(error) => tracing::warn!(%node, %error, "cannot resolve a node's name"),
        }
    }
}

impl Names {
    /// The address as far as it is known, and whether it is to be looked up.
    fn ask(&mut self, node: &Node, now: Instant) -> (Option<SocketAddrV4>, bool) {
        if let Some(known) = self.known.get_mut(node) {
            known.asked = now;
            let is_due = now.duration_since(known.looked_up) >= FRESH;
            if is_due {
                known.looked_up = now;
            }
            return (known.address, is_due);
        }
        if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEEP_EVERY) {
            self.swept = Some(now);
            self.known.retain(|_, known| now.duration_since(known.asked) < UNUSED);
            if self.known.len() >= MAX_NAMES {
                tracing::warn!(names = MAX_NAMES, %node, "too many names of nodes: new ones are not resolved");
            }
        }
        let has_room = self.known.len() < MAX_NAMES;
        if has_room {
            self.known.insert(node.clone(), Known { address: None, looked_up: now, asked: now });
        }
        (None, has_room)
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
                assert_eq!(resolver.0.borrow().known.len(), 1);
            })
            .await;
    }

    #[test]
    fn strangers_names_leave_room_again() {
        let mut names = Names::default();
        let mine = Node::new("replica1:34801");
        let stranger = |n: usize| Node::new(format!("stranger{n}:1"));
        let begun = Instant::now();
        assert_eq!(names.ask(&mine, begun), (None, true));
        assert_eq!(names.ask(&mine, begun), (None, false), "it is being looked up");
        (1..MAX_NAMES).for_each(|n| assert!(names.ask(&stranger(n), begun).1));
        assert!(!names.ask(&stranger(0), begun + SWEEP_EVERY).1, "there is no room");
        assert!(names.ask(&mine, begun + FRESH).1, "what is known goes on");
        assert!(names.ask(&stranger(0), begun + UNUSED).1);
        assert_eq!(names.known.keys().collect::<Vec<_>>(), [&mine, &stranger(0)]);
    }
}
