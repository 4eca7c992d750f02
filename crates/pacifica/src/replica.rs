//! One partition on this node: what every role has, and the role.

use pegasus_types::message::{Envelope, Message};
use pegasus_types::meta::{ChangeReply, ReplicaReport};
use pegasus_types::{Ballot, ChangeKind, Decree, Millis, Node, PartitionConfig};

use crate::Effect;
use crate::event::{Fault, Recovered};
use crate::input::Input;
use crate::options::Sabotage;
use crate::role::Role;
use crate::role::error::{Broken, decline};
use crate::role::inactive::Inactive;
use crate::role::learner::Learner;
use crate::role::primary::Primary;
use crate::role::secondary::Secondary;
use crate::shared::{Env, Next, Saving, Shared};
use crate::tail::Tail;
use crate::transition::{Target, target};

#[derive(Debug)]
pub(crate) struct Replica {
    pub cx: Shared,
    pub role: Role,
    /// Timer that is set with the node, if any.
    pub armed: Option<Millis>,
    /// The group goes on without it: to be dropped.
    pub vanished: bool,
}

impl Replica {
    fn with(cx: Shared) -> Self {
        Self { cx, role: Role::Inactive(Inactive), armed: None, vanished: false }
    }

    /// An empty replica of a new partition.
    pub fn create(env: &mut Env<'_>, config: &PartitionConfig) -> Self {
        let blank = PartitionConfig::unassigned(config.gpid, config.max_replica_count);
        let mut new = Self::with(Shared::new(blank, false, Tail::new(Decree::ZERO)));
        new.configure(env, config);
        new
    }

    pub fn open(env: &mut Env<'_>, recovered: Recovered) -> Self {
        let Recovered { config, learning, intact, applied, committed, tail } = recovered;
        let found = tail.len();
        let Some(tail) = Tail::recovered(applied, committed, tail) else {
            let why = format!("applied {applied}, committed {committed} and {found} log records do not fit");
            return Self::broken(env, config, Fault::Open, why);
        };
        let mut new = Self::with(Shared::new(config, learning, tail));
        new.cx.commit_to(env, committed);
        if !intact && !learning && new.cx.config.is_member(env.me) {
            tracing::error!(
                gpid = %new.cx.gpid, ballot = %new.cx.ballot(), prepared = %new.cx.tail.prepared(),
                "the machine lost power without a synced log: acknowledged writes may be missing here. The replica \
                 waits until a member that lost nothing leads the group; if every member lost power, there is \
                 none, and the partition stays away until an operator decides"
            );
            new.stand_down(env, "the machine lost power without a synced log".to_owned());
            return new;
        }
        let config = &new.cx.config;
        if !learning
            && config.is_secondary(env.me)
            && let Some(primary) = config.primary.clone()
        {
            // Everything that it acknowledged is in its log: it goes on.
            new.role = Role::Secondary(Secondary::begin(&mut new.cx, env, primary));
        } else if env.options.sabotage == Sabotage::KeepBallotAfterRestart && config.is_primary(env.me) {
            let ballot = config.ballot;
            new.role = Role::Primary(Primary::take_over(&mut new.cx, env, ballot));
        } else {
            new.role = Role::Inactive(Inactive::begin(&mut new.cx, env));
        }
        new.changed(env);
        new
    }

    pub fn broken(env: &mut Env<'_>, config: PartitionConfig, fault: Fault, why: String) -> Self {
        let mut new = Self::with(Shared::new(config, false, Tail::new(Decree::ZERO)));
        new.fail(env, fault, why);
        new
    }

    // --- in ---

    pub fn on(&mut self, env: &mut Env<'_>, input: Input) {
        let next = self.role.on(&mut self.cx, env, input);
        self.follow(env, next);
    }

    fn follow(&mut self, env: &mut Env<'_>, next: Next) {
        match next {
            Next::Stay => {}
            Next::Fail(fault, why) => self.fail(env, fault, why),
            Next::StandDown(why) => self.stand_down(env, why),
            Next::Retire => {
                self.end_role(env);
                self.changed(env);
            }
            Next::Vanish(why) => {
                self.vanished = true;
                env.out.push(Effect::Quarantine { gpid: self.cx.gpid, why });
            }
        }
    }

    pub fn receive(&mut self, env: &mut Env<'_>, from: &Node, envelope: Envelope) {
        let Envelope { ballot, message, .. } = envelope;
        let mine = self.cx.ballot();
        match message {
            Message::Learn { config, signature } => return self.learn(env, from, &config, signature),
            Message::Configure { ref config } => self.configure(env, config),
            Message::Prepare { .. }
            | Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::NeedConfig
            | Message::Stale
            | Message::NotHere
            | Message::Commit { .. }
            | Message::Join { .. }
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::LearnFailed { .. }
            | Message::Released => {}
        }
        if matches!(self.role, Role::Error(_)) {
            return decline(&self.cx, env, from, ballot, &message);
        }
        if ballot > mine {
            self.receive_newer(env, from, ballot, &message);
        } else if ballot < mine {
            self.receive_older(env, from, &message);
        } else {
            self.on(env, Input::Message { from: from.clone(), message });
        }
    }

