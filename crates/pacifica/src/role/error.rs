//! A broken replica: it does nothing but say so, until the group has gone on without it.

use pegasus_types::message::Message;
use pegasus_types::{Ballot, Node, PartitionConfig};

use super::not_primary;
use crate::event::Fault;
use crate::input::Input;
use crate::shared::{Env, Next, Shared};

#[derive(Debug)]
pub(crate) struct Broken {
    pub fault: Fault,
    pub why: String,
}

impl Broken {
    /// Tells the group, so that it does not wait for this replica.
    pub fn begin(cx: &Shared, env: &mut Env<'_>, fault: Fault, why: String) -> Self {
        announce(cx, env);
        Self { fault, why }
    }

    /// A newer configuration, which is not saved: this disk may not take it. The broken copy is put aside only
    /// when others hold the data (safety-rules.md 4.5).
    pub fn configured(&self, cx: &mut Shared, env: &Env<'_>, config: &PartitionConfig) -> Next {
        cx.config = config.clone();
        if config.primary.is_some() && !config.is_member(env.me) {
            Next::Vanish(format!("{}: {}", self.fault.name(), self.why))
        } else {
            Next::Stay
        }
    }

    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match input {
            Input::Sweep => {
                announce(cx, env);
                cx.query(env);
            }
            Input::Write { token, .. } => not_primary(cx, env, token),
            Input::Message { .. }
            | Input::Logged { .. }
            | Input::Applied { .. }
            | Input::Answered(_)
            | Input::Propose(_)
            | Input::CopiedRows { .. }
            | Input::Fetched { .. }
            | Input::CopyFailed { .. }
            | Input::Suspect { .. }
            | Input::Restarted { .. }
            | Input::Granted { .. }
            | Input::Wake => {}
        }
        Next::Stay
    }
}

/// Answers whoever takes this replica for a good one, at whatever ballot.
pub(crate) fn decline(cx: &Shared, env: &mut Env<'_>, from: &Node, ballot: Ballot, message: &Message) {
    match message {
        Message::Configure { config } if !config.is_member(env.me) => {}
        Message::Prepare { .. }
        | Message::Commit { .. }
        | Message::Configure { .. }
        | Message::NeedConfig
        | Message::Join { .. } => cx.send_at(env, from, ballot, Message::NotHere),
        Message::Learn { .. }
        | Message::State { .. }
        | Message::Prepared { .. }
        | Message::Gap { .. }
        | Message::Stale
        | Message::NotHere
        | Message::FetchMore { .. }
        | Message::Joined { .. }
        | Message::LearnFailed { .. }
        | Message::Released => {}
    }
}

/// Tells those who count on this replica that it is not to be counted on.
pub(crate) fn announce(cx: &Shared, env: &mut Env<'_>) {
    let config = cx.config.clone();
    if config.is_primary(env.me) {
        for secondary in &config.secondaries {
            cx.send(env, secondary, Message::NotHere);
        }
    } else if config.is_secondary(env.me)
        && let Some(primary) = &config.primary
    {
        cx.send(env, primary, Message::NotHere);
    }
}
