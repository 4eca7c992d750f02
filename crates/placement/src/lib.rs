//! pegasus-placement
