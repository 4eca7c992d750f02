use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pegasus_client::{Cluster, CreateTable, Table};
use pegasus_types::Ballot;

use crate::{Known, Load, Seen};

/// Until a table can be made again after a fault, at most. A session and an election on a free machine; a debug build on
/// a busy one takes longer.
pub const TABLES_WITHIN: Duration = Duration::from_secs(90);
/// Operations on data that must go on after each fault.
const PROGRESS: u64 = 30;
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);

/// Faults of meta-servers and of their store, under clients that read and write: how long until a table can be made
/// again, and what the clients have seen.
#[derive(Debug)]
pub struct TablesAgain {
    pub client: Cluster,
    known: Known,
    table: Table,
    /// The highest ballot that was seen of each partition.
    ballots: BTreeMap<i32, Ballot>,
    tables: Vec<String>,
}

impl TablesAgain {
    /// # Panics
    /// Like every other one here, when the cluster does not do what it must.
    pub async fn start(client: Cluster) -> Self {
        let table = client.table("temp").await.expect("table temp is there");
        let table = table.with_timeout(Duration::from_secs(20));
        // Gentle: the machine has few cores for all of this.
        let load = Load { readers: 2, pause: Duration::from_millis(20), ..Load::default() };
        let known = Known::start(&table, load);
        let again = Self { client, known, table, ballots: BTreeMap::new(), tables: Vec::new() };
        again.proceed().await;
        again
    }

    /// Clients get on with their data.
    pub async fn proceed(&self) {
        self.known.proceed(PROGRESS, PROGRESS_WITHIN).await;
    }

    /// Address of the meta-server that leads.
    pub async fn leader(&self) -> String {
        let begun = Instant::now();
        loop {
            if let Ok(info) = self.client.info().await
                && let Some((_, address)) = info.into_iter().find(|(key, _)| key == "primary_meta_server")
            {
                return address;
            }
            assert!(begun.elapsed() < TABLES_WITHIN, "nobody leads");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes a table; how long that took since `fault`.
    pub async fn after(&mut self, what: &str, fault: Instant) -> Duration {
        let name = format!("t{:08x}", rand::random::<u32>());
        let wanted = CreateTable { partitions: 2, if_missing: true, ..CreateTable::default() };
        loop {
            match self.client.create_table(&name, &wanted).await {
                Ok(_) => break,
                Err(error) => assert!(fault.elapsed() < TABLES_WITHIN, "{what}: no table: {error}"),
            }
        }
        let took = fault.elapsed();
        crate::say!("{what}: a table after {took:.1?}");
        self.tables.push(name);
        self.proceed().await;
        for config in self.client.partitions("temp").await.expect("the meta-server answers") {
            let last = self.ballots.insert(config.gpid.index, config.ballot);
            assert!(last.is_none_or(|last| last <= config.ballot), "{config:?} after {last:?}");
        }
        took
    }

    /// Every table that was made is there and whole, and goes. What the clients have seen.
    pub async fn finish(self) -> Seen {
        for name in &self.tables {
            self.client.wait_healthy(name, TABLES_WITHIN).await.expect("no table is lost");
            self.client.drop_table(name, true, None).await.expect("a table can be dropped");
        }
        self.known.finish(&self.table).await
    }
}
