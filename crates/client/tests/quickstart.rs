//! The example does what it says.
#![allow(clippy::unwrap_used, reason = "test code")]

#[allow(dead_code, reason = "shared with the unit tests, which use all of it")]
#[path = "../src/tests/fake.rs"]
mod fake;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../examples/quickstart.rs"]
mod quickstart;

#[tokio::test]
async fn quickstart_runs_and_cleans_up() {
    let fake = fake::Fake::start(1, 1);
    quickstart::session(&fake.metas, "t").await.unwrap();
    assert_eq!(fake.with(|world| world.rows.len()), 0);
}
