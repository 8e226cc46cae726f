//! When each attempt was last heard of. Any request of its agent counts.
//!
//! Kept in memory only: a server that was just started, or was stopped for a while itself, gives every attempt the whole limit again,
//! because the silence may have been its own.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;

/// When attempts were last heard of, each of their nodes by itself.
#[derive(Default)]
pub(crate) struct Heartbeats {
    attempts: Mutex<HashMap<AttemptId, BTreeMap<u32, Beat>>>,
}

/// How long nothing was heard of the quietest node of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Silence {
    /// How long.
    pub(crate) lasts: Duration,
    /// Which node it is.
    pub(crate) node: u32,
}

#[derive(Clone, Copy)]
struct Beat {
    /// The last word, or since when one is waited for.
    at: Instant,
    /// Whether there was a word in this server's life.
    heard: bool,
    /// Whether nothing more is expected.
    done: bool,
}

impl Beat {
    fn expected(now: Instant) -> Self {
        Self { at: now, heard: false, done: false }
    }
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
    /// The agent on `node` of `attempt` said something. Gives how long it had been silent before.
    pub(crate) fn heard(&self, (attempt, node): (AttemptId, u32), now: Instant) -> Duration {
        let mut attempts = self.lock();
        let nodes = attempts.entry(attempt).or_default();
        let done = nodes.get(&node).is_some_and(|beat| beat.done);
        let before = nodes.insert(node, Beat { at: now, heard: true, done });
        before.map_or(Duration::ZERO, |before| now.saturating_duration_since(before.at))
    }

    /// Which of the `count` nodes of `attempt` has been silent for the longest time, and how long; one that is looked for for the first time begins
    /// now. Nodes of which nothing more is expected do not count.
    pub(crate) fn silence(&self, (attempt, count): (AttemptId, u32), now: Instant) -> Silence {
        let mut attempts = self.lock();
        let nodes = attempts.entry(attempt).or_default();
        for node in 0..count.max(1) {
            nodes.entry(node).or_insert(Beat::expected(now));
        }
        let quietest = nodes.iter().filter(|(_, beat)| !beat.done).min_by_key(|(_, beat)| beat.at);
        quietest.map_or_else(Silence::default, |(node, beat)| Silence { lasts: now.saturating_duration_since(beat.at), node: *node })
    }

    /// Everything of `node` of `attempt` is with the server: it may say nothing more.
    pub(crate) fn done(&self, attempt: AttemptId, node: u32) {
        if let Some(beat) = self.lock().get_mut(&attempt).and_then(|nodes| nodes.get_mut(&node)) {
            beat.done = true;
        }
    }

    /// There is nobody yet who could say something: the silence of `attempt` begins now.
    pub(crate) fn excuse(&self, attempt: AttemptId, now: Instant) {
        let mut attempts = self.lock();
        let nodes = attempts.entry(attempt).or_default();
        nodes.entry(0).or_insert(Beat::expected(now));
        nodes.values_mut().for_each(|beat| beat.at = now);
    }

    /// Nobody is blamed for a time in which this server did not listen.
    pub(crate) fn forgive(&self, now: Instant) {
        self.lock().values_mut().flat_map(BTreeMap::values_mut).for_each(|beat| beat.at = now);
    }

    /// Forgets attempts that are not in execution any more.
    pub(crate) fn keep(&self, live: &HashSet<AttemptId>) {
        self.lock().retain(|attempt, _| live.contains(attempt));
    }

    pub(crate) fn attendance(&self) -> Attendance {
        let attempts = self.lock();
        let heard = attempts.values().filter(|nodes| nodes.values().all(|beat| beat.heard)).count();
        Attendance { live: attempts.len() as u64, heard: heard as u64 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, BTreeMap<u32, Beat>>> {
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
        assert_eq!(beats.silence((attempt, 1), start).lasts, Duration::ZERO);
        assert_eq!(beats.silence((attempt, 1), start + 5 * SECOND).lasts, 5 * SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 0 });
        assert_eq!(beats.heard((attempt, 0), start + 7 * SECOND), 7 * SECOND);
        assert_eq!(beats.silence((attempt, 1), start + 8 * SECOND).lasts, SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 1 });
    }

    #[test]
    fn who_is_not_there_yet_is_not_silent() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        beats.excuse(attempt, start);
        beats.excuse(attempt, start + 90 * SECOND);
        assert_eq!(beats.silence((attempt, 1), start + 91 * SECOND).lasts, SECOND);
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 0 });
    }

    #[test]
    fn nobody_is_blamed_for_the_servers_own_absence() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        beats.heard((attempt, 0), start);
        beats.forgive(start + 60 * SECOND);
        assert_eq!(beats.silence((attempt, 1), start + 61 * SECOND).lasts, SECOND);
        beats.keep(&HashSet::new());
        assert_eq!(beats.attendance(), Attendance::default());
    }

    #[test]
    fn of_several_nodes_the_quietest_counts_until_it_is_done() {
        let (beats, start) = (Heartbeats::default(), Instant::now());
        let attempt = AttemptId(Uuid::from_u128(1));
        assert_eq!(beats.silence((attempt, 3), start), Silence::default());
        beats.heard((attempt, 0), start + 9 * SECOND);
        beats.heard((attempt, 2), start + 4 * SECOND);
        assert_eq!(beats.silence((attempt, 3), start + 10 * SECOND), Silence { lasts: 10 * SECOND, node: 1 });
        beats.done(attempt, 1);
        assert_eq!(beats.silence((attempt, 3), start + 10 * SECOND), Silence { lasts: 6 * SECOND, node: 2 });
        assert_eq!(beats.attendance(), Attendance { live: 1, heard: 0 }, "one of its nodes was not heard");
    }
}
