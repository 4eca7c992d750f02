//! Drives one partition, and compares every answer.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use futures::poll;
use pegasus_client::{Cluster, Refusal};
use pegasus_rpc::wire::thrift::Writer;
use pegasus_rpc::wire::{CallError, Connection, HeaderVersion, Request, RequestHead, Response};
use pegasus_types::ErrorCode;
use pegasus_types::data::*;

use super::candidates::Candidates;
use super::generate::{Address, Ask, Generator, MAX_WRITE_BYTES, Op};
use super::moment::{Window, epoch_now};
use super::partition::Difference;
use super::rows::encode;

/// A debug build on a machine that also compiles may take its time; a kill is noticed at once.
const CALL_WITHIN: Duration = Duration::from_secs(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Longer than every restart and fail-over.
const SERVED_WITHIN: Duration = Duration::from_secs(180);
/// Scanners are cleared when there are more, long before a server does that.
const MAX_SCANNERS: usize = 24;
/// Scanners live for five minutes at a server; ours are cleared long before.
const SCANNERS_FOR: Duration = Duration::from_secs(100);
/// Requests and answers that a difference is told with.
const HISTORY: usize = 12;
/// Of each of them, and of what was wanted.
const TOLD_CHARS: usize = 1000;
const LONGEST_RUN: usize = 20;
/// Bursts between looks at the whole partition.
const LOOK_EVERY: u64 = 200;
/// Length of the v0 header, which counts for no write.
const HEADER_BYTES: usize = 48;
/// In place of an error number: the answer had none.
pub const REFUSED: i32 = -1;

/// What all lanes share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Operations that were compared.
    pub done: AtomicU64,
    /// Odd while all processes are being killed; even numbers count the lives of the cluster.
    pub life: AtomicU64,
    /// When each lane knew for the first time in a life that its partition is served: life and time.
    pub served: Mutex<Vec<(u64, Instant)>>,
}

/// What came of a lane.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Compared answers, by operation and error.
    pub compared: BTreeMap<(&'static str, i32), u64>,
    /// Refusals that tell that the partition is not served at the moment.
    pub refused: BTreeMap<ErrorCode, u64>,
    /// Writes of which nobody knew at first, and how many of them turned out to be executed.
    pub unclear: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// How often a lane had to make sure where it stands.
    pub doubts: u64,
    /// Looks at the whole partition.
    pub looks: u64,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    server: String,
}

/// A request on its way, with what its answer must be like.
struct Sent {
    op: Op,
    request: Request,
    /// The header error that it must get.
    refusal: Option<ErrorCode>,
}

type Answer = Result<Response, CallError>;

#[derive(Debug)]
pub struct Lane {
    cluster: Cluster,
    shared: Arc<Shared>,
    table: String,
    app_id: i32,
    index: i32,
    generator: Generator,
    candidates: Candidates,
    link: Option<Link>,
    life: u64,
    served_in: Option<u64>,
    /// Ids that are good for nothing any more.
    spent: VecDeque<i64>,
    scanners_since: Instant,
    last_decree: i64,
    history: VecDeque<(Op, Request, Answer)>,
    pub counts: Counts,
}

