//! Random operations of all kinds through the wire, compared with a map, while processes are killed.
//!
//! A run prints its seed; `PEGASUS_TEST_SEED=n` takes the same operations again, `PEGASUS_TEST_OPERATIONS=n` more of
//! them. When processes are killed in between, and what they were doing then, is another time another matter.

#![allow(clippy::print_stdout, reason = "also what a test calls tells what it does")]

use pegasus_integration_tests::env_or;
use pegasus_integration_tests::model::{Plan, run};
use pegasus_onebox::{Durability, Engine};

fn random_operations(engine: Engine) {
    let seed = env_or("PEGASUS_TEST_SEED", rand::random_range(0..1_000_000));
    let durability = match engine {
        // A kill leaves the page cache as it is, so nothing may be missing either.
        Engine::Lsm if seed % 2 == 1 => Durability::PageCache,
        _ => Durability::Sync,
    };
    let plan = Plan {
        engine,
        durability,
        seed,
        operations: env_or("PEGASUS_TEST_OPERATIONS", 100_000),
        kills: 4,
        failovers: 2,
    };
    // Before anything can fail.
    println!("PEGASUS_TEST_SEED={}", plan.seed);
    let report = run(plan);
    println!("{report}");
    assert!(report.compared() >= plan.operations);
    assert!(report.refused() <= plan.operations / 50, "served nearly always");
}

#[test]
fn lsm_equals_a_map() {
    random_operations(Engine::Lsm);
}

#[test]
fn sled_equals_a_map() {
    random_operations(Engine::Sled);
}
