//! Replication of partitions in the PacificA manner, as a value: no IO, no clock, no lock, no async.
//!
//! [`NodeCore`] holds all partitions of one process and the leases between processes. Whatever happens goes
//! in as an [`Event`] with the time, whatever is to be done comes out as [`Effect`]s. The replica-server runs
//! it on real sockets and disks, `crates/sim` runs the very same value on seeded ones.
//!
//! | word | meaning |
//! |---|---|
//! | tail | mutations that are prepared and not committed, with a few committed ones before them |
//! | prepared | last decree in the tail |
//! | committed | last decree that every member has logged; will be applied everywhere |
//! | applied | last decree that the engine of this replica holds |
//! | grant | a member's word that it will not act as primary for `lease_ms` (safety-rules.md 1.1) |
//! | claim | a secondary asks the meta for the primary's role |
//! | ask | a request for a change of membership, repeated until its outcome is known |
//!
//! ```text
//!              +-- NodeCore ------------------------------------------+
//!  Event ----> | leases: who was heard, who granted what until when   | ----> Effect
//!  (now)       | replicas: Gpid -> Shared + Role                      |       Log Send Apply Reply
//!              |   Inactive -> Learner -> Secondary -> Primary, Error |       AskMeta SaveConfig ..
//!              +------------------------------------------------------+
//! ```
//!
//! # What the shell promises
//! * Effects of one partition are begun in the order in which they come. `Log` appends keep that order.
//! * What an effect asks for is reported by the event that the effect's documentation names, once.
//! * `SaveConfig` is durable before `ConfigSaved` is reported, a mutation is durable (per durability mode)
//!   before `Logged`, and the engine shows it to readers before `Applied`.
//! * Every local replica is announced with [`Event::Opening`] before anything is received from the network.
//!   A partition that was not announced does not exist here, and peers are told so.
//! * Messages may be lost, doubled and reordered. They may not be altered.
//!
//! # What it does not do
//! * A group all of whose members lost power in page_cache mode waits ([`Recovered::intact`]), logged as an error.
//! * While the meta is away, a hand-over that the old primary has announced already, or the death of a learner
//!   whose addition was asked for, stops the partition until the meta is back: both have to be settled by a ballot.

mod effect;
mod event;
mod history;
mod input;
mod lease;
mod node;
mod options;
mod replay;
mod replica;
mod role;
mod shared;
mod tail;
mod transition;

pub use effect::Effect;
pub use event::{Event, Fault, Recovered};
pub use node::{Admission, NodeCore, Serving};
pub use options::{Options, Sabotage};
pub use replay::{Replay, ReplayError};
pub use role::may_begin_empty;
