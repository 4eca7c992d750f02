use std::fs;

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// User and system time since its start, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that it occupies now, in KiB.
    pub resident_kib: u64,
}

impl Usage {
    /// Kernel ticks per second as `/proc` counts them: 100 on every Linux that we run on.
    const TICKS_PER_SECOND: u64 = 100;

    /// # Panics
    /// When there is no such process.
    pub fn of(pid: i32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
        // The name in parentheses may hold anything.
        let fields: Vec<_> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().expect("ticks")).sum();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let resident_kib = resident.trim().trim_end_matches("kB").trim().parse().expect("KiB");
        Self { cpu_ms: ticks * 1000 / Self::TICKS_PER_SECOND, resident_kib }
    }
}
