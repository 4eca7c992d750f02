//! Commands as they are typed, against a fake cluster.
#![allow(clippy::unwrap_used, reason = "test code")]

#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test code, shared with the client's tests, which use all of it"
)]
#[path = "../../client/src/tests/fake.rs"]
mod fake;

use std::process::{Command, Output as Ended, Stdio};

use fake::Fake;
use pegasus_client::{Cluster, Options};
use pegasus_shell::commands::{Answer, Failure, run};
use pegasus_shell::output::Output;
use pegasus_shell::session::Session;
use pegasus_shell::words::split;

struct Shell {
    session: Session,
    fake: Fake,
}

impl Shell {
    fn start() -> Self {
        let fake = Fake::start(1, 2);
        let options = Options { timeout: std::time::Duration::from_millis(500), ..Options::default() };
        let session = Session::new(Cluster::new(&fake.metas, options).unwrap());
        Self { session, fake }
    }

    async fn run(&mut self, line: &str, json: bool) -> (Result<Answer, Failure>, String) {
        let mut bytes = Vec::new();
        let mut out = Output::new(&mut bytes, json);
        let answer = run(&mut self.session, split(line).unwrap(), &mut out).await;
        out.finish().unwrap();
        (answer, String::from_utf8(bytes).unwrap())
    }

    /// The text of a command that is expected to succeed.
    async fn says(&mut self, line: &str) -> String {
        let (answer, text) = self.run(line, false).await;
        assert!(answer.is_ok(), "{line}: {answer:?}");
        text
    }

    async fn fails(&mut self, line: &str) -> String {
        let (answer, _) = self.run(line, false).await;
        answer.expect_err(line).to_string()
    }
}

