//! Settings of the daemons: the mechanism, and the few sections that every role reads.
//!
//! | word | meaning |
//! |---|---|
//! | section, key | as in Pegasus's `config.ini`; declared once, with [`section!`], by the crate that reads them |
//! | owned section | one that some crate declares: a key in it that nobody knows is a mistake |
//! | foreign section | one of Pegasus's that has no meaning here (thread pools, task codes): ignored, said once |
//! | variable | `%{name}`, to be replaced before the start: in the file, by `--set name=value` or `-cargs` |
//! | mistake | a line of the file, an environment variable or a flag that is wrong; all are reported at once |
//!
//! ```text
//!  config.ini --ini--> \
//!  PEGASUS__SECTION__KEY -> figment -> Loaded --section::<T>()--> typed sections, mistakes gathered
//!  --set section.key=v -> /               \--finish()--> warnings, or every mistake with its place
//! ```
//!
//! A daemon composes its own `Config` of sections and adds its cross-field rules with [`Loaded::mistake`]:
//!
//! ```
//! pegasus_config::section! {
//!     /// How replicas write.
//!     pub struct Writes = "replication" {
//!         /// Largest client write in bytes; 0 = no limit.
//!         max_allowed_write_size: u64 = 1 << 20;
//!         /// Writes in flight per partition.
//!         staleness_for_commit: u32 = 20, in 1..=1000;
//!     }
//! }
//! let mut loaded = pegasus_config::Sources::text("config.ini", "[replication]\nstaleness_for_commit = 2o")
//!     .load(&[<Writes as pegasus_config::Section>::INFO]);
//! let writes: Writes = loaded.section();
//! assert_eq!(writes.max_allowed_write_size, 1 << 20);
//! assert!(loaded.finish().unwrap_err().to_string().contains("config.ini:2"));
//! ```

pub mod black_list;
pub mod common;
mod effective;
mod host;
mod ini;
mod known;
mod load;
mod mistake;
mod reference;
mod reference_keys;
mod section;
mod units;
mod value;

pub use effective::{Effective, EffectiveKey};
pub use load::{Loaded, Sources};
pub use mistake::{Mistake, Mistakes, Place};
pub use reference::{default_file, markdown};
pub use section::{KeyInfo, Reader, Section, SectionInfo};
pub use units::{ByteSize, Ms, Seconds};
pub use value::{Setting, TaggedPath};
