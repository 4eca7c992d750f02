//! The typed requests and responses, and their RPC names.

use pegasus_types::data::*;

use super::codes::Rpc;
use super::frame::{HeaderVersion, ReplyFrame, RequestHead, argument, put_reply, put_request};
use super::meta::*;
use super::thrift::{DecodeError, Reader, Value, Writer};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read(ReadRequest),
    Write(WriteRequest),
    QueryConfig(QueryConfigRequest),
    Admin(AdminRequest),
    RemoteCommand(RemoteCommand),
    /// Answered by this crate: nothing authenticates.
    Negotiation(NegotiationMessage),
}

/// Administration of tables, for the meta leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    CreateApp(CreateAppRequest),
    DropApp(DropAppRequest),
    RecallApp(RecallAppRequest),
    ListApps(ListAppsRequest),
    ListNodes(ListNodesRequest),
    ClusterInfo(ClusterInfoRequest),
    UpdateAppEnv(UpdateAppEnvRequest),
    ControlMeta(ControlMetaRequest),
    ProposeBalancer(BalancerRequest),
    DddDiagnose(DddDiagnoseRequest),
    StartManualCompact(StartManualCompactRequest),
    QueryManualCompact(QueryManualCompactRequest),
}

/// Answers to [`AdminRequest`], in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminResponse {
    CreateApp(CreateAppResponse),
    DropApp(DropAppResponse),
    RecallApp(RecallAppResponse),
    ListApps(ListAppsResponse),
    ListNodes(ListNodesResponse),
    ClusterInfo(ClusterInfoResponse),
    UpdateAppEnv(UpdateAppEnvResponse),
    ControlMeta(ControlMetaResponse),
    ProposeBalancer(BalancerResponse),
    DddDiagnose(DddDiagnoseResponse),
    StartManualCompact(StartManualCompactResponse),
    QueryManualCompact(QueryManualCompactResponse),
}

/// An answer with a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    Read(ReadResponseBody),
    Write(WriteResponse),
    QueryConfig(QueryConfigResponse),
    Admin(AdminResponse),
    /// Of a remote command.
    Text(String),
    Negotiation(NegotiationMessage),
}

impl Request {
    pub fn rpc(&self) -> Rpc {
        match self {
            Self::Read(read) => match read {
                ReadRequest::Get { .. } => Rpc::Get,
                ReadRequest::Ttl { .. } => Rpc::Ttl,
                ReadRequest::SortkeyCount { .. } => Rpc::SortkeyCount,
                ReadRequest::MultiGet(_) => Rpc::MultiGet,
                ReadRequest::BatchGet(_) => Rpc::BatchGet,
                ReadRequest::GetScanner(_) => Rpc::GetScanner,
                ReadRequest::Scan(_) => Rpc::Scan,
                ReadRequest::ClearScanner { .. } => Rpc::ClearScanner,
            },
            Self::Write(write) => match write {
                WriteRequest::Put(_) => Rpc::Put,
                WriteRequest::Remove { .. } => Rpc::Remove,
                WriteRequest::MultiPut(_) => Rpc::MultiPut,
                WriteRequest::MultiRemove(_) => Rpc::MultiRemove,
                WriteRequest::Incr(_) => Rpc::Incr,
                WriteRequest::CheckAndSet(_) => Rpc::CheckAndSet,
                WriteRequest::CheckAndMutate(_) => Rpc::CheckAndMutate,
            },
            Self::QueryConfig(_) => Rpc::QueryConfig,
            Self::Admin(admin) => match admin {
                AdminRequest::CreateApp(_) => Rpc::CreateApp,
                AdminRequest::DropApp(_) => Rpc::DropApp,
                AdminRequest::RecallApp(_) => Rpc::RecallApp,
                AdminRequest::ListApps(_) => Rpc::ListApps,
                AdminRequest::ListNodes(_) => Rpc::ListNodes,
                AdminRequest::ClusterInfo(_) => Rpc::ClusterInfo,
                AdminRequest::UpdateAppEnv(_) => Rpc::UpdateAppEnv,
                AdminRequest::ControlMeta(_) => Rpc::ControlMeta,
                AdminRequest::ProposeBalancer(_) => Rpc::ProposeBalancer,
                AdminRequest::DddDiagnose(_) => Rpc::DddDiagnose,
                AdminRequest::StartManualCompact(_) => Rpc::StartManualCompact,
                AdminRequest::QueryManualCompact(_) => Rpc::QueryManualCompact,
            },
            Self::RemoteCommand(_) => Rpc::RemoteCommand,
            Self::Negotiation(_) => Rpc::Negotiation,
        }
    }

