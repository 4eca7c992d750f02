//! A whole cluster of real processes on this machine: for `make onebox`, and for tests that need processes.
//!
//! | word | meaning |
//! |---|---|
//! | member | one process of the cluster: `zookeeper1`.. (with ZooKeeper), `meta1`.., `replica1`.., `collector` |
//! | plan | how a cluster was made: options, address, ports; kept in `cluster.json` |
//! | ticket | what we keep of a process that we started: pid and start time, so that no other one is ever signalled |
//!
//! ```text
//!  Options ──> Plan ──> Members ──config_file──> DIR/NAME/config.ini
//!                          |                          |
//!                       Cluster ──spawn──> pegasus_server DIR/NAME/config.ini -app_list ROLE
//!                          |                    DIR/NAME/{pid, out, log/, data}
//!                          `──health──> pegasus_client: nodes, partitions, one read each
//! ```
//!
//! A test writes:
//!
//! ```no_run
//! # fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! let cluster = pegasus_onebox::Cluster::start(pegasus_onebox::Options::default())?;
//! cluster.wait_healthy(Duration::from_secs(30))?;
//! let metas = cluster.metas(); // for pegasus_client::Cluster::connect
//! cluster.kill("replica2")?;
//! cluster.start_member("replica2")?;
//! # let _ = metas;
//! # Ok(())
//! # } // dropped: every process is killed, the directory removed
//! ```
//!
//! Errors are for people to read; nobody decides by their kind, hence `anyhow`.

mod cluster;
mod config_file;
mod health;
mod lock;
mod members;
mod options;
mod ports;
mod process;
mod zookeeper;

pub use cluster::{Cluster, Status, find_server};
pub use lock::Lock;
pub use members::{Member, Role};
pub use options::{Coordination, Durability, Engine, Options, Plan};
pub use process::State;
pub use zookeeper::{ZooKeeper, ZooKeeperPlan};
