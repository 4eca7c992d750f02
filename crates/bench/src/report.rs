//! The figures, as text and as JSON.

use std::fmt;

use serde::Serialize;

use crate::args::{Args, Case};
use crate::cpu::Process;
use crate::measure::Sample;

#[derive(Debug, Serialize)]
pub struct Report {
    /// Of the cluster, as told or asked.
    pub durability: String,
    pub machine: Machine,
    pub servers: Vec<Process>,
    pub connections: usize,
    pub value_bytes: usize,
    pub keys: u64,
    pub distribution: &'static str,
    pub cases: Vec<CaseReport>,
}

#[derive(Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
}

impl Report {
    pub fn new(args: &Args, durability: &str, servers: &[Process]) -> Self {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            durability: durability.to_owned(),
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(0, usize::from),
                cpu: cpu.map_or("unknown", |(_, name)| name).to_owned(),
            },
            servers: servers.to_vec(),
            connections: args.connections,
            value_bytes: args.value_bytes,
            keys: args.keys,
            distribution: args.distribution.name(),
            cases: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cores, {}", self.machine.cores, self.machine.cpu)?;
        writeln!(
            f,
            "durability {}; {} connections, values of {} bytes, {} keys, {}",
            self.durability, self.connections, self.value_bytes, self.keys, self.distribution
        )?;
        let servers: Vec<_> = self.servers.iter().map(|s| format!("{} (pid {})", s.name, s.pid)).collect();
        writeln!(f, "server processes: {}", servers.join(", "))
    }
}

#[derive(Debug, Serialize)]
pub struct CaseReport {
    pub case: String,
    pub reads_percent: u8,
    pub depth: usize,
    pub pegasus: SystemReport,
    /// With [`Self::redis_wait`] replicas waited for and an append-only file with fsync every second.
    pub redis: Option<SystemReport>,
    pub redis_wait: u8,
    /// Server CPU per operation, Pegasus / Redis.
    pub cpu_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct SystemReport {
    pub operations: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub ops_per_s: f64,
    /// Of each window.
    pub windows_ops_per_s: Vec<f64>,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    /// All server processes.
    pub server_cpu_us_per_op: f64,
    pub processes: Vec<ProcessReport>,
    pub driver_cpu_us_per_op: f64,
}

#[derive(Debug, Serialize)]
pub struct ProcessReport {
    pub name: String,
    pub cpu_us_per_op: f64,
}

impl SystemReport {
    pub fn new(sample: &Sample) -> Self {
        let operations = sample.operations();
        let per_op = |us: u64| us as f64 / operations.max(1) as f64;
        let server_us = sample.server_cpu.iter().map(|(_, us)| us).sum();
        Self {
            operations,
            errors: sample.errors,
            first_error: sample.first_error.clone(),
            ops_per_s: operations as f64 / sample.elapsed.as_secs_f64().max(f64::EPSILON),
            windows_ops_per_s: sample.windows.clone(),
            p50_us: sample.latencies.value_at_quantile(0.5),
            p99_us: sample.latencies.value_at_quantile(0.99),
            p999_us: sample.latencies.value_at_quantile(0.999),
            server_cpu_us_per_op: per_op(server_us),
            processes: sample
                .server_cpu
                .iter()
                .map(|(process, us)| ProcessReport { name: process.name.clone(), cpu_us_per_op: per_op(*us) })
                .collect(),
            driver_cpu_us_per_op: per_op(sample.driver_cpu_us),
        }
    }
}

impl CaseReport {
    pub fn new(args: &Args, case: Case, pegasus: SystemReport, redis: Option<SystemReport>) -> Self {
        let cpu_ratio = redis
            .as_ref()
            .filter(|redis| {
                redis.operations > 0 && pegasus.operations > 0 && redis.server_cpu_us_per_op > 0.0
            })
            .map(|redis| pegasus.server_cpu_us_per_op / redis.server_cpu_us_per_op);
        Self {
            case: case.to_string(),
            reads_percent: case.reads_percent,
            depth: case.depth,
            pegasus,
            redis,
            redis_wait: args.redis_wait,
            cpu_ratio,
        }
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>9} {:>9} {:>9} {:>9} {:>7} {:>13} {:>13}",
            self.case, "ops/s", "p50 us", "p99 us", "p999 us", "errors", "server us/op", "driver us/op"
        )?;
        self.pegasus.row(f, "  pegasus")?;
        if let Some(redis) = &self.redis {
            redis.row(f, &format!("  redis, WAIT {}", self.redis_wait))?;
        }
        if let Some(ratio) = self.cpu_ratio {
            writeln!(f, "  server CPU per operation, pegasus / redis: {ratio:.2}")?;
        }
        Ok(())
    }
}

impl SystemReport {
    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        writeln!(
            f,
            "{name:<24} {:>9.0} {:>9} {:>9} {:>9} {:>7} {:>13.1} {:>13.1}",
            self.ops_per_s,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.errors,
            self.server_cpu_us_per_op,
            self.driver_cpu_us_per_op
        )?;
        let parts: Vec<_> =
            self.processes.iter().map(|p| format!("{} {:.1}", p.name, p.cpu_us_per_op)).collect();
        writeln!(f, "    us/op: {}", parts.join(", "))?;
        if let Some(why) = &self.first_error {
            writeln!(f, "    first error: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn sample(operations: u64, cpu_us: u64) -> Sample {
        let mut sample = Sample::default();
        sample.latencies.record_n(100, operations).unwrap();
        sample.elapsed = std::time::Duration::from_secs(2);
        sample.server_cpu = vec![(Process { name: "s".into(), pid: 1 }, cpu_us)];
        sample
    }

    #[test]
    fn the_ratio_is_per_operation_over_all_rounds() {
        let mut ours = sample(1_000, 20_000);
        ours.add(sample(3_000, 60_000));
        let args = Args::parse_from(["pegasus_bench"]);
        let case = Case { reads_percent: 0, depth: 1 };
        let redis = Some(SystemReport::new(&sample(100, 4_000)));
        let report = CaseReport::new(&args, case, SystemReport::new(&ours), redis);
        assert_eq!(report.pegasus.ops_per_s, 1_000.0);
        assert_eq!(report.pegasus.server_cpu_us_per_op, 20.0);
        assert_eq!(report.cpu_ratio, Some(0.5));
        let text = report.to_string();
        assert!(text.contains("pegasus / redis: 0.50"), "{text}");
        assert!(text.contains("s 20.0"), "{text}");
    }

    #[test]
    fn without_operations_there_is_no_ratio() {
        let args = Args::parse_from(["pegasus_bench"]);
        let case = Case { reads_percent: 0, depth: 1 };
        let nothing = || SystemReport::new(&sample(0, 0));
        assert_eq!(CaseReport::new(&args, case, nothing(), Some(nothing())).cpu_ratio, None);
    }
}
