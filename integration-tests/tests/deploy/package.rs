//! The tarball. What is done with it on hosts is in `walk.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::docs::documents;
use crate::servers::{programs, repository, run};

/// The tarball.
fn pack(kind: &str, out: &Path) -> PathBuf {
    let mut command = Command::new(repository().join("deploy/pack.sh"));
    command.arg(kind).arg("--programs").arg(programs()).arg("--out").arg(out);
    let told = run(command.env("SOURCE_DATE_EPOCH", "1700000000"));
    let tarball = PathBuf::from(told.lines().last().unwrap());
    let name = fs::read_to_string(out.join("PACKAGE")).unwrap();
    assert_eq!(tarball, out.join(format!("{}.tar.gz", name.trim())));
    tarball
}

/// Unpacks, checks the sums, and gives the directory.
fn unpack(tarball: &Path, into: &Path) -> PathBuf {
    fs::create_dir_all(into).unwrap();
    run(Command::new("tar").arg("xzf").arg(tarball).arg("-C").arg(into));
    let name = tarball.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let dir = into.join(name);
    run(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(&dir));
    dir
}

#[test]
fn the_same_programs_give_the_same_package() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (pack("tools", &dir.path().join("a")), pack("tools", &dir.path().join("b")));
    assert!(fs::read(&first).unwrap() == fs::read(second).unwrap(), "two packages differ");
    let tools = unpack(&first, dir.path());
    for program in ["pegasus_shell", "pegasus_bench", "pegasus_onebox", "pegasus_server"] {
        run(Command::new(tools.join("bin").join(program)).arg("--version"));
    }
    let name = tools.file_name().unwrap().to_str().unwrap();
    let parts: Vec<_> = name.split('-').collect();
    assert_eq!((parts[0], parts[1], parts[2]), ("pegasus", "tools", env!("CARGO_PKG_VERSION")), "{name}");
    assert!(parts.len() == 6 && parts[4].contains("_glibc2."), "{name}");
    assert!(fs::read_to_string(tools.join("VERSION")).unwrap().contains("needs: Linux "));
}

#[test]
fn the_servers_package_has_all_documents() {
    let dir = tempfile::tempdir().unwrap();
    let server = unpack(&pack("server", dir.path()), dir.path());
    for document in documents().into_iter().filter(|path| path.starts_with("docs")) {
        let text = fs::read_to_string(server.join(&document)).unwrap_or_default();
        assert!(text == fs::read_to_string(repository().join(&document)).unwrap(), "{}", document.display());
    }
}

/// The answer with its head; empty when there is none yet.
pub fn http_get(url: &str) -> String {
    use std::io::{Read, Write};
    let rest = url.trim_start_matches("http://");
    let (host, path) = rest.split_at(rest.find('/').unwrap());
    let mut answer = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(host) {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let asked = write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\naccept: text/plain\r\n\r\n");
        let _ = asked.and_then(|()| stream.read_to_string(&mut answer)); // what came until then
    }
    answer
}
