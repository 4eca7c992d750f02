//! pegasus-config
