//! Asking an engine whether it would take a run, before the run is stored: the same question of hundreds of runs is asked once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::{Error, Result};

/// How long a client waits for an engine's word.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(20);

/// What an engine said.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// It would take it, now or later.
    Fine,
    /// It never would; its own sentence.
    Refused(String),
    /// It could not be asked; why.
    Unknown(String),
}

impl Answer {
    /// A sentence for the run's warnings, if `engine` could not be asked.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] with the engine's own sentence, if it never would take the run.
    pub(super) fn judge(self, engine: &str) -> Result<Option<String>> {
        match self {
            Self::Fine => Ok(None),
            Self::Refused(words) => {
                Err(Error::invalid(format!("{engine} does not take this run: {words}")).with_target(format!("Configuration.{engine}")))
            }
            Self::Unknown(words) => {
                Ok(Some(format!("{engine} could not be asked whether it takes this run, which is submitted all the same: {words}")))
            }
        }
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Answer)>>>;

/// Answers of the last seconds, by what was asked.
#[derive(Debug)]
pub(super) struct Checks<Q> {
    slots: Mutex<HashMap<Q, Slot>>,
}

impl<Q> Default for Checks<Q> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<Q: Eq + Hash> Checks<Q> {
    /// The answer to `question`, which `ask` gets if there is none that holds.
    pub(super) async fn answer(&self, question: Q, ask: impl Future<Output = Answer>) -> Answer {
        let slot = self.slot(question);
        // Who comes while the question is under way waits for its answer.
        let mut slot = slot.lock().await;
        if let Some((_, answer)) = slot.as_ref().filter(|(at, _)| at.elapsed() < HOLDS) {
            return answer.clone();
        }
        let answer = ask.await;
        *slot = Some((Instant::now(), answer.clone()));
        answer
    }

    fn slot(&self, question: Q) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Old answers go when a new question comes; one that is being asked is locked and stays.
        slots.retain(|_, slot| {
            slot.try_lock().map_or(true, |slot| slot.as_ref().is_none_or(|(at, _)| at.elapsed() < HOLDS)) || Arc::strong_count(slot) > 1
        });
        Arc::clone(slots.entry(question).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn the_same_question_is_asked_once_and_another_one_again() {
        let (checks, asked) = (Checks::default(), AtomicU32::new(0));
        let ask = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Answer::Refused("no such partition".into())
        };
        let answers = tokio::join!(checks.answer("a", ask()), checks.answer("a", ask()), checks.answer("b", ask()));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        let error = answers.1.judge("Slurm").unwrap_err();
        assert_eq!(error.message(), "Slurm does not take this run: no such partition");
    }
}
