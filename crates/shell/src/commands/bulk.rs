//! Work on all rows of a table, or on those that match: copying them elsewhere, removing them.

use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use pegasus_client::{Cluster, Row, ScanOptions, Table, Ttl};

use super::rows::scan_options;
use super::{Answer, Result};
use crate::args::{Args, Usage, text};
use crate::output::Output;
use crate::session::Session;

/// Partitions worked on at a time.
const PARTITIONS: usize = 8;
/// Rows of one partition worked on at a time.
const ROWS: usize = 64;

/// Does `work` for each row; tells for each partition for how many it said yes. Ends with the first failure: doing it all
/// again does no harm.
async fn each_row(
    table: &Table,
    options: &ScanOptions,
    work: impl AsyncFn(Row) -> Result<bool>,
) -> Result<Vec<(i32, u64)>> {
    let work = &work;
    stream::iter(table.full_scans(options).into_iter().zip(0..))
        .map(|(mut scanner, index)| async move {
            let mut done = 0;
            loop {
                let mut rows = Vec::with_capacity(ROWS);
                while rows.len() < ROWS {
                    let Some(row) = scanner.next().await? else { break };
                    rows.push(row);
                }
                let is_last = rows.len() < ROWS;
                let worked = try_join_all(rows.into_iter().map(|row| work(row))).await?;
                done += worked.into_iter().map(u64::from).sum::<u64>();
                if is_last {
                    return Ok((index, done));
                }
            }
        })
        .buffered(PARTITIONS)
        .try_collect()
        .await
}

fn report(what: &str, done: &[(i32, u64)], out: &mut Output<'_>) -> Result {
    let rows: Vec<_> = done.iter().map(|(index, count)| vec![index.to_string(), count.to_string()]).collect();
    out.table("partitions", &["pidx", "row_count"], &rows)?;
    let total: u64 = done.iter().map(|(_, count)| count).sum();
    out.fact("total", total, format_args!("{total} rows {what}"))?;
    Ok(Answer::Yes)
}

pub async fn clear_data(table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (options, _) = scan_options(&args)?;
    args.end()?;
    if !args.has('f') {
        let why =
            "this removes every row that matches, all of them without a filter: -f says that it is meant";
        return Err(Usage(why.to_owned()).into());
    }
    let options = ScanOptions { no_value: true, ..options };
    let remove = async |row: Row| {
        table.del(&row.hash_key, &row.sort_key).await?;
        Ok(true)
    };
    report("removed", &each_row(table, &options, remove).await?, out)
}

pub async fn copy_data(session: &Session, table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (options, _) = scan_options(&args)?;
    args.end()?;
    let metas = args.flag('c').map(|metas| text(metas.to_vec(), "metas")).transpose()?;
    let name = args.flag('a').map(|name| text(name.to_vec(), "table")).transpose()?;
    let (keeps, drops_ttl) = (args.has('k'), args.has('e'));
    let name = name.unwrap_or_else(|| table.name().to_owned());
    if metas.is_none() && name == table.name() {
        let why = "-c <meta-servers> of another cluster is missing, or -a <table> of this one";
        return Err(Usage(why.to_owned()).into());
    }
    let target = match metas {
        Some(metas) => Cluster::new(&metas, *session.cluster.options())?.table(&name).await?,
        None => session.cluster.table(&name).await?,
    };
    let options = ScanOptions { with_expiry: true, ..options };
    let copy = async |row: Row| {
        let ttl = match row.ttl_seconds().and_then(|left| u64::try_from(left).ok()) {
            Some(0) => return Ok(false), // it has expired meanwhile
            Some(left) if !drops_ttl => Ttl::For(std::time::Duration::from_secs(left)),
            _ => Ttl::Default,
        };
        if keeps && target.exist(&row.hash_key, &row.sort_key).await? {
            return Ok(false);
        }
        target.set_with_ttl(&row.hash_key, &row.sort_key, row.value, ttl).await?;
        Ok(true)
    };
    report("copied", &each_row(table, &options, copy).await?, out)
}
