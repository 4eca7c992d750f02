//! pegasus-mutation-log
