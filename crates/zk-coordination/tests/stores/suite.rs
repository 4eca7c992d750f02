//! What every store does, whatever is behind it. Each case has a part of the tree of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use pegasus_zk_coordination::store::{MAX_MULTI_BYTES, MAX_NODE_BYTES};
use pegasus_zk_coordination::{MetaStore, Mode, Op, OpResult, SessionState, StoreError, Watch};

pub type Store = Arc<dyn MetaStore>;

/// Watches and ends of sessions take a moment. Only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What must not come is waited for this long.
const MOMENT: Duration = Duration::from_millis(200);

/// All that one session can see.
pub async fn of_one_session(store: &Store) {
    let root = |case: &'static str| async move {
        let root = format!("/suite/{case}");
        store.ensure_path(&root).await.unwrap();
        eprintln!("{}: {case}", store.describe());
        root
    };
    assert_eq!(*store.session().borrow(), SessionState::Connected);
    assert!(store.session_timeout() >= Duration::from_secs(1));
    versions(store, &root("versions").await).await;
    conditions(store, &root("conditions").await).await;
    results(store, &root("results").await).await;
    children(store, &root("children").await).await;
    sequence(store, &root("sequence").await).await;
    limits(store, &root("limits").await).await;
    order(store, &root("order").await).await;
    many(store, &root("many").await).await;
    watches(store, &root("watches").await).await;
    bad_paths(store).await;
}

async fn fired(watch: Watch) {
    tokio::time::timeout(PATIENCE, watch.changed()).await.expect("a watch did not fire");
}

fn set(path: String, version: Option<i32>) -> Op {
    Op::Set { path, bytes: "y".into(), version }
}

fn delete(path: String, version: Option<i32>) -> Op {
    Op::Delete { path, version }
}

fn check(path: String, version: Option<i32>) -> Op {
    Op::Check { path, version }
}

async fn versions(store: &Store, root: &str) {
    let path = &format!("{root}/a");
    assert_eq!(store.get(path).await, Ok(None));
    store.create(path, "one".into()).await.unwrap();
    let datum = store.get(path).await.unwrap().unwrap();
    assert_eq!((&datum.bytes[..], datum.version), (&b"one"[..], 0));
    assert_eq!(store.set(path, "two".into(), 0).await, Ok(1));
    assert_eq!(store.set(path, Bytes::new(), 1).await, Ok(2));
    let datum = store.get(path).await.unwrap().unwrap();
    assert_eq!((&datum.bytes[..], datum.version), (&b""[..], 2));
    let again = store.set(path, "three".into(), 1).await;
    assert_eq!(again, Err(StoreError::BadVersion { path: path.clone(), wanted: 1 }));
    store.delete(path, Some(2)).await.unwrap();
    store.create(path, "new".into()).await.unwrap();
    assert_eq!(store.get(path).await.unwrap().unwrap().version, 0, "a new life begins at 0");
}

