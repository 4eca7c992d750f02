//! The Debian package: what is in it, and that its parts fit together.

use std::fs;
use std::process::Command;

use crate::servers::{repository, run};
use crate::units::{UNITS, systemd_approves};

fn dpkg(what: &str, deb: &str, more: &[&str]) -> String {
    run(Command::new("dpkg-deb").arg(what).arg(deb).args(more))
}

#[test]
fn the_debian_package_brings_units_a_user_and_kept_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let told = run(Command::new(repository().join("deploy/deb.sh"))
        .args(["server", "--profile", "dev", "--fast", "--out"])
        .arg(dir.path())
        .env("SOURCE_DATE_EPOCH", "1700000000"));
    let deb = told.lines().last().unwrap();
    assert!(deb.contains(&format!("pegasus-server_{}-", env!("CARGO_PKG_VERSION"))), "{told}");
    // What an operator has changed is asked for at an upgrade, not overwritten.
    assert_eq!(dpkg("-I", deb, &["conffiles"]), "/etc/pegasus/config.ini\n/etc/pegasus/pegasus.env\n");
    assert!(dpkg("-f", deb, &["Depends"]).contains("libc6"), "the libraries that it needs");

    let root = dir.path().join("root");
    dpkg("-x", deb, &[root.to_str().unwrap()]);
    assert_eq!(
        fs::read(root.join("etc/pegasus/config.ini")).unwrap(),
        fs::read(repository().join("config/config.ini")).unwrap()
    );
    let documents = root.join("usr/share/doc/pegasus-server");
    assert!(documents.join("install.md").exists() && documents.join("decisions/README.md").exists());
    run(Command::new(root.join("usr/bin/pegasus_server")).arg("--version"));
    for unit in UNITS {
        systemd_approves(
            &root.join("usr/lib/systemd/system").join(unit),
            &root.join("usr/bin/pegasus_server"),
        );
    }
    // Looked for below the root.
    let made =
        run(Command::new("systemd-sysusers").arg("--dry-run").arg("--root").arg(&root).arg("pegasus.conf"));
    assert!(made.contains("Creating user 'pegasus'"), "{made}");
    for script in ["postinst", "prerm", "postrm"] {
        let file = dir.path().join(script);
        fs::write(&file, dpkg("-I", deb, &[script])).unwrap();
        run(Command::new("sh").arg("-n").arg(file));
    }
}
