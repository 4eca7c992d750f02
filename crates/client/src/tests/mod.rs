//! The client against a fake cluster on real sockets.

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{Fake, Trick};
use futures::FutureExt;
use pegasus_types::{ErrorCode, Gpid, Node};

use crate::names::Names;
use crate::*;

async fn open(fake: &Fake) -> Table {
    Cluster::connect(&fake.metas).await.unwrap().table("t").await.unwrap()
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn every_operation() {
    let fake = Fake::start(1, 1);
    let table = open(&fake).await;
    assert_eq!((table.app_id(), table.partition_count()), (fake::APP_ID, fake::PARTITIONS));

    assert_eq!(table.get("h", "s").await, Ok(None));
    table.set("h", "s", "v").await.unwrap();
    assert_eq!(table.get("h", "s").await, Ok(Some(bytes("v"))));
    table.set("", "only a sort key", "v").await.unwrap();
    assert_eq!(table.exist("", "only a sort key").await, Ok(true));
    assert_eq!(table.ttl("h", "s").await, Ok(TimeLeft::Forever));
    table.set_with_ttl("h", "s", "v", Ttl::For(Duration::from_secs(100))).await.unwrap();
    let TimeLeft::Seconds(left) = table.ttl("h", "s").await.unwrap() else { panic!("has a ttl") };
    assert!((99..=100).contains(&left));
    table.del("h", "s").await.unwrap();
    assert_eq!(table.ttl("h", "s").await, Ok(TimeLeft::Missing));

    let values = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")];
    table.multi_set("m", values, Ttl::Default).await.unwrap();
    let got = table.multi_get("m", ["e", "a", "nothing", "b", "c", "d"]).await.unwrap();
    let want =
        [("e", "5"), ("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")].map(|(k, v)| (bytes(k), bytes(v)));
    assert_eq!(got, want, "in two requests, in order");
    assert_eq!(table.sort_key_count("m").await, Ok(Some(5)));
    assert_eq!(table.multi_del("m", ["a", "nothing"]).await, Ok(2));
    assert_eq!(table.sort_key_count("m").await, Ok(Some(4)));
    let got = table.batch_get(&[(b"m", b"a"), (b"m", b"b"), (b"", b"only a sort key")]).await;
    assert_eq!(got, Ok(vec![None, Some(bytes("2")), Some(bytes("v"))]));

    assert_eq!(table.incr("n", "n", 5, IncrTtl::Keep).await, Ok(5));
    assert_eq!(table.incr("n", "n", -7, IncrTtl::Keep).await, Ok(-2));
    table.set("n", "text", "x").await.unwrap();
    assert_eq!(table.incr("n", "text", 1, IncrTtl::Keep).await, Err(Error::Storage(4)));

    let outcome = |passed, value: Option<&'static str>| Ok(Checked { passed, value: value.map(bytes) });
    let free = Check::not_exist("lock");
    let lock = |owner| table.check_and_set("c", &free, ("lock", owner), Ttl::Default, true);
    assert_eq!(lock("me").await, outcome(true, None));
    assert_eq!(lock("you").await, outcome(false, Some("me")));
    let mine = Check::equal("lock", "me");
    let changes = [Change::del("lock"), Change::set("log", "released")];
    assert_eq!(table.check_and_mutate("c", &mine, &changes, false).await, outcome(true, None));
    assert_eq!(table.get("c", "lock").await, Ok(None));
    assert_eq!(table.get("c", "log").await, Ok(Some(bytes("released"))));
}

#[tokio::test]
async fn refused_before_anything_is_sent() {
    let fake = Fake::start(1, 1);
    let table = open(&fake).await;
    let sent = fake.with(|world| world.data_requests);
    let long = vec![0; 0xffff];
    assert!(matches!(table.get(&long, "s").await, Err(Error::Invalid(_))));
    assert!(matches!(table.multi_del("h", [] as [&str; 0]).await, Err(Error::Invalid(_))));
    assert!(matches!(
        table.check_and_mutate("h", &Check::exist("s"), &[], false).await,
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        table.hash_scan("", &Range::default(), &ScanOptions::default()),
        Err(Error::Invalid(_))
    ));
    assert_eq!(fake.with(|world| world.data_requests), sent);
    assert!(matches!(Cluster::new("nonsense", Options::default()), Err(Error::Invalid(_))));
}

#[tokio::test]
async fn a_new_primary_is_found_at_once() {
    let fake = Fake::start(1, 3);
    let table = open(&fake).await;
    table.set("h", "s", "1").await.unwrap();
    fake.with(|world| world.kill(0));
    let writer = tokio::spawn({
        let table = table.clone();
        async move { table.set("h", "s", "2").await.map(|()| Instant::now()) }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    let moved = fake.with(|world| {
        world.primary = 1;
        Instant::now()
    });
    let done = writer.await.unwrap().unwrap();
    let noticed = done.duration_since(moved);
    assert!(noticed < Duration::from_millis(300), "{noticed:?}");
    assert_eq!(table.get("h", "s").await, Ok(Some(bytes("2"))));
    let queries = fake.with(|world| world.queries);
    assert!(queries < 40, "{queries} questions to the meta");
}

/// As when its machine is cut off: nobody tells the client.
#[tokio::test]
async fn a_silent_server_is_left_as_soon_as_another_one_leads() {
    let fake = Fake::start(1, 2);
    let minute = Duration::from_secs(60);
    let options = Options { timeout: minute, attempt_timeout: minute, ..Options::default() };
    let table = Cluster::new(&fake.metas, options).unwrap().table("t").await.unwrap();
    table.set("h", "s", "1").await.unwrap();
    let asked = fake.with(|world| {
        world.tricks = [Trick::ExecuteSilently].into();
        world.queries
    });
    let begun = Instant::now();
    let writer = tokio::spawn({
        let table = table.clone();
        async move { table.set("h", "s", "2").await }
    });
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let looks = fake.with(|world| world.queries) - asked;
    assert!((1..=4).contains(&looks), "{looks} looks while nothing has moved");
    fake.with(|world| world.primary = 1);
    writer.await.unwrap().unwrap();
    assert!(begun.elapsed() < minute / 2, "not when the attempt is over: {:?}", begun.elapsed());
    assert_eq!(table.get("h", "s").await, Ok(Some(bytes("2"))));
}

#[tokio::test]
async fn repeatable_writes_survive_everything() {
    let fake = Fake::start(1, 2);
    let table = open(&fake).await;
    let codes =
        [ErrorCode::InvalidState, ErrorCode::Busy, ErrorCode::CapacityExceeded, ErrorCode::NotEnoughMember];
    fake.with(move |world| world.tricks = codes.map(Trick::Refuse).into());
    table.set("h", "s", "1").await.unwrap();
    fake.with(|world| world.tricks = [Trick::ExecuteAndDie].into());
    let writer = tokio::spawn({
        let table = table.clone();
        async move { table.set("h", "s", "2").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.with(|world| world.primary = 1);
    writer.await.unwrap().unwrap();
    fake.with(|world| world.tricks = [Trick::Refuse(ErrorCode::InvalidData)].into());
    let refused = table.set("h", "s", "3").await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::InvalidData));
    assert_eq!(table.get("h", "s").await, Ok(Some(bytes("2"))));
}

#[tokio::test]
async fn unclear_writes_are_never_repeated() {
    let fake = Fake::start(1, 2);
    let table = open(&fake).await.with_timeout(Duration::from_millis(300));
    // A refusal is clear: it is tried again.
    fake.with(|world| world.tricks = [Trick::Refuse(ErrorCode::InvalidState)].into());
    assert_eq!(table.incr("n", "n", 1, IncrTtl::Keep).await, Ok(1));

    fake.with(|world| world.tricks = [Trick::ExecuteSilently].into());
    let silent = table.incr("n", "n", 1, IncrTtl::Keep).await;
    assert!(matches!(silent, Err(Error::Unclear(_))), "{silent:?}");
    assert_eq!(table.get("n", "n").await, Ok(Some(bytes("2"))), "executed once");

    fake.with(|world| world.tricks = [Trick::ExecuteAndDie].into());
    let check = Check::not_exist("lock");
    let lost = table.check_and_set("c", &check, ("lock", "me"), Ttl::Default, false).await;
    assert!(matches!(lost, Err(Error::Unclear(_))), "{lost:?}");
    fake.with(|world| world.primary = 1);
    assert_eq!(table.get("c", "lock").await, Ok(Some(bytes("me"))));

    // The server that died refuses connections: nothing was sent, so another one is asked.
    fake.with(|world| world.primary = 0);
    let _ = table.get("n", "n").await;
    let waiting = tokio::spawn({
        let table = table.with_timeout(Duration::from_secs(5));
        async move { table.incr("n", "n", 1, IncrTtl::Keep).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fake.with(|world| world.primary = 1);
    assert_eq!(waiting.await.unwrap(), Ok(3));
}

#[tokio::test]
async fn the_timeout_is_kept() {
    let fake = Fake::start(1, 1);
    let table = open(&fake).await.with_timeout(Duration::from_millis(200));
    fake.with(|world| world.tricks = vec![Trick::ExecuteSilently; 100].into());
    let began = Instant::now();
    let error = table.get("h", "s").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_millis(400));
}

#[tokio::test]
async fn a_standby_that_is_named_alone_leads_to_the_leader() {
    let fake = Fake::start(3, 2);
    fake.with(|world| world.leader = Some(2));
    let standby = fake.metas.split(',').next().unwrap();
    let cluster = Cluster::new(standby, Options::default()).unwrap();
    assert_eq!(cluster.nodes().await.unwrap().len(), 2);
    assert!(cluster.tables(None).await.unwrap().iter().any(|table| table.name == "t"));
}

#[tokio::test]
async fn the_leading_meta_is_found() {
    let fake = Fake::start(3, 1);
    let cluster = Cluster::connect(&fake.metas).await.unwrap();
    for leader in [2, 0, 1] {
        fake.with(move |world| world.leader = Some(leader));
        cluster.table("t").await.unwrap();
        assert_eq!(cluster.nodes().await.map(|nodes| nodes.len()), Ok(1));
        let name = ("cluster_name".to_owned(), "fake".to_owned());
        assert!(cluster.info().await.unwrap().contains(&name));
    }
    assert_eq!(cluster.table("nothing").await.unwrap_err(), Error::NoTable("nothing".to_owned()));
    assert_eq!(cluster.create_table("new", &CreateTable::default()).await, Ok(3));
    let exists = cluster.create_table("t", &CreateTable::default()).await.unwrap_err();
    assert_eq!(exists.code(), Some(ErrorCode::AppExist));

    fake.with(|world| world.leader = None);
    let waiting = tokio::spawn(async move { cluster.table("t").await.map(|table| table.app_id()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.with(|world| world.leader = Some(2));
    assert_eq!(waiting.await.unwrap(), Ok(fake::APP_ID));
}

#[tokio::test]
async fn a_meta_that_hangs_is_asked_last() {
    let fake = Fake::start(3, 1);
    fake.with(|world| (world.hanging_metas, world.leader) = (1, Some(1)));
    let options = Options { timeout: Duration::from_secs(3), ..Options::default() };
    let cluster = Cluster::new(&fake.metas, options).unwrap();
    for leader in [1, 2, 1, 2] {
        fake.with(move |world| world.leader = Some(leader));
        cluster.table("t").await.unwrap();
    }
    assert_eq!(fake.with(|world| world.hung), 1, "only who does not know it yet waits for it");

    // A leader that is known, and hangs now.
    let metas = fake.metas.clone();
    fake.with(|world| (world.hanging_metas, world.leader) = (0, Some(0)));
    let cluster = Cluster::connect(&metas).await.unwrap();
    fake.with(|world| (world.hanging_metas, world.leader) = (1, Some(1)));
    let begun = Instant::now();
    assert_eq!(cluster.create_table("new", &CreateTable::default()).await, Ok(3));
    assert!(begun.elapsed() < Duration::from_secs(8), "a share of 30 s: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_leader_that_has_died_is_left_at_once() {
    let fake = Fake::start(3, 1);
    let cluster = Cluster::connect(&fake.metas).await.unwrap();
    for leader in [1, 2] {
        fake.with(move |world| {
            world.kill_meta(leader - 1);
            world.leader = Some(leader);
        });
        let begun = Instant::now();
        cluster.table("t").await.unwrap();
        assert_eq!(cluster.create_table("new", &CreateTable::default()).await, Ok(3));
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn without_a_meta_connecting_ends_in_time_and_says_why() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = Options { timeout: Duration::from_millis(200), ..Options::default() };
    let cluster = Cluster::new(&unused.to_string(), options).unwrap();
    let error = cluster.table("t").await.unwrap_err();
    assert!(error.to_string().contains(&unused.to_string()), "{error}");
    assert!(matches!(error, Error::Timeout { unreachable: true, .. }), "{error:?}");
}

/// Names that begin with `hang` are looked up for ever, others are not known.
fn bad_names() -> Names {
    Names::new(|node| {
        async move {
            if node.host().starts_with("hang") {
                std::future::pending::<()>().await;
            }
            Err(std::io::Error::other("nobody knows it"))
        }
        .boxed()
    })
}

#[tokio::test]
async fn names_that_do_not_resolve_are_told_in_time() {
    let options = Options {
        timeout: Duration::from_millis(500),
        admin_timeout: Duration::from_millis(500),
        ..Options::default()
    };
    for (metas, wants) in [
        ("wrong:1", &["cannot resolve wrong:1: nobody knows it"][..]),
        (
            "wrong:1,hang1:1,hang2:1,hang3:1",
            &["nobody knows it", "cannot resolve hang3:1: the lookup takes too long"],
        ),
    ] {
        let cluster = Cluster::with_names(metas, options, bad_names()).unwrap();
        let begun = Instant::now();
        for error in [
            cluster.table("t").await.unwrap_err(),
            cluster.create_table("t", &CreateTable::default()).await.unwrap_err(),
        ] {
            let Error::Timeout { last, unreachable: true } = &error else { panic!("{metas}: {error:?}") };
            assert!(wants.iter().all(|want| last.contains(want)), "{metas}: {last}");
        }
        assert!(begun.elapsed() < Duration::from_millis(1_500), "twice 500 ms: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_name_that_is_looked_up_for_ever_takes_its_share_of_the_time_only() {
    let fake = Fake::start(1, 1);
    let metas = format!("hang:1,{}", fake.metas);
    let options = Options { timeout: Duration::from_secs(3), ..Options::default() };
    let cluster = Cluster::with_names(&metas, options, bad_names()).unwrap();
    cluster.table("t").await.unwrap();
    let begun = Instant::now();
    cluster.table("t").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "the leader is known: {:?}", begun.elapsed());

    let (wrong, hang) = (Node::new("wrong:2"), Node::new("hang:2"));
    let error = cluster.remote_command(&wrong, "help", &[]).await.unwrap_err().to_string();
    assert!(error.contains("cannot resolve wrong:2: nobody knows it"), "{error}");
    let options = Options { admin_timeout: Duration::from_millis(300), ..options };
    let cluster = Cluster::with_names(&fake.metas, options, bad_names()).unwrap();
    let begun = Instant::now();
    let order = cluster.propose_move(Gpid::new(2, 0), MoveKind::CopyPrimary, &hang, &hang).await;
    let error = order.unwrap_err().to_string();
    assert!(error.contains("cannot resolve hang:2: the lookup takes too long"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn scans_see_each_row_once_whatever_happens_to_them() {
    let fake = Fake::start(1, 2);
    let table = open(&fake).await;
    for i in 0..100 {
        table.set(format!("h{}", i % 7), format!("s{i:03}"), format!("v{i}")).await.unwrap();
    }
    let options = ScanOptions { batch_size: 3, ..ScanOptions::default() };
    let mut scanner = table.full_scan(&options);
    let mut seen = Vec::new();
    while let Some(row) = scanner.next().await.unwrap() {
        seen.push(row.sort_key);
        match seen.len() {
            10 => fake.with(|world| world.tricks = [Trick::ForgetScans].into()),
            20 => fake.with(|world| world.tricks = [Trick::Refuse(ErrorCode::InvalidState)].into()),
            // The next server knows no scans.
            30 => fake.with(|world| {
                world.tricks = [Trick::ForgetScans].into();
                world.primary = 1;
            }),
            _ => {}
        }
    }
    seen.sort();
    let want: Vec<_> = (0..100).map(|i| Bytes::from(format!("s{i:03}"))).collect();
    assert_eq!(seen, want);

    let rows = table.hash_scan("h2", &Range::new("s010", "s050"), &options).unwrap().collect().await.unwrap();
    let got: Vec<_> =
        rows.iter().map(|row| (&row.hash_key[..], std::str::from_utf8(&row.sort_key).unwrap())).collect();
    assert_eq!(got, ["s016", "s023", "s030", "s037", "s044"].map(|sort_key| (&b"h2"[..], sort_key)));

    assert_eq!(table.full_scan(&options).count().await, Ok(100));
    fake.with(|world| world.tricks = [Trick::ForgetScans; 5].into());
    assert_eq!(table.full_scan(&options).count().await, Ok(100));
    let mut counts = Vec::new();
    for scanner in table.full_scans(&options) {
        counts.push(scanner.count().await.unwrap());
    }
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (4, 100));

    // A scanner that is dropped half-way tells the server.
    let before = fake.with(|world| world.cleared_scans);
    let mut scanner = table.full_scan(&options);
    scanner.next().await.unwrap().unwrap();
    drop(scanner);
    table.get("h", "after it on the same connection").await.unwrap();
    assert_eq!(fake.with(|world| world.cleared_scans), before + 1);
}

#[tokio::test]
async fn many_callers_share_few_connections() {
    let fake = Fake::start(1, 1);
    let table = open(&fake).await;
    let calls = (0..500).map(|i| {
        let table = table.clone();
        async move { table.set(format!("h{i}"), "s", "v").await }
    });
    futures::future::try_join_all(calls).await.unwrap();
    assert_eq!(fake.with(|world| world.rows.len()), 500);
}
