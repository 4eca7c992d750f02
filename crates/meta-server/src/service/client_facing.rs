//! Pegasus clients and tools, over the client protocol.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_placement::tables::{CreateTable, DropTable, TableError};
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{
    AdminRequest, AdminResponse, ClientService, ErrorName, ReplyTo, Request, RequestHead,
};
use pegasus_telemetry::version;
use pegasus_types::{AppId, AppStatus, ErrorCode};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::admin;
use crate::leader::Leader;
use crate::published::Published;
use crate::writer::Job;

/// How long the answer to a creation waits for the table's replicas. Clients give a creation tens of seconds.
const CREATION_WAIT: Duration = Duration::from_secs(10);

/// Answers clients; reads at once, changes when they are stored.
#[derive(Clone, Debug)]
pub struct ClientFacing(pub Rc<Leader>);

impl ClientService for ClientFacing {
    fn call(&self, _head: RequestHead, _frame_bytes: usize, request: Request, reply: ReplyTo) {
        match request {
            Request::QueryConfig(request) => reply.query_config(self.query_config(&request)),
            Request::Admin(request) => self.admin(request, reply),
            Request::RemoteCommand(command) => reply.text(remote_command(&command)),
            // Data requests belong to replica-servers; negotiation is answered by the connection.
            Request::Read(_) | Request::Write(_) | Request::Negotiation(_) => {
                reply.error(ErrorCode::HandlerNotFound);
            }
        }
    }
}

impl ClientFacing {
    /// wire-protocol.md 7.1.
    pub fn query_config(&self, request: &QueryConfigRequest) -> QueryConfigResponse {
        let state = self.0.state.borrow();
        let Some(table) = state.ledger.view().table_by_name(&request.app_name) else {
            return QueryConfigResponse::error(ErrorCode::ObjectNotFound);
        };
        match table.info.status {
            AppStatus::Available => {}
            AppStatus::Dropping => return QueryConfigResponse::error(ErrorCode::BusyDropping),
            _ => return QueryConfigResponse::error(ErrorCode::BusyCreating),
        }
        let configuration = |config| PartitionConfiguration::new(config, |node| self.0.resolver.get(node));
        let indices = request.partition_indices.iter().filter_map(|index| usize::try_from(*index).ok());
        let mut partitions: Vec<_> =
            indices.filter_map(|index| table.partitions.get(index)).map(|c| configuration(c)).collect();
        if partitions.is_empty() {
            partitions = table.partitions.iter().map(|c| configuration(c)).collect();
        }
        QueryConfigResponse {
            err: ErrorName(ErrorCode::Ok),
            app_id: table.info.app_id,
            partition_count: table.info.partition_count,
            is_stateful: true,
            partitions,
        }
    }

    fn admin(&self, request: AdminRequest, reply: ReplyTo) {
        match request {
            AdminRequest::CreateApp(request) => self.create(request, reply),
            AdminRequest::DropApp(request) => self.drop_app(request, reply),
            AdminRequest::ListApps(request) => reply.admin(AdminResponse::ListApps(self.list_apps(&request))),
            AdminRequest::ListNodes(request) => {
                reply.admin(AdminResponse::ListNodes(self.list_nodes(&request)));
            }
            AdminRequest::ClusterInfo(_) => {
                let published = self.0.published.borrow();
                let (keys, values) =
                    admin::cluster_info(&published).into_iter().map(|(k, v)| (k.to_owned(), v)).unzip();
                let err = ErrorName(ErrorCode::Ok);
                reply.admin(AdminResponse::ClusterInfo(ClusterInfoResponse { err, keys, values }));
            }
            AdminRequest::RecallApp(_) => reply.admin(AdminResponse::RecallApp(RecallAppResponse {
                err: ErrorName(ErrorCode::NotImplemented),
                info: AppInfoMessage::default(),
            })),
            AdminRequest::UpdateAppEnv(_) => reply.admin(AdminResponse::UpdateAppEnv(UpdateAppEnvResponse {
                err: ErrorName(ErrorCode::NotImplemented),
                hint_message: "settings of a table are given when it is created".into(),
            })),
        }
    }

