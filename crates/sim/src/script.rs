//! Scenarios as text: one step per line, `#` begins a comment.
//!
//! ```text
//! hosts 3                           how many machines (also: metas, partitions, clients, durability)
//! balance                           the meta evens out roles and copies whenever all is well
//! run 2s                            let time pass (ms or s)
//! kill primary as old               kill -9; `as` gives the host a name for later steps
//! power-off secondary               as kill, and what was not synced is lost
//! start old                         start a process again; `start all`
//! drain primary                     SIGTERM: hands its roles over, then ends
//! pause primary 3s                  SIGSTOP, SIGCONT after the time
//! cut primary secondary 2s          both ways; `cut-one-way FROM TO TIME`, also with metas and `store`
//! lag leader store 600ms for 50ms   what is sent in these 50 ms takes so much longer
//! isolate primary 4s                from everybody, clients too
//! false-reset primary at secondary  the second sees the connection to the first reset and refused
//! slow-disk secondary 3s            its log syncs last that long
//! break-disk secondary              its fsyncs fail; `replace-disk` starts it anew
//! fill-disk secondary               no space is left; `empty-disk`
//! damage-log secondary              a sector or bit of its log, for its next start
//! damage-rows secondary             a scrub finds bad rows of the partition
//! drift primary 900                 its clock goes that many ppm too fast (-900: too slow)
//! wall primary -60s                 its wall clock is set back (60s: ahead)
//! stop-meta, start-meta             all of them
//! kill-meta leader, start-meta m1, pause-meta leader 5s
//! stop-store, start-store           the coordination store
//! move to secondary                 planned move of the primary's role
//! remove secondary                  planned removal
//! storm, calm                       weather on the network
//! watch                             gaps, silence and changes count from here
//! end-here                          last step: the cluster is not healed and looked at
//! expect gap below 1000ms           the longest time without an acknowledged write
//! expect healthy within 10s         every partition has its members, each in its role, and serves
//! expect silence below 300ms        the longest time that nobody served some partition
//! expect no writes for 1s           none is acknowledged
//! expect balanced within 20s        every machine has as many primaries and replicas as any other, or one more
//! expect take-overs 2               so many changes of a primary at least, of any partition, since `watch`
//! expect additions 1                so many members were added at least, to any partition, since `watch`
//! expect serving, expect silence    does anybody serve now?
//! expect members 2                  of the partition
//! expect primary is old, expect primary is not old
//! expect leader within 5s           a meta-server leads and has loaded what is stored
//! expect leader is m2, expect leader is not m2
//! ```
//!
//! Metas: `leader` (`meta` is the same), `m1`..., a name given by `as`. Hosts: `primary`, `secondary` (the first), `secondary2`, `n1`..., a name given by `as`; `all` for kill,
//! power-off and start. The partition is the first one. At its end every script heals the cluster, waits until it is
//! healthy, and looks whether everything that was acknowledged is there.

use std::collections::BTreeMap;

use pegasus_mutation_log::Durability;

use crate::bus::{MS, Micros, Place, SECOND, Weather};
use crate::checks::Figures;
use crate::settings::Settings;
use crate::trace::Trace;
use crate::world::World;

const HEALED_WITHIN: Micros = 30 * SECOND;

#[derive(Clone, Debug)]
pub struct Script {
    settings: Settings,
    steps: Vec<(usize, Vec<String>)>,
}