#[tokio::test]
async fn a_session_with_data() {
    let mut shell = Shell::start();
    assert_eq!(shell.says("set t h s v").await, "OK\n");
    assert_eq!(shell.says("use t").await, "table \"t\", 4 partitions\n");
    assert_eq!(shell.says("get h s").await, "\"v\"\n");
    assert_eq!(shell.says(r#"set h bin "a\x00\xff \"q\"" 100"#).await, "OK\n");
    assert_eq!(shell.says("get h bin").await, "\"a\\x00\\xFF \\\"q\\\"\"\n");
    assert!(["100 seconds\n", "99 seconds\n"].contains(&&*shell.says("ttl h bin").await));
    assert_eq!(shell.says("ttl h s").await, "no ttl\n");
    assert_eq!(shell.run("get h nothing", false).await.0.unwrap(), Answer::No);
    assert_eq!(shell.run("exist h s", false).await.0.unwrap(), Answer::Yes);
    assert_eq!(shell.says("incr n c").await + &shell.says("incr n c -5").await, "1\n-4\n");
    assert_eq!(shell.says("mset m a 1 b 2").await, "OK, 2 values\n");
    assert_eq!(shell.says("mget m b a x").await, "\"b\" => \"2\"\n\"a\" => \"1\"\n2 rows\n");
    assert_eq!(shell.says("mget m").await, "\"a\" => \"1\"\n\"b\" => \"2\"\n2 rows\n");
    assert_eq!(shell.says("multi_get_sortkeys m").await, "\"a\"\n\"b\"\n2 rows\n");
    assert_eq!(shell.says("sortkey_count m").await, "2\n");
    assert_eq!(shell.says("hash_scan m").await, "\"m\" : \"a\" => \"1\"\n\"m\" : \"b\" => \"2\"\n2 rows\n");
    assert_eq!(shell.says("hash_scan m b -t").await, "\"m\" : \"b\" => \"2\" (no ttl)\n1 rows\n");
    assert_eq!(shell.says("full_scan -n 1 -i").await.lines().count(), 2);
    assert!(shell.says("count_data").await.ends_with("\n\n5 rows\n"));
    assert_eq!(shell.says("multi_del m a b").await, "OK, 2 sort keys\n");
    let cas = "cas c -c lock -t not_exist -v me -r";
    assert_eq!(shell.says(cas).await, "OK, check passed\nchecked value: does not exist\n");
    let (answer, text) = shell.run(cas, false).await;
    assert_eq!(answer.unwrap(), Answer::No);
    assert_eq!(text, "check not passed, nothing written\nchecked value: \"me\"\n");
    assert_eq!(
        shell.says("check_and_mutate c -c lock -t bytes_equal -o me del lock set log x").await,
        "OK, check passed\n"
    );
    assert_eq!(shell.says("get c log").await, "\"x\"\n");
    assert!(shell.says("hash h s").await.contains("partition_index : "));
    // Into itself, as the only table there is: through another name of the cluster.
    let metas = shell.fake.metas.clone();
    assert!(shell.says(&format!("copy_data -c {metas} -k")).await.ends_with("\n\n0 rows copied\n"));
    assert!(shell.says(&format!("copy_data -c {metas}")).await.ends_with("\n\n4 rows copied\n"));
    let left = shell.says("ttl h bin").await;
    let seconds: u32 = left.strip_suffix(" seconds\n").unwrap().parse().unwrap();
    assert!((50..=100).contains(&seconds), "its life is copied, too: {left}");
    assert!(shell.says("clear_data -f").await.ends_with("\n\n4 rows removed\n"));
    assert!(shell.says("count_data").await.ends_with("\n\n0 rows\n"));
    assert_eq!(shell.says("del h s").await, "OK\n");
}

#[tokio::test]
async fn the_same_as_json() {
    let mut shell = Shell::start();
    shell.says("use t").await;
    for (line, want) in [
        ("set h s v", r#"{"error":"OK"}"#),
        ("get h s", r#"{"value":"v"}"#),
        ("get h x", r#"{"value":null}"#),
        ("ttl h s", r#"{"ttl_seconds":-1}"#),
        ("incr n c 7", r#"{"new_value":7}"#),
        (
            "hash_scan h",
            "{\"hash_key\":\"h\",\"sort_key\":\"s\",\"value\":\"v\"}\n{\"complete\":true,\"count\":1}",
        ),
        ("use", r#"{"app_name":"t"}"#),
    ] {
        let got = shell.run(line, true).await.1;
        assert_eq!(got.trim_end(), want, "{line}");
    }
    let info: serde_json::Value = serde_json::from_str(&shell.run("cluster_info", true).await.1).unwrap();
    assert_eq!(info["cluster_info"]["cluster_name"], "fake");
    let ls: serde_json::Value = serde_json::from_str(&shell.run("ls -d", true).await.1).unwrap();
    assert_eq!(ls["healthy_info"]["2"]["fully_healthy"], "4");
}

#[tokio::test]
async fn tables_and_nodes() {
    let mut shell = Shell::start();
    let ls = shell.says("ls -d").await;
    let lines: Vec<Vec<&str>> = ls.lines().map(|line| line.split_whitespace().collect()).collect();
    let general = ["2", "AVAILABLE", "t", "pegasus", "4", "2", "true", "2023-11-14_22:13:20", "-", "-", "0"];
    assert_eq!(lines[2], general);
    // Scripts read columns 3 and 4 of the line below this header.
    let at = ls.lines().position(|line| line.contains(" fully_healthy ")).unwrap();
    assert_eq!(lines[at + 1], ["2", "t", "4", "4", "0", "0", "0"]);

    let app = shell.says("app t -d").await;
    assert!(
        app.contains("app_id            : 2") && app.contains("2/2") && app.contains("[healthy]"),
        "{app}"
    );
    assert!(!app.contains("[in_work]"), "{app}");
    let work =
        r#"[{"gpid":"2.1","table":"t","note":"waits for a:1"},{"gpid":"20.1","table":"u","note":"no"}]"#;
    shell.fake.with(|world| world.work = work.to_owned());
    let app = shell.says("app t -d").await;
    let (_, in_work) = app.split_once("[in_work]\n").unwrap();
    let lines: Vec<_> = in_work.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[..2], [vec!["pidx", "note"], vec!["1", "waits", "for", "a:1"]], "{in_work}");
    assert!(!in_work.contains("no "), "{in_work}");
    let nodes = shell.says("nodes -d").await;
    assert!(nodes.contains("ALIVE") && nodes.contains("alive_node_count   : 2"), "{nodes}");
    assert_eq!(shell.says("create new -n").await, "table \"new\" has id 3\n");
    assert_eq!(shell.says("wait_healthy t").await, "table \"t\": all partitions have all replicas\n");
    assert!(shell.fails("create t -f -n").await.contains("ERR_APP_EXIST"));
}

/// Only it knows who is alive and how many members a write needs: every partition has its two members here.
#[tokio::test]
async fn health_is_what_the_leading_meta_server_says() {
    let fake = Fake::start(3, 2);
    let standby = fake.metas.split(',').next().unwrap().to_owned();
    let mut shell =
        Shell { session: Session::new(Cluster::new(&standby, Options::default()).unwrap()), fake };
    shell.fake.with(|world| (world.leader, world.health) = (Some(2), [1, 3, 2, 1]));
    let ls = shell.says("ls -d").await;
    let at = ls.lines().position(|line| line.contains(" fully_healthy ")).unwrap();
    let row: Vec<_> = ls.lines().nth(at + 1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["2", "t", "4", "1", "3", "2", "1"]);
    let summary = ls.split_once("[summary]").unwrap().1;
    let counts: Vec<_> = summary.split_whitespace().filter(|word| word.parse::<u32>().is_ok()).collect();
    assert_eq!(counts, ["1", "0", "1", "1", "1"], "{summary}");
    let ls: serde_json::Value = serde_json::from_str(&shell.run("ls -d", true).await.1).unwrap();
    assert_eq!(ls["healthy_info"]["2"]["write_unhealthy"], "2");
    let app: serde_json::Value = serde_json::from_str(&shell.run("app t -d", true).await.1).unwrap();
    assert_eq!(
        app["healthy"],
        serde_json::json!({
            "fully_healthy_partition_count": "1", "unhealthy_partition_count": "3",
            "write_unhealthy_partition_count": "2", "read_unhealthy_partition_count": "1",
        })
    );
    let app = shell.says("app t -d").await;
    assert!(app.contains("write_unhealthy_partition_count : 2\n"), "{app}");
}

#[tokio::test]
async fn settings_are_those_of_the_table_in_use_or_of_one_that_is_named() {
    let mut shell = Shell::start();
    assert!(shell.fails("set_app_envs k v").await.contains("<value> is missing"));
    assert!(shell.fails("del_app_envs k").await.contains("<key> is missing"));
    assert!(shell.fails("get_app_envs").await.contains("<table> is missing"));
    for line in ["set_app_envs u k v", "del_app_envs u k l", "clear_app_envs u -a"] {
        shell.says(line).await;
    }
    shell.says("use t").await;
    for line in [
        "set_app_envs k v",
        "set_app_envs k v l w",
        "set_app_envs u k v",
        "del_app_envs k",
        "del_app_envs u k",
        "clear_app_envs -p x",
        "clear_app_envs u -a",
    ] {
        shell.says(line).await;
    }
    assert!(shell.says("get_app_envs").await.contains("[app_envs]"));
    assert!(shell.fails("get_app_envs u").await.contains("\"u\""));
    let asked = shell.fake.with(|world| world.envs.clone());
    let want =
        ["u k v ", "u k,l  ", "u   ", "t k v ", "t k,l v,w ", "u k v ", "t k  ", "t u,k  ", "t   x", "u   "];
    assert_eq!(asked, want);
}

#[tokio::test]
async fn mistakes_are_explained() {
    let mut shell = Shell::start();
    for (line, want) in [
        ("gett h s", "unknown command \"gett\", did you mean \"get\"?"),
        ("get", "which table?"),
        ("get t h", "<sort_key> is missing\nusage: get [table] <hash_key> <sort_key>"),
        ("get t h s x", "one word too many: \"x\""),
        ("set t h s v soon", "ttl_seconds: \"soon\""),
        ("mset t h a", "in pairs"),
        ("cas t h -c s -t equal -v v", "\"equal\" is no check type"),
        ("full_scan t -s front -y x", "none of anywhere, prefix, postfix"),
        ("get nothing h s", "table \"nothing\" does not exist"),
        ("ls -s WELL", "no status"),
        ("set_meta_level fast", "\"fast\" is not a level: stopped, blind, freezed, steady or lively"),
        ("balance -p move_pri -f a:1 -t b:1", "-g <app_id.index> is missing"),
        ("balance -g 1 -p move_pri -f a:1 -t b:1", "-g: \"1\" is not a partition: expected"),
        ("balance -g 1.0 -p swap -f a:1 -t b:1", "-p takes move_pri, copy_pri or copy_sec"),
        ("balance -g 1.0 -p move_pri -f a:1", "-t <node> is missing"),
        ("ddd_diagnose -g 1.0", "-g and -f go together"),
        ("drain", "<node> is missing"),
        ("clear_data t", "-f says that it is meant"),
        ("copy_data t", "-c <meta-servers> of another cluster is missing"),
        ("copy_data t -a nothing", "table \"nothing\" does not exist"),
        ("app_stat -a nothing", "table \"nothing\" does not exist"),
        ("app_disk", "<table> is missing"),
        ("server_stat -t some", "none of all, meta-server, replica-server"),
        ("server_info -l nowhere", "-l: "),
    ] {
        let got = shell.fails(line).await;
        assert!(got.contains(want), "{line}: {got}");
    }
    shell.fake.with(|world| world.primary = 1);
    shell.fake.with(|world| world.kill(1));
    let (answer, _) = shell.run("get t h s", false).await;
    let failure = answer.unwrap_err();
    assert_eq!(failure.exit_code(), 3);
    assert!(failure.next_step().unwrap().contains("is the server running?"), "{failure}");
}

#[tokio::test]
async fn without_meta_servers_every_command_says_so() {
    // Free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = Options { timeout: std::time::Duration::from_millis(300), ..Options::default() };
    let mut session = Session::new(Cluster::new(&free.to_string(), options).unwrap());
    for line in [
        "ls -d",
        "nodes -d -u",
        "cluster_info",
        "app t",
        "use t",
        "get t h s",
        "count_data t",
        "app_stat",
        "app_disk t",
        "server_stat",
        "server_info",
        "get_app_envs t",
    ] {
        let mut sink = std::io::sink();
        let mut out = Output::new(&mut sink, false);
        let failure = run(&mut session, split(line).unwrap(), &mut out).await.expect_err(line);
        assert_eq!(failure.exit_code(), 3, "{line}: {failure}");
        let hint = failure.next_step().unwrap_or_default();
        assert!(hint.contains("is the server running?"), "{line}: {failure}: {hint}");
    }
    // A server that is named need not be found by a meta-server.
    let mut bytes = Vec::new();
    let line = split(&format!("server_info -l {free}")).unwrap();
    let mut out = Output::new(&mut bytes, false);
    let answer = run(&mut session, line, &mut out).await.unwrap();
    drop(out);
    let text = String::from_utf8(bytes).unwrap();
    assert!(answer == Answer::No && text.starts_with(&format!("CALL [{free}] failed: ")), "{text}");
}

#[tokio::test]
async fn servers_that_tell_no_numbers_are_named() {
    let mut shell = Shell::start();
    shell.fake.with(|world| world.kill(1));
    for (line, want) in [
        ("app_disk t", "partitions_not_counted             : 4\n"),
        ("app_stat -i 100", "4 partitions are not counted: no primary that answers\n"),
        ("server_stat -t replica-server", "[server_stat]\n"),
    ] {
        let (answer, text) = shell.run(line, false).await;
        assert_eq!(answer.unwrap(), Answer::No, "{line}: {text}");
        assert_eq!(text.matches(" does not answer, its numbers are missing: ").count(), 2, "{line}: {text}");
        assert!(text.contains(want), "{line}: {text}");
        let json: serde_json::Value = serde_json::from_str(&shell.run(line, true).await.1).unwrap();
        assert!(
            json.as_object().unwrap().keys().any(|key| key.starts_with("no_answer_from_127.0.0.1:")),
            "{json}"
        );
    }
    assert!(shell.says("nodes -u").await.contains("ALIVE"));
}

#[tokio::test]
async fn every_listed_command_is_executed() {
    let mut shell = Shell::start();
    for command in pegasus_shell::commands::COMMANDS {
        if matches!(command.name, "recall" | "drop" | "set_app_envs") {
            continue;
        }
        // With a table and nothing else: an answer or a complaint, never a panic.
        let (answer, text) = shell.run(&format!("{} t", command.name), false).await;
        assert!(answer.is_err() || !text.is_empty() || command.name == "exit", "{}", command.name);
        assert!(shell.says(&format!("help {}", command.name)).await.contains(command.name));
    }
    assert!(shell.says("help").await.lines().count() > 35);
}

fn shell(fake: &Fake, words: &[&str], input: &str) -> Ended {
    ended(fake, words, input, Stdio::piped())
}

fn ended(fake: &Fake, words: &[&str], input: &str, stdout: Stdio) -> Ended {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_pegasus_shell"))
        .args(["--meta", &fake.metas, "--timeout", "1000"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn told(ended: &Ended) -> (i32, String) {
    (ended.status.code().unwrap(), String::from_utf8(ended.stdout.clone()).unwrap())
}

#[test]
fn one_command_per_process() {
    let fake = Fake::start(1, 1);
    assert_eq!(told(&shell(&fake, &["set", "t", "h", r"\x01", "-5"], "")), (0, "OK\n".to_owned()));
    assert_eq!(told(&shell(&fake, &["get", "t", "h", r"\x01"], "")), (0, "\"-5\"\n".to_owned()));
    assert_eq!(
        told(&shell(&fake, &["--table", "t", "get", "h", r"\x01", "-j"], "")).1,
        "{\"value\":\"-5\"}\n"
    );
    assert_eq!(told(&shell(&fake, &["get", "t", "h", "x"], "")), (1, "not found\n".to_owned()));
    let wrong = shell(&fake, &["get", "t"], "");
    assert_eq!(told(&wrong), (2, String::new()));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("usage: get [table] <hash_key> <sort_key>"));
    assert_eq!(told(&shell(&fake, &["get", "nothing", "h", "s"], "")).0, 3);
}

#[test]
fn a_meta_server_whose_name_does_not_resolve_is_told() {
    // Longer than a part of a name can be: nobody needs to be asked.
    let metas = format!("{}:34601", "a".repeat(64));
    let told = Command::new(env!("CARGO_BIN_EXE_pegasus_shell"))
        .args(["--meta", &metas, "--timeout", "300", "ls"])
        .output()
        .unwrap();
    let complaint = String::from_utf8(told.stderr).unwrap();
    assert_eq!(told.status.code(), Some(3), "{complaint}");
    assert!(complaint.contains(&format!("cannot resolve {metas}: ")), "{complaint}");
    assert!(complaint.contains("hint: is the server running?"), "{complaint}");
}

#[test]
fn lines_from_a_pipe() {
    let fake = Fake::start(1, 1);
    let ended = shell(&fake, &[], "# a remark\nuse t\n\nset h s \"a b\"\nget h s\n");
    assert_eq!(told(&ended), (0, "table \"t\", 4 partitions\nOK\n\"a b\"\n".to_owned()));
    let ended = shell(&fake, &[], "use t\nnonsense\nget h s\nexit\nget h s\n");
    assert_eq!(told(&ended), (2, "table \"t\", 4 partitions\n\"a b\"\n".to_owned()));
}

#[test]
fn whoever_stops_reading_hears_nothing() {
    let fake = Fake::start(1, 1);
    // One command, lines of which the first cannot be answered, and a failure that has nothing to do with it.
    for (words, input, code) in
        [(&["help"][..], "", 141), (&[], "use t\nset t h s v\n", 141), (&["get", "nothing", "h", "s"], "", 3)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = ended(&fake, words, input, writer.into());
        let complaint = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{words:?}: {complaint}");
        assert_eq!(complaint.is_empty(), code == 141, "{words:?}: {complaint}");
    }
    assert_eq!(told(&shell(&fake, &["get", "t", "h", "s"], "")).0, 1, "the second line was not executed");
}
