//! One batch of jobs from decision to answer.
//!
//! When the outcome of a write is unknown, or somebody else has written, everything is loaded again and the same jobs
//! are decided once more: those that were done are recognised.

use std::collections::VecDeque;

use pegasus_placement::ledger::{Adopted, Write};
use pegasus_zk_coordination::tree::Tree;
use pegasus_zk_coordination::{Op, StoreError};

use crate::decide::{Desk, Job, Outcome, Task, decide};
use crate::stored::{LoadError, chunks};

/// Tries of one batch when others write, too, or answers get lost. More means that something is wrong.
const MAX_TRIES: u32 = 5;

/// Why the leader cannot go on: its term is over.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Nothing of the last write was done.
    #[error("another meta-server was elected")]
    NotLeader,
    #[error("the metadata store is lost: {0}")]
    Store(StoreError),
    #[error("the metadata cannot be loaded: {0}")]
    Load(#[from] LoadError),
    #[error("a write failed {MAX_TRIES} times: {0}")]
    Stubborn(StoreError),
}

/// A job that is stored, or that needed nothing to be stored.
#[derive(Debug)]
pub struct Done<T> {
    pub job: Job,
    /// Whoever asked.
    pub ticket: T,
    pub outcome: Outcome,
}

/// What the caller has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// One multi, with the fence in front; then [`Writer::stored`].
    Store(Vec<Op>),
    /// Wait for the store, then [`Writer::decide`].
    Pause,
    /// Replace the desk's ledger by what is stored, then [`Writer::decide`].
    Load,
    /// The batch is over.
    Idle,
}

/// What came of an event.
#[derive(Debug)]
pub struct Step<T> {
    /// Stored and in the ledger: to be told to those whom it concerns.
    pub adopted: Adopted,
    /// To be answered.
    pub done: Vec<Done<T>>,
    pub next: Next,
}

impl<T> Step<T> {
    fn only(next: Next) -> Self {
        Self { adopted: Adopted::default(), done: Vec::new(), next }
    }
}

/// The batch, and what of it is not stored yet. `T`: what the caller needs to answer a job.
#[derive(Debug)]
pub struct Writer<T> {
    tree: Tree,
    tasks: Vec<Task<T>>,
    outcomes: Vec<Outcome>,
    chunks: VecDeque<(Vec<Write>, Vec<Op>)>,
    tries: u32,
}

impl<T> Writer<T> {
    pub fn new(tree: Tree) -> Self {
        Self { tree, tasks: Vec::new(), outcomes: Vec::new(), chunks: VecDeque::new(), tries: 0 }
    }

    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Jobs to be decided and stored together, when the batch before them is over.
    pub fn begin(&mut self, jobs: impl IntoIterator<Item = (Job, T)>) {
        self.tries = 0;
        self.tasks = jobs.into_iter().map(|(job, ticket)| Task { job, made: None, ticket }).collect();
    }

    /// Nodes' requests that nobody waits for any more: who still wants it has asked again meanwhile.
    pub fn forget_changes(&mut self, is_gone: impl Fn(&T) -> bool) {
        self.tasks.retain(|task| !(matches!(task.job, Job::Change(_)) && is_gone(&task.ticket)));
    }

    /// Decides every job of the batch on top of what is stored and of the jobs before it.
    pub fn decide(&mut self, desk: &mut Desk<'_>) -> Step<T> {
        let mut draft = desk.ledger.draft();
        self.outcomes = decide(desk, &mut draft, &mut self.tasks);
        self.chunks = chunks(&self.tree, draft.writes()).into();
        self.go_on()
    }

