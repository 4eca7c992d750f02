//! pegasus-client