/// All or nothing, and errors that name what is wrong.
async fn conditions(store: &Store, root: &str) {
    let no = |path: String| StoreError::NoNode(path);
    let bad = |path: String, wanted| StoreError::BadVersion { path, wanted };
    let made = vec![Op::create(format!("{root}/0"), ""), Op::create(format!("{root}/ab"), "")];
    store.multi(made).await.unwrap();
    for case in 0..17 {
        let top = format!("{root}/0/c{case}");
        let at = |rest: &str| format!("{top}{rest}");
        let create = |path: String| Op::create(path, "");
        store.multi(vec![create(at("")), create(at("/b"))]).await.unwrap();
        let (ops, want) = match case {
            0 => (vec![set(at(""), Some(0))], Ok(())),
            1 => (vec![set(at(""), None), set(at(""), Some(1)), check(at(""), Some(2))], Ok(())),
            2 => (vec![set(at(""), Some(1))], Err(bad(at(""), 1))),
            3 => (vec![set(at("/x"), None)], Err(no(at("/x")))),
            4 => (vec![create(at(""))], Err(StoreError::NodeExists(at("")))),
            5 => (vec![create(at("/x/y"))], Err(no(at("/x")))),
            6 => (vec![create(at("/x")), create(at("/x/y"))], Ok(())),
            7 => (vec![delete(at(""), None)], Err(StoreError::NotEmpty(at("")))),
            8 => (vec![delete(at("/b"), Some(0)), delete(at(""), Some(0))], Ok(())),
            9 => (vec![delete(at("/b"), None), Op::create(at("/b"), "again")], Ok(())),
            10 => (vec![delete(at("/b"), Some(9))], Err(bad(at("/b"), 9))),
            11 => (vec![check(at(""), Some(3))], Err(bad(at(""), 3))),
            12 => (vec![set(at("/b"), None), check(at("/q"), None)], Err(no(at("/q")))),
            13 => (
                vec![create(at("/x")), set(at("/x"), Some(0)), set(at("/b"), Some(1))],
                Err(bad(at("/b"), 1)),
            ),
            14 => (vec![check(at("/q"), Some(0)), set(at("/b"), None)], Err(no(at("/q")))),
            15 => (vec![delete(at("/q"), None), set(at("/b"), None)], Err(no(at("/q")))),
            _ => (vec![], Ok(())),
        };
        let before = look(store, &top).await;
        let changes = ops.iter().any(|op| !matches!(op, Op::Check { .. }));
        let got = store.multi(ops.clone()).await.map(drop);
        assert_eq!(got, want, "{ops:?}");
        let changed = look(store, &top).await != before;
        assert_eq!(changed, want.is_ok() && changes, "all or nothing: {ops:?}");
    }
}

/// Everything of a case that its operations could have changed: versions and children.
async fn look(store: &Store, top: &str) -> Vec<(String, Option<(Bytes, i32)>)> {
    let mut seen = Vec::new();
    for rest in ["", "/b", "/x", "/x/y", "/q"] {
        let datum = store.get(&format!("{top}{rest}")).await.unwrap();
        seen.push((rest.to_owned(), datum.map(|datum| (datum.bytes, datum.version))));
    }
    let names = store.children(top).await.unwrap_or_default();
    seen.push((names.join(" "), None));
    seen
}

async fn results(store: &Store, root: &str) {
    let at = |rest: &str| format!("{root}/{rest}");
    let ops = vec![
        Op::create(at("a"), ""),
        set(at("a"), Some(0)),
        check(at("a"), None),
        Op::create(at("b"), ""),
        delete(at("b"), None),
    ];
    let want = [
        OpResult::Created(at("a")),
        OpResult::Set(1),
        OpResult::Checked,
        OpResult::Created(at("b")),
        OpResult::Deleted,
    ];
    assert_eq!(store.multi(ops).await.unwrap(), want);
    assert_eq!(store.multi(vec![]).await.unwrap(), []);
}

async fn children(store: &Store, root: &str) {
    for name in ["b", "a", "10", "2", "b/x", "ab"] {
        store.create(&format!("{root}/{name}"), "".into()).await.unwrap();
    }
    assert_eq!(store.children(root).await.unwrap(), ["10", "2", "a", "ab", "b"]);
    assert_eq!(store.children(&format!("{root}/a")).await.unwrap(), [""; 0]);
    let none = format!("{root}/none");
    assert_eq!(store.children(&none).await, Err(StoreError::NoNode(none.clone())));
    let watched = store.children_watched(&none).await.map(drop);
    assert_eq!(watched, Err(StoreError::NoNode(none)));
}

async fn sequence(store: &Store, root: &str) {
    let join = |bytes: &'static str| Op::Create {
        path: format!("{root}/n"),
        bytes: bytes.into(),
        mode: Mode::EphemeralSequential,
    };
    let mut last = String::new();
    for bytes in ["one", "two", "three"] {
        let created = store.multi(vec![check(root.to_owned(), None), join(bytes)]).await.unwrap();
        let [OpResult::Checked, OpResult::Created(path)] = &created[..] else { panic!("{created:?}") };
        let digits = path.strip_prefix(&format!("{root}/n")).unwrap();
        assert!(digits.len() == 10 && digits.parse::<u32>().is_ok(), "{path}");
        assert!(*path > last, "{path} after {last}");
        assert_eq!(&store.get(path).await.unwrap().unwrap().bytes[..], bytes.as_bytes());
        last = path.clone();
    }
    // A number that was given never returns.
    store.delete(&last, None).await.unwrap();
    let next = store.multi(vec![join("four")]).await.unwrap();
    assert!(matches!(&next[..], [OpResult::Created(path)] if *path > last), "{next:?}");
    let alone = format!("{root}/alone");
    let ephemeral = Op::Create { path: alone.clone(), bytes: "".into(), mode: Mode::Ephemeral };
    store.multi(vec![ephemeral]).await.unwrap();
    let below = store.create(&format!("{alone}/x"), "".into()).await;
    assert_eq!(below, Err(StoreError::NoChildren(alone)));
}

