//! Asks Kubernetes whether it would take a Job, before a run that needs it is stored: a Job is made with `dryRun=All`, which goes through everything
//! that a real one does and is not kept.

use serde_json::Value;
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
        let mut document = plan.job(nobody, 0);
        let question = document.to_string();
        document["metadata"]["name"] = format!("trainyard-check-{}", Uuid::new_v4()).into();
        self.checks.answer(question, self.try_it(document)).await
    }

    async fn try_it(&self, document: Value) -> Answer {
        let path = format!("{}?dryRun=All", Kind::Jobs.path());
        match tokio::time::timeout(PATIENCE, self.api.post::<Value>(&path, &document)).await {
            Ok(Ok(_)) => Answer::Fine,
            Ok(Err(Failure::NoAnswer(words) | Failure::Busy { words, .. })) => Answer::Unknown(words),
            // It may fit when less is in use.
            Ok(Err(failure)) if is_for_now(&failure) => Answer::Fine,
            Ok(Err(failure)) => Answer::Refused(failure.words().to_owned()),
            Err(_) => Answer::Unknown(format!("it did not answer within {} s", PATIENCE.as_secs())),
        }
    }
}
