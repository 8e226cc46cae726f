//! What is seen of an attempt: from its folder, from what is known of its job, and from what Slurm last said.

use std::time::{Duration, Instant};

use trainyard_core::{ids::AttemptId, plan::WaitReason, run::Cause};

use super::{
    Inner,
    ending::{self, Traces},
    jobs::Phase,
    parse::{End, Job, JobState},
    reason,
    submission::note_job,
    view::{INTERVAL, Seen},
};
use crate::{agent::folder::AttemptFolder, executor::Observation};

/// How long accounting may lag behind the end of a job.
const LAG: Duration = Duration::from_secs(12);

/// How long an explanation waits for accounting; less than the engine waits for an explanation.
const ACCOUNTING_PATIENCE: Duration = Duration::from_secs(4);

/// How long a job that nobody knows any more is asked for.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Without accounting there is nobody else to ask; a controller that has just come back may still read its state.
const FORGOTTEN_WITHOUT_ACCOUNTING: Duration = Duration::from_secs(20);

impl Inner {
    pub(super) fn observe(&self, attempt: AttemptId) -> Observation {
        let folder = self.folder(attempt);
        if self.jobs.is_sending(attempt) {
            return pending(reason::submitting());
        }
        if !folder.path().exists() {
            return Observation::Unknown;
        }
        if self.guests.of(attempt).is_some() {
            // What its agent leaves is not the server's to look at.
            return self.observe_job(attempt, &folder);
        }
        if folder.is_collected() {
            return Observation::Collected;
        }
        if self.local.is_child(attempt) {
            return Observation::Alive;
        }
        let seen = self.observe_job(attempt, &folder);
        // It may have delivered everything while that was looked at.
        if folder.is_collected() { Observation::Collected } else { seen }
    }

    fn observe_job(&self, attempt: AttemptId, folder: &AttemptFolder) -> Observation {
        let no_agent = || Observation::NoAgent { starts: folder.starts() };
        match self.phase(attempt) {
            None => no_agent(),
            Some(Phase::Sending) => pending(reason::submitting()),
            Some(Phase::Held { .. } | Phase::Unsure { .. }) if folder.stop_request().is_some() && !self.may_have_job(attempt) => {
                let asked = folder.stop_request().unwrap_or_default();
                Observation::Over { cause: Cause::Cancelled { by: asked.by, why: asked.why } }
            }
            Some(Phase::Held { until, words }) if Instant::now() < until => pending(reason::held_back(&words)),
            Some(Phase::Held { .. }) => no_agent(),
            Some(Phase::Refused(cause)) => Observation::Over { cause },
            Some(Phase::Unsure { since, words }) => match self.named(attempt, since) {
                Seen::Job(job) => {
                    tracing::info!(%attempt, job = job.id, "the job of an attempt was found by its name");
                    note_job(folder, job.id);
                    self.jobs.set(attempt, Phase::Known { id: job.id, since: Instant::now() });
                    self.observe_known((attempt, job.id, since), folder)
                }
                // Nothing of that name waits, runs or has ended, and nothing has begun: that would have left its claim.
                Seen::Missing => no_agent(),
                Seen::NotLooked => pending(reason::unanswered(&self.view.trouble().unwrap_or(words))),
            },
            Some(Phase::Known { id, since }) => self.observe_known((attempt, id, since), folder),
        }
    }

    fn observe_known(&self, (attempt, id, since): (AttemptId, u64, Instant), folder: &AttemptFolder) -> Observation {
        match self.job((attempt, id), since) {
            Seen::Job(job) => self.observe_shown(attempt, &job, folder),
            Seen::Missing => self.observe_missing(attempt, id, folder),
            Seen::NotLooked if self.has_begun(attempt) => Observation::Alive,
            Seen::NotLooked => pending(match self.view.trouble() {
                Some(words) => reason::unanswered(&words),
                None => reason::submitted(id),
            }),
        }
    }

