//! What travels between processes, and the one port on which it arrives.
//!
//! | word | meaning |
//! |---|---|
//! | client frame | a request or reply of the Pegasus client protocol (`THFT`), see [`wire`] |
//! | peer | another daemon of the cluster, spoken to through tarpc, see [`peer`] |
//! | service | what a daemon hands to this crate: it gets typed requests and a place to answer |
//!
//! ```text
//!                         first 4 bytes
//!  TcpListener --accept--> listener --THFT--> wire::server --Request, ReplyTo--> ClientService
//!                             |------GET ---> http handler of the daemon
//!                             `------PGR1---> peer handler of the daemon
//! ```
//!
//! This crate holds no state of the cluster. It bounds what strangers can make a daemon hold: frames,
//! buffers, requests in flight, connections.

pub mod listener;
pub mod peer;
pub mod port;
pub mod wire;
