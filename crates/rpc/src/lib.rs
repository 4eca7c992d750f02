//! pegasus-rpc
