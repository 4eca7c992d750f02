//! Log lines to files that are bounded in size and number, and the loud ones to stderr.
//!
//! Files are `BASE.log.TIME` with a link `BASE.log` to the newest (operations.md D23). Lines go through a bounded
//! queue to a thread of their own: a slow disk loses log lines, never holds a daemon up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, JsonFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::repeats::{Repeats, Told};
use crate::time::Calendar;

/// Lines waiting for the log thread; about 4 MiB of usual lines. Beyond it lines are dropped.
const QUEUED_LINES_MAX: usize = 16 * 1024;

/// Libraries that say too much: tarpc's spans cost more than its calls (crates.md 1.4).
const QUIET: &[(&str, LevelFilter)] = &[
    ("tarpc", LevelFilter::OFF),
    ("opentelemetry", LevelFilter::OFF),
    ("hyper", LevelFilter::WARN),
    ("hyper_util", LevelFilter::WARN),
    ("mio", LevelFilter::WARN),
    ("sled", LevelFilter::WARN),
    ("lsm_tree", LevelFilter::WARN),
    ("rustyline", LevelFilter::WARN),
];

/// Where and what to log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// None = stderr only.
    pub directory: Option<PathBuf>,
    /// Role, or `pegasus` for several roles in one process.
    pub base_name: String,
    /// Levels of single parts of the program win over it, see [`Levels`].
    pub level: LevelFilter,
    pub stderr_level: LevelFilter,
    /// One JSON object a line, for collectors of logs; else text. Files only: stderr is for people.
    pub json: bool,
    pub file_bytes_max: u64,
    /// At least 1.
    pub files_max: usize,
}

/// Keeps the log thread alive; dropping it writes out what is queued.
#[derive(Debug)]
pub struct Logging {
    _guard: Option<WorkerGuard>,
}

/// Levels of the log file: `info`, or `info,pegasus_replica_server=debug,pegasus_pacifica=trace` with levels of single
/// crates and modules.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    text: String,
    targets: Targets,
}

impl Levels {
    /// # Errors
    /// Says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "{part:?}: expected a level (error, warn, info, debug, trace, off), or crate::module=level"
            )
        };
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        if text.len() > LEVELS_BYTES_MAX {
            return Err(format!("expected at most {LEVELS_BYTES_MAX} bytes"));
        }
        let mut default = None;
        for part in text.split(',') {
            let (target, level) = part.split_once('=').unwrap_or(("", part));
            if level.is_empty() {
                return Err(wrong(part)); // which would be read as error
            }
            let level: LevelFilter = level.parse().map_err(|_| wrong(part))?;
            match (part.contains('='), target.is_empty()) {
                (false, _) if default.is_none() => default = Some(level),
                (true, false) => {}
                _ => return Err(wrong(part)),
            }
        }
        let named: Vec<(String, LevelFilter)> = text
            .split(',')
            .filter_map(|part| part.split_once('='))
            .map(|(target, level)| (target.to_owned(), level.parse().unwrap_or(LevelFilter::INFO)))
            .collect();
        let targets = targets(default.unwrap_or(LevelFilter::INFO)).with_targets(named);
        Ok(Self { text, targets })
    }

    /// By the name that Apache Pegasus gives a level: `WARNING`, or `LOG_LEVEL_WARNING`.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("LOG_LEVEL_").unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, level)| Self::of(*level))
    }

    /// As Apache Pegasus calls it, if it is one level for all.
    pub fn name(&self) -> String {
        let named = NAMES.iter().find(|(_, level)| self.text == level.to_string());
        named.map_or_else(|| self.text.clone(), |(name, _)| format!("LOG_LEVEL_{name}"))
    }

    fn of(level: LevelFilter) -> Self {
        Self { text: level.to_string(), targets: targets(level) }
    }
}

/// More are a mistake.
const LEVELS_BYTES_MAX: usize = 4096;

/// Levels of Apache Pegasus.
const NAMES: [(&str, LevelFilter); 5] = [
    ("DEBUG", LevelFilter::DEBUG),
    ("INFO", LevelFilter::INFO),
    ("WARNING", LevelFilter::WARN),
    ("ERROR", LevelFilter::ERROR),
    ("FATAL", LevelFilter::ERROR),
];

/// What is logged, and what the configuration says of it.
struct Chosen {
    now: Levels,
    configured: Levels,
    handle: reload::Handle<Targets, Registry>,
}

/// Of this process: there is one log.
static LEVELS: OnceLock<Mutex<Chosen>> = OnceLock::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is logged now; empty before [`init`].
pub fn levels() -> String {
    LEVELS.get().map(|levels| lock(levels).now.text.clone()).unwrap_or_default()
}

/// As at the start; None before [`init`].
pub fn configured_levels() -> Option<Levels> {
    LEVELS.get().map(|levels| lock(levels).configured.clone())
}

