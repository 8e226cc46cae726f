//! How long a preparation may take: its own work counts, waiting for another builder does not.
//!
//! The limit ends a preparation by dropping it, which is also how a cancel from outside ends it: the process groups of its
//! installers are killed and its half-built folder is taken away by the guards that hold them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::environment::Progress;

use super::prepare::PrepareError;

/// How often the limit of a preparation that waits is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What a preparation is at, and how much of its time it has only waited.
#[derive(Debug, Default)]
pub(super) struct Work(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waited: Duration,
    waits_since: Option<Instant>,
    step: String,
}

impl Work {
    /// From now on it waits for somebody else.
    pub(super) fn pause(&self) {
        self.state().waits_since.get_or_insert_with(Instant::now);
    }

    /// It waits no longer.
    pub(super) fn go_on(&self) {
        let mut state = self.state();
        if let Some(since) = state.waits_since.take() {
            state.waited += since.elapsed();
        }
    }

    /// What it is at.
    pub(super) fn is_at(&self, progress: &Progress) {
        self.state().step = progress.to_string();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the work has taken `limit`, with what it was at; never where there is no limit.
    pub(super) async fn exceeds(&self, limit: Option<Duration>) -> PrepareError {
        let Some(limit) = limit else { return std::future::pending().await };
        let begun = Instant::now();
        loop {
            let left = {
                let state = self.state();
                let waited = state.waited + state.waits_since.map(|since| since.elapsed()).unwrap_or_default();
                let left = (limit + waited).saturating_sub(begun.elapsed());
                if left.is_zero() && state.waits_since.is_none() {
                    return PrepareError::TookTooLong { limit_seconds: limit.as_secs(), step: state.step.clone() };
                }
                left
            };
            tokio::time::sleep(left.max(Duration::from_millis(1)).min(LOOK)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_counts_work_and_names_the_step() {
        let work = Work::default();
        work.is_at(&Progress::counted("downloading", 3, 5, "packages"));
        let error = work.exceeds(Some(Duration::from_millis(20))).await.to_string();
        assert!(error.contains("downloading 3 of 5 packages") && error.contains("build_limit_seconds"), "{error}");
    }

    #[tokio::test]
    async fn waiting_for_another_builder_does_not_count() {
        let work = Work::default();
        work.pause();
        let limited = tokio::time::timeout(Duration::from_millis(300), work.exceeds(Some(Duration::from_millis(20)))).await;
        assert!(limited.is_err(), "the limit came while it waited");
        work.go_on();
        tokio::time::timeout(Duration::from_secs(10), work.exceeds(Some(Duration::from_millis(20)))).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_limit_it_may_take_for_ever() {
        assert!(tokio::time::timeout(Duration::from_millis(50), Work::default().exceeds(None)).await.is_err());
    }
}
