//! What is done beside the passes, once a second at most: a look at all Jobs and pods, word to Kubernetes about those that are to end, and
//! questions about what a list does not say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;

use super::{
    Inner,
    client::Failure,
    documents::{Event, Job, List, Pod},
    jobs::Known,
    view::Snapshot,
};

/// How long after its grace an agent that was asked to stop may go on before Kubernetes tells it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a Job may be without pods before Kubernetes is asked why.
const WITHOUT_PODS: Duration = Duration::from_secs(3);

/// Between two such questions about one Job.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// Such questions in one tick: they are a courtesy.
const QUESTIONS: usize = 3;

/// Begins a tick, unless one is under way.
pub(super) fn begin(inner: &Arc<Inner>) {
    let at_work = Arc::clone(inner);
    inner.ticking.begin(async move { at_work.tick().await });
}

impl Inner {
    async fn tick(&self) {
        self.view.look(&self.api).await;
        let Some(snapshot) = self.view.snapshot() else { return };
        self.jobs.sweep();
        self.end_what_is_to_end(&snapshot).await;
        let pods: Vec<&Pod> = snapshot.attempts().into_iter().flat_map(|attempt| snapshot.pods(attempt)).collect();
        self.nodes.look(&self.api, pods.into_iter()).await;
        self.ask_why_there_are_no_pods(&snapshot).await;
    }

    /// At once what has not begun; with a word first, and after its grace, what has.
    async fn end_what_is_to_end(&self, snapshot: &Snapshot) {
        for (attempt, known) in self.jobs.stopping() {
            let Some(job) = snapshot.job(attempt).filter(|job| !job.is_over()) else { continue };
            if let Err(failure) = self.end(attempt, &known, (job, snapshot.pods(attempt))).await {
                tracing::warn!(%attempt, error = failure.words(), "an attempt that was cancelled could not be ended; trying again");
            }
        }
    }

    async fn end(&self, attempt: AttemptId, known: &Known, (job, pods): (&Job, &[Pod])) -> Result<(), Failure> {
        let Some(stop) = known.stop.as_ref().filter(|_| !known.removed && !job.metadata.is_going()) else { return Ok(()) };
        if !known.begun {
            return self.remove(attempt).await;
        }
        // The time for the code, and the time for what it leaves, are both in a pod's grace.
        let grace = pods.iter().map(Pod::grace).max().unwrap_or_default();
        match stop.told {
            None if stop.since.elapsed() > grace + PATIENCE => {
                tracing::info!(%attempt, "an agent that does not hear is told by Kubernetes");
                self.end_pods(attempt, grace).await?;
                self.jobs.note(attempt, |known| known.stop.iter_mut().for_each(|stop| stop.told = Some(Instant::now())));
                Ok(())
            }
            Some(told) if told.elapsed() > grace + PATIENCE => self.remove(attempt).await,
            None | Some(_) => Ok(()),
        }
    }

    /// Pods that cannot be made are nowhere but in the events: a quota, or a webhook that is away.
    async fn ask_why_there_are_no_pods(&self, snapshot: &Snapshot) {
        let due = |known: &Known| {
            known.without_pods.as_ref().is_some_and(|(since, _)| since.elapsed() > WITHOUT_PODS)
                && known.asked.is_none_or(|at| at.elapsed() > ASK_AGAIN)
        };
        for (attempt, _) in self.jobs.without_pods().into_iter().filter(|(_, known)| due(known)).take(QUESTIONS) {
            let Some(job) = snapshot.job(attempt) else { continue };
            self.jobs.note(attempt, |known| known.asked = Some(Instant::now()));
            let path = format!("/api/v1/namespaces/{{}}/events?fieldSelector=involvedObject.uid%3D{}", job.metadata.uid);
            // It may not be allowed to ask.
            let Ok(events) = self.api.get::<List<Event>>(&path).await else { continue };
            let events = events.items.unwrap_or_default();
            if let Some(event) = events.into_iter().rev().find(|event| event.reason == "FailedCreate") {
                self.jobs.note(attempt, |known| {
                    if let Some((_, words)) = &mut known.without_pods {
                        *words = Some(event.message);
                    }
                });
            }
        }
    }
}
