//! When each attempt was last heard of. Any request of its agent counts.
//!
//! Kept in memory only: a server that was just started, or was stopped for a while itself, gives every attempt the whole limit again,
//! because the silence may have been its own.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;

/// When attempts were last heard of.
#[derive(Default)]
pub(crate) struct Heartbeats {
    attempts: Mutex<HashMap<AttemptId, Beat>>,
}

#[derive(Clone, Copy)]
struct Beat {
    /// The last word, or since when one is waited for.
    at: Instant,
    /// Whether there was a word in this server's life.
    heard: bool,
}

/// What is known of attempts in execution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// Attempts that the reconciler has looked at in this server's life and that are in execution.
    pub live: u64,
    /// Those of them whose agents said something since the server started.
    pub heard: u64,
}

impl Heartbeats {
    /// The agent of `attempt` said something. Gives how long it had been silent before.
    pub(crate) fn heard(&self, attempt: AttemptId, now: Instant) -> Duration {
        let before = self.lock().insert(attempt, Beat { at: now, heard: true });
        before.map_or(Duration::ZERO, |before| now.saturating_duration_since(before.at))
    }

    /// How long `attempt` has been silent; one that is seen for the first time begins now.
    pub(crate) fn silence(&self, attempt: AttemptId, now: Instant) -> Duration {
        now.saturating_duration_since(self.lock().entry(attempt).or_insert(Beat { at: now, heard: false }).at)
    }

    /// There is nobody yet who could say something: the silence of `attempt` begins now.
    pub(crate) fn excuse(&self, attempt: AttemptId, now: Instant) {
        self.lock().entry(attempt).or_insert(Beat { at: now, heard: false }).at = now;
    }

    /// Nobody is blamed for a time in which this server did not listen.
    pub(crate) fn forgive(&self, now: Instant) {
        self.lock().values_mut().for_each(|beat| beat.at = now);
    }

    /// Forgets attempts that are not in execution any more.
    pub(crate) fn keep(&self, live: &HashSet<AttemptId>) {
        self.lock().retain(|attempt, _| live.contains(attempt));
    }

    pub(crate) fn attendance(&self) -> Attendance {
        let attempts = self.lock();
        let heard = attempts.values().filter(|beat| beat.heard).count();
        Attendance { live: attempts.len() as u64, heard: heard as u64 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Beat>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_is_counted_from_the_last_word_and_from_the_first_look() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        assert_eq!(beats.silence(attempt, start), Duration::ZERO);
        assert_eq!(beats.silence(attempt, start + 5 * SECOND), 5 * SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 0 });
        assert_eq!(beats.heard(attempt, start + 7 * SECOND), 7 * SECOND);
        assert_eq!(beats.silence(attempt, start + 8 * SECOND), SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 1 });
    }

    #[test]
    fn who_is_not_there_yet_is_not_silent() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        beats.excuse(attempt, start);
        beats.excuse(attempt, start + 90 * SECOND);
        assert_eq!(beats.silence(attempt, start + 91 * SECOND), SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 0 });
    }

    #[test]
    fn nobody_is_blamed_for_the_servers_own_absence() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        beats.heard(attempt, start);
        beats.forgive(start + 60 * SECOND);
        assert_eq!(beats.silence(attempt, start + 61 * SECOND), SECOND);
        beats.keep(&HashSet::new());
        assert_eq!(beats.attendance(), Attendance::default());
    }
}
