//! `copy_data` and `clear_data` of the shell, as an operator types them: within a cluster, into another one, and again
//! after a failure.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use pegasus_client::{CreateTable, ScanOptions, Table, Ttl};
use pegasus_integration_tests::{TestCluster, block_on};
use pegasus_onebox::{Cluster, Durability, Options, find_server};

/// Several rounds of the shell's work in each of 8 partitions.
const ROWS: usize = 2000;
const LIFE: Duration = Duration::from_secs(5000);

/// What a command says at its end.
fn shell(metas: &str, table: &str, words: &str) -> String {
    let program = find_server().unwrap().with_file_name("pegasus_shell");
    let mut command = Command::new(program);
    command.args(["--timeout", "30000", "--meta", metas, "--table", table]).args(words.split(' '));
    let ended = command.output().unwrap();
    let told = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{words}: {told}");
    told.lines().last().unwrap().to_owned()
}

type Rows = BTreeMap<(Bytes, Bytes), (Bytes, u32)>;

async fn rows(table: &Table) -> Rows {
    let mut all = Rows::new();
    for scanner in table.full_scans(&ScanOptions { with_expiry: true, ..ScanOptions::default() }) {
        for row in scanner.collect().await.unwrap() {
            all.insert((row.hash_key, row.sort_key), (row.value, row.expire_ts.unwrap()));
        }
    }
    all
}

/// Times to live are copied in whole seconds.
fn assert_same(copy: &Rows, original: &Rows) {
    assert!(copy.keys().eq(original.keys()), "{} rows of {}", copy.len(), original.len());
    for (key, (value, expires)) in original {
        let (copied, copy_expires) = &copy[key];
        assert!(
            copied == value && expires.abs_diff(*copy_expires) <= 60,
            "{key:?}: {expires} {copy_expires}"
        );
        assert_eq!(*expires == 0, *copy_expires == 0, "{key:?}");
    }
}

async fn fill(table: &Table) {
    for chunk in (0..ROWS).collect::<Vec<_>>().chunks(100) {
        let sets = chunk.iter().map(|n| table.set(format!("user{n}"), "name", format!("value{n}")));
        futures::future::try_join_all(sets).await.unwrap();
    }
    table.set_with_ttl("short", "lived", "x", Ttl::For(LIFE)).await.unwrap();
    table.set(b"any\x00\xff".as_slice(), b"\x00\xff".as_slice(), b"\x00\n\xff".as_slice()).await.unwrap();
    table.set("no sort key, no value", "", "").await.unwrap();
    let many = (0..500).map(|n| (format!("{n:03}"), vec![b'v'; 2000]));
    table.multi_set("one hash key", many, Ttl::Default).await.unwrap();
    table.set("large", "s", vec![7; 900 << 10]).await.unwrap();
}

#[test]
fn rows_are_copied_and_removed() {
    // A collector writes rows of its own into `temp`.
    let fast = || Options { durability: Durability::PageCache, collector: false, ..Options::default() };
    let cluster = TestCluster::start(fast());
    let other = Cluster::start(Options { replicas: 1, partitions: 4, ..fast() }).unwrap();
    other.wait_healthy(Duration::from_secs(120)).unwrap();
    let (metas, other_metas) = (cluster.metas(), other.metas());
    block_on(async {
        let client = cluster.client().await;
        let [temp, copies] = ["temp", "copies"];
        client.create_table(copies, &CreateTable { partitions: 4, ..CreateTable::default() }).await.unwrap();
        let source = cluster.table().await;
        let beside = client.table(copies).await.unwrap().with_timeout(Duration::from_secs(20));
        let away = pegasus_client::Cluster::connect(&other_metas).await.unwrap().table(temp).await.unwrap();
        fill(&source).await;
        let original = rows(&source).await;
        let count = original.len();

        assert_eq!(shell(&metas, temp, &format!("copy_data -a {copies}")), format!("{count} rows copied"));
        assert_same(&rows(&beside).await, &original);

        // Into another cluster, over what somebody has written there meanwhile.
        away.set("user1", "name", "newer").await.unwrap();
        let copy = format!("copy_data -c {other_metas} -k");
        assert_eq!(shell(&metas, temp, &copy), format!("{} rows copied", count - 1));
        assert_eq!(away.get("user1", "name").await.unwrap().as_deref(), Some(&b"newer"[..]));
        let copy = format!("copy_data -c {other_metas} -h prefix -x user1");
        let matching = original.keys().filter(|(hash_key, _)| hash_key.starts_with(b"user1")).count();
        assert_eq!(shell(&metas, temp, &copy), format!("{matching} rows copied"));
        assert_same(&rows(&away).await, &original);
        assert_eq!(
            shell(&metas, temp, &format!("copy_data -c {other_metas} -e")),
            format!("{count} rows copied")
        );
        assert!(rows(&away).await.values().all(|(_, expires)| *expires == 0));

        // A server dies meanwhile; what matches goes, and nothing else.
        let killed = cluster.replicas()[0].clone();
        let clear = std::thread::spawn({
            let metas = metas.clone();
            move || shell(&metas, temp, "clear_data -h prefix -x user -f")
        });
        while rows(&source).await.len() == count {
            assert!(!clear.is_finished());
        }
        cluster.kill(&killed).unwrap();
        assert_eq!(tokio::task::block_in_place(|| clear.join().unwrap()), format!("{ROWS} rows removed"));
        let left = rows(&source).await;
        assert!(left.keys().all(|(hash_key, _)| !hash_key.starts_with(b"user")), "{:?}", left.keys());
        assert_eq!(left.len(), count - ROWS);
        assert_eq!(shell(&metas, temp, "clear_data -f"), format!("{} rows removed", count - ROWS));
        assert_eq!(rows(&source).await, Rows::new());
        assert_same(&rows(&beside).await, &original);

        // And back.
        assert_eq!(shell(&metas, copies, &format!("copy_data -a {temp}")), format!("{count} rows copied"));
        assert_same(&rows(&source).await, &original);
    });
}
