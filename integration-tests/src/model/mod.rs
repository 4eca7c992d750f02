//! A partition as wire-protocol.md describes it, in a map, and what it takes to compare a cluster with it.
//!
//! Nothing here calls the servers' code for operations: the meaning of each is written a second time, from the text.
//!
//! | word | meaning |
//! |---|---|
//! | moment | the seconds within which a server decided an answer: from the send to the receipt |
//! | difference | an answer that the text does not allow |
//! | candidates | what a partition may hold: several states while nobody knows whether a write was executed |
//! | lane | one partition, driven over one connection, burst by burst; the only one who writes there |
//! | doubt | something went wrong on the way; a lane then makes sure where it stands before it goes on |
//!
//! ```text
//!  generate ──ops──> lane ──requests, pipelined──> primary
//!                     │                               │
//!                     └──> candidates <───answers─────┘      partition: write() and read() as in the text
//!                              └─ none left = a difference
//! ```
//!
//! Reads do not wait for writes that were sent before them, so most bursts hold only reads or only writes. A read among
//! writes sees a beginning of these. Writes of a burst are executed in their order, so what is applied of an unanswered
//! rest is a beginning of it, too.

mod candidates;
mod generate;
mod keys;
mod lane;
mod moment;
mod number;
mod partition;
mod rows;
mod run;
mod scans;
mod writes;

pub use run::{Plan, Report, run};
