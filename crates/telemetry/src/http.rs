//! The HTTP paths that every role has (shell-and-http.md 4.2), and serving one connection of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::Registry;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::entities::{self, Entities, Origin};
use crate::time::Calendar;
use crate::{Health, logging, registry, version};

/// A connection must bring a whole request head within this time, also the next one on a kept connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest life of a connection: nothing that we serve takes longer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Request head and read buffer.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Request bodies are small JSON documents.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What the base paths show.
#[derive(Debug)]
pub struct Base {
    origin: Origin,
    registry: Registry,
    health: Health,
    settings: Mutex<Map<String, Value>>,
    changes: Option<(&'static [&'static str], mpsc::Sender<Change>)>,
    help: Vec<(&'static str, &'static str)>,
    started: SystemTime,
}

/// What `/updateConfig` asks of a role.
#[derive(Debug)]
pub struct Change {
    pub key: &'static str,
    pub value: String,
    /// An error begins with the name of its code.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Changes that may wait for the role.
const MAX_CHANGES: usize = 16;
/// Every role changes it by itself.
const LOG_LEVEL: &str = "logging_start_level";

impl Base {
    /// `settings`: an object by setting name, such as `pegasus_config::Effective`.
    pub fn new(role: &'static str, registry: Registry, health: Health, settings: &impl Serialize) -> Self {
        let origin = Origin::of(role, &registry);
        let settings = match serde_json::to_value(settings) {
            Ok(Value::Object(map)) => map,
            Ok(_) | Err(_) => Map::new(),
        };
        let base = Self {
            origin,
            registry,
            health,
            settings: Mutex::new(settings),
            changes: None,
            help: Vec::new(),
            started: SystemTime::now(),
        };
        base.edit(LOG_LEVEL, |setting| setting["tags"] = json!(MUTABLE));
        base
    }

    /// Settings of the role that it changes while it runs, when it is asked to through the receiver.
    #[must_use]
    pub fn changeable(mut self, keys: &'static [&'static str]) -> (Self, mpsc::Receiver<Change>) {
        let (sender, changes) = mpsc::channel(MAX_CHANGES);
        keys.iter().for_each(|key| self.edit(key, |setting| setting["tags"] = json!(MUTABLE)));
        self.changes = Some((keys, sender));
        (self, changes)
    }

    fn settings(&self) -> MutexGuard<'_, Map<String, Value>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edit(&self, key: &str, edit: impl FnOnce(&mut Value)) {
        if let Some(setting) = self.settings().get_mut(key).filter(|setting| setting.is_object()) {
            edit(setting);
        }
    }

    /// Changes a setting until the process ends.
    async fn change(&self, key: &str, value: &str) -> Result<(), String> {
        let mut value = value.to_owned();
        let ending = |_| "ERR_SERVICE_NOT_ACTIVE: the process ends".to_owned();
        let own = self
            .changes
            .as_ref()
            .and_then(|(keys, changes)| Some((*keys.iter().find(|known| **known == key)?, changes)));
        if key == LOG_LEVEL {
            let new = logging::Levels::named(&value).ok_or_else(|| {
                format!("ERR_INVALID_PARAMETERS: {value:?}: expected LOG_LEVEL_DEBUG, INFO, WARNING, ERROR or FATAL")
            })?;
            value = new.name();
            logging::set_levels(new).map_err(|error| format!("ERR_INVALID_STATE: {error:#}"))?;
        } else if let Some((key, changes)) = own {
            let (answer, answered) = oneshot::channel();
            let change = Change { key, value: value.clone(), answer };
            changes.send(change).await.map_err(|_| ending(()))?;
            answered.await.map_err(|_| ending(()))??;
        } else if self.settings().contains_key(key) {
            return Err(format!(
                "ERR_INVALID_PARAMETERS: {key} is read at the start only: change the configuration, and start again"
            ));
        } else {
            return Err(format!("ERR_OBJECT_NOT_FOUND: {key} is not a setting"));
        }
        self.edit(key, |setting| {
            setting["value"] = json!(value);
            setting["origin"] = json!("/updateConfig");
        });
        Ok(())
    }

    /// Lists a path of the role itself under `/`.
    #[must_use]
    pub fn describe(mut self, path: &'static str, help: &'static str) -> Self {
        self.help.push((path, help));
        self
    }
}