    fn observe_shown(&self, attempt: AttemptId, job: &Job, folder: &AttemptFolder) -> Observation {
        match &job.state {
            // The look may be older than the beginning; only a later one says that the job was put back.
            JobState::Pending | JobState::Requeued if self.guests.of(attempt).is_some() && self.has_begun(attempt) => {
                if self.jobs.was_begun_before(attempt, self.view.began()) {
                    // Where it is put next there may be nothing of it.
                    self.jobs.kill(attempt);
                    return Observation::Lost { cause: ending::requeued(job) };
                }
                Observation::Alive
            }
            JobState::Pending | JobState::Requeued if self.has_begun(attempt) => {
                if folder.was_started() && self.jobs.was_begun_before(attempt, self.view.began()) {
                    // Its code is not started a second time: what is left is to close the books, once the job is out of the queue.
                    self.note_verdict(folder, || ending::requeued(job));
                    self.jobs.kill(attempt);
                }
                Observation::Alive
            }
            JobState::Pending | JobState::Requeued | JobState::Configuring | JobState::Suspended => pending(match self.view.trouble() {
                Some(words) => reason::unanswered(&words),
                None => reason::of(job, self.view.ahead(job)),
            }),
            JobState::Running | JobState::Completing => Observation::Alive,
            JobState::Ended(end) if self.guests.of(attempt).is_some() => self.observe_guests_end(job, end, folder),
            JobState::Ended(end) => self.observe_ended(job, end, folder),
        }
    }

    /// How the job of a guest ended is all that is known: what its agent has not delivered is out of reach.
    fn observe_guests_end(&self, job: &Job, end: &End, folder: &AttemptFolder) -> Observation {
        let cause = || ending::cause(job, self.told(job).as_ref().unwrap_or(end), &self.traces(job.attempt, folder));
        match end {
            End::Cancelled { by: None } if self.may_learn_more(job, folder) => Observation::Alive,
            _ if !self.has_begun(job.attempt) => Observation::Over { cause: cause() },
            // Its agent ends well when everything is delivered.
            End::Completed if self.is_undelivered(folder) => Observation::Lost { cause: ending::undelivered(job) },
            End::Completed => Observation::Collected,
            _ => Observation::Lost { cause: cause() },
        }
    }

    /// Slurm does not show it any more: it ended longer ago than Slurm remembers.
    fn observe_missing(&self, attempt: AttemptId, id: u64, folder: &AttemptFolder) -> Observation {
        let guest = self.guests.of(attempt);
        if let Some(job) = self.view.ended(id).filter(|job| job.attempt == attempt && self.is_its_own(attempt, job))
            && let JobState::Ended(end) = &job.state
        {
            return if guest.is_some() { self.observe_guests_end(&job, end, folder) } else { self.observe_ended(&job, end, folder) };
        }
        let (asked, nobody) = self.view.missing(id);
        let limit = if nobody { FORGOTTEN_WITHOUT_ACCOUNTING } else { FORGOTTEN };
        match asked > limit {
            // Slurm may hide the jobs of others from the server: as long as the agent is heard, it is there.
            true if guest.is_some() && self.has_begun(attempt) => Observation::Doubtful { cause: ending::forgotten(id) },
            true if guest.is_some() => Observation::Over { cause: ending::forgotten(id) },
            true if folder.agent_is_alive() => Observation::Lost { cause: ending::forgotten(id) },
            true if !folder.had_agent() => Observation::Over { cause: ending::forgotten(id) },
            true => self.books_open(folder, || ending::forgotten(id)),
            false if self.has_begun(attempt) => Observation::Alive,
            false => pending(reason::submitted(id)),
        }
    }

    fn observe_ended(&self, job: &Job, end: &End, folder: &AttemptFolder) -> Observation {
        let recorded = folder.exit_record().is_ok_and(|record| record.is_some());
        let cause = || ending::cause(job, self.told(job).as_ref().unwrap_or(end), &Traces::of(folder));
        match end {
            // The node is given up, and what runs on it is out of reach, but may go on.
            End::NodeFail if folder.had_agent() && !recorded => Observation::Lost { cause: cause() },
            // Who cancelled it is known a few seconds later.
            End::Cancelled { by: None } if self.may_learn_more(job, folder) => Observation::Alive,
            _ if !folder.had_agent() => Observation::Over { cause: cause() },
            End::NodeFail => self.books_open(folder, cause),
            _ if folder.agent_is_alive() => Observation::Alive,
            _ => self.books_open(folder, cause),
        }
    }

