//! The group of meta-servers: finds the leader and asks it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use pegasus_rpc::wire::meta::{ClusterInfoRequest, QueryConfigResponse};
use pegasus_rpc::wire::{AdminRequest, AdminResponse, CallError, Request, RequestHead, Response};
use pegasus_types::{ErrorCode, Node};
use tokio::time::Instant;

use crate::deadline::Attempts;
use crate::error::{Error, Result};
use crate::names::Names;
use crate::pool::Pool;
use crate::retry::{Failure, Verdict, judge};

/// For an answer that a meta-server gives from memory.
const LOOK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Addresses that are remembered as silent: the metas of a cluster many times over, also those that moved.
const MAX_SILENT: usize = 64;

#[derive(Debug)]
pub struct Metas {
    nodes: Vec<Node>,
    pool: Arc<Pool>,
    pub names: Names,
    /// Who answered last, or whom the others named.
    leader: Mutex<Option<SocketAddr>>,
    /// Who did not answer when asked last, and is asked last from now on: a meta-server that hangs costs its share of
    /// the time each time.
    silent: Mutex<BTreeSet<SocketAddr>>,
}

/// What one meta-server said.
enum Said {
    /// It leads, this is its answer.
    Answer(Response),
    /// Another one leads.
    Forward(Option<SocketAddr>),
    /// It leads but is not ready.
    NotReady,
}

/// How the last round of questions went.
#[derive(Default)]
struct Round {
    said: Vec<String>,
    unreachable: bool,
}

impl Round {
    fn failed(&mut self, failure: &Failure) {
        self.said.push(failure.to_string());
        self.unreachable |= failure.is_unreachable();
    }

    fn over(&self) -> Error {
        Error::Timeout { last: self.said.join("; "), unreachable: self.unreachable }
    }
}

