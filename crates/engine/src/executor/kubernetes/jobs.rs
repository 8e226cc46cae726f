//! What this server knows of each attempt's Job beside what Kubernetes shows. Nothing here that a restart would miss.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::{ids::AttemptId, run::Cause};

/// How far the Job of an attempt has got.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// It is being handed in.
    Sending,
    /// Kubernetes does not take it now: in these words, and until then it is not asked again.
    Held { until: Instant, words: String },
    /// Kubernetes will not take it.
    Refused(Cause),
    /// Kubernetes has it, with its Secret, since then.
    Handed { since: Instant },
}

/// Somebody's wish that an attempt ends.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) since: Instant,
    pub(super) by: String,
    pub(super) why: Option<String>,
    /// When its pods were told, too.
    pub(super) told: Option<Instant>,
}

impl Stop {
    /// What ends an attempt that was asked to stop.
    pub(super) fn cause(&self) -> Cause {
        Cause::Cancelled { by: Some(self.by.clone()).filter(|by| !by.is_empty()), why: self.why.clone() }
    }
}

/// What is known of one attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) phase: Option<Phase>,
    /// Its Job was seen.
    pub(super) seen: bool,
    /// Its code may have been started: an agent was up.
    pub(super) begun: bool,
    /// It is to end.
    pub(super) stop: Option<Stop>,
    /// This server has removed its Job.
    pub(super) removed: bool,
    /// Its agent was done before this server's data was restored: what it delivered, nobody has.
    pub(super) undelivered: bool,
    /// Since when something keeps its containers from being started.
    pub(super) trouble: Option<Instant>,
    /// Since when one of its pods is on its way out.
    pub(super) leaving: Option<Instant>,
    /// Since when its Job has had no pods, and why, as far as Kubernetes has said.
    pub(super) without_pods: Option<(Instant, Option<String>)>,
    /// When that was last asked for.
    pub(super) asked: Option<Instant>,
    /// When anybody last asked about it.
    wanted: Option<Instant>,
}

/// What nobody has asked about for this long is of an attempt that is closed and swept.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// All attempts that something is known of.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    known: Mutex<HashMap<AttemptId, Known>>,
}

impl Jobs {
    /// What is known of `attempt`.
    pub(super) fn of(&self, attempt: AttemptId) -> Known {
        let mut known = self.lock();
        let Some(known) = known.get_mut(&attempt) else { return Known::default() };
        known.wanted = Some(Instant::now());
        known.clone()
    }

    /// Notes something about `attempt`.
    pub(super) fn note<T>(&self, attempt: AttemptId, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.lock();
        let known = known.entry(attempt).or_default();
        known.wanted = Some(Instant::now());
        change(known)
    }

    /// Forgets attempts that nobody asks about any more.
    pub(super) fn sweep(&self) {
        self.lock().retain(|_, known| known.wanted.is_some_and(|at| at.elapsed() < FORGOTTEN));
    }

    /// Whether the caller is the one that hands `attempt` in.
    pub(super) fn begin_sending(&self, attempt: AttemptId) -> bool {
        self.note(attempt, |known| match known.phase {
            Some(Phase::Sending) => false,
            _ => {
                known.phase = Some(Phase::Sending);
                true
            }
        })
    }

    /// Everything about `attempt` is over.
    pub(super) fn forget(&self, attempt: AttemptId) {
        self.lock().remove(&attempt);
    }

    /// Attempts that are to end.
    pub(super) fn stopping(&self) -> Vec<(AttemptId, Known)> {
        self.lock().iter().filter(|(_, known)| known.stop.is_some()).map(|(attempt, known)| (*attempt, known.clone())).collect()
    }

    /// Attempts whose Jobs have no pods.
    pub(super) fn without_pods(&self) -> Vec<(AttemptId, Known)> {
        self.lock().iter().filter(|(_, known)| known.without_pods.is_some()).map(|(attempt, known)| (*attempt, known.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
