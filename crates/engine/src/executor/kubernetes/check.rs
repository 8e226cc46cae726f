//! Asks Kubernetes whether it would take a run, before the run is stored: a Job is made with `dryRun=All`, which goes through everything that a real
//! one does and is not kept, and then a pod of it. A Job says nothing about its pods: one with a priority class that does not exist is taken, and
//! has no pods for ever.

use serde_json::{Value, json};
use trainyard_core::{Result, definition::Definition, ids::AttemptId};
use uuid::Uuid;

use super::{
    super::asking::{Answer, PATIENCE},
    Inner,
    client::Failure,
    manifest::{Owner, Plan},
    submission::is_for_now,
    view::Kind,
};

impl Inner {
    /// Sentences for the run's warnings.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] with Kubernetes' own sentence, if it never would.
    pub(super) async fn check(&self, definition: &Definition) -> Result<Option<String>> {
        let plan = self.plan(definition)?;
        let unasked = self.ask(&plan).await.judge("Kubernetes")?;
        let sentences: Vec<String> = plan.warning().into_iter().chain(unasked).collect();
        Ok((!sentences.is_empty()).then(|| sentences.join("; ")))
    }

    async fn ask(&self, plan: &Plan<'_>) -> Answer {
        // The same for all runs with the same wishes, so that it is a question once.
        let nobody = Owner { server: &self.server, attempt: AttemptId(Uuid::nil()), run: "check" };
        let job = plan.job(nobody, 0);
        self.checks.answer(job.to_string(), self.try_all(job)).await
    }

    async fn try_all(&self, mut job: Value) -> Answer {
        let name = format!("trainyard-check-{}", Uuid::new_v4());
        job["metadata"]["name"] = json!(name);
        let mut pod = job["spec"]["template"].clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        let both = async {
            match self.try_it(Kind::Jobs, &job).await {
                Answer::Fine => self.try_it(Kind::Pods, &pod).await,
                answer => answer,
            }
        };
        let late = || Answer::Unknown(format!("it did not answer within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| late())
    }

    async fn try_it(&self, kind: Kind, document: &Value) -> Answer {
        match self.api.post::<Value>(&format!("{}?dryRun=All", kind.path()), document).await {
            Ok(_) => Answer::Fine,
            Err(Failure::NoAnswer(words) | Failure::Busy { words, .. }) => Answer::Unknown(words),
            // It may fit when less is in use.
            Err(failure) if is_for_now(&failure) => Answer::Fine,
            // Pods are made by Kubernetes itself: this server need not have the right to, and then cannot ask.
            Err(failure) if kind == Kind::Pods && is_without_right(&failure) => Answer::Fine,
            Err(failure) => Answer::Refused(failure.words().to_owned()),
        }
    }
}

/// Whether it is the one who asks that is refused, and not what was asked for.
fn is_without_right(failure: &Failure) -> bool {
    failure.code() == Some(403) && failure.words().contains("cannot create resource")
}
