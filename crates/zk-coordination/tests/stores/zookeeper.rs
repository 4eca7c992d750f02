//! One real server: the suite, access, a base path, the server gone and back, a session that ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pegasus_onebox::ZooKeeper;
use pegasus_zk_coordination::zk_store::{Access, Options, User};
use pegasus_zk_coordination::{MetaStore, Mode, Op, SessionState, StoreError, ZooKeeperStore};

use crate::suite;

/// Of everything that a busy machine may take its time for.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn options(hosts: &str, session_ms: u64) -> Options {
    Options { hosts: hosts.into(), session_timeout: Duration::from_millis(session_ms), ..Options::default() }
}

/// The first connections to a young server may be refused.
pub async fn connect(options: &Options) -> ZooKeeperStore {
    let begun = Instant::now();
    loop {
        match ZooKeeperStore::connect(options).await {
            Ok(store) => return store,
            Err(StoreError::Unavailable(why)) if begun.elapsed() < PATIENCE => eprintln!("again: {why}"),
            Err(error) => panic!("{error}"),
        }
    }
}

pub async fn wait_for(store: &dyn MetaStore, wanted: SessionState) {
    let mut session = store.session();
    let reached = session.wait_for(|state| *state == wanted);
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never {wanted:?}")).unwrap();
}

/// One server for all, one after the other: starting a JVM is what takes time here.
#[tokio::test]
async fn zookeeper() {
    let zookeeper = ZooKeeper::start(1).unwrap();
    zookeeper.wait_serving(PATIENCE).unwrap();
    let hosts = &zookeeper.hosts();
    let patient = options(hosts, 30_000);

    let first = Arc::new(connect(&patient).await);
    let second = Arc::new(connect(&patient).await);
    suite::of_one_session(&(first.clone() as suite::Store)).await;
    let closing = connect(&patient).await;
    assert_eq!(closing.session_timeout(), Duration::from_secs(30));
    drop(first);
    let (dropped, end) = closing_store(closing);
    suite::of_two_sessions(dropped, second.clone(), end).await;

    large_metadata(&*second).await;
    base_path(hosts).await;
    access(hosts).await;
    gone_and_back(&zookeeper, &patient).await;
    silent_for_longer_than_a_session(&zookeeper).await;
}

/// A store that can be closed while others still hold it: what they see then is what counts.
fn closing_store(store: ZooKeeperStore) -> (suite::Store, impl Future<Output = ()>) {
    let store = Arc::new(store);
    let end = {
        let store = store.clone();
        async move { store.end().await }
    };
    (store, end)
}

/// 10,000 partitions as a leader loads them.
async fn large_metadata(store: &dyn MetaStore) {
    store.ensure_path("/large").await.unwrap();
    let path = |n: usize| format!("/large/{n}");
    let content = "x".repeat(450);
    let begun = Instant::now();
    for first in (0..10_000).step_by(1000) {
        store
            .multi((first..first + 1000).map(|n| Op::create(path(n), content.clone())).collect())
            .await
            .unwrap();
    }
    let written = begun.elapsed();
    let begun = Instant::now();
    let data = store.get_all((0..10_000).map(path).collect()).await.unwrap();
    assert!(data.iter().all(Option::is_some));
    println!("10,000 nodes of 450 bytes: written in {written:?}, read in {:?}", begun.elapsed());
}

/// A path behind the hosts is made and stands in front of everything.
async fn base_path(hosts: &str) {
    let based = connect(&options(&format!("{hosts}/some/base"), 30_000)).await;
    let based: &dyn MetaStore = &based;
    based.ensure_path("/a/b").await.unwrap();
    let sequential = Op::Create { path: "/a/n".into(), bytes: "".into(), mode: Mode::EphemeralSequential };
    let created = format!("{:?}", based.multi(vec![sequential]).await.unwrap());
    assert!(created.contains("\"/a/n00000"), "{created}");
    let plain = connect(&options(hosts, 30_000)).await;
    assert!(plain.get("/some/base/a/b").await.unwrap().is_some());
    assert_eq!(plain.get("/a/b").await, Ok(None));
}

/// Nodes of their creator alone.
async fn access(hosts: &str) {
    let user = |password: &str| Options {
        user: Some(User { name: "meta".into(), password: password.into() }),
        access: Access::Creator,
        ..options(hosts, 30_000)
    };
    let ours = connect(&user("secret")).await;
    let ours: &dyn MetaStore = &ours;
    ours.create("/ours", "1".into()).await.unwrap();
    for stranger in [options(hosts, 30_000), user("guessed")] {
        let stranger = connect(&stranger).await;
        let stranger: &dyn MetaStore = &stranger;
        assert_eq!(stranger.get("/ours").await, Err(StoreError::Denied("/ours".into())));
        assert_eq!(stranger.set("/ours", "2".into(), 0).await, Err(StoreError::Denied("/ours".into())));
    }
    let again = connect(&user("secret")).await;
    assert_eq!((&again as &dyn MetaStore).set("/ours", "2".into(), 0).await, Ok(1));
}

/// The server is killed and comes back within the session: it goes on, with its ephemerals and watches.
async fn gone_and_back(zookeeper: &ZooKeeper, options: &Options) {
    let store = connect(options).await;
    let store: &dyn MetaStore = &store;
    let mine = Op::Create { path: "/mine".into(), bytes: "".into(), mode: Mode::Ephemeral };
    store.multi(vec![mine]).await.unwrap();
    let (_, watch) = store.get_watched("/mine").await.unwrap();
    zookeeper.kill(1).unwrap();
    wait_for(store, SessionState::Disconnected).await;
    let refused = store.get("/mine").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let refused = store.set("/mine", "x".into(), 0).await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable(_))),
        "nothing waits to be done later: {refused:?}"
    );
    zookeeper.start_server(1).unwrap();
    wait_for(store, SessionState::Connected).await;
    assert_eq!(store.get("/mine").await.unwrap().unwrap().version, 0, "the same session, nothing done");
    store.set("/mine", "x".into(), 0).await.unwrap();
    tokio::time::timeout(PATIENCE, watch.changed()).await.expect("the watch survives the reconnect");
}

/// A server that says nothing: told long before the end, then the session is over and a new one begins.
async fn silent_for_longer_than_a_session(zookeeper: &ZooKeeper) {
    let options = options(&zookeeper.hosts(), 2000);
    let store = connect(&options).await;
    let mine = Op::Create { path: "/silent".into(), bytes: "".into(), mode: Mode::Ephemeral };
    store.multi(vec![mine]).await.unwrap();
    zookeeper.pause(1).unwrap();
    let unanswered = store.multi(vec![Op::create("/unanswered", "")]);
    wait_for(&store, SessionState::Disconnected).await;
    let unanswered = unanswered.await;
    assert!(matches!(unanswered, Err(StoreError::OutcomeUnknown(_))), "{unanswered:?}");
    wait_for(&store, SessionState::Over).await;
    assert_eq!(store.get("/silent").await, Err(StoreError::SessionOver));
    zookeeper.resume(1).unwrap();
    let store = connect(&options).await;
    let begun = Instant::now();
    while store.get("/silent").await.unwrap().is_some() {
        assert!(begun.elapsed() < PATIENCE, "the ephemeral of an ended session stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
