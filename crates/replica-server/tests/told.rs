//! What nodes tell of themselves: slow requests in the log, numbers as entities. A process of its own: it reads the log.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use serde_json::Value;
use support::*;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

/// The number of a field.
fn field(line: &str, name: &str) -> f64 {
    let (_, after) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name} in {line}"));
    after.split_whitespace().next().unwrap().parse().unwrap_or_else(|e| panic!("{name} in {line}: {e}"))
}

/// What all servers of this process tell: each has a thread of its own, and who asks first decides for all.
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let to = log.clone();
    let told =
        tracing_subscriber::fmt().with_env_filter("pegasus_replica_server::slow=warn").with_ansi(false);
    told.with_writer(move || to.clone()).try_init().unwrap();
    log
});

#[test]
fn every_stage_of_a_slow_request_is_told_and_no_key() {
    let log = LazyLock::force(&LOG);
    run(async || {
        // Whatever takes a nanosecond is slow.
        let all = "[pegasus.server]\nrocksdb_slow_query_threshold_ns = 1\n";
        let cluster = cluster(all).await;
        let client = Client::new(&cluster.meta, PARTITIONS);
        client.put("secret_hash_key", "secret_sort_key", "secret_value").await;
        client.get("secret_hash_key", "secret_sort_key").await.unwrap();

        let lines = log.lines();
        let write = lines.iter().find(|line| line.contains("slow write")).unwrap();
        let read = lines.iter().find(|line| line.contains("slow read")).unwrap();
        for name in ["queue_ms", "apply_ms"] {
            assert!((0.0..=field(write, "total_ms")).contains(&field(write, name)), "{write}");
        }
        for name in ["log_ms", "prepare_ms"] {
            // A sync and a way to two others and back take more than a microsecond.
            assert!(field(write, name) > 0.0, "{write}");
        }
        let stages = field(read, "queue_ms") + field(read, "engine_ms");
        assert!((stages - field(read, "total_ms")).abs() < 0.01, "{read}");
        for line in [write, read] {
            assert!(
                line.contains("client=127.0.0.1:") && line.contains("table=\"") && line.contains("gpid=2.")
            );
            assert!(field(line, "bytes") > 0.0 && !line.contains("secret"), "{line}");
        }
        let primary = cluster.meta.config(client.index_of("secret_hash_key")).primary.unwrap();
        let primary = cluster.nodes.iter().find(|node| node.node == primary).unwrap();
        let metrics = http_get(primary, "/metrics").await;
        let line = metrics.lines().find(|l| l.starts_with("pegasus_replica_slow_requests_total{")).unwrap();
        assert!(!line.ends_with(" 0"), "{line}");
    });
}

async fn http_json(node: &TestNode, path: &str) -> Value {
    let answer = http_get(node, path).await;
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn numbers_are_told_as_tools_of_the_reference_ask_for_them() {
    LazyLock::force(&LOG);
    run(async || {
        let cluster = cluster("").await;
        let client = Client::new(&cluster.meta, PARTITIONS);
        for key in 0..40 {
            client.put(&format!("h{key}"), "s", "v").await;
            client.get(&format!("h{key}"), "s").await.unwrap();
        }
        let mut sums = BTreeMap::new();
        for node in &cluster.nodes {
            let asked = "/metrics?types=replica,server&metrics=put_requests,get_requests,read_capacity_units,write_capacity_units,primary_replicas,resident_mem_usage_mb";
            let told = http_json(node, asked).await;
            assert_eq!((&told["role"], &told["port"]), (&"replica".into(), &node.address().port().into()));
            for entity in told["entities"].as_array().unwrap() {
                if entity["type"] == "replica" {
                    assert_eq!(entity["attributes"]["table_id"], APP.to_string(), "{entity}");
                }
                for metric in entity["metrics"].as_array().unwrap() {
                    let name = metric["name"].as_str().unwrap().to_owned();
                    *sums.entry(name).or_insert(0.0) += metric["value"].as_f64().unwrap();
                }
            }
            let disks = http_get(node, "/metrics?types=disk&with_metric_fields=name,unit").await;
            assert!(disks.contains(r#"{"name":"disk_capacity_total_mb","unit":"MegaBytes"}"#), "{disks}");
        }
        assert!(sums.remove("resident_mem_usage_mb").unwrap() > 1.0);
        // What the cluster did in the beginning may have been tried again.
        assert!((40.0..80.0).contains(&sums["get_requests"]), "{sums:?}");
        assert_eq!(sums["get_requests"], sums["read_capacity_units"], "{sums:?}");
        assert_eq!(sums["put_requests"], sums["write_capacity_units"], "{sums:?}");
        assert_eq!(sums["primary_replicas"], f64::from(PARTITIONS));
    });
}

#[test]
fn percentiles_are_told_by_table_and_by_kind_of_request() {
    LazyLock::force(&LOG);
    run(async || {
        let cluster = cluster("").await;
        let client = Client::new(&cluster.meta, PARTITIONS);
        for key in 0..20 {
            client.put(&format!("h{key}"), "s", "v").await;
            client.get(&format!("h{key}"), "s").await.unwrap();
        }
        let tables = format!("/metrics?types=table&attributes=table_id,{APP}&with_metric_fields=");
        let profilers = "/metrics?types=profiler&metrics=profiler_server_rpc_latency_ns";
        let mut primaries = 0;
        for node in &cluster.nodes {
            let (table, profiler) = (http_json(node, &tables).await, http_json(node, profilers).await);
            let percentiles = |metric: &Value| {
                ["p50", "p90", "p95", "p99", "p999"].map(|name| metric[name].as_u64().unwrap())
            };
            let of_tasks: BTreeMap<_, _> = profiler["entities"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entity| {
                    let metric = &entity["metrics"][0];
                    assert_eq!(metric.as_object().unwrap().len(), 6, "name and percentiles: {metric}");
                    (entity["id"].as_str().unwrap(), percentiles(metric))
                })
                .collect();
            assert_eq!((of_tasks.len(), of_tasks["task@RPC_RRDB_RRDB_CHECK_AND_SET"]), (13, [0; 5]));
            let Some(entity) = table["entities"].get(0) else { continue };
            primaries += 1;
            assert_eq!(entity["id"], format!("table@{APP}"));
            for (name, task) in [("get_latency_ns", "GET"), ("put_latency_ns", "PUT")] {
                let metrics = entity["metrics"].as_array().unwrap();
                let metric = metrics
                    .iter()
                    .find(|metric| metric["name"] == name)
                    .unwrap_or_else(|| panic!("{name}: {entity}"));
                assert_eq!((&metric["type"], &metric["unit"]), (&"Percentile".into(), &"NanoSeconds".into()));
                let of_table = percentiles(metric);
                assert!(of_table[0] > 0 && of_table.is_sorted(), "{metric}");
                assert_eq!(of_table, of_tasks[&*format!("task@RPC_RRDB_RRDB_{task}")], "the only table");
            }
        }
        assert!(primaries > 0);
    });
}
