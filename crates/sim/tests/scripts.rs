//! Every script of `scripts/`, as told, with several seeds.

use std::path::Path;

use pegasus_sim::script::Script;
use pegasus_sim::trace::Trace;

const SEEDS: u64 = 3;

/// Every second one, so that two cores have something to do.
fn play(which: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() > 60, "only {} scripts", names.len());
    let mut red = Vec::new();
    for path in names.iter().skip(which).step_by(2) {
        let name = path.file_name().unwrap().to_string_lossy();
        let script = Script::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut worst = 0;
        for seed in 1..=SEEDS {
            match script.play(seed, Trace::off()).0 {
                Ok(gaps) => worst = worst.max(gaps.into_iter().max().unwrap_or(0)),
                Err(why) => red.push(format!(
                    "{name}: {why}\n  again: cargo run -p pegasus-sim --bin sim -- --script crates/sim/scripts/{name} --seed {seed} --trace"
                )),
            }
        }
        println!("{name}: worst gap {worst} ms");
    }
    assert!(red.is_empty(), "{}", red.join("\n"));
}

#[test]
fn the_first_half_of_the_scripts_plays_as_told() {
    play(0);
}

#[test]
fn the_second_half_of_the_scripts_plays_as_told() {
    play(1);
}

#[test]
fn mistakes_in_a_script_are_told_with_their_line() {
    let why = Script::parse("hosts three").unwrap_err();
    assert!(why.contains("line 1"), "{why}");
    let script = Script::parse("# nothing\nrun 2parsecs").unwrap();
    let why = script.play(1, Trace::off()).0.unwrap_err();
    assert!(why.starts_with("line 2:"), "{why}");
    let why = Script::parse("dance").unwrap().play(1, Trace::off()).0.unwrap_err();
    assert!(why.contains("no such step"), "{why}");
}
