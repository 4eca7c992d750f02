//! A replica that is not part of the group: new, restarted as primary, left behind, or not to be trusted.

use pegasus_types::ChangeKind;
use pegasus_types::message::Message;

use super::error::announce;
use super::{FOLLOWER_RECENT, not_primary};
use crate::input::Input;
use crate::shared::{Env, Next, Shared};

/// | stored configuration | `learning` | what it is |
/// |---|---|---|
/// | ballot 0 | no | just created |
/// | names me primary | no | restarted: asks for a new ballot with the same members (safety-rules.md 1.4) |
/// | names me a member | yes | lacks something: tells everybody, until it is removed |
/// | does not name me | any | was a member, or a learner |
#[derive(Debug, Default)]
pub(crate) struct Inactive;

impl Inactive {
    /// Is it to be put out of the group, for it need not hold what a member holds?
    fn is_outcast(cx: &Shared, env: &Env<'_>) -> bool {
        cx.learning && cx.config.is_member(env.me)
    }

    pub fn begin(cx: &mut Shared, env: &mut Env<'_>) -> Self {
        let role = Self;
        role.pursue(cx, env);
        role
    }

    fn pursue(&self, cx: &mut Shared, env: &mut Env<'_>) {
        if Self::is_outcast(cx, env) {
            announce(cx, env);
        } else if cx.config.is_primary(env.me) {
            cx.ask(env, ChangeKind::Renew { primary: env.me.clone() });
        }
    }

    pub fn on(&mut self, cx: &mut Shared, env: &mut Env<'_>, input: Input) -> Next {
        match input {
            Input::Message { from, message } => match message {
                Message::Prepare { .. }
                | Message::Commit { .. }
                | Message::Configure { .. }
                | Message::NeedConfig => {
                    if Self::is_outcast(cx, env) {
                        cx.send(env, &from, Message::NotHere);
                    }
                }
                Message::Learn { .. }
                | Message::State { .. }
                | Message::Prepared { .. }
                | Message::Gap { .. }
                | Message::Stale
                | Message::NotHere
                | Message::Join { .. }
                | Message::FetchMore { .. }
                | Message::Joined { .. }
                | Message::LearnFailed { .. }
                | Message::Released => {}
            },
            Input::Applied { upto } => cx.applied(env, upto, FOLLOWER_RECENT),
            Input::Wake | Input::Sweep => {
                cx.ask_timed_out(env);
                self.pursue(cx, env);
            }
            Input::Write { token, .. } => not_primary(cx, env, token),
            Input::Logged { .. }
            | Input::Answered(_)
            | Input::Propose(_)
            | Input::CopiedRows { .. }
            | Input::Fetched { .. }
            | Input::CopyFailed { .. }
            | Input::Suspect { .. }
            | Input::Restarted { .. }
            | Input::Granted { .. } => {}
        }
        Next::Stay
    }
}
