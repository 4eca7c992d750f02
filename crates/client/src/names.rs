//! IPv4 addresses of nodes that have names. Nobody can end a lookup: one that takes longer than whoever wanted it may wait
//! goes on, and who asks next joins it, so that a dead name server costs one thread per name and not one per attempt.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use pegasus_types::Node;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::retry::Failure;

/// Asks the system for the addresses of a node.
pub type LookUp = fn(Node) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

type Found = Result<SocketAddrV4, String>;
type UnderWay = HashMap<Node, Shared<BoxFuture<'static, Found>>>;

#[derive(Clone, Debug)]
pub struct Names {
    look_up: LookUp,
    under_way: Arc<Mutex<UnderWay>>,
}

impl Default for Names {
    fn default() -> Self {
        Self::new(|node| async move { Ok(lookup_host(node.as_str()).await?.collect()) }.boxed())
    }
}

impl Names {
    pub fn new(look_up: LookUp) -> Self {
        Self { look_up, under_way: Arc::default() }
    }

    /// The IPv4 address of a node, within `within`.
    pub async fn resolve(&self, node: &Node, within: Duration) -> Result<SocketAddrV4, Failure> {
        if let Some((ip, port)) = node.ipv4() {
            return Ok(SocketAddrV4::new(ip, port));
        }
        if node.host() == "localhost" {
            return Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, node.port()));
        }
        let lookup = self.under_way().entry(node.clone()).or_insert_with(|| self.start(node)).clone();
        let found = timeout(within, lookup).await;
        found.unwrap_or_else(|_| Err("the lookup takes too long".to_owned())).map_err(|why| {
            let node = node.to_string();
            Failure::Resolve { node, why }
        })
    }

    fn start(&self, node: &Node) -> Shared<BoxFuture<'static, Found>> {
        let (look_up, asked) = (self.look_up, node.clone());
        let ended = Ended(self.clone(), node.clone());
        let task = tokio::spawn(async move {
            let _ended = ended;
            let addresses = look_up(asked).await.map_err(|error| error.to_string())?;
            let v4 = addresses.into_iter().find_map(|address| match address {
                SocketAddr::V4(v4) => Some(v4),
                SocketAddr::V6(_) => None,
            });
            v4.ok_or_else(|| "it has no IPv4 address".to_owned())
        });
        task.map(|ended| ended.unwrap_or_else(|error| Err(error.to_string()))).boxed().shared()
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lookup is over, also when its runtime ends: who asks next has the name looked up anew.
struct Ended(Names, Node);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.under_way().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn addresses_and_reasons() {
        let names = Names::new(|node| {
            async move {
                match node.host() {
                    "six" => Ok(vec!["[::1]:1".parse().unwrap()]),
                    "both" => Ok(vec!["[::1]:1".parse().unwrap(), "127.0.0.9:1".parse().unwrap()]),
                    other => Err(io::Error::other(format!("nobody knows {other}"))),
                }
            }
            .boxed()
        });
        for (node, want) in [
            ("127.0.0.7:1", Ok("127.0.0.7:1")),
            ("localhost:1", Ok("127.0.0.1:1")),
            ("both:1", Ok("127.0.0.9:1")),
            ("six:1", Err("cannot resolve six:1: it has no IPv4 address")),
            ("wrong:1", Err("cannot resolve wrong:1: nobody knows wrong")),
        ] {
            let got = names.resolve(&Node::new(node), LONG).await;
            let want = want.map(|address| address.parse().unwrap()).map_err(str::to_owned);
            assert_eq!(got.map_err(|failure| failure.to_string()), want);
        }
        assert!(names.under_way().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_lookup_is_joined_and_not_repeated() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let names = Names::new(|_| {
            async {
                ASKED.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(vec!["127.0.0.9:1".parse().unwrap()])
            }
            .boxed()
        });
        let node = Node::new("slow:1");
        for _ in 0..3 {
            let early = names.resolve(&node, Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(early.to_string(), "cannot resolve slow:1: the lookup takes too long");
        }
        assert!(names.resolve(&node, LONG).await.is_ok());
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        assert!(names.resolve(&node, LONG).await.is_ok());
        assert_eq!(ASKED.load(Ordering::Relaxed), 2, "its address may have changed");
    }
}
