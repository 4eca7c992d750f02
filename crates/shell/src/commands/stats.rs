//! What servers count: rates and sizes of tables, memory and disks of servers. Each is asked over HTTP for its entities
//! (`GET /metrics?...`), replica-servers and meta-servers alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use pegasus_client::http_get;
use pegasus_types::{AppInfo, AppStatus, Gpid, Node, PartitionConfig};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{Answer, Result};
use crate::args::{Args, Usage};
use crate::output::Output;
use crate::session::Session;

/// Servers asked at a time.
const AT_A_TIME: usize = 16;
/// Between the two looks that rates are made of.
const INTERVAL_MS: u64 = 1000;
const INTERVAL_MS_LEAST: u64 = 100;

/// Columns of `app_stat` and the counters of a replica that they are the rates of.
const RATES: [(&str, &str); 13] = [
    ("GET", "get_requests"),
    ("MGET", "multi_get_requests"),
    ("BGET", "batch_get_requests"),
    ("PUT", "put_requests"),
    ("MPUT", "multi_put_requests"),
    ("DEL", "remove_requests"),
    ("MDEL", "multi_remove_requests"),
    ("INCR", "incr_requests"),
    ("CAS", "check_and_set_requests"),
    ("CAM", "check_and_mutate_requests"),
    ("SCAN", "scan_requests"),
    ("RCU", "read_capacity_units"),
    ("WCU", "write_capacity_units"),
];
const MIB: f64 = 1_048_576.0;
/// Columns of `app_stat` and the gauges that they show, in which unit.
const SIZES: [(&str, &str, f64); 3] = [
    ("file_mb", "rdb_total_sst_size_bytes", MIB),
    ("mem_tbl_mb", "rdb_memtable_mem_usage_bytes", MIB),
    ("keys", "rdb_estimated_keys", 1.0),
];

/// The numbers of one entity by name.
type Numbers = BTreeMap<String, f64>;

/// What one server said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    role: String,
    timestamp_ns: f64,
    server: Numbers,
    replicas: BTreeMap<Gpid, Numbers>,
    disks: Vec<Numbers>,
}

impl Told {
    fn parse(text: &str) -> Option<Self> {
        let all: Value = serde_json::from_str(text).ok()?;
        let mut told = Self {
            role: all.get("role")?.as_str()?.to_owned(),
            timestamp_ns: all.get("timestamp_ns")?.as_f64()?,
            ..Self::default()
        };
        for entity in all.get("entities")?.as_array()? {
            let number = |metric: &Value| {
                Some((metric.get("name")?.as_str()?.to_owned(), metric.get("value")?.as_f64()?))
            };
            let numbers: Numbers = entity.get("metrics")?.as_array()?.iter().filter_map(number).collect();
            match entity.get("type")?.as_str()? {
                "server" => told.server = numbers,
                "disk" => told.disks.push(numbers),
                "replica" => {
                    let part =
                        |name: &str| entity.pointer(&format!("/attributes/{name}"))?.as_str()?.parse().ok();
                    told.replicas.insert(Gpid::new(part("table_id")?, part("partition_id")?), numbers);
                }
                _ => {}
            }
        }
        Some(told)
    }

    fn number(&self, name: &str) -> f64 {
        self.server.get(name).copied().unwrap_or(0.0)
    }
}

/// Asks each server for `path`; who does not answer is there with the reason.
async fn ask(
    session: &Session,
    servers: &[Node],
    query: &str,
) -> BTreeMap<Node, std::result::Result<Told, String>> {
    let path = format!("/metrics?{query}");
    let within = session.cluster.options().timeout;
    stream::iter(servers)
        .map(|node| {
            let path = &path;
            async move {
                let text = timeout(within, http_get(node, path))
                    .await
                    .unwrap_or_else(|_| Err("no answer in time".to_owned()));
                let told =
                    text.and_then(|text| Told::parse(&text).ok_or_else(|| "told no metrics".to_owned()));
                (node.clone(), told)
            }
        })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await
}

/// Says which servers did not answer, and splits off those that did.
fn answered(
    told: BTreeMap<Node, std::result::Result<Told, String>>,
    out: &mut Output<'_>,
) -> Result<BTreeMap<Node, Told>> {
    let mut all = BTreeMap::new();
    for (node, told) in told {
        match told {
            Ok(told) => drop(all.insert(node, told)),
            Err(why) => out.fact(
                &format!("no_answer_from_{node}"),
                why.as_str(),
                format_args!("{node} does not answer, its numbers are missing: {why}"),
            )?,
        }
    }
    Ok(all)
}

