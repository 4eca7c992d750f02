//! The program as a process: what it says when it cannot measure.
#![allow(clippy::unwrap_used, reason = "a test: also its helpers may panic")]

use std::process::{Command, Output};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pegasus_bench")).args(args).env("RUST_BACKTRACE", "0").output().unwrap()
}

#[test]
fn a_cluster_that_is_not_there_is_an_error_and_no_figure() {
    // Port 1 is never in use.
    let output = bench(&["--meta", "127.0.0.1:1", "--redis", "false"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(err.contains("table temp") && !out.contains("ops/s"), "{out}{err}");
}

#[test]
fn wrong_arguments_are_named() {
    let output = bench(&["--redis-wait", "3"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("--redis-wait"), "{err}");
}
