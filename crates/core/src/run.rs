//! The state machine of a run. Nothing else decides what happens to one.
//!
//! [`transition`] takes what a run is and what happened, and says what changes, as data. The store applies a [`Change`] by
//! compare-and-set on the run's version; nobody else writes a state. There are no wildcard arms: a new state or
//! event does not compile until every pair has been thought about.
//!
//! Being asked to stop is not a state: [`Desired::Cancel`] stands beside the state, so that "cancel while preparing" and
//! "cancel while running" need no states of their own. Each dialect derives its status word from the two.

mod cause;
mod retry;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    cause::{Cause, RetryClass},
    retry::{Retries, Retry, RetryPolicy, RetryWish},
};
use crate::ids::AttemptId;

/// Where a run is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RunState {
    /// A record without work: made by a client that runs the code itself and has not said that it started.
    NotStarted,
    /// Waits for a slot on its target.
    Queued,
    /// Has an attempt whose agent has not reported yet.
    Starting,
    /// The agent fetches the snapshot and prepares the environment.
    Preparing,
    /// The user's code runs.
    Running,
    /// The user's code ended; logs and outputs are being collected.
    Finalizing,
    /// Ended well. Terminal.
    Completed,
    /// Ended badly; the cause says how. Terminal.
    Failed,
    /// Ended because somebody asked for it. Terminal.
    Canceled,
}

impl RunState {
    /// All states, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::NotStarted,
        Self::Queued,
        Self::Starting,
        Self::Preparing,
        Self::Running,
        Self::Finalizing,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
    ];

    /// Whether nothing can happen to the run any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// The name, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "NotStarted",
            Self::Queued => "Queued",
            Self::Starting => "Starting",
            Self::Preparing => "Preparing",
            Self::Running => "Running",
            Self::Finalizing => "Finalizing",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }

    /// The state with that stored name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// What is wanted of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Desired {
    /// That it goes on.
    Run,
    /// That it stops.
    Cancel,
}

/// Who moves a run through its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ownership {
    /// This server executes it.
    Managed,
    /// A client executes it and reports by events (azureml-wire C.6).
    External,
}

/// What the state machine needs to know of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Who moves it.
    pub ownership: Ownership,
    /// Where it is.
    pub state: RunState,
    /// What is wanted.
    pub desired: Desired,
    /// Its live attempt, if it has one.
    pub attempt: Option<AttemptId>,
    /// What ended its last attempt, once known.
    pub cause: Option<Cause>,
    /// Whether nothing was heard of the live attempt for longer than the heartbeat limit.
    pub silent: bool,
    /// How often it was tried again.
    pub retries: Retries,
}

/// Something that happened to a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent {
    /// The planner gave it a slot; the attempt is stored as intended before anything is started.
    Admitted {
        /// The new attempt.
        attempt: AttemptId,
    },
    /// The agent of this attempt is at work on snapshot and environment.
    Preparing {
        /// The reporting attempt.
        attempt: AttemptId,
    },
    /// The user's code runs.
    Started {
        /// The reporting attempt.
        attempt: AttemptId,
    },
    /// The attempt is over, by its exit record or by the executor's word that it is gone.
    Ended {
        /// The attempt.
        attempt: AttemptId,
        /// What ended it.
        cause: Cause,
    },
    /// Everything that is kept of the attempt is in the blob store: the run ends, or is tried again.
    Finalized {
        /// The attempt.
        attempt: AttemptId,
        /// What holds for the run on its target.
        policy: RetryPolicy,
    },
    /// Nothing was heard of the attempt for longer than the heartbeat limit.
    Silent {
        /// The attempt.
        attempt: AttemptId,
        /// The limit, in seconds.
        limit_seconds: u64,
        /// Of which of its nodes, where it has several.
        node: Option<u32>,
    },
    /// The attempt was heard again.
    Heard {
        /// The attempt.
        attempt: AttemptId,
    },
    /// Somebody wants it to stop.
    CancelRequested {
        /// Who.
        by: String,
        /// Why, if they said so.
        why: Option<String>,
    },
    /// A client that runs the code itself says that it started.
    ClientStarted,
    /// A client that runs the code itself says how it ended.
    ClientEnded {
        /// The cause: `Completed`, `Reported` or `Cancelled`.
        cause: Cause,
    },
}

