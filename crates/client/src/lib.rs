//! A client for Pegasus, asynchronous, on tokio.
//!
//! | word | meaning |
//! |---|---|
//! | hash key, sort key | the two parts of a key; the hash key chooses the partition |
//! | layout | which server is the primary of which partition, as the meta-servers tell |
//! | attempt | one request to one server; an operation makes several within its timeout |
//! | silence | a server owes an answer and sends nothing, to nobody: is it gone? |
//! | unclear | sent, but not answered: executed or not, nobody knows |
//!
//! ```text
//!  Table --route--> Layout --address--> Pool --Connection--> primary
//!    ^                 | refreshed by Metas after errors that tell of a change
//!    `--- retry::judge(failure): again, unclear or final
//! ```
//!
//! ```no_run
//! # async fn example() -> pegasus_client::Result<()> {
//! let cluster = pegasus_client::Cluster::connect("127.0.0.1:34601").await?;
//! let table = cluster.table("temp").await?;
//! table.set("user:1", "name", "Ada").await?;
//! assert_eq!(table.get("user:1", "name").await?.as_deref(), Some(&b"Ada"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! Operations that may be executed twice are repeated within [`Options::timeout`]; `incr` and the check_and
//! operations are not, once it is unclear whether they were executed ([`Error::Unclear`]).

mod attempt;
mod cluster;
mod deadline;
mod error;
mod http;
mod meta;
mod names;
mod operate;
mod pool;
mod resolver;
mod retry;
mod scan;
mod silence;
mod table;
mod value;

#[cfg(test)]
mod tests;

pub use cluster::{Cluster, CreateTable, NodeState, Options, is_healthy};
pub use error::{Error, Result};
pub use http::http_get;
pub use operate::{DeadPartition, FormerMember, MoveKind};
pub use pegasus_rpc::wire::Refusal;
pub use pegasus_types::data::{CheckType, FilterType, StorageError};
pub use scan::{Row, ScanOptions, Scanner};
pub use table::{Key, Table};
pub use value::{Change, Check, Checked, Filter, IncrTtl, Range, RangeOptions, Rows, TimeLeft, Ttl};
