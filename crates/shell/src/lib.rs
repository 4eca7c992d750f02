//! pegasus-shell
