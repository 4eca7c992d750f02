//! A first session: `cargo run --example quickstart -- 127.0.0.1:34601 temp`

use std::time::Duration;

use pegasus_client::{Change, Check, Cluster, IncrTtl, Range, Result, ScanOptions, TimeLeft, Ttl};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let metas = arguments.next().unwrap_or_else(|| "127.0.0.1:34601".to_owned());
    let name = arguments.next().unwrap_or_else(|| "temp".to_owned());

    session(&metas, &name).await.map_err(Into::into)
}

/// Leaves the table as it was, if it had no rows under these keys.
pub async fn session(metas: &str, name: &str) -> Result<()> {
    let cluster = Cluster::connect(metas).await?;
    let table = cluster.table(name).await?;
    say(format!("table {name}: {} partitions", table.partition_count()));

    // One value: hash key, sort key, value.
    table.set("user:1", "name", "Ada").await?;
    let got = table.get("user:1", "name").await?;
    assert_eq!(got.as_deref(), Some(&b"Ada"[..]));
    table.set_with_ttl("user:1", "session", "abc", Ttl::For(Duration::from_secs(60))).await?;
    assert!(matches!(table.ttl("user:1", "session").await?, TimeLeft::Seconds(1..=60)));
    say(format!("get: {got:?}, its session lives for a minute"));

    // Several values of one hash key, all or none.
    table.multi_set("user:1", [("mail", "ada@example.org"), ("town", "London")], Ttl::Default).await?;
    let rows = table.multi_get("user:1", ["mail", "town"]).await?;
    assert_eq!(rows.len(), 2);
    say(format!("multi_get: {rows:?}"));

    // A counter, and a write on a condition.
    table.del("counter", "visits").await?;
    let visits = table.incr("counter", "visits", 1, IncrTtl::Keep).await?;
    let free = Check::not_exist("owner");
    let first = table.check_and_set("lock", &free, ("owner", "me"), Ttl::Default, true).await?;
    let second = table.check_and_set("lock", &free, ("owner", "you"), Ttl::Default, true).await?;
    assert!(visits == 1 && first.passed && !second.passed);
    let release = Check::equal("owner", "me");
    table.check_and_mutate("lock", &release, &[Change::del("owner")], false).await?;
    say(format!("incr: {visits}, the lock belonged to {:?}", second.value));

    // Rows in order.
    let mut scanner = table.hash_scan("user:1", &Range::default(), &ScanOptions::default())?;
    while let Some(row) = scanner.next().await? {
        say(format!("scan: {:?} = {:?}", row.sort_key, row.value));
    }
    say(format!("the table has {} rows", table.full_scan(&ScanOptions::default()).count().await?));
    table.multi_del("user:1", ["name", "session", "mail", "town"]).await?;
    table.del("counter", "visits").await?;
    Ok(())
}

#[allow(clippy::print_stdout, reason = "what an example does")]
fn say(line: String) {
    println!("{line}");
}