/// As Apache Pegasus marks what can be changed.
const MUTABLE: &str = "flag_tag::FT_MUTABLE";

/// The base paths. A role merges its own: `router(base).merge(own)`.
pub fn router(base: Base) -> Router {
    let state = Arc::new(base);
    Router::new()
        .route("/", get(index).post(index))
        .route("/version", get(show_version).post(show_version))
        .route("/recentStartTime", get(start_time).post(start_time))
        .route("/config", get(config).post(config))
        .route("/configs", get(configs).post(configs))
        .route("/updateConfig", get(update_config).post(update_config))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/logLevels", get(log_levels).put(set_log_levels).post(set_log_levels))
        .fallback(unknown)
        .layer(axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

const BASE_HELP: &[(&str, &str)] = &[
    ("/", "this list"),
    ("/version", "version and commit"),
    ("/recentStartTime", "start of this process, UTC"),
    ("/config", "name=<setting>. One setting with its value and where it comes from"),
    ("/configs", "all settings"),
    (
        "/updateConfig",
        "<setting>=<value>. Changes a setting whose tags say FT_MUTABLE until the process ends",
    ),
    (
        "/metrics",
        "Prometheus text for who accepts text/plain, and of a collector; else JSON \
         [types=t,..&ids=..&attributes=key,value,..&metrics=name,..&detail=true|false&with_metric_fields=name,value,..]",
    ),
    ("/livez", "200 while the process works"),
    ("/readyz", "200 when ready to serve, else 503 and why"),
    ("/logLevels", "what is logged; PUT info,pegasus_replica_server=debug changes it until the process ends"),
];

/// JSON in `text/plain`, as Pegasus answers.
pub fn json_text(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain")], value.to_string()).into_response()
}

async fn index(State(base): State<Arc<Base>>) -> Response {
    let help = BASE_HELP.iter().chain(&base.help).map(|(path, help)| ((*path).to_owned(), json!(help)));
    json_text(StatusCode::OK, &Value::Object(help.collect()))
}

async fn show_version(State(base): State<Arc<Base>>) -> Response {
    let value =
        json!({"Version": version::VERSION, "GitCommit": version::GIT_COMMIT, "Role": base.origin.role});
    json_text(StatusCode::OK, &value)
}

async fn start_time(State(base): State<Arc<Base>>) -> Response {
    json_text(StatusCode::OK, &json!({"RecentStartTime": Calendar::of(base.started).date_time()}))
}

async fn config(State(base): State<Arc<Base>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let Some(name) = query.get("name").filter(|_| query.len() == 1) else {
        return (StatusCode::BAD_REQUEST, "name should be specified, and nothing else").into_response();
    };
    let setting = base.settings().get(name).cloned();
    match setting {
        Some(setting) => json_text(StatusCode::OK, &setting),
        None => (StatusCode::OK, format!("ERR_OBJECT_NOT_FOUND: {name} is not a setting")).into_response(),
    }
}

async fn configs(State(base): State<Arc<Base>>) -> Response {
    let settings = base.settings().clone();
    json_text(StatusCode::OK, &Value::Object(settings))
}

/// Always 200, as there: the outcome is in the answer.
async fn update_config(State(base): State<Arc<Base>>, request: Request) -> Response {
    let asked = Query::<Vec<(String, String)>>::try_from_uri(request.uri());
    let done = match asked.map(|Query(pairs)| pairs).as_deref() {
        Ok([(key, value)]) => base.change(key, value).await,
        _ => Err("ERR_INVALID_PARAMETERS: exactly one setting=value is expected".to_owned()),
    };
    let status = done.err().unwrap_or_else(|| "ERR_OK".to_owned());
    json_text(StatusCode::OK, &json!({"update_status": status}))
}

async fn metrics(State(base): State<Arc<Base>>, request: Request) -> Response {
    match asked_entities(request.uri(), request.headers()) {
        None => metrics_text(&base.registry, ""),
        Some(Err(refusal)) => refusal,
        Some(Ok(query)) => {
            let mut entities = Entities::default();
            entities.add_registry(&base.registry);
            json_text(StatusCode::OK, &query.answer(&base.origin, &entities))
        }
    }
}

/// What a request of `/metrics` asks of [`Entities`]: None when it wants Prometheus text, an answer when it is wrong.
/// Text goes to who says that he takes it, as Prometheus does; tools of Apache Pegasus say nothing and expect JSON
/// (metrics.md 2).
pub fn asked_entities(uri: &Uri, headers: &HeaderMap) -> Option<Result<entities::Query, Response>> {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let takes_text = ["text/plain", "application/openmetrics-text"].iter().any(|text| accepts.contains(text));
    if takes_text && uri.query().is_none_or(str::is_empty) {
        return None;
    }
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| error.to_string());
    let query = query.and_then(|Query(parameters)| {
        entities::Query::parse(parameters.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    });
    Some(query.map_err(|why| json_text(StatusCode::BAD_REQUEST, &json!({"error_message": why}))))
}

/// The answer of `/metrics`: the registry, and Prometheus text that a role has made itself.
pub fn metrics_text(registry: &Registry, own: &str) -> Response {
    match registry::encode(registry) {
        Ok(text) => ([(header::CONTENT_TYPE, registry::CONTENT_TYPE)], text + own).into_response(),
        Err(error) => {
            tracing::warn!(%error, "cannot encode the metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(base): State<Arc<Base>>) -> Response {
    let reasons = base.health.reasons();
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

async fn log_levels() -> String {
    logging::levels() + "\n"
}

async fn set_log_levels(body: String) -> Response {
    let changed =
        logging::Levels::parse(&body).map_err(|why| (StatusCode::BAD_REQUEST, why)).and_then(|new| {
            logging::set_levels(new).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
        });
    match changed {
        Ok(()) => log_levels().await.into_response(),
        Err((status, why)) => (status, why + "\n").into_response(),
    }
}

async fn unknown(request: Request) -> Response {
    (StatusCode::NOT_FOUND, format!("service not found for {:?}", request.uri().path())).into_response()
}

/// `307` to the same path at the meta leader.
pub fn redirect(leader: &str, request: &axum::http::Uri) -> Response {
    let path = request.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
    match HeaderValue::from_str(&format!("http://{leader}{path}")) {
        Ok(location) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// Serves HTTP/1 on one connection until it ends. Errors are the peer's and only worth a debug line.
pub async fn serve_connection<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "http connection"),
        Err(_) => tracing::debug!("http connection is too old"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn base(health: &Health) -> Router {
        let registry = registry::new("c", "meta", "127.0.0.1:1").unwrap();
        let settings = json!({"server_list": {"name": "server_list", "value": "a:1"}});
        let own = Router::new().route("/meta/x", get(|| async { "own" }));
        router(Base::new("meta", registry, health.clone(), &settings).describe("/meta/x", "own")).merge(own)
    }

    async fn ask(router: Router, request: &str) -> String {
        let (mut client, server) = duplex(1 << 20);
        let request = format!("{request}\r\nhost: h\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let (_, read) = tokio::join!(serve_connection(server, router), client.read_to_string(&mut answer));
        read.unwrap();
        answer
    }

    #[tokio::test]
    async fn base_paths() {
        let health = Health::starting();
        let cases = [
            ("GET / HTTP/1.1", "200 OK", "\"/meta/x\":\"own\""),
            ("GET /version HTTP/1.1", "200 OK", "\"Version\":"),
            ("GET /recentStartTime HTTP/1.1", "200 OK", "{\"RecentStartTime\":\"20"),
            (
                "GET /config?name=server_list HTTP/1.1",
                "200 OK",
                "{\"name\":\"server_list\",\"value\":\"a:1\"}",
            ),
            ("GET /config?name=nope HTTP/1.1", "200 OK", "ERR_OBJECT_NOT_FOUND"),
            ("GET /config HTTP/1.1", "400 Bad Request", "name should be specified"),
            ("POST /configs HTTP/1.1\r\ncontent-length: 0", "200 OK", "{\"server_list\":{"),
            ("GET /metrics HTTP/1.1\r\naccept: text/plain", "200 OK", "# TYPE resident_mem_usage_mb gauge"),
            // As Prometheus asks.
            (
                "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0,*/*;q=0.1",
                "200 OK",
                "# TYPE process_threads",
            ),
            // As curl asks.
            ("GET /metrics HTTP/1.1\r\naccept: */*", "200 OK", "{\"cluster\":\"c\",\"entities\":[{"),
            ("GET /metrics HTTP/1.1", "200 OK", "{\"cluster\":\"c\",\"entities\":[{"),
            (
                "GET /metrics HTTP/1.1\r\naccept: application/json",
                "200 OK",
                "{\"cluster\":\"c\",\"entities\":[{",
            ),
            (
                "GET /metrics?types=server&metrics=process_threads HTTP/1.1",
                "200 OK",
                "\"name\":\"process_threads\"",
            ),
            ("GET /metrics?detail=maybe HTTP/1.1", "400 Bad Request", "{\"error_message\":\"detail=maybe"),
            ("GET /metrics?a=b HTTP/1.1", "400 Bad Request", "unknown field a=b"),
            ("GET /livez HTTP/1.1", "200 OK", "ok"),
            ("GET /readyz HTTP/1.1", "503 Service Unavailable", "start: starting"),
            ("GET /logLevels HTTP/1.1", "200 OK", "\r\n\r\n"),
            ("PUT /logLevels HTTP/1.1\r\ncontent-length: 0", "400 Bad Request", "expected a level"),
            ("DELETE /logLevels HTTP/1.1", "405 Method Not Allowed", ""),
            ("GET /meta/x HTTP/1.1", "200 OK", "own"),
            ("GET /wrong/path?x HTTP/1.1", "404 Not Found", "service not found for \"/wrong/path\""),
        ];
        for (request, status, body) in cases {
            let answer = ask(base(&health), request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
            assert!(answer.contains(body), "{request}: {answer}");
        }
        health.ready("start");
        assert!(ask(base(&health), "GET /readyz HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn settings_change_that_can() {
        let registry = registry::new("c", "meta", "127.0.0.1:1").unwrap();
        let setting = |value: &str| json!({"value": value, "tags": "", "origin": "config.ini:1"});
        let settings = json!({"speed": setting("1"), "server_list": setting("a:1")});
        let (base, mut changes) =
            Base::new("meta", registry, Health::default(), &settings).changeable(&["speed"]);
        let router = router(base);
        let role = tokio::spawn(async move {
            while let Some(Change { key, value, answer }) = changes.recv().await {
                assert_eq!(key, "speed");
                let done = value.parse::<u8>().map(drop);
                answer.send(done.map_err(|_| "ERR_INVALID_PARAMETERS: not a number".to_owned())).unwrap();
            }
        });
        for (path, part) in [
            ("/updateConfig?speed=x", "{\"update_status\":\"ERR_INVALID_PARAMETERS: not a number\"}"),
            ("/config?name=speed", "\"value\":\"1\""),
            ("/updateConfig?speed=7", "{\"update_status\":\"ERR_OK\"}"),
            (
                "/config?name=speed",
                "{\"origin\":\"/updateConfig\",\"tags\":\"flag_tag::FT_MUTABLE\",\"value\":\"7\"}",
            ),
            (
                "/updateConfig?server_list=b:1",
                "ERR_INVALID_PARAMETERS: server_list is read at the start only",
            ),
            ("/config?name=server_list", "\"tags\":\"\",\"value\":\"a:1\""),
            ("/updateConfig?sped=7", "ERR_OBJECT_NOT_FOUND: sped is not a setting"),
            ("/updateConfig?speed=7&speed=8", "ERR_INVALID_PARAMETERS: exactly one"),
            ("/updateConfig", "ERR_INVALID_PARAMETERS: exactly one"),
            ("/updateConfig?logging_start_level=LOUD", "ERR_INVALID_PARAMETERS: \\\"LOUD\\\": expected"),
        ] {
            let answer = ask(router.clone(), &format!("GET {path} HTTP/1.1")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(part), "{path}: {answer}");
        }
        drop(router);
        role.await.unwrap();
    }

    #[tokio::test]
    async fn garbage_ends_the_connection() {
        let huge = format!("GET /{} HTTP/1.1", "x".repeat(BUFFER_BYTES_MAX * 2));
        for request in ["GET", "\0\0\0", huge.as_str()] {
            let answer = ask(base(&Health::default()), request).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
    }

    #[test]
    fn redirects_keep_path_and_query() {
        let answer = redirect("127.0.0.1:34601", &"/meta/app?name=temp".parse().unwrap());
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(answer.headers()["location"], "http://127.0.0.1:34601/meta/app?name=temp");
    }
}