/// Who holds partitions.
fn members(partitions: &[PartitionConfig]) -> Vec<Node> {
    let all: BTreeSet<&Node> = partitions.iter().flat_map(PartitionConfig::members).collect();
    all.into_iter().cloned().collect()
}

/// What the primary of a partition says, at two times; None when it did not answer or is another one.
fn of_primary<'a>(told: &'a BTreeMap<Node, Told>, partition: &PartitionConfig) -> Option<(&'a Numbers, f64)> {
    let told = told.get(partition.primary.as_ref()?)?;
    Some((told.replicas.get(&partition.gpid)?, told.timestamp_ns))
}

/// One row of `app_stat`: rates between two looks, then sizes; `counted` partitions are in it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Load {
    counted: usize,
    rates: [f64; RATES.len()],
    sizes: [f64; SIZES.len()],
}

impl Load {
    fn of(partition: &PartitionConfig, before: &BTreeMap<Node, Told>, after: &BTreeMap<Node, Told>) -> Self {
        let mut load = Self::default();
        let (Some((old, began)), Some((new, ended))) =
            (of_primary(before, partition), of_primary(after, partition))
        else {
            return load;
        };
        load.counted = 1;
        let seconds = ((ended - began) / 1e9).max(1e-3);
        for (rate, (_, name)) in load.rates.iter_mut().zip(RATES) {
            let count = |numbers: &Numbers| numbers.get(name).copied().unwrap_or(0.0);
            // A replica that was opened anew counts from nothing.
            *rate = (count(new) - count(old)).max(0.0) / seconds;
        }
        for (size, (_, name, unit)) in load.sizes.iter_mut().zip(SIZES) {
            *size = new.get(name).copied().unwrap_or(0.0) / unit;
        }
        load
    }

    fn add(&mut self, other: &Self) {
        self.counted += other.counted;
        self.rates.iter_mut().zip(other.rates).for_each(|(sum, rate)| *sum += rate);
        self.sizes.iter_mut().zip(other.sizes).for_each(|(sum, size)| *sum += size);
    }

    fn cells(&self) -> impl Iterator<Item = String> {
        let sizes =
            self.sizes.iter().zip(SIZES).map(|(size, (_, _, unit))| {
                if unit > 1.0 { format!("{size:.1}") } else { format!("{size:.0}") }
            });
        self.rates.iter().map(|rate| format!("{rate:.0}")).chain(sizes)
    }
}

pub async fn app_stat(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    let only = args.flag('a').map(|name| crate::args::text(name.to_vec(), "table")).transpose()?;
    let interval = args.flag_as::<u64>('i')?.unwrap_or(INTERVAL_MS).max(INTERVAL_MS_LEAST);
    args.end()?;
    let mut tables: Vec<AppInfo> = session.cluster.tables(Some(AppStatus::Available)).await?;
    tables.retain(|table| only.as_ref().is_none_or(|only| *only == table.name));
    if let (Some(only), true) = (&only, tables.is_empty()) {
        return Err(pegasus_client::Error::NoTable(only.clone()).into());
    }
    tables.sort_by_key(|table| table.app_id);
    let mut partitions = Vec::new();
    for table in &tables {
        // One that is being dropped just now has no partitions any more.
        partitions.push(session.cluster.partitions(&table.name).await.unwrap_or_default());
    }
    let everything: Vec<_> = partitions.iter().flatten().cloned().collect();
    let servers = members(&everything);
    let query = "types=replica";
    let before = answered(ask(session, &servers, query).await, out)?;
    sleep(Duration::from_millis(interval)).await;
    let asked: Vec<Node> = before.keys().cloned().collect();
    let after = answered(ask(session, &asked, query).await, out)?;

    let mut columns = if only.is_some() { vec!["pidx"] } else { vec!["app_name", "app_id", "pcount"] };
    columns.extend(RATES.iter().map(|(column, _)| *column).chain(SIZES.iter().map(|(column, ..)| *column)));
    let (mut rows, mut total, mut missing) = (Vec::new(), Load::default(), 0);
    for (table, partitions) in tables.iter().zip(&partitions) {
        let mut sum = Load::default();
        for partition in partitions {
            let load = Load::of(partition, &before, &after);
            if only.is_some() {
                rows.push([partition.gpid.index.to_string()].into_iter().chain(load.cells()).collect());
            }
            sum.add(&load);
        }
        missing += partitions.len() - sum.counted;
        if only.is_none() {
            let id = [table.name.clone(), table.app_id.to_string(), partitions.len().to_string()];
            rows.push(id.into_iter().chain(sum.cells()).collect());
        }
        total.add(&sum);
    }
    let mut last = vec!["(total)".to_owned()];
    if only.is_none() {
        last.extend(["-".to_owned(), everything.len().to_string()]);
    }
    last.extend(total.cells());
    rows.push(last);
    out.table("app_stat", &columns, &rows)?;
    if missing > 0 {
        out.fact(
            "partitions_not_counted",
            missing,
            format_args!("{missing} partitions are not counted: no primary that answers"),
        )?;
    }
    Ok(if missing == 0 { Answer::Yes } else { Answer::No })
}

