//! Line after line: at a terminal with editing and history, or from a pipe.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::args::Usage;
use crate::commands::{Answer, COMMANDS, Failure, Result, run};
use crate::output::Output;
use crate::session::Session;
use crate::words::split;

/// A first prompt is not to wait long for servers that are not there.
const WELCOME_WITHIN: Duration = Duration::from_secs(1);
/// Lines that are kept for the next time.
const HISTORY_LINES: usize = 1000;
const HISTORY_FILE: &str = ".pegasus_shell_history";

/// Executes one command and prints what it says. `-j` anywhere before `--` asks for JSON.
pub fn execute(runtime: &Runtime, session: &mut Session, mut words: Vec<Vec<u8>>, json: bool) -> Result {
    let flags = words.iter().position(|word| word == b"--").unwrap_or(words.len());
    let asked = words[..flags].iter().position(|word| word == b"-j").map(|at| words.remove(at));
    let json = json || asked.is_some();
    let mut stdout = io::stdout().lock();
    let mut out = Output::new(&mut stdout, json);
    let answer = runtime.block_on(run(session, words, &mut out));
    let printed = out.finish();
    let answer = answer?;
    printed?;
    Ok(answer)
}

/// Prints a failure and what to do about it.
pub fn complain(failure: &Failure) {
    if failure.nobody_reads() {
        return;
    }
    let mut stderr = io::stderr().lock();
    // Nobody is left to tell when this fails.
    let _ = writeln!(stderr, "error: {failure}");
    if let Some(step) = failure.next_step() {
        let _ = writeln!(stderr, "hint: {step}");
    }
}

/// Prints an error that no command made.
pub fn report(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}

/// Tells whom one is talking to.
pub fn welcome(runtime: &Runtime, session: &Session, metas: &str) {
    let info = runtime.block_on(async { timeout(WELCOME_WITHIN, session.cluster.info()).await });
    let name = info
        .ok()
        .and_then(std::result::Result::ok)
        .and_then(|info| info.into_iter().find(|(key, _)| key == "cluster_name").map(|(_, name)| name));
    let mut stderr = io::stderr().lock();
    let _ = match name {
        Some(name) => writeln!(stderr, "cluster {name}, meta-servers {metas}; `help` lists the commands"),
        None => writeln!(stderr, "no answer from the meta-servers {metas} yet; `help` lists the commands"),
    };
}

/// Reads lines at a terminal until exit.
pub fn interactive(runtime: &Runtime, session: &mut Session, json: bool) -> anyhow::Result<()> {
    let config = Config::builder().max_history_size(HISTORY_LINES)?.auto_add_history(true).build();
    let mut editor: Editor<Names, MemHistory> = Editor::with_history(config, MemHistory::new())?;
    editor.set_helper(Some(Names));
    let mut history = History::open();
    for line in &history.lines {
        editor.add_history_entry(line)?;
    }
    loop {
        let prompt = match session.table_in_use() {
            Some(table) => format!("{table} >>> "),
            None => ">>> ".to_owned(),
        };
        match editor.readline(&prompt) {
            Ok(line) => {
                history.add(&line);
                match line_into_words(&line).and_then(|words| execute(runtime, session, words, json)) {
                    Ok(Answer::Exit) => return Ok(()),
                    Ok(_) => {}
                    Err(failure) if failure.nobody_reads() => return Err(failure.into()),
                    Err(failure) => complain(&failure),
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Executes the lines of a pipe; the exit code is that of the first one that failed.
pub fn piped(runtime: &Runtime, session: &mut Session, json: bool) -> anyhow::Result<u8> {
    let mut code = 0;
    for line in io::stdin().lock().lines() {
        match line_into_words(&line?).and_then(|words| execute(runtime, session, words, json)) {
            Ok(Answer::Exit) => break,
            Ok(_) => {}
            Err(failure) if failure.nobody_reads() => return Err(failure.into()),
            Err(failure) => {
                complain(&failure);
                if code == 0 {
                    code = failure.exit_code();
                }
            }
        }
    }
    Ok(code)
}

/// `#` begins a remark.
fn line_into_words(line: &str) -> Result<Vec<Vec<u8>>> {
    if line.trim_start().starts_with('#') {
        return Ok(Vec::new());
    }
    split(line).map_err(|error| Usage(error.to_string()).into())
}

/// The lines of earlier sessions. A file that cannot be read or written is no reason to stop.
struct History {
    path: Option<PathBuf>,
    lines: Vec<String>,
}

impl History {
    fn open() -> Self {
        let path = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(HISTORY_FILE));
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let skip = text.lines().count().saturating_sub(HISTORY_LINES);
        Self { path, lines: text.lines().skip(skip).map(str::to_owned).collect() }
    }

    fn add(&mut self, line: &str) {
        let repeated = self.lines.last().is_some_and(|last| last == line);
        if line.trim().is_empty() || repeated {
            return;
        }
        self.lines.push(line.to_owned());
        if let Some(path) = &self.path {
            let from = self.lines.len().saturating_sub(HISTORY_LINES);
            let _ = std::fs::write(path, self.lines[from..].join("\n") + "\n");
        }
    }
}

/// Completes the names of commands.
struct Names;

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let (from, begun) = match begun.strip_prefix("help ") {
            Some(name) => (at - name.len(), name),
            None => (0, begun),
        };
        let names = COMMANDS.iter().map(|command| command.name).filter(|name| name.starts_with(begun));
        Ok((from, names.map(str::to_owned).collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}
impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}
