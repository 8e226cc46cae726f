//! What this server knows of each attempt's job. Nothing here that a restart would miss: it is read from the attempt's folder again, and from Slurm.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::{ids::AttemptId, run::Cause};

use crate::agent::folder::AttemptFolder;

/// Written before `sbatch` is called: from then on there may be a job.
pub(super) const INTENT: &str = "slurm.intent";
/// The job's id, as `sbatch` answered.
pub(super) const JOB: &str = "slurm.job";
/// The id of the job that began, written by itself.
pub(super) const CLAIM: &str = "slurm.claim";

/// How far the job of an attempt has got.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// It is being handed to Slurm.
    Sending,
    /// Slurm does not take it now: in these words, and until then it is not asked again.
    Held { until: Instant, words: String },
    /// Slurm will not take it.
    Refused(Cause),
    /// It was handed to Slurm and no answer came, since then: there is a job, or there is none.
    Unsure { since: Instant, words: String },
    /// It is this job; known since then.
    Known { id: u64, since: Instant },
}

/// What is to be done about a job that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Its run was cancelled, then: out of the queue, or its agent ends it.
    Stop { since: Instant },
    /// At once.
    Kill,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    wish: Option<Wish>,
    /// When Slurm was last told about the wish.
    told: Option<Instant>,
    /// Since when its code is known to have begun.
    begun: Option<Instant>,
    /// Since when its attempt is known to be closed.
    closed: Option<Instant>,
}

/// The jobs of attempts.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    entries: Mutex<HashMap<AttemptId, Entry>>,
}

impl Jobs {
    /// How far the job of `attempt` has got; `None`: nothing was ever handed to Slurm.
    /// `claimed` is the job that says it began.
    pub(super) fn phase(&self, attempt: AttemptId, folder: &AttemptFolder, claimed: Option<u64>) -> Option<Phase> {
        let mut entries = self.lock();
        let known = entries.get(&attempt).map(|entry| entry.phase.clone());
        let phase = match (known, claimed) {
            // Two may carry the name after an answer that got lost. The one that began is it.
            (Some(Phase::Known { id, since }), Some(claimed)) if id == claimed => Phase::Known { id, since },
            (_, Some(id)) => Phase::Known { id, since: Instant::now() },
            (Some(phase), None) => return Some(phase),
            (None, None) => match read_id(folder, JOB) {
                Some(id) => Phase::Known { id, since: Instant::now() },
                None if folder.path().join(INTENT).exists() => {
                    Phase::Unsure { since: Instant::now(), words: "the server was started again while it was submitted".into() }
                }
                None => return None,
            },
        };
        set(&mut entries, attempt, phase.clone());
        Some(phase)
    }

    pub(super) fn set(&self, attempt: AttemptId, phase: Phase) {
        set(&mut self.lock(), attempt, phase);
    }

    /// Makes it `Sending`, unless it is that already.
    pub(super) fn begin_sending(&self, attempt: AttemptId) -> bool {
        let mut entries = self.lock();
        if matches!(entries.get(&attempt), Some(Entry { phase: Phase::Sending, .. })) {
            return false;
        }
        set(&mut entries, attempt, Phase::Sending);
        true
    }

    pub(super) fn is_sending(&self, attempt: AttemptId) -> bool {
        matches!(self.lock().get(&attempt), Some(Entry { phase: Phase::Sending, .. }))
    }

    pub(super) fn forget(&self, attempt: AttemptId) {
        self.lock().remove(&attempt);
    }

    /// The run of `attempt` was cancelled.
    pub(super) fn stop(&self, attempt: AttemptId) {
        if let Some(entry) = self.lock().get_mut(&attempt) {
            entry.wish.get_or_insert(Wish::Stop { since: Instant::now() });
        }
    }

    /// The job of `attempt` is not wanted any more.
    pub(super) fn kill(&self, attempt: AttemptId) {
        if let Some(entry) = self.lock().get_mut(&attempt) {
            entry.wish = Some(Wish::Kill);
        }
    }

    /// How long it is known that nothing more is wanted of the job of `attempt`; asking is what notes it.
    pub(super) fn unwanted_for(&self, attempt: AttemptId) -> Duration {
        self.lock().get_mut(&attempt).map_or(Duration::ZERO, |entry| entry.closed.get_or_insert_with(Instant::now).elapsed())
    }

