//! How the leader of the meta-servers changes metadata: decide → persist → adopt → answer, as values. No IO, no clock,
//! no task: `meta-server` drives them with a store and `sim` with simulated ones, and both run this code.
//!
//! | module | what |
//! |---|---|
//! | `decide` | jobs, and what comes of them on top of what is stored |
//! | `writer` | one batch of jobs from decision to answer, through every failure of the store |
//! | `report` | what comes of a node's full report |
//! | `round` | the regular look: who fell silent, what has to be cured or moved, which tables are ready |
//! | `stored` | the ledger as nodes of the store: loading, and writes as operations |
//!
//! ```text
//!  jobs --begin--> Writer --decide--> Next::Store(ops) --caller writes, fenced--> stored(result)
//!                    ^  ^                                                            |
//!                    |  '--Next::Pause, then again: nothing was done-----------------|
//!                    '-----Next::Load, then again: nobody knows what was done--------|
//!                                                                                    v
//!                                                        Step: what was adopted, who gets which answer
//! ```
//!
//! Nothing of a decision is told before it is stored, and memory never runs ahead of the store.

mod decide;
mod report;
mod round;
mod stored;
mod writer;

pub use decide::{Desk, Job, Outcome};
pub use report::{Reported, reported};
pub use round::{Round, Rounds};
pub use stored::{Found, LoadError, Loading, Progress, Read, chunks, op};
pub use writer::{Done, Next, Step, Writer, WriterError};
