//! Asks Kubernetes whether it would take a Job, before a run that needs it is stored: a Job is made with `dryRun=All`, which goes through everything
//! that a real one does and is not kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use trainyard_core::{Error, Result, definition::Definition, ids::AttemptId};
use uuid::Uuid;

use super::{
    Inner,
    client::Failure,
    manifest::{Owner, Plan},
    submission::is_for_now,
    view::Kind,
};

/// How long a client waits for Kubernetes' word.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer holds: hundreds of runs with the same wishes are one question.
const HOLDS: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
enum Answer {
    Fine,
    Refused(String),
    Unknown(String),
}

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Answer)>>>;

/// Answers of the last seconds, by what was asked.
#[derive(Debug, Default)]
pub(super) struct Checks {
    slots: Mutex<HashMap<String, Slot>>,
}

impl Checks {
    fn slot(&self, question: String) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Old answers go when a new question comes; one that is being asked is locked and stays.
        slots.retain(|_, slot| {
            slot.try_lock().map_or(true, |slot| slot.as_ref().is_none_or(|(at, _)| at.elapsed() < HOLDS)) || Arc::strong_count(slot) > 1
        });
        Arc::clone(slots.entry(question).or_default())
    }
}

impl Inner {
    /// Sentences for the run's warnings.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] with Kubernetes' own sentence, if it never would.
    pub(super) async fn check(&self, definition: &Definition) -> Result<Option<String>> {
        let plan = self.plan(definition)?;
        let unasked = match self.ask(&plan).await {
            Answer::Fine => None,
            Answer::Refused(words) => {
                return Err(Error::invalid(format!("Kubernetes does not take this run: {words}")).with_target("Configuration.Kubernetes"));
            }
            Answer::Unknown(words) => {
                Some(format!("Kubernetes could not be asked whether it takes this run, which is submitted all the same: {words}"))
            }
        };
        let sentences: Vec<String> = plan.warning().into_iter().chain(unasked).collect();
        Ok((!sentences.is_empty()).then(|| sentences.join("; ")))
    }

    async fn ask(&self, plan: &Plan<'_>) -> Answer {
        // The same for all runs with the same wishes, so that it is a question once.
        let nobody = Owner { server: &self.server, attempt: AttemptId(Uuid::nil()), run: "check" };
        let mut document = plan.job(nobody, 0);
        let slot = self.checks.slot(document.to_string());
        // Who comes while the question is under way waits for its answer.
        let mut slot = slot.lock().await;
        if let Some((_, answer)) = slot.as_ref().filter(|(at, _)| at.elapsed() < HOLDS) {
            return answer.clone();
        }
        document["metadata"]["name"] = format!("trainyard-check-{}", Uuid::new_v4()).into();
        let path = format!("{}?dryRun=All", Kind::Jobs.path());
        let answer = match tokio::time::timeout(PATIENCE, self.api.post::<Value>(&path, &document)).await {
            Ok(Ok(_)) => Answer::Fine,
            Ok(Err(Failure::NoAnswer(words) | Failure::Busy { words, .. })) => Answer::Unknown(words),
            // It may fit when less is in use.
            Ok(Err(failure)) if is_for_now(&failure) => Answer::Fine,
            Ok(Err(failure)) => Answer::Refused(failure.words().to_owned()),
            Err(_) => Answer::Unknown(format!("it did not answer within {} s", PATIENCE.as_secs())),
        };
        *slot = Some((Instant::now(), answer.clone()));
        answer
    }
}
