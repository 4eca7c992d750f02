//! pegasus-telemetry
