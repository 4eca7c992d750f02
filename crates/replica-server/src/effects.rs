//! The only place where a decision of the core becomes IO.
//!
//! Effects of one replica are begun in the order in which they come. What takes time runs as a task or on a file
//! lane and comes back as an event.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pegasus_mutation_log::Record;
use pegasus_pacifica::{Effect, Event, Fault};
use pegasus_rpc::peer::Outbox;
use pegasus_storage::EngineError;
use pegasus_types::message::{Envelope, Heartbeat};
use pegasus_types::meta::{ChangeRequest, ReplicaStatus};
use pegasus_types::{Ballot, Decree, ErrorCode, Gpid, Millis, Mutation, Node, PartitionConfig};

use crate::node::{NodeState, Shell};
use crate::replica_files::SaveError;
use crate::{clock, learn_io, meta_link, replica_files, units};

/// A heartbeat that is not answered by then is of no use: its lease would have run out.
const HEARTBEAT_WITHIN: Duration = Duration::from_millis(1000);
/// A configuration that found no space on the disk is saved again after this time.
const FULL_PAUSE: Duration = Duration::from_millis(500);

pub fn begin(state: &mut NodeState, shell: &Rc<Shell>, now: Millis, effect: Effect) {
    match effect {
        Effect::Log { gpid, ballot, committed, cuts, mutations } => {
            log(state, gpid, ballot, committed, cuts, mutations);
        }
        Effect::Send { to, envelope } => send(state, shell, to, envelope),
        Effect::Apply { gpid, mutations } => apply(state, gpid, &mutations),
        Effect::Reply { gpid, token, result } => reply(state, now, gpid, token, result),
        // The client runs into its timeout: nobody knows what becomes of the write.
        Effect::Drop { gpid, token } => {
            if let Some(replica) = state.replicas.get_mut(&gpid) {
                drop(replica.inflight.finished(token));
            }
        }
        Effect::SendHeartbeat { to, heartbeat } => send_heartbeat(shell, to, heartbeat),
        Effect::AckHeartbeat { ack, .. } => state.heartbeat_ack = Some(ack),
        Effect::SaveConfig { gpid, config, learning } => save_config(state, shell, gpid, config, learning),
        Effect::OpenReplica { gpid, config } => replica_files::open_for_learning(shell, gpid, config),
        Effect::AskMeta { request } => ask_meta(shell, request),
        Effect::QueryMeta { gpid } => query_meta(shell, gpid),
        Effect::StartCopy { gpid, from, ballot, signature, committed } => {
            learn_io::learner::start(state, shell, gpid, from, ballot, signature, committed);
        }
        Effect::FetchLog { gpid, from, signature, after } => {
            learn_io::learner::fetch(state, shell, gpid, from, signature, after);
        }
        Effect::StopCopy { gpid } => drop(state.copying.remove(&gpid)),
        Effect::RoleChanged { gpid, status, ballot } => role_changed(state, gpid, status, ballot),
        Effect::Quarantine { gpid, why } => replica_files::quarantine(state, shell, gpid, &why),
        Effect::Dump { gpid, why, events } => {
            tracing::error!(%gpid, why, "an invariant failed; the last events of the replica follow");
            events.iter().for_each(|event| tracing::error!(%gpid, event));
        }
    }
}

fn log(
    state: &mut NodeState,
    gpid: Gpid,
    ballot: Ballot,
    committed: Decree,
    mut cuts: bool,
    mutations: Vec<Mutation>,
) {
    let Some(replica) = state.replicas.get_mut(&gpid) else { return };
    let copy_id = replica.copy_id;
    if replica.inflight.len() > 0 {
        mutations.iter().for_each(|mutation| replica.stages.proposed(mutation.decree, replica.taken_us));
    }
    let disk = &mut state.disks[replica.disk];
    for mutation in mutations {
        disk.push(Record { copy_id, ballot, committed, mutation, cuts: std::mem::take(&mut cuts) });
    }
}

fn send(state: &mut NodeState, shell: &Rc<Shell>, to: Node, envelope: Envelope) {
    // A full outbox drops the message; the core repeats what stays unanswered.
    let outbox = state.outboxes.entry(to).or_insert_with_key(|to| Outbox::new(shell.pool.replica(to)));
    outbox.push(envelope);
}

fn apply(state: &mut NodeState, gpid: Gpid, mutations: &[Mutation]) {
    let Some(replica) = state.replicas.get_mut(&gpid) else { return };
    let is_timed = !replica.stages.is_empty();
    for mutation in mutations {
        if is_timed {
            replica.stages.committed(mutation.decree, clock::mono_us());
        }
        // The engine only asks for growing decrees. A gap would be a lost write that nobody ever notices.
        let applied = replica.engine.applied_decree();
        if mutation.decree != applied.next() {
            let error = EngineError::DecreeNotGrowing { applied, asked: mutation.decree };
            tracing::error!(%gpid, %error, "the engine is not where the core takes it to be");
            return state.engine_failed(gpid, &error);
        }
        let location = replica.locations.take(mutation.decree).unwrap_or_default();
        let applied = replica.engine.apply(mutation.decree, mutation.timestamp_us, &mutation.body, location);
        if let Err(error) = applied {
            tracing::error!(%gpid, decree = %mutation.decree, %error, "cannot apply");
            return state.engine_failed(gpid, &error);
        }
        if is_timed {
            replica.stages.applied(mutation.decree, clock::mono_us());
        }
    }
    if let Some(last) = mutations.last() {
        state.events.push_back(Event::Applied { gpid, upto: last.decree });
    }
}

