//! Counts rows that break an invariant: the rules of `store::check` that cost nothing however many runs there are. What is found is logged and
//! exported; nothing is repaired here, because a broken invariant is our bug and its traces matter. `trainyard fsck` says more.

use std::time::{Duration, Instant};

use trainyard_core::Result;

use super::Passes;

/// Between two counts.
const INTERVAL: Duration = Duration::from_secs(600);

impl Passes {
    pub(super) async fn invariants(&mut self) -> Result<()> {
        if self.counted.is_some_and(|at| at.elapsed() < INTERVAL) {
            return Ok(());
        }
        let counts = self.options.store.count_violations().await?;
        for (invariant, count) in counts.iter().filter(|(_, count)| *count > 0) {
            tracing::error!(invariant, count, "rows break an invariant; `trainyard fsck` says which");
        }
        self.handle.shared.set_violations(counts);
        self.counted = Some(Instant::now());
        Ok(())
    }
}
