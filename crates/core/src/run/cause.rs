//! What ends an attempt, as data: what a person is told, what a metric is labelled with, and whether another try makes sense all come from here.

use serde::{Deserialize, Serialize};

use super::RunState;

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
    /// The kernel killed the code because memory ran out, the machine's or the run's own.
    OutOfMemory {
        /// How that is known.
        message: String,
    },
    /// The code ran longer than it may and was stopped.
    TimeLimit {
        /// The limit, in seconds.
        limit_seconds: u64,
        /// Whose limit it is, e.g. `Slurm job 17`; `None`: `MaxRunDurationSeconds` of the definition.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<String>,
    },
    /// Somebody asked for it.
    Cancelled {
        /// Who, as far as known.
        by: Option<String>,
        /// Why, if they said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
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
    /// Data that the run reads is not there, or its place refuses it.
    DataFailed {
        /// Which, and why.
        message: String,
    },
    /// The process of the user's code could not be started.
    StartFailed {
        /// Why.
        message: String,
        /// Whether the definition is to blame (an interpreter that is not there, say) rather than the machine.
        #[serde(default)]
        by_definition: bool,
    },
    /// The agent vanished without an exit record.
    AgentLost {
        /// What is known about it.
        message: String,
    },
    /// The machine vanished or restarted under the attempt.
    NodeLost {
        /// What is known about it.
        message: String,
    },
    /// The system that the machine belongs to took it away: a shutdown, a job that had to make room.
    Preempted {
        /// What is known about it.
        message: String,
    },
    /// A client that runs the code itself reported the failure.
    Reported {
        /// What it said.
        message: String,
    },
    /// One part of a run on several nodes, or in several processes, ended like this, before all others.
    Part {
        /// The rank of the process; `None`: the node as a whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<u32>,
        /// The number of its node among those of the run.
        node: u32,
        /// What the node is called.
        host: String,
        /// How it ended.
        cause: Box<Self>,
    },
}

/// Who is to blame for a failure that another try may mend. Each has its own number of retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryClass {
    /// The machines, or this server.
    Infrastructure,
    /// The code.
    UserCode,
}

