use std::time::Duration;

/// A look at the log for metrics and for `log_healthy` of heartbeats.
#[derive(Clone, Debug, Default)]
pub struct LogStats {
    pub segments: usize,
    pub bytes: u64,
    /// Bodies that wait for the writer.
    pub queued_bytes: usize,
    pub batches_written: u64,
    pub records_written: u64,
    pub bytes_written: u64,
    pub syncs: u64,
    /// Appends that were answered with an error.
    pub failed: u64,
    /// How long appends have been waiting without any of them being finished; zero when nothing waits.
    /// From 5 s on the node counts as silent (safety-rules.md 1.7).
    pub stalled: Duration,
    /// Why nothing is acknowledged any more.
    pub broken: Option<String>,
    /// The last append failed for want of space.
    pub disk_full: bool,
}