impl Lane {
    pub fn new(
        cluster: Cluster,
        shared: Arc<Shared>,
        (table, app_id, index): (&str, i32, i32),
        generator: Generator,
        candidates: Candidates,
    ) -> Self {
        Self {
            cluster,
            shared,
            table: table.to_owned(),
            app_id,
            index,
            generator,
            candidates,
            link: None,
            life: 0,
            served_in: None,
            spent: VecDeque::new(),
            scanners_since: Instant::now(),
            last_decree: 0,
            history: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Runs until `quota` of its operations were compared.
    ///
    /// # Panics
    /// At the first difference.
    pub async fn run(mut self, quota: u64) -> Counts {
        let (mut done, mut bursts) = (0, 0);
        while done < quota {
            self.notice_kill().await;
            if self.link.is_none() {
                self.make_sure().await;
            }
            let ops = self.generator.burst(epoch_now());
            let compared = self.burst(ops).await;
            if self.link.is_some() {
                self.generator.proceed();
            }
            done += compared;
            self.shared.done.fetch_add(compared, Ordering::Relaxed);
            bursts += 1;
            if bursts % LOOK_EVERY == 0 && self.link.is_some() {
                self.look().await;
            }
            if self.candidates.scanners().len() > MAX_SCANNERS || self.scanners_since.elapsed() > SCANNERS_FOR
            {
                self.clear_scanners().await;
            }
        }
        // What was done last is looked at too.
        loop {
            self.notice_kill().await;
            self.make_sure().await;
            if self.link.is_some() {
                return self.counts;
            }
        }
    }

    /// A new life of the cluster begins: its servers know no scanner of the last one.
    async fn notice_kill(&mut self) {
        loop {
            let life = self.shared.life.load(Ordering::Acquire);
            if life == self.life {
                return;
            }
            if life.is_multiple_of(2) {
                self.life = life;
                self.link = None;
                self.spent.extend(self.candidates.scanners());
                self.candidates.forget_scanners();
                return;
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// Finds the primary, and what the partition holds: a write that is acknowledged tells that all before it are
    /// decided, and then everything is read. The link is None when that went wrong, too.
    async fn make_sure(&mut self) {
        self.counts.doubts += 1;
        self.candidates.doubt_scanners();
        let begun = Instant::now();
        while let Err(why) = self.connect().await {
            assert!(begun.elapsed() < SERVED_WITHIN, "{}: not served for too long: {why}", self.name());
            tokio::time::sleep(RETRY_AFTER).await;
        }
        let nobody = encode(b"nobody has this one", b"either").unwrap_or_default();
        let barrier = Op::plain(Ask::Write(WriteRequest::Remove { key: nobody }));
        loop {
            self.burst(vec![barrier.clone()]).await;
            if self.link.is_some() {
                break;
            }
            // The processes may be dead for good reason; then this begins again.
            if self.shared.life.load(Ordering::Acquire) != self.life {
                return;
            }
            assert!(begun.elapsed() < SERVED_WITHIN, "{}: no write for too long", self.name());
            tokio::time::sleep(RETRY_AFTER).await;
            let _ = self.connect().await;
        }
        self.look().await;
        if self.link.is_some() && self.served_in != Some(self.life) {
            self.served_in = Some(self.life);
            let mut served = self.shared.served.lock().unwrap_or_else(PoisonError::into_inner);
            served.push((self.life, Instant::now()));
        }
    }

    async fn connect(&mut self) -> Result<(), String> {
        self.link = None;
        let partitions = self.cluster.partitions(&self.table).await.map_err(|error| error.to_string())?;
        let index = usize::try_from(self.index).expect("an index");
        let config = partitions.get(index).ok_or("no such partition")?;
        let primary = config.primary.as_ref().ok_or("no primary")?;
        let address: SocketAddr = primary.as_str().parse().map_err(|_| "a primary that is no address")?;
        let connection =
            Connection::connect(address, CONNECT_WITHIN).await.map_err(|error| error.to_string())?;
        self.link = Some(Link { connection, server: primary.to_string() });
        Ok(())
    }

    /// Reads the whole partition, and so compares it with the candidates.
    async fn look(&mut self) {
        self.counts.looks += 1;
        let everything = ReadRequest::GetScanner(GetScannerRequest {
            start_key: Bytes::from_static(b"\0\0"),
            stop_key: Bytes::from_static(b"\xff\xff\xff\xff"),
            start_inclusive: true,
            stop_inclusive: true,
            return_expire_ts: Some(true),
            ..Default::default()
        });
        let before = self.candidates.scanners();
        let mut ask = Ask::Read(everything);
        loop {
            self.burst(vec![Op::plain(ask)]).await;
            if self.link.is_none() {
                return;
            }
            let scanners = self.candidates.scanners();
            match scanners.iter().find(|id| !before.contains(id)) {
                Some(id) => ask = Ask::Read(ReadRequest::Scan(ScanRequest { context_id: *id })),
                None => return,
            }
        }
    }

    async fn clear_scanners(&mut self) {
        let clear = |id| Op::plain(Ask::Read(ReadRequest::ClearScanner { context_id: id }));
        let all = self.candidates.scanners().into_iter().map(clear).collect();
        self.burst(all).await;
        self.scanners_since = Instant::now();
    }

    fn name(&self) -> String {
        format!("partition {} of table {}", self.index, self.table)
    }

    /// Sends all at once, and compares what comes back; how many were compared. The link is None afterwards when
    /// something was not answered as usual.
    async fn burst(&mut self, ops: Vec<Op>) -> u64 {
        let Some(Link { connection, server }) = self.link.take() else { return 0 };
        let sent: Vec<Sent> = ops.into_iter().map(|op| self.prepare(op)).collect();
        let is_mixed = is_mixed(&sent);
        let from = epoch_now();
        let mut calls = Vec::new();
        for one in &sent {
            if is_mixed {
                tokio::time::sleep(one.op.pause).await;
            }
            let mut call = Box::pin(call(&connection, self.head(&one.op), &one.request));
            // The first poll puts the request behind those before it.
            match poll!(call.as_mut()) {
                std::task::Poll::Ready(answer) => calls.push((Some(answer), None)),
                std::task::Poll::Pending => calls.push((None, Some(call))),
            }
        }
        let answers = join_all(calls.into_iter().map(async |(answer, call)| match (answer, call) {
            (Some(answer), _) => answer,
            (None, Some(call)) => call.await,
            (None, None) => Err(CallError::Timeout),
        }))
        .await;
        let window = Window { from, to: epoch_now() };
        // While it is being killed a server may still answer, and what it says is true. But not its scanners.
        let is_as_usual = self.shared.life.load(Ordering::Acquire) == self.life;
        if !is_as_usual {
            self.candidates.doubt_scanners();
        }
        let (mut compared, mut is_in_order) = (0, is_as_usual);
        // After each write of the burst, and before the first.
        let mut states = if is_mixed { vec![self.candidates.clone()] } else { Vec::new() };
        let mut reads = Vec::new();
        for (one, answer) in sent.iter().zip(answers) {
            self.remember(one, &answer);
            if is_mixed && matches!(one.request, Request::Read(_)) {
                reads.push((one, answer));
                continue;
            }
            match self.compare(one, &answer, &server, window) {
                Compared::Yes => compared += 1,
                Compared::No => is_in_order = false,
            }
            if is_mixed {
                states.push(self.candidates.clone());
            }
        }
        if is_in_order {
            compared += self.compare_among_writes(reads, &states, &server, window);
        }
        self.candidates.end_burst();
        if is_in_order {
            self.link = Some(Link { connection, server });
        } else {
            // Among them may be one that is not cleared after all.
            self.spent.clear();
        }
        compared
    }

    /// Reads that were sent among writes see a beginning of these, each write whole. How many were compared.
    fn compare_among_writes(
        &mut self,
        reads: Vec<(&Sent, Answer)>,
        states: &[Candidates],
        server: &str,
        window: Window,
    ) -> u64 {
        let latest = self.candidates.clone();
        let count = reads.len() as u64;
        for (read, answer) in reads {
            let mut wanted = Vec::new();
            let fits = states.iter().any(|state| {
                self.candidates = state.clone();
                match self.judge(read, &answer, server, window) {
                    Ok(_) => true,
                    Err(differences) => {
                        wanted.extend(differences);
                        false
                    }
                }
            });
            if !fits {
                self.differ(read, &answer, wanted);
            }
            self.count(read, &answer);
        }
        self.candidates = latest;
        count
    }

    fn head(&self, op: &Op) -> RequestHead {
        let (app_id, partition_index) = match op.address {
            Address::Partition => (self.app_id, self.index),
            Address::NoSuchTable => (999_999, self.index),
            Address::NoSuchPartition => (self.app_id, 12_345),
            Address::Server => (0, 0),
        };
        let (partition_hash, is_backup) = (op.partition_hash, op.is_backup);
        RequestHead { app_id, partition_index, partition_hash, is_backup, ..Default::default() }
    }

    fn prepare(&self, op: Op) -> Sent {
        let request = match &op.ask {
            Ask::Write(request) => Request::Write(request.clone()),
            Ask::Read(request) => Request::Read(request.clone()),
            Ask::NextPage(pick) => {
                Request::Read(ReadRequest::Scan(ScanRequest { context_id: self.some_scanner(*pick) }))
            }
            Ask::Clear(pick) => {
                Request::Read(ReadRequest::ClearScanner { context_id: self.some_scanner(*pick) })
            }
        };
        let refusal = match op.address {
            Address::NoSuchTable | Address::NoSuchPartition => Some(ErrorCode::ObjectNotFound),
            Address::Server => Some(ErrorCode::HandlerNotFound),
            Address::Partition if is_too_long(&request) => Some(ErrorCode::InvalidData),
            Address::Partition => None,
        };
        Sent { op, request, refusal }
    }

    /// One that is open, or, now and then, one that is not (any more).
    fn some_scanner(&self, pick: u32) -> i64 {
        let open = self.candidates.scanners();
        let nth = |ids: usize| usize::try_from(pick / 16).unwrap_or(0) % ids.max(1);
        let id = match pick % 16 {
            0 => None,
            1..=3 => self.spent.get(nth(self.spent.len())),
            _ => open.get(nth(open.len())),
        };
        id.copied().unwrap_or(i64::from(pick) - 5)
    }

    fn compare(&mut self, sent: &Sent, answer: &Answer, server: &str, window: Window) -> Compared {
        match self.judge(sent, answer, server, window) {
            Ok(compared) => {
                if compared == Compared::Yes {
                    self.count(sent, answer);
                }
                compared
            }
            Err(differences) => self.differ(sent, answer, differences),
        }
    }

    fn judge(
        &mut self,
        sent: &Sent,
        answer: &Answer,
        server: &str,
        window: Window,
    ) -> Result<Compared, Vec<Difference>> {
        match (answer, sent.refusal) {
            (Err(CallError::Refused(Refusal::Code(code))), Some(want)) if *code == want => Ok(Compared::Yes),
            // Never answered.
            (Ok(_), _) if matches!(sent.request, Request::Read(ReadRequest::ClearScanner { .. })) => {
                if sent.refusal.is_none() {
                    self.cleared(sent);
                }
                Ok(Compared::Yes)
            }
            (Ok(response), None) => {
                self.judge_response(sent, response.clone(), server, window)?;
                Ok(Compared::Yes)
            }
            (Err(CallError::Refused(Refusal::Code(code))), _)
                if sent.op.address == Address::Partition && is_passing(*code) =>
            {
                *self.counts.refused.entry(*code).or_default() += 1;
                self.candidates.doubt_scanners();
                Ok(Compared::No)
            }
            (Err(CallError::NotSent(_)), _) => Ok(Compared::No),
            (Err(CallError::Lost(_) | CallError::Timeout), _) => {
                self.counts.lost += 1;
                self.candidates.doubt_scanners();
                if let (Request::Write(request), None) = (&sent.request, sent.refusal) {
                    self.counts.unclear += 1;
                    self.candidates.unclear(request, window);
                }
                Ok(Compared::No)
            }
            (_, Some(code)) => Err(vec![Difference(format!("a refusal: {code}"))]),
            (_, None) => Err(vec![Difference("an answer".to_owned())]),
        }
    }

    fn judge_response(
        &mut self,
        sent: &Sent,
        mut response: Response,
        server: &str,
        window: Window,
    ) -> Result<(), Vec<Difference>> {
        let want = (self.app_id, self.index, server.to_owned());
        if take_origin(&mut response).as_ref() != Some(&want) {
            return Err(vec![Difference(format!("app_id, partition_index and server {want:?}"))]);
        }
        match (&sent.request, response) {
            (Request::Write(request), Response::Write(mut answer)) => {
                let decree = take_decree(&mut answer);
                self.judge_decree(request, decree)?;
                self.candidates.answered_write(request, &answer, decree > 0, window)
            }
            (Request::Read(request), Response::Read(answer)) => {
                if let ReadRequest::Scan(ScanRequest { context_id }) = request {
                    self.spend(*context_id);
                }
                self.candidates.answered_read(request, &answer, window)
            }
            _ => Err(vec![Difference("a response to this request".to_owned())]),
        }
    }

    /// Decrees grow; writes that read nothing may share one.
    fn judge_decree(&mut self, request: &WriteRequest, decree: i64) -> Result<(), Vec<Difference>> {
        if decree == -1 {
            return Ok(());
        }
        let least = if request.is_idempotent() { self.last_decree.max(1) } else { self.last_decree + 1 };
        if decree < least {
            return Err(vec![Difference(format!("a decree of at least {least}"))]);
        }
        self.last_decree = decree;
        Ok(())
    }

    fn cleared(&mut self, sent: &Sent) {
        if let Request::Read(ReadRequest::ClearScanner { context_id }) = &sent.request {
            self.candidates.cleared(*context_id);
            self.spend(*context_id);
        }
    }

    fn spend(&mut self, id: i64) {
        self.spent.push_front(id);
        self.spent.truncate(7);
    }

    fn count(&mut self, sent: &Sent, answer: &Answer) {
        let name = sent.request.rpc().name().trim_start_matches("RPC_RRDB_RRDB_");
        let error = answer.as_ref().map_or(REFUSED, error_of);
        *self.counts.compared.entry((name, error)).or_default() += 1;
    }

    fn remember(&mut self, sent: &Sent, answer: &Answer) {
        self.history.truncate(HISTORY - 1);
        self.history.push_front((sent.op.clone(), sent.request.clone(), answer.clone()));
    }

    fn differ(&self, sent: &Sent, got: &Answer, wanted: Vec<Difference>) -> ! {
        let mut wanted: Vec<_> = wanted.into_iter().map(|difference| shortened(&difference.0)).collect();
        wanted.dedup();
        let history: Vec<_> = self.history.iter().rev().map(|(op, sent, got)| tell(op, sent, got)).collect();
        panic!(
            "a difference in {}\n{}\n--- instead of\n{}\n--- the last requests, this one's burst included\n{}\n",
            self.name(),
            tell(&sent.op, &sent.request, got),
            wanted.join("\nor, in another state that is possible: "),
            history.join("\n"),
        );
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    Yes,
    /// The answer says nothing of the operation.
    No,
}

async fn call(connection: &Connection, head: RequestHead, request: &Request) -> Answer {
    if matches!(request, Request::Read(ReadRequest::ClearScanner { .. })) {
        connection.send(head, request)?;
        // In place of an answer, which there is none of.
        return Ok(Response::Text(String::new()));
    }
    connection.call(head, request, CALL_WITHIN).await
}

/// Refusals that a client repeats: nothing was executed.
fn is_passing(code: ErrorCode) -> bool {
    use ErrorCode::*;
    matches!(code, InvalidState | InactiveState | NotEnoughMember | CapacityExceeded | Busy | ObjectNotFound)
}

fn is_too_long(request: &Request) -> bool {
    let mut frame = BytesMut::new();
    if matches!(request, Request::Write(_)) {
        request.encode(&mut Writer::new(&mut frame), HeaderVersion::V0, &RequestHead::default());
    }
    frame.len() > HEADER_BYTES + MAX_WRITE_BYTES
}

fn take_origin(response: &mut Response) -> Option<(i32, i32, String)> {
    macro_rules! take {
        ($($answer:ident)*) => {
            Some(match response {
                $(Response::Read(ReadResponseBody::$answer(r)) => {
                    (std::mem::take(&mut r.app_id), std::mem::take(&mut r.partition_index), std::mem::take(&mut r.server))
                })*
                Response::Write(WriteResponse::Update(r)) => {
                    (std::mem::take(&mut r.app_id), std::mem::take(&mut r.partition_index), std::mem::take(&mut r.server))
                }
                Response::Write(WriteResponse::MultiRemove(r)) => {
                    (std::mem::take(&mut r.app_id), std::mem::take(&mut r.partition_index), std::mem::take(&mut r.server))
                }
                Response::Write(WriteResponse::Incr(r)) => {
                    (std::mem::take(&mut r.app_id), std::mem::take(&mut r.partition_index), std::mem::take(&mut r.server))
                }
                Response::Write(WriteResponse::Check(r)) => {
                    (std::mem::take(&mut r.app_id), std::mem::take(&mut r.partition_index), std::mem::take(&mut r.server))
                }
                _ => return None,
            })
        };
    }
    take!(Get Ttl SortkeyCount MultiGet BatchGet Scan)
}

fn take_decree(answer: &mut WriteResponse) -> i64 {
    std::mem::take(match answer {
        WriteResponse::Update(r) => &mut r.decree,
        WriteResponse::MultiRemove(r) => &mut r.decree,
        WriteResponse::Incr(r) => &mut r.decree,
        WriteResponse::Check(r) => &mut r.decree,
    })
}

fn error_of(response: &Response) -> i32 {
    match response {
        Response::Read(ReadResponseBody::Get(r)) => r.error,
        Response::Read(ReadResponseBody::Ttl(r)) => r.error,
        Response::Read(ReadResponseBody::SortkeyCount(r)) => r.error,
        Response::Read(ReadResponseBody::MultiGet(r)) => r.error,
        Response::Read(ReadResponseBody::BatchGet(r)) => r.error,
        Response::Read(ReadResponseBody::Scan(r)) => r.error,
        Response::Write(WriteResponse::Update(r)) => r.error,
        Response::Write(WriteResponse::MultiRemove(r)) => r.error,
        Response::Write(WriteResponse::Incr(r)) => r.error,
        Response::Write(WriteResponse::Check(r)) => r.error,
        _ => 0,
    }
}

/// Whether reads stand among writes.
fn is_mixed(sent: &[Sent]) -> bool {
    let reads = sent.iter().filter(|one| matches!(one.request, Request::Read(_))).count();
    (1..sent.len()).contains(&reads)
}

fn tell(op: &Op, request: &Request, got: &Answer) -> String {
    let backup = if op.is_backup { ", as a backup request" } else { "" };
    let (request, got) = (shortened(&format!("{request:?}")), shortened(&format!("{got:?}")));
    format!("{request} (to {:?}{backup})\n  got {got}", op.address)
}

/// For people: runs of one character are counted, and long texts cut.
fn shortened(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut short = String::new();
    for run in chars.chunk_by(|a, b| a == b) {
        match run {
            [char, ..] if run.len() > LONGEST_RUN => short += &format!("{char}{char}..({} of it)", run.len()),
            _ => short.extend(run),
        }
        if short.len() > TOLD_CHARS {
            return format!("{short}.. ({} characters)", chars.len());
        }
    }
    short
}