impl Cause {
    /// A bounded word for metrics and display.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ExitCode { .. } => "exit_code",
            Self::Signal { .. } => "signal",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::TimeLimit { .. } => "time_limit",
            Self::Cancelled { .. } => "cancelled",
            Self::EnvironmentFailed { .. } => "environment_failed",
            Self::SnapshotFailed { .. } => "snapshot_failed",
            Self::DataFailed { .. } => "data_failed",
            Self::StartFailed { .. } => "start_failed",
            Self::AgentLost { .. } => "agent_lost",
            Self::NodeLost { .. } => "node_lost",
            Self::Preempted { .. } => "preempted",
            Self::Reported { .. } => "reported",
            Self::Part { cause, .. } => cause.label(),
        }
    }

    /// Every word that [`Cause::label`] can give.
    pub const LABELS: [&str; 14] = [
        "completed",
        "exit_code",
        "signal",
        "out_of_memory",
        "time_limit",
        "cancelled",
        "environment_failed",
        "snapshot_failed",
        "data_failed",
        "start_failed",
        "agent_lost",
        "node_lost",
        "preempted",
        "reported",
    ];

    /// Whether all that is known is that somebody outside ended the code: whoever runs the machine may know who and why.
    pub fn wants_explanation(&self) -> bool {
        const TERM: i32 = 15;
        match self {
            Self::Part { cause, .. } => cause.wants_explanation(),
            _ => matches!(self, Self::Preempted { .. } | Self::Signal { signal: TERM }),
        }
    }

    /// The end state that follows from the cause.
    pub fn end_state(&self) -> RunState {
        match self {
            Self::Completed => RunState::Completed,
            Self::Cancelled { .. } => RunState::Canceled,
            Self::Part { cause, .. } => cause.end_state(),
            Self::ExitCode { .. }
            | Self::Signal { .. }
            | Self::OutOfMemory { .. }
            | Self::TimeLimit { .. }
            | Self::EnvironmentFailed { .. }
            | Self::SnapshotFailed { .. }
            | Self::DataFailed { .. }
            | Self::StartFailed { .. }
            | Self::AgentLost { .. }
            | Self::NodeLost { .. }
            | Self::Preempted { .. }
            | Self::Reported { .. } => RunState::Failed,
        }
    }

    /// Whose retries another try is taken from; `None`: another try would end the same way, or is not wanted.
    pub fn retry_class(&self) -> Option<RetryClass> {
        match self {
            Self::StartFailed { by_definition: false, .. } | Self::AgentLost { .. } | Self::NodeLost { .. } | Self::Preempted { .. } => {
                Some(RetryClass::Infrastructure)
            }
            Self::ExitCode { .. } | Self::Signal { .. } | Self::OutOfMemory { .. } => Some(RetryClass::UserCode),
            Self::Part { cause, .. } => cause.retry_class(),
            Self::Completed
            | Self::TimeLimit { .. }
            | Self::Cancelled { .. }
            | Self::EnvironmentFailed { .. }
            | Self::SnapshotFailed { .. }
            | Self::DataFailed { .. }
            | Self::StartFailed { by_definition: true, .. }
            | Self::Reported { .. } => None,
        }
    }

    /// Whether the user's code (or request) is the reason, rather than this server or its machines.
    pub fn is_users(&self) -> bool {
        self.retry_class() != Some(RetryClass::Infrastructure)
    }

    /// One sentence for the person who owns the run.
    pub fn sentence(&self) -> String {
        match self {
            Self::Completed => "the code ended with exit code 0".into(),
            Self::ExitCode { code } => {
                format!("the code ended with exit code {code}; the end of azureml-logs/70_driver_log.txt has its last words")
            }
            Self::Signal { signal } => format!("the code was killed by signal {signal}, which this server did not send"),
            Self::OutOfMemory { message } => format!("the code was killed because memory ran out: {message}"),
            Self::TimeLimit { limit_seconds, of: None } => {
                format!("the code was stopped: it ran longer than MaxRunDurationSeconds = {limit_seconds}")
            }
            Self::TimeLimit { limit_seconds, of: Some(of) } => {
                format!("the code was stopped: the time limit of {of} is {limit_seconds} s; ask for more time, or save and resume")
            }
            Self::Cancelled { by, why } => {
                let by = by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
                let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("cancelled{by}{why}")
            }
            Self::EnvironmentFailed { message } => format!("the environment could not be built: {message}"),
            Self::SnapshotFailed { message } => format!("the snapshot could not be unpacked: {message}"),
            Self::DataFailed { message } => format!("the data of the run could not be made ready: {message}"),
            Self::StartFailed { message, .. } => format!("the code could not be started: {message}"),
            Self::AgentLost { message } => format!("the agent beside the code is gone without an exit record: {message}"),
            Self::NodeLost { message } => format!("the machine that the code ran on is gone: {message}"),
            Self::Preempted { message } => format!("the code was stopped by the system it ran on: {message}"),
            Self::Reported { message } => message.clone(),
            Self::Part { rank, node, host, cause } => {
                let sentence = match rank {
                    // Each process has a log of its own.
                    Some(rank) => cause.sentence().replace("70_driver_log.txt", &format!("70_driver_log_{rank}.txt")),
                    None => cause.sentence(),
                };
                let rank = rank.map(|rank| format!("rank {rank} on ")).unwrap_or_default();
                format!("{rank}node {node} ({host}): {sentence}")
            }
        }
    }

    /// The same end, of one process or of one node as a whole. What ends all of them at once (a cancel, a time limit), and what names a part
    /// already, stays as it is.
    pub fn of_part(self, rank: Option<u32>, (node, host): (u32, &str)) -> Self {
        match self {
            Self::Completed | Self::Cancelled { .. } | Self::TimeLimit { .. } | Self::Part { .. } => self,
            cause => Self::Part { rank, node, host: host.to_owned(), cause: Box::new(cause) },
        }
    }
}
