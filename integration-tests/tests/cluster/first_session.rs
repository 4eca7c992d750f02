//! The first things that somebody tries.

use std::time::Duration;

use bytes::Bytes;
use pegasus_client::{Change, Check, IncrTtl, RangeOptions, ScanOptions, TimeLeft, Ttl};
use pegasus_integration_tests::{TestCluster, block_on};
use pegasus_onebox::{Durability, Options};

#[test]
fn every_operation() {
    let cluster = TestCluster::start(Options { durability: Durability::PageCache, ..Options::default() });
    block_on(async {
        let table = cluster.table().await;
        assert_eq!((table.name(), table.partition_count()), ("temp", 8));

        assert_eq!(table.get("user", "name").await.unwrap(), None);
        table.set("user", "name", "Ada").await.unwrap();
        assert_eq!(table.get("user", "name").await.unwrap().as_deref(), Some(&b"Ada"[..]));
        assert!(table.exist("user", "name").await.unwrap());
        assert_eq!(table.ttl("user", "name").await.unwrap(), TimeLeft::Forever);
        table.set_with_ttl("user", "session", "x", Ttl::For(Duration::from_secs(100))).await.unwrap();
        assert!(matches!(table.ttl("user", "session").await.unwrap(), TimeLeft::Seconds(95..=100)));
        assert_eq!(table.ttl("user", "nothing").await.unwrap(), TimeLeft::Missing);
        table.del("user", "session").await.unwrap();
        assert!(!table.exist("user", "session").await.unwrap());

        let rows = (0..40).map(|i| (format!("{i:02}"), format!("v{i}")));
        table.multi_set("many", rows, Ttl::Default).await.unwrap();
        assert_eq!(table.sort_key_count("many").await.unwrap(), Some(40));
        assert_eq!(table.multi_get("many", ["07", "99", "31"]).await.unwrap().len(), 2);
        let all = table.multi_get_range("many", &RangeOptions::default()).await.unwrap();
        assert_eq!(all.rows.len(), 40);
        assert_eq!(table.multi_del("many", ["00", "01"]).await.unwrap(), 2);
        let batch = table.batch_get(&[(b"user", b"name"), (b"many", b"02"), (b"many", b"00")]).await.unwrap();
        assert_eq!(batch, [Some(Bytes::from("Ada")), Some(Bytes::from("v2")), None]);

        assert_eq!(table.incr("count", "", 5, IncrTtl::Keep).await.unwrap(), 5);
        assert_eq!(table.incr("count", "", -7, IncrTtl::Keep).await.unwrap(), -2);
        let first = table.check_and_set("cas", &Check::not_exist("k"), ("k", "1"), Ttl::Default, true).await;
        assert!(first.unwrap().passed);
        let again = table.check_and_set("cas", &Check::not_exist("k"), ("k", "2"), Ttl::Default, true).await;
        let again = again.unwrap();
        assert_eq!((again.passed, again.value.as_deref()), (false, Some(&b"1"[..])));
        let changes = [Change::set("l", "3"), Change::del("k")];
        assert!(
            table.check_and_mutate("cas", &Check::equal("k", "1"), &changes, false).await.unwrap().passed
        );
        assert_eq!(table.get("cas", "l").await.unwrap().as_deref(), Some(&b"3"[..]));
        assert_eq!(table.get("cas", "k").await.unwrap(), None);

        let mut seen = 0;
        for scanner in table.full_scans(&ScanOptions { batch_size: 7, ..ScanOptions::default() }) {
            seen += scanner.collect().await.unwrap().iter().filter(|row| row.hash_key == "many").count();
        }
        assert_eq!(seen, 38);
    });
    assert_eq!(cluster.start_all().unwrap(), [""; 0], "a second start harms nobody");
}
