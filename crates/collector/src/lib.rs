//! The collector: looks at the cluster from outside and tells what it sees.
//!
//! | word | meaning |
//! |---|---|
//! | probe | one real write and read of a row in a partition of the probed table |
//! | availability | share of probes that succeeded, per minute, hour, day and since the start, in millionths |
//! | overview | tables, partitions and nodes as the meta leader knows them |
//! | hotspot | partition with far more requests than the others of its table |
//! | totals | requests of all replica-servers by table and operation, which never fall |
//!
//! ```text
//!   metas ───────cluster_view──> overview ──> health (sums) ──┐
//!   replica-servers <──stats, GET /metrics── scrape ──> totals ──> report ──┐
//!   table temp <──set, get── probe ────> availability ────────┴─> metrics ──┴─> GET /metrics, /livez, /readyz, /config
//! ```
//!
//! With metas or replica-servers down it goes on, and says so: probes fail, `meta_leader_reachable` is 0.

mod availability;
mod config;
mod health;
mod hotspot;
mod metrics;
mod overview;
mod probe;
mod report;
mod scrape;
mod server;
mod target;
mod totals;

pub use config::{Config, SECTIONS};
pub use server::{Handle, start};
