//! Pegasus clients and tools, over the client protocol.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_meta_core::Job;
use pegasus_placement::ClusterView;
use pegasus_placement::envs::EnvChange;
use pegasus_placement::recall::RecallTable;
use pegasus_placement::tables::{CreateTable, DropTable, TableError};
use pegasus_rpc::wire::meta::*;
use pegasus_rpc::wire::{
    AdminRequest, AdminResponse, ClientService, ErrorName, ReplyTo, Request, RequestHead,
};
use pegasus_telemetry::commands::Commands;
use pegasus_types::{AppId, AppInfo, AppStatus, ErrorCode, Node, PartitionConfig};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{admin, commands, compaction, orders};
use crate::leader::Leader;
use crate::published::Published;
use crate::resolver::Resolver;
use crate::role::Role;
use crate::writer::Ticket;

/// How long the answer to a creation waits for the table's replicas. Clients give a creation 10 s and more before
/// they try another meta-server.
const CREATION_WAIT: Duration = Duration::from_secs(8);

/// Answers clients: as the leader, from what is known while the store is away, or with the leader's address.
#[derive(Clone, Debug)]
pub struct ClientPort(pub Rc<Role>, pub Commands);

impl ClientService for ClientPort {
    fn call(&self, _head: RequestHead, _frame_bytes: usize, request: Request, reply: ReplyTo) {
        match request {
            Request::QueryConfig(request) => self.query_config(&request, reply),
            Request::Admin(request) => self.admin(request, reply),
            Request::RemoteCommand(command) => {
                let port = self.clone();
                tokio::task::spawn_local(async move { reply.text(port.remote_command(&command).await) });
            }
            // Data requests belong to replica-servers; negotiation is answered by the connection.
            Request::Read(_) | Request::Write(_) | Request::Negotiation(_) => {
                reply.error(ErrorCode::HandlerNotFound);
            }
        }
    }
}

impl ClientPort {
    fn query_config(&self, request: &QueryConfigRequest, reply: ReplyTo) {
        let resolver = &self.0.resolver;
        if let Some(leader) = self.0.leader() {
            let state = leader.state.borrow();
            let promised = leader.promised.borrow();
            return reply.query_config(layout(state.ledger.view(), &promised, resolver, request));
        }
        let nothing = BTreeSet::new();
        let standing = self.0.now();
        if let Some(last) = standing.shown() {
            return reply.query_config(layout(&last.view, &nothing, resolver, request));
        }
        // A table that is not in what was read may have been made since: nobody is told that there is none.
        let stored = self.0.stored().map(|view| layout(&view, &nothing, resolver, request));
        reply.query_config(match (stored, standing.refusal()) {
            (Some(answer), _) if answer.err.0 == ErrorCode::Ok => answer,
            (_, ErrorCode::ForwardToOthers) => QueryConfigResponse::forward(self.0.other_leader_address()),
            (_, code) => QueryConfigResponse::error(code),
        });
    }

    async fn remote_command(&self, command: &RemoteCommand) -> String {
        if let Some(leader) = self.0.leader()
            && let Some(answer) = commands::execute_stored(&leader, &command.cmd, &command.arguments).await
        {
            return answer;
        }
        let answer = match self.0.leader() {
            Some(leader) => commands::execute(&leader, &command.cmd, &command.arguments),
            None => (command.cmd.starts_with("meta."))
                .then(|| "ERR: this meta-server does not lead; cluster_info names the leader".to_owned()),
        };
        match answer {
            Some(answer) => answer,
            None => self.common_command(command).await,
        }
    }

    /// Commands of every meta-server; an unknown one is answered with the list.
    async fn common_command(&self, command: &RemoteCommand) -> String {
        let help = || format!("help - this list\n{}\n{}", pegasus_telemetry::commands::HELP, commands::HELP);
        match command.cmd.as_str() {
            "help" => help(),
            other => (self.1.answer(other, &command.arguments).await)
                .unwrap_or_else(|| format!("unknown command '{other}'\n{}", help())),
        }
    }

