//! Somebody who makes, drops and recalls tables, one order after the other, each until it is answered.

use pegasus_meta_core::{Job, Outcome};
use pegasus_placement::recall::RecallTable;
use pegasus_placement::tables::{CreateTable, DropTable};
use pegasus_types::{AppId, ErrorCode};

use crate::bus::{Bus, Happening, MS, Micros, Packet, Place};
use crate::checks::Checks;

/// Between two orders.
const PAUSE: (Micros, Micros) = (200 * MS, 1_500 * MS);
/// An order that nobody has answered by then is sent again, elsewhere.
const AGAIN: Micros = 900 * MS;
/// Before another meta is asked.
const ASK_PAUSE: Micros = 20 * MS;
/// Tables that are there at a time, so that hosts have other things to do, too.
const MAX_LIVE: usize = 3;

#[derive(Debug)]
pub struct Operator {
    metas: usize,
    meta: usize,
    /// The order under way, and how often it was sent.
    order: Option<(u64, Job, u32)>,
    asks: u64,
    live: Vec<(AppId, String)>,
    dropped: Vec<(AppId, String)>,
    pub stopped: bool,
}

impl Operator {
    pub fn new(metas: usize) -> Self {
        Self { metas, meta: 0, order: None, asks: 0, live: Vec::new(), dropped: Vec::new(), stopped: false }
    }

    pub fn start(&self, bus: &mut Bus) {
        bus.after(PAUSE.1, Happening::OperatorNext);
    }

    pub fn next(&mut self, bus: &mut Bus, checks: &mut Checks) {
        if self.stopped || self.order.is_some() {
            return;
        }
        self.asks += 1;
        let dice = bus.dice.below(100);
        let job = match (self.live.len(), self.dropped.last()) {
            (live, Some((app_id, _))) if live < MAX_LIVE && dice < 30 => {
                checks.tables.in_doubt(*app_id);
                Job::Recall(RecallTable { app_id: *app_id, name: String::new() })
            }
            (live, _) if live > 0 && (live == MAX_LIVE || dice < 50) => {
                let (app_id, name) = self.live[0].clone();
                checks.tables.in_doubt(app_id);
                Job::Drop(DropTable { name, success_if_not_exist: true, reserve_seconds: 86_400 })
            }
            _ => Job::Create(CreateTable {
                name: format!("t{}", self.asks),
                app_type: "pegasus".to_owned(),
                partition_count: 2,
                replica_count: 3,
                envs: std::collections::BTreeMap::new(),
                is_stateful: true,
                success_if_exist: true,
            }),
        };
        self.order = Some((self.asks, job, 0));
        self.send(bus);
    }

    fn send(&mut self, bus: &mut Bus) {
        self.ask(bus);
        bus.after(AGAIN, Happening::OperatorAgain(self.asks));
    }

    /// Another meta-server was named.
    pub fn ask(&mut self, bus: &mut Bus) {
        if let Some((ask, job, sent)) = &mut self.order {
            *sent += 1;
            let packet = Packet::Order { ask: *ask, job: job.clone() };
            bus.send(Place::Operator, Place::Meta(self.meta), packet);
        }
    }

    /// Nobody has answered.
    pub fn again(&mut self, bus: &mut Bus, ask: u64) {
        if self.order.as_ref().is_some_and(|(now, ..)| *now == ask) {
            self.meta = (self.meta + 1) % self.metas;
            self.send(bus);
        }
    }

    pub fn deliver(&mut self, bus: &mut Bus, checks: &mut Checks, packet: Packet) {
        match packet {
            Packet::NotLeader { leader } => {
                let next = (self.meta + 1) % self.metas;
                self.meta = leader.as_ref().and_then(crate::meta::index_of).unwrap_or(next);
                bus.after(ASK_PAUSE, Happening::OperatorAsk);
            }
            Packet::OrderDone { ask, outcome } => {
                // The timer sends it again.
                if is_busy(&outcome) {
                    return;
                }
                let Some((_, job, sent)) = self.order.take_if(|(now, ..)| *now == ask) else { return };
                bus.trace.line(bus.now, format_args!("operator: {job:?}: {outcome:?}"));
                if let Err(what) = self.done(checks, &job, sent, outcome) {
                    checks.violation(bus.now, what);
                }
                let pause = bus.dice.between(PAUSE.0, PAUSE.1);
                bus.after(pause, Happening::OperatorNext);
            }
            _ => {}
        }
    }

    fn done(&mut self, checks: &mut Checks, job: &Job, sent: u32, outcome: Outcome) -> Result<(), String> {
        match (job, outcome) {
            (Job::Create(request), Outcome::Created(Ok(app_id))) => {
                self.live.push((app_id, request.name.clone()));
                checks.tables.created(app_id, &request.name)
            }
            (Job::Drop(request), Outcome::Dropped(Ok(()))) => {
                if let Some(index) = self.live.iter().position(|(_, name)| *name == request.name) {
                    let table = self.live.remove(index);
                    checks.tables.dropped(table.0);
                    self.dropped.push(table);
                }
                Ok(())
            }
            (Job::Recall(request), Outcome::Recalled(result)) => {
                let Some(index) = self.dropped.iter().position(|(app_id, _)| *app_id == request.app_id)
                else {
                    return Ok(());
                };
                match result {
                    Ok(_) => {
                        checks.tables.recalled(request.app_id);
                        let table = self.dropped.remove(index);
                        self.live.push(table);
                        Ok(())
                    }
                    // An earlier try has recalled it: it is there.
                    Err(_) if sent > 1 => {
                        self.dropped.remove(index);
                        Ok(())
                    }
                    Err(why) => Err(format!("table {} cannot be recalled: {why}", request.app_id)),
                }
            }
            (job, outcome) => Err(format!("{job:?} was answered with {outcome:?}")),
        }
    }
}

/// Not now: clients wait and ask again.
fn is_busy(outcome: &Outcome) -> bool {
    let code = match outcome {
        Outcome::Created(Err(error)) | Outcome::Dropped(Err(error)) | Outcome::Recalled(Err(error)) => {
            error.code
        }
        _ => return false,
    };
    matches!(code, ErrorCode::BusyCreating | ErrorCode::BusyDropping)
}
