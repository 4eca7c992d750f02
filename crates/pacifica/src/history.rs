//! The newest events of the node, to be shown when an invariant fails.

use std::collections::VecDeque;

use pegasus_types::{Ballot, Decree, Gpid, Millis};

use crate::Event;

/// About 40 bytes each. safety-rules.md 4.7 wants 1,000 of the failing replica.
const KEPT: usize = 8_192;
const SHOWN: usize = 1_000;

#[derive(Clone, Copy, Debug)]
struct Note {
    at: Millis,
    gpid: Gpid,
    what: &'static str,
    ballot: Ballot,
    decree: Decree,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    notes: VecDeque<Note>,
}

impl History {
    pub fn add(&mut self, at: Millis, event: &Event) {
        if let Some((gpid, what, ballot, decree)) = summary(event) {
            if self.notes.len() == KEPT {
                self.notes.pop_front();
            }
            self.notes.push_back(Note { at, gpid, what, ballot, decree });
        }
    }

    pub fn of(&self, gpid: Gpid) -> Vec<String> {
        let mut lines: Vec<_> = self
            .notes
            .iter()
            .rev()
            .filter(|n| n.gpid == gpid)
            .take(SHOWN)
            .map(|n| format!("{:?} {} ballot {} decree {}", n.at, n.what, n.ballot, n.decree))
            .collect();
        lines.reverse();
        lines
    }
}

fn summary(event: &Event) -> Option<(Gpid, &'static str, Ballot, Decree)> {
    use pegasus_types::message::Message as M;
    let no_ballot = Ballot::ZERO;
    let none = Decree::ZERO;
    Some(match event {
        Event::Opening { gpid } => (*gpid, "opening", no_ballot, none),
        Event::Opened { gpid, replica } => (*gpid, "opened", replica.config.ballot, replica.committed),
        Event::OpenFailed { gpid, .. } => (*gpid, "open failed", no_ballot, none),
        Event::Create { config } => (config.gpid, "create", config.ballot, none),
        Event::Removed { gpid } => (*gpid, "removed", no_ballot, none),
        Event::Write { gpid, .. } => (*gpid, "write", no_ballot, none),
        Event::Received { envelope, .. } => {
            let (what, decree) = match &envelope.message {
                M::Configure { .. } => ("got configure", none),
                M::State { prepared, .. } => ("got state", *prepared),
                M::Prepare { mutation, .. } => ("got prepare", mutation.decree),
                M::Prepared { prepared, .. } => ("got prepared", *prepared),
                M::Gap { expected, .. } => ("got gap", *expected),
                M::NeedConfig => ("got need-config", none),
                M::Stale => ("got stale", none),
                M::NotHere => ("got not-here", none),
                M::Commit { committed } => ("got commit", *committed),
                M::Learn { .. } => ("got learn", none),
                M::Join { prepared, .. } => ("got join", *prepared),
                M::Joined { committed, .. } => ("got joined", *committed),
                M::FetchMore { .. } => ("got fetch-more", none),
                M::LearnFailed { .. } => ("got learn-failed", none),
                M::Released => ("got released", none),
            };
            (envelope.gpid, what, envelope.ballot, decree)
        }
        Event::Logged { gpid, ballot, upto } => (*gpid, "logged", *ballot, *upto),
        Event::ConfigSaved { gpid, ballot, .. } => (*gpid, "config saved", *ballot, none),
        Event::Applied { gpid, upto } => (*gpid, "applied", no_ballot, *upto),
        Event::Failed { gpid, .. } => (*gpid, "failed", no_ballot, none),
        Event::MetaConfig { config } => (config.gpid, "meta config", config.ballot, none),
        Event::ChangeAnswered { gpid, asked_at, .. } => (*gpid, "change answered", *asked_at, none),
        Event::Propose { gpid, ballot, .. } => (*gpid, "proposal", *ballot, none),
        Event::CopiedRows { gpid, decree, .. } => (*gpid, "copied rows", no_ballot, *decree),
        Event::Fetched { gpid, committed, .. } => (*gpid, "fetched", no_ballot, *committed),
        Event::CopyFailed { gpid, .. } => (*gpid, "copy failed", no_ballot, none),
        Event::Heartbeat { .. }
        | Event::HeartbeatAcked { .. }
        | Event::PeerReset { .. }
        | Event::LogHealth { .. }
        | Event::Tick => return None,
    })
}