impl Script {
    /// # Errors
    /// Names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self { settings: Settings::default(), steps: Vec::new() };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() {
                continue;
            }
            let words_ref: Vec<&str> = words.iter().map(String::as_str).collect();
            let settings = &mut script.settings;
            let bad = |what: &str| format!("line {number}: {what} in {line:?}");
            match words_ref[..] {
                ["hosts", n] => settings.hosts = n.parse().map_err(|_| bad("no number"))?,
                ["balance"] => settings.balance = true,
                ["metas", n] => settings.metas = n.parse().map_err(|_| bad("no number"))?,
                ["partitions", n] => settings.partitions = n.parse().map_err(|_| bad("no number"))?,
                ["clients", n] => settings.clients = n.parse().map_err(|_| bad("no number"))?,
                ["durability", "sync"] => settings.durability = Durability::Sync,
                ["durability", "page_cache"] => settings.durability = Durability::PageCache,
                _ => script.steps.push((number, words)),
            }
        }
        Ok(script)
    }

    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Plays it from a healthy cluster on. Gives the worst gaps that were asked for, in ms.
    ///
    /// # Errors
    /// Names the line, and what was not as expected.
    pub fn play(&self, seed: u64, trace: Trace) -> (Result<Vec<u64>, String>, Trace) {
        let mut stage = Stage {
            world: World::new(seed, self.settings.clone(), trace),
            names: BTreeMap::new(),
            metas: BTreeMap::new(),
            gaps: Vec::new(),
            watched: Figures::default(),
        };
        let result = stage.play(&self.steps).map(|()| std::mem::take(&mut stage.gaps));
        (result, stage.world.bus.trace)
    }
}

struct Stage {
    world: World,
    names: BTreeMap<String, usize>,
    metas: BTreeMap<String, usize>,
    gaps: Vec<u64>,
    /// When `watch` was said.
    watched: Figures,
}

impl Stage {
    fn play(&mut self, steps: &[(usize, Vec<String>)]) -> Result<(), String> {
        if self.world.run_until(10 * SECOND, World::all_healthy).is_none() {
            return Err("the table does not become healthy".to_owned());
        }
        for (number, words) in steps {
            if words == &["end-here"] {
                return Ok(());
            }
            let line = words.join(" ");
            self.world.bus.trace.line(self.world.bus.now, format_args!("--- {line}"));
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.step(&words).map_err(|why| format!("line {number}: {line}: {why}"))?;
            if let Some(why) = self.world.checks.failure() {
                return Err(format!("line {number}: {line}: {why}"));
            }
        }
        self.world.settle(HEALED_WITHIN).map_err(|why| format!("at the end: {why}"))
    }

