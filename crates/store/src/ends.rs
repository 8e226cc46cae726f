//! How many runs and attempts ended by each cause since this process started, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

use trainyard_core::run::Cause;

/// Counters by [`Cause::label`].
#[derive(Debug, Default)]
pub struct EndCounts {
    runs: Counters,
    attempts: Counters,
}

type Counters = [AtomicU64; Cause::LABELS.len()];

impl EndCounts {
    pub(crate) fn run_ended(&self, cause: &Cause) {
        count(&self.runs, cause);
    }

    pub(crate) fn attempt_ended(&self, cause: &Cause) {
        count(&self.attempts, cause);
    }

    /// Runs that became terminal, by cause.
    pub fn runs(&self) -> impl Iterator<Item = (&'static str, u64)> {
        read(&self.runs)
    }

    /// Attempts whose books were closed, by cause: those of runs that were tried again, too.
    pub fn attempts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        read(&self.attempts)
    }
}

fn count(counters: &Counters, cause: &Cause) {
    if let Some(index) = Cause::LABELS.iter().position(|label| *label == cause.label()) {
        counters[index].fetch_add(1, Ordering::Relaxed);
    }
}

fn read(counters: &Counters) -> impl Iterator<Item = (&'static str, u64)> {
    Cause::LABELS.into_iter().zip(counters.iter().map(|counter| counter.load(Ordering::Relaxed)))
}