pub async fn app_disk(session: &Session, mut args: Args, out: &mut Output<'_>) -> Result {
    let name = args.text("table")?;
    args.end()?;
    let partitions = session.cluster.partitions(&name).await?;
    let told = answered(ask(session, &members(&partitions), "types=replica").await, out)?;
    let megabytes = |node: &Node, gpid: Gpid| {
        let numbers = told.get(node).and_then(|told| told.replicas.get(&gpid))?;
        Some(numbers.get("rdb_total_sst_size_bytes").copied().unwrap_or(0.0) / MIB)
    };
    let show = |size: Option<f64>| size.map_or_else(|| "-".to_owned(), |size| format!("{size:.1}"));
    let (mut of_primaries, mut of_all, mut missing) = (0.0, 0.0, 0);
    let mut rows = Vec::new();
    for partition in &partitions {
        let primary = partition.primary.as_ref().and_then(|node| megabytes(node, partition.gpid));
        let others: Vec<_> =
            partition.secondaries.iter().map(|node| (node, megabytes(node, partition.gpid))).collect();
        missing += usize::from(primary.is_none());
        of_primaries += primary.unwrap_or(0.0);
        of_all += primary.unwrap_or(0.0) + others.iter().filter_map(|(_, size)| *size).sum::<f64>();
        let others: Vec<_> =
            others.into_iter().map(|(node, size)| format!("{node}({})", show(size))).collect();
        let keys = partition
            .primary
            .as_ref()
            .and_then(|node| told.get(node)?.replicas.get(&partition.gpid)?.get("rdb_estimated_keys"));
        let named = partition
            .primary
            .as_ref()
            .map_or_else(|| "-".to_owned(), |node| format!("{node}({})", show(primary)));
        rows.push(vec![
            partition.gpid.index.to_string(),
            named,
            format!("[{}]", others.join(",")),
            keys.map_or_else(|| "-".to_owned(), |keys| format!("{keys:.0}")),
        ]);
    }
    out.table("details", &["pidx", "primary(MB)", "secondary(MB)", "keys"], &rows)?;
    out.fields(
        "summary",
        &[
            ("app_name", name),
            ("disk_used_for_primary_replicas(MB)", format!("{of_primaries:.1}")),
            ("disk_used_for_all_replicas(MB)", format!("{of_all:.1}")),
            ("partitions_not_counted", missing.to_string()),
        ],
    )?;
    Ok(if missing == 0 { Answer::Yes } else { Answer::No })
}

/// Columns of `nodes -u`.
pub const USAGE_COLUMNS: [&str; 5] =
    ["memused_res_mb", "block_cache_mb", "wbm_total_mb", "disk_avl_total_ratio", "disk_avl_min_ratio"];

/// The cells of `nodes -u` by node; a node that does not answer has none.
pub async fn usage(
    session: &Session,
    nodes: &[Node],
    out: &mut Output<'_>,
) -> Result<BTreeMap<Node, Vec<String>>> {
    let told = answered(ask(session, nodes, "types=server,disk").await, out)?;
    Ok(told.into_iter().map(|(node, told)| (node, usage_cells(&told))).collect())
}

fn usage_cells(told: &Told) -> Vec<String> {
    let megabytes = |name| format!("{:.0}", told.number(name) / MIB);
    let of = |disk: &Numbers, name: &str| disk.get(name).copied().unwrap_or(0.0);
    let percent = |free: f64, all: f64| if all > 0.0 { 100.0 * free / all } else { 0.0 };
    let sum = |name: &str| told.disks.iter().map(|disk| of(disk, name)).sum::<f64>();
    let ratios = told
        .disks
        .iter()
        .map(|disk| percent(of(disk, "disk_capacity_avail_mb"), of(disk, "disk_capacity_total_mb")));
    let least = ratios.fold(100.0, f64::min);
    vec![
        format!("{:.0}", told.number("resident_mem_usage_mb")),
        megabytes("rdb_block_cache_mem_usage_bytes"),
        megabytes("rdb_wbm_total_mem_usage_bytes"),
        format!("{:.0}", percent(sum("disk_capacity_avail_mb"), sum("disk_capacity_total_mb"))),
        format!("{least:.0}"),
    ]
}