    fn step(&mut self, words: &[&str]) -> Result<(), String> {
        let gpid = self.world.gpids()[0];
        match *words {
            [how @ ("kill-meta" | "pause-meta"), whom, ref rest @ .., "as", name] => {
                let meta = self.meta(whom)?;
                self.metas.insert(name.to_owned(), meta);
                let step: Vec<&str> = [how, whom].into_iter().chain(rest.iter().copied()).collect();
                return self.step(&step);
            }
            [ref step @ .., "as", name] => {
                let host = self.host(
                    step.get(if step.first() == Some(&"move") { 2 } else { 1 }).ok_or("names nothing")?,
                )?;
                self.names.insert(name.to_owned(), host);
                return self.step(step);
            }
            ["run", time] => {
                self.world.run(duration(time)?);
            }
            [how @ ("kill" | "power-off"), whom] => {
                for host in self.hosts(whom)? {
                    self.world.kill(host, how == "power-off");
                }
            }
            ["drain", whom] => {
                let host = self.host(whom)?;
                self.world.drain(host);
            }
            ["start", whom] => {
                for host in self.hosts(whom)? {
                    self.world.start(host);
                }
            }
            ["pause", whom, time] => {
                let host = self.host(whom)?;
                self.world.pause(host, duration(time)?);
            }
            [how @ ("cut" | "cut-one-way"), from, to, time] => {
                let (from, to) = (self.place(from)?, self.place(to)?);
                self.world.cut(from, to, duration(time)?, how == "cut");
            }
            ["lag", from, to, delay, "for", time] => {
                let (from, to) = (self.place(from)?, self.place(to)?);
                self.world.lag(from, to, duration(time)?, duration(delay)?);
            }
            ["isolate", whom, time] => {
                let host = self.host(whom)?;
                self.world.isolate(host, duration(time)?);
            }
            ["false-reset", of, "at", at] => {
                let (of, at) = (self.host(of)?, self.host(at)?);
                self.world.false_reset(of, at);
            }
            ["slow-disk", whom, time] => {
                let host = self.host(whom)?;
                self.world.slow_disk(host, duration(time)?);
            }
            ["break-disk", whom] => {
                let host = self.host(whom)?;
                self.world.break_disk(host);
            }
            ["replace-disk", whom] => {
                let host = self.host(whom)?;
                self.world.kill(host, false);
                self.world.start(host);
            }
            [how @ ("fill-disk" | "empty-disk"), whom] => {
                let host = self.host(whom)?;
                self.world.fill_disk(host, how == "fill-disk");
            }
            ["damage-log", whom] => {
                let host = self.host(whom)?;
                self.world.damage_log(host);
            }
            ["damage-rows", whom] => {
                let host = self.host(whom)?;
                self.world.damage_rows(host, gpid);
            }
            ["drift", whom, ppm] => {
                let host = self.host(whom)?;
                self.world.set_drift(host, ppm.parse().map_err(|_| "no number")?);
            }
            ["wall", whom, offset] => {
                let host = self.host(whom)?;
                let (sign, time) = offset.strip_prefix('-').map_or((1, offset), |time| (-1, time));
                let us = i64::try_from(duration(time)?).map_err(|_| "too long")?;
                self.world.set_wall(host, sign * us);
            }
            ["stop-meta"] => self.world.stop_metas(),
            ["start-meta"] => self.world.start_metas(),
            ["kill-meta", whom] => {
                let meta = self.meta(whom)?;
                self.world.kill_meta(meta);
            }
            ["start-meta", whom] => {
                let meta = self.meta(whom)?;
                self.world.metas[meta].start(&mut self.world.bus);
            }
            ["pause-meta", whom, time] => {
                let meta = self.meta(whom)?;
                self.world.pause_meta(meta, duration(time)?);
            }
            ["stop-store"] => self.world.stop_store(),
            ["start-store"] => self.world.start_store(),
            ["move", "to", whom] => {
                let host = self.host(whom)?;
                self.world.move_primary(gpid, host);
            }
            ["remove", whom] => {
                let host = self.host(whom)?;
                self.world.remove_member(gpid, host);
            }
            ["storm"] => self.world.set_weather(Weather::Stormy),
            ["calm"] => self.world.set_weather(Weather::Calm),
            ["watch"] => {
                self.world.checks.history.watch_gaps(self.world.bus.now);
                self.world.checks.watch_silence(self.world.bus.now);
                self.watched = self.world.checks.figures;
            }
            ["expect", ref what @ ..] => return self.expect(what),
            _ => return Err("no such step".to_owned()),
        }
        Ok(())
    }

