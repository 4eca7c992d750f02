//! Commands that print or count many rows.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use pegasus_client::{Filter, FilterType, Range, RangeOptions, Row, ScanOptions, Scanner, Table};
use serde_json::json;

use super::{Answer, Failure, Result};
use crate::args::{Args, Usage, parse, text};
use crate::output::Output;
use crate::session::Session;

/// Partitions that are counted at the same time.
const PARALLEL_COUNTS: usize = 8;

pub async fn mget(session: &Session, table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    let sort_keys = args.rest();
    if sort_keys.is_empty() {
        return print_range(session, table, &hash_key, &RangeOptions::default(), out).await;
    }
    let rows = table.multi_get(hash_key, sort_keys).await?;
    print_rows(session, &rows, false, out)?;
    finish(rows.len(), true, out)
}

pub async fn multi_get_range(
    session: &Session,
    table: &Table,
    mut args: Args,
    out: &mut Output<'_>,
) -> Result {
    let hash_key = args.word("hash_key")?;
    let options = RangeOptions {
        range: range(&mut args)?,
        sort_keys: filter(&args, 's', 'y')?,
        max_count: args.flag_as('n')?.unwrap_or(0),
        no_value: args.has('i'),
        reverse: args.has('r'),
        ..RangeOptions::default()
    };
    args.end()?;
    print_range(session, table, &hash_key, &options, out).await
}

pub async fn multi_get_sortkeys(
    session: &Session,
    table: &Table,
    mut args: Args,
    out: &mut Output<'_>,
) -> Result {
    let hash_key = args.word("hash_key")?;
    args.end()?;
    let options = RangeOptions { no_value: true, ..RangeOptions::default() };
    print_range(session, table, &hash_key, &options, out).await
}

async fn print_range(
    session: &Session,
    table: &Table,
    hash_key: &[u8],
    options: &RangeOptions,
    out: &mut Output<'_>,
) -> Result {
    let got = table.multi_get_range(hash_key, options).await?;
    print_rows(session, &got.rows, options.no_value, out)?;
    finish(got.rows.len(), got.complete, out)
}

fn print_rows(
    session: &Session,
    rows: &[(Bytes, Bytes)],
    no_value: bool,
    out: &mut Output<'_>,
) -> Result<()> {
    for (sort_key, value) in rows {
        let (sort_key, value) = (session.show(sort_key), session.show(value));
        if no_value {
            out.stream(&json!({ "sort_key": sort_key }), format_args!("\"{sort_key}\""))?;
        } else {
            out.stream(
                &json!({ "sort_key": sort_key, "value": value }),
                format_args!("\"{sort_key}\" => \"{value}\""),
            )?;
        }
    }
    Ok(())
}

fn finish(count: usize, complete: bool, out: &mut Output<'_>) -> Result {
    let more = if complete { "" } else { ", and there are more" };
    out.fact("complete", complete, format_args!("{count} rows{more}"))?;
    if out.is_json() {
        out.fact("count", count, "")?;
    }
    Ok(Answer::Yes)
}

pub async fn hash_scan(session: &Session, table: &Table, mut args: Args, out: &mut Output<'_>) -> Result {
    let hash_key = args.word("hash_key")?;
    let range = range(&mut args)?;
    let (options, max) = scan_options(&args)?;
    args.end()?;
    let scanner = table.hash_scan(hash_key, &range, &options)?;
    print_scan(session, scanner, &options, max, out).await
}

pub async fn full_scan(session: &Session, table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (options, max) = scan_options(&args)?;
    args.end()?;
    print_scan(session, table.full_scan(&options), &options, max, out).await
}

async fn print_scan(
    session: &Session,
    mut scanner: Scanner,
    options: &ScanOptions,
    max: usize,
    out: &mut Output<'_>,
) -> Result {
    let mut count = 0;
    let mut complete = true;
    while let Some(row) = scanner.next().await? {
        if count == max {
            complete = false;
            break;
        }
        count += 1;
        print_row(session, &row, options, out)?;
    }
    finish(count, complete, out)
}

