//! Who asks the meta-server: clients and operators' tools, other daemons.

pub mod admin;
pub mod client_facing;
pub mod commands;
pub mod compaction;
pub mod orders;
pub mod replica_facing;
