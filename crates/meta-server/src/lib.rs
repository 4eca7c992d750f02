//! pegasus-meta-server
