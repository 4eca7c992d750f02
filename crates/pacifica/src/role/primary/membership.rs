//! Changes of membership, as the primary wants them.

use pegasus_types::ChangeKind;
use pegasus_types::message::Message;
use pegasus_types::meta::Proposal;

use super::{Primary, Release};
use crate::role::progress::Progress;
use crate::role::teach::Pupil;
use crate::shared::{Answer, Env, Outcome, Shared};

impl Primary {
    pub(super) fn propose(&mut self, cx: &mut Shared, env: &mut Env<'_>, proposal: Proposal) {
        match proposal {
            Proposal::AddSecondary { node } => {
                let extra = members_beyond_wanted(cx) == 0;
                if let Some(pupil) = self.pupils.iter_mut().find(|p| p.progress.node == node) {
                    pupil.extra |= extra;
                    if !pupil.joined() {
                        pupil.call(cx, env);
                    }
                } else if !cx.config.is_member(&node) {
                    if self.pupils.len() >= env.options.max_learners
                        && let Some(missing) = self.pupils.iter().find(|p| p.is_missing(env))
                    {
                        let signature = missing.signature;
                        cx.send(env, &missing.progress.node, Message::LearnFailed { signature });
                        self.drop_pupil(cx, env, |p| p.signature == signature);
                    }
                    if self.pupils.len() < env.options.max_learners {
                        let mut pupil = Pupil::begin(cx, env, &node);
                        pupil.extra = extra;
                        self.pupils.push(pupil);
                    }
                }
            }
            Proposal::RemoveSecondary { node } => {
                if let Some(member) = self.members.iter_mut().find(|m| m.node == node) {
                    member.give_up(env);
                }
            }
            Proposal::HandOver { to } => {
                let granted = |p: &Progress| env.leases.holds(p.peer, &p.slot, env.now, env.options);
                let able =
                    self.members.iter().any(|m| m.node == to && m.answered && !m.is_lost() && granted(m));
                if able && self.release.is_none() && self.acts(cx, env.now) {
                    self.release = Some(Release { to, since: env.now, done: false, refused: false });
                }
            }
            Proposal::TakeOver => {}
        }
    }

    /// When all writes are through, tells the successor that this node serves no more.
    pub(super) fn try_release(&mut self, cx: &Shared, env: &mut Env<'_>) {
        let Some(release) = &mut self.release else { return };
        if release.done {
            return;
        }
        if cx.tail.in_flight() == 0 && cx.tail.applied() == cx.tail.committed() && env.now >= self.acting_from
        {
            release.done = true;
            let to = release.to.clone();
            cx.send(env, &to, Message::Released);
        } else if env.now.since(release.since) >= env.options.hand_over_ms {
            self.release = None;
        }
    }

    /// What this primary wants of the meta most.
    pub(super) fn wanted(&self, cx: &Shared, env: &Env<'_>) -> Option<ChangeKind> {
        let primary = env.me.clone();
        if let Some(lost) = self.members.iter().find(|m| m.is_lost()) {
            return Some(ChangeKind::RemoveSecondary { primary, node: lost.node.clone() });
        }
        if let Some(release) = self.release.as_ref().filter(|r| r.done) {
            // Refused, yet promised not to serve at this ballot: on with a new one.
            return Some(if release.refused {
                ChangeKind::Renew { primary }
            } else {
                ChangeKind::HandOver { primary, to: release.to.clone(), stay: true }
            });
        }
        if self
            .pupils
            .iter()
            .any(|p| p.asked && (p.progress.is_lost() || !p.is_ready(cx, env, self.inherited)))
        {
            // It may be a member or not, and holds everything up: a new ballot settles it.
            return Some(ChangeKind::Renew { primary });
        }
        let beyond = members_beyond_wanted(cx);
        let room = |p: &Pupil| beyond < 0 || (beyond == 0 && p.extra);
        let ready = self.pupils.iter().find(|p| room(p) && p.is_ready(cx, env, self.inherited))?;
        Some(ChangeKind::AddSecondary { primary, node: ready.progress.node.clone() })
    }

    pub(super) fn pursue(&mut self, cx: &mut Shared, env: &mut Env<'_>) {
        if cx.ask.is_some() || env.now < cx.ask_again_at || cx.saving.is_some() {
            return;
        }
        for member in &mut self.members {
            member.review_loss(env);
        }
        let Some(kind) = self.wanted(cx, env) else { return };
        if let ChangeKind::AddSecondary { node, .. } = &kind
            && let Some(pupil) = self.pupils.iter_mut().find(|p| p.progress.node == *node)
        {
            pupil.asked = true;
        }
        cx.ask(env, kind);
    }

    pub(super) fn answered(&mut self, cx: &mut Shared, env: &mut Env<'_>, answer: Answer) {
        match answer.kind {
            ChangeKind::AddSecondary { node, .. } => {
                let Some(pupil) = self.pupils.iter_mut().find(|p| p.progress.node == node) else { return };
                pupil.uncertain |= answer.outcome == Outcome::Unknown;
                if pupil.uncertain {
                    return;
                }
                // Surely not a member, so it stands in nobody's way.
                pupil.asked = false;
                if answer.outcome == Outcome::Refused {
                    let signature = pupil.signature;
                    cx.send(env, &node, Message::LearnFailed { signature });
                    self.drop_pupil(cx, env, |p| p.signature == signature);
                }
            }
            ChangeKind::HandOver { .. } => {
                if let Some(release) = &mut self.release {
                    release.refused = answer.outcome == Outcome::Refused;
                }
            }
            ChangeKind::RemoveSecondary { .. } | ChangeKind::Renew { .. } | ChangeKind::TakeOver { .. } => {}
        }
    }
}

/// Below 0: the group lacks members; above 0: it has one too many, while a copy moves to another node.
fn members_beyond_wanted(cx: &Shared) -> i32 {
    i32::try_from(cx.config.member_count()).unwrap_or(i32::MAX).saturating_sub(cx.config.max_replica_count)
}