    /// There is an agent needed that closes the books.
    fn books_open(&self, folder: &AttemptFolder, cause: impl FnOnce() -> Cause) -> Observation {
        self.note_verdict(folder, cause);
        Observation::NoAgent { starts: folder.starts() }
    }

    /// Before an agent is started on this machine: it must not start the code here.
    fn note_verdict(&self, folder: &AttemptFolder, cause: impl FnOnce() -> Cause) {
        if folder.verdict().is_none() {
            let cause = cause();
            tracing::info!(folder = %folder.path().display(), cause = cause.label(), "Slurm says how an attempt ended");
            if let Err(error) = folder.write_verdict(&cause) {
                tracing::warn!(%error, "what Slurm says cannot be noted; trying again");
            }
        }
    }

    /// Accounting's better word on the end of `job`.
    fn told(&self, job: &Job) -> Option<End> {
        match self.view.ended(job.id)?.state {
            JobState::Ended(end @ End::Cancelled { .. }) => Some(end),
            _ => None,
        }
    }

    fn may_learn_more(&self, job: &Job, folder: &AttemptFolder) -> bool {
        let (asked, nobody) = self.view.missing(job.id);
        !nobody && folder.stop_request().is_none() && !folder.is_fenced() && self.view.ended(job.id).is_none() && asked < LAG
    }

    /// Whether there may be a job with the name of `attempt`.
    fn may_have_job(&self, attempt: AttemptId) -> bool {
        match self.phase(attempt) {
            Some(Phase::Unsure { since, .. }) => !matches!(self.named(attempt, since), Seen::Missing),
            Some(Phase::Held { .. } | Phase::Refused(_)) | None => false,
            Some(Phase::Sending | Phase::Known { .. }) => true,
        }
    }

    /// Whether nothing of `attempt` is in Slurm any more, so that its folder may go.
    pub(super) fn is_gone(&self, attempt: AttemptId) -> bool {
        let seen = match self.phase(attempt) {
            None | Some(Phase::Refused(_) | Phase::Held { .. }) => return true,
            Some(Phase::Sending) => return false,
            Some(Phase::Unsure { since, .. }) => self.named(attempt, since),
            Some(Phase::Known { id, since }) => self.job((attempt, id), since),
        };
        match seen {
            Seen::Job(job) => matches!(job.state, JobState::Ended(_)),
            Seen::Missing => true,
            Seen::NotLooked => false,
        }
    }

    /// What Slurm is doing, or has done, to an attempt whose agent was told to end.
    pub(super) async fn explain(&self, attempt: AttemptId) -> Option<Cause> {
        let folder = self.folder(attempt);
        if let Some(verdict) = folder.verdict() {
            return Some(verdict);
        }
        let Some(Phase::Known { id, .. }) = self.phase(attempt) else { return None };
        let asked = Instant::now();
        self.view.fresh(&self.tools, asked).await?;
        let Seen::Job(job) = self.job((attempt, id), asked) else { return None };
        let traces = self.traces(attempt, &folder);
        let cause = ending::explanation(&job, &traces)?;
        if !matches!(cause, Cause::Cancelled { .. }) || !self.view.has_accounting() || folder.stop_request().is_some() {
            return Some(cause);
        }
        // Accounting knows who it was, some seconds after the fact, and may just have been asked about another job.
        while asked.elapsed() < ACCOUNTING_PATIENCE {
            self.view.ask_accounting(&self.tools, vec![id]).await;
            if let Some(end) = self.told(&job) {
                return Some(ending::cause(&job, &end, &traces));
            }
            tokio::time::sleep(INTERVAL / 2).await;
        }
        Some(cause)
    }
}

fn pending(why: WaitReason) -> Observation {
    Observation::Pending { why }
}