async fn limits(store: &Store, root: &str) {
    let path = format!("{root}/large");
    let bytes = |n: usize| Bytes::from(vec![b'x'; n]);
    let too_large = |result: Result<(), StoreError>| matches!(result, Err(StoreError::TooLarge { .. }));
    assert!(too_large(store.create(&path, bytes(MAX_NODE_BYTES)).await), "the path counts, too");
    store.create(&path, bytes(MAX_NODE_BYTES - path.len())).await.unwrap();
    let datum = store.get(&path).await.unwrap().unwrap();
    assert_eq!(datum.bytes.len(), MAX_NODE_BYTES - path.len());
    let half = |name: &str| {
        let path = format!("{root}/{name}");
        let len = MAX_MULTI_BYTES / 2 - path.len();
        Op::create(path, bytes(len))
    };
    assert!(too_large(
        store.multi(vec![half("a"), half("b"), Op::create(format!("{root}/c"), "")]).await.map(drop)
    ));
    // A fence on top of what fills a multi is no reason to refuse it.
    store.multi(vec![check(root.to_owned(), None), half("a"), half("b")]).await.unwrap();
    assert_eq!(store.children(root).await.unwrap(), ["a", "b", "large"]);
}

/// Calls are carried out in the order in which they were made, whoever is awaited first.
async fn order(store: &Store, root: &str) {
    let path = format!("{root}/a");
    let create = store.multi(vec![Op::create(path.clone(), "0")]);
    let sets: Vec<_> =
        (0..50).map(|n| store.multi(vec![Op::set(path.clone(), format!("{}", n + 1), n)])).collect();
    let got = store.get(&path);
    let unpolled = store.multi(vec![Op::create(format!("{root}/unpolled"), "")]);
    drop(unpolled);
    let seen = store.get(&format!("{root}/unpolled"));
    let got = got.await.unwrap().unwrap();
    assert_eq!((&got.bytes[..], got.version), (&b"50"[..], 50));
    for set in sets.into_iter().rev() {
        set.await.unwrap();
    }
    create.await.unwrap();
    assert!(seen.await.unwrap().is_some(), "a call is made, not only prepared");
}

async fn many(store: &Store, root: &str) {
    let path = |n: usize| format!("{root}/{n}");
    for first in (0..1000).step_by(250) {
        let ops = (first..first + 250).map(|n| Op::create(path(n), n.to_string())).collect();
        store.multi(ops).await.unwrap();
    }
    let data = store.get_all((0..1001).map(path).collect()).await.unwrap();
    assert_eq!(data.len(), 1001);
    for (n, datum) in data.into_iter().enumerate() {
        let want = (n < 1000).then(|| Bytes::from(n.to_string()));
        assert_eq!(datum.map(|datum| datum.bytes), want, "{n}");
    }
    assert_eq!(store.get_all(vec![]).await, Ok(vec![]));
}

