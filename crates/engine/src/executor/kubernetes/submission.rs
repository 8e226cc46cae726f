//! Hands an attempt to Kubernetes: its Job, then its Secret, some attempts at once and none in the way of a pass.
//!
//! In this order because of crashes and lost answers: without the Secret the pods of a Job begin nothing, so a Job that appears late, after its attempt
//! was given up, is harmless; and a Secret that is owned by its Job cannot outlive it. Names make each step one that can be done again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use trainyard_core::{Error, Result, definition::Definition, ids::AttemptId, run::Cause};
use trainyard_wire::native::AttemptOrder;

use super::{
    Inner,
    client::Failure,
    documents::{Job, Metadata},
    jobs::Phase,
    manifest::{self, Owner},
    view::Kind,
};
use crate::executor::Observation;

/// After which Kubernetes is asked again to take what it does not take now.
const HOLD: Duration = Duration::from_secs(5);

/// Where Secrets are.
pub(super) const SECRETS: &str = "/api/v1/namespaces/{}/secrets";

/// Hands in what of the attempt of `order` is missing.
pub(super) fn submit(inner: &Arc<Inner>, order: &AttemptOrder) -> Result<()> {
    let attempt = AttemptId(order.attempt);
    match inner.observe(attempt) {
        Observation::Unknown | Observation::NoAgent { .. } => {}
        Observation::Pending { .. }
        | Observation::Alive
        | Observation::Doubtful { .. }
        | Observation::Over { .. }
        | Observation::Lost { .. }
        | Observation::Collected => return Ok(()),
    }
    if !inner.jobs.begin_sending(attempt) {
        return Ok(());
    }
    let (inner, order) = (Arc::clone(inner), order.clone());
    tokio::spawn(async move {
        let Ok(_turn) = inner.sending.acquire().await else { return };
        let phase = inner.send(&order).await;
        match &phase {
            Phase::Handed { .. } => tracing::info!(run = order.run_id, %attempt, "job submitted"),
            Phase::Refused(cause) => tracing::warn!(run = order.run_id, %attempt, cause = cause.sentence(), "Kubernetes refuses a job"),
            Phase::Held { words, .. } => tracing::info!(run = order.run_id, %attempt, words, "Kubernetes does not take a job now"),
            Phase::Sending => {}
        }
        inner.jobs.note(attempt, |known| known.phase = Some(phase));
        inner.view.mark();
    });
    Ok(())
}

/// Why something was not handed in.
enum NotHanded {
    /// It will not be.
    Never(Cause),
    /// It may be later.
    NotNow(Duration, String),
}

impl From<Failure> for NotHanded {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy { after, words } => Self::NotNow(after, words),
            Failure::NoAnswer(words) => Self::NotNow(HOLD, words),
            failure if is_for_now(&failure) => Self::NotNow(HOLD, failure.words().to_owned()),
            Failure::Refused { code, words, .. } => {
                let message = format!("Kubernetes does not take it: {words}");
                // What is not valid will not be; what is forbidden or missing somebody may mend.
                Self::Never(Cause::StartFailed { message, by_definition: matches!(code, 400 | 422) })
            }
        }
    }
}

impl From<Error> for NotHanded {
    fn from(error: Error) -> Self {
        Self::Never(Cause::StartFailed { message: error.message().to_owned(), by_definition: true })
    }
}

/// Whether Kubernetes may think otherwise later: a quota that is used up, or a namespace or webhook that is being made.
pub(super) fn is_for_now(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { code: 403, words, .. } => words.contains("exceeded quota"),
        Failure::Refused { code: 409, .. } => true,
        Failure::Refused { .. } => false,
        Failure::Busy { .. } | Failure::NoAnswer(_) => true,
    }
}

impl Inner {
    async fn send(&self, order: &AttemptOrder) -> Phase {
        match self.hand_in(order).await {
            Ok(()) => Phase::Handed { since: Instant::now() },
            Err(NotHanded::Never(cause)) => Phase::Refused(cause),
            Err(NotHanded::NotNow(after, words)) => Phase::Held { until: Instant::now() + after, words },
        }
    }

