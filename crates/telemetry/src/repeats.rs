//! Lines that come again and again: of one place in the program only so many are logged in a while, then one line tells
//! how many were left out. A fault that touches every request must not fill the disk, nor hide what else is told.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

/// A node with thousands of partitions tells something of each of them when it starts.
const LINES_MAX: u32 = 1000;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts by place in the program, of which there is a fixed number.
#[derive(Clone, Debug, Default)]
pub struct Repeats(Arc<Mutex<HashMap<Identifier, Count>>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Repeats {
    /// Whether one more line from this place is logged.
    fn admits(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO {
            return true; // somebody asked for these
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Count { since: now, lines: 0, left_out: 0 };
        let count = counts.entry(metadata.callsite()).or_insert(fresh);
        if now.duration_since(count.since) >= WINDOW {
            (count.since, count.lines) = (now, 0);
        }
        if count.lines < LINES_MAX {
            count.lines += 1;
            return true;
        }
        count.left_out += 1;
        false
    }

    /// How many were left out since this was asked last.
    fn take_left_out(&self, metadata: &Metadata<'_>) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get_mut(&metadata.callsite()).map_or(0, |count| std::mem::take(&mut count.left_out))
    }
}

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

/// Another format, with a line before the first one that is logged again.
#[derive(Debug)]
pub struct Told<F> {
    pub format: F,
    pub repeats: Repeats,
    pub json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Told<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let left_out = self.repeats.take_left_out(event.metadata());
        if left_out > 0 {
            match self.json {
                true => writeln!(writer, "{}", as_json(event.metadata().target(), left_out)?)?,
                false => writeln!(writer, "... {left_out} lines like the next one were left out")?,
            }
        }
        self.format.format_event(ctx, writer, event)
    }
}

/// With the fields of every other line, by which collectors of logs sort.
fn as_json(target: &str, left_out: u64) -> Result<serde_json::Value, fmt::Error> {
    let mut timestamp = String::new();
    SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
    let fields = json!({"message": "lines like the next one were left out", "left_out": left_out});
    Ok(json!({"timestamp": timestamp, "level": "WARN", "target": target, "fields": fields}))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use tracing_subscriber::fmt::format::{Format, JsonFields};
    use tracing_subscriber::layer::{Layer, SubscriberExt};

    use super::*;

    #[test]
    fn as_json_it_is_a_line_like_others() {
        let (file, repeats) = (Arc::new(tempfile::tempfile().unwrap()), Repeats::default());
        let format = Told { format: Format::default().json(), repeats: repeats.clone(), json: true };
        let layer = tracing_subscriber::fmt::layer().fmt_fields(JsonFields::new()).event_format(format);
        let layer = layer.with_writer(file.clone()).with_filter(repeats.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for n in 0..2 {
                tracing::info!(n, "told");
                repeats.0.lock().unwrap().values_mut().for_each(|count| count.left_out = 7);
            }
        });
        let mut text = String::new();
        let mut file: &std::fs::File = &file;
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [first, left_out, _] = lines.as_slice() else { panic!("{text}") };
        for line in [first, left_out] {
            let time = line["timestamp"].as_str().unwrap();
            assert!(time.len() == "2026-01-01T00:00:00.000000Z".len() && time.ends_with('Z'), "{text}");
            assert!(line["level"].is_string() && line["fields"]["message"].is_string(), "{text}");
        }
        assert_eq!(left_out["target"], first["target"]);
        assert_eq!(left_out["fields"]["left_out"], 7);
    }

    #[test]
    fn a_place_that_says_too_much_is_cut_short_and_others_are_not() {
        fn metadata_of(log: impl FnOnce()) -> &'static Metadata<'static> {
            use std::sync::OnceLock;
            struct Catch(Arc<OnceLock<&'static Metadata<'static>>>);
            impl Subscriber for Catch {
                fn enabled(&self, _: &Metadata<'_>) -> bool {
                    true
                }
                fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                    tracing::span::Id::from_u64(1)
                }
                fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
                fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
                fn event(&self, event: &Event<'_>) {
                    let _ = self.0.set(event.metadata());
                }
                fn enter(&self, _: &tracing::span::Id) {}
                fn exit(&self, _: &tracing::span::Id) {}
            }
            let caught = Arc::new(OnceLock::new());
            tracing::subscriber::with_default(Catch(caught.clone()), log);
            caught.get().expect("an event")
        }
        let loud = metadata_of(|| tracing::warn!("loud"));
        let other = metadata_of(|| tracing::info!("other"));
        let debug = metadata_of(|| tracing::debug!("debug"));
        let (repeats, begun) = (Repeats::default(), Instant::now());
        let admitted = (0..LINES_MAX + 50).filter(|_| repeats.admits(loud, begun)).count();
        assert_eq!(admitted, LINES_MAX as usize);
        assert!(repeats.admits(other, begun));
        assert!((0..=LINES_MAX).all(|_| repeats.admits(debug, begun)));
        assert!(!repeats.admits(loud, begun + WINDOW - Duration::from_millis(1)));
        assert!(repeats.admits(loud, begun + WINDOW));
        assert_eq!((repeats.take_left_out(loud), repeats.take_left_out(loud)), (51, 0));
        assert_eq!(repeats.take_left_out(other), 0);
    }
}
