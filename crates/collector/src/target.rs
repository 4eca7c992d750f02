//! The probed table through the client library: what a probe sees is what users see, retries included.

use std::cell::RefCell;
use std::time::Duration;

use pegasus_client::{Cluster, Options, Result, Table, Ttl};
use pegasus_types::Node;

use crate::probe::Target;

/// Opens the table when it is first looked up, and anew at each look-up: it may have been dropped and made again.
#[derive(Debug)]
pub struct ClientTarget {
    cluster: Cluster,
    name: String,
    table: RefCell<Option<Table>>,
}

impl ClientTarget {
    pub fn new(metas: &[Node], table: &str, timeout: Duration) -> Result<Self> {
        let metas = metas.iter().map(Node::as_str).collect::<Vec<_>>().join(",");
        // Two attempts fit in: the first one may go to a primary that has just died.
        let options = Options { timeout, attempt_timeout: timeout / 2, ..Options::default() };
        Ok(Self {
            cluster: Cluster::new(&metas, options)?,
            name: table.to_owned(),
            table: RefCell::default(),
        })
    }

    fn table(&self) -> std::result::Result<Table, String> {
        self.table.borrow().clone().ok_or_else(|| "the table was not found yet".to_owned())
    }
}

impl Target for ClientTarget {
    async fn look_up(&self) -> std::result::Result<usize, String> {
        let table = self.cluster.table(&self.name).await.map_err(|error| error.to_string())?;
        let count = usize::try_from(table.partition_count()).unwrap_or(0);
        self.table.replace(Some(table));
        if count == 0 { Err("the table has no partitions".to_owned()) } else { Ok(count) }
    }

    async fn set(&self, hash_key: &[u8], value: &[u8]) -> std::result::Result<(), String> {
        self.table()?.set(hash_key, b"", value.to_vec()).await.map_err(|error| error.to_string())
    }

    async fn keep(
        &self,
        hash_key: &str,
        sort_key: &str,
        value: &str,
        ttl: Ttl,
    ) -> std::result::Result<(), String> {
        let (table, value) = (self.table()?, value.as_bytes().to_vec());
        table.set_with_ttl(hash_key, sort_key, value, ttl).await.map_err(|error| error.to_string())
    }

    async fn get(&self, hash_key: &[u8]) -> std::result::Result<Option<Vec<u8>>, String> {
        let value = self.table()?.get(hash_key, b"").await.map_err(|error| error.to_string())?;
        Ok(value.map(|value| value.to_vec()))
    }
}