    /// The store has answered the last [`Next::Store`].
    ///
    /// # Errors
    /// The term is over. Whether the jobs of the batch were stored is known for [`WriterError::NotLeader`] alone.
    pub fn stored(
        &mut self,
        desk: &mut Desk<'_>,
        result: Result<(), StoreError>,
    ) -> Result<Step<T>, WriterError> {
        let Err(error) = result else {
            let writes = self.chunks.pop_front().map(|(writes, _)| writes).unwrap_or_default();
            let adopted = desk.ledger.adopt(writes);
            for (old, new) in &adopted.configs {
                desk.cure.changed(desk.now, old, new);
            }
            return Ok(Step { adopted, ..self.go_on() });
        };
        self.chunks.clear();
        match error {
            StoreError::NotLeader => Err(WriterError::NotLeader),
            StoreError::SessionOver | StoreError::Failed(_) => Err(WriterError::Store(error)),
            StoreError::TooLarge { .. } | StoreError::BadPath(_) | StoreError::NotEmpty(_) => {
                tracing::error!(%error, jobs = self.tasks.len(), "the store refuses a write: its jobs are dropped");
                self.tasks.clear();
                Ok(Step::only(Next::Idle))
            }
            StoreError::Unavailable(why) => {
                tracing::warn!(why, "the metadata store cannot be reached; changes wait");
                Ok(Step::only(Next::Pause))
            }
            StoreError::NoNode(_)
            | StoreError::NodeExists(_)
            | StoreError::BadVersion { .. }
            | StoreError::NoChildren(_)
            | StoreError::Denied(_)
            | StoreError::OutcomeUnknown(_) => {
                tracing::warn!(%error, "a metadata write did not succeed; loading what is stored");
                self.tries += 1;
                if self.tries >= MAX_TRIES {
                    return Err(WriterError::Stubborn(error));
                }
                Ok(Step::only(Next::Load))
            }
        }
    }

    /// The next multi, or the answers.
    fn go_on(&mut self) -> Step<T> {
        if let Some((_, ops)) = self.chunks.front_mut() {
            return Step::only(Next::Store(std::mem::take(ops)));
        }
        let done = |(task, outcome): (Task<T>, Outcome)| Done { job: task.job, ticket: task.ticket, outcome };
        let tasks = std::mem::take(&mut self.tasks).into_iter();
        Step {
            done: tasks.zip(std::mem::take(&mut self.outcomes)).map(done).collect(),
            ..Step::only(Next::Idle)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pegasus_placement::Ledger;
    use pegasus_placement::assign::Members;
    use pegasus_placement::cure::{self, Cure};
    use pegasus_placement::level::FunctionLevel;
    use pegasus_placement::liveness::Liveness;
    use pegasus_placement::tables::{CreateTable, Limits};
    use pegasus_types::meta::{ChangeReply, ChangeRequest};
    use pegasus_types::{Ballot, ChangeKind, Decree, Gpid, Millis, Node};
    use pegasus_zk_coordination::memory_tree::MemoryTree;

    use super::*;
    use crate::{Found, Loading, Progress, Read};

    /// A leader with its store, on one desk.
    struct Office {
        writer: Writer<&'static str>,
        ledger: Ledger,
        cure: Cure,
        liveness: Liveness,
        limits: Limits,
        tree: MemoryTree,
        paths: Tree,
    }

    impl Office {
        fn new() -> Self {
            let paths = Tree::new("/c");
            let mut tree = MemoryTree::default();
            let ops = [Op::create(paths.root(), ""), Op::create(paths.apps(), "unlock")];
            tree.multi(1, &ops).unwrap();
            Self {
                writer: Writer::new(paths.clone()),
                ledger: Ledger::default(),
                cure: Cure::new(cure::Options::default(), Millis::ZERO),
                liveness: Liveness::new(10_000),
                limits: Limits::default(),
                tree,
                paths,
            }
        }

        fn at_desk<R>(&mut self, act: impl FnOnce(&mut Writer<&'static str>, &mut Desk<'_>) -> R) -> R {
            let mut desk = Desk {
                ledger: &mut self.ledger,
                cure: &mut self.cure,
                liveness: &self.liveness,
                level: FunctionLevel::Lively,
                limits: &self.limits,
                now: Millis::ZERO,
                now_s: 9,
            };
            act(&mut self.writer, &mut desk)
        }

        fn decide(&mut self) -> Step<&'static str> {
            self.at_desk(Writer::decide)
        }

        fn answered(&mut self, result: Result<(), StoreError>) -> Result<Step<&'static str>, WriterError> {
            self.at_desk(|writer, desk| writer.stored(desk, result))
        }

        fn write(&mut self, ops: &[Op]) -> Result<(), StoreError> {
            self.tree.multi(1, ops).map(|_| ())
        }

        fn load(&mut self) {
            let (mut loading, mut read) = Loading::begin(&self.paths);
            self.ledger = loop {
                let found = match read {
                    Read::Data(paths) => {
                        Found::Data(paths.iter().map(|path| self.tree.get(path).unwrap()).collect())
                    }
                    Read::Children(path) => Found::Children(self.tree.children(&path).unwrap()),
                };
                match loading.found(found).unwrap() {
                    Progress::Read(next) => read = next,
                    Progress::Loaded(ledger) => break ledger,
                }
            };
        }

        /// Without anything in the way.
        fn all(&mut self, jobs: Vec<Job>) -> Vec<Outcome> {
            self.writer.begin(jobs.into_iter().map(|job| (job, "")));
            let mut step = self.decide();
            while let Next::Store(ops) = &step.next {
                let result = self.write(ops);
                step = self.answered(result).unwrap();
            }
            assert_eq!(step.next, Next::Idle);
            step.done.into_iter().map(|done| done.outcome).collect()
        }

        fn with_table() -> Self {
            let mut office = Self::new();
            office.all(vec![create(), Job::Assign(vec![(Gpid::new(1, 0), members())])]);
            office
        }
    }

