//! What was done to whom: every kill and cut is written down before it happens, because only a recorded one excuses an end that the
//! code did not choose.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, PoisonError},
};

/// What happened in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Attempts whose agent was killed, perhaps more than once.
    pub(crate) agents_killed: BTreeSet<String>,
    /// Attempts whose agent got TERM.
    pub(crate) agents_ended: BTreeSet<String>,
    /// Signals that were sent to the code of an attempt.
    pub(crate) code_signals: BTreeMap<String, Vec<i32>>,
    /// Attempts whose files could not be written for a while.
    pub(crate) attempts_without_disk: BTreeSet<String>,
    /// Whether the disk was full for everybody for a while.
    pub(crate) disk_was_full: bool,
    /// Runs that a client began to cancel.
    pub(crate) cancelled: BTreeSet<String>,
    /// Submissions that were sent again because no answer came.
    pub(crate) resubmitted: u64,
    /// Submissions that were refused, with the reason: none should be.
    pub(crate) refused: Vec<String>,
    /// How often the server ended by itself without a fail point: none should be, except while its database is away or its disk full.
    pub(crate) ended_by_itself: Vec<String>,
    /// Faults by their word.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Fail points that fired, by name.
    pub(crate) fired: BTreeMap<String, u64>,
}

/// The record of a round, shared by everybody who does something in it.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Record>);

impl Ledger {
    /// Writes something down.
    pub(crate) fn note<T>(&self, write: impl FnOnce(&mut Record) -> T) -> T {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is written.
    pub(crate) fn read(&self) -> Record {
        self.note(|record| record.clone())
    }
}

impl Record {
    /// Takes over a fail point that fired: one that ended or failed an agent concerns the attempt in whose folder it worked.
    pub(crate) fn take_fired(&mut self, name: &str, action: &str, place: &Path) {
        *self.fired.entry(name.to_owned()).or_default() += 1;
        let attempt = || place.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match (name.starts_with("agent."), action) {
            (true, "kill") => drop(self.agents_killed.insert(attempt())),
            (true, "error") => drop(self.attempts_without_disk.insert(attempt())),
            _ => {}
        }
    }
}
