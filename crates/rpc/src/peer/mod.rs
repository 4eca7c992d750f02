//! tarpc services between daemons.

/// The first four bytes of a connection between daemons.
pub const PREFACE: [u8; 4] = *b"PGR1";