    fn expect(&mut self, what: &[&str]) -> Result<(), String> {
        let gpid = self.world.gpids()[0];
        match *what {
            ["gap", "below", limit] => {
                let gap = self.world.checks.history.worst_gap(self.world.bus.now, gpid);
                self.gaps.push(gap / MS);
                fulfilled(gap < duration(limit)?, || format!("{} ms", gap / MS))
            }
            ["silence", "below", limit] => {
                let silence = self.world.checks.worst_silence(self.world.bus.now);
                self.gaps.push(silence / MS);
                fulfilled(silence < duration(limit)?, || format!("{} ms", silence / MS))
            }
            ["no", "writes", "for", time] => {
                // What is on its way to a client was acknowledged before.
                self.world.run(20 * MS);
                let from = self.world.bus.now;
                self.world.run(duration(time)?);
                let last = self.world.checks.history.last_write(gpid);
                fulfilled(last.is_none_or(|last| last <= from), || "a write was acknowledged".to_owned())
            }
            ["take-overs", count] => {
                let found = self.world.checks.figures.take_overs - self.watched.take_overs;
                fulfilled(found >= number(count)?, || format!("{found}"))
            }
            ["additions", count] => {
                let found = self.world.checks.figures.learned - self.watched.learned;
                fulfilled(found >= number(count)?, || format!("{found}"))
            }
            ["healthy", "within", time] => {
                let healthy = self.world.run_until(duration(time)?, World::all_healthy);
                fulfilled(healthy.is_some(), || format!("{:?}", self.world.store.config(gpid)))
            }
            ["balanced", "within", time] => {
                let balanced = self.world.run_until(duration(time)?, World::is_balanced);
                let found =
                    || format!("primaries {:?}, replicas {:?}", self.world.primaries(), self.world.copies());
                fulfilled(balanced.is_some(), found)
            }
            ["serving"] => fulfilled(self.world.is_serving(gpid), || "nobody serves".to_owned()),
            ["silence"] => fulfilled(!self.world.is_serving(gpid), || "somebody serves".to_owned()),
            ["members", count] => {
                let found = self.world.store.config(gpid).map_or(0, |c| c.member_count());
                let wanted: usize = count.parse().map_err(|_| "no number")?;
                fulfilled(found == wanted, || format!("{found} members"))
            }
            ["leader", "within", time] => {
                let leads = self.world.run_until(duration(time)?, |world| world.leader().is_some());
                fulfilled(leads.is_some(), || "nobody leads".to_owned())
            }
            ["leader", "is", ref rest @ ..] => {
                let (negated, name) = negation(rest)?;
                let same = self.world.leader() == Some(self.meta(name)?);
                fulfilled(same != negated, || format!("{:?} leads", self.world.leader().map(Place::Meta)))
            }
            ["primary", "is", ref rest @ ..] => {
                let (negated, name) = negation(rest)?;
                let same = self.world.primary(gpid) == Some(self.host(name)?);
                fulfilled(same != negated, || format!("{:?}", self.world.store.config(gpid)))
            }
            _ => Err("no such expectation".to_owned()),
        }
    }

    fn hosts(&self, whom: &str) -> Result<Vec<usize>, String> {
        if whom == "all" { Ok((0..self.world.hosts.len()).collect()) } else { Ok(vec![self.host(whom)?]) }
    }

    fn host(&self, whom: &str) -> Result<usize, String> {
        let gpid = self.world.gpids()[0];
        let found = match whom {
            "primary" => self.world.primary(gpid),
            "secondary" => self.world.secondary(gpid, 1),
            "secondary2" => self.world.secondary(gpid, 2),
            name => self.names.get(name).copied().or_else(|| {
                let number = name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)?;
                (number < self.world.hosts.len()).then_some(number)
            }),
        };
        found.ok_or_else(|| format!("there is no {whom}"))
    }

    fn meta(&self, whom: &str) -> Result<usize, String> {
        let found = match whom {
            "leader" | "meta" => self.world.leader().or(Some(0)),
            name => self.metas.get(name).copied().or_else(|| {
                let number = name.strip_prefix('m')?.parse::<usize>().ok()?.checked_sub(1)?;
                (number < self.world.metas.len()).then_some(number)
            }),
        };
        found.ok_or_else(|| format!("there is no {whom}"))
    }

    fn place(&self, whom: &str) -> Result<Place, String> {
        if whom == "store" {
            return Ok(Place::Store);
        }
        self.meta(whom).map(Place::Meta).or_else(|_| self.host(whom).map(Place::Host))
    }
}

fn negation<'a>(words: &[&'a str]) -> Result<(bool, &'a str), String> {
    match *words {
        ["not", name] => Ok((true, name)),
        [name] => Ok((false, name)),
        _ => Err("names nobody".to_owned()),
    }
}

fn fulfilled(is: bool, found: impl FnOnce() -> String) -> Result<(), String> {
    if is { Ok(()) } else { Err(format!("not so: {}", found())) }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn duration(text: &str) -> Result<Micros, String> {
    let bad = || format!("{text:?} is no time: 500ms, 2s");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, MS),
        None => (text.strip_suffix('s').ok_or_else(bad)?, SECOND),
    };
    number.parse::<u64>().map(|n| n * unit).map_err(|_| bad())
}
