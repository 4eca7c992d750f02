//! Every script of `scripts/`, as told, with several seeds.

use std::path::Path;

use pegasus_sim::script::Script;
use pegasus_sim::trace::Trace;

const SEEDS: u64 = 3;

/// Every second one, so that two cores have something to do.
fn play(which: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("the scripts are there")
        .map(|entry| entry.expect("they can be listed").path())
        .collect();
    names.sort();
    assert!(names.len() > 60, "only {} scripts", names.len());
    let mut red = Vec::new();
    for path in names.iter().skip(which).step_by(2) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(path).expect("a script can be read");
        let script = Script::parse(&text).unwrap_or_else(|why| panic!("{name}: {why}"));
        for seed in 1..=SEEDS {
            if let Err(why) = script.play(seed, Trace::off()).0 {
                red.push(format!(
                    "{name}: {why}\n  again: cargo run -p pegasus-sim --bin sim -- --script crates/sim/scripts/{name} --seed {seed} --trace"
                ));
            }
        }
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
