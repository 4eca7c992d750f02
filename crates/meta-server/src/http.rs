//! `/meta/…` for operators and scripts (shell-and-http.md 4.3): JSON whose values are all text, made from the
//! same functions as the admin RPCs.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use pegasus_placement::view::Table;
use pegasus_telemetry::http::{Base, json_text};
use pegasus_telemetry::time::Calendar;
use pegasus_types::{AppStatus, Node};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::published::Published;
use crate::role::Standing;
use crate::service::admin;

/// Put into the request by [`leader_only`].
type Shown = Extension<Arc<Published>>;
type Arguments = Query<HashMap<String, String>>;

/// Lists the paths under `/`.
pub fn describe(base: Base) -> Base {
    base.describe("/meta/cluster", "the cluster and its meta-servers")
        .describe("/meta/nodes", "[detail]. Replica-servers")
        .describe("/meta/apps", "[detail]. Tables")
        .describe(
            "/meta/app",
            "name=<table> [detail]. One table; note: what is done or awaited for a partition",
        )
        .describe("/meta/app_envs", "name=<table>. Settings of one table")
}

pub fn router(standing: watch::Receiver<Standing>) -> Router {
    Router::new()
        .route("/meta/cluster", get(cluster))
        .route("/meta/nodes", get(nodes))
        .route("/meta/apps", get(apps))
        .route("/meta/app", get(app))
        .route("/meta/app_envs", get(app_envs))
        .layer(middleware::from_fn_with_state(standing, leader_only))
}

/// Who follows sends on to the leader.
async fn leader_only(
    State(standing): State<watch::Receiver<Standing>>,
    mut request: Request,
    next: Next,
) -> Response {
    let standing = standing.borrow().clone();
    match (standing.shown(), standing) {
        (Some(shown), _) => {
            request.extensions_mut().insert(shown);
            next.run(request).await
        }
        (None, Standing::Follows(Some(leader))) => {
            pegasus_telemetry::http::redirect(leader.as_str(), request.uri())
        }
        (None, standing) => (StatusCode::SERVICE_UNAVAILABLE, standing.refusal().to_string()).into_response(),
    }
}

fn ok(value: Value) -> Response {
    json_text(StatusCode::OK, &value)
}

fn table_of(fields: impl IntoIterator<Item = (&'static str, String)>) -> Value {
    Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), Value::String(value))).collect())
}

async fn cluster(Extension(published): Shown) -> Response {
    let info = admin::cluster_info(&published);
    ok(table_of(info.into_iter().filter(|(key, _)| *key != "cluster_name")))
}

async fn nodes(Extension(published): Shown, Query(query): Arguments) -> Response {
    let loads = published.loads();
    let mut details = Map::new();
    for (node, alive) in admin::list_nodes(&published, 0) {
        let mut fields = vec![
            ("address", node.to_string()),
            ("status", if alive { "ALIVE" } else { "UNALIVE" }.to_owned()),
        ];
        if query.contains_key("detail") {
            let load = loads.get(node);
            fields.push(("replica_count", load.copies.to_string()));
            fields.push(("primary_count", load.primaries.to_string()));
            fields.push(("secondary_count", (load.copies - load.primaries).to_string()));
        }
        details.insert(node.to_string(), table_of(fields));
    }
    let alive = admin::list_nodes(&published, 1).len();
    let summary = table_of([
        ("total_node_count", published.nodes.len().to_string()),
        ("alive_node_count", alive.to_string()),
        ("unalive_node_count", (published.nodes.len() - alive).to_string()),
    ]);
    ok(json!({"details": details, "summary": summary}))
}

async fn apps(Extension(published): Shown, Query(query): Arguments) -> Response {
    let tables = admin::list_apps(&published, AppStatus::Available as i32, None).unwrap_or_default();
    let by_id = |show: &dyn Fn(&Table) -> Value| -> Value {
        tables.iter().map(|table| (table.info.app_id.to_string(), show(table))).collect::<Map<_, _>>().into()
    };
    let mut answer = json!({
        "general_info": by_id(&general),
        "summary": {"total_app_count": tables.len().to_string()},
    });
    if query.contains_key("detail") {
        answer["healthy_info"] = by_id(&|table| healthy(&published, table));
    }
    ok(answer)
}

