//! The store in ZooKeeper, one session of it.
//!
//! ```text
//!  ZooKeeperStore --jobs, bounded, in order--> driver (one task) --> zookeeper client --> a server of the list
//!        '-- session state <----------------------'   the next server when this one is lost, same session
//! ```
//!
//! A session survives the loss of connections and servers until the servers (or the client by its own clock)
//! count it as over. A store whose session is over stays over: make a new one, and read everything again.
//!
//! **Reads see everything that was written before them.** A server may lag behind its leader, so each read is
//! preceded by ZooKeeper's `sync`. That is what makes a second look after [`StoreError::OutcomeUnknown`]
//! meaningful: requests of a session are carried out in order, and a request that was lost with its connection
//! is refused once the session has moved to another server.

mod driver;
mod errors;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use zookeeper::{Acls, Client};

use crate::store::{
    DEFAULT_SESSION_TIMEOUT, Datum, MetaStore, Op, OpResult, SessionState, StoreError, StoreFuture, Watch,
    check_ops, check_path,
};
use driver::Job;

/// Calls that may wait for the driver. A meta-server has one write and a few reads under way.
const MAX_QUEUED: usize = 1024;
/// A store that is closed waits this long for the server to confirm.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Who may read and change the nodes that we make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// As the reference makes them.
    #[default]
    Everyone,
    /// Only the user of [`Options::user`]. Nodes that exist keep the access that they have.
    Creator,
}

/// A user of ZooKeeper's `digest` scheme.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "User({})", self.name)
    }
}

/// How to reach ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `[zookeeper] hosts_list`: `host:port,host:port`, port 2181 when it is left out. Names are looked up anew
    /// with every connection. A path behind the last host is put in front of all paths (and made).
    pub hosts: String,
    /// Asked for; the servers bound it (2 to 20 of their ticks), see [`MetaStore::session_timeout`].
    pub session_timeout: Duration,
    pub user: Option<User>,
    pub access: Access,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: String::new(),
            session_timeout: DEFAULT_SESSION_TIMEOUT,
            user: None,
            access: Access::Everyone,
        }
    }
}

/// A session with ZooKeeper. Dropped, it ends the session soon after, if the runtime goes on;
/// [`ZooKeeperStore::end`] waits for that.
#[derive(Debug)]
pub struct ZooKeeperStore {
    described: String,
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<SessionState>,
    session_timeout: Duration,
    stop: Arc<Notify>,
}

impl ZooKeeperStore {
    /// Begins a session. Needs a tokio runtime, on which it lives.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no server has answered within a session timeout: try again.
    /// [`StoreError::Failed`] and [`StoreError::Denied`] when the options are wrong.
    pub async fn connect(options: &Options) -> Result<Self, StoreError> {
        let (hosts, base) = split_hosts(&options.hosts)?;
        if options.access == Access::Creator && options.user.is_none() {
            return Err(StoreError::Failed("nodes for their creator alone need a ZooKeeper user".into()));
        }
        let mut connector = Client::connector().with_session_timeout(options.session_timeout);
        if let Some(user) = &options.user {
            connector = connector.with_auth("digest", format!("{}:{}", user.name, user.password).as_bytes());
        }
        let client = connector.connect(hosts).await.map_err(|error| errors::of_connect(error, options))?;
        let acls = match options.access {
            Access::Everyone => Acls::anyone_all(),
            Access::Creator => Acls::creator_all(),
        };
        let client = driver::enter(client, base, acls).await?;
        let session_timeout = client.session_timeout();
        let described = format!("zookeeper:{}", options.hosts);
        tracing::info!(store = described, ?session_timeout, "session with ZooKeeper begun");
        let (jobs, queue) = mpsc::channel(MAX_QUEUED);
        let (tell, state) = watch::channel(SessionState::Connected);
        let stop = Arc::new(Notify::new());
        tokio::spawn(driver::run(client, acls, queue, tell, stop.clone()));
        Ok(Self { described, jobs, state, session_timeout, stop })
    }

    /// Ends the session, so that its ephemeral nodes are gone at once: not after a session timeout. Calls under
    /// way are finished first; later ones are answered with [`StoreError::SessionOver`].
    pub async fn end(&self) {
        self.stop.notify_one();
        let mut state = self.state.clone();
        // An error means that the driver is gone, and the session with it.
        let _ = state.wait_for(|state| *state == SessionState::Over).await;
    }

