//! The task that owns the client: jobs in, in order; their answers and the session's state out.
//!
//! The client sends a request when its method is called and borrows itself while it waits, hence a task that
//! holds both. Requests of a session are answered in order, so what is started in order is done in order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{self, FuturesUnordered};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use zookeeper::{Acls, Client, CreateMode, Error, MultiWriteResult, OneshotWatcher};

use crate::store::{Datum, Mode, Op, OpResult, SessionState, StoreError, Watch};
use crate::zk_store::{CLOSE_WITHIN, errors};

/// Jobs whose answers are awaited at a time; more wait in the queue.
const MAX_UNDER_WAY: usize = 64;
/// Reads of one [`Job::GetAll`] under way: enough to hide the round trip (3,000 took 0.26 s), and few enough
/// that their answers (MAX_NODE_BYTES each at worst, a few hundred bytes usually) do not pile up.
const READS_UNDER_WAY: usize = 256;

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

pub enum Job {
    Get(String, Answer<Option<Datum>>),
    Children(String, Answer<Vec<String>>),
    GetAll(Vec<String>, Answer<Vec<Option<Datum>>>),
    Multi(Vec<Op>, Answer<Vec<OpResult>>),
    GetWatched(String, Answer<(Option<Datum>, Watch)>),
    ChildrenWatched(String, Answer<(Vec<String>, Watch)>),
}

/// Puts `base` in front of all paths of the client, and makes it.
pub async fn enter(client: Client, base: &str, acls: Acls<'static>) -> Result<Client, StoreError> {
    if base.is_empty() {
        return Ok(client);
    }
    client
        .mkdir(base, &CreateMode::Persistent.with_acls(acls))
        .await
        .map_err(|error| errors::of_read(error, base))?;
    client.chroot(base).map_err(|_| StoreError::BadPath(base.into()))
}

/// Runs until the store is dropped or `stop` is called; then ends the session.
pub async fn run(
    client: Client,
    acls: Acls<'static>,
    mut queue: mpsc::Receiver<Job>,
    tell: watch::Sender<SessionState>,
    stop: Arc<Notify>,
) {
    let mut states = client.state_watcher();
    tell.send_replace(state(client.state()));
    {
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                // The state first: what is started is judged by it.
                biased;
                new = states.changed() => {
                    let new = state(new);
                    if tell.send_replace(new) != new {
                        tracing::info!(state = ?new, "session with ZooKeeper");
                    }
                }
                () = stop.notified(), if open => open = false,
                job = queue.recv(), if open && under_way.len() < MAX_UNDER_WAY => match job {
                    Some(job) => under_way.push(start(&client, acls, job)),
                    None => open = false,
                },
                Some(()) = under_way.next() => {}
            }
        }
    }
    drop(client);
    let closed = async { while state(states.changed().await) != SessionState::Over {} };
    // The server may be gone; then it ends the session by itself.
    let _ = timeout(CLOSE_WITHIN, closed).await;
    tell.send_replace(SessionState::Over);
}

fn state(state: zookeeper::SessionState) -> SessionState {
    use zookeeper::SessionState::{
        AuthFailed, Closed, ConnectedReadOnly, Disconnected, Expired, SyncConnected,
    };
    match state {
        SyncConnected => SessionState::Connected,
        // Never asked for: a read-only server has lost its leader.
        Disconnected | ConnectedReadOnly => SessionState::Disconnected,
        Expired | AuthFailed | Closed => SessionState::Over,
    }
}

/// Sends the job's requests before it returns; the future waits for the answers.
fn start<'c>(client: &'c Client, acls: Acls<'static>, job: Job) -> BoxFuture<'c, ()> {
    match (state(client.state()), job) {
        (SessionState::Connected, Job::Get(path, answer)) => reply(answer, get(client, path)),
        (SessionState::Connected, Job::Children(path, answer)) => reply(answer, children(client, path)),
        (SessionState::Connected, Job::GetAll(paths, answer)) => reply(answer, get_all(client, paths)),
        (SessionState::Connected, Job::Multi(ops, answer)) => reply(answer, multi(client, acls, ops)),
        (SessionState::Connected, Job::GetWatched(path, answer)) => reply(answer, get_watched(client, path)),
        (SessionState::Connected, Job::ChildrenWatched(path, answer)) => {
            reply(answer, children_watched(client, path))
        }
        // Not sent: the client would keep it, and do it at a time when nobody reckons with it any more.
        (SessionState::Disconnected, job) => refuse(job, StoreError::Unavailable("not connected".into())),
        (SessionState::Over, job) => refuse(job, StoreError::SessionOver),
    }
}

fn reply<'c, T: Send + 'c>(
    answer: Answer<T>,
    call: impl Future<Output = Result<T, StoreError>> + Send + 'c,
) -> BoxFuture<'c, ()> {
    Box::pin(async move {
        // Who asked may be gone; what was done stands.
        let _ = answer.send(call.await);
    })
}

fn refuse<'c>(job: Job, error: StoreError) -> BoxFuture<'c, ()> {
    fn send<T>(answer: Answer<T>, error: StoreError) {
        let _ = answer.send(Err(error));
    }
    match job {
        Job::Get(_, answer) => send(answer, error),
        Job::Children(_, answer) => send(answer, error),
        Job::GetAll(_, answer) => send(answer, error),
        Job::Multi(_, answer) => send(answer, error),
        Job::GetWatched(_, answer) => send(answer, error),
        Job::ChildrenWatched(_, answer) => send(answer, error),
    }
    Box::pin(std::future::ready(()))
}

