//! Mutations go in as a whole, and come out in order.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use pegasus_storage::{EngineError, EngineKind, new_factory};
use pegasus_types::{Decree, LogLocation};

use crate::harness::*;

pub fn a_mutation_is_seen_as_a_whole(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    assert_eq!((engine.applied_decree(), engine.durable_decree()), (Decree(0), Decree(0)));
    apply_next(&*engine, &put("k1", "old"));
    let v = |data: &str| Some(stored(0, data.as_bytes()));
    let batch = body([
        (&b"k1"[..], None),
        (b"k2", v("two")),
        (b"k3", v("first")),
        (b"k3", v("last")),
        (b"k4", v("x")),
        (b"k4", None),
    ]);
    apply_next(&*engine, &batch);
    for (key, want) in [("k1", None), ("k2", Some("two")), ("k3", Some("last")), ("k4", None), ("k5", None)] {
        assert_eq!(data(&*engine, key).as_deref(), want, "{key}");
    }
    assert_eq!(engine.applied_decree(), Decree(2));
    apply(&*engine, Decree(7), &Bytes::new());
    assert_eq!(engine.applied_decree(), Decree(7), "an empty write moves the decree, gaps are allowed");
    assert_eq!(engine.newest_timestamp_us(), 1_000_007);
    assert_eq!(contents(&*engine).len(), 2);
    assert_eq!(bench.factory.stats().partitions, 1);
}

pub fn damage_and_disorder_change_nothing(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    let good = body([(&b"k1"[..], Some(stored(0, b"1"))), (b"k2", Some(stored(0, b"2")))]);
    apply(&*engine, Decree(5), &good);
    let before = contents(&*engine);
    let refused = |decree, body: &Bytes| engine.apply(decree, 0, body, LogLocation::default()).unwrap_err();
    for decree in [Decree(5), Decree(4), Decree(0), Decree(-1)] {
        assert!(matches!(refused(decree, &put("k3", "x")), EngineError::DecreeNotGrowing { .. }));
    }
    let reserved = body([(&b"k3"[..], Some(stored(0, b"3"))), (b"\xff\xffd", Some(stored(0, b"")))]);
    let too_long = vec![b'k'; 70_000];
    let too_long = body([(&b"k3"[..], Some(stored(0, b"3"))), (&too_long[..], None)]);
    for bad in [good.slice(..good.len() - 1), reserved, too_long, body([(&b""[..], None)])] {
        assert!(matches!(refused(Decree(6), &bad), EngineError::Corrupt(_)));
    }
    assert_eq!((contents(&*engine), engine.applied_decree()), (before, Decree(5)));
}

pub fn ranges_have_bounds_and_two_directions(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    // Spread over several flushes, with deletes between.
    for round in 0..3 {
        for i in (round..300).step_by(3) {
            apply_next(&*engine, &put(&format!("{i:04}"), &"v".repeat(200)));
        }
        apply_next(&*engine, &body([(format!("{:04}", round * 51).as_bytes(), None)]));
        engine.flush(true).unwrap();
    }
    let keys: Vec<Bytes> = contents(&*engine).into_keys().collect();
    assert_eq!(keys.len(), 297);
    let view = engine.view().unwrap();
    for lo in
        [Unbounded, Included("0050"), Excluded("0051"), Included("0299"), Excluded("0299"), Included("zz")]
    {
        for hi in [
            Unbounded,
            Included("0100"),
            Excluded("0101"),
            Included("0000"),
            Excluded("0000"),
            Included("zz"),
        ] {
            for reverse in [false, true] {
                let mut want: Vec<_> = keys
                    .iter()
                    .filter(|key| {
                        let key = std::str::from_utf8(key).unwrap();
                        std::ops::RangeBounds::<str>::contains(&(lo, hi), key)
                    })
                    .cloned()
                    .collect();
                if reverse {
                    want.reverse();
                }
                let got = rows(&*view, lo.map(str::as_bytes), hi.map(str::as_bytes), reverse);
                let got: Vec<_> = got.into_iter().map(|(key, _)| key).collect();
                assert_eq!(got, want, "{lo:?} {hi:?} {reverse}");
            }
        }
    }
    let some: Vec<_> = view.range(Unbounded, Unbounded, true).take(2).map(|row| row.unwrap().0).collect();
    assert_eq!(some, ["0299", "0298"]);
    let reserved = [(Unbounded, Included(&b"\xff\xffd"[..])), (Included(&b"\xff\xff"[..]), Unbounded)];
    assert_eq!(rows(&*view, reserved[0].0, reserved[0].1, false).len(), 297);
    assert_eq!(rows(&*view, reserved[1].0, reserved[1].1, true).len(), 0);
    assert!(engine.get(b"\xff\xffd").unwrap().is_none() && view.get(b"\xff\xffd").unwrap().is_none());
}

pub fn long_keys_and_large_values(kind: EngineKind) {
    let bench = Bench::new(kind);
    let engine = bench.open();
    let long = vec![b'k'; 65_535];
    let large = stored(0, &vec![7; 5 << 20]);
    apply_next(&*engine, &body([(&long[..], Some(large.clone())), (b"k0", Some(stored(0, b"")))]));
    for _ in 0..2 {
        assert_eq!(engine.get(&long).unwrap().unwrap().stored(), &large);
        assert_eq!(data(&*engine, "k0").as_deref(), Some(""));
        assert!(engine.get(&vec![b'k'; 100_000]).unwrap().is_none());
        assert!(engine.get(b"").unwrap().is_none());
        assert_eq!(contents(&*engine).len(), 2);
        engine.flush(true).unwrap();
    }
}

pub fn other_engines_are_not_overlooked(kind: EngineKind) {
    let bench = Bench::new(kind);
    drop(bench.open());
    let other = if kind == EngineKind::Lsm { EngineKind::Sled } else { EngineKind::Lsm };
    let refused = new_factory(other, small_options()).open(&bench.dir);
    assert!(matches!(refused, Err(EngineError::WrongEngine(_))));
}

/// Every mutation writes its number under all keys; whoever sees two numbers has seen half of one.
pub fn no_view_sees_half_a_mutation(kind: EngineKind) {
    const KEYS: usize = 40;
    let bench = Bench::new(kind);
    let engine = bench.open();
    let keys: Vec<String> = (0..KEYS).map(|i| format!("key{i:02}")).collect();
    let mutation = |n: i64| {
        let value = stored(0, format!("{n:0100}").as_bytes());
        body(keys.iter().map(|key| (key.as_bytes(), Some(value.clone()))))
    };
    apply(&*engine, Decree(1), &mutation(1));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        let bodies: Vec<_> = (2..402).map(mutation).collect();
        move || {
            for body in &bodies {
                apply_next(&*engine, body);
            }
            stop.store(true, Ordering::Release);
        }
    });
    let mut looks = 0;
    while !stop.load(Ordering::Acquire) || looks < 20 {
        let view = engine.view().unwrap();
        let seen = all(&*view);
        let numbers: std::collections::BTreeSet<_> = seen.values().cloned().collect();
        assert_eq!((seen.len(), numbers.len()), (KEYS, 1), "look {looks}");
        looks += 1;
    }
    writer.join().unwrap();
}
