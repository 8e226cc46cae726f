//! Runs: their rows, as data.
//!
//! `create.rs` stores new ones, `run_list.rs` and `run_filter.rs` list them, `run_patch.rs` changes the parts that are no state, and only
//! [`crate::transitions`] changes their state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use trainyard_core::{
    definition::Definition,
    filter::{Filter, OrderBy},
    ids::{AttemptId, Digest, EnvironmentHash, ExperimentId, ExperimentName, RunId, WorkspaceId},
    run::{Cause, Desired, Ownership, Retries, Run, RunState, TimelineEntry},
};
use uuid::Uuid;

use crate::page::PageRequest;

/// Everything that is known of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its id, unique in the workspace.
    pub id: RunId,
    /// Its other id.
    pub uuid: Uuid,
    /// Its number in the experiment, from 1; assigned by the store.
    pub number: i64,
    /// Its experiment.
    pub experiment: ExperimentId,
    /// The experiment's present name. Read with the run; ignored when a run is created.
    pub experiment_name: ExperimentName,
    /// The run that it is a child of.
    pub parent: Option<RunId>,
    /// The top of its tree; its own id for a run without parent.
    pub root: RunId,
    /// Who moves it.
    pub ownership: Ownership,
    /// Where it is.
    pub state: RunState,
    /// What is wanted.
    pub desired: Desired,
    /// Counts changes of state, from 0.
    pub version: i64,
    /// Its live attempt.
    pub attempt: Option<AttemptId>,
    /// What ended its last attempt, once known.
    pub cause: Option<Cause>,
    /// Whether its live attempt was not heard of for longer than the heartbeat limit.
    pub silent: bool,
    /// How often it was tried again.
    pub retries: Retries,
    /// It failed, and is not admitted again before this; microseconds since the epoch.
    pub not_before_us: Option<i64>,
    /// Who asked for a cancel.
    pub cancelled_by: Option<String>,
    /// When it was accepted, microseconds since the epoch.
    pub created_us: i64,
    /// When its code first started.
    pub started_us: Option<i64>,
    /// When it became terminal.
    pub ended_us: Option<i64>,
    /// Higher goes first.
    pub priority: i64,
    /// The compute target.
    pub target: Option<String>,
    /// `name` (azureml-wire C.4).
    pub name: Option<String>,
    /// `displayName`.
    pub display_name: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `runType`.
    pub run_type: Option<String>,
    /// `scriptName`.
    pub script_name: Option<String>,
    /// `cancelationReason`: why it was cancelled, or what a client says about it.
    pub cancel_reason: Option<String>,
    /// `hidden`.
    pub hidden: bool,
    /// `createdBy`: `{userObjectId, userTenantId, userName}`.
    pub created_by: Value,
    /// Properties: a key keeps its first value.
    pub properties: BTreeMap<String, Option<String>>,
    /// Tags.
    pub tags: BTreeMap<String, Option<String>>,
    /// Fields of CreateRun that the server knows nothing about or does not act on, given back as they came.
    pub extra: Map<String, Value>,
    /// What its owner should know.
    pub warnings: Vec<RunWarning>,
    /// `ErrorResponse` (azureml-wire C.10), from a client's Error event or from the cause.
    pub error: Option<Value>,
    /// Its code.
    pub snapshot: Option<Uuid>,
    /// What it executes.
    pub definition: Option<Definition>,
    /// The dialect's normalised definition, echoed.
    pub document: Option<Value>,
    /// Its environment, once resolved.
    pub environment: Option<EnvironmentHash>,
    /// Hash of the request that made it, for idempotent submission.
    pub request_digest: Option<Digest>,
}

impl RunRecord {
    /// The run as the state machine sees it.
    pub fn standing(&self) -> Run {
        Run {
            ownership: self.ownership,
            state: self.state,
            desired: self.desired,
            attempt: self.attempt,
            cause: self.cause.clone(),
            silent: self.silent,
            retries: self.retries,
        }
    }
}

/// Something that a run's owner should know (azureml-wire C.4 `warnings`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunWarning {
    /// The part of the server that warns.
    pub source: String,
    /// What it says.
    pub message: String,
}

/// A run to be created.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// Its row; `version` 0, `number` ignored.
    pub record: RunRecord,
    /// The first entry of its timeline, at the record's `created_us`.
    pub first_event: TimelineEntry,
    /// Its code, when it has some; the blob must be stored before.
    pub snapshot: Option<NewSnapshot>,
    /// How many of its target's slots it takes, all at once; at least 1.
    pub slots: u32,
}

/// The snapshot of a new run; a snapshot that is there already is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its id.
    pub id: Uuid,
    /// The blob.
    pub digest: Digest,
    /// Size of the blob.
    pub size_bytes: i64,
}

/// What came of creating a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    /// It is stored, with this number.
    New(i64),
    /// The id is taken, by this run. The caller compares `request_digest`: the same request is a success, another a conflict.
    Existing(Box<RunRecord>),
}

/// Whether hidden runs are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hidden {
    /// Hidden runs are listed too.
    #[default]
    Include,
    /// Hidden runs are left out.
    Exclude,
}

/// A list of runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunQuery {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Only of this experiment.
    pub experiment: Option<ExperimentId>,
    /// Only children of this run.
    pub parent: Option<RunId>,
    /// Only runs that meet this (azureml-wire C.7).
    pub filter: Option<Filter>,
    /// The order; runs without a value of the sort key come last.
    pub order: OrderBy,
    /// Whether hidden runs are listed.
    pub hidden: Hidden,
    /// Which page.
    pub page: PageRequest,
}

/// What changes of a run's descriptive part; `None` keeps, maps are merged key by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunPatch {
    /// `name`.
    pub name: Option<String>,
    /// `displayName`.
    pub display_name: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `runType`.
    pub run_type: Option<String>,
    /// `scriptName`.
    pub script_name: Option<String>,
    /// `cancelationReason`.
    pub cancel_reason: Option<String>,
    /// `target`; refused for a run that this server executes, whose target is its definition's.
    pub target: Option<String>,
    /// `hidden`.
    pub hidden: Option<bool>,
    /// `parentRunId`; refused when the run has another parent already.
    pub parent: Option<RunId>,
    /// Tags to set.
    pub tags: BTreeMap<String, Option<String>>,
    /// Properties to add; one that has another value already is a conflict.
    pub properties: BTreeMap<String, Option<String>>,
    /// Other fields to keep.
    pub extra: Map<String, Value>,
    /// Now, microseconds since the epoch.
    pub at_us: i64,
}
