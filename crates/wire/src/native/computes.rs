//! Compute targets with their load: who runs, who waits, and for what.

use serde::{Deserialize, Serialize};

/// `GET {W}/computes`: a list of these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compute {
    /// Name.
    pub name: String,
    /// `local`, `slurm`, `kubernetes`.
    pub engine: String,
    /// How many runs at once; a run on several nodes counts as many times.
    pub slots: u32,
    /// How many slots are taken.
    pub busy: u32,
    /// How many runs wait.
    pub queued: u64,
}

/// `GET {W}/computes/{compute}`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComputeDetails {
    /// Its load.
    #[serde(flatten)]
    pub compute: Compute,
    /// Its machines; null: its engine does not tell.
    pub nodes: Option<Vec<ComputeNode>>,
    /// Why the engine did not tell, if it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_error: Option<String>,
    /// What the users of the workspace hold and wait for.
    pub shares: Vec<ComputeShare>,
    /// The same of all other workspaces together.
    pub others: ComputeShare,
    /// Runs of the workspace that have slots, the oldest first.
    pub running: Vec<ComputeRun>,
    /// Runs of the workspace that wait, in the order in which they get slots as far as that can be said.
    pub queue: Vec<ComputeRun>,
    /// How many more runs of the workspace wait that are not in `queue`.
    pub queue_beyond: u64,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeNode {
    /// What its engine calls it.
    pub name: String,
    /// `idle`, `running`, `preparing`, `leaving`, `unusable`.
    pub state: String,
    /// The engine's own words about that.
    #[serde(default)]
    pub says: String,
}

/// What somebody holds of a target, and waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeShare {
    /// Who; empty for others together.
    pub user: String,
    /// Slots.
    pub busy: u32,
    /// Runs.
    pub waiting: u64,
}

/// A run on a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComputeRun {
    /// Its id.
    pub run: String,
    /// Its experiment.
    pub experiment: String,
    /// Who submitted it.
    pub user: String,
    /// Higher goes first.
    pub priority: i64,
    /// How many slots it takes, all at once.
    pub slots: u32,
    /// `Queued`, `Starting`, `Preparing`, `Running`, `Finalizing`.
    pub state: String,
    /// RFC 3339.
    pub created: String,
    /// Where it runs, once its agent has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many runs get slots before it, of all workspaces; null: it is not known, or it has its slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u32>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
