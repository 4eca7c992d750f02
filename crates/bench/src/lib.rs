//! pegasus-bench
