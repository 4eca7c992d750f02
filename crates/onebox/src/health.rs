//! Waiting until table `temp` has all its replicas.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cluster::Cluster;

const INTERVAL: Duration = Duration::from_millis(100);

/// How far the cluster has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nobody can be asked yet; why.
    Starting(String),
    Partitions {
        healthy: usize,
        all: usize,
    },
}

impl Cluster {
    /// Waits until every partition of `temp` has its replicas. `tell` is called with each change. Fails early when
    /// a process that had been started has ended.
    pub fn wait_healthy(&self, within: Duration, mut tell: impl FnMut(&Progress)) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let end = Instant::now() + within;
            let mut last = None;
            let client = pegasus_client::Cluster::new(
                &self.shape().metas(),
                pegasus_client::Options { timeout: Duration::from_millis(1000), ..Default::default() },
            )?;
            loop {
                let progress = self.progress(&client).await;
                if last.as_ref() != Some(&progress) {
                    tell(&progress);
                }
                if matches!(progress, Progress::Partitions { healthy, all } if healthy == all && all > 0) {
                    return Ok(());
                }
                if let Some(ended) = self.ended_by_itself() {
                    bail!(
                        "{} has ended by itself. The end of its output:\n{}",
                        ended.name,
                        self.output(&ended, 20)
                    );
                }
                if Instant::now() >= end {
                    let still = self.list().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
                    bail!("not healthy after {within:?} ({progress:?}). The processes:\n{still}");
                }
                last = Some(progress);
                tokio::time::sleep(INTERVAL).await;
            }
        })
    }

    async fn progress(&self, client: &pegasus_client::Cluster) -> Progress {
        let asked = client.partitions("temp").await.context("ask for table temp");
        match asked {
            Ok(partitions) => {
                let whole = |p: &&_| pegasus_client::is_healthy(p);
                let healthy = partitions.iter().filter(whole).count();
                Progress::Partitions { healthy, all: partitions.len() }
            }
            Err(error) => Progress::Starting(format!("{error:#}")),
        }
    }
}