    /// Reads the arguments of `rpc`.
    pub fn decode(rpc: Rpc, r: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match rpc {
            Rpc::Get => Self::Read(ReadRequest::Get { key: argument(r)? }),
            Rpc::Ttl => Self::Read(ReadRequest::Ttl { key: argument(r)? }),
            Rpc::SortkeyCount => Self::Read(ReadRequest::SortkeyCount { hash_key: argument(r)? }),
            Rpc::MultiGet => Self::Read(ReadRequest::MultiGet(argument(r)?)),
            Rpc::BatchGet => Self::Read(ReadRequest::BatchGet(argument(r)?)),
            Rpc::GetScanner => Self::Read(ReadRequest::GetScanner(argument(r)?)),
            Rpc::Scan => Self::Read(ReadRequest::Scan(argument(r)?)),
            Rpc::ClearScanner => Self::Read(ReadRequest::ClearScanner { context_id: argument(r)? }),
            Rpc::Put => Self::Write(WriteRequest::Put(argument(r)?)),
            Rpc::Remove => Self::Write(WriteRequest::Remove { key: argument(r)? }),
            Rpc::MultiPut => Self::Write(WriteRequest::MultiPut(argument(r)?)),
            Rpc::MultiRemove => Self::Write(WriteRequest::MultiRemove(argument(r)?)),
            Rpc::Incr => Self::Write(WriteRequest::Incr(argument(r)?)),
            Rpc::CheckAndSet => Self::Write(WriteRequest::CheckAndSet(argument(r)?)),
            Rpc::CheckAndMutate => Self::Write(WriteRequest::CheckAndMutate(argument(r)?)),
            Rpc::QueryConfig => Self::QueryConfig(argument(r)?),
            Rpc::CreateApp => Self::Admin(AdminRequest::CreateApp(argument(r)?)),
            Rpc::DropApp => Self::Admin(AdminRequest::DropApp(argument(r)?)),
            Rpc::RecallApp => Self::Admin(AdminRequest::RecallApp(argument(r)?)),
            Rpc::ListApps => Self::Admin(AdminRequest::ListApps(argument(r)?)),
            Rpc::ListNodes => Self::Admin(AdminRequest::ListNodes(argument(r)?)),
            Rpc::ClusterInfo => Self::Admin(AdminRequest::ClusterInfo(argument(r)?)),
            Rpc::UpdateAppEnv => Self::Admin(AdminRequest::UpdateAppEnv(argument(r)?)),
            Rpc::ControlMeta => Self::Admin(AdminRequest::ControlMeta(argument(r)?)),
            Rpc::ProposeBalancer => Self::Admin(AdminRequest::ProposeBalancer(argument(r)?)),
            Rpc::DddDiagnose => Self::Admin(AdminRequest::DddDiagnose(argument(r)?)),
            Rpc::StartManualCompact => Self::Admin(AdminRequest::StartManualCompact(argument(r)?)),
            Rpc::QueryManualCompact => Self::Admin(AdminRequest::QueryManualCompact(argument(r)?)),
            Rpc::RemoteCommand => Self::RemoteCommand(argument(r)?),
            Rpc::Negotiation => Self::Negotiation(argument(r)?),
        })
    }

    /// Appends the request as a frame.
    pub fn encode(&self, w: &mut Writer<'_>, version: HeaderVersion, head: &RequestHead) {
        put_request(w, version, head, self.rpc(), |w| match self {
            Self::Read(read) => match read {
                ReadRequest::Get { key } | ReadRequest::Ttl { key } => put_argument(w, key),
                ReadRequest::SortkeyCount { hash_key } => put_argument(w, hash_key),
                ReadRequest::MultiGet(request) => put_argument(w, request),
                ReadRequest::BatchGet(request) => put_argument(w, request),
                ReadRequest::GetScanner(request) => put_argument(w, request),
                ReadRequest::Scan(request) => put_argument(w, request),
                ReadRequest::ClearScanner { context_id } => put_argument(w, context_id),
            },
            Self::Write(write) => match write {
                WriteRequest::Put(request) => put_argument(w, request),
                WriteRequest::Remove { key } => put_argument(w, key),
                WriteRequest::MultiPut(request) => put_argument(w, request),
                WriteRequest::MultiRemove(request) => put_argument(w, request),
                WriteRequest::Incr(request) => put_argument(w, request),
                WriteRequest::CheckAndSet(request) => put_argument(w, request),
                WriteRequest::CheckAndMutate(request) => put_argument(w, request),
            },
            Self::QueryConfig(request) => put_argument(w, request),
            Self::Admin(admin) => match admin {
                AdminRequest::CreateApp(request) => put_argument(w, request),
                AdminRequest::DropApp(request) => put_argument(w, request),
                AdminRequest::RecallApp(request) => put_argument(w, request),
                AdminRequest::ListApps(request) => put_argument(w, request),
                AdminRequest::ListNodes(request) => put_argument(w, request),
                AdminRequest::ClusterInfo(request) => put_argument(w, request),
                AdminRequest::UpdateAppEnv(request) => put_argument(w, request),
                AdminRequest::ControlMeta(request) => put_argument(w, request),
                AdminRequest::ProposeBalancer(request) => put_argument(w, request),
                AdminRequest::DddDiagnose(request) => put_argument(w, request),
                AdminRequest::StartManualCompact(request) => put_argument(w, request),
                AdminRequest::QueryManualCompact(request) => put_argument(w, request),
            },
            Self::RemoteCommand(request) => put_argument(w, request),
            Self::Negotiation(request) => put_argument(w, request),
        });
    }
}

