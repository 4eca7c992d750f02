//! Where a replica keeps its rows: engines, the meaning of the operations, data directories.
//!
//! | word | meaning |
//! |---|---|
//! | engine | ordered map of one partition, with the decree up to which it has applied mutations |
//! | view | the rows of a partition as they are at one decree, whatever is written meanwhile |
//! | stored value | expiry, time tag and user data as one run of bytes ([`schema`]) |
//! | resolve | turn what a client asked for into blind puts and deletes ([`ops`]) |
//! | rows | a view as a stream of chunks, for a learner ([`rows`]) |
//! | data directory | one disk: who it is, whose it is, its replicas ([`data_dir`]) |
//!
//! ```text
//!  WriteRequest ── ops::resolve ──▶ body ──▶ (log, peers) ──▶ PartitionEngine::apply
//!                      │ Reader                                      │
//!                      └──────────────── get ────────────────────────┤
//!  ReadRequest ─── ops::read / ScanContexts ──── view, range ────────┘
//! ```
//!
//! Everything here is synchronous. Engines have no write-ahead log: the mutation log is theirs, and is replayed
//! from [`PartitionEngine::durable_decree`] on.

pub mod data_dir;
pub mod engine;
mod lsm_engine;
mod memory_engine;
mod memtable;
mod merge;
pub mod ops;
mod panics;
pub mod replica_meta;
pub mod rows;
pub mod schema;
mod sled_engine;
pub mod small_file;

pub use data_dir::DataDirs;
pub use engine::{
    Contract, EngineError, EngineFactory, EngineKind, EngineOptions, Health, PartitionEngine, Pressure, Stop,
    View, new_factory,
};
pub use replica_meta::ReplicaMeta;
pub use schema::Value;
