//! Redis with two replicas: the measure to beat. Started on free ports in a directory of its own, append-only
//! file with fsync every second on all three, writes acknowledged by `WAIT`.
//!
//! At depth d a connection sends d commands and one WAIT in one write and takes the d answers together. That
//! is the form in which Redis is cheapest.

mod resp;

use std::net::{SocketAddrV4, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tempfile::TempDir;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::args::{Args, Case};
use crate::cpu::Process;
use crate::measure::{self, Sample};
use crate::workload::{Operation, Values, Workload, key_name};
use resp::{Connection, Reply};

/// The three have to be up and in step within this time.
const START_WITHIN: Duration = Duration::from_secs(20);
/// Rows per write while loading.
const LOAD_BATCH: u64 = 500;

#[derive(Debug)]
pub struct Trio {
    servers: Vec<Server>,
    /// Removed at the end, after the servers.
    _dir: TempDir,
}

#[derive(Debug)]
struct Server {
    child: Child,
    address: SocketAddrV4,
    process: Process,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(program: &Path, dir: &Path, name: &str, primary: Option<SocketAddrV4>) -> Result<Self> {
        let address = free_address()?;
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let port = address.port().to_string();
        let mut command = Command::new(program);
        command.args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--logfile", "redis.log"]);
        command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        command.arg("--dir").arg(&dir);
        if let Some(primary) = primary {
            command.args(["--replicaof", &primary.ip().to_string(), &primary.port().to_string()]);
        }
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().with_context(
                || format!("cannot start {}; apt-get install redis-server", program.display()),
            )?;
        let process = Process { name: name.to_owned(), pid: child.id() };
        Ok(Self { child, address, process })
    }
}

/// Another process can take it before Redis does; then Redis does not come up and the bench says so.
fn free_address() -> Result<SocketAddrV4> {
    match TcpListener::bind("127.0.0.1:0")?.local_addr()? {
        std::net::SocketAddr::V4(address) => Ok(address),
        std::net::SocketAddr::V6(_) => bail!("asked for an IPv4 port, got an IPv6 one"),
    }
}

impl Trio {
    pub async fn start(args: &Args) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pegasus-bench-redis").tempdir()?;
        let primary = Server::start(&args.redis_server, dir.path(), "redis-primary", None)?;
        let mut servers = vec![primary];
        for name in ["redis-replica1", "redis-replica2"] {
            let primary = servers[0].address;
            servers.push(Server::start(&args.redis_server, dir.path(), name, Some(primary))?);
        }
        let trio = Self { servers, _dir: dir };
        let in_step = async {
            while !trio.in_step().await.unwrap_or(false) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(START_WITHIN, in_step).await.context("redis-server and its replicas do not come up")?;
        Ok(trio)
    }

    fn processes(&self) -> Vec<Process> {
        self.servers.iter().map(|server| server.process.clone()).collect()
    }

    async fn connect(&self) -> Result<Connection> {
        Connection::open(self.servers[0].address).await
    }

    async fn in_step(&self) -> Result<bool> {
        let mut connection = self.connect().await?;
        connection.queue(&[b"INFO", b"replication"]);
        match connection.exchange(1).await?.pop() {
            Some(Reply::Bulk(Some(info))) => {
                Ok(String::from_utf8_lossy(&info).matches("state=online").count() == self.servers.len() - 1)
            }
            other => bail!("INFO: {other:?}"),
        }
    }

    /// Writes every key once, and waits for the replicas.
    pub async fn load(&self, args: &Args) -> Result<()> {
        let mut connection = self.connect().await?;
        let values = Values::new(args.value_bytes);
        let mut rng = SmallRng::seed_from_u64(1);
        for first in (0..args.keys).step_by(usize::try_from(LOAD_BATCH)?) {
            let keys = first..(first + LOAD_BATCH).min(args.keys);
            let count = usize::try_from(keys.end - keys.start)?;
            for key in keys {
                connection.queue(&[b"SET", key_name(key).as_bytes(), &values.next(&mut rng)]);
            }
            connection.queue(&[b"WAIT", b"2", b"20000"]);
            let replies = connection.exchange(count + 1).await?;
            if let Some(bad) = replies.iter().find(|reply| !matches!(reply, Reply::Status | Reply::Int(2))) {
                bail!("loading: {bad:?}");
            }
        }
        Ok(())
    }

    /// One window of `case`.
    pub async fn run(&self, args: &Args, case: Case) -> Result<Sample> {
        let workload = Workload::new(args, case);
        let mut connections = Vec::new();
        for _ in 0..args.connections {
            connections.push(self.connect().await?);
        }
        let (wait, within, value_bytes) = (i64::from(args.redis_wait), args.timeout(), args.value_bytes);
        measure::window(args, &self.processes(), |recorder| {
            let workers = connections.into_iter().enumerate().map(|(seed, mut connection)| {
                let mut workload = workload.with_seed(seed as u64);
                let recorder = recorder.clone();
                spawn_local(async move {
                    while recorder.goes_on() {
                        let operations: Vec<_> = (0..case.depth).map(|_| workload.next()).collect();
                        let start = Instant::now();
                        let batch = batch(&mut connection, &operations, wait, value_bytes);
                        let result = match timeout(within, batch).await {
                            Ok(result) => result.map_err(|error| error.to_string()),
                            Err(_) => Err("no answer in time".to_owned()),
                        };
                        let broken = result.is_err();
                        recorder.done(start, operations.len() as u64, result);
                        if broken {
                            // Answers may still be on their way: the connection is out of step.
                            return;
                        }
                    }
                })
            });
            workers.collect()
        })
        .await
    }
}

/// Sends the operations, and WAIT when there is a write among them; checks every answer.
async fn batch(
    connection: &mut Connection,
    operations: &[Operation],
    wait: i64,
    value_bytes: usize,
) -> Result<()> {
    let mut writes = false;
    for operation in operations {
        match operation {
            Operation::Put { key, value } => {
                writes = true;
                connection.queue(&[b"SET", key_name(*key).as_bytes(), value]);
            }
            Operation::Get { key } => connection.queue(&[b"GET", key_name(*key).as_bytes()]),
        }
    }
    let waits = writes && wait > 0;
    if waits {
        connection.queue(&[b"WAIT", wait.to_string().as_bytes(), b"5000"]);
    }
    let replies = connection.exchange(operations.len() + usize::from(waits)).await?;
    for (operation, reply) in operations.iter().zip(&replies) {
        match (operation, reply) {
            (Operation::Put { .. }, Reply::Status) => {}
            (Operation::Get { .. }, Reply::Bulk(Some(value))) if value.len() == value_bytes => {}
            (_, other) => bail!("{other:?}"),
        }
    }
    match replies.last() {
        Some(Reply::Int(reached)) if waits && *reached < wait => bail!("only {reached} replicas have it"),
        _ => Ok(()),
    }
}
