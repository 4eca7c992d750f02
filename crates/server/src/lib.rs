//! pegasus-server
