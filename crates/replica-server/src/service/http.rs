//! HTTP on the node's port. Handlers run on the same thread but must be `Send`, so they ask the loop through a
//! channel.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pegasus_telemetry::Health;
use pegasus_telemetry::entities::{self, Origin};
use pegasus_telemetry::http::{self, Base, json_text, router};
use pegasus_telemetry::prometheus::Registry;
use pegasus_telemetry::text::Text;
use pegasus_types::AppId;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::entities::{Times, of_node};
use super::{peer_api, remote_command};
use crate::compaction;
use crate::node::Shell;

/// Questions that may wait for the loop.
const MAX_QUESTIONS: usize = 64;

/// What a handler wants to know.
#[derive(Debug)]
enum Question {
    Metrics(oneshot::Sender<String>),
    Entities(entities::Query, oneshot::Sender<entities::Entities>),
    Replicas(oneshot::Sender<serde_json::Value>),
    Compactions(AppId, oneshot::Sender<serde_json::Value>),
    /// Which partitions of a table are here.
    Partitions(AppId, oneshot::Sender<Vec<i32>>),
}

type Asker = mpsc::Sender<Question>;

/// The router of this role. Questions are answered by a task until shutdown.
pub fn routes(shell: &Rc<Shell>, registry: Registry, health: Health, shown: &serde_json::Value) -> Router {
    let (asker, mut questions) = mpsc::channel(MAX_QUESTIONS);
    let answering = shell.clone();
    shell.shutdown.spawn_local_until(async move {
        let mut times = Times::new(answering.started);
        while let Some(question) = questions.recv().await {
            // Who has gone needs no answer.
            match question {
                Question::Metrics(answer) => drop(answer.send(metrics_text(&answering))),
                Question::Entities(query, answer) => {
                    drop(answer.send(of_node(&answering, &query, &mut times)));
                }
                Question::Replicas(answer) => drop(answer.send(replicas_json(&answering))),
                Question::Compactions(app, answer) => {
                    drop(answer.send(compaction::status(&answering, app)));
                }
                Question::Partitions(app, answer) => drop(answer.send(partitions_of(&answering, app))),
            }
        }
    });
    let base = Base::new("replica", registry.clone(), health, shown)
        .describe("/replica/list", "replicas of this node")
        .describe("/replica/data_version", "app_id=<id>. Layout of the values in a table's replicas here")
        .describe("/replica/manual_compaction", "app_id=<id>. Manual compactions of a table's replicas here");
    let (base, changes) = base.changeable(remote_command::CHANGEABLE);
    shell.shutdown.spawn_local_until(remote_command::take_changes(shell.clone(), changes));
    let numbers = Arc::new((asker.clone(), registry));
    Router::new()
        .route("/metrics", get(move |request: Request| metrics(numbers.clone(), request)))
        .route("/replica/manual_compaction", {
            let asker = asker.clone();
            get(move |request: Request| compactions(asker.clone(), request))
        })
        .route("/replica/list", {
            let asker = asker.clone();
            get(move || replicas(asker.clone()))
        })
        .route("/replica/data_version", {
            let versions = move |query| data_version(asker.clone(), query);
            get(versions.clone()).post(versions)
        })
        .fallback_service(router(base))
}

async fn ask<T>(asker: &Asker, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    asker.send(question(answer)).await.ok()?;
    answered.await.ok()
}

async fn metrics(numbers: Arc<(Asker, Registry)>, request: Request) -> Response {
    let (asker, registry) = &*numbers;
    let query = match http::asked_entities(request.uri(), request.headers()) {
        None => {
            return match ask(asker, Question::Metrics).await {
                Some(own) => http::metrics_text(registry, &own),
                None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            };
        }
        Some(Err(refusal)) => return refusal,
        Some(Ok(query)) => query,
    };
    let Some(mut all) = ask(asker, |answer| Question::Entities(query.clone(), answer)).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    all.add_registry(registry);
    json_text(StatusCode::OK, &query.answer(&Origin::of("replica", registry), &all))
}

