//! Metrics as Apache Pegasus tells them: entities in JSON, chosen by the parameters of `GET /metrics` (metrics.md 1, 2).
//!
//! ```text
//! {"cluster":"c","role":"replica","host":"h","port":34801,"timestamp_ns":n,
//!  "entities":[{"type":"replica","id":"replica@1.0","attributes":{"table_id":"1","partition_id":"0"},
//!               "metrics":[{"name":"put_requests","value":7}]}]}
//! ```
//!
//! Whoever takes text, as Prometheus does, gets Prometheus text of the same path.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::Registry;
use prometheus::proto::{MetricFamily, MetricType};
use serde_json::{Map, Value, json};

use crate::percentiles::{Percentiles, QUANTILES};

/// One metric of an entity. Rates are for the reader: two answers and the difference of their `timestamp_ns`.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub name: Cow<'static, str>,
    unit: &'static str,
    help: Cow<'static, str>,
    reading: Reading,
}

#[derive(Clone, Debug, PartialEq)]
enum Reading {
    Gauge(Value),
    Counter(Value),
    Percentile(Percentiles),
}

impl Reading {
    const fn type_name(&self) -> &'static str {
        match self {
            Self::Gauge(_) => "Gauge",
            Self::Counter(_) => "Counter",
            Self::Percentile(_) => "Percentile",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entity {
    attributes: BTreeMap<String, String>,
    metrics: Vec<Metric>,
}

impl Entity {
    pub fn gauge(
        &mut self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        value: impl Into<Value>,
    ) -> &mut Self {
        self.add(name.into(), unit, help.into(), Reading::Gauge(value.into()))
    }

    /// A number that only grows, until the process ends.
    pub fn counter(
        &mut self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        value: u64,
    ) -> &mut Self {
        self.add(name.into(), unit, help.into(), Reading::Counter(value.into()))
    }

    pub fn percentile(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        unit: &'static str,
        help: &'static str,
        values: Percentiles,
    ) -> &mut Self {
        self.add(name.into(), unit, help.into(), Reading::Percentile(values))
    }

    fn add(
        &mut self,
        name: Cow<'static, str>,
        unit: &'static str,
        help: Cow<'static, str>,
        reading: Reading,
    ) -> &mut Self {
        self.metrics.push(Metric { name, unit, help, reading });
        self
    }
}

/// Entities by type and id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entities(BTreeMap<(&'static str, String), Entity>);

impl Entities {
    pub fn server(&mut self) -> &mut Entity {
        self.of("server", "server".to_owned(), [])
    }

    pub fn table(&mut self, table_id: &str) -> &mut Entity {
        self.of("table", format!("table@{table_id}"), [("table_id", table_id)])
    }

    pub fn replica(&mut self, table_id: i32, partition: i32) -> &mut Entity {
        let (id, index) = (table_id.to_string(), partition.to_string());
        let attributes = [("table_id", id.as_str()), ("partition_id", &index)];
        self.of("replica", format!("replica@{id}.{index}"), attributes)
    }

    pub fn disk(&mut self, tag: &str, data_dir: &str) -> &mut Entity {
        self.of("disk", format!("disk@{tag}"), [("tag", tag), ("data_dir", data_dir)])
    }

    /// Of all requests of one kind, whatever their table; `task` is its name on the wire.
    pub fn profiler(&mut self, task: &str) -> &mut Entity {
        self.of("profiler", format!("task@{task}"), [("task_name", task)])
    }

    fn of<'a>(
        &mut self,
        kind: &'static str,
        id: String,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> &mut Entity {
        let entity = self.0.entry((kind, id)).or_default();
        entity
            .attributes
            .extend(attributes.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
        entity
    }

    /// What is in a registry: series with a label `table_id` belong to tables, those without labels of their own to the
    /// server. All others, and histograms, are for Prometheus alone.
    pub fn add_registry(&mut self, registry: &Registry) {
        for family in &registry.gather() {
            self.add_family(family);
        }
    }

    fn add_family(&mut self, family: &MetricFamily) {
        for series in family.get_metric() {
            let (reading, number): (fn(Value) -> Reading, f64) = match family.get_field_type() {
                MetricType::GAUGE => (Reading::Gauge, series.get_gauge().get_value()),
                MetricType::COUNTER => (Reading::Counter, series.get_counter().get_value()),
                _ => continue,
            };
            // Labels of the whole process are in the head of the answer; a table's name may change, its id does not.
            let common = ["cluster", "role", "instance", "table"];
            let mut own = series.get_label().iter().filter(|label| !common.contains(&label.name()));
            let entity = match (own.next(), own.next()) {
                (None, _) => self.server(),
                (Some(label), None) if label.name() == "table_id" => self.table(label.value()),
                _ => continue,
            };
            // As an integer where it is one: that is what readers of the reference expect.
            let value = match number {
                n if n.fract() == 0.0 && n.abs() < 9e15 => Value::from(n as i64),
                n => Value::from(n),
            };
            let (name, help) = (family.name().to_owned(), family.help().to_owned());
            entity.add(name.into(), "", help.into(), reading(value));
        }
    }
}

/// Of whom the answer tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub cluster: String,
    pub role: &'static str,
    /// `host:port`.
    pub node: String,
}

impl Origin {
    /// As the labels of all series in a registry made by [`crate::registry::new`] have it.
    pub fn of(role: &'static str, registry: &Registry) -> Self {
        let families = registry.gather();
        let series = families.first().and_then(|family| family.get_metric().first());
        let label = |name: &str| {
            let labels = series.map(|series| series.get_label()).unwrap_or_default();
            labels.iter().find(|label| label.name() == name).map_or("", |label| label.value()).to_owned()
        };
        Self { cluster: label("cluster"), role, node: label("instance") }
    }
}

/// What was asked for. Empty lists let everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    types: Vec<String>,
    ids: Vec<String>,
    attributes: Vec<(String, String)>,
    metrics: Vec<String>,
    fields: Fields,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Fields {
    #[default]
    Brief,
    All,
    These(Vec<String>),
}

impl Fields {
    fn shows(&self, name: &str) -> bool {
        match self {
            Self::Brief => !["type", "unit", "desc"].contains(&name),
            Self::All => true,
            Self::These(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

impl Query {
    /// From the parameters of the path; the error is for the asker.
    pub fn parse<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut query = Self::default();
        let (mut detail, mut with_fields) = (None, None);
        let mut seen = Vec::new();
        for (key, value) in parameters {
            if seen.contains(&key) {
                return Err(format!("{key} is given twice"));
            }
            seen.push(key);
            let list =
                || value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            match key {
                "types" => query.types = list(),
                "ids" => query.ids = list(),
                "metrics" => query.metrics = list(),
                "attributes" => {
                    let parts = list();
                    if !parts.len().is_multiple_of(2) {
                        return Err(format!("attributes={value}: expected pairs, key,value,key,value"));
                    }
                    query.attributes = parts.chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect();
                }
                "with_metric_fields" => with_fields = Some(list()),
                "detail" => match value {
                    "true" => detail = Some(Fields::All),
                    "false" => detail = Some(Fields::Brief),
                    _ => return Err(format!("detail={value}: expected true or false")),
                },
                _ => return Err(format!("unknown field {key}={value}")),
            }
        }
        query.fields = match with_fields {
            Some(names) if names.is_empty() => Fields::All,
            Some(names) => Fields::These(names),
            None => detail.unwrap_or_default(),
        };
        Ok(query)
    }

    /// Whether entities of this type may be part of the answer: others need not be made.
    pub fn wants(&self, kind: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|wanted| wanted == kind)
    }

    /// The answer.
    pub fn answer(&self, origin: &Origin, entities: &Entities) -> Value {
        let (host, port) = origin.node.rsplit_once(':').unwrap_or((&origin.node, "0"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let chosen: Vec<Value> =
            entities.0.iter().filter_map(|((kind, id), entity)| self.entity(kind, id, entity)).collect();
        json!({
            "cluster": if origin.cluster.is_empty() { "unknown" } else { &origin.cluster },
            "role": origin.role,
            "host": host,
            "port": port.parse::<u16>().unwrap_or(0),
            "timestamp_ns": u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            "entities": chosen,
        })
    }

    fn entity(&self, kind: &str, id: &str, entity: &Entity) -> Option<Value> {
        let is_in = |list: &[String], what: &str| list.is_empty() || list.iter().any(|wanted| wanted == what);
        let attributes = &entity.attributes;
        let matches = self.attributes.is_empty()
            || self.attributes.iter().any(|(key, value)| attributes.get(key) == Some(value));
        if !self.wants(kind) || !is_in(&self.ids, id) || !matches {
            return None;
        }
        let metrics: Vec<Value> = entity
            .metrics
            .iter()
            .filter(|metric| is_in(&self.metrics, &metric.name))
            .map(|metric| self.metric(metric))
            .collect();
        let told = json!({"type": kind, "id": id, "attributes": attributes, "metrics": metrics});
        (!metrics.is_empty()).then_some(told)
    }

    fn metric(&self, metric: &Metric) -> Value {
        let mut fields = vec![
            ("type", Value::from(metric.reading.type_name())),
            ("name", (*metric.name).into()),
            ("unit", metric.unit.into()),
            ("desc", (*metric.help).into()),
        ];
        match &metric.reading {
            Reading::Gauge(value) | Reading::Counter(value) => fields.push(("value", value.clone())),
            Reading::Percentile(values) => {
                fields.extend(
                    QUANTILES.into_iter().zip(values).map(|((name, _), &value)| (name, value.into())),
                );
            }
        }
        let shown = fields.into_iter().filter(|(name, _)| self.fields.shows(name));
        Value::Object(shown.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entities() -> Entities {
        let mut all = Entities::default();
        all.server().gauge("total_replicas", "Replicas", "Replicas.", 3);
        all.replica(1, 0).counter("put_requests", "Requests", "Puts.", 7).gauge("size", "MegaBytes", "", 1.5);
        all.replica(1, 1).counter("put_requests", "Requests", "Puts.", 8);
        all.replica(2, 0).counter("get_requests", "Requests", "Gets.", 9);
        all.disk("ssd1", "/d").gauge("disk_capacity_total_mb", "MegaBytes", "", 10);
        all
    }

    fn ids(query: &[(&str, &str)]) -> Vec<String> {
        let answer = Query::parse(query.iter().copied()).unwrap().answer(&Origin::default(), &entities());
        let all = answer["entities"].as_array().unwrap();
        all.iter().map(|entity| entity["id"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn filters() {
        for (query, want) in [
            (&[][..], &["disk@ssd1", "replica@1.0", "replica@1.1", "replica@2.0", "server"][..]),
            (&[("types", "server,disk")], &["disk@ssd1", "server"]),
            (&[("ids", "replica@1.1")], &["replica@1.1"]),
            (&[("attributes", "table_id,2,partition_id,1")], &["replica@1.1", "replica@2.0"]),
            (&[("metrics", "put_requests,none")], &["replica@1.0", "replica@1.1"]),
            (&[("types", "replica"), ("metrics", "total_replicas")], &[]),
            (&[("types", "table")], &[]),
        ] {
            assert_eq!(ids(query), want, "{query:?}");
        }
    }

    #[test]
    fn fields() {
        for (query, want) in [
            (&[][..], r#"{"name":"put_requests","value":7}"#),
            (
                &[("detail", "true")],
                r#"{"desc":"Puts.","name":"put_requests","type":"Counter","unit":"Requests","value":7}"#,
            ),
            (&[("detail", "true"), ("with_metric_fields", "unit")], r#"{"unit":"Requests"}"#),
            (&[("with_metric_fields", "value,nothing")], r#"{"value":7}"#),
        ] {
            let answer = Query::parse(query.iter().copied()).unwrap().answer(&Origin::default(), &entities());
            let metric = &answer["entities"][1]["metrics"][0];
            assert_eq!(metric, &serde_json::from_str::<Value>(want).unwrap(), "{query:?}");
        }
        let all = Query::parse([("with_metric_fields", "")]).unwrap();
        assert_eq!(all.fields, Fields::All);
    }

    #[test]
    fn percentiles_stand_in_the_place_of_a_value() {
        let mut all = Entities::default();
        let times = [1, 2, 3, 4, 5];
        all.profiler("RPC_X").percentile("profiler_server_rpc_latency_ns", "NanoSeconds", "Times.", times);
        for (query, want) in [
            (
                &[][..],
                json!({"name": "profiler_server_rpc_latency_ns", "p50": 1, "p90": 2, "p95": 3, "p99": 4, "p999": 5}),
            ),
            (
                &[("with_metric_fields", "type,unit,value,p99")],
                json!({"type": "Percentile", "unit": "NanoSeconds", "p99": 4}),
            ),
        ] {
            let answer = Query::parse(query.iter().copied()).unwrap().answer(&Origin::default(), &all);
            let entity = &answer["entities"][0];
            assert_eq!(
                (&entity["id"], &entity["attributes"]),
                (&json!("task@RPC_X"), &json!({"task_name": "RPC_X"}))
            );
            assert_eq!(entity["metrics"][0], want, "{query:?}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (query, want) in [
            (&[("detail", "yes")][..], "detail=yes: expected true or false"),
            (&[("attributes", "a,b,c")], "attributes=a,b,c: expected pairs, key,value,key,value"),
            (&[("x", "y")], "unknown field x=y"),
            (&[("ids", "a"), ("ids", "b")], "ids is given twice"),
        ] {
            assert_eq!(Query::parse(query.iter().copied()), Err(want.to_owned()));
        }
    }

    #[test]
    fn registries_become_servers_and_tables() {
        use prometheus::{Gauge, IntGaugeVec, Opts};
        let registry = crate::registry::new("", "meta", "h:34601").unwrap();
        let tables = IntGaugeVec::new(Opts::new("dead_partitions", "Dead."), &["table", "table_id"]).unwrap();
        let ratio = Gauge::new("ratio", "Share.").unwrap();
        registry.register(Box::new(tables.clone())).unwrap();
        registry.register(Box::new(ratio.clone())).unwrap();
        tables.with_label_values(&["t", "4"]).set(2);
        ratio.set(0.5);
        let mut all = Entities::default();
        all.add_registry(&registry);
        let origin = Origin::of("meta", &registry);
        let query = Query::parse([("metrics", "dead_partitions,ratio")]).unwrap();
        let answer = query.answer(&origin, &all);
        assert_eq!(
            (&answer["cluster"], &answer["host"], &answer["port"]),
            (&json!("unknown"), &json!("h"), &json!(34601))
        );
        assert!(answer["timestamp_ns"].as_u64().unwrap() > 1_600_000_000_000_000_000);
        let want = json!([
            {"type": "server", "id": "server", "attributes": {}, "metrics": [{"name": "ratio", "value": 0.5}]},
            {"type": "table", "id": "table@4", "attributes": {"table_id": "4"},
             "metrics": [{"name": "dead_partitions", "value": 2}]},
        ]);
        assert_eq!(answer["entities"], want);
        let server = Query::parse([("ids", "server")]).unwrap().answer(&origin, &all);
        let names = server["entities"][0]["metrics"].to_string();
        assert!(names.contains("resident_mem_usage_mb") && names.contains("process_threads"), "{names}");
    }
}