    /// Jobs that are to end and about which Slurm was not told since `before`.
    pub(super) fn unwanted(&self, before: Instant) -> Vec<(AttemptId, u64, Wish)> {
        let entries = self.lock();
        let due = entries.iter().filter(|(_, entry)| entry.told.is_none_or(|told| told < before));
        due.filter_map(|(attempt, entry)| match (&entry.phase, entry.wish) {
            (Phase::Known { id, .. }, Some(wish)) => Some((*attempt, *id, wish)),
            _ => None,
        })
        .collect()
    }

    /// Whether it was known already at `look` that the code of `attempt`, which has begun, had.
    pub(super) fn was_begun_before(&self, attempt: AttemptId, look: Option<Instant>) -> bool {
        let mut entries = self.lock();
        let begun = entries.get_mut(&attempt).map(|entry| *entry.begun.get_or_insert_with(Instant::now));
        begun.is_some_and(|begun| look.is_some_and(|look| look > begun))
    }

    /// Slurm was told about the wish for `attempt`.
    pub(super) fn told(&self, attempt: AttemptId) {
        if let Some(entry) = self.lock().get_mut(&attempt) {
            entry.told = Some(Instant::now());
        }
    }

    /// Every job whose id is known, with since when.
    pub(super) fn known(&self) -> Vec<(AttemptId, u64, Instant)> {
        let entries = self.lock();
        entries
            .iter()
            .filter_map(|(attempt, entry)| match entry.phase {
                Phase::Known { id, since } => Some((*attempt, id, since)),
                _ => None,
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set(entries: &mut HashMap<AttemptId, Entry>, attempt: AttemptId, phase: Phase) {
    match entries.get_mut(&attempt) {
        Some(entry) => entry.phase = phase,
        None => drop(entries.insert(attempt, Entry { phase, wish: None, told: None, begun: None, closed: None })),
    }
}

/// The id of a job in a note of the folder.
pub(super) fn read_id(folder: &AttemptFolder, name: &str) -> Option<u64> {
    std::fs::read_to_string(folder.path().join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt() -> AttemptId {
        AttemptId(uuid::Uuid::from_u128(1))
    }

    fn id_of(phase: Option<Phase>) -> Option<u64> {
        match phase {
            Some(Phase::Known { id, .. }) => Some(id),
            _ => None,
        }
    }

    #[test]
    fn a_restart_reads_the_job_from_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(dir.path());
        assert!(Jobs::default().phase(attempt(), &folder, None).is_none());
        std::fs::write(dir.path().join(INTENT), "").unwrap();
        assert!(matches!(Jobs::default().phase(attempt(), &folder, None), Some(Phase::Unsure { .. })));
        std::fs::write(dir.path().join(JOB), "17").unwrap();
        assert_eq!(id_of(Jobs::default().phase(attempt(), &folder, None)), Some(17));
    }

    #[test]
    fn of_two_jobs_with_the_name_the_one_that_began_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, jobs) = (AttemptFolder::new(dir.path()), Jobs::default());
        jobs.set(attempt(), Phase::Known { id: 18, since: Instant::now() });
        assert_eq!(id_of(jobs.phase(attempt(), &folder, read_id(&folder, CLAIM))), Some(18));
        std::fs::write(dir.path().join(CLAIM), "17\n").unwrap();
        assert_eq!(id_of(jobs.phase(attempt(), &folder, read_id(&folder, CLAIM))), Some(17));
    }

    #[test]
    fn a_look_from_before_the_beginning_says_nothing_about_what_has_begun() {
        let (jobs, look) = (Jobs::default(), Instant::now());
        jobs.set(attempt(), Phase::Known { id: 17, since: look });
        assert!(!jobs.was_begun_before(attempt(), None));
        assert!(!jobs.was_begun_before(attempt(), Some(look)));
        assert!(jobs.was_begun_before(attempt(), Some(Instant::now() + Duration::from_millis(1))));
    }

    #[test]
    fn a_kill_is_more_than_a_stop_and_each_is_said_again_only_after_a_while() {
        let (jobs, start) = (Jobs::default(), Instant::now());
        jobs.set(attempt(), Phase::Known { id: 17, since: start });
        jobs.stop(attempt());
        assert!(matches!(jobs.unwanted(Instant::now()).as_slice(), [(_, 17, Wish::Stop { .. })]));
        jobs.kill(attempt());
        jobs.stop(attempt());
        assert!(matches!(jobs.unwanted(Instant::now()).as_slice(), [(_, 17, Wish::Kill)]));
        jobs.told(attempt());
        assert!(jobs.unwanted(start).is_empty());
    }
}