fn put_argument<T: Value>(w: &mut Writer<'_>, value: &T) {
    w.field(1, value, u64::MAX);
}

impl Response {
    /// Reads the result of a reply to `rpc`. The reply must not be a refusal.
    pub fn decode(rpc: Rpc, reply: ReplyFrame) -> Result<Self, DecodeError> {
        Ok(match rpc {
            Rpc::Get => Self::Read(ReadResponseBody::Get(reply.result()?)),
            Rpc::Ttl => Self::Read(ReadResponseBody::Ttl(reply.result()?)),
            Rpc::SortkeyCount => Self::Read(ReadResponseBody::SortkeyCount(reply.result()?)),
            Rpc::MultiGet => Self::Read(ReadResponseBody::MultiGet(reply.result()?)),
            Rpc::BatchGet => Self::Read(ReadResponseBody::BatchGet(reply.result()?)),
            Rpc::GetScanner | Rpc::Scan => Self::Read(ReadResponseBody::Scan(reply.result()?)),
            Rpc::ClearScanner => return Err(DecodeError::NoArgument),
            Rpc::Put | Rpc::Remove | Rpc::MultiPut => Self::Write(WriteResponse::Update(reply.result()?)),
            Rpc::MultiRemove => Self::Write(WriteResponse::MultiRemove(reply.result()?)),
            Rpc::Incr => Self::Write(WriteResponse::Incr(reply.result()?)),
            Rpc::CheckAndSet | Rpc::CheckAndMutate => Self::Write(WriteResponse::Check(reply.result()?)),
            Rpc::QueryConfig => Self::QueryConfig(reply.result()?),
            Rpc::CreateApp => Self::Admin(AdminResponse::CreateApp(reply.result()?)),
            Rpc::DropApp => Self::Admin(AdminResponse::DropApp(reply.result()?)),
            Rpc::RecallApp => Self::Admin(AdminResponse::RecallApp(reply.result()?)),
            Rpc::ListApps => Self::Admin(AdminResponse::ListApps(reply.result()?)),
            Rpc::ListNodes => Self::Admin(AdminResponse::ListNodes(reply.result()?)),
            Rpc::ClusterInfo => Self::Admin(AdminResponse::ClusterInfo(reply.result()?)),
            Rpc::UpdateAppEnv => Self::Admin(AdminResponse::UpdateAppEnv(reply.result()?)),
            Rpc::ControlMeta => Self::Admin(AdminResponse::ControlMeta(reply.result()?)),
            Rpc::ProposeBalancer => Self::Admin(AdminResponse::ProposeBalancer(reply.result()?)),
            Rpc::DddDiagnose => Self::Admin(AdminResponse::DddDiagnose(reply.result()?)),
            Rpc::StartManualCompact => Self::Admin(AdminResponse::StartManualCompact(reply.result()?)),
            Rpc::QueryManualCompact => Self::Admin(AdminResponse::QueryManualCompact(reply.result()?)),
            Rpc::RemoteCommand => Self::Text(reply.result()?),
            Rpc::Negotiation => Self::Negotiation(reply.result()?),
        })
    }

