//! pegasus-pacifica
