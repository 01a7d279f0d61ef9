//! The log: every envelope that was committed, in order, and the registry at its end.
//!
//! It stands for what Raft promises: one order, nothing lost, nothing twice unless it was proposed twice.
//! Invariant: the registry at the end is what the first registry and the entries make of it.

use certs::Envelope;
use federation::{Outcome, Registry, Revision, Verdict};

pub struct Log {
    before: Revision,
    entries: Vec<Entry>,
    head: Registry,
    verdict: Verdict,
}

#[derive(Clone)]
pub struct Entry {
    pub revision: Revision,
    pub envelope: Envelope,
    pub outcomes: Vec<Outcome>,
}

impl Log {
    /// `verdict`: whether envelopes are to be verified, that is, were really signed.
    pub fn after(registry: Registry, verdict: Verdict) -> Log {
        Log { before: registry.revision(), entries: vec![], head: registry, verdict }
    }

    pub fn commit(&mut self, envelope: Envelope) -> Entry {
        let revision = Revision(self.head.revision().0 + 1);
        let outcomes = self.head.apply(revision, &envelope, self.verdict);
        let entry = Entry { revision, envelope, outcomes };
        self.entries.push(entry.clone());
        entry
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn head(&self) -> &Registry {
        &self.head
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The entries behind a revision, up to another.
    pub fn between(&self, after: Revision, up_to: Revision) -> &[Entry] {
        let place = |revision: Revision| (revision.0.saturating_sub(self.before.0) as usize).min(self.entries.len());
        &self.entries[place(after)..place(up_to).max(place(after))]
    }
}
