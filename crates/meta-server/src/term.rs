//! One term as leader: load what is stored, lead until told to stop, leave nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_meta_core::{Job, WriterError};
use pegasus_placement::Ledger;
use pegasus_placement::cure::Cure;
use pegasus_placement::lint::lint;
use pegasus_placement::liveness::Liveness;
use pegasus_telemetry::Shutdown;
use pegasus_types::{AppStatus, Node};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{FencedStore, survey};
use tokio::sync::{Notify, mpsc, watch};

use crate::clock::Clock;
use crate::leader::{Leader, State};
use crate::persist;
use crate::proposer::Proposer;
use crate::published::{About, Published};
use crate::role::Role;
use crate::rounds;
use crate::writer::{self, Asked, Ticket};

/// The term's tasks get this long to end.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Between tries to load while the store does not answer.
const LOAD_PAUSE: Duration = Duration::from_millis(200);

/// Leads until `stop` is triggered (Ok), or until something forbids it.
pub async fn lead(
    role: &Rc<Role>,
    about: Arc<About>,
    store: &FencedStore,
    tree: &Tree,
    stop: &Shutdown,
) -> Result<(), WriterError> {
    role.load();
    let begun = tokio::time::Instant::now();
    let Some(ledger) = stop.or(persist::load_at_last(store, tree, LOAD_PAUSE)).await else { return Ok(()) };
    let ledger = ledger?;
    tracing::info!(
        epoch = store.fence().epoch,
        tables = ledger.view().tables().count(),
        partitions = ledger.view().live_partitions().count(),
        load_ms = begun.elapsed().as_millis() as u64,
        "this meta-server leads"
    );
    for fault in lint(ledger.view()) {
        tracing::error!(fault, "the stored metadata is not consistent");
    }
    if let Some(Ok(lines)) = stop.or(survey::left_out(store, tree)).await {
        for line in lines {
            tracing::warn!(line, "stored, and not taken over by this version");
        }
    }
    let (jobs, mut queue) = mpsc::channel(writer::MAX_JOBS);
    let leader = Rc::new(leader(role, about, ledger, jobs, stop));
    leader.publish();
    begin(&leader, role);
    role.lead(leader.clone());
    let interval = role.config.liveness.fd_check_interval_seconds.0;
    stop.spawn_local_until(rounds::run(leader.clone(), interval));

    let result = stop.or(writer::run(&leader, &mut queue, store, tree)).await;
    role.suspend();
    stop.trigger();
    queue.close();
    while let Ok((_, ticket)) = queue.try_recv() {
        ticket.refuse();
    }
    if !stop.wait_for_tasks(STOP_WITHIN).await {
        tracing::warn!("some tasks of the term did not end in time");
    }
    tracing::info!(epoch = store.fence().epoch, "this meta-server leads no longer");
    result.unwrap_or(Ok(()))
}

fn leader(
    role: &Rc<Role>,
    about: Arc<About>,
    ledger: Ledger,
    jobs: mpsc::Sender<Asked>,
    stop: &Shutdown,
) -> Leader {
    let clock = Clock::start();
    let now = clock.now();
    let grace_ms = u64::try_from(role.config.liveness.fd_grace_seconds.0.as_millis()).unwrap_or(u64::MAX);
    let mut liveness = Liveness::new(grace_ms);
    // A new leader has not heard anybody yet: nobody is declared dead before one grace time.
    ledger.view().known_nodes().iter().for_each(|node| liveness.expect(now, node));
    liveness.set_retired(ledger.drained().clone());
    let wants_report = Rc::new(RefCell::new(BTreeSet::new()));
    let missed = wants_report.clone();
    let on_missed = move |node: &Node| missed.borrow_mut().extend([node.clone()]);
    // Whoever had them created was told something by another leader, or nothing.
    let creating = ledger.view().tables().filter(|table| table.info.status == AppStatus::Creating);
    let promised = RefCell::new(creating.map(|table| table.info.app_id).collect());
    let level = role.config.meta.meta_function_level_on_start.into();
    let published = Published {
        about: about.clone(),
        level,
        view: ledger.view().clone(),
        nodes: Default::default(),
        notes: Default::default(),
        frozen: Vec::new(),
        wanted_moves: Default::default(),
    };
    Leader {
        about,
        limits: role.limits.clone(),
        configured: role.config.cure_options(),
        level: Cell::new(level),
        clock,
        state: RefCell::new(State {
            ledger,
            liveness,
            cure: Cure::new(role.config.cure_options(), now),
            held: Default::default(),
            rounds: Default::default(),
            proposed: Default::default(),
            wants_report,
            strange_tables: BTreeSet::new(),
        }),
        jobs,
        proposer: Proposer::new(role.pool.clone(), stop.clone(), on_missed),
        resolver: role.resolver.clone(),
        metrics: role.metrics.clone(),
        promised,
        kick: Notify::new(),
        published: watch::Sender::new(Arc::new(published)),
    }
}

/// What is to be done first: complete what the last leader began, make the tables of a first start.
fn begin(leader: &Leader, role: &Role) {
    let (half_done, is_first_start) = {
        let ledger = &leader.state.borrow().ledger;
        (ledger.half_done(), ledger.view().next_app_id() == 1)
    };
    let mut jobs = Vec::new();
    for app_id in half_done {
        tracing::warn!(app_id, "completing what was cut in two");
        jobs.push(Job::Mend(app_id));
    }
    if is_first_start {
        for request in role.config.default_tables() {
            tracing::info!(name = request.name, "first start: creating a table");
            jobs.push(Job::Create(request));
        }
    }
    for job in jobs {
        // The queue is empty and holds more jobs than there can be tables.
        if leader.jobs.try_send((job, Ticket::Nobody)).is_err() {
            tracing::error!("the queue of a new leader is full");
        }
    }
}