fn reply(state: &mut NodeState, now: Millis, gpid: Gpid, token: u64, result: Result<Decree, ErrorCode>) {
    let Some(replica) = state.replicas.get_mut(&gpid) else { return };
    let waiting = replica.inflight.finished(token);
    match result {
        Ok(decree) => {
            replica.counts.writes += waiting.len() as u64;
            let times = replica.stages.take(decree);
            let table = state.metrics.table(gpid.app_id);
            for answered in waiting.iter().filter(|waiting| !waiting.is_read) {
                let read_units = units::read_by_write(&answered.response);
                replica.counts.answered(answered.op, answered.reply.frame_bytes() as u64);
                replica.counts.write_units += answered.units;
                replica.counts.read_units += read_units;
                let metrics = table.op(answered.op);
                metrics.write_units += answered.units;
                metrics.read_units += read_units;
            }
            for waiting in waiting {
                state.answer(now, gpid, waiting, decree.0, times);
            }
        }
        Err(code) => {
            for waiting in waiting {
                state.refuse(gpid, waiting.op, waiting.reply, code);
            }
        }
    }
}

fn send_heartbeat(shell: &Rc<Shell>, to: Node, heartbeat: Heartbeat) {
    let client = shell.pool.replica(&to);
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        if let Ok(ack) = client.heartbeat(HEARTBEAT_WITHIN, heartbeat).await {
            shell.post(Event::HeartbeatAcked { from: to, ack });
        }
    });
}

fn save_config(
    state: &mut NodeState,
    shell: &Rc<Shell>,
    gpid: Gpid,
    config: PartitionConfig,
    learning: bool,
) {
    let Some(replica) = state.replicas.get_mut(&gpid) else { return };
    let ballot = config.ballot;
    let is_settled = !learning && config.is_member(&shell.me);
    replica.meta.config = config;
    replica.meta.learning = learning;
    let mut saving = Box::pin(replica_files::try_save_meta(shell, replica));
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        let mut said = false;
        loop {
            match saving.await {
                Ok(()) => {
                    if is_settled {
                        replica_files::drop_kept_later(&shell, gpid);
                    }
                    return shell.post(Event::ConfigSaved { gpid, ballot, learning });
                }
                Err(SaveError { full: true, why }) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%gpid, why, "no space for a configuration, waiting");
                    }
                }
                Err(SaveError { why, .. }) => {
                    return shell.post(Event::Failed { gpid, fault: Fault::Save, why });
                }
            }
            // The core waits, and acts on nothing meanwhile. A replica is not broken because its disk is full.
            tokio::time::sleep(FULL_PAUSE).await;
            let again = shell.with(|state| {
                let replica = state.replicas.get(&gpid)?;
                let meta = &replica.meta;
                // What was asked for since is saved by a task of its own.
                let is_wanted = meta.config.ballot == ballot && meta.learning == learning;
                is_wanted.then(|| replica_files::try_save_meta(&shell, replica))
            });
            match again {
                Some(again) => saving = Box::pin(again),
                None => return,
            }
        }
    });
}

fn ask_meta(shell: &Rc<Shell>, request: ChangeRequest) {
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        let (gpid, asked_at, kind) = (request.gpid, request.ballot, request.kind.clone());
        let reply = shell.meta.change(&shell.pool, request).await;
        shell.post(Event::ChangeAnswered { gpid, asked_at, kind, reply });
    });
}

fn query_meta(shell: &Rc<Shell>, gpid: Gpid) {
    let shell = shell.clone();
    tokio::task::spawn_local(async move {
        meta_link::refresh(&shell, gpid).await;
    });
}

fn role_changed(state: &mut NodeState, gpid: Gpid, status: ReplicaStatus, ballot: Ballot) {
    tracing::info!(%gpid, ?status, %ballot, "role");
    state.unpark = true;
    if status == ReplicaStatus::Primary {
        return;
    }
    state.refuse_queued(gpid, ErrorCode::InvalidState);
    state.refuse_parked_answers(gpid);
    state.teaching.close(gpid);
    if let Some(replica) = state.replicas.get_mut(&gpid) {
        replica.scans.clear_all();
    }
}

/// Tables that the meta told of.
pub fn note_app(state: &mut NodeState, app: pegasus_types::AppInfo) {
    let known = state.apps.get(&app.app_id);
    if known.is_none_or(|known| **known != app) {
        state.apps.insert(app.app_id, Arc::new(app));
    }
}
