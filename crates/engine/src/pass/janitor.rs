//! Removes what closed attempts left behind: their folders, jobs and processes, and stale staging files.

use std::time::{Duration, Instant, SystemTime};

use trainyard_core::Result;
use trainyard_store::attempts::AttemptState;

use super::Passes;

/// Attempts' leftovers are looked for this often; they cost only disk.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

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
                    target.executor.clean(attempt).await?;
                }
            }
        }
        Ok(())
    }
}