    /// Appends the response as a reply to a request of `rpc`.
    pub fn encode(&self, w: &mut Writer<'_>, rpc: Rpc, seqid: i32) {
        match self {
            Self::Read(read) => match read {
                ReadResponseBody::Get(response) => put_reply(w, rpc, seqid, response),
                ReadResponseBody::Ttl(response) => put_reply(w, rpc, seqid, response),
                ReadResponseBody::SortkeyCount(response) => put_reply(w, rpc, seqid, response),
                ReadResponseBody::MultiGet(response) => put_reply(w, rpc, seqid, response),
                ReadResponseBody::BatchGet(response) => put_reply(w, rpc, seqid, response),
                ReadResponseBody::Scan(response) => put_reply(w, rpc, seqid, response),
            },
            Self::Write(write) => match write {
                WriteResponse::Update(response) => put_reply(w, rpc, seqid, response),
                WriteResponse::MultiRemove(response) => put_reply(w, rpc, seqid, response),
                WriteResponse::Incr(response) => put_reply(w, rpc, seqid, response),
                WriteResponse::Check(response) => put_reply(w, rpc, seqid, response),
            },
            Self::QueryConfig(response) => put_reply(w, rpc, seqid, response),
            Self::Admin(admin) => match admin {
                AdminResponse::CreateApp(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::DropApp(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::RecallApp(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::ListApps(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::ListNodes(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::ClusterInfo(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::UpdateAppEnv(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::ControlMeta(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::ProposeBalancer(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::DddDiagnose(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::StartManualCompact(response) => put_reply(w, rpc, seqid, response),
                AdminResponse::QueryManualCompact(response) => put_reply(w, rpc, seqid, response),
            },
            Self::Text(text) => put_reply(w, rpc, seqid, text),
            Self::Negotiation(response) => put_reply(w, rpc, seqid, response),
        }
    }

    /// The bookkeeping fields of a data response: (app id, partition index, server).
    pub(super) fn origin(&mut self) -> Option<(&mut i32, &mut i32, &mut String)> {
        macro_rules! origin {
            ($r:ident) => {
                Some((&mut $r.app_id, &mut $r.partition_index, &mut $r.server))
            };
        }
        match self {
            Self::Read(read) => match read {
                ReadResponseBody::Get(r) => origin!(r),
                ReadResponseBody::Ttl(r) => origin!(r),
                ReadResponseBody::SortkeyCount(r) => origin!(r),
                ReadResponseBody::MultiGet(r) => origin!(r),
                ReadResponseBody::BatchGet(r) => origin!(r),
                ReadResponseBody::Scan(r) => origin!(r),
            },
            Self::Write(write) => match write {
                WriteResponse::Update(r) => origin!(r),
                WriteResponse::MultiRemove(r) => origin!(r),
                WriteResponse::Incr(r) => origin!(r),
                WriteResponse::Check(r) => origin!(r),
            },
            Self::QueryConfig(_) | Self::Admin(_) | Self::Text(_) | Self::Negotiation(_) => None,
        }
    }
}