impl RunEvent {
    /// A short name for messages and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Admitted { .. } => "Admitted",
            Self::Preparing { .. } => "Preparing",
            Self::Started { .. } => "Started",
            Self::Ended { .. } => "Ended",
            Self::Finalized { .. } => "Finalized",
            Self::Silent { .. } => "Silent",
            Self::Heard { .. } => "Heard",
            Self::CancelRequested { .. } => "CancelRequested",
            Self::ClientStarted => "ClientStarted",
            Self::ClientEnded { .. } => "ClientEnded",
        }
    }
}

/// What changes, as data: the store writes exactly this in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new state.
    pub state: RunState,
    /// What is wanted from now on.
    pub desired: Desired,
    /// The cause from now on.
    pub cause: Option<Cause>,
    /// Whether the live attempt counts as silent from now on.
    pub silent: bool,
    /// The other try that begins to wait now.
    pub retry: Option<Retry>,
    /// What happens to the attempt.
    pub attempt: AttemptChange,
    /// Whether the run's start time is set to now (the user's code started).
    pub starts: bool,
    /// Whether the run's end time is set to now (it became terminal).
    pub ends: bool,
    /// The entry for the timeline.
    pub entry: TimelineEntry,
}

/// What happens to the run's attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptChange {
    /// Nothing.
    None,
    /// A new attempt row is written as intended and becomes the live one.
    Open(AttemptId),
    /// The live attempt's cause is recorded; it stays the run's attempt until finalized.
    End(AttemptId),
    /// The run has no live attempt any more.
    Close,
}

/// An entry of the append-only timeline. Names follow azureml-wire C.6 where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// E.g. `Microsoft.MachineLearning.Run.Start`.
    pub name: String,
    /// PascalCase keys, as in azureml-wire C.6; `RunId` and times are added by the dialect.
    pub data: Value,
}

impl TimelineEntry {
    /// An entry named `Microsoft.MachineLearning.Run.{x}`.
    pub fn run(x: &str, data: Value) -> Self {
        Self { name: format!("Microsoft.MachineLearning.Run.{x}"), data }
    }
}

/// Why an event does not change a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is so already: a repeated report. Success for the reporter.
    AlreadySo,
    /// The event comes from an attempt that is not the run's live one: it is fenced.
    Fenced,
    /// The event makes no sense in this state.
    NotAllowed {
        /// The state.
        state: RunState,
        /// The event's name.
        event: &'static str,
    },
}

