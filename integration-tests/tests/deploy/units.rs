//! The service units: installed into an empty root, and judged by systemd's own tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::servers::{programs, repository, run};

pub const UNITS: [&str; 3] = ["pegasus-meta.service", "pegasus-replica.service", "pegasus-collector.service"];
/// Of `systemd-analyze security`: 0 = nothing is allowed, 10 = everything is. Below 2 is "OK".
const EXPOSURE_MAX: f64 = 2.0;

fn install(action: &str, root: &Path) -> String {
    let mut command = Command::new(repository().join("deploy/systemd/install.sh"));
    command.arg(action).arg("--programs").arg(programs());
    command.arg("--config").arg(repository().join("config/config.ini"));
    run(command.env("DESTDIR", root).env("PREFIX", "/usr"))
}

#[test]
fn systemd_finds_nothing_wrong() {
    let root = tempfile::tempdir().unwrap();
    install("install", root.path());
    let units = root.path().join("usr/lib/systemd/system");
    for unit in UNITS {
        let file = units.join(unit);
        systemd_approves(&file, &programs().join("pegasus_server"));
    }
}

/// Of an installed unit, whose program is elsewhere than it will be.
pub fn systemd_approves(file: &Path, server: &Path) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains("ExecStart=/usr/bin/pegasus_server /etc/pegasus/config.ini -app_list "), "{text}");
    fs::write(file, text.replace("/usr/bin/pegasus_server", server.to_str().unwrap())).unwrap();
    let told = run(Command::new("systemd-analyze").arg("verify").arg(file));
    let of_ours: Vec<_> = told.lines().filter(|line| line.contains("pegasus")).collect();
    assert!(of_ours.is_empty(), "{of_ours:#?}");

    let judged = run(Command::new("systemd-analyze").args(["security", "--offline=true"]).arg(file));
    let overall = judged.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let level: f64 = overall.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    println!("{overall}");
    assert!(level < EXPOSURE_MAX, "{judged}");
}

/// The bounds of the units fit those of the program (supervise.rs): it ends within 75 s.
#[test]
fn times_fit() {
    for unit in UNITS {
        let text = fs::read_to_string(repository().join("deploy/systemd").join(unit)).unwrap();
        let value = |key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}=")));
            line.unwrap_or_else(|| panic!("{unit}: {key}")).parse().unwrap()
        };
        assert!(value("TimeoutStopSec") > 75, "{unit}");
        assert!(value("TimeoutStartSec") > 60, "{unit}: it asks for 60 s more while it loads");
        assert_eq!(value("RestartPreventExitStatus"), 78, "{unit}");
        for line in ["Type=notify", "Restart=always", "StartLimitIntervalSec=0", "ProtectSystem=strict"] {
            assert!(text.lines().any(|l| l == line), "{unit}: {line}");
        }
    }
}

/// What is filtered out fails with EPERM, and the program goes on without it: worse, and with a warning only.
#[test]
fn what_the_program_asks_of_the_kernel_is_allowed() {
    let text = fs::read_to_string(repository().join("deploy/systemd/pegasus-replica.service")).unwrap();
    // The last word on a call is that of the last line.
    let last = text.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")).next_back().unwrap();
    let allowed: Vec<_> = last.split_whitespace().collect();
    // The limit of open files (supervise.rs); threads of low priority (learn_io/workers.rs).
    for call in ["prlimit64", "setrlimit", "setpriority"] {
        assert!(allowed.contains(&call), "{call} is not in {last}");
    }
}

#[test]
fn installing_keeps_what_an_operator_has_written() {
    let root = tempfile::tempdir().unwrap();
    install("install", root.path());
    let config = root.path().join("etc/pegasus/config.ini");
    fs::write(&config, "mine").unwrap();
    let told = install("install", root.path());
    assert!(told.contains("config.ini.new"), "{told}");
    assert_eq!(fs::read_to_string(&config).unwrap(), "mine");
    assert!(root.path().join("usr/bin/pegasus_server").exists());
    install("uninstall", root.path());
    install("uninstall", root.path());
    assert_eq!(fs::read_to_string(&config).unwrap(), "mine");
    for gone in ["usr/bin/pegasus_server", "usr/lib/systemd/system/pegasus-meta.service"] {
        assert!(!root.path().join(gone).exists(), "{gone}");
    }
}
