//! The few fields of Kubernetes' documents that are looked at. Everything may be missing: versions differ, and so do clusters.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use trainyard_core::ids::AttemptId;

/// The label that names the attempt.
pub(super) const ATTEMPT_LABEL: &str = "trainyard.attempt";
/// The label that names the server, so that several may share a namespace.
pub(super) const SERVER_LABEL: &str = "trainyard.server";
/// The run, as a label where it can be one, and always as an annotation.
pub(super) const RUN_LABEL: &str = "trainyard.run";
/// The compute target.
pub(super) const TARGET_LABEL: &str = "trainyard.target";
/// Who made it.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "trainyard");
/// The name of the container that the run is in.
pub(super) const CONTAINER: &str = "run";
/// Where Kubernetes notes the number of a pod among those of its job.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) creation_timestamp: String,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) deletion_grace_period_seconds: Option<u64>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Owner {
    pub(super) uid: String,
}

impl Metadata {
    pub(super) fn attempt(&self) -> Option<AttemptId> {
        self.labels.get(ATTEMPT_LABEL)?.parse().ok()
    }

    pub(super) fn is_going(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

fn condition<'a>(conditions: &'a [Condition], kind: &str, status: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind && condition.status == status)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    pub(super) metadata: Metadata,
    pub(super) spec: JobSpec,
    pub(super) status: JobStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct JobSpec {
    pub(super) suspend: bool,
    pub(super) completion_mode: Option<String>,
    pub(super) completions: Option<u32>,
    pub(super) active_deadline_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JobStatus {
    pub(super) conditions: Vec<Condition>,
}

impl Job {
    /// A condition that holds.
    pub(super) fn holds(&self, kind: &str) -> Option<&Condition> {
        condition(&self.status.conditions, kind, "True")
    }

    /// Whether its end is the last word: what comes before `Complete` and `Failed` is none.
    pub(super) fn is_over(&self) -> bool {
        self.holds("Complete").is_some() || self.holds("Failed").is_some()
    }

    /// How many pods it is to have at once.
    pub(super) fn nodes(&self) -> u32 {
        self.spec.completions.unwrap_or(1)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) termination_grace_period_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) conditions: Vec<Condition>,
    pub(super) container_statuses: Vec<ContainerStatus>,
    pub(super) init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerStatus {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Waiting>,
    pub(super) running: Option<Running>,
    pub(super) terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Running {}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Terminated {
    pub(super) exit_code: i32,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) started_at: Option<String>,
}

impl Pod {
    pub(super) fn holds(&self, kind: &str) -> Option<&Condition> {
        condition(&self.status.conditions, kind, "True")
    }

    pub(super) fn lacks(&self, kind: &str) -> Option<&Condition> {
        condition(&self.status.conditions, kind, "False")
    }

    /// Which of its job's pods it is.
    pub(super) fn index(&self) -> u32 {
        let noted = self.metadata.annotations.get(INDEX).or_else(|| self.metadata.labels.get(INDEX));
        noted.and_then(|index| index.parse().ok()).unwrap_or(0)
    }

    /// The container that the run is in, once the kubelet has said something about it.
    pub(super) fn container(&self) -> Option<&ContainerStatus> {
        self.status.container_statuses.iter().find(|status| status.name == CONTAINER)
    }

    /// Whether its agent runs.
    pub(super) fn is_up(&self) -> bool {
        self.container().is_some_and(|container| container.state.running.is_some())
    }

    /// Whether its agent has ever run.
    pub(super) fn has_begun(&self) -> bool {
        let ended = |container: &ContainerStatus| container.state.terminated.as_ref().is_some_and(Terminated::has_run);
        self.container().is_some_and(|container| container.state.running.is_some() || ended(container))
    }

    /// Whether none of its containers will run any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The time between the word that it is to end and the end of patience.
    pub(super) fn grace(&self) -> Duration {
        let seconds = self.metadata.deletion_grace_period_seconds.or(self.spec.termination_grace_period_seconds);
        Duration::from_secs(seconds.unwrap_or(30))
    }
}

impl Terminated {
    /// A program that could not be started has "ended", too.
    fn has_run(&self) -> bool {
        self.started_at.is_some() && !matches!(self.reason.as_str(), "StartError" | "ContainerCannotRun" | "RunContainerError")
    }
}

/// A page of a list; all of it, since no limit is asked for.
#[derive(Debug, Deserialize)]
pub(super) struct List<T> {
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) items: Option<Vec<T>>,
}

/// An event about an object, for people.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) reason: String,
    pub(super) message: String,
}

/// A machine.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    pub(super) spec: NodeSpec,
    pub(super) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSpec {
    pub(super) unschedulable: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    pub(super) conditions: Vec<Condition>,
    /// What pods may have of it, in all.
    pub(super) allocatable: BTreeMap<String, String>,
}

impl Node {
    /// Why Kubernetes thinks that it is gone.
    pub(super) fn lost(&self) -> Option<&Condition> {
        condition(&self.status.conditions, "Ready", "Unknown")
    }

    /// Whether its kubelet says that it can take pods.
    pub(super) fn is_ready(&self) -> bool {
        condition(&self.status.conditions, "Ready", "True").is_some()
    }
}
