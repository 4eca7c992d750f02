//! Random operations of all kinds through the wire, compared with a map, while processes are killed.
//!
//! A run prints its seed; `PEGASUS_TEST_SEED=n` takes the same operations again, `PEGASUS_TEST_OPERATIONS=n` more of
//! them. When processes are killed in between, and what they were doing then, is another time another matter.

use pegasus_integration_tests::env_or;
use pegasus_integration_tests::model::{Plan, run};
use pegasus_onebox::Engine;

fn random_operations(engine: Engine) {
    let plan = Plan {
        engine,
        seed: env_or("PEGASUS_TEST_SEED", rand::random_range(0..1_000_000)),
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
