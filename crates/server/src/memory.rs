//! The allocator of all daemons.
//!
//! Rows are allocated by the loop and freed by the engine's flush thread, a pattern for which glibc's allocator takes
//! locks and walks chunks, and keeps what was freed (docs/performance.md).

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
