//! What the tests over clusters of real processes have in common. The tests themselves are in `tests/`.
//!
//! | word | meaning |
//! |---|---|
//! | [`TestCluster`] | processes of its own, ended with the test; one at a time, for a machine of two cores |
//! | [`Known`] | clients that know what they may read at any time |
//! | [`Cable`] | a connection that a test can cut |
//! | [`TablesAgain`] | how long after a fault of a meta-server or of its store a table can be made |
//! | [`Writers`] | clients that write all the time and remember what was acknowledged |
//!
//! A test is as strict as the promise that it tests: what was acknowledged is readable, always. Times are another
//! matter on a machine that also compiles: tests have generous bounds, and print what they have measured.

mod cable;
mod http;
mod known;
mod layout;
pub mod model;
mod process;
mod rounds;
mod say;
mod tables_again;
mod test_cluster;
mod writers;

pub use cable::Cable;
pub use http::{http_get, metric};
pub use known::{Known, Load, Seen};
pub use layout::{Held, held, is_even};
pub use process::Usage;
pub use rounds::die_in_turn;
pub use say::say;
pub use tables_again::{TABLES_WITHIN, TablesAgain};
pub use test_cluster::{TestCluster, block_on, env_or};
pub use writers::{Acknowledged, Writers};