    fn create() -> Job {
        Job::Create(CreateTable {
            name: "t".into(),
            app_type: "pegasus".into(),
            partition_count: 4,
            replica_count: 3,
            envs: BTreeMap::new(),
            is_stateful: true,
            success_if_exist: false,
        })
    }

    fn members() -> Members {
        let node = |n: u8| Node::new(format!("n{n}:1"));
        Members { primary: node(1), secondaries: vec![node(2), node(3)] }
    }

    fn take_over() -> Job {
        let kind = ChangeKind::TakeOver { claimant: members().secondaries[0].clone() };
        Job::Change(ChangeRequest { gpid: Gpid::new(1, 0), ballot: Ballot(1), kind, committed: Decree(0) })
    }

    fn ballot(office: &Office) -> Ballot {
        office.ledger.view().partition(Gpid::new(1, 0)).unwrap().ballot
    }

    fn unknown() -> StoreError {
        StoreError::OutcomeUnknown("no answer".into())
    }

    fn store(step: &Step<&'static str>) -> Vec<Op> {
        let Next::Store(ops) = &step.next else { panic!("{step:?} stores nothing") };
        ops.clone()
    }

    #[test]
    fn nothing_is_told_or_adopted_before_it_is_stored() {
        let mut office = Office::with_table();
        office.writer.begin([(take_over(), "n2")]);
        let step = office.decide();
        assert!(step.done.is_empty() && step.adopted == Adopted::default());
        assert_eq!(ballot(&office), Ballot(1));
        let result = office.write(&store(&step));
        let step = office.answered(result).unwrap();
        assert_eq!((step.next, step.adopted.configs.len()), (Next::Idle, 1));
        let [Done { ticket: "n2", outcome: Outcome::Change(ChangeReply::Accepted(config)), .. }] =
            step.done.as_slice()
        else {
            panic!("{:?}", step.done)
        };
        assert_eq!((config.ballot, ballot(&office)), (Ballot(2), Ballot(2)));
        assert!(office.writer.is_idle());
    }

