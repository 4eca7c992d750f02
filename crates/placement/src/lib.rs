//! What the meta-server decides about the cluster, as functions over values: no IO, no clock, no async.
//!
//! | word | meaning |
//! |---|---|
//! | view | every table and the configuration of every partition, as stored |
//! | liveness | which nodes send beacons; in memory only, decides placement, never who may serve |
//! | change | a new configuration of one partition, always at ballot + 1 |
//! | cure | what has to happen to a partition so that it becomes healthy again |
//! | move | a role or a copy goes from one node to another; [`balance`] plans them, the cure carries them out |
//! | draining | a node is about to end: its roles go at once; retired: it stays and is emptied |
//! | ledger, draft | the view with the versions in the store; decisions on top of it, not yet stored |
//! | frozen | a node reported a higher ballot than stored: nobody touches the partition |
//!
//! ```text
//!  request of a node --change::apply--+
//!                                     +--> Draft --writes--> (caller: store) --> Ledger::adopt
//!  liveness + view --cure::examine----+
//!                          |
//!                          +--> proposals to primaries and secondaries, which come back as requests
//! ```
//!
//! The shell (`meta-server`, or `crates/sim`) owns the order: decide → persist → adopt → answer.

pub mod alone;
pub mod assign;
pub mod balance;
pub mod change;
pub mod cure;
pub mod ddd;
pub mod envs;
pub mod health;
pub mod ledger;
pub mod level;
pub mod lint;
pub mod liveness;
pub mod recall;
pub mod tables;
pub mod view;

pub use ledger::{Draft, Ledger};
pub use view::{ClusterView, Table};
