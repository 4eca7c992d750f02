//! Values of table settings that say what clients may do (operations.md 4 and 5): checked by the meta-server, obeyed by
//! replica-servers.

/// `100`, `2K`, `20M`: K is 2^10, M is 2^20.
pub fn units(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix(['K', 'M']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// `1000*delay*100,2000*reject*200`: what is more than 1000 per second waits 100 ms, what is more than 2000 is refused
/// after 200 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    pub delay: Option<Step>,
    pub reject: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Of the whole table, per second; 0 = no limit.
    pub units: u64,
    pub wait_ms: u32,
}

impl Throttle {
    /// None when it is not of this form; at most one part of each kind.
    pub fn parse(text: &str) -> Option<Self> {
        let mut throttle = Self::default();
        for part in text.split(',') {
            let fields: Vec<&str> = part.split('*').map(str::trim).collect();
            let &[amount, what, ms] = &fields[..] else { return None };
            let step = Step { units: units(amount)?, wait_ms: ms.parse().ok()? };
            let slot = match what {
                "delay" => &mut throttle.delay,
                "reject" => &mut throttle.reject,
                _ => return None,
            };
            if slot.replace(step).is_some() {
                return None;
            }
        }
        Some(throttle)
    }

    /// Bytes of reads per second and table, from a number alone (at least 1) or from the reject part; None inside: no
    /// limit.
    pub fn parse_read_bytes(text: &str) -> Option<Option<u64>> {
        match units(text) {
            Some(0) => None,
            Some(bytes) => Some(Some(bytes)),
            None => Some(Self::parse(text)?.reject.map(|step| step.units).filter(|bytes| *bytes > 0)),
        }
    }
}

/// `timeout*all`, `reconfig*write`: which requests of clients are not executed, and what they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deny {
    pub reads: bool,
    pub writes: bool,
    /// They are told that the partition has moved (ERR_INVALID_STATE), so that they ask the meta-server; else nothing.
    pub reconfig: bool,
}

impl Deny {
    pub fn parse(text: &str) -> Option<Self> {
        let (how, what) = text.split_once('*')?;
        let reconfig = match how {
            "timeout" => false,
            "reconfig" => true,
            _ => return None,
        };
        let (reads, writes) = match what {
            "all" => (true, true),
            "read" => (true, false),
            "write" => (false, true),
            _ => return None,
        };
        Some(Self { reads, writes, reconfig })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttles() {
        let step = |units, wait_ms| Some(Step { units, wait_ms });
        for (text, expected) in [
            ("1000*delay*100", Some((step(1000, 100), None))),
            ("1000*delay*100,2K*reject*0", Some((step(1000, 100), step(2048, 0)))),
            ("1M*reject*1, 0*delay*7", Some((step(0, 7), step(1 << 20, 1)))),
            ("1000*delay*100,2000*delay*200", None),
            ("1000*delay", None),
            ("1000*delay*1*1", None),
            ("1000*hold*1", None),
            ("1G*delay*1", None),
            ("-1*delay*1", None),
            ("99999999999999999M*delay*1", None),
            ("", None),
        ] {
            let throttle = Throttle::parse(text).map(|t| (t.delay, t.reject));
            assert_eq!(throttle, expected, "{text}");
        }
    }

    #[test]
    fn read_bytes() {
        for (text, expected) in [
            ("20M", Some(Some(20 << 20))),
            ("5", Some(Some(5))),
            ("20M*reject*100", Some(Some(20 << 20))),
            ("20M*delay*100", Some(None)),
            ("0*reject*100", Some(None)),
            ("0", None),
            ("x", None),
        ] {
            assert_eq!(Throttle::parse_read_bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn denials() {
        for (text, expected) in [
            ("timeout*all", Some((true, true, false))),
            ("reconfig*write", Some((false, true, true))),
            ("timeout*read", Some((true, false, false))),
            ("all", None),
            ("reconfig*", None),
            ("*all", None),
        ] {
            assert_eq!(Deny::parse(text).map(|d| (d.reads, d.writes, d.reconfig)), expected, "{text}");
        }
    }
}
