//! The metrics registry of a role, and the metrics that every process has.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Encoder, Gauge, Registry, TextEncoder};

/// What every series of a process carries: `cluster` (`unknown` when it has no name), `role` and `instance` (the node).
pub fn labels(cluster: &str, role: &str, instance: &str) -> Vec<(&'static str, String)> {
    let cluster = if cluster.is_empty() { "unknown" } else { cluster };
    vec![("cluster", cluster.to_owned()), ("role", role.to_owned()), ("instance", instance.to_owned())]
}

/// A registry whose series all carry [`labels`], with the metrics of this process in it.
pub fn new(cluster: &str, role: &str, instance: &str) -> prometheus::Result<Registry> {
    let labels: HashMap<String, String> =
        labels(cluster, role, instance).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let registry = Registry::new_custom(None, Some(labels))?;
    registry.register(Box::new(ProcessMetrics::new()?))?;
    Ok(registry)
}

/// Prometheus text of everything in the registry.
pub fn encode(registry: &Registry) -> prometheus::Result<String> {
    let mut out = Vec::with_capacity(16 << 10);
    TextEncoder::new().encode(&registry.gather(), &mut out)?;
    String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

/// Content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// Read from /proc when gathered; what cannot be read keeps its last value.
#[derive(Debug)]
struct ProcessMetrics {
    resident_mb: Gauge,
    virtual_mb: Gauge,
    cpu_seconds: Counter,
    threads: Gauge,
    open_files: Gauge,
    start_time: Gauge,
}

/// Unit of the times in /proc/self/stat. 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessMetrics {
    fn new() -> prometheus::Result<Self> {
        let start_time = Gauge::new("process_start_time_seconds", "Start of the process, Unix seconds.")?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        start_time.set(now.map_or(0.0, |d| d.as_secs_f64()));
        Ok(Self {
            resident_mb: Gauge::new("resident_mem_usage_mb", "Resident memory of the process in MiB.")?,
            virtual_mb: Gauge::new("virtual_mem_usage_mb", "Virtual memory of the process in MiB.")?,
            cpu_seconds: Counter::new(
                "process_cpu_seconds_total",
                "User and system CPU time of the process.",
            )?,
            threads: Gauge::new("process_threads", "Threads of the process.")?,
            open_files: Gauge::new("process_open_fds", "Open file descriptors of the process.")?,
            start_time,
        })
    }

    fn parts(&self) -> [&dyn Collector; 6] {
        [
            &self.resident_mb,
            &self.virtual_mb,
            &self.cpu_seconds,
            &self.threads,
            &self.open_files,
            &self.start_time,
        ]
    }

    fn read(&self) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, gauge) in [("VmRSS:", &self.resident_mb), ("VmSize:", &self.virtual_mb)] {
            if let Some(kib) = status_number(&status, name) {
                gauge.set(kib / 1024.0);
            }
        }
        if let Some(threads) = status_number(&status, "Threads:") {
            self.threads.set(threads);
        }
        if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
            && let Some(ticks) = cpu_ticks(&stat)
        {
            let passed = ticks / TICKS_PER_SECOND - self.cpu_seconds.get();
            self.cpu_seconds.inc_by(passed.max(0.0));
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(files.count() as f64);
        }
    }
}

/// The number after `name` in /proc/self/status.
fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User + system ticks of /proc/self/stat. The command name may hold anything: fields count from the last `)`.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some(user + system)
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        self.parts().iter().flat_map(|part| part.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_metrics_have_values_and_labels() {
        let registry = new("", "replica", "127.0.0.1:34801").unwrap();
        let text = encode(&registry).unwrap();
        let line = text.lines().find(|line| line.starts_with("resident_mem_usage_mb{")).unwrap();
        for label in ["cluster=\"unknown\"", "role=\"replica\"", "instance=\"127.0.0.1:34801\""] {
            assert!(line.contains(label), "{line}");
        }
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 1.0, "{line}");
        assert!(text.contains("# TYPE process_cpu_seconds_total counter"));
    }

    #[test]
    fn proc_texts() {
        assert_eq!(status_number("A:\t1\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2048.0));
        assert_eq!(status_number("VmRSS:\n", "VmRSS:"), None);
        assert_eq!(cpu_ticks("1 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0"), Some(42.0));
        assert_eq!(cpu_ticks("1 (x"), None);
    }
}
