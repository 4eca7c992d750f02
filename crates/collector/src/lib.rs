//! pegasus-collector