    /// The sender knows more than this replica.
    fn receive_newer(&mut self, env: &mut Env<'_>, from: &Node, ballot: Ballot, message: &Message) {
        match message {
            Message::Prepare { .. } | Message::Commit { .. } => {
                if self.cx.known_ballot() < ballot {
                    self.cx.need_config(env, from);
                }
            }
            Message::Configure { .. } | Message::Learn { .. } => {}
            Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::NeedConfig
            | Message::Stale
            | Message::NotHere
            | Message::Join { .. }
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::LearnFailed { .. }
            | Message::Released => {
                if self.cx.known_ballot() < ballot {
                    self.cx.query(env);
                }
            }
        }
    }

    /// The sender lives in the past.
    fn receive_older(&mut self, env: &mut Env<'_>, from: &Node, message: &Message) {
        match message {
            Message::NeedConfig => {
                let config = self.cx.config.clone();
                self.cx.send(env, from, Message::Configure { config });
            }
            Message::Prepare { .. }
            | Message::Commit { .. }
            | Message::Configure { .. }
            | Message::Learn { .. }
            | Message::Join { .. }
            | Message::Released => self.cx.send(env, from, Message::Stale),
            Message::State { .. }
            | Message::Prepared { .. }
            | Message::Gap { .. }
            | Message::Stale
            | Message::NotHere
            | Message::FetchMore { .. }
            | Message::Joined { .. }
            | Message::LearnFailed { .. } => {}
        }
    }

    fn learn(&mut self, env: &mut Env<'_>, from: &Node, config: &PartitionConfig, signature: u64) {
        if config.gpid != self.cx.gpid || !config.is_primary(from) || config.is_member(env.me) {
            return;
        }
        if config.ballot < self.cx.known_ballot() {
            self.cx.send(env, from, Message::Stale);
            return;
        }
        match &self.role {
            Role::Error(broken) => {
                let next = broken.configured(&mut self.cx, env, config);
                return self.follow(env, next);
            }
            Role::Primary(_) | Role::Secondary(_) if config.ballot == self.cx.ballot() => return,
            Role::Learner(learner)
                if config.ballot == self.cx.ballot() && learner.session() == (from, signature) =>
            {
                return;
            }
            Role::Primary(_) | Role::Secondary(_) | Role::Learner(_) | Role::Inactive(_) => {}
        }
        let learn = Some((from.clone(), signature));
        let under_way =
            self.cx.saving.as_ref().is_some_and(|s| s.config.ballot == config.ballot && s.learn == learn);
        if !under_way {
            self.cx.save(env, Saving { config: config.clone(), learning: true, learn });
        }
    }

    /// Somebody knows this configuration; wherever it comes from, the meta has made it.
    pub fn configure(&mut self, env: &mut Env<'_>, config: &PartitionConfig) {
        if config.gpid != self.cx.gpid || config.ballot <= self.cx.known_ballot() {
            return;
        }
        if let Role::Error(broken) = &self.role {
            let next = broken.configured(&mut self.cx, env, config);
            return self.follow(env, next);
        }
        let learning = target(&self.role, &self.cx, env.me, config).learning();
        self.cx.save(env, Saving { config: config.clone(), learning, learn: None });
    }

    pub fn change_answered(
        &mut self,
        env: &mut Env<'_>,
        asked_at: Ballot,
        kind: &ChangeKind,
        reply: Option<&ChangeReply>,
    ) {
        let answer = self.cx.answered(env, asked_at, kind, reply);
        if let Some(ChangeReply::Accepted(config) | ChangeReply::Rejected { current: Some(config), .. }) =
            reply
        {
            self.pass_on(env, config);
            self.configure(env, config);
        }
        if let Some(answer) = answer
            && self.cx.known_ballot() == asked_at
        {
            self.on(env, Input::Answered(answer));
        }
    }

    /// A planned successor need not wait until it hears from the meta.
    fn pass_on(&self, env: &mut Env<'_>, config: &PartitionConfig) {
        if let (Role::Primary(_), Some(primary)) = (&self.role, &config.primary)
            && config.ballot > self.cx.known_ballot()
            && primary != env.me
        {
            self.cx.send_at(env, primary, config.ballot, Message::Configure { config: config.clone() });
        }
    }

    // --- changes of role ---

    pub fn saved(&mut self, env: &mut Env<'_>, ballot: Ballot, learning: bool) {
        let done = |s: &mut Saving| s.config.ballot == ballot && s.learning == learning;
        let Some(saving) = self.cx.saving.take_if(done) else { return };
        if matches!(self.role, Role::Error(_)) {
            return;
        }
        if saving.learn.is_none() && saving.config.ballot == self.cx.ballot() {
            self.cx.learning = saving.learning;
            return;
        }
        let target = match &saving.learn {
            Some(_) => Target::Learner,
            None => target(&self.role, &self.cx, env.me, &saving.config),
        };
        if target.learning() != saving.learning {
            // The role changed meanwhile, so that the mark on disk is not the right one.
            return self.cx.save(env, Saving { learning: target.learning(), ..saving });
        }
        self.adopt(env, saving, target);
    }

