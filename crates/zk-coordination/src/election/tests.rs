use super::*;
use crate::memory_tree::{MemoryTree, SessionId};

const SESSION_MS: u64 = 4000;

fn options(me: &str) -> Options {
    Options {
        tree: Tree::new("/pegasus/c"),
        lock_root: String::new(),
        me: me.parse().unwrap(),
        session_ms: SESSION_MS,
    }
}

/// What the shell does, on a tree: the outcome of a call.
fn carry_out(tree: &mut MemoryTree, session: SessionId, call: &Call) -> Answer {
    match call {
        Call::Prepare(paths) => {
            for path in paths {
                for end in path.match_indices('/').skip(1).map(|(i, _)| i).chain([path.len()]) {
                    let _ = tree.multi(session, &[Op::create(&path[..end], "")]);
                }
            }
            Answer::Prepared(Ok(()))
        }
        Call::Look(dir) => Answer::Seen(tree.children(dir).map(|names| {
            let candidate = |name: String| {
                let datum = tree.get(&format!("{dir}/{name}")).unwrap()?;
                Some(Candidate { name, address: String::from_utf8_lossy(&datum.bytes).into_owned() })
            };
            names.into_iter().filter_map(candidate).collect()
        })),
        Call::Read(path) => Answer::Read(tree.get(path)),
        Call::Write(ops) => Answer::Written(tree.multi(session, ops).map(|(results, _)| results)),
    }
}

/// Steps until no call follows; the news.
fn settle(
    election: &mut Election,
    tree: &mut MemoryTree,
    session: SessionId,
    now: u64,
    event: Event,
) -> Vec<Leadership> {
    let mut news = Vec::new();
    let mut events = vec![event];
    while let Some(event) = events.pop() {
        for action in election.step(now, event) {
            match action {
                Action::Call(call) => events.push(Event::Answer(carry_out(tree, session, &call))),
                Action::Tell(leadership) => news.push(leadership),
            }
        }
    }
    news
}

fn epoch(news: &[Leadership]) -> Option<u64> {
    news.last().and_then(Leadership::leading).map(|fence| fence.epoch)
}

#[test]
fn the_first_leads_the_second_follows_and_takes_over() {
    let mut tree = MemoryTree::default();
    let mut first = Election::new(options("m1:34601"));
    let mut second = Election::new(options("m2:34601"));
    let news = settle(&mut first, &mut tree, 1, 0, Event::Start);
    assert_eq!(epoch(&news), Some(1), "{news:?}");
    let news = settle(&mut second, &mut tree, 2, 10, Event::Start);
    let leader = Some("m1:34601".parse().unwrap());
    assert_eq!(news.last(), Some(&Leadership::Standby { leader }));
    assert_eq!(second.next_tick(), None, "it waits for the watch");
    let dir = "/pegasus/c/lock/dsn.meta.server.leader";
    assert_eq!(tree.children(dir).unwrap(), ["LOCKNODE0000000000", "LOCKNODE0000000001"]);

    tree.end_session(1);
    let news = settle(&mut second, &mut tree, 2, 20, Event::Changed);
    assert_eq!(epoch(&news), Some(2));
    // The first finds out when it confirms, and stands in line again.
    let tick = first.next_tick().unwrap();
    assert_eq!(tick, SESSION_MS / CONFIRMS_PER_SESSION);
    let news = settle(&mut first, &mut tree, 3, tick, Event::Tick);
    assert_eq!(news[0], Leadership::Standby { leader: None });
    assert_eq!(news[1], Leadership::Standby { leader: Some("m2:34601".parse().unwrap()) });
    // Given back, the role passes at once.
    assert_eq!(settle(&mut second, &mut tree, 2, 30, Event::Resign), [Leadership::Over]);
    assert_eq!(epoch(&settle(&mut first, &mut tree, 3, 30, Event::Changed)), Some(3));
}

#[test]
fn a_deposed_leader_cannot_write_however_late() {
    let mut tree = MemoryTree::default();
    let mut first = Election::new(options("m1:34601"));
    let news = settle(&mut first, &mut tree, 1, 0, Event::Start);
    let fence = news.last().and_then(Leadership::leading).unwrap().clone();
    let write = |tree: &mut MemoryTree, path: &str| {
        let ops: Vec<Op> = fence.checks().into_iter().chain([Op::create(path, "")]).collect();
        tree.multi(1, &ops).map(drop)
    };
    write(&mut tree, "/pegasus/c/a").unwrap();
    // Without the node, and with a node of its name but a later epoch.
    tree.end_session(1);
    assert!(fence.is_broken_by(&write(&mut tree, "/pegasus/c/b").unwrap_err()));
    let mut second = Election::new(options("m2:34601"));
    settle(&mut second, &mut tree, 2, 0, Event::Start);
    tree.multi(9, &[Op::create(fence.node.clone(), "m1:34601")]).unwrap();
    assert!(fence.is_broken_by(&write(&mut tree, "/pegasus/c/b").unwrap_err()));
    assert!(!fence.is_broken_by(&StoreError::NoNode("/pegasus/c/x".into())));
}

