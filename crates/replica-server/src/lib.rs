//! The replica-server: keeps replicas of partitions on its disks and serves clients from those whose primary it is.
//!
//! The decisions are made by [`pegasus_pacifica::NodeCore`], a value; this crate is the shell round it. Everything
//! of a node lives on one thread: clients' connections, peers' connections, all partitions. Only the writers of
//! the logs, the engines' background work, compactions of whole replicas and slow reads have threads of their own.
//!
//! | word | meaning |
//! |---|---|
//! | turn | one round of the loop: what came since the last one is worked off together |
//! | event, effect | what goes into the core, what comes out |
//! | queued, in flight | a write before and after it was resolved |
//! | parked | a read that waits for the lease |
//! | lane | slow file work of one replica, in order |
//! | life, copy id | a replica from an empty (or copied) engine on; a copy from a primary begins a new one |
//!
//! ```text
//!  service/client_api ─ writes ─▶ partition/queue ─┐            ┌─▶ log thread of the disk ── completions ─┐
//!                     ─ reads ──▶ reads            │            ├─▶ outbox of a peer                       │
//!  service/peer_api ── envelopes, heartbeats ──────┼─▶ driver ──┤   (effects)                              │
//!  meta_link ───────── configurations ─────────────┤   NodeCore ├─▶ engine, replies                        │
//!  learn_io, load ──── rows, log, recovered ───────┤            └─▶ meta_link, learn_io, replica_files     │
//!                                                  └◀──────────────────── events ◀────────────────────────┘
//! ```

pub mod config;
pub mod lost_power;

mod clock;
mod cold;
mod compaction;
mod disk;
mod drain;
mod effects;
mod file_lanes;
mod learn_io;
mod load;
mod meta_link;
mod metrics;
mod node;
mod partition;
mod reads;
mod replica_files;
mod server;
mod service;
mod slow;
mod throttle;
mod units;
mod waitlist;
mod watch;
mod workers;

pub use config::{Config, SECTIONS};
pub use server::{Handle, Vitals, start};