/// Columns of `server_stat` and the metrics that they show.
const SERVER: [(&str, &str); 10] = [
    ("res_mem_mb", "resident_mem_usage_mb"),
    ("virt_mem_mb", "virtual_mem_usage_mb"),
    ("threads", "process_threads"),
    ("total_replicas", "total_replicas"),
    ("opening_replicas", "opening_replicas"),
    ("primary_replicas", "primary_replicas"),
    ("secondary_replicas", "secondary_replicas"),
    ("learning_replicas", "learning_replicas"),
    ("inactive_replicas", "inactive_replicas"),
    ("error_replicas", "error_replicas"),
];

pub async fn server_stat(session: &Session, args: Args, out: &mut Output<'_>) -> Result {
    let servers = super::cluster::servers(session, &args).await?;
    args.end()?;
    let count = servers.len();
    let told = answered(ask(session, &servers, "types=server").await, out)?;
    let columns: Vec<&str> =
        ["server", "role"].into_iter().chain(SERVER.iter().map(|(column, _)| *column)).collect();
    let rows: Vec<_> = told
        .iter()
        .map(|(node, told)| {
            let cell = |(_, name): (&str, &str)| {
                told.server.get(name).map_or_else(|| "-".to_owned(), |n| format!("{n:.0}"))
            };
            [node.to_string(), told.role.clone()].into_iter().chain(SERVER.map(cell)).collect()
        })
        .collect();
    out.table("server_stat", &columns, &rows)?;
    Ok(if told.len() == count { Answer::Yes } else { Answer::No })
}

/// A mistake in `-t`.
pub fn unknown_target(name: &str) -> Usage {
    Usage(format!("-t: {name:?} is none of all, meta-server, replica-server"))
}

#[cfg(test)]
mod tests {
    use pegasus_types::Ballot;

    use super::*;

    fn told(seconds: u64, puts: u64, gpid: Gpid) -> Told {
        let text = format!(
            r#"{{"role":"replica","timestamp_ns":{},"entities":[
            {{"type":"server","id":"server","attributes":{{}},"metrics":[{{"name":"resident_mem_usage_mb","value":12.5}}]}},
            {{"type":"disk","id":"disk@a","attributes":{{"tag":"a"}},"metrics":[
              {{"name":"disk_capacity_total_mb","value":1000}},{{"name":"disk_capacity_avail_mb","value":250}}]}},
            {{"type":"replica","id":"x","attributes":{{"table_id":"{}","partition_id":"{}"}},"metrics":[
              {{"name":"put_requests","value":{puts}}},{{"name":"rdb_total_sst_size_bytes","value":3145728}}]}}]}}"#,
            seconds * 1_000_000_000,
            gpid.app_id,
            gpid.index
        );
        Told::parse(&text).unwrap()
    }

    fn partition(primary: &str) -> PartitionConfig {
        let mut partition = PartitionConfig::unassigned(Gpid::new(2, 1), 3);
        partition.primary = Some(Node::new(primary));
        partition.ballot = Ballot(3);
        partition
    }

    #[test]
    fn rates_are_of_the_primary_between_two_looks() {
        let gpid = Gpid::new(2, 1);
        let at = |seconds, puts| BTreeMap::from([(Node::new("a:1"), told(seconds, puts, gpid))]);
        let put = |load: &Load| load.rates[3];
        let load = Load::of(&partition("a:1"), &at(10, 100), &at(12, 150));
        assert_eq!((load.counted, put(&load), load.sizes), (1, 25.0, [3.0, 0.0, 0.0]));
        let mut sum = load.clone();
        sum.add(&load);
        assert_eq!((sum.counted, put(&sum), sum.sizes[0]), (2, 50.0, 6.0));
        assert_eq!(put(&Load::of(&partition("a:1"), &at(10, 100), &at(12, 20))), 0.0, "opened anew");
        assert_eq!(Load::of(&partition("b:1"), &at(10, 100), &at(12, 150)), Load::default(), "silent");
    }

    #[test]
    fn usage_of_a_node() {
        assert_eq!(usage_cells(&told(1, 0, Gpid::new(1, 0))), ["12", "0", "0", "25", "25"]);
        assert_eq!(usage_cells(&Told::default()), ["0", "0", "0", "0", "100"]);
    }

    #[test]
    fn what_is_no_answer() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"role":"meta","timestamp_ns":"x","entities":[]}"#,
            r#"{"role":"meta","timestamp_ns":1,"entities":[{"type":"replica","metrics":[],"attributes":{}}]}"#,
        ] {
            assert_eq!(Told::parse(text), None, "{text}");
        }
        assert!(Told::parse(r#"{"role":"meta","timestamp_ns":1,"entities":[]}"#).is_some());
    }
}