    fn admin(&self, request: AdminRequest, reply: ReplyTo) {
        if let Some(leader) = self.0.leader() {
            return ClientFacing(leader).admin(request, reply);
        }
        let standing = self.0.now();
        let known = standing.shown().and_then(|last| look(&last, &self.0.resolver, &request));
        reply.admin(known.unwrap_or_else(|| refusal(&request, standing.refusal())));
    }
}

/// Where a table lives (wire-protocol.md 7.1).
///
/// A table in creation is there without members if its creator was `promised` it.
fn layout(
    view: &ClusterView,
    promised: &BTreeSet<AppId>,
    resolver: &Resolver,
    request: &QueryConfigRequest,
) -> QueryConfigResponse {
    let Some(table) = view.table_by_name(&request.app_name) else {
        return QueryConfigResponse::error(ErrorCode::ObjectNotFound);
    };
    let is_ready = table.info.status == AppStatus::Available;
    match table.info.status {
        AppStatus::Available => {}
        AppStatus::Creating if promised.contains(&table.info.app_id) => {}
        AppStatus::Dropping => return QueryConfigResponse::error(ErrorCode::BusyDropping),
        _ => return QueryConfigResponse::error(ErrorCode::BusyCreating),
    }
    let configuration = |config: &PartitionConfig| {
        let address = |node: &Node| resolver.get(node);
        if is_ready {
            return PartitionConfiguration::new(config, address);
        }
        let empty = PartitionConfig { primary: None, secondaries: Vec::new(), ..config.clone() };
        PartitionConfiguration::new(&empty, address)
    };
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

/// Answers who only looks; None = it is a change.
fn look(published: &Published, resolver: &Resolver, request: &AdminRequest) -> Option<AdminResponse> {
    Some(match request {
        AdminRequest::ListApps(request) => AdminResponse::ListApps(list_apps(published, request)),
        AdminRequest::ListNodes(request) => {
            AdminResponse::ListNodes(list_nodes(published, resolver, request))
        }
        AdminRequest::ClusterInfo(_) => {
            let (keys, values) =
                admin::cluster_info(published).into_iter().map(|(k, v)| (k.to_owned(), v)).unzip();
            let err = ErrorName(ErrorCode::Ok);
            AdminResponse::ClusterInfo(ClusterInfoResponse { err, keys, values })
        }
        _ => return None,
    })
}

/// The same error to whatever was asked.
fn refusal(request: &AdminRequest, code: ErrorCode) -> AdminResponse {
    let err = ErrorName(code);
    match request {
        AdminRequest::CreateApp(_) => AdminResponse::CreateApp(CreateAppResponse { err, appid: 0 }),
        AdminRequest::DropApp(_) => AdminResponse::DropApp(DropAppResponse { err }),
        AdminRequest::RecallApp(_) => {
            AdminResponse::RecallApp(RecallAppResponse { err, info: AppInfoMessage::default() })
        }
        AdminRequest::ListApps(_) => {
            AdminResponse::ListApps(ListAppsResponse { err, infos: Vec::new(), hint_message: None })
        }
        AdminRequest::ListNodes(_) => AdminResponse::ListNodes(ListNodesResponse { err, infos: Vec::new() }),
        AdminRequest::ClusterInfo(_) => {
            AdminResponse::ClusterInfo(ClusterInfoResponse { err, keys: Vec::new(), values: Vec::new() })
        }
        AdminRequest::UpdateAppEnv(_) => {
            AdminResponse::UpdateAppEnv(UpdateAppEnvResponse { err, hint_message: String::new() })
        }
        AdminRequest::ControlMeta(_) => {
            AdminResponse::ControlMeta(ControlMetaResponse { err, old_level: LEVEL_READ_ONLY })
        }
        AdminRequest::ProposeBalancer(_) => AdminResponse::ProposeBalancer(BalancerResponse { err }),
        AdminRequest::DddDiagnose(_) => {
            AdminResponse::DddDiagnose(DddDiagnoseResponse { err, partitions: Vec::new() })
        }
        AdminRequest::StartManualCompact(_) => {
            AdminResponse::StartManualCompact(StartManualCompactResponse { err, hint_msg: String::new() })
        }
        AdminRequest::QueryManualCompact(_) => {
            let hint_msg = String::new();
            AdminResponse::QueryManualCompact(QueryManualCompactResponse { err, hint_msg, progress: None })
        }
    }
}

/// The leader's answers; changes when they are stored.
#[derive(Clone, Debug)]
struct ClientFacing(Rc<Leader>);

impl ClientFacing {
    fn admin(&self, request: AdminRequest, reply: ReplyTo) {
        if let Some(answer) = look(&self.0.published.borrow(), &self.0.resolver, &request) {
            return reply.admin(answer);
        }
        match request {
            AdminRequest::CreateApp(request) => self.create(request, reply),
            AdminRequest::DropApp(request) => self.drop_app(request, reply),
            AdminRequest::RecallApp(request) => self.recall(request, reply),
            AdminRequest::UpdateAppEnv(request) => self.update_envs(request, reply),
            AdminRequest::ControlMeta(request) => {
                reply.admin(AdminResponse::ControlMeta(orders::control(&self.0, &request)));
            }
            AdminRequest::ProposeBalancer(request) => {
                let leader = self.0.clone();
                tokio::task::spawn_local(async move {
                    let err = ErrorName(orders::propose(&leader, request).await);
                    reply.admin(AdminResponse::ProposeBalancer(BalancerResponse { err }));
                });
            }
            AdminRequest::DddDiagnose(request) => {
                reply.admin(AdminResponse::DddDiagnose(orders::diagnose(&self.0, request.pid.0)));
            }
            AdminRequest::StartManualCompact(request) => self.start_compaction(request, reply),
            AdminRequest::QueryManualCompact(request) => {
                let leader = self.0.clone();
                tokio::task::spawn_local(async move {
                    let answer = compaction::query(&leader, &request).await;
                    reply.admin(AdminResponse::QueryManualCompact(answer));
                });
            }
            // They look only.
            AdminRequest::ListApps(_) | AdminRequest::ListNodes(_) | AdminRequest::ClusterInfo(_) => {}
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
        let leader = self.0.clone();
        let mut published = leader.published.subscribe();
        self.write(Job::Create(request), Ticket::Created, move |result| {
            let answer =
                |err, appid| AdminResponse::CreateApp(CreateAppResponse { err: ErrorName(err), appid });
            match result {
                Err(error) => reply.admin(answer(error.code, 0)),
                // Clients use the table at once: it is answered when every member has its replicas.
                Ok(app_id) => drop(tokio::task::spawn_local(async move {
                    let settled = |shown: &Arc<Published>| !is_creating(shown, app_id);
                    // After the wait it is stored all the same, and becomes available by itself.
                    if timeout(CREATION_WAIT, published.wait_for(settled)).await.is_err() {
                        leader.promised.borrow_mut().insert(app_id);
                    }
                    reply.admin(answer(ErrorCode::Ok, app_id));
                })),
            }
        });
    }

    fn drop_app(&self, request: DropAppRequest, reply: ReplyTo) {
        let request = DropTable {
            name: request.app_name,
            success_if_not_exist: request.options.success_if_not_exist,
            reserve_seconds: request.options.reserve_seconds.unwrap_or(0),
        };
        self.write(Job::Drop(request), Ticket::Dropped, move |result: Result<(), TableError>| {
            let err = ErrorName(result.err().map_or(ErrorCode::Ok, |error| error.code));
            reply.admin(AdminResponse::DropApp(DropAppResponse { err }));
        });
    }

    fn recall(&self, request: RecallAppRequest, reply: ReplyTo) {
        let request = RecallTable { app_id: request.app_id, name: request.new_app_name };
        self.write(Job::Recall(request), Ticket::Recalled, move |result: Result<AppInfo, TableError>| {
            let (err, info) = match result {
                Ok(info) => (ErrorCode::Ok, AppInfoMessage::from(&info)),
                Err(error) => (error.code, AppInfoMessage::default()),
            };
            reply.admin(AdminResponse::RecallApp(RecallAppResponse { err: ErrorName(err), info }));
        });
    }

    fn update_envs(&self, request: UpdateAppEnvRequest, reply: ReplyTo) {
        let answer = |err, hint_message| {
            AdminResponse::UpdateAppEnv(UpdateAppEnvResponse { err: ErrorName(err), hint_message })
        };
        let change = match env_change(&request) {
            Ok(change) => change,
            Err(why) => return reply.admin(answer(ErrorCode::InvalidParameters, why.to_owned())),
        };
        self.write(
            Job::Envs { name: request.app_name, change },
            Ticket::Envs,
            move |result: Result<String, TableError>| {
                reply.admin(match result {
                    Ok(hint) => answer(ErrorCode::Ok, hint),
                    Err(error) => answer(error.code, error.hint),
                });
            },
        );
    }

    fn start_compaction(&self, request: StartManualCompactRequest, reply: ReplyTo) {
        let answer = |err, hint_msg| {
            let err = ErrorName(err);
            AdminResponse::StartManualCompact(StartManualCompactResponse { err, hint_msg })
        };
        let change = match compaction::start(&self.0, &request) {
            Ok(change) => change,
            Err(error) => return reply.admin(answer(error.code, error.hint)),
        };
        let hint = compaction::started(&request.app_name);
        self.write(
            Job::Envs { name: request.app_name, change },
            Ticket::Envs,
            move |result: Result<String, TableError>| {
                reply.admin(match result {
                    Ok(_) => answer(ErrorCode::Ok, hint),
                    Err(error) => answer(error.code, error.hint),
                });
            },
        );
    }

    /// Hands a job to the writer and answers when it is done.
    fn write<T: 'static>(
        &self,
        job: Job,
        ticket: impl FnOnce(oneshot::Sender<Result<T, TableError>>) -> Ticket,
        done: impl FnOnce(Result<T, TableError>) + 'static,
    ) {
        let (answer, answered) = oneshot::channel();
        let error = |code, hint: &str| Err(TableError { code, hint: hint.into() });
        if self.0.jobs.try_send((job, ticket(answer))).is_err() {
            return done(error(ErrorCode::Busy, "too many changes wait"));
        }
        tokio::task::spawn_local(async move {
            // It was begun: whether it was stored is not known.
            let lost =
                |_| error(ErrorCode::Timeout, "the store did not answer before the leader's term ended");
            done(answered.await.unwrap_or_else(lost));
        });
    }
}

/// admin-protocol.md 4.4.
fn env_change(request: &UpdateAppEnvRequest) -> Result<EnvChange, &'static str> {
    let keys = request.keys.as_deref().unwrap_or_default();
    let values = request.values.as_deref().unwrap_or_default();
    match request.op {
        APP_ENV_SET if keys.is_empty() => Err("there is nothing to set"),
        APP_ENV_SET if keys.len() != values.len() => Err("there must be as many values as keys"),
        APP_ENV_SET => Ok(EnvChange::Set(keys.iter().cloned().zip(values.iter().cloned()).collect())),
        APP_ENV_DEL if keys.is_empty() => Err("there is nothing to delete"),
        APP_ENV_DEL => Ok(EnvChange::Delete(keys.to_vec())),
        APP_ENV_CLEAR => Ok(EnvChange::Clear(request.clear_prefix.clone().unwrap_or_default())),
        _ => Err("the operation must be 1 (set), 2 (delete) or 3 (clear)"),
    }
}

fn list_apps(published: &Published, request: &ListAppsRequest) -> ListAppsResponse {
    let pattern = request.app_name_pattern.as_deref().map(|text| (text, request.match_type.unwrap_or(2)));
    match admin::list_apps(published, request.status, pattern) {
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

fn list_nodes(published: &Published, resolver: &Resolver, request: &ListNodesRequest) -> ListNodesResponse {
    let info = |(node, alive)| {
        let status = if alive { NODE_ALIVE } else { NODE_UNALIVE };
        NodeInfo { status, node: Address(resolver.get(node)) }
    };
    let infos = admin::list_nodes(published, request.status).into_iter().map(info).collect();
    ListNodesResponse { err: ErrorName(ErrorCode::Ok), infos }
}

/// A table that was stored a moment ago may not be shown yet: that is creating, too.
fn is_creating(shown: &Published, app_id: AppId) -> bool {
    shown.view.table(app_id).is_none_or(|table| table.info.status == AppStatus::Creating)
}