/// Changes what is logged, until the process ends.
///
/// # Errors
/// When logging was never begun.
pub fn set_levels(new: Levels) -> anyhow::Result<()> {
    let mut levels = lock(LEVELS.get().context("no log was begun")?);
    levels.handle.reload(new.targets.clone()).context("change the log levels")?;
    tracing::warn!(levels = new.text, before = levels.now.text, "log levels changed");
    levels.now = new;
    Ok(())
}

/// The way to the log thread, and how often it has written out all that waited.
static FLUSHED: OnceLock<(NonBlocking, Arc<Flushes>)> = OnceLock::new();

#[derive(Debug, Default)]
struct Flushes {
    count: Mutex<u64>,
    changed: Condvar,
}

/// Waits until everything that was logged before is in the file, if there is one. It blocks.
///
/// # Errors
/// When that takes longer than `within`, as with a disk that hangs.
pub fn flush(within: Duration) -> anyhow::Result<()> {
    let Some((writer, flushes)) = FLUSHED.get() else { return Ok(()) };
    // Twice: the log thread may be at the end of a batch that lacks the last lines.
    for _ in 0..2 {
        let count = lock(&flushes.count);
        let seen = *count;
        writer.clone().write_all(b"").context("the log's queue")?;
        let waited = flushes.changed.wait_timeout_while(count, within, |now| *now == seen);
        let (count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(count);
        anyhow::ensure!(!waited.timed_out(), "the log is not written out within {} s", within.as_secs());
    }
    Ok(())
}

/// A log file whose flushes are counted: there is one after each batch of lines.
struct Counted {
    file: RollingFile,
    flushes: Arc<Flushes>,
}

impl Write for Counted {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        *lock(&self.flushes.count) += 1;
        self.flushes.changed.notify_all();
        Ok(())
    }
}

/// Once per process. Panics of any thread are logged as errors from then on.
pub fn init(options: &LogOptions) -> anyhow::Result<Logging> {
    let flushes = Arc::new(Flushes::default());
    let (writer, guard) = match &options.directory {
        Some(directory) => {
            let file =
                RollingFile::open(directory, &options.base_name, options.file_bytes_max, options.files_max)
                    .with_context(|| format!("open a log file in {}", directory.display()))?;
            let (writer, guard) = NonBlockingBuilder::default()
                .buffered_lines_limit(QUEUED_LINES_MAX)
                .lossy(true)
                .thread_name("log-writer")
                .finish(Counted { file, flushes: flushes.clone() });
            (Some(writer), Some(guard))
        }
        None => (None, None),
    };
    let (filter, handle) = reload::Layer::new(targets(options.level));
    let repeats = Repeats::default();
    let filter = filter.and(repeats.clone());
    let json = options.json;
    let flushed = writer.clone().map(|writer| (writer, flushes));
    let to_file = writer.map(|writer| {
        let layer = fmt::layer().with_ansi(false).with_writer(writer);
        if json {
            let format = Told { format: Format::default().json().with_thread_names(true), repeats, json };
            layer.fmt_fields(JsonFields::new()).event_format(format).boxed()
        } else {
            let format = Format::default().with_ansi(false).with_thread_names(true);
            layer.event_format(Told { format, repeats, json }).boxed()
        }
    });
    let quieter = Repeats::default();
    let format = Told { format: Format::default().with_ansi(false), repeats: quieter.clone(), json: false };
    let to_stderr = fmt::layer()
        .with_ansi(false)
        .with_writer(io::stderr)
        .event_format(format)
        .with_filter(targets(options.stderr_level).and(quieter));
    tracing_subscriber::registry()
        .with(to_file.with_filter(filter))
        .with(to_stderr)
        .try_init()
        .context("start logging")?;
    let configured = Levels::of(options.level);
    LEVELS.get_or_init(|| Mutex::new(Chosen { now: configured.clone(), configured, handle }));
    if let Some(flushed) = flushed {
        FLUSHED.get_or_init(|| flushed);
    }
    log_panics();
    Ok(Logging { _guard: guard })
}

fn targets(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level)
        .with_targets(QUIET.iter().map(|(name, quiet)| (*name, (*quiet).min(level))))
}

fn log_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}");
        before(panic);
    }));
}

/// Appends to the newest file, opens the next one at a size, removes the oldest ones.
#[derive(Debug)]
struct RollingFile {
    directory: PathBuf,
    base: String,
    bytes_max: u64,
    files_max: usize,
    file: Option<File>,
    written: u64,
}

impl RollingFile {
    fn open(directory: &Path, base: &str, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut rolling = Self {
            directory: directory.to_owned(),
            base: base.to_owned(),
            bytes_max,
            files_max: files_max.max(1),
            file: None,
            written: 0,
        };
        rolling.roll(SystemTime::now())?;
        Ok(rolling)
    }

