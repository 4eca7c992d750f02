//! pegasus-zk-coordination