    async fn hand_in(&self, order: &AttemptOrder) -> Result<(), NotHanded> {
        let attempt = AttemptId(order.attempt);
        let definition: Definition = serde_json::from_value(order.definition.clone()).map_err(Error::internal)?;
        let plan = self.plan(&definition)?;
        let owner = Owner { server: &self.server, attempt, run: &order.run_id };
        trainyard_store::fail_point!("executor.folder_made");
        let job = self.job(attempt, &plan.job(owner, order.grace_seconds)).await?;
        trainyard_store::fail_point!("executor.order_written");
        let nodes = definition.distribution.node_count;
        if nodes > 1 && job.spec.completion_mode.as_deref() != Some("Indexed") {
            self.remove(attempt).await?;
            let message =
                format!("this Kubernetes is older than 1.24 and cannot start a run on {nodes} nodes: it drops the numbers of pods");
            return Err(NotHanded::Never(Cause::StartFailed { message, by_definition: true }));
        }
        for secret in manifest::secrets(owner, &job.metadata.uid, order)? {
            self.put_secret(&secret, &job.metadata.uid).await?;
        }
        trainyard_store::fail_point!("executor.agent_started");
        Ok(())
    }

    /// The Job of an attempt, made from `document` unless it is there.
    async fn job(&self, attempt: AttemptId, document: &Value) -> Result<Job, NotHanded> {
        match self.api.post::<Job>(Kind::Jobs.path(), document).await {
            Ok(job) => Ok(job),
            Err(failure) if failure.code() == Some(409) => {
                let name = manifest::name(attempt);
                let job: Job = self.api.get(&format!("{}/{name}", Kind::Jobs.path())).await?;
                let ours = job.metadata.attempt() == Some(attempt) && !job.metadata.is_going();
                if ours { Ok(job) } else { Err(NotHanded::NotNow(HOLD, format!("another Job of the name {name} is on its way out"))) }
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Makes a Secret, or lays it over one that is there.
    async fn put_secret(&self, document: &Value, owner: &str) -> Result<(), NotHanded> {
        match self.api.post::<Value>(SECRETS, document).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code() == Some(409) => {
                let path = format!("{SECRETS}/{}", document["metadata"]["name"].as_str().unwrap_or_default());
                let present: Present = self.api.get(&path).await?;
                if !present.metadata.owner_references.iter().any(|reference| reference.uid == owner) {
                    // Of a Job of that name that was removed: it goes any moment.
                    return Err(NotHanded::NotNow(HOLD, "the Secret of a former Job of that name is on its way out".to_owned()));
                }
                self.api.merge(&path, &json!({ "data": document["data"] })).await.map_err(NotHanded::from)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Removes the Job of an attempt, and with it its pods and Secrets, in their own time.
    pub(super) async fn remove(&self, attempt: AttemptId) -> Result<(), Failure> {
        self.jobs.note(attempt, |known| known.removed = true);
        self.view.mark();
        self.api.delete(&format!("{}/{}", Kind::Jobs.path(), manifest::name(attempt)), &json!({ "propagationPolicy": "Background" })).await
    }

    /// Tells the pods of an attempt to end within `grace`.
    pub(super) async fn end_pods(&self, attempt: AttemptId, grace: Duration) -> Result<(), Failure> {
        let Some(snapshot) = self.view.snapshot() else { return Ok(()) };
        for pod in snapshot.pods(attempt).iter().filter(|pod| !pod.is_over()) {
            let path = format!("{}/{}", Kind::Pods.path(), pod.metadata.name);
            self.api.delete(&path, &json!({ "gracePeriodSeconds": grace.as_secs() })).await?;
        }
        Ok(())
    }
}

/// What of a Secret is looked at when one is there already.
#[derive(serde::Deserialize)]
struct Present {
    #[serde(default)]
    metadata: Metadata,
}