fn general(table: &Table) -> Value {
    let info = &table.info;
    let date = |second: i64| match u64::try_from(second) {
        Ok(second @ 1..) => {
            Calendar::of(std::time::UNIX_EPOCH + std::time::Duration::from_secs(second)).date_time()
        }
        _ => "-".to_owned(),
    };
    let status = pegasus_zk_coordination::content::status_name(info.status);
    table_of([
        ("app_id", info.app_id.to_string()),
        ("status", status.trim_start_matches("AS_").to_owned()),
        ("app_name", info.name.clone()),
        ("app_type", info.app_type.clone()),
        ("partition_count", info.partition_count.to_string()),
        ("replica_count", info.max_replica_count.to_string()),
        ("is_stateful", "true".to_owned()),
        ("create_time", date(info.create_second)),
        ("drop_time", date(info.drop_second)),
        ("drop_expire", date(info.expire_second)),
        ("envs_count", info.envs.len().to_string()),
    ])
}

fn healthy(published: &Published, table: &Table) -> Value {
    let count = published.health_count(table);
    table_of([
        ("app_id", table.info.app_id.to_string()),
        ("app_name", table.info.name.clone()),
        ("partition_count", table.partitions.len().to_string()),
        ("fully_healthy", count.healthy.to_string()),
        ("unhealthy", count.ill().to_string()),
        ("write_unhealthy", count.without_writes().to_string()),
        ("read_unhealthy", count.without_reads().to_string()),
    ])
}

/// The table that `name` says, or the answer that there is none.
fn named<'a>(published: &'a Published, query: &HashMap<String, String>) -> Result<&'a Table, Box<Response>> {
    let Some(name) = query.get("name") else {
        return Err((StatusCode::BAD_REQUEST, "name should be specified").into_response().into());
    };
    let table = published.view.table_by_name(name).map(|table| &**table);
    table.ok_or_else(|| (StatusCode::NOT_FOUND, format!("table not found: {name:?}")).into_response().into())
}

async fn app(Extension(published): Shown, Query(query): Arguments) -> Response {
    let table = match named(&published, &query) {
        Ok(table) => table,
        Err(answer) => return *answer,
    };
    let info = &table.info;
    let mut answer = json!({"general": table_of([
        ("app_name", info.name.clone()),
        ("app_id", info.app_id.to_string()),
        ("partition_count", info.partition_count.to_string()),
        ("max_replica_count", info.max_replica_count.to_string()),
    ])});
    if query.contains_key("detail") {
        let join =
            |nodes: &[Node]| format!("[{}]", nodes.iter().map(Node::as_str).collect::<Vec<_>>().join(","));
        let replicas: Map<String, Value> = table
            .partitions
            .iter()
            .map(|config| {
                let members = format!("{}/{}", config.member_count(), config.max_replica_count);
                let fields = table_of([
                    ("pidx", config.gpid.index.to_string()),
                    ("ballot", config.ballot.to_string()),
                    ("replica_count", members),
                    ("primary", config.primary.as_ref().map_or("-".to_owned(), Node::to_string)),
                    ("secondaries", join(&config.secondaries)),
                    ("note", published.notes.get(&config.gpid).cloned().unwrap_or_default()),
                ]);
                (config.gpid.index.to_string(), fields)
            })
            .collect();
        let loads = pegasus_placement::view::Loads::of(table.partitions.iter().map(|config| &**config));
        let nodes: Map<String, Value> = published
            .nodes
            .keys()
            .map(|node| {
                let load = loads.get(node);
                let fields = table_of([
                    ("node", node.to_string()),
                    ("primary", load.primaries.to_string()),
                    ("secondary", (load.copies - load.primaries).to_string()),
                    ("total", load.copies.to_string()),
                ]);
                (node.to_string(), fields)
            })
            .collect();
        answer["replicas"] = replicas.into();
        answer["nodes"] = nodes.into();
    }
    let count = published.health_count(table);
    answer["healthy"] = table_of([
        ("fully_healthy_partition_count", count.healthy.to_string()),
        ("unhealthy_partition_count", count.ill().to_string()),
        ("write_unhealthy_partition_count", count.without_writes().to_string()),
        ("read_unhealthy_partition_count", count.without_reads().to_string()),
    ]);
    ok(answer)
}

async fn app_envs(Extension(published): Shown, Query(query): Arguments) -> Response {
    match named(&published, &query) {
        Ok(table) => ok(json!(table.info.envs)),
        Err(answer) => *answer,
    }
}
