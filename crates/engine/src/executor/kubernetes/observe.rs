//! What is seen of an attempt: from what Kubernetes last listed, and from what this server knows of it.

use std::time::{Duration, Instant};

use trainyard_core::{ids::AttemptId, plan::WaitReason, run::Cause};

use super::{
    Inner,
    documents::{Job, Pod, TARGET_LABEL},
    ending,
    jobs::{Known, Phase},
    manifest,
    pods::{self, Sight},
    reason,
};
use crate::executor::Observation;

impl Inner {
    pub(super) fn observe(&self, attempt: AttemptId) -> Observation {
        let known = self.jobs.of(attempt);
        match &known.phase {
            Some(Phase::Sending) => return pending(reason::submitting()),
            Some(Phase::Refused(cause)) => return Observation::Over { cause: cause.clone() },
            Some(Phase::Held { .. }) if known.stop.is_some() => return cancelled(&known),
            Some(Phase::Held { until, words }) if Instant::now() < *until => return pending(reason::held_back(words)),
            Some(Phase::Held { .. }) => return Observation::NoAgent { starts: 0 },
            Some(Phase::Handed { .. }) | None => {}
        }
        let Some(snapshot) = self.view.snapshot() else { return self.not_looked(&known) };
        match snapshot.job(attempt) {
            Some(job) => {
                self.jobs.note(attempt, |known| {
                    known.seen = true;
                    known.begun |= snapshot.pods(attempt).iter().any(Pod::has_begun);
                });
                self.observe_job(attempt, job, snapshot.pods(attempt))
            }
            None => match known.phase {
                Some(Phase::Handed { since }) if snapshot.began <= since => pending(reason::submitted()),
                _ if known.stop.is_some() && !known.begun => cancelled(&known),
                Some(Phase::Handed { .. }) if !known.removed => gone(attempt),
                _ if known.seen && !known.removed => gone(attempt),
                _ => Observation::Unknown,
            },
        }
    }

    fn not_looked(&self, known: &Known) -> Observation {
        match self.view.trouble() {
            Some(words) if !known.begun => pending(reason::unanswered(&words)),
            _ => Observation::Alive,
        }
    }

    fn observe_job(&self, attempt: AttemptId, job: &Job, pods: &[Pod]) -> Observation {
        let known = self.jobs.of(attempt);
        if job.holds("Complete").is_some() {
            return if known.undelivered {
                Observation::Lost { cause: ending::undelivered(&job.metadata.name) }
            } else {
                Observation::Collected
            };
        }
        if job.holds("Failed").is_some() {
            return ended(&known, ending::failed(job, pods));
        }
        if known.removed || job.metadata.is_going() {
            return match &known.stop {
                Some(_) if !known.begun => cancelled(&known),
                _ if known.removed => Observation::NoAgent { starts: 1 },
                _ => gone(attempt),
            };
        }
        if known.phase.is_none() && !known.begun {
            // A server of before may have died between the Job and its Secret.
            return Observation::NoAgent { starts: 0 };
        }
        if job.spec.suspend {
            match pods.iter().all(Pod::is_over) {
                true if known.begun => return Observation::Lost { cause: ending::suspended(job) },
                true => return pending(reason::suspended(&job.metadata.name)),
                // Their agents have a last word.
                false => {}
            }
        }
        self.observe_pods(attempt, job, pods)
    }

    fn observe_pods(&self, attempt: AttemptId, job: &Job, pods: &[Pod]) -> Observation {
        let sight = pods::sight(job, pods, &self.nodes.lost());
        let known = self.jobs.note(attempt, |known| {
            let since = |present: Option<Instant>, holds: bool| holds.then(|| present.unwrap_or_else(Instant::now));
            known.trouble = since(known.trouble, matches!(sight, Sight::Trouble { .. }));
            known.leaving = since(known.leaving, matches!(sight, Sight::Leaving { .. }));
            known.without_pods = match (&sight, known.without_pods.take()) {
                (Sight::None, None) => Some((Instant::now(), None)),
                (Sight::None, present) => present,
                _ => None,
            };
            known.clone()
        });
        let passed = |since: Option<Instant>| since.map_or(Duration::ZERO, |since| since.elapsed());
        match sight {
            Sight::Up => Observation::Alive,
            Sight::Waits(why) => pending(why),
            Sight::Trouble { cause, hopeless, .. } if hopeless || passed(known.trouble) > self.image_wait(job) => ended(&known, cause),
            Sight::Trouble { why, .. } => pending(why),
            Sight::Leaving { patience, cause } if passed(known.leaving) > patience => ended(&known, cause),
            Sight::Leaving { .. } => Observation::Alive,
            Sight::None => {
                let words = known.without_pods.and_then(|(_, words)| words);
                pending(reason::without_pods(&job.metadata.name, words.as_deref()))
            }
            Sight::Doubtful(cause) => Observation::Doubtful { cause },
            Sight::Lost(cause) => Observation::Lost { cause },
        }
    }

    /// How long an image that cannot be had is waited for.
    fn image_wait(&self, job: &Job) -> Duration {
        let target = job.metadata.labels.get(TARGET_LABEL);
        let found = target.and_then(|name| self.targets.iter().find(|(target, _)| target.as_str() == name));
        let shortest = || self.targets.values().map(|target| target.image_wait_seconds).min().unwrap_or_default();
        Duration::from_secs(found.map_or_else(shortest, |(_, target)| target.image_wait_seconds))
    }

    /// What Kubernetes is doing, or has done, to an attempt whose agent was told to end.
    pub(super) async fn explain(&self, attempt: AttemptId) -> Option<Cause> {
        let snapshot = self.view.fresh(&self.api, Instant::now()).await.ok()?;
        let known = self.jobs.of(attempt);
        if let Some(stop) = &known.stop {
            return Some(stop.cause());
        }
        match snapshot.job(attempt) {
            Some(job) if job.metadata.is_going() && !known.removed => Some(ending::deleted(&job.metadata.name)),
            Some(job) => ending::explanation(job, snapshot.pods(attempt)),
            // It lives on for its pods' grace.
            None if !known.removed => Some(ending::deleted(&manifest::name(attempt))),
            None => None,
        }
    }
}

fn pending(why: WaitReason) -> Observation {
    Observation::Pending { why }
}

fn cancelled(known: &Known) -> Observation {
    let cause = known.stop.as_ref().map_or(Cause::Cancelled { by: None, why: None }, super::jobs::Stop::cause);
    Observation::Over { cause }
}

/// What an agent had not delivered went with its pod; where none was up, nothing did.
fn ended(known: &Known, cause: Cause) -> Observation {
    if known.begun { Observation::Lost { cause } } else { Observation::Over { cause } }
}

fn gone(attempt: AttemptId) -> Observation {
    Observation::Lost { cause: ending::deleted(&manifest::name(attempt)) }
}
