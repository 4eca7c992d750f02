//! A whole cluster as processes on this machine, all on 127.0.0.1: for trying Pegasus out (`make onebox`) and for
//! tests that kill real processes.
//!
//! | word | meaning |
//! |---|---|
//! | shape | how many of what, on which ports, with which durability and engine; kept in `onebox.json` |
//! | member | one process: `meta1`, `replica1`.., `collector` |
//!
//! ```text
//!  DIR/onebox.json               the shape
//!  DIR/replica1/config.ini       written anew at every start
//!              /out.log          what the process prints
//!              /pid              pid, start time and boot of the process, so that no other is ever killed
//!              /log/  ...        what the process makes itself
//! ```

mod cluster;
mod health;
mod member;
mod ports;
mod process;
mod shape;

pub use cluster::{Cluster, Listed, State};
pub use health::Progress;
pub use member::{Member, Role};
pub use ports::{Reserved, holder_of};
pub use shape::{Durability, Engine, Ports, Shape};
