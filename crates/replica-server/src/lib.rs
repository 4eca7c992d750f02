//! pegasus-replica-server