impl Metas {
    /// `addresses`: `host:port`, separated by commas.
    pub fn new(addresses: &str, pool: Arc<Pool>, names: Names) -> Result<Self> {
        let parse =
            |address: &str| address.parse::<Node>().map_err(|error| Error::Invalid(error.to_string()));
        let nodes: Vec<_> = addresses.split(',').map(parse).collect::<Result<_>>()?;
        Ok(Self { nodes, pool, names, leader: Mutex::default(), silent: Mutex::default() })
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where `table` lives.
    pub async fn query_config(&self, table: &str, within: Duration) -> Result<QueryConfigResponse> {
        let request = pegasus_rpc::wire::meta::QueryConfigRequest {
            app_name: table.to_owned(),
            partition_indices: Vec::new(),
        };
        match self.ask(&Request::QueryConfig(request), true, within).await? {
            Response::QueryConfig(config) => match config.err.0 {
                ErrorCode::Ok => Ok(config),
                ErrorCode::ObjectNotFound => Err(Error::NoTable(table.to_owned())),
                code => Err(Error::Meta { code, hint: String::new() }),
            },
            other => Err(Error::Nonsense(format!("{other:?}"))),
        }
    }

    /// `repeatable` = asking twice does the same as asking once.
    pub async fn admin(
        &self,
        request: AdminRequest,
        repeatable: bool,
        within: Duration,
    ) -> Result<AdminResponse> {
        let begun = Instant::now();
        if !is_look(&request) {
            // A change may take its time, so a leader that hangs would only be given up late. A look is answered at
            // once; if nobody does, the change says why.
            let look = Request::Admin(AdminRequest::ClusterInfo(ClusterInfoRequest {}));
            let _ = self.ask(&look, true, within / 2).await;
        }
        let within = within.saturating_sub(begun.elapsed());
        match self.ask(&Request::Admin(request), repeatable, within).await? {
            Response::Admin(response) => match admin_error(&response) {
                (ErrorCode::Ok, _) => Ok(response),
                (code, hint) => Err(Error::Meta { code, hint: hint.to_owned() }),
            },
            other => Err(Error::Nonsense(format!("{other:?}"))),
        }
    }

    async fn ask(&self, request: &Request, repeatable: bool, within: Duration) -> Result<Response> {
        let mut attempts = Attempts::within(within);
        let mut last = Error::no_time();
        loop {
            let Some(left) = attempts.left() else { return Err(last) };
            let mut round = Round::default();
            let leader = self.leader();
            let candidates = match leader {
                Some(leader) => vec![leader],
                None => self.members(left.min(LOOK_TIMEOUT).min(within / 3), &mut round).await,
            };
            for address in candidates {
                let Some(left) = attempts.left() else { break };
                // One that does not answer must not use up the time for the others.
                let share = if is_quick(request) { LOOK_TIMEOUT.min(within / 3) } else { within / 3 };
                let left = if repeatable && self.nodes.len() > 1 { left.min(share) } else { left };
                let answer = self.ask_one(address, request, left).await;
                self.note(address, answer.is_ok());
                match answer {
                    Ok(Said::Answer(response)) => {
                        self.set_leader(Some(address));
                        return Ok(response);
                    }
                    Ok(Said::Forward(leader)) => {
                        let leader = match leader {
                            None if matches!(request, Request::Admin(_)) => {
                                self.leader_as_told_by(address, left).await
                            }
                            told => told,
                        };
                        round.said.push(format!("{address} is not the leader"));
                        self.set_leader(leader);
                        if leader.is_some() {
                            break;
                        }
                    }
                    Ok(Said::NotReady) => {
                        self.forget_leader(address);
                        round.said.push(format!("{address} is not ready yet"));
                    }
                    Err(failure) => {
                        self.forget_leader(address);
                        match judge(&failure, repeatable) {
                            Verdict::Again { .. } => round.failed(&failure),
                            Verdict::Unclear => return Err(Error::Unclear(failure.to_string())),
                            Verdict::Fail => return Err(final_error(failure)),
                        }
                    }
                }
            }
            if !round.said.is_empty() {
                last = round.over();
            }
            // Another one may lead by now.
            if !attempts.pause(leader.is_some()).await {
                return Err(last);
            }
        }
    }

    /// Refusals of administration name no leader, those of layouts do: a user may have named one standby only.
    async fn leader_as_told_by(&self, standby: SocketAddr, within: Duration) -> Option<SocketAddr> {
        let no_table = pegasus_rpc::wire::meta::QueryConfigRequest {
            app_name: String::new(),
            partition_indices: Vec::new(),
        };
        match self.ask_one(standby, &Request::QueryConfig(no_table), within.min(LOOK_TIMEOUT)).await {
            Ok(Said::Forward(leader)) => leader,
            _ => None,
        }
    }

    async fn ask_one(
        &self,
        address: SocketAddr,
        request: &Request,
        within: Duration,
    ) -> std::result::Result<Said, Failure> {
        let connection = self.pool.get(address, within).await?;
        let response = connection
            .call(RequestHead::default(), request, within)
            .await
            .map_err(|error| Failure::Call { address: address.to_string(), error })?;
        let (code, leader) = match &response {
            Response::QueryConfig(config) => {
                (config.err.0, config.partitions.first().and_then(|partition| partition.primary.0))
            }
            Response::Admin(admin) => (admin_error(admin).0, None),
            _ => (ErrorCode::Ok, None),
        };
        Ok(match code {
            ErrorCode::ForwardToOthers => Said::Forward(leader.map(SocketAddr::V4)),
            ErrorCode::ServiceNotActive | ErrorCode::UnderRecovery => Said::NotReady,
            _ => Said::Answer(response),
        })
    }

    /// All that have an address, those that were silent last.
    async fn members(&self, within: Duration, round: &mut Round) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for found in join_all(self.nodes.iter().map(|node| self.names.resolve(node, within))).await {
            match found.map(SocketAddr::V4) {
                Ok(address) if addresses.contains(&address) => {}
                Ok(address) => addresses.push(address),
                Err(failure) => round.failed(&failure),
            }
        }
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| silent.contains(address));
        addresses
    }

    fn note(&self, address: SocketAddr, answers: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if answers {
            silent.remove(&address);
        } else {
            if silent.len() >= MAX_SILENT {
                silent.clear();
            }
            silent.insert(address);
        }
    }

    fn leader(&self) -> Option<SocketAddr> {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_leader(&self, leader: Option<SocketAddr>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    fn forget_leader(&self, failed: SocketAddr) {
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        if *leader == Some(failed) {
            *leader = None;
        }
    }
}

/// Changes nothing.
fn is_look(request: &AdminRequest) -> bool {
    matches!(request, AdminRequest::ListApps(_) | AdminRequest::ListNodes(_) | AdminRequest::ClusterInfo(_))
}

/// Answered from memory.
fn is_quick(request: &Request) -> bool {
    match request {
        Request::QueryConfig(_) => true,
        Request::Admin(request) => is_look(request),
        _ => false,
    }
}

/// A failure that is not worth repeating, as the caller sees it.
pub fn final_error(failure: Failure) -> Error {
    match failure {
        Failure::Call { error: CallError::Refused(refusal), .. } => Error::Refused(refusal),
        Failure::Call { address, error: CallError::Malformed(why) } => {
            Error::Nonsense(format!("{address}: {why}"))
        }
        other => Error::late(&other),
    }
}

/// (error, what the server says about it)
fn admin_error(response: &AdminResponse) -> (ErrorCode, &str) {
    match response {
        AdminResponse::CreateApp(r) => (r.err.0, ""),
        AdminResponse::DropApp(r) => (r.err.0, ""),
        AdminResponse::RecallApp(r) => (r.err.0, ""),
        AdminResponse::ListApps(r) => (r.err.0, r.hint_message.as_deref().unwrap_or("")),
        AdminResponse::ListNodes(r) => (r.err.0, ""),
        AdminResponse::ClusterInfo(r) => (r.err.0, ""),
        AdminResponse::UpdateAppEnv(r) => (r.err.0, &r.hint_message),
        AdminResponse::ControlMeta(r) => (r.err.0, ""),
        AdminResponse::ProposeBalancer(r) => (r.err.0, ""),
        AdminResponse::DddDiagnose(r) => (r.err.0, ""),
        AdminResponse::StartManualCompact(r) => (r.err.0, &r.hint_msg),
        AdminResponse::QueryManualCompact(r) => (r.err.0, &r.hint_msg),
    }
}
