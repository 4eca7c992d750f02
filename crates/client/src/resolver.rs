//! Where the partitions of a table live: cached, asked again when an answer shows that it has changed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pegasus_rpc::wire::meta::QueryConfigResponse;
use pegasus_types::hash::partition_of;
use pegasus_types::{AppId, PartitionConfig};

use crate::error::{Error, Result};
use crate::meta::Metas;

/// Shortest time between two questions to the meta-servers, however many operations fail meanwhile.
const MIN_INTERVAL: Duration = Duration::from_millis(20);
/// How long one question may take; the operation's own deadline may end it earlier.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The partitions of a table at one time.
#[derive(Debug)]
pub struct Layout {
    /// Grows with each question to the meta.
    pub version: u64,
    pub app_id: AppId,
    pub partitions: Vec<Place>,
}

#[derive(Clone, Debug)]
pub struct Place {
    pub config: PartitionConfig,
    pub primary: Option<SocketAddr>,
}

impl Layout {
    fn new(version: u64, table: &str, response: &QueryConfigResponse) -> Result<Self> {
        let nonsense = |what: &str| Error::Nonsense(format!("partitions of table {table:?}: {what}"));
        let count = usize::try_from(response.partition_count).unwrap_or(0);
        if count == 0 || response.partitions.len() != count {
            return Err(nonsense(&format!("{} of {count}", response.partitions.len())));
        }
        let mut places = vec![None; count];
        for partition in &response.partitions {
            let index = usize::try_from(partition.gpid().index).ok();
            let slot = index.and_then(|index| places.get_mut(index)).ok_or_else(|| nonsense("bad index"))?;
            let primary = partition.primary.0.map(SocketAddr::V4);
            *slot = Some(Place { config: partition.to_config(), primary });
        }
        let partitions =
            places.into_iter().collect::<Option<_>>().ok_or_else(|| nonsense("one is missing"))?;
        Ok(Self { version, app_id: response.app_id, partitions })
    }

    pub fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.len()).expect("counted by an i32")
    }

    /// The partition that serves a hash. While a split runs a child that is not ready yet (negative ballot) is
    /// served by its parent.
    pub fn index_of(&self, hash: u64) -> i32 {
        let count = self.partition_count();
        let index = partition_of(hash, count);
        if self.place(index).is_some_and(|place| place.config.ballot.0 < 0) && index >= count / 2 {
            index - count / 2
        } else {
            index
        }
    }

    pub fn place(&self, index: i32) -> Option<&Place> {
        self.partitions.get(usize::try_from(index).ok()?)
    }
}

/// The cached layout of one table.
#[derive(Debug)]
pub struct Resolver {
    pub table: String,
    metas: Arc<Metas>,
    layout: Mutex<Arc<Layout>>,
    /// Held while asking, so that one asks for all; when it was asked last.
    asking: tokio::sync::Mutex<Instant>,
}

impl Resolver {
    pub async fn open(table: &str, metas: Arc<Metas>, within: Duration) -> Result<Self> {
        let response = metas.query_config(table, within).await?;
        let layout = Mutex::new(Arc::new(Layout::new(1, table, &response)?));
        let asking = tokio::sync::Mutex::new(Instant::now());
        Ok(Self { table: table.to_owned(), metas, layout, asking })
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A layout newer than `seen`. The error is final only when the table is gone.
    pub async fn newer_than(&self, seen: u64, within: Duration) -> Result<Arc<Layout>> {
        let mut asked = self.asking.lock().await;
        let current = self.layout();
        if current.version > seen {
            return Ok(current);
        }
        let rest = MIN_INTERVAL.saturating_sub(asked.elapsed());
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
        let response = self.metas.query_config(&self.table, within.min(QUERY_TIMEOUT)).await;
        *asked = Instant::now();
        let layout = Arc::new(Layout::new(current.version + 1, &self.table, &response?)?);
        *self.layout.lock().unwrap_or_else(PoisonError::into_inner) = layout.clone();
        Ok(layout)
    }
}

#[cfg(test)]
mod tests {
    use pegasus_rpc::wire::meta::PartitionConfiguration;
    use pegasus_types::Gpid;
    use pegasus_types::hash::crc64;

    use super::*;

    fn response(ballots: &[i64]) -> QueryConfigResponse {
        let partitions = (0..)
            .zip(ballots)
            .map(|(index, &ballot)| {
                let config = PartitionConfig::unassigned(Gpid::new(2, index), 3);
                PartitionConfiguration { ballot, ..PartitionConfiguration::new(&config, |_| None) }
            })
            .collect();
        let partition_count = i32::try_from(ballots.len()).unwrap();
        QueryConfigResponse {
            app_id: 2,
            partition_count,
            is_stateful: true,
            partitions,
            ..Default::default()
        }
    }

    #[test]
    fn hashes_go_to_their_partition_and_unready_children_to_the_parent() {
        let layout = Layout::new(1, "t", &response(&[1, 1, 1, 1])).unwrap();
        assert_eq!(layout.index_of(crc64(b"b")), 3);
        let split = Layout::new(1, "t", &response(&[1, 1, 1, 1, 1, 1, 1, -1])).unwrap();
        assert_eq!(split.index_of(crc64(b"b")), 3, "7 is not ready");
        assert_eq!(split.index_of(crc64(b"a")), 4);
    }

    #[test]
    fn broken_layouts_are_refused() {
        assert!(Layout::new(1, "t", &response(&[])).is_err());
        let mut short = response(&[1, 1]);
        short.partition_count = 4;
        assert!(Layout::new(1, "t", &short).is_err());
        let mut twice = response(&[1, 1]);
        twice.partitions[1] = twice.partitions[0].clone();
        assert!(Layout::new(1, "t", &twice).is_err());
        let mut negative = response(&[1, 1]);
        negative.partitions[1].pid.0.index = -1;
        assert!(Layout::new(1, "t", &negative).is_err());
    }
}