    fn call<T: Send + 'static>(
        &self,
        checked: Result<(), StoreError>,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> StoreFuture<T> {
        let (answer, answered) = oneshot::channel();
        let sent = checked.and_then(|()| {
            self.jobs.try_send(job(answer)).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    StoreError::Unavailable("too many calls wait for ZooKeeper".into())
                }
                mpsc::error::TrySendError::Closed(_) => StoreError::SessionOver,
            })
        });
        Box::pin(async move {
            sent?;
            answered.await.unwrap_or(Err(StoreError::SessionOver))
        })
    }
}

impl MetaStore for ZooKeeperStore {
    fn get(&self, path: &str) -> StoreFuture<Option<Datum>> {
        self.call(check_path(path), |answer| Job::Get(path.into(), answer))
    }

    fn children(&self, path: &str) -> StoreFuture<Vec<String>> {
        self.call(check_path(path), |answer| Job::Children(path.into(), answer))
    }

    /// Not a snapshot: others may write in between.
    fn get_all(&self, paths: Vec<String>) -> StoreFuture<Vec<Option<Datum>>> {
        let checked = paths.iter().try_for_each(|path| check_path(path));
        self.call(checked, |answer| Job::GetAll(paths, answer))
    }

    fn multi(&self, ops: Vec<Op>) -> StoreFuture<Vec<OpResult>> {
        self.call(check_ops(&ops), |answer| Job::Multi(ops, answer))
    }

    fn get_watched(&self, path: &str) -> StoreFuture<(Option<Datum>, Watch)> {
        self.call(check_path(path), |answer| Job::GetWatched(path.into(), answer))
    }

    fn children_watched(&self, path: &str) -> StoreFuture<(Vec<String>, Watch)> {
        self.call(check_path(path), |answer| Job::ChildrenWatched(path.into(), answer))
    }

    fn session(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    fn describe(&self) -> String {
        self.described.clone()
    }
}

/// `h1:2181,h2/base` into hosts and base (empty, or `/a/b`). Says what is wrong; the client would only say that
/// nobody answers.
fn split_hosts(list: &str) -> Result<(&str, &str), StoreError> {
    let wrong = |why: String| StoreError::Failed(format!("ZooKeeper hosts {list:?}: {why}"));
    let (hosts, base) = match list.find('/') {
        Some(at) => list.split_at(at),
        None => (list, ""),
    };
    let base = if base == "/" { "" } else { base };
    if !base.is_empty() && check_path(base).is_err() {
        return Err(wrong(format!("{base:?} is no path: /a/b")));
    }
    for host in hosts.split(',') {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, port),
            _ => (host, "2181"),
        };
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(wrong(format!("{host:?}: {port:?} is no port")));
        }
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '%') {
            return Err(wrong(format!("{host:?} is no host:port")));
        }
    }
    Ok((hosts, base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_operators_write_them() {
        for (list, want) in [
            ("a:2181", ("a:2181", "")),
            ("a.example,10.0.0.1:2182,[::1]:2183", ("a.example,10.0.0.1:2182,[::1]:2183", "")),
            ("[::1]", ("[::1]", "")),
            ("a:1,b:2/", ("a:1,b:2", "")),
            ("a:1,b:2/base/x", ("a:1,b:2", "/base/x")),
        ] {
            assert_eq!(split_hosts(list), Ok(want));
        }
        for (list, why) in [
            ("", "is no host:port"),
            ("a:1,", "is no host:port"),
            ("a:1, b:2", "is no host:port"),
            ("a:x", "\"x\" is no port"),
            ("a:0", "\"0\" is no port"),
            ("%{zk.server.list}", "is no host:port"),
            ("a:1/base/", "is no path"),
        ] {
            let told = split_hosts(list).unwrap_err().to_string();
            assert!(told.contains(why), "{list:?}: {told}");
        }
    }

    #[tokio::test]
    async fn wrong_options_are_told_at_once() {
        let options = Options { hosts: "a:1".into(), access: Access::Creator, ..Options::default() };
        let error = ZooKeeperStore::connect(&options).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Failed(why) if why.contains("need a ZooKeeper user")),
            "{error}"
        );
        let user = User { name: "meta".into(), password: "secret".into() };
        assert_eq!(format!("{user:?}"), "User(meta)");
    }

    #[tokio::test]
    async fn nobody_there_is_told_within_a_session_timeout() {
        // A port of our own that nobody listens on: bound, not listening.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let hosts = format!("127.86.3.4:{}", socket.local_addr().unwrap().port());
        let session_timeout = Duration::from_millis(300);
        let options = Options { hosts: hosts.clone(), session_timeout, ..Options::default() };
        let error = ZooKeeperStore::connect(&options).await.unwrap_err();
        assert!(matches!(&error, StoreError::Unavailable(why) if why.contains(&hosts)), "{error}");
    }
}