/// The client notices a lost connection after two fifths of a session timeout. This is for what it does not.
async fn in_time<T>(within: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(within, call).await.unwrap_or(Err(Error::Timeout))
}

fn get<'c>(
    client: &'c Client,
    path: String,
) -> impl Future<Output = Result<Option<Datum>, StoreError>> + Send + use<'c> {
    let synced = client.sync("/");
    let got = client.get_data(&path);
    let within = client.session_timeout();
    async move {
        in_time(within, synced).await.map_err(|error| errors::of_read(error, &path))?;
        datum(in_time(within, got).await, &path)
    }
}

fn datum(got: Result<(Vec<u8>, zookeeper::Stat), Error>, path: &str) -> Result<Option<Datum>, StoreError> {
    match got {
        Ok((bytes, stat)) => Ok(Some(Datum { bytes: bytes.into(), version: stat.version })),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(errors::of_read(error, path)),
    }
}

fn children<'c>(
    client: &'c Client,
    path: String,
) -> impl Future<Output = Result<Vec<String>, StoreError>> + Send + use<'c> {
    let synced = client.sync("/");
    let got = client.get_children(&path);
    let within = client.session_timeout();
    async move {
        let both = async {
            in_time(within, synced).await?;
            in_time(within, got).await
        };
        let (mut names, _) = both.await.map_err(|error| errors::of_read(error, &path))?;
        names.sort_unstable();
        Ok(names)
    }
}

fn get_all<'c>(
    client: &'c Client,
    paths: Vec<String>,
) -> impl Future<Output = Result<Vec<Option<Datum>>, StoreError>> + Send + use<'c> {
    let synced = client.sync("/");
    let within = client.session_timeout();
    async move {
        in_time(within, synced).await.map_err(|error| errors::of_read(error, "/"))?;
        let mut data = Vec::with_capacity(paths.len());
        let mut reads = stream::iter(paths)
            .map(|path| {
                let got = client.get_data(&path);
                async move { datum(in_time(within, got).await, &path) }
            })
            .buffered(READS_UNDER_WAY);
        while let Some(read) = reads.next().await {
            data.push(read?);
        }
        Ok(data)
    }
}

fn multi<'c>(
    client: &'c Client,
    acls: Acls<'static>,
    ops: Vec<Op>,
) -> impl Future<Output = Result<Vec<OpResult>, StoreError>> + Send + use<'c> {
    let mut writer = client.new_multi_writer();
    let written = ops.iter().try_for_each(|op| {
        match op {
            Op::Create { path, bytes, mode } => {
                let mode = match mode {
                    Mode::Persistent => CreateMode::Persistent,
                    Mode::Ephemeral => CreateMode::Ephemeral,
                    Mode::EphemeralSequential => CreateMode::EphemeralSequential,
                };
                writer.add_create(path, bytes, &mode.with_acls(acls))
            }
            Op::Set { path, bytes, version } => writer.add_set_data(path, bytes, *version),
            Op::Delete { path, version } => writer.add_delete(path, *version),
            // -1: any version, but the node must be there.
            Op::Check { path, version } => writer.add_check_version(path, version.unwrap_or(-1)),
        }
        .map_err(|error| errors::of_read(error, op.path()))
    });
    let committed = written.map(|()| writer.commit());
    let within = client.session_timeout();
    async move {
        match timeout(within, committed?).await {
            Ok(Ok(results)) => Ok(results.into_iter().map(result).collect()),
            Ok(Err(error)) => Err(errors::of_multi(error, &ops)),
            Err(_) => Err(errors::of_multi(Error::Timeout.into(), &ops)),
        }
    }
}

fn result(result: MultiWriteResult) -> OpResult {
    match result {
        MultiWriteResult::Create { path, .. } => OpResult::Created(path),
        MultiWriteResult::SetData { stat } => OpResult::Set(stat.version),
        MultiWriteResult::Delete => OpResult::Deleted,
        _ => OpResult::Checked,
    }
}

fn get_watched<'c>(
    client: &'c Client,
    path: String,
) -> impl Future<Output = Result<(Option<Datum>, Watch), StoreError>> + Send + use<'c> {
    // The watch first: a change between the two is told. It also waits for a node that is not there.
    let watched = client.check_and_watch_stat(&path);
    let synced = client.sync("/");
    let got = client.get_data(&path);
    let within = client.session_timeout();
    async move {
        let both = async {
            let (_, watcher) = in_time(within, watched).await?;
            in_time(within, synced).await?;
            Ok(watcher)
        };
        let watcher = both.await.map_err(|error| errors::of_read(error, &path))?;
        let datum = datum(in_time(within, got).await, &path)?;
        Ok((datum, watch_of(watcher)))
    }
}

fn children_watched<'c>(
    client: &'c Client,
    path: String,
) -> impl Future<Output = Result<(Vec<String>, Watch), StoreError>> + Send + use<'c> {
    let synced = client.sync("/");
    let got = client.get_and_watch_children(&path);
    let within = client.session_timeout();
    async move {
        let both = async {
            in_time(within, synced).await?;
            in_time(within, got).await
        };
        let (mut names, _, watcher) = both.await.map_err(|error| errors::of_read(error, &path))?;
        names.sort_unstable();
        Ok((names, watch_of(watcher)))
    }
}

/// Fires also when the session ends.
fn watch_of(watcher: OneshotWatcher) -> Watch {
    let (mut fire, fired) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = watcher.changed() => drop(fire.send(())),
            // Nobody waits any more; dropped, the watcher takes itself off the server.
            () = fire.closed() => {}
        }
    });
    Watch(fired)
}
