use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pegasus_onebox::{Cluster, Options};

/// A debug build on a machine that also compiles; some seconds are the rule.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);

static TURN: Mutex<()> = Mutex::new(());

/// A healthy cluster. Its processes end with it, its files stay when the test fails.
#[derive(Debug)]
pub struct TestCluster {
    // Dropped in this order: the next test starts when these processes have ended.
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl TestCluster {
    /// Waits for its turn, starts the processes and waits until table `temp` has all replicas.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn start(options: Options) -> Self {
        // A test that has failed says nothing about the next one.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster::start(options).expect("the cluster starts");
        cluster.wait_healthy(HEALTHY_WITHIN).expect("the cluster becomes healthy");
        Self { cluster, _turn: turn }
    }

    /// A client with patience for a fail-over.
    ///
    /// # Panics
    /// When the meta-server does not answer.
    pub async fn client(&self) -> pegasus_client::Cluster {
        pegasus_client::Cluster::connect(&self.metas()).await.expect("the meta-server answers")
    }

    /// Table `temp`.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn table(&self) -> pegasus_client::Table {
        let table = self.client().await.table("temp").await.expect("table temp is there");
        table.with_timeout(Duration::from_secs(20))
    }

    /// Waits until all is well again after a fault.
    ///
    /// # Panics
    /// When it does not come about.
    pub fn heal(&self) {
        self.wait_healthy(HEALTHY_WITHIN).expect("the cluster becomes healthy again");
    }

    /// Names of the replica-servers.
    pub fn replicas(&self) -> Vec<String> {
        let names = self.members().iter().map(|member| member.name.clone());
        names.filter(|name| name.starts_with("replica")).collect()
    }
}

impl DerefMut for TestCluster {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

impl Deref for TestCluster {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// Runs a test's future with two threads.
///
/// # Panics
/// When there is no runtime to be had.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime").block_on(future)
}

/// A number from the environment, to run a test longer than `make test` does.
///
/// # Panics
/// When it is no such number.
pub fn env_or<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| match text.parse() {
        Ok(value) => value,
        Err(_) => panic!("{name}={text}: expected a number"),
    })
}
