//! pegasus-sim
