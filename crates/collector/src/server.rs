//! Wiring: the port, the two loops, the end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use axum::response::Response;
use axum::routing::get;
use pegasus_rpc::listener::{self, Handlers, Limits};
use pegasus_rpc::peer::{Identity, PeerPool, PoolOptions};
use pegasus_rpc::port;
use pegasus_rpc::wire::frame::RequestHead;
use pegasus_rpc::wire::request::Request;
use pegasus_rpc::wire::server::{self as wire, ClientService, ReplyTo, WireServer};
use pegasus_telemetry::commands::{self, Commands};
use pegasus_telemetry::http::{self, Base};
use pegasus_telemetry::prometheus::Registry;
use pegasus_telemetry::{Health, Shutdown, registry};
use pegasus_types::ErrorCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::hotspot::Hotspots;
use crate::metrics::Metrics;
use crate::overview::{self, Look};
use crate::probe::{self, Board};
use crate::target::ClientTarget;

/// Nothing here waits for anything but its own timeouts.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// The collector's port is for monitoring, not for load.
const CONNECTIONS_MAX: usize = 1_000;

/// A running collector.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl Handle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends after the shutdown was triggered.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.serving.await.context("the collector's listener failed")?;
        if !self.shutdown.wait_for_tasks(STOP_WITHIN).await {
            tracing::warn!("some tasks of the collector did not stop in time");
        }
        Ok(())
    }
}

/// Listens, then probes and asks until `shutdown`. Needs a `LocalSet`. Fails only when the port cannot be had.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Handle> {
    let listen = config.network.listen_address(config.app.ports).map_err(|why| anyhow!(why))?;
    let listener = port::bind(listen, port::BIND_PATIENCE)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr().context("own address")?;
    let node = config.network.node(address.port()).map_err(|why| anyhow!(why))?;

    let registry = registry::new(&config.cluster.cluster_name, "collector", node.as_str())?;
    let metrics = Metrics::new(&registry)?;
    let health = Health::default();
    let (text, told) = watch::channel(String::new());
    let labels = registry::labels(&config.cluster.cluster_name, "collector", node.as_str());
    let all = registry.clone();
    let router = Router::new()
        .route("/metrics", get(move || show_metrics(all.clone(), told.clone())))
        .fallback_service(http::router(Base::new("collector", registry, health.clone(), &config.shown)));

    let identity = Rc::new(Identity::new(node.clone(), rand::random(), String::new()));
    let pool = PeerPool::new(identity, PoolOptions::default(), |_event| {});
    let collector = &config.collector;
    let every = collector.app_stat_interval_seconds.0;
    let metas = config.metas.server_list;
    let (table, timeout) = (&collector.available_detect_app, collector.available_detect_timeout.0);
    let target = Rc::new(ClientTarget::new(&metas, table, timeout).context("client of this cluster")?);
    let rounds = collector.max_hotspot_store_size as usize;
    let hotspots = Hotspots::new(collector.hot_partition_threshold, rounds);
    let look = Look { pool, metas, every, metrics: metrics.clone(), health, labels, text, hotspots };
    shutdown.spawn_local_until(overview::run(look));

    let options = probe::Options {
        table: collector.available_detect_app.clone(),
        every: collector.available_detect_interval_seconds.0,
        timeout: collector.available_detect_timeout.0,
        alert_after: collector.available_detect_alert_fail_count,
    };
    shutdown.spawn_local_until(probe::run(target, Rc::new(Board::new(options, metrics)), shutdown.clone()));

    let client = ClientPort(Commands::new("collector", node.as_str(), std::time::Instant::now()));
    let handlers = Handlers {
        client: Some(WireServer::new(node.as_str(), wire::Limits::default(), Rc::new(client))),
        http: listener::handler(move |stream, _from| http::serve_connection(stream, router.clone())),
        peer: None,
    };
    let limits = Limits { connections: CONNECTIONS_MAX, ..Limits::default() };
    let serving = tokio::task::spawn_local(listener::serve(listener, handlers, limits, shutdown.token()));
    Ok(Handle { address, shutdown, serving })
}

/// The collector's own series, and what the replica-servers said.
async fn show_metrics(registry: Registry, told: watch::Receiver<String>) -> Response {
    let told = told.borrow().clone();
    http::metrics_text(&registry, &told)
}

/// Takes remote commands. Other client frames are understood, and answered that nothing of the kind lives here.
struct ClientPort(Commands);

impl ClientService for ClientPort {
    fn call(&self, _head: RequestHead, _frame_bytes: usize, request: Request, reply: ReplyTo) {
        match request {
            Request::RemoteCommand(command) => {
                let common = self.0.clone();
                tokio::task::spawn_local(async move {
                    let answer = common.answer(&command.cmd, &command.arguments).await;
                    let unknown = || format!("unknown command '{}'\n{}", command.cmd, commands::HELP);
                    reply.text(answer.unwrap_or_else(unknown));
                });
            }
            _ => reply.error(ErrorCode::HandlerNotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pegasus_types::Node;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::LocalSet;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_serves_and_says_so_when_no_meta_answers() {
        let mut config = Config::default();
        config.app.ports = 0;
        config.network.explicit_host_address = "127.0.0.1".into();
        // A port that nobody listens on: bound, then let go.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        config.metas.server_list = vec![Node::new(free.to_string())];
        config.collector.app_stat_interval_seconds.0 = Duration::from_millis(50);
        config.shown = serde_json::json!({"server_list": {"value": "x"}});
        LocalSet::new()
            .run_until(async {
                let shutdown = Shutdown::new();
                let handle = start(config, shutdown.child()).await.unwrap();
                let address = handle.address();
                assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
                let begun = std::time::Instant::now();
                let mut ready = String::new();
                while !ready.contains("meta leader: ") {
                    assert!(begun.elapsed() < Duration::from_secs(20), "{ready}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    ready = get(address, "/readyz").await;
                }
                assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
                let metrics = get(address, "/metrics").await;
                assert!(metrics.contains("meta_leader_reachable{") && metrics.contains("} 0\n"), "{metrics}");
                assert!(get(address, "/config?name=server_list").await.contains("{\"value\":\"x\"}"));

                let mut garbage = TcpStream::connect(address).await.unwrap();
                garbage.write_all(b"\x00\x01\x02\x03garbage").await.unwrap();
                let mut end = Vec::new();
                let _ = garbage.read_to_end(&mut end).await; // reset or closed
                assert!(end.is_empty());

                shutdown.trigger();
                tokio::time::timeout(Duration::from_secs(5), handle.wait()).await.unwrap().unwrap();
                assert!(TcpStream::connect(address).await.is_err());
            })
            .await;
    }
}
