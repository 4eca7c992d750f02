//! A cluster in one thread, on seeded time, network and disks, with checkers that look on after every step.
//!
//! The replication core (`pegasus_pacifica`), the meta's decisions (`pegasus_placement`), how its leader loads, stores and
//! adopts them (`pegasus_meta_core`), the election of that leader
//! and the tree that it writes to (`pegasus_zk_coordination`), and the log with its recovery
//! (`pegasus_mutation_log`) are those of the daemons. What is played here is the shell round them: the host
//! ([`host`]), the meta-server ([`meta`]), the store ([`store`]), the network ([`bus`]), the disk ([`disk`]), clients
//! that know every value ([`workload`]), an operator who makes and drops tables ([`operator`]).
//!
//! | word | meaning |
//! |---|---|
//! | seed | a number from which a whole run follows, byte for byte |
//! | host | a machine with one replica-server: its clock, its disk, its process |
//! | life | from one start of a process to its end |
//! | nemesis | whoever breaks things by chance |
//! | script | a scenario told as text, with what is expected ([`script`]) |
//!
//! ```text
//!  clients --request--> hosts <--messages, heartbeats--> hosts
//!                         ^  \                             all through Bus: delay, loss, cuts
//!       nemesis, script --+   +--asks--> metas <--calls, watches--> store
//!                         |
//!  checks: after every step, on every commit, on every answer
//! ```

pub mod bus;
pub mod checks;
pub mod dice;
pub mod disk;
pub mod engine;
pub mod host;
pub mod meta;
mod nemesis;
pub mod operator;
pub mod run;
pub mod script;
pub mod settings;
pub mod store;
pub mod trace;
pub mod workload;
pub mod world;