    /// Whether a write whose answer was lost was done or not: the job has the same end, once.
    #[test]
    fn a_lost_answer_changes_nothing() {
        for was_done in [true, false] {
            let mut office = Office::with_table();
            office.writer.begin([(take_over(), "n2")]);
            let ops = store(&office.decide());
            if was_done {
                office.write(&ops).unwrap();
            }
            let step = office.answered(Err(unknown())).unwrap();
            assert_eq!(step.next, Next::Load);
            assert!(step.done.is_empty(), "nobody is told what nobody knows");
            office.load();
            let mut step = office.decide();
            if let Next::Store(ops) = &step.next {
                assert!(!was_done);
                let result = office.write(ops);
                step = office.answered(result).unwrap();
            }
            let outcome = &step.done[0].outcome;
            let Outcome::Change(ChangeReply::Accepted(config)) = outcome else { panic!("{outcome:?}") };
            assert_eq!((config.ballot, ballot(&office)), (Ballot(2), Ballot(2)), "one ballot more");
        }
    }

    #[test]
    fn a_table_is_made_once_whatever_answer_is_lost() {
        let mut office = Office::new();
        office.writer.begin([(create(), "client")]);
        let ops = store(&office.decide());
        office.write(&ops).unwrap();
        office.answered(Err(unknown())).unwrap();
        office.load();
        let step = office.decide();
        assert_eq!(step.next, Next::Idle);
        assert!(matches!(step.done[0].outcome, Outcome::Created(Ok(1))), "{:?}", step.done);
        // Somebody else's wish for the same name is refused.
        let outcomes = office.all(vec![create()]);
        assert!(matches!(outcomes[0], Outcome::Created(Err(_))), "{outcomes:?}");
    }

    #[test]
    fn a_store_out_of_reach_is_waited_for_and_a_refused_batch_is_dropped() {
        let mut office = Office::with_table();
        office.writer.begin([(take_over(), "n2")]);
        store(&office.decide());
        let step = office.answered(Err(StoreError::Unavailable("gone".into()))).unwrap();
        assert_eq!(step.next, Next::Pause);
        assert!(!office.writer.is_idle());
        store(&office.decide());
        let step = office.answered(Err(StoreError::TooLarge { path: "/c".into(), bytes: 9 })).unwrap();
        assert_eq!((step.next, step.done.len()), (Next::Idle, 0));
        assert!(office.writer.is_idle());
        assert_eq!(ballot(&office), Ballot(1));
    }

    #[test]
    fn a_term_ends_when_another_leads_the_store_is_lost_or_nothing_helps() {
        for (error, says) in [
            (StoreError::NotLeader, "another meta-server was elected"),
            (StoreError::SessionOver, "store is lost"),
            (StoreError::Failed("disk".into()), "store is lost"),
        ] {
            let mut office = Office::with_table();
            office.writer.begin([(take_over(), "n2")]);
            office.decide();
            let why = office.answered(Err(error)).unwrap_err().to_string();
            assert!(why.contains(says), "{why}");
        }
        let mut office = Office::with_table();
        office.writer.begin([(take_over(), "n2")]);
        for _ in 1..MAX_TRIES {
            office.decide();
            assert_eq!(office.answered(Err(unknown())).unwrap().next, Next::Load);
        }
        office.decide();
        assert!(matches!(office.answered(Err(unknown())), Err(WriterError::Stubborn(_))));
    }

    #[test]
    fn requests_that_nobody_waits_for_are_forgotten_and_orders_are_not() {
        let mut office = Office::with_table();
        office.writer.begin([(take_over(), "gone"), (create(), "gone"), (take_over(), "waits")]);
        office.writer.forget_changes(|ticket| *ticket == "gone");
        let ops = store(&office.decide());
        office.write(&ops).unwrap();
        let step = office.answered(Ok(())).unwrap();
        assert_eq!(step.done.iter().map(|done| done.ticket).collect::<Vec<_>>(), ["gone", "waits"]);
        assert!(matches!(step.done[0].outcome, Outcome::Created(Err(_))), "the name is taken");
    }
}