#[test]
fn a_leader_without_proof_is_suspended_in_time_and_returns_with_the_same_fence() {
    let mut tree = MemoryTree::default();
    let mut election = Election::new(options("m1:34601"));
    settle(&mut election, &mut tree, 1, 0, Event::Start);
    let mut now = 0;
    let mut news = Vec::new();
    let down = || Event::Answer(Answer::Written(Err(StoreError::Unavailable("down".into()))));
    while news.is_empty() {
        now = election.next_tick().unwrap();
        let mut actions = election.step(now, Event::Tick);
        if actions.iter().any(|action| matches!(action, Action::Call(_))) {
            actions.extend(election.step(now, down()));
        }
        news.extend(actions.into_iter().filter_map(|action| match action {
            Action::Tell(leadership) => Some(leadership),
            Action::Call(_) => None,
        }));
    }
    assert_eq!(now, SESSION_MS * SUSPEND_PERCENT / 100);
    let Leadership::Suspended(fence) = &news[0] else { panic!("{news:?}") };
    let news = settle(&mut election, &mut tree, 1, now + 1000, Event::Session(SessionState::Connected));
    assert_eq!(news, [Leadership::Leading(fence.clone())]);
}

#[test]
fn what_goes_wrong_on_the_way() {
    let unknown = || StoreError::OutcomeUnknown("lost".into());
    // A lost answer of the own node's creation: only a new session is sure to have one node.
    let mut tree = MemoryTree::default();
    let mut election = Election::new(options("m1:34601"));
    let [Action::Tell(_), Action::Call(prepare)] = &election.step(0, Event::Start)[..] else { panic!() };
    let prepared = carry_out(&mut tree, 1, prepare);
    election.step(0, Event::Answer(prepared));
    let lost = election.step(0, Event::Answer(Answer::Written(Err(unknown()))));
    assert_eq!(lost, [Action::Tell(Leadership::Over)]);

    // A lost answer of the claim, which was carried out: it claims again, with a higher epoch.
    let mut election = Election::new(options("m1:34601"));
    let mut actions = election.step(0, Event::Start);
    while let Some(Action::Call(call)) = actions.pop() {
        let answer = carry_out(&mut tree, 2, &call);
        let is_claim =
            matches!(&call, Call::Write(ops) if ops.iter().any(|op| op.path() == "/pegasus/c/leader_epoch"));
        let answer = if is_claim { Answer::Written(Err(unknown())) } else { answer };
        actions = election.step(0, Event::Answer(answer));
    }
    let news = settle(&mut election, &mut tree, 2, RETRY_MS, Event::Tick);
    assert_eq!(epoch(&news), Some(2));

    // A life before has left its node: it is removed, not waited for.
    let mut election = Election::new(options("m1:34601"));
    let news = settle(&mut election, &mut tree, 3, 0, Event::Start);
    assert_eq!(epoch(&news), Some(3));

    // The epoch is no number: nobody leads, nothing is overwritten.
    tree.end_session(3);
    tree.multi(9, &[Op::Set { path: "/pegasus/c/leader_epoch".into(), bytes: "x".into(), version: None }])
        .unwrap();
    let mut election = Election::new(options("m1:34601"));
    assert_eq!(epoch(&settle(&mut election, &mut tree, 4, 0, Event::Start)), None);
    assert_eq!(election.next_tick(), Some(RETRY_MS));
    assert_eq!(&tree.get("/pegasus/c/leader_epoch").unwrap().unwrap().bytes[..], b"x");
}

/// Splitmix64: a seed gives the same run for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

/// One meta-server of the simulation: its election and its messages under way.
struct Meta {
    election: Election,
    session: SessionId,
    /// When the store has last heard of the session.
    heard: u64,
    /// The store ended the session; the meta-server learns of it when it reaches the store again.
    expired: bool,
    cut_until: u64,
    paused_until: u64,
    request: Option<(u64, Call)>,
    answer: Option<(u64, Answer)>,
    /// When its watch fires.
    watch: Option<u64>,
    leading: Option<Fence>,
}

