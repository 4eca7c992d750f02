//! Three real servers: any one of them may fail; leaders follow one another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pegasus_onebox::ZooKeeper;
use pegasus_zk_coordination::election::{Options, run};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{
    Election, FencedStore, Leadership, MetaStore, Op, SessionState, StoreError, ZooKeeperStore,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::zookeeper::{PATIENCE, connect, options, wait_for};

const SESSION_MS: u64 = 4000;

/// A meta-server as far as the election sees it.
struct Meta {
    store: Arc<ZooKeeperStore>,
    news: watch::Receiver<Leadership>,
    running: JoinHandle<()>,
}

impl Meta {
    async fn start(hosts: &str, me: &str) -> Self {
        let store = Arc::new(connect(&options(hosts, SESSION_MS)).await);
        let election = Election::new(Options {
            tree: Tree::new("/pegasus/c"),
            lock_root: String::new(),
            me: me.parse().unwrap(),
            session_ms: SESSION_MS,
        });
        let (tell, news) = watch::channel(Leadership::Standby { leader: None });
        let running = tokio::spawn({
            let store = store.clone();
            async move { run(&*store, election, &tell, std::future::pending()).await }
        });
        Self { store, news, running }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&Leadership) -> bool) -> Leadership {
        let reached = self.news.wait_for(|leadership| wanted(leadership));
        tokio::time::timeout(PATIENCE, reached)
            .await
            .unwrap_or_else(|_| panic!("{what}: never"))
            .unwrap()
            .clone()
    }

    async fn leads(&mut self) -> FencedStore {
        let leadership = self.until("leads", |l| l.leading().is_some()).await;
        FencedStore::new(self.store.clone(), leadership.leading().unwrap().clone())
    }
}

/// Writes until it succeeds; what is in doubt is looked up.
async fn write(store: &dyn MetaStore, path: &str) {
    let begun = Instant::now();
    loop {
        match store.create(path, "".into()).await {
            Ok(()) | Err(StoreError::NodeExists(_)) => return,
            Err(StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_)) if begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ensemble() {
    let zookeeper = ZooKeeper::start(3).unwrap();
    zookeeper.wait_serving(PATIENCE).unwrap();
    let hosts = &zookeeper.hosts();

    // Every server in turn: killed and started again, paused and resumed. One session, nothing lost.
    let keeper = connect(&options(hosts, 15_000)).await;
    let store: &dyn MetaStore = &keeper;
    store.create("/turns", "".into()).await.unwrap();
    for number in zookeeper.numbers() {
        zookeeper.kill(number).unwrap();
        write(store, &format!("/turns/killed{number}")).await;
        zookeeper.start_server(number).unwrap();
        zookeeper.wait_serving(PATIENCE).unwrap();
        zookeeper.pause(number).unwrap();
        write(store, &format!("/turns/paused{number}")).await;
        zookeeper.resume(number).unwrap();
        zookeeper.wait_serving(PATIENCE).unwrap();
    }
    let turns = store.children("/turns").await.unwrap();
    assert_eq!(turns, ["killed1", "killed2", "killed3", "paused1", "paused2", "paused3"]);
    assert_ne!(*store.session().borrow(), SessionState::Over);

    // A leader whose process stops saying anything.
    let mut one = Meta::start(hosts, "m1:34601").await;
    let reign = one.leads().await;
    assert_eq!(reign.multi(vec![Op::create("/pegasus/c/by1", "")]).await.map(drop), Ok(()));
    let mut two = Meta::start(hosts, "m2:34601").await;
    let follows = Leadership::Standby { leader: Some("m1:34601".parse().unwrap()) };
    two.until("follows", |l| *l == follows).await;
    one.running.abort();
    drop(one.news);
    one.store.end().await;
    let begun = Instant::now();
    let second = two.leads().await;
    println!("the next leader after {:?} (the last one ended cleanly)", begun.elapsed());
    assert!(second.fence().epoch > reign.fence().epoch);
    assert!(reign.multi(vec![Op::create("/pegasus/c/late", "")]).await.is_err());

    // All of ZooKeeper silent for longer than a session: the leader is suspended before anybody else could lead,
    // then out; when ZooKeeper is back it stands again, and what it wrote in its old reign is refused.
    let leader = zookeeper.leader().unwrap();
    zookeeper.numbers().for_each(|number| zookeeper.pause(number).unwrap());
    let begun = Instant::now();
    two.until("suspended", |l| matches!(l, Leadership::Suspended(_))).await;
    println!("suspended after {:?}", begun.elapsed());
    two.until("over", |l| *l == Leadership::Over).await;
    wait_for(&*two.store, SessionState::Over).await;
    println!("over after {:?}", begun.elapsed());
    zookeeper.numbers().for_each(|number| zookeeper.resume(number).unwrap());
    let begun = Instant::now();
    let mut again = Meta::start(hosts, "m2:34601").await;
    let third = again.leads().await;
    println!("leads again {:?} after ZooKeeper is back (its leader was server {leader})", begun.elapsed());
    assert!(third.fence().epoch > second.fence().epoch);
    let stale = FencedStore::new(again.store.clone(), second.fence().clone());
    assert_eq!(stale.multi(vec![Op::create("/pegasus/c/late", "")]).await, Err(StoreError::NotLeader));
    write(&third, "/pegasus/c/by3").await;
    let store: &dyn MetaStore = &*again.store;
    let names = store.children("/pegasus/c").await.unwrap();
    assert_eq!(names, ["by1", "by3", "leader_epoch", "lock"]);
}