    fn create(&self, request: CreateAppRequest, reply: ReplyTo) {
        let CreateAppRequest { app_name, options } = request;
        let request = CreateTable {
            name: app_name,
            app_type: options.app_type,
            partition_count: options.partition_count,
            replica_count: options.replica_count,
            envs: options.envs,
            is_stateful: options.is_stateful,
            success_if_exist: options.success_if_exist,
        };
        let mut published = self.0.published.subscribe();
        self.write(
            |answer| Job::Create { request, made: None, answer },
            move |result| {
                let answer =
                    |err, appid| AdminResponse::CreateApp(CreateAppResponse { err: ErrorName(err), appid });
                match result {
                    Err(error) => reply.admin(answer(error.code, 0)),
                    // Clients use the table at once: it is answered when every member has its replicas.
                    Ok(app_id) => drop(tokio::task::spawn_local(async move {
                        let settled = |shown: &Arc<Published>| !is_creating(shown, app_id);
                        // After the wait it is stored all the same, and becomes available by itself.
                        let _ = timeout(CREATION_WAIT, published.wait_for(settled)).await;
                        reply.admin(answer(ErrorCode::Ok, app_id));
                    })),
                }
            },
        );
    }

    fn drop_app(&self, request: DropAppRequest, reply: ReplyTo) {
        let request = DropTable {
            name: request.app_name,
            success_if_not_exist: request.options.success_if_not_exist,
            reserve_seconds: request.options.reserve_seconds.unwrap_or(0),
        };
        self.write(
            |answer| Job::Drop { request, made: None, answer },
            move |result: Result<(), TableError>| {
                let err = ErrorName(result.err().map_or(ErrorCode::Ok, |error| error.code));
                reply.admin(AdminResponse::DropApp(DropAppResponse { err }));
            },
        );
    }

    /// Hands a job to the writer and answers when it is done.
    fn write<T: 'static>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, TableError>>) -> Job,
        done: impl FnOnce(Result<T, TableError>) + 'static,
    ) {
        let (answer, answered) = oneshot::channel();
        let error = |code, hint: &str| Err(TableError { code, hint: hint.into() });
        if self.0.jobs.try_send(job(answer)).is_err() {
            return done(error(ErrorCode::Busy, "too many changes wait"));
        }
        tokio::task::spawn_local(async move {
            let lost = |_| error(ErrorCode::ServiceNotActive, "the meta-server lost its store");
            done(answered.await.unwrap_or_else(lost));
        });
    }

    fn list_apps(&self, request: &ListAppsRequest) -> ListAppsResponse {
        let published = self.0.published.borrow();
        let pattern = request.app_name_pattern.as_deref().map(|text| (text, request.match_type.unwrap_or(2)));
        match admin::list_apps(&published, request.status, pattern) {
            Ok(tables) => ListAppsResponse {
                err: ErrorName(ErrorCode::Ok),
                infos: tables.into_iter().map(|table| AppInfoMessage::from(&table.info)).collect(),
                hint_message: None,
            },
            Err(code) => ListAppsResponse {
                err: ErrorName(code),
                infos: Vec::new(),
                hint_message: Some("this kind of name pattern is not supported".into()),
            },
        }
    }

    fn list_nodes(&self, request: &ListNodesRequest) -> ListNodesResponse {
        let published = self.0.published.borrow();
        let info = |(node, alive)| {
            let status = if alive { NODE_ALIVE } else { NODE_UNALIVE };
            NodeInfo { status, node: Address(self.0.resolver.get(node)) }
        };
        let infos = admin::list_nodes(&published, request.status).into_iter().map(info).collect();
        ListNodesResponse { err: ErrorName(ErrorCode::Ok), infos }
    }
}

/// A table that was stored a moment ago may not be shown yet: that is creating, too.
fn is_creating(shown: &Published, app_id: AppId) -> bool {
    shown.view.table(app_id).is_none_or(|table| table.info.status == AppStatus::Creating)
}

/// Commands that operators type; an unknown one is answered with the list.
fn remote_command(command: &RemoteCommand) -> String {
    match command.cmd.as_str() {
        "server-info" => serde_json::json!({
            "version": version::VERSION,
            "build_type": if cfg!(debug_assertions) { "debug" } else { "release" },
            "git_SHA": version::GIT_COMMIT,
        })
        .to_string(),
        "help" => HELP.to_owned(),
        other => format!("unknown command '{other}'\n{HELP}"),
    }
}

const HELP: &str = "help - this list\nserver-info - version of this server";
