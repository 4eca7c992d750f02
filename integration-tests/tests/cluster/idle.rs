//! What a cluster costs when nobody uses it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use pegasus_integration_tests::{TestCluster, Usage};
use pegasus_onebox::Options;

/// The promise is 100 MB and 1 % of a core for a release build; a debug build takes three times as long.
#[test]
fn idle_servers_are_cheap() {
    const WATCH: Duration = Duration::from_secs(5);
    let cluster = TestCluster::start(Options::default());
    sleep(Duration::from_secs(1));
    let pids: Vec<_> =
        cluster.members().iter().map(|m| (m.name.clone(), cluster.pid(&m.name).unwrap())).collect();
    let before: Vec<_> = pids.iter().map(|(_, pid)| Usage::of(*pid)).collect();
    let begun = Instant::now();
    sleep(WATCH);
    for ((name, pid), before) in pids.iter().zip(before) {
        let now = Usage::of(*pid);
        let percent = (now.cpu_ms - before.cpu_ms) as f64 / begun.elapsed().as_millis() as f64 * 100.0;
        println!("{name}: {} MB, {percent:.1} % of a core", now.resident_kib / 1000);
        if name.starts_with("replica") {
            assert!(now.resident_kib < 100_000, "{name}: {now:?}");
            assert!(percent < 5.0, "{name}: {percent:.1} %");
        }
    }
}
