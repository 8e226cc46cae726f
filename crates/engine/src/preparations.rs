//! What attempts that prepare their environments are at right now, as their agents say it.
//!
//! Kept in memory only, and only as long as an attempt prepares: it is for people who watch, nothing is decided by it, and the build log has
//! the same in full.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use trainyard_core::{environment::Progress, ids::AttemptId};

/// The longest word that is kept of what an agent says.
const MAX_LENGTH: usize = 200;

/// The last word of each attempt.
#[derive(Default)]
pub(crate) struct Preparations {
    attempts: Mutex<HashMap<AttemptId, Progress>>,
}

impl Preparations {
    /// The attempt is at this now.
    pub(crate) fn set(&self, attempt: AttemptId, progress: Progress) {
        let short = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_LENGTH).collect();
        let progress = Progress { what: short(progress.what), unit: short(progress.unit), ..progress };
        self.lock().insert(attempt, progress);
    }

    /// The attempt does not prepare any more.
    pub(crate) fn end(&self, attempt: AttemptId) {
        self.lock().remove(&attempt);
    }

    /// What the attempt is at.
    pub(crate) fn of(&self, attempt: AttemptId) -> Option<Progress> {
        self.lock().get(&attempt).cloned()
    }

    /// Forgets attempts that are not in execution any more.
    pub(crate) fn keep(&self, live: &HashSet<AttemptId>) {
        self.lock().retain(|attempt, _| live.contains(attempt));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Progress>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_last_word_counts_until_the_preparation_is_over() {
        let (preparations, attempt) = (Preparations::default(), AttemptId(Uuid::from_u128(1)));
        assert_eq!(preparations.of(attempt), None);
        preparations.set(attempt, Progress::step("solving"));
        preparations.set(attempt, Progress::counted("downloading", 13, 40, "packages"));
        assert_eq!(preparations.of(attempt), Some(Progress::counted("downloading", 13, 40, "packages")));
        preparations.end(attempt);
        assert_eq!(preparations.of(attempt), None);
    }

    #[test]
    fn attempts_that_are_gone_are_forgotten_and_long_words_cut() {
        let (preparations, attempt) = (Preparations::default(), AttemptId(Uuid::from_u128(1)));
        preparations.set(attempt, Progress::step(format!("a\n{}", "x".repeat(5000))));
        assert_eq!(preparations.of(attempt).map(|progress| progress.what.len()), Some(MAX_LENGTH));
        preparations.keep(&HashSet::from([attempt]));
        assert!(preparations.of(attempt).is_some());
        preparations.keep(&HashSet::new());
        assert!(preparations.of(attempt).is_none());
    }
}