    fn adopt(&mut self, env: &mut Env<'_>, saving: Saving, target: Target) {
        let before = self.cx.ballot();
        let old = std::mem::replace(&mut self.role, Role::Inactive(Inactive));
        let cx = &mut self.cx;
        cx.ask = None;
        cx.ask_again_at = Millis::ZERO;
        let Saving { config, learning, learn } = saving;
        let primary = config.primary.clone();
        let keeps_session =
            |old: &Learner| learn.as_ref().is_none_or(|(node, sig)| old.session() == (node, *sig));
        self.role = match (target, old) {
            (Target::Primary, Role::Primary(old)) => {
                (cx.config, cx.learning) = (config, learning);
                Role::Primary(old.carry_on(cx, env))
            }
            (Target::Learner, Role::Learner(old)) if keeps_session(&old) => {
                (cx.config, cx.learning) = (config, learning);
                Role::Learner(old.carry_on(cx, env))
            }
            (target, old) => {
                old.leave(cx, env);
                (cx.config, cx.learning) = (config, learning);
                match (target, primary, learn) {
                    (Target::Primary, _, _) => Role::Primary(Primary::take_over(cx, env, before)),
                    (Target::Secondary, Some(primary), _) => {
                        Role::Secondary(Secondary::begin(cx, env, primary))
                    }
                    (Target::Learner, _, Some((from, signature))) => {
                        Role::Learner(Learner::begin(cx, env, from, signature))
                    }
                    (Target::Secondary | Target::Learner | Target::Inactive { .. }, _, _) => {
                        Role::Inactive(Inactive::begin(cx, env))
                    }
                }
            }
        };
        self.changed(env);
    }

    pub fn fail(&mut self, env: &mut Env<'_>, fault: Fault, why: String) {
        if matches!(self.role, Role::Error(_)) {
            return;
        }
        tracing::error!(gpid = %self.cx.gpid, fault = fault.name(), %why, "replica stops");
        self.end_role(env);
        self.cx.saving = None;
        self.cx.ask = None;
        self.role = Role::Error(Broken::begin(&self.cx, env, fault, why));
        self.changed(env);
    }

    /// Lets the group know that this replica lacks something, and stays out of it.
    fn stand_down(&mut self, env: &mut Env<'_>, why: String) {
        tracing::warn!(gpid = %self.cx.gpid, %why, "replica stands down");
        self.end_role(env);
        self.cx.ask = None;
        self.cx.learning = true;
        let config = self.cx.saving.take().map_or_else(|| self.cx.config.clone(), |s| s.config);
        self.cx.save(env, Saving { config, learning: true, learn: None });
        self.role = Role::Inactive(Inactive::begin(&mut self.cx, env));
        self.changed(env);
    }

    /// Inactive, until the caller says what comes next.
    pub fn end_role(&mut self, env: &mut Env<'_>) {
        std::mem::replace(&mut self.role, Role::Inactive(Inactive)).leave(&mut self.cx, env);
    }

    fn changed(&self, env: &mut Env<'_>) {
        let (gpid, ballot) = (self.cx.gpid, self.cx.ballot());
        env.out.push(Effect::RoleChanged { gpid, status: self.role.status(), ballot });
    }

    // --- out ---

    pub fn report(&self) -> ReplicaReport {
        ReplicaReport {
            gpid: self.cx.gpid,
            ballot: self.cx.ballot(),
            status: self.role.status(),
            committed: self.cx.tail.committed(),
            prepared: self.cx.tail.prepared(),
            durable: Decree::ZERO,
            disk_tag: String::new(),
        }
    }

    /// What must hold after every step.
    pub fn check(&self, me: &Node) -> Result<(), String> {
        self.cx.tail.check()?;
        if self.cx.saving.as_ref().is_some_and(|s| s.config.ballot < self.cx.ballot()) {
            return Err("saves a configuration older than its own".to_owned());
        }
        let config = &self.cx.config;
        let is_as_configured = match &self.role {
            Role::Primary(role) => {
                role.check(&self.cx)?;
                config.is_primary(me) && !self.cx.learning
            }
            Role::Secondary(role) => {
                role.check(&self.cx)?;
                config.is_secondary(me) && !self.cx.learning
            }
            Role::Learner(role) => {
                role.check(&self.cx)?;
                !config.is_member(me) && self.cx.learning
            }
            Role::Inactive(_) | Role::Error(_) => true,
        };
        if is_as_configured {
            Ok(())
        } else {
            Err(format!("is {:?} in {config:?}, learning: {}", self.role.status(), self.cx.learning))
        }
    }
}