fn print_row(session: &Session, row: &Row, options: &ScanOptions, out: &mut Output<'_>) -> Result<()> {
    let (hash_key, sort_key, value) =
        (session.show(&row.hash_key), session.show(&row.sort_key), session.show(&row.value));
    let mut json = json!({ "hash_key": hash_key, "sort_key": sort_key });
    let mut text = format!("\"{hash_key}\" : \"{sort_key}\"");
    if !options.no_value {
        json["value"] = value.as_str().into();
        text.push_str(&format!(" => \"{value}\""));
    }
    if let Some(left) = row.ttl_seconds() {
        json["ttl_seconds"] = left.into();
        text.push_str(&if left < 0 { " (no ttl)".to_owned() } else { format!(" ({left} seconds)") });
    }
    out.stream(&json, text)?;
    Ok(())
}

pub async fn count_data(table: &Table, args: Args, out: &mut Output<'_>) -> Result {
    let (options, _) = scan_options(&args)?;
    args.end()?;
    let scanners = table.full_scans(&options).into_iter().zip(0..);
    let counts: Vec<(i32, u64)> = stream::iter(scanners)
        .map(|(scanner, index)| async move { Ok::<_, Failure>((index, scanner.count().await?)) })
        .buffered(PARALLEL_COUNTS)
        .try_collect()
        .await?;
    let rows: Vec<_> =
        counts.iter().map(|(index, count)| vec![index.to_string(), count.to_string()]).collect();
    out.table("partitions", &["pidx", "row_count"], &rows)?;
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    out.fact("total", total, format_args!("{total} rows"))?;
    Ok(Answer::Yes)
}

pub fn scan_options(args: &Args) -> std::result::Result<(ScanOptions, usize), Usage> {
    let options = ScanOptions {
        no_value: args.has('i'),
        with_expiry: args.has('t'),
        hash_keys: filter(args, 'h', 'x')?,
        sort_keys: filter(args, 's', 'y')?,
        ..ScanOptions::default()
    };
    Ok((options, args.flag_as('n')?.unwrap_or(usize::MAX)))
}

/// `[start] [stop]` with their flags.
fn range(args: &mut Args) -> std::result::Result<Range, Usage> {
    let inclusive = |letter, name| args.flag(letter).map(|value| parse(value, name)).transpose();
    let (start_inclusive, stop_inclusive) = (inclusive('a', "-a")?, inclusive('b', "-b")?);
    let start = args.optional().unwrap_or_default();
    let stop = args.optional().unwrap_or_default();
    let all = Range::new(start, stop);
    Ok(Range {
        start_inclusive: start_inclusive.unwrap_or(all.start_inclusive),
        stop_inclusive: stop_inclusive.unwrap_or(all.stop_inclusive),
        ..all
    })
}

fn filter(args: &Args, kind: char, pattern: char) -> std::result::Result<Filter, Usage> {
    let pattern_bytes = args.flag(pattern).map(Bytes::copy_from_slice);
    let filter_type = match (args.flag(kind), &pattern_bytes) {
        (None, None) => return Ok(Filter::default()),
        (None, Some(_)) => FilterType::MatchPrefix,
        (Some(_), None) => return Err(Usage(format!("-{kind} needs -{pattern} as well"))),
        (Some(b"anywhere"), _) => FilterType::MatchAnywhere,
        (Some(b"prefix"), _) => FilterType::MatchPrefix,
        (Some(b"postfix"), _) => FilterType::MatchPostfix,
        (Some(other), _) => {
            let other = text(other.to_vec(), "filter")?;
            return Err(Usage(format!("-{kind}: {other:?} is none of anywhere, prefix, postfix")));
        }
    };
    Ok(Filter { filter_type, pattern: pattern_bytes.unwrap_or_default() })
}
