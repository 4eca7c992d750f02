//! pegasus-storage