    fn roll(&mut self, now: SystemTime) -> io::Result<()> {
        self.file = None;
        let prefix = format!("{}.log.", self.base);
        let name = format!("{prefix}{}", Calendar::of(now).compact());
        let file = OpenOptions::new().create(true).append(true).open(self.directory.join(&name))?;
        self.written = file.metadata()?.len();
        self.file = Some(file);
        self.link(&name)?;
        self.remove_old(&prefix)
    }

    /// `BASE.log` -> newest, replaced in one step.
    fn link(&self, name: &str) -> io::Result<()> {
        let fresh = self.directory.join(format!(".{}.log.link", self.base));
        let _ = fs::remove_file(&fresh); // left over from a crash, or not there
        std::os::unix::fs::symlink(name, &fresh)?;
        fs::rename(fresh, self.directory.join(format!("{}.log", self.base)))
    }

    fn remove_old(&self, prefix: &str) -> io::Result<()> {
        let mut files: Vec<_> = fs::read_dir(&self.directory)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        files.sort();
        let surplus = files.len().saturating_sub(self.files_max);
        for name in files.iter().take(surplus) {
            let _ = fs::remove_file(self.directory.join(name)); // tried again at the next roll
        }
        Ok(())
    }
}

impl Write for RollingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let full = self.written > 0 && self.written.saturating_add(line.len() as u64) > self.bytes_max;
        if full || self.file.is_none() {
            self.roll(SystemTime::now())?;
        }
        let Some(file) = &mut self.file else { return Err(io::Error::other("no log file")) };
        let written = file.write(line)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), File::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("other.log.1"), "not ours").unwrap();
        let mut log = RollingFile::open(dir.path(), "replica", 100, 3).unwrap();
        for n in 0..50 {
            log.write_all(format!("line {n:02} {}\n", "x".repeat(40)).as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2)); // names have milliseconds
        }
        let names = logs(dir.path());
        assert_eq!(names.iter().filter(|n| n.starts_with("replica.log.")).count(), 3, "{names:?}");
        assert!(names.contains(&"other.log.1".to_owned()));
        let newest = fs::read_to_string(dir.path().join("replica.log")).unwrap();
        assert!(newest.contains("line 49") && newest.len() <= 100, "{newest}");
    }

    #[test]
    fn a_line_longer_than_the_file_still_goes_through() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RollingFile::open(dir.path(), "meta", 10, 2).unwrap();
        log.write_all(&[b'x'; 64]).unwrap();
        assert_eq!(fs::read(dir.path().join("meta.log")).unwrap().len(), 64);
    }

    #[test]
    fn init_writes_files_and_the_levels_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let logging = init(&LogOptions {
            directory: Some(dir.path().join("log")),
            base_name: "meta".to_owned(),
            level: LevelFilter::INFO,
            stderr_level: LevelFilter::OFF,
            json: true,
            file_bytes_max: 1 << 20,
            files_max: 2,
        })
        .unwrap();
        tracing::debug!("hidden");
        tracing::info!(number = 7, "shown \"so\"");
        assert_eq!(levels(), "info");
        set_levels(Levels::parse("warn, pegasus_telemetry::logging = debug").unwrap()).unwrap();
        assert_eq!(levels(), "warn,pegasus_telemetry::logging=debug");
        tracing::debug!("shown later");
        tracing::info!(target: "other", "hidden");
        tracing::error!(target: "tarpc::client", "quiet");
        let read = || fs::read_to_string(dir.path().join("log/meta.log")).unwrap();
        for n in 0..100 {
            tracing::error!("line {n} of those that are flushed");
            flush(Duration::from_secs(20)).unwrap();
            assert!(read().contains(&format!("line {n} of")), "{n}");
        }
        assert_eq!(configured_levels().unwrap().text, "info");
        drop(logging);
        let text = fs::read_to_string(dir.path().join("log/meta.log")).unwrap();
        assert!(
            text.contains("shown later") && !text.contains("hidden") && !text.contains("quiet"),
            "{text}"
        );
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        }
        assert!(text.contains(r#""number":7"#) && text.contains(r#"shown \"so\""#), "{text}");
    }

    #[test]
    fn levels_are_read_and_mistakes_told() {
        for good in ["info", "off", "a=debug", "warn,a::b=trace,c=off"] {
            assert_eq!(Levels::parse(good).unwrap().text, good);
        }
        for bad in ["", "loud", "a=", "=info", "info,warn", "a=loud,info", "info,,a=warn"] {
            assert!(Levels::parse(bad).unwrap_err().contains("expected a level"), "{bad}");
        }
        assert!(Levels::parse(&"a=info,".repeat(1000)).is_err());
        for (name, text) in [("WARNING", "warn"), ("LOG_LEVEL_DEBUG", "debug"), ("FATAL", "error")] {
            assert_eq!(Levels::named(name).unwrap().text, text);
        }
        assert_eq!(Levels::named("LOUD"), None);
        assert_eq!(Levels::named("WARNING").unwrap().name(), "LOG_LEVEL_WARNING");
        assert_eq!(Levels::parse("info,a=debug").unwrap().name(), "info,a=debug");
    }
}
