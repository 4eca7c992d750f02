//! What the daemons say to one another: tarpc services over our own framed transport.
//!
//! | word | meaning |
//! |---|---|
//! | peer | another daemon, by the address that it publishes |
//! | class | what a connection is for: control, replication or bulk; one connection each |
//! | hello | the first exchange on a connection: who are you, which cluster, which version |
//! | incarnation | random number of a process start |
//! | link | one connection of one class to one peer, kept up |
//! | outbox | the queue of one-way messages to one peer, sent in batches |
//!
//! ```text
//!  PeerPool -- ReplicaClient -- Link x3 ..(hello, frames).. serve_replica_peer -- your ReplicaPeer
//!     |            `-- Outbox
//!     `------- MetaClient ----- Link x2 ................... serve_meta_peer ----- your MetaPeer
//! ```
//!
//! Everything lives on one thread: a current_thread runtime with a LocalSet; handlers need not be Send.
//! Nothing here repeats a call. The tracing target `tarpc` must be off: its spans cost as much as the call.

/// One call on a link; the answer's variant is checked, a peer may be broken.
macro_rules! call {
    ($link:expr, $within:expr, $request:ident, $response:ident, $method:ident $arguments:tt) => {
        match $link.call($within, $request::$method $arguments).await? {
            $response::$method(answer) => Ok(answer),
            _ => Err(CallError::Confused),
        }
    };
}

mod frame;
mod hello;
mod link;
pub mod meta;
mod outbox;
mod pool;
pub mod replica;
mod serve;
#[cfg(test)]
mod tests;
mod transport;

pub use frame::{FrameError, MAX_FRAME_BYTES};
pub use hello::{
    Class, HELLO_TIMEOUT, HelloError, Identity, MAX_HELLO_BYTES, PREFACE, PROTOCOL_VERSION, Refusal, Remote,
};
pub use link::{CallError, DialError, look_up};
pub use meta::{MetaClient, MetaPeer, serve_meta_peer};
pub use outbox::{Outbox, OutboxStats};
pub use pool::{PeerEvent, PeerPool, PoolOptions};
pub use replica::{DiskStats, NodeStats, ReplicaClient, ReplicaPeer, ReplicaStats, serve_replica_peer};
pub use serve::{MAX_WAITING, ServeError};
/// First argument of every handler; deadlines and lost connections do not stop a handler, so most ignore it.
pub use tarpc::context::Context;
