//! The nouns that every crate of Pegasus shares. No IO, no clock, no async.
//!
//! | word | meaning |
//! |---|---|
//! | app | a table |
//! | partition, [`Gpid`] | one hash slice of a table: (app id, partition index) |
//! | replica | one copy of a partition on one node |
//! | [`Ballot`] | version of the membership of one partition; only the meta-server raises it |
//! | [`Decree`] | position in the partition's history of mutations; the first write is 1 |
//! | [`Mutation`] | the unit that gets a decree: a batch of blind, absolute writes |
//!
//! ```text
//!  client --> primary --Mutation(ballot, decree)--> secondaries      (PacificA)
//!                |  ^
//!   ConfigChange v  | PartitionConfig(ballot + 1)
//!             meta-server
//! ```

pub mod app;
pub mod blob;
pub mod cluster;
pub mod data;
pub mod envs;
pub mod error_code;
pub mod hash;
pub mod ids;
pub mod learn;
pub mod message;
pub mod meta;
pub mod mutation;
pub mod partition;
pub mod time;

pub use app::{AppInfo, AppStatus};
pub use error_code::ErrorCode;
pub use ids::{AppId, Ballot, Decree, Gpid, Node};
pub use mutation::{LogLocation, Mutation, WriteOp};
pub use partition::{ChangeKind, PartitionConfig};
pub use time::Millis;
