//! What every daemon shows of itself and how it stops: logs, metrics, base HTTP paths, shutdown.
//!
//! | module | what |
//! |---|---|
//! | [`commands`] | remote commands that every role understands |
//! | [`logging`] | tracing to size-bounded log files and stderr; level changeable while running |
//! | [`registry`] | prometheus registry with the cluster's labels, process metrics, text encoding |
//! | [`http`] | `/ /version /recentStartTime /config /configs /metrics /livez /readyz`, and one connection of it |
//! | [`health`] | why a role is not ready |
//! | [`shutdown`] | one token, one tracker that waits for all tasks |
//! | [`entities`] | metrics in JSON, as Apache Pegasus tells them |
//! | [`percentiles`] | p50 to p999 out of histograms |
//! | [`text`] | Prometheus text without a registry, written and read |
//!
//! ```text
//!  main: logging::init ─┐
//!  role: registry + Health + settings ──> http::router(Base) ─┬─ merge own routes
//!        listener: HTTP connection ─────> http::serve_connection(stream, router)
//!        Shutdown::trigger() ──> every task sees it, wait_for_tasks() bounds the end
//! ```

pub mod commands;
pub mod entities;
pub mod health;
pub mod http;
pub mod logging;
pub mod percentiles;
pub mod registry;
mod repeats;
pub mod shutdown;
pub mod text;
pub mod time;
pub mod version;

pub use health::Health;
pub use shutdown::Shutdown;

/// The metrics library, so that daemons and telemetry agree on its version.
pub use prometheus;