async fn watches(store: &Store, root: &str) {
    let (path, other) = (format!("{root}/a"), format!("{root}/other"));
    // A node that is not there: its creation.
    let (none, watch) = store.get_watched(&path).await.unwrap();
    assert_eq!(none, None);
    let (names, list) = store.children_watched(root).await.unwrap();
    assert_eq!(names, [""; 0]);
    store.create(&path, "1".into()).await.unwrap();
    fired(watch).await;
    fired(list).await;
    // Data and deletion.
    let (datum, watch) = store.get_watched(&path).await.unwrap();
    assert_eq!(datum.unwrap().version, 0);
    store.set(&path, "2".into(), 0).await.unwrap();
    fired(watch).await;
    let (_, watch) = store.get_watched(&path).await.unwrap();
    let (names, list) = store.children_watched(root).await.unwrap();
    assert_eq!(names, ["a"]);
    store.delete(&path, None).await.unwrap();
    fired(watch).await;
    fired(list).await;
    // What does not concern it: a neighbour, the data of a child, a failed multi, a grandchild.
    store.create(&path, "".into()).await.unwrap();
    store.create(&other, "".into()).await.unwrap();
    let (_, watch) = store.get_watched(&path).await.unwrap();
    let (_, list) = store.children_watched(root).await.unwrap();
    store.set(&other, "x".into(), 0).await.unwrap();
    store.create(&format!("{other}/grandchild"), "".into()).await.unwrap();
    assert!(store.multi(vec![set(path.clone(), None), check(other, Some(9))]).await.is_err());
    let mut both = std::pin::pin!(async {
        tokio::select! { () = watch.changed() => "node", () = list.changed() => "list" }
    });
    let early = tokio::time::timeout(MOMENT, &mut both).await;
    assert!(early.is_err(), "the watch of the {} fired for nothing", early.unwrap_or_default());
    store.set(&path, "3".into(), 0).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, both).await, Ok("node"));
    // Several wait for the same, and who does not wait any more harms nobody.
    let (_, first) = store.get_watched(&path).await.unwrap();
    let (_, second) = store.get_watched(&path).await.unwrap();
    let (_, third) = store.get_watched(&path).await.unwrap();
    drop(second);
    store.set(&path, "4".into(), 1).await.unwrap();
    fired(first).await;
    fired(third).await;
}

async fn bad_paths(store: &Store) {
    for path in ["", "/", "a", "/a/", "//a", "/a//b"] {
        let bad = Err(StoreError::BadPath(path.into()));
        assert_eq!(store.get(path).await.map(drop), bad);
        assert_eq!(store.children(path).await.map(drop), bad);
        assert_eq!(store.get_all(vec![path.into()]).await.map(drop), bad);
        assert_eq!(store.create(path, "".into()).await, bad);
        assert_eq!(store.get_watched(path).await.map(drop), bad);
    }
}

/// What a second session sees of the first. `end` ends the first one.
pub async fn of_two_sessions(first: Store, second: Store, end: impl Future<Output = ()>) {
    let root = "/suite/sessions";
    first.ensure_path(root).await.unwrap();
    let mine = format!("{root}/mine");
    let ephemeral = |path: &str| Op::Create { path: path.into(), bytes: "x".into(), mode: Mode::Ephemeral };
    first.multi(vec![ephemeral(&mine)]).await.unwrap();
    // Read your neighbour's writes, also through another server.
    for version in 0..20 {
        first.set(&mine, format!("{version}").into(), version).await.unwrap();
        assert_eq!(second.get(&mine).await.unwrap().unwrap().version, version + 1);
        assert_eq!(second.children(root).await.unwrap(), ["mine"]);
    }
    let (_, node) = second.get_watched(&mine).await.unwrap();
    let (_, list) = second.children_watched(root).await.unwrap();
    let (_, own) = first.get_watched(&mine).await.unwrap();
    let mut state = first.session();
    let outlived = first.get(&mine);
    assert!(outlived.await.unwrap().is_some());
    end.await;
    fired(node).await;
    fired(list).await;
    fired(own).await;
    assert_eq!(second.children(root).await.unwrap(), [""; 0]);
    let over = state.wait_for(|state| *state == SessionState::Over);
    tokio::time::timeout(PATIENCE, over).await.expect("the end of the session is told").unwrap();
    // Over for good.
    assert_eq!(first.get(&mine).await, Err(StoreError::SessionOver));
    assert_eq!(first.multi(vec![ephemeral(&mine)]).await, Err(StoreError::SessionOver));
    assert_eq!(first.get_all(vec![mine]).await, Err(StoreError::SessionOver));
    assert_eq!(second.get("/suite").now_or_never().and_then(Result::err), None);
}
