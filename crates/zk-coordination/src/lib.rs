//! Where the cluster's metadata lives, behind one trait: a tree of small versioned nodes with atomic
//! multi-operations, sessions and watches, as ZooKeeper has it.
//!
//! | word | meaning |
//! |---|---|
//! | node | a path with some bytes and a version; each set adds one to the version |
//! | multi | several operations that happen all or not at all, each conditional on a version |
//! | session | the store's knowledge that this process lives; its ephemeral nodes end with it |
//! | watch | told once, when what was read has changed |
//!
//! ```text
//!  meta-server --tree (paths), content (JSON)--> dyn MetaStore
//!                                                  |-- SledStore    one meta-server, one machine; fsync'ed
//!                                                  |-- MemoryStore  tests; a tree can be shared by sessions
//!                                                  `-- ZooKeeperStore  clusters; several meta-servers, which elect their leader
//! ```
//!
//! Paths and content are those of the reference, so that an operator's tools show what they expect.

pub mod content;
pub mod election;
pub mod memory_store;
pub mod memory_tree;
pub mod moving;
pub mod removing;
pub mod sled_store;
pub mod store;
pub mod survey;
pub mod tree;
mod watched_tree;
pub mod zk_store;

pub use election::{Election, Fence, FencedStore, Leadership};
pub use memory_store::MemoryStore;
pub use sled_store::SledStore;
pub use store::{Datum, MetaStore, Mode, Op, OpResult, SessionState, StoreError, Version, Watch};
pub use zk_store::ZooKeeperStore;
