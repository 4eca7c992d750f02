//! Requests that took long: one line each, with the time of every stage.
//!
//! | stage | of | time |
//! |---|---|---|
//! | queue | writes | from arrival until it is put into a mutation |
//! | log | writes | from then until the mutation is in this node's log |
//! | prepare | writes | from then, too, until all members have it: runs beside `log` |
//! | apply | writes | from then until it is in the engine |
//! | queue | reads | from arrival until the engine is asked: for the lease, for a thread, for room in the client's answers |
//! | engine | reads | the rest |
//!
//! Keys and values are never told, other than in Apache Pegasus: a line has the hash of the hash key as the client sent
//! it (0 when it sent none), and `hash` in the shell tells that of a key.

use std::net::SocketAddr;
use std::time::Duration;

use pegasus_types::{AppInfo, Gpid};

use crate::metrics::Op;
use crate::partition::stages::Times;

/// Of a table, in ms (config-reference.md, operations.md 4).
const ENV: &str = "replica.slow_query_threshold";
/// The least that a table may ask for.
const ENV_LEAST_MS: u64 = 20;

/// From when on a request is slow.
#[derive(Clone, Copy, Debug)]
pub struct Threshold {
    usual_us: u64,
    /// Below this nothing is slow, whatever a table wants.
    least_us: u64,
}

impl Default for Threshold {
    fn default() -> Self {
        Self::new(Duration::from_millis(100))
    }
}

impl Threshold {
    pub fn new(usual: Duration) -> Self {
        let usual_us = u64::try_from(usual.as_micros()).unwrap_or(u64::MAX);
        Self { usual_us, least_us: usual_us.min(ENV_LEAST_MS * 1000) }
    }

    /// Whether `took_us` may be slow at all: what nearly all requests are asked, and nothing else.
    pub fn may_be_slow(self, took_us: u64) -> bool {
        took_us >= self.least_us
    }

    pub fn is_slow(self, took_us: u64, app: &AppInfo) -> bool {
        let own_ms = app.envs.get(ENV).and_then(|text| text.trim().parse::<u64>().ok());
        let threshold = own_ms.map_or(self.usual_us, |ms| ms.max(ENV_LEAST_MS).saturating_mul(1000));
        took_us >= threshold
    }
}

/// A slow request, as it is told.
#[derive(Debug)]
pub struct Slow<'a> {
    pub app: &'a AppInfo,
    pub gpid: Gpid,
    pub op: Op,
    pub client: Option<SocketAddr>,
    /// Of the hash key; 0 = unknown.
    pub hash: u64,
    /// Of the request for writes, of the answer for reads.
    pub bytes: u64,
    pub arrived_us: u64,
    pub took_us: u64,
}

/// 0 when the end was not seen, or lies before the begin: a mutation is committed by others while this node's log lags.
fn ms(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1000.0
}

impl Slow<'_> {
    /// `began_us`: when the engine was asked.
    pub fn read(&self, began_us: u64) {
        let ended = self.arrived_us + self.took_us;
        tracing::warn!(
            table = self.app.name,
            gpid = %self.gpid,
            op = self.op.name(),
            client = %self.client(),
            key_hash = self.hash,
            bytes = self.bytes,
            total_ms = ms(0, self.took_us),
            queue_ms = ms(self.arrived_us, began_us),
            engine_ms = ms(began_us, ended),
            "slow read"
        );
    }

    /// `times` of its mutation; none for a check that failed, which waited for the lease alone.
    pub fn write(&self, times: Option<Times>) {
        let ended = self.arrived_us + self.took_us;
        let times = times.unwrap_or(Times { taken: ended, ..Times::default() });
        tracing::warn!(
            table = self.app.name,
            gpid = %self.gpid,
            op = self.op.name(),
            client = %self.client(),
            key_hash = self.hash,
            bytes = self.bytes,
            total_ms = ms(0, self.took_us),
            queue_ms = ms(self.arrived_us, times.taken),
            log_ms = ms(times.taken, times.logged),
            prepare_ms = ms(times.taken, times.committed),
            apply_ms = ms(times.committed, times.applied),
            "slow write"
        );
    }

    fn client(&self) -> String {
        self.client.map_or_else(|| "unknown".to_owned(), |client| client.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_thresholds_of_their_own() {
        let app = |env: Option<&str>| AppInfo {
            app_id: 1,
            name: "t".into(),
            app_type: "pegasus".into(),
            status: pegasus_types::AppStatus::Available,
            partition_count: 1,
            max_replica_count: 3,
            envs: env.map(|ms| (ENV.to_owned(), ms.to_owned())).into_iter().collect(),
            create_second: 0,
            drop_second: 0,
            expire_second: 0,
        };
        for (usual_ms, env, slow_from_ms) in [
            (100, None, 100),
            (100, Some("30"), 30),
            (100, Some(" 500 "), 500),
            (100, Some("1"), 20),
            (100, Some("soon"), 100),
            (5, None, 5),
            (5, Some("40"), 40),
        ] {
            let threshold = Threshold::new(Duration::from_millis(usual_ms));
            let (app, from) = (app(env), slow_from_ms * 1000);
            assert!(threshold.may_be_slow(from) && threshold.is_slow(from, &app), "{usual_ms} {env:?}");
            assert!(!threshold.is_slow(from - 1, &app), "{usual_ms} {env:?}");
        }
        assert!(!Threshold::default().may_be_slow(19_999), "most requests need no look at the table");
    }
}
