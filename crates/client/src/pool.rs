//! One connection per server, shared by everybody, dialled when needed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pegasus_rpc::wire::Connection;

use crate::retry::Failure;

/// Longest wait for a connection. On a machine that is gone nobody refuses.
const DIAL_TIMEOUT: Duration = Duration::from_millis(1000);
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
    connection: Mutex<Option<Connection>>,
    /// Held while dialling, so that one dials and the others wait for it.
    dialling: tokio::sync::Mutex<Pause>,
}

#[derive(Debug, Default)]
struct Pause {
    until: Option<Instant>,
    length: Duration,
    why: String,
}

impl Server {
    fn alive(&self) -> Option<Connection> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.clone().filter(Connection::is_alive)
    }
}

impl Pool {
    /// A live connection to `address`, within `within`.
    pub async fn get(&self, address: SocketAddr, within: Duration) -> Result<Connection, Failure> {
        let server = {
            let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
            if servers.len() >= MAX_SERVERS && !servers.contains_key(&address) {
                servers.retain(|_, server| server.alive().is_some());
            }
            servers.entry(address).or_default().clone()
        };
        if let Some(connection) = server.alive() {
            return Ok(connection);
        }
        let failure = |why: &str| Failure::Connect { address: address.to_string(), why: why.to_owned() };
        let Ok(mut pause) = tokio::time::timeout(within, server.dialling.lock()).await else {
            return Err(failure("another dial takes too long"));
        };
        if let Some(connection) = server.alive() {
            return Ok(connection);
        }
        if pause.until.is_some_and(|until| Instant::now() < until) {
            return Err(failure(&pause.why));
        }
        match Connection::connect(address, within.min(DIAL_TIMEOUT)).await {
            Ok(connection) => {
                *pause = Pause::default();
                *server.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
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
