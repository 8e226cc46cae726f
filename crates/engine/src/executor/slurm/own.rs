//! Which of the jobs that Slurm shows are an attempt's own, and where an attempt leaves word of itself: in its folder, or as a guest beside it.
//!
//! A guest can write whatever it likes into its claim, and anybody can name a job after any attempt. So a job counts only if it is of the account that
//! the attempt was submitted as, and has its name.

use std::time::Instant;

use trainyard_core::ids::AttemptId;

use super::{
    Inner,
    ending::Traces,
    jobs::{CLAIM, Phase, read_id},
    parse::Job,
    view::Seen,
};
use crate::agent::folder::AttemptFolder;

/// Everything was to be delivered again when there was no agent any more.
const UNDELIVERED: &str = "slurm.undelivered";

impl Inner {
    /// How far the job of `attempt` has got.
    pub(super) fn phase(&self, attempt: AttemptId) -> Option<Phase> {
        let folder = self.folder(attempt);
        let claimed = match self.guests.of(attempt) {
            Some(guest) => self.guests.claimed(&guest),
            None => read_id(&folder, CLAIM),
        };
        self.jobs.phase(attempt, &folder, claimed)
    }

    /// What is known of the job of an attempt.
    pub(super) fn job(&self, (attempt, id): (AttemptId, u64), since: Instant) -> Seen {
        match self.view.job(id, since) {
            Seen::Job(job) if !self.is_its_own(attempt, &job) => Seen::Missing,
            seen => seen,
        }
    }

    /// What is known of a job with the name of an attempt.
    pub(super) fn named(&self, attempt: AttemptId, since: Instant) -> Seen {
        self.view.named(attempt, since, |job| self.is_its_own(attempt, job))
    }

    /// Whether a job may be that of an attempt.
    pub(super) fn is_its_own(&self, attempt: AttemptId, job: &Job) -> bool {
        match self.guests.of(attempt) {
            Some(guest) => job.attempt == attempt && job.user == guest.user.as_str(),
            None => !self.tools.watches(&job.user),
        }
    }

    /// Whether the script of its job has run.
    pub(super) fn has_begun(&self, attempt: AttemptId) -> bool {
        match self.guests.of(attempt) {
            Some(guest) => self.guests.has_begun(&guest),
            None => self.folder(attempt).path().join(CLAIM).exists(),
        }
    }

    pub(super) fn traces<'a>(&self, attempt: AttemptId, folder: &'a AttemptFolder) -> Traces<'a> {
        match self.guests.of(attempt) {
            Some(guest) => Traces::of_guest(folder, self.guests.has_begun(&guest), self.guests.log(&guest)),
            None => Traces::of(folder),
        }
    }

    /// Notes that what a guest had delivered is lost, and nobody is there to do it again.
    pub(super) fn note_undelivered(&self, folder: &AttemptFolder) -> std::io::Result<()> {
        std::fs::write(folder.path().join(UNDELIVERED), "")
    }

    pub(super) fn is_undelivered(&self, folder: &AttemptFolder) -> bool {
        folder.path().join(UNDELIVERED).exists()
    }
}
