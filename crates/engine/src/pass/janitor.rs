//! Removes what closed attempts left behind: their folders, jobs and processes, and stale staging files.

use std::time::{Duration, Instant, SystemTime};

use trainyard_core::{Result, ids::AttemptId};
use trainyard_store::attempts::AttemptState;

use super::Passes;
use crate::{engine::Target, executor::Observation};

/// Attempts' leftovers are looked for this often; they cost only disk.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// How long the agent of a closed attempt may take to end.
const LINGER_LIMIT: Duration = Duration::from_secs(60);

/// Staging files older than this belong to uploads that are gone.
const STAGING_AGE: Duration = Duration::from_secs(3600);

impl Passes {
    pub(super) async fn janitor(&mut self) -> Result<()> {
        if self.swept.is_some_and(|at| at.elapsed() < SWEEP_INTERVAL) {
            return Ok(());
        }
        self.swept = Some(Instant::now());
        self.options.store.blobs().sweep_staging(SystemTime::now() - STAGING_AGE).await?;
        for target in self.options.targets.clone() {
            for attempt in target.executor.leftovers().await? {
                let row = self.options.store.attempt(attempt).await?;
                // Without a row: the intent was never stored, so nothing may run under that name.
                if row.is_none_or(|row| row.state == AttemptState::Closed) {
                    self.clear(&target, attempt).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes what is left of an attempt. An agent that is still there hears from the server that it is not wanted any more; one that does not
    /// hear it is ended.
    async fn clear(&mut self, target: &Target, attempt: AttemptId) -> Result<()> {
        if target.executor.observe(attempt).await? == Observation::Alive {
            let since = *self.lingering.entry(attempt).or_insert_with(Instant::now);
            if since.elapsed() < LINGER_LIMIT {
                return Ok(());
            }
            tracing::warn!(%attempt, "the agent of a closed attempt does not end; ending it");
            target.executor.fence(attempt).await?;
        }
        self.lingering.remove(&attempt);
        trainyard_store::fail_point!("janitor.cleaning");
        target.executor.clean(attempt).await?;
        trainyard_store::fail_point!("janitor.cleaned");
        Ok(())
    }
}
