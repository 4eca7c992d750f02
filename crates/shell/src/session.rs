//! What one run of the shell knows.

use std::time::Duration;

use pegasus_client::{Cluster, Table};

use crate::args::{Args, Usage};
use crate::commands::{Answer, Failure, Result};
use crate::output::Output;
use crate::words::escape;

#[derive(Debug)]
pub struct Session {
    pub cluster: Cluster,
    table: Option<Table>,
    timeout: Duration,
    escape_all: bool,
}

impl Session {
    pub fn new(cluster: Cluster) -> Self {
        let timeout = cluster.options().timeout;
        Self { cluster, table: None, timeout, escape_all: false }
    }

    /// The table of a data command: the one in use, else the one that the first word names.
    pub async fn table(&self, args: &mut Args) -> std::result::Result<Table, Failure> {
        let table = match &self.table {
            Some(table) => table.clone(),
            None => {
                let missing = |Usage(_)| {
                    Usage("which table? `use <table>` first, or name it after the command".to_owned())
                };
                self.cluster.table(&args.text("table").map_err(missing)?).await?
            }
        };
        Ok(table.with_timeout(self.timeout))
    }

    pub fn table_in_use(&self) -> Option<&str> {
        self.table.as_ref().map(Table::name)
    }

    pub async fn open(&mut self, name: &str) -> std::result::Result<(), Failure> {
        self.table = Some(self.cluster.table(name).await?);
        Ok(())
    }

    /// A dropped table is not in use any more.
    pub fn forget(&mut self, name: &str) {
        if self.table_in_use() == Some(name) {
            self.table = None;
        }
    }

    pub async fn use_table(&mut self, mut args: Args, out: &mut Output<'_>) -> Result {
        if let Some(name) = args.optional() {
            args.end()?;
            self.open(&crate::args::text(name, "table")?).await?;
        }
        match &self.table {
            Some(table) => {
                let count = table.partition_count();
                out.fact(
                    "app_name",
                    table.name(),
                    format_args!("table {:?}, {count} partitions", table.name()),
                )?;
            }
            None => out.fact("app_name", serde_json::Value::Null, "no table is in use")?,
        }
        Ok(Answer::Yes)
    }

    pub fn set_timeout(&mut self, mut args: Args, out: &mut Output<'_>) -> Result {
        if let Some(ms) = args.optional_as::<u32>("milliseconds")? {
            args.end()?;
            if ms == 0 {
                return Err(Usage("a timeout of 0".to_owned()).into());
            }
            self.timeout = Duration::from_millis(u64::from(ms));
        }
        let ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        out.fact("timeout_ms", ms, format_args!("{ms} ms"))?;
        Ok(Answer::Yes)
    }

    pub fn set_escape_all(&mut self, mut args: Args, out: &mut Output<'_>) -> Result {
        if let Some(on) = args.optional_as("true|false")? {
            args.end()?;
            self.escape_all = on;
        }
        out.fact("escape_all", self.escape_all, self.escape_all)?;
        Ok(Answer::Yes)
    }

    /// Bytes as they are printed.
    pub fn show(&self, bytes: &[u8]) -> String {
        escape(bytes, self.escape_all)
    }
}
