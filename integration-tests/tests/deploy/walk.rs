//! The walk of somebody who knows nothing but the documents: `integration-tests/walk.sh`.

use std::process::Command;

use crate::servers::{programs, repository, run};

#[test]
fn a_stranger_walks_through_the_documents() {
    let script = repository().join("integration-tests/walk.sh");
    println!("{}", run(Command::new(script).arg(programs())));
}
