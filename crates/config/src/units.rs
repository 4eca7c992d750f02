//! Durations and sizes as they stand in the file. Bare numbers carry the unit that the key's name says.

use std::time::Duration;

use crate::value::Setting;

/// A duration whose bare number means seconds; fractions and the units of [`Ms`] are accepted: `3`, `0.5`, `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub Duration);

impl Seconds {
    pub const fn new(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }
}

/// A duration whose bare number means milliseconds; `1.5s`, `2m`, `1h`, `1d` are accepted as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ms(pub Duration);

impl Ms {
    pub const fn new(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }

    /// Whole milliseconds.
    pub fn as_u64(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Bytes; `64KiB`, `64K`, `1 GiB` are accepted, always by 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Longest duration accepted: sums of a few never overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

fn duration(text: &str, bare: Duration, example: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration such as {example}");
    let (number, unit) = split_unit(text);
    let unit = match unit {
        "" => bare,
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" | "min" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => Duration::from_secs(86_400),
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit.as_secs_f64())
        .ok()
        .filter(|d| *d <= LONGEST)
        .ok_or_else(|| "expected a duration of at most 100 years, not negative".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number.trim(), unit.trim())
}

impl Setting for Seconds {
    const KIND: &'static str = "FV_DOUBLE";

    fn parse(text: &str) -> Result<Self, String> {
        duration(text, Duration::from_secs(1), "3, 0.5 or 250ms (a bare number is seconds)").map(Self)
    }

    fn to_text(&self) -> String {
        self.0.as_secs_f64().to_string()
    }
}

impl Setting for Ms {
    const KIND: &'static str = "FV_UINT64";

    fn parse(text: &str) -> Result<Self, String> {
        duration(text, Duration::from_millis(1), "600, 600ms or 1.5s (a bare number is milliseconds)")
            .map(Self)
    }

    fn to_text(&self) -> String {
        (self.0.as_secs_f64() * 1000.0).to_string()
    }
}

impl Setting for ByteSize {
    const KIND: &'static str = "FV_UINT64";

    fn parse(text: &str) -> Result<Self, String> {
        let (number, unit) = split_unit(text);
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => 64,
        };
        let number: Option<u64> = number.parse().ok();
        number
            .and_then(|n| n.checked_mul(1u64.checked_shl(shift)?))
            .map(Self)
            .ok_or_else(|| "expected a size in bytes such as 67108864 or 64MiB".to_owned())
    }

    fn to_text(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("3", 3000), ("0.5", 500), ("250ms", 250), ("1.5 s", 1500), ("2m", 120_000), ("1d", 86_400_000)]
        {
            assert_eq!(Seconds::parse(text).unwrap().0, Duration::from_millis(ms), "{text}");
        }
        assert_eq!(Ms::parse("600").unwrap(), Ms::new(600));
        assert_eq!(Ms::parse("1.5s").unwrap(), Ms::new(1500));
        for bad in ["", "x", "-1", "1x", "1e400", "NaN", "inf", "999999999d"] {
            assert!(Seconds::parse(bad).is_err(), "{bad}");
        }
        for value in [Seconds::new(10), Seconds(Duration::from_millis(250))] {
            assert_eq!(Seconds::parse(&value.to_text()).unwrap(), value);
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("64k", 65_536), ("1 GiB", 1 << 30)]
        {
            assert_eq!(ByteSize::parse(text).unwrap().0, bytes, "{text}");
        }
        for bad in ["", "-1", "1.5M", "1Q", "99999999999T"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
    }
}