/// Decides what `event` does to `run`.
pub fn transition(run: &Run, event: &RunEvent) -> Result<Change, Refused> {
    use RunState as S;
    let refused = || Refused::NotAllowed { state: run.state, event: event.name() };
    let keep = |state: RunState, attempt: AttemptChange, entry: TimelineEntry| Change {
        state,
        desired: run.desired,
        cause: run.cause.clone(),
        silent: run.silent,
        retry: None,
        attempt,
        starts: false,
        ends: false,
        entry,
    };
    match event {
        RunEvent::Admitted { attempt } => match run.state {
            S::Queued if run.desired == Desired::Cancel => Err(refused()),
            S::Queued => {
                Ok(keep(S::Starting, AttemptChange::Open(*attempt), TimelineEntry::run("Starting", json!({ "AttemptId": attempt }))))
            }
            S::NotStarted | S::Starting | S::Preparing | S::Running | S::Finalizing | S::Completed | S::Failed | S::Canceled => {
                Err(refused())
            }
        },
        RunEvent::Preparing { attempt } => {
            fence(run, *attempt)?;
            match run.state {
                S::Starting => {
                    let entry = TimelineEntry::run("Preparing", json!({ "AttemptId": attempt }));
                    Ok(Change { silent: false, ..keep(S::Preparing, AttemptChange::None, entry) })
                }
                S::Preparing | S::Running | S::Finalizing => Err(Refused::AlreadySo),
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        RunEvent::Started { attempt } => {
            fence(run, *attempt)?;
            match run.state {
                S::Starting | S::Preparing => {
                    let entry = TimelineEntry::run("Start", json!({ "AttemptId": attempt }));
                    Ok(Change { starts: true, silent: false, ..keep(S::Running, AttemptChange::None, entry) })
                }
                S::Running | S::Finalizing => Err(Refused::AlreadySo),
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        RunEvent::Ended { attempt, cause } => {
            fence(run, *attempt)?;
            match run.state {
                S::Starting | S::Preparing | S::Running => {
                    let data = json!({ "AttemptId": attempt, "Cause": cause, "Message": cause.sentence() });
                    let entry = TimelineEntry::run("Finalizing", data);
                    let kept = keep(S::Finalizing, AttemptChange::End(*attempt), entry);
                    Ok(Change { cause: Some(cause.clone()), silent: false, ..kept })
                }
                S::Finalizing => Err(Refused::AlreadySo),
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        // A word about another attempt than the live one comes too late: that one has been finalized, and its run may have the next.
        RunEvent::Finalized { attempt, policy } => match (fence(run, *attempt).map(|()| run.state)?, &run.cause) {
            (S::Finalizing, Some(cause)) => Ok(match policy.next(run.retries, cause).filter(|_| run.desired == Desired::Run) {
                Some(retry) => {
                    let kept = keep(S::Queued, AttemptChange::Close, retry_entry(run.attempt, cause, &retry));
                    Change { silent: false, retry: Some(retry), ..kept }
                }
                None => {
                    let state = cause.end_state();
                    Change { ends: true, silent: false, ..keep(state, AttemptChange::Close, end_entry(state, cause)) }
                }
            }),
            (S::Completed | S::Failed | S::Canceled, _) => Err(Refused::AlreadySo),
            (S::Finalizing, None) | (S::NotStarted | S::Queued | S::Starting | S::Preparing | S::Running, _) => Err(refused()),
        },
        RunEvent::Silent { attempt, limit_seconds, node } => {
            fence(run, *attempt)?;
            match run.state {
                S::Starting | S::Preparing | S::Running | S::Finalizing if run.silent => Err(Refused::AlreadySo),
                S::Starting | S::Preparing | S::Running | S::Finalizing => {
                    let mut data = json!({ "AttemptId": attempt, "LimitSeconds": limit_seconds });
                    if let Some(node) = node {
                        data["Node"] = json!(node);
                    }
                    let entry = TimelineEntry::run("NotResponding", data);
                    Ok(Change { silent: true, ..keep(run.state, AttemptChange::None, entry) })
                }
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        RunEvent::Heard { attempt } => {
            fence(run, *attempt)?;
            match run.state {
                S::Starting | S::Preparing | S::Running | S::Finalizing if !run.silent => Err(Refused::AlreadySo),
                S::Starting | S::Preparing | S::Running | S::Finalizing => {
                    let entry = TimelineEntry::run("Responding", json!({ "AttemptId": attempt }));
                    Ok(Change { silent: false, ..keep(run.state, AttemptChange::None, entry) })
                }
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        RunEvent::CancelRequested { by, why } => match (run.ownership, run.state, run.desired) {
            (_, S::Completed | S::Failed | S::Canceled, _) => Err(refused()),
            (_, _, Desired::Cancel) => Err(Refused::AlreadySo),
            (Ownership::Managed, S::NotStarted | S::Queued, Desired::Run) | (Ownership::External, _, Desired::Run) => {
                let cause = Cause::Cancelled { by: Some(by.clone()), why: why.clone() };
                let entry = end_entry(S::Canceled, &cause);
                let kept = keep(S::Canceled, AttemptChange::None, entry);
                Ok(Change { desired: Desired::Cancel, cause: Some(cause), ends: true, ..kept })
            }
            (Ownership::Managed, S::Starting | S::Preparing | S::Running | S::Finalizing, Desired::Run) => {
                let entry = TimelineEntry::run("CancelRequested", json!({ "By": by, "Why": why }));
                Ok(Change { desired: Desired::Cancel, ..keep(run.state, AttemptChange::None, entry) })
            }
        },
        RunEvent::ClientStarted => match (run.ownership, run.state) {
            (Ownership::Managed, _) => Err(refused()),
            (Ownership::External, S::NotStarted | S::Queued | S::Starting | S::Preparing) => {
                Ok(Change { starts: true, ..keep(S::Running, AttemptChange::None, TimelineEntry::run("Start", json!({}))) })
            }
            (Ownership::External, S::Running | S::Finalizing) => Err(Refused::AlreadySo),
            (Ownership::External, S::Completed | S::Failed | S::Canceled) => Err(refused()),
        },
        RunEvent::ClientEnded { cause } => match (run.ownership, run.state) {
            (Ownership::Managed, _) => Err(refused()),
            (Ownership::External, S::NotStarted | S::Queued | S::Starting | S::Preparing | S::Running | S::Finalizing) => {
                let state = cause.end_state();
                let kept = keep(state, AttemptChange::None, end_entry(state, cause));
                Ok(Change { cause: Some(cause.clone()), ends: true, ..kept })
            }
            (Ownership::External, S::Completed | S::Failed | S::Canceled) => {
                if run.state == cause.end_state() {
                    Err(Refused::AlreadySo)
                } else {
                    Err(refused())
                }
            }
        },
    }
}

/// Reports of any attempt but the live one are refused: an attempt that was given up can no longer write.
fn fence(run: &Run, attempt: AttemptId) -> Result<(), Refused> {
    if run.attempt == Some(attempt) { Ok(()) } else { Err(Refused::Fenced) }
}

fn end_entry(state: RunState, cause: &Cause) -> TimelineEntry {
    TimelineEntry::run(state.as_str(), json!({ "Cause": cause, "Message": cause.sentence() }))
}

fn retry_entry(attempt: Option<AttemptId>, cause: &Cause, retry: &Retry) -> TimelineEntry {
    let Retry { number, of, wait_seconds, .. } = retry;
    let message = format!("{}; tried again in {wait_seconds} s (retry {number} of {of})", cause.sentence());
    TimelineEntry::run("Retrying", json!({ "AttemptId": attempt, "Cause": cause, "Message": message, "Retry": number, "Of": of }))
}

/// The invariants that a run's row must keep; each returns a sentence when broken. Used by property tests and by the
/// background check.
pub fn violations(run: &Run) -> Vec<&'static str> {
    let mut found = Vec::new();
    if run.state.is_terminal() && run.attempt.is_some() {
        found.push("a terminal run has a live attempt");
    }
    if run.state.is_terminal() && run.cause.is_none() {
        found.push("a terminal run has no cause");
    }
    if run.ownership == Ownership::Managed
        && matches!(run.state, RunState::Starting | RunState::Preparing | RunState::Running | RunState::Finalizing)
        && run.attempt.is_none()
    {
        found.push("a run in execution has no live attempt");
    }
    if matches!(run.state, RunState::Queued | RunState::NotStarted) && run.attempt.is_some() {
        found.push("a waiting run has a live attempt");
    }
    if run.silent && run.attempt.is_none() {
        found.push("a run without a live attempt counts as silent");
    }
    if run.state == RunState::Finalizing && run.cause.is_none() {
        found.push("a run is finalizing without a cause");
    }
    found
}

#[cfg(test)]
mod tests;
