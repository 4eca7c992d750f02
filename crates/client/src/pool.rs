//! One connection per server, shared by everybody, dialled when needed, and anew when the old one is silent for long.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pegasus_rpc::wire::Connection;

use crate::retry::Failure;
use crate::silence::Patience;

/// Longest wait for a connection. On a machine that is gone nobody refuses. Below the second after which a kernel asks
/// again, so that a question that was lost is asked again by us.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a failed dial, doubled up to [`MAX_PAUSE`]. Short: a server that is killed and started again, or
/// a new primary, must be seen within a fraction of a second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(160);
/// Servers that are remembered; a cluster has at most some hundred.
const MAX_SERVERS: usize = 4096;

#[derive(Debug, Default)]
pub struct Pool {
    servers: Mutex<HashMap<SocketAddr, Arc<Server>>>,
}

#[derive(Debug, Default)]
struct Server {
    connection: Mutex<Standing>,
    /// Held while dialling, so that one dials and the others wait for it.
    dialling: tokio::sync::Mutex<Pause>,
}

#[derive(Debug, Default)]
struct Standing {
    connection: Option<Connection>,
    patience: Patience,
}

#[derive(Debug, Default)]
struct Pause {
    until: Option<Instant>,
    length: Duration,
    why: String,
}

impl Server {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that works as far as anybody knows.
    fn usable(&self) -> Option<Connection> {
        let standing = self.standing();
        let usable = |c: &Connection| c.is_alive() && !standing.patience.is_over(c.silent_for());
        standing.connection.clone().filter(usable)
    }

    /// Who still waits for an answer on the old one keeps it until then.
    fn replace(&self, connection: Connection) {
        let mut standing = self.standing();
        if let Some(old) = standing.connection.replace(connection)
            && old.is_alive()
        {
            standing.patience.replaced(old.has_heard());
        }
    }
}

impl Pool {
    /// A live connection to `address`, within `within`.
    pub async fn get(&self, address: SocketAddr, within: Duration) -> Result<Connection, Failure> {
        let server = {
            let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
            if servers.len() >= MAX_SERVERS && !servers.contains_key(&address) {
                servers.retain(|_, server| server.usable().is_some());
            }
            servers.entry(address).or_default().clone()
        };
        if let Some(connection) = server.usable() {
            return Ok(connection);
        }
        let failure = |why: &str| Failure::Connect { address: address.to_string(), why: why.to_owned() };
        let Ok(mut pause) = tokio::time::timeout(within, server.dialling.lock()).await else {
            return Err(failure("another dial takes too long"));
        };
        if let Some(connection) = server.usable() {
            return Ok(connection);
        }
        if pause.until.is_some_and(|until| Instant::now() < until) {
            return Err(failure(&pause.why));
        }
        match Connection::connect(address, within.min(DIAL_TIMEOUT)).await {
            Ok(connection) => {
                *pause = Pause::default();
                server.replace(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                pause.length = (pause.length * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
                pause.until = Some(Instant::now() + pause.length);
                pause.why = error.to_string();
                Err(failure(&pause.why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pegasus_rpc::wire::{AdminRequest, CallError, Request, RequestHead, meta::ClusterInfoRequest};
    use tokio::net::TcpListener;

    use super::*;

    /// As after a cut: the kernel may send what was lost only after many seconds.
    #[tokio::test]
    async fn a_connection_that_is_silent_for_long_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool::default();
        let within = Duration::from_secs(30);
        let first = pool.get(address, within).await.unwrap();
        let (_held, first_from) = listener.accept().await.unwrap();
        let request = Request::Admin(AdminRequest::ClusterInfo(ClusterInfoRequest {}));
        let answer = first.call(RequestHead::default(), &request, Duration::from_millis(10)).await;
        assert_eq!(answer.err(), Some(CallError::Timeout));
        let owed = first.silent_for();
        assert!(owed > Duration::ZERO, "given up, but still owed");
        pool.get(address, within).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(second.is_err(), "not at once");

        while !Patience::default().is_over(first.silent_for()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        pool.get(address, within).await.unwrap();
        let (_, second_from) = listener.accept().await.unwrap();
        assert_ne!(first_from, second_from);
        assert!(first.is_alive(), "whoever waits on it may wait on");
    }
}
