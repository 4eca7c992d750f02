//! Is table `temp` whole? Seen as a client sees it.

use std::time::Duration;

use anyhow::Result;
use pegasus_client::{Cluster as Client, Error, Options, is_healthy};
use pegasus_types::ErrorCode;

/// The table that a new cluster makes by itself.
pub const TABLE: &str = "temp";
/// One look must not hang on a server that is just starting.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Between looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks until everything is well, or `go_on`, told what is missing, does not want to any more.
///
/// `replicas`: addresses of the replica-servers that run.
pub fn wait(metas: &str, replicas: &[String], go_on: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options =
            Options { timeout: LOOK_TIMEOUT, attempt_timeout: ATTEMPT_TIMEOUT, admin_timeout: LOOK_TIMEOUT };
        let client = Client::new(metas, options)?;
        loop {
            let missing = match look(&client, replicas).await {
                Ok(None) => return Ok(()),
                Ok(Some(missing)) => missing,
                Err(Error::Timeout { .. }) => "the meta-server does not answer yet".to_owned(),
                Err(Error::NoTable(_) | Error::Meta { code: ErrorCode::BusyCreating, .. }) => {
                    format!("table {TABLE} is being made")
                }
                Err(error) => error.to_string(),
            };
            go_on(&missing)?;
            tokio::time::sleep(INTERVAL).await;
        }
    })
}

/// What is missing; None = nothing.
async fn look(client: &Client, replicas: &[String]) -> Result<Option<String>, Error> {
    let nodes = client.nodes().await?;
    let alive = |address: &&String| nodes.iter().any(|state| state.alive && state.node.as_str() == **address);
    let (reported, all) = (replicas.iter().filter(alive).count(), replicas.len());
    if reported < all {
        return Ok(Some(format!("{reported} of {all} replica-servers have reported to the meta-server")));
    }
    let partitions = client.partitions(TABLE).await?;
    let (whole, all) =
        (partitions.iter().filter(|partition| is_healthy(partition)).count(), partitions.len());
    if whole < all {
        return Ok(Some(format!("{whole} of {all} partitions of table {TABLE} have all their replicas")));
    }
    // What is stored may be older than a restart: a primary answers only with its group's consent.
    let table = client.table(TABLE).await?;
    for index in 0..table.partition_count() {
        let key = (0..).map(|n: u32| n.to_string()).find(|key| table.partition_of(key, "") == index);
        let key = key.unwrap_or_default(); // the numbers do not end
        if let Err(error) = table.get(key, "").await {
            return Ok(Some(format!("{index} of {all} partitions of table {TABLE} answer, then: {error}")));
        }
    }
    Ok(None)
}
