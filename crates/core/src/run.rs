//! The state machine of a run. Nothing else decides what happens to one.
//!
//! [`transition`] takes what a run is and what happened, and says what changes, as data. The store applies a [`Change`] by
//! compare-and-set on the run's version; nobody else writes a state. There are no wildcard arms: a new state or
//! event does not compile until every pair has been thought about.
//!
//! Being asked to stop is not a state: [`Desired::Cancel`] stands beside the state, so that "cancel while preparing" and
//! "cancel while running" need no states of their own. Each dialect derives its status word from the two.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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

/// What ended an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// The code ended with exit code 0.
    Completed,
    /// The code ended with another exit code.
    ExitCode {
        /// The code, 1 to 255.
        code: i32,
    },
    /// The code was killed by a signal that this server did not send.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The code ran longer than `MaxRunDurationSeconds` and was stopped.
    TimeLimit {
        /// The limit, in seconds.
        limit_seconds: u64,
    },
    /// Somebody asked for it.
    Cancelled {
        /// Who, as far as known.
        by: Option<String>,
    },
    /// The environment could not be built.
    EnvironmentFailed {
        /// The resolver's own words.
        message: String,
    },
    /// The snapshot could not be fetched or unpacked.
    SnapshotFailed {
        /// Why.
        message: String,
    },
    /// The process of the user's code could not be started.
    StartFailed {
        /// Why.
        message: String,
    },
    /// The agent vanished without an exit record.
    AgentLost {
        /// What is known about it.
        message: String,
    },
    /// A client that runs the code itself reported the failure.
    Reported {
        /// What it said.
        message: String,
    },
}

impl Cause {
    /// A bounded word for metrics and display.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ExitCode { .. } => "exit_code",
            Self::Signal { .. } => "signal",
            Self::TimeLimit { .. } => "time_limit",
            Self::Cancelled { .. } => "cancelled",
            Self::EnvironmentFailed { .. } => "environment_failed",
            Self::SnapshotFailed { .. } => "snapshot_failed",
            Self::StartFailed { .. } => "start_failed",
            Self::AgentLost { .. } => "agent_lost",
            Self::Reported { .. } => "reported",
        }
    }

    /// The end state that follows from the cause.
    pub fn end_state(&self) -> RunState {
        match self {
            Self::Completed => RunState::Completed,
            Self::Cancelled { .. } => RunState::Canceled,
            Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::TimeLimit { .. }
            | Self::EnvironmentFailed { .. }
            | Self::SnapshotFailed { .. }
            | Self::StartFailed { .. }
            | Self::AgentLost { .. }
            | Self::Reported { .. } => RunState::Failed,
        }
    }

    /// Whether the user's code (or request) is the reason, rather than this server or its machines.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Completed
            | Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::TimeLimit { .. }
            | Self::Cancelled { .. }
            | Self::EnvironmentFailed { .. }
            | Self::SnapshotFailed { .. }
            | Self::Reported { .. } => true,
            Self::StartFailed { .. } | Self::AgentLost { .. } => false,
        }
    }

    /// One sentence for the person who owns the run.
    pub fn sentence(&self) -> String {
        match self {
            Self::Completed => "the code ended with exit code 0".into(),
            Self::ExitCode { code } => {
                format!("the code ended with exit code {code}; the end of azureml-logs/70_driver_log.txt has its last words")
            }
            Self::Signal { signal } => format!("the code was killed by signal {signal}, which this server did not send"),
            Self::TimeLimit { limit_seconds } => {
                format!("the code was stopped: it ran longer than MaxRunDurationSeconds = {limit_seconds}")
            }
            Self::Cancelled { by: Some(by) } => format!("cancelled by {by}"),
            Self::Cancelled { by: None } => "cancelled".into(),
            Self::EnvironmentFailed { message } => format!("the environment could not be built: {message}"),
            Self::SnapshotFailed { message } => format!("the snapshot could not be unpacked: {message}"),
            Self::StartFailed { message } => format!("the code could not be started: {message}"),
            Self::AgentLost { message } => format!("the agent beside the code is gone without an exit record: {message}"),
            Self::Reported { message } => message.clone(),
        }
    }
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
    /// Everything that is kept of the attempt is in the blob store.
    Finalized,
    /// Somebody wants it to stop.
    CancelRequested {
        /// Who.
        by: String,
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
            Self::Finalized => "Finalized",
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
                    Ok(keep(S::Preparing, AttemptChange::None, TimelineEntry::run("Preparing", json!({ "AttemptId": attempt }))))
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
                    Ok(Change { starts: true, ..keep(S::Running, AttemptChange::None, entry) })
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
                    Ok(Change { cause: Some(cause.clone()), ..keep(S::Finalizing, AttemptChange::End(*attempt), entry) })
                }
                S::Finalizing => Err(Refused::AlreadySo),
                S::NotStarted | S::Queued | S::Completed | S::Failed | S::Canceled => Err(refused()),
            }
        }
        RunEvent::Finalized => match (run.state, &run.cause) {
            (S::Finalizing, Some(cause)) => {
                let state = cause.end_state();
                let entry = end_entry(state, cause);
                Ok(Change { ends: true, ..keep(state, AttemptChange::Close, entry) })
            }
            (S::Completed | S::Failed | S::Canceled, _) => Err(Refused::AlreadySo),
            (S::Finalizing, None) | (S::NotStarted | S::Queued | S::Starting | S::Preparing | S::Running, _) => Err(refused()),
        },
        RunEvent::CancelRequested { by } => match (run.ownership, run.state, run.desired) {
            (_, S::Completed | S::Failed | S::Canceled, _) => Err(refused()),
            (_, _, Desired::Cancel) => Err(Refused::AlreadySo),
            (Ownership::Managed, S::NotStarted | S::Queued, Desired::Run) | (Ownership::External, _, Desired::Run) => {
                let cause = Cause::Cancelled { by: Some(by.clone()) };
                let entry = end_entry(S::Canceled, &cause);
                let kept = keep(S::Canceled, AttemptChange::None, entry);
                Ok(Change { desired: Desired::Cancel, cause: Some(cause), ends: true, ..kept })
            }
            (Ownership::Managed, S::Starting | S::Preparing | S::Running | S::Finalizing, Desired::Run) => {
                let entry = TimelineEntry::run("CancelRequested", json!({ "By": by }));
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
    if run.state == RunState::Finalizing && run.cause.is_none() {
        found.push("a run is finalizing without a cause");
    }
    found
}

#[cfg(test)]
mod tests;