async fn replicas(asker: Asker) -> Response {
    match ask(&asker, Question::Replicas).await {
        Some(value) => json_text(StatusCode::OK, &value),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn compactions(asker: Asker, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let id = query.split('&').find_map(|field| field.strip_prefix("app_id="));
    let Some(app) = id.and_then(|id| id.parse::<AppId>().ok()) else {
        let why = json!({"error_message": "expected ?app_id=<number>"});
        return json_text(StatusCode::BAD_REQUEST, &why);
    };
    match ask(&asker, |answer| Question::Compactions(app, answer)).await {
        Some(value) => json_text(StatusCode::OK, &value),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// `{"<index>":{"data_version":"1"}}`, and errors in the reference's words (shell-and-http.md 4.4).
async fn data_version(asker: Asker, Query(query): Query<HashMap<String, String>>) -> Response {
    /// Of the two layouts of values that Apache Pegasus knows (`pegasus_storage::schema`).
    const LAYOUT: &str = "1";
    let wrong = |text: String| (StatusCode::BAD_REQUEST, text).into_response();
    let Some(text) = query.get("app_id").filter(|text| !text.is_empty()) else {
        return wrong("app_id should not be empty".to_owned());
    };
    let Some(app) = text.parse::<AppId>().ok().filter(|app| *app >= 0) else {
        return wrong(format!("invalid app_id={text}"));
    };
    match ask(&asker, |answer| Question::Partitions(app, answer)).await {
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(here) if here.is_empty() => {
            (StatusCode::NOT_FOUND, format!("app_id={app} not found")).into_response()
        }
        Some(here) => {
            let version = |index: i32| (index.to_string(), json!({"data_version": LAYOUT}));
            json_text(StatusCode::OK, &here.into_iter().map(version).collect())
        }
    }
}

fn partitions_of(shell: &Rc<Shell>, app: AppId) -> Vec<i32> {
    shell.with(|state| {
        state.replicas.keys().filter(|gpid| gpid.app_id == app).map(|gpid| gpid.index).collect()
    })
}

fn replicas_json(shell: &Rc<Shell>) -> serde_json::Value {
    let stats = peer_api::stats(shell);
    let learning: HashMap<_, _> =
        shell.with(|state| state.copying.iter().map(|(g, c)| (*g, c.progress.clone())).collect());
    let replicas = stats.replicas.iter().map(|replica| {
        let learning = learning.get(&replica.report.gpid).map(|progress| {
            json!({
                "from": progress.teacher.as_str(),
                "stage": progress.stage.name(),
                "rows": progress.rows,
                "of_rows": progress.of_rows.max(progress.rows),
                "bytes": progress.bytes,
                "seconds": progress.since.elapsed().as_secs(),
            })
        });
        json!({
            "learning": learning,
            "gpid": replica.report.gpid.to_string(),
            "status": format!("{:?}", replica.report.status),
            "ballot": replica.report.ballot.0,
            "committed": replica.report.committed.0,
            "prepared": replica.report.prepared.0,
            "durable": replica.report.durable.0,
            "disk": replica.report.disk_tag,
            "disk_bytes": replica.disk_bytes,
            "estimated_rows": replica.estimated_rows,
        })
    });
    json!({"node": stats.node.as_str(), "replicas": replicas.collect::<Vec<_>>()})
}

fn metrics_text(shell: &Rc<Shell>) -> String {
    let cluster = if shell.cluster_name.is_empty() { "unknown" } else { &shell.cluster_name };
    let mut out = Text::new(vec![
        ("cluster", cluster.to_owned()),
        ("role", "replica".to_owned()),
        ("instance", shell.me.to_string()),
    ]);
    shell.with(|state| {
        state.metrics.render(&mut out, |app| state.apps.get(&app).map(|app| app.name.clone()));
        out.family("pegasus_replica_replicas", "gauge", "Replicas by state.");
        let mut by_status = std::collections::BTreeMap::new();
        for report in state.core.reports() {
            *by_status.entry(format!("{:?}", report.status).to_lowercase()).or_insert(0_u64) += 1;
        }
        for (status, n) in by_status {
            out.sample("pegasus_replica_replicas", &[("status", &status)], n);
        }
        out.gauge("pegasus_replica_opening", "Replicas that are still being opened.", state.opening);
        out.gauge("pegasus_replica_parked_reads", "Reads that wait for the lease.", state.parked.len());
        out.gauge("pegasus_replica_learning", "Copies under way.", state.copying.len());
        let oldest = state.copying.values().map(|c| c.progress.since.elapsed().as_secs()).max().unwrap_or(0);
        out.gauge("pegasus_replica_learning_max_seconds", "The copy that takes longest so far.", oldest);
        let most = state.copying.values().map(|c| c.progress.bytes).max().unwrap_or(0);
        out.gauge("pegasus_replica_learning_max_bytes", "The copy that is largest so far.", most);
        out.gauge("pegasus_replica_teaching", "Learners that copy from here.", state.teaching.len());
        let queued: usize = state.replicas.values().map(|r| r.queue.len()).sum();
        out.gauge("pegasus_replica_queued_writes", "Writes that wait for their turn.", queued);
        let in_flight: usize = state.replicas.values().map(|r| r.inflight.len()).sum();
        out.gauge("pegasus_replica_mutations_in_flight", "Proposed, not yet applied.", in_flight);
        let (queued, running) = (state.compactions.queued(), state.compactions.running());
        for (name, help, value) in [
            ("queued", "Manual compactions that wait for their turn.", queued),
            ("running", "Manual compactions under way.", running),
        ] {
            out.gauge(&format!("pegasus_replica_rdb_manual_compact_{name}_tasks"), help, value);
        }
        disks(&mut out, shell, state);
        peers(&mut out, state);
    });
    engine(&mut out, shell);
    out.finish()
}

fn disks(out: &mut Text, shell: &Shell, state: &crate::node::NodeState) {
    type Value = fn(&crate::disk::Disk) -> u64;
    type LogValue = fn(&pegasus_mutation_log::LogStats) -> u64;
    // The last: of a disk that was broken at the start.
    let families: [(&str, &str, Value, u64); 4] = [
        ("disk_capacity_bytes", "Size of the disk.", |d| d.capacity_bytes, 0),
        ("disk_available_bytes", "Free space of the disk.", |d| d.available_bytes, 0),
        ("disk_broken", "1 = not used until restart.", |d| u64::from(d.broken.is_some()), 1),
        ("disk_full", "1 = too little space.", |d| u64::from(d.full), 0),
    ];
    for (name, help, value, left_out) in families {
        let name = format!("pegasus_replica_{name}");
        out.family(&name, "gauge", help);
        for disk in &state.disks {
            out.sample(&name, &[("disk", &disk.tag)], value(disk));
        }
        for (dir, _) in shell.left_out(&state.disks) {
            out.sample(&name, &[("disk", dir.tag())], left_out);
        }
    }
    let families: [(&str, &str, &str, LogValue); 7] = [
        ("log_bytes", "gauge", "Size of the mutation log.", |l| l.bytes),
        ("log_segments", "gauge", "Segments of the mutation log.", |l| l.segments as u64),
        ("log_queued_bytes", "gauge", "Bodies that wait for the log's writer.", |l| l.queued_bytes as u64),
        ("log_writes_total", "counter", "Writes to the mutation log.", |l| l.batches_written),
        ("log_written_bytes_total", "counter", "Bytes written to the mutation log.", |l| l.bytes_written),
        ("log_syncs_total", "counter", "fdatasyncs of the mutation log.", |l| l.syncs),
        ("log_failed_total", "counter", "Appends that failed.", |l| l.failed),
    ];
    let stats: Vec<_> = state.disks.iter().map(|disk| (&disk.tag, disk.log.stats())).collect();
    for (name, kind, help, value) in families {
        let name = format!("pegasus_replica_{name}");
        out.family(&name, kind, help);
        for (tag, log) in &stats {
            out.sample(&name, &[("disk", tag)], value(log));
        }
    }
}

fn peers(out: &mut Text, state: &crate::node::NodeState) {
    type Value = fn(&pegasus_rpc::peer::OutboxStats) -> u64;
    let families: [(&str, &str, &str, Value); 5] = [
        ("peer_calls_total", "counter", "Batches sent to a peer.", |s| s.calls),
        ("peer_messages_total", "counter", "Messages that a peer confirmed.", |s| s.delivered),
        ("peer_lost_messages_total", "counter", "Messages whose call failed.", |s| s.failed),
        ("peer_refused_messages_total", "counter", "Messages dropped because the queue was full.", |s| {
            s.refused
        }),
        ("peer_queued_bytes", "gauge", "Bytes that wait for a peer.", |s| s.queued_bytes as u64),
    ];
    let stats: std::collections::BTreeMap<_, _> =
        state.outboxes.iter().map(|(node, outbox)| (node.as_str(), outbox.stats())).collect();
    for (name, kind, help, value) in families {
        let name = format!("pegasus_replica_{name}");
        out.family(&name, kind, help);
        for (node, stats) in &stats {
            out.sample(&name, &[("peer", node)], value(stats));
        }
    }
}

fn engine(out: &mut Text, shell: &Shell) {
    let stats = shell.factory.stats();
    for (name, help, value) in [
        ("cache_used_bytes", "Block cache in use.", stats.cache_used_bytes),
        ("cache_capacity_bytes", "Block cache at most.", stats.cache_capacity_bytes),
        ("memtable_bytes", "All memtables.", stats.memtable_bytes),
        ("engine_queued_tasks", "Flushes and compactions that wait.", stats.queued_tasks as u64),
    ] {
        out.gauge(&format!("pegasus_replica_{name}"), help, value);
    }
    for (name, help, value) in [
        ("flushes", "Memtables flushed.", stats.flushes),
        ("flushed_bytes", "Bytes flushed.", stats.flushed_bytes),
        ("compactions", "Compactions done.", stats.compactions),
        ("engine_failures", "Background work that failed and is tried again.", stats.failures),
    ] {
        out.counter(&format!("pegasus_replica_{name}_total"), help, value);
    }
}
