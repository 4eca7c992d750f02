//! Both ends of a copy: rows of a view, then the log (safety-rules.md 3.4).

use pegasus_pacifica::Event;
use pegasus_types::learn::LearnRefused;
use pegasus_types::{Ballot, Decree, Gpid, Mutation, Node};

use super::{Cx, Host};
use crate::bus::{Chore, MS, Micros, Packet, Place, SECOND};
use crate::engine::{Engine, Rows};

/// Bytes of bodies in one chunk of log.
const CHUNK_BYTES: usize = 1 << 10;
const ANSWER_WITHIN: Micros = 2 * SECOND;

/// A learner's question under way.
#[derive(Debug)]
pub struct Copying {
    signature: u64,
    /// What the learner holds, as told with `StartCopy`.
    committed: Decree,
    /// Number of the question; None = none is open.
    request: Option<u64>,
}

impl Host {
    // --- the learner ---

    pub(super) fn start_copy(
        &mut self,
        cx: &mut Cx<'_>,
        gpid: Gpid,
        from: &Node,
        ballot: Ballot,
        signature: u64,
        committed: Decree,
    ) {
        let Some(process) = &mut self.process else { return };
        process.copying.insert(gpid, Copying { signature, committed, request: None });
        self.ask_teacher(cx, gpid, from, |request| Packet::LearnOpen {
            request,
            gpid,
            ballot,
            signature,
            committed,
        });
    }

    pub(super) fn fetch_log(
        &mut self,
        cx: &mut Cx<'_>,
        gpid: Gpid,
        from: &Node,
        signature: u64,
        after: Decree,
    ) {
        let Some(process) = &mut self.process else { return };
        process.copying.insert(gpid, Copying { signature, committed: after, request: None });
        self.ask_teacher(cx, gpid, from, |request| Packet::LearnLog { request, gpid, signature, after });
    }

    fn ask_teacher(&mut self, cx: &mut Cx<'_>, gpid: Gpid, from: &Node, question: impl Fn(u64) -> Packet) {
        let Some(process) = &mut self.process else { return };
        let request = process.number();
        if let Some(copying) = process.copying.get_mut(&gpid) {
            copying.request = Some(request);
        }
        self.send_packet(cx, from, question(request));
        cx.bus.chore(self.id, ANSWER_WITHIN, Chore::CopyTimeout { gpid, request });
    }

    /// The session's open question, answered.
    fn answered_by_teacher(&mut self, gpid: Gpid, request: u64) -> Option<Decree> {
        let copying = self.process.as_mut()?.copying.get_mut(&gpid)?;
        copying.request.take_if(|open| *open == request).map(|_| copying.committed)
    }

    pub(super) fn copy_timeout(&mut self, cx: &mut Cx<'_>, gpid: Gpid, request: u64) {
        let open = self.process.as_ref().and_then(|p| p.copying.get(&gpid));
        let Some(copying) = open.filter(|c| c.request == Some(request)) else { return };
        let signature = copying.signature;
        // What is answered now is too late: the failure has been reported.
        if let Some(process) = &mut self.process {
            process.copying.remove(&gpid);
        }
        let why = "no answer".to_owned();
        self.step(cx, Event::CopyFailed { gpid, signature, restart: true, why });
    }

    pub(super) fn learn_plan(
        &mut self,
        cx: &mut Cx<'_>,
        request: u64,
        gpid: Gpid,
        signature: u64,
        plan: Result<Option<(Rows, Decree)>, LearnRefused>,
    ) {
        let Some(committed) = self.answered_by_teacher(gpid, request) else { return };
        match plan {
            Ok(None) => self.step(cx, Event::CopiedRows { gpid, signature, decree: committed }),
            Ok(Some((rows, decree))) => {
                let delay = cx.bus.dice.between(2 * MS, 60 * MS);
                cx.bus.chore(self.id, delay, Chore::RowsCopied { gpid, signature, rows, decree });
            }
            Err(refused) => self.refused(cx, gpid, signature, &refused),
        }
    }

    /// The copy is complete: it replaces the old one, which has been a life of its own in the log.
    pub(super) fn rows_copied(
        &mut self,
        cx: &mut Cx<'_>,
        gpid: Gpid,
        signature: u64,
        rows: Rows,
        decree: Decree,
    ) {
        let Some(process) = &mut self.process else { return };
        if process.copying.get(&gpid).is_none_or(|c| c.signature != signature) {
            return;
        }
        let Some(file) = self.files.get_mut(&gpid) else { return };
        process.log.forget(gpid, file.copy_id);
        file.copy_id = cx.bus.dice.roll();
        file.engine = Engine::from_rows(rows, decree);
        self.step(cx, Event::CopiedRows { gpid, signature, decree });
    }

    pub(super) fn learn_chunk(
        &mut self,
        cx: &mut Cx<'_>,
        request: u64,
        gpid: Gpid,
        signature: u64,
        chunk: Result<(Vec<Mutation>, Decree), LearnRefused>,
    ) {
        if self.answered_by_teacher(gpid, request).is_none() {
            return;
        }
        match chunk {
            Ok((mutations, committed)) => {
                self.step(cx, Event::Fetched { gpid, signature, mutations, committed });
            }
            Err(refused) => self.refused(cx, gpid, signature, &refused),
        }
    }

    fn refused(&mut self, cx: &mut Cx<'_>, gpid: Gpid, signature: u64, refused: &LearnRefused) {
        let restart = !matches!(refused, LearnRefused::NotPrimary(_));
        self.step(cx, Event::CopyFailed { gpid, signature, restart, why: refused.to_string() });
    }

    // --- the teacher ---

    pub(super) fn teach_open(
        &mut self,
        cx: &mut Cx<'_>,
        (to, request): (Place, u64),
        gpid: Gpid,
        ballot: Ballot,
        signature: u64,
        learned: Decree,
    ) {
        let Some(process) = &self.process else { return };
        let plan = process.core.teach(gpid, ballot, signature).and_then(|committed| {
            let file = self.files.get(&gpid).ok_or(LearnRefused::NotPrimary(ballot))?;
            let held = process.log.held(gpid, file.copy_id);
            let suffices = learned == committed
                || (learned < committed && held.is_some_and(|(first, _)| first <= learned.next()));
            Ok((!suffices).then(|| (file.engine.rows().clone(), file.engine.applied())))
        });
        cx.bus.send(Place::Host(self.id), to, Packet::LearnPlan { request, gpid, signature, plan });
    }

    pub(super) fn teach_log(
        &mut self,
        cx: &mut Cx<'_>,
        (to, request): (Place, u64),
        gpid: Gpid,
        signature: u64,
        after: Decree,
    ) {
        let Some(process) = &self.process else { return };
        let chunk = process.core.teach(gpid, Ballot::ZERO, signature).and_then(|committed| {
            if after >= committed {
                return Ok((Vec::new(), committed));
            }
            let gone = LearnRefused::LogGone(after.next());
            let file = self.files.get(&gpid).ok_or(gone.clone())?;
            let read = process.log.read_range(gpid, file.copy_id, after.next(), committed, CHUNK_BYTES);
            let mutations = read.map_err(|_| gone)?.into_iter().map(|(_, mutation)| mutation).collect();
            Ok((mutations, committed))
        });
        cx.bus.send(Place::Host(self.id), to, Packet::LearnChunk { request, gpid, signature, chunk });
    }
}