/// Five meta-servers, slow messages, lost answers, cuts, pauses, ended sessions.
fn world(seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut tree = MemoryTree::default();
    let mut last_session = 0;
    let mut fresh = |name: usize, now: u64| {
        last_session += 1;
        Meta {
            election: Election::new(options(&format!("m{name}:34601"))),
            session: last_session,
            heard: now,
            expired: false,
            cut_until: 0,
            paused_until: 0,
            request: None,
            answer: None,
            watch: None,
            leading: None,
        }
    };
    let mut metas: Vec<Meta> = (0..5).map(|name| fresh(name, 0)).collect();
    let mut started = vec![false; metas.len()];
    let mut epochs = std::collections::BTreeMap::new();
    let mut reigns = 0;
    let mut led_at = 0;
    let calm_from = 120_000;
    for now in (0..150_000).step_by(10) {
        let before = tree.clone();
        for i in 0..metas.len() {
            let meta = &mut metas[i];
            if now < calm_from && dice.below(1500) == 0 {
                meta.cut_until = now + dice.below(8000);
            }
            if now < calm_from && dice.below(1500) == 0 {
                meta.paused_until = now + dice.below(8000);
            }
            let reaches = now >= meta.cut_until;
            if let Some((at, call)) = meta.request.take() {
                if now >= at && reaches && !meta.expired {
                    let answer = carry_out(&mut tree, meta.session, &call);
                    meta.heard = now;
                    let lost = now < calm_from && dice.below(50) == 0;
                    let unknown = || StoreError::OutcomeUnknown("lost".into());
                    let answer = match answer {
                        Answer::Written(_) if lost => Answer::Written(Err(unknown())),
                        Answer::Prepared(_) if lost => Answer::Prepared(Err(unknown())),
                        other => other,
                    };
                    if matches!(call, Call::Look(_)) {
                        meta.watch = None;
                    }
                    meta.answer = Some((now + dice.below(100), answer));
                } else if now >= at {
                    let down = StoreError::Unavailable("cut".into());
                    let answer = match call {
                        Call::Prepare(_) => Answer::Prepared(Err(down)),
                        Call::Look(_) => Answer::Seen(Err(down)),
                        Call::Read(_) => Answer::Read(Err(down)),
                        Call::Write(_) => Answer::Written(Err(down)),
                    };
                    meta.answer = Some((now, answer));
                } else {
                    meta.request = Some((at, call));
                }
            }
            // The client's own pings.
            if reaches && !meta.expired && now >= meta.paused_until {
                meta.heard = now;
            }
            if now - meta.heard > SESSION_MS && !meta.expired {
                meta.expired = true;
                tree.end_session(meta.session);
            }
            if now < meta.paused_until {
                continue;
            }
            let mut events = Vec::new();
            if !std::mem::replace(&mut started[i], true) {
                events.push(Event::Start);
            }
            if meta.expired && reaches {
                events.push(Event::Session(SessionState::Over));
            } else if reaches && meta.watch.take_if(|at| *at <= now).is_some() {
                events.push(Event::Changed);
            }
            if let Some((_, answer)) = meta.answer.take_if(|(at, _)| *at <= now) {
                events.push(Event::Answer(answer));
            }
            if meta.election.next_tick().is_some_and(|at| at <= now) {
                events.push(Event::Tick);
            }
            for event in events {
                for action in meta.election.step(now, event) {
                    match action {
                        Action::Call(call) => meta.request = Some((now + dice.below(100), call)),
                        Action::Tell(leadership) => {
                            meta.leading = leadership.leading().cloned();
                            if let Some(fence) = &meta.leading {
                                let of = epochs.entry(fence.epoch).or_insert(meta.session);
                                assert_eq!(
                                    *of, meta.session,
                                    "seed {seed}: two leaders in epoch {}",
                                    fence.epoch
                                );
                                reigns = reigns.max(fence.epoch);
                            }
                        }
                    }
                }
            }
            if metas[i].election.is_over() {
                // A given-up session ends by itself only when the process closes it.
                tree.end_session(metas[i].session);
                metas[i] = fresh(i, now);
                started[i] = false;
            }
        }
        if tree != before {
            for meta in metas.iter_mut().filter(|meta| meta.watch.is_none()) {
                meta.watch = Some(now + dice.below(1000));
            }
        }
        // A leader that runs and has not given up is the only one, and the store takes its writes.
        let leads = |meta: &&Meta| meta.leading.is_some() && now >= meta.paused_until;
        let leaders: Vec<&Meta> = metas.iter().filter(leads).collect();
        assert!(leaders.len() <= 1, "seed {seed}: at {now} two lead");
        if let Some(leader) = leaders.first() {
            led_at = now;
            let fence = leader.leading.as_ref().unwrap();
            let newest = tree.get("/pegasus/c/leader_epoch").unwrap().unwrap();
            if !leader.expired {
                assert_eq!(newest.bytes, fence.epoch.to_string().into_bytes(), "seed {seed} at {now}");
            }
        }
        assert!(now < calm_from + 20_000 || now - led_at < 1000, "seed {seed}: nobody leads at {now}");
    }
    reigns
}

#[test]
fn never_two_leaders_and_always_one_in_the_end() {
    let reigns: u64 = (1..=20).map(world).sum();
    assert!(reigns > 100, "the faults are too rare to show anything: {reigns} reigns");
}
