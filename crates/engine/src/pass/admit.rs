//! Gives free slots to waiting runs: reads counts and queue heads, lets `core::plan` decide, stores each intent.
//!
//! Only the intent is written here. Starting the agent is the business of the attempts pass, which does it for every attempt
//! without one: the same code whether the intent is a millisecond old or from before a crash. A drained server admits nothing.

use trainyard_core::{
    Result,
    ids::{AttemptId, ComputeName},
    plan::{self, Admission, TargetView},
    run::RunEvent,
};
use trainyard_store::{queue::FreeSlots, transitions::Applied};
use uuid::Uuid;

use super::Passes;
use crate::{clock::now_us, engine::Fullness, hub::RunKey};

/// Runs of a share that are read at first.
const FIRST_LOOK: u32 = 2;

impl Passes {
    pub(super) async fn admit(&mut self) -> Result<()> {
        if self.options.store.is_drained().await? {
            return Ok(());
        }
        let now = now_us();
        for admission in self.plan(now).await? {
            let attempt = AttemptId(Uuid::now_v7());
            let event = RunEvent::Admitted { attempt };
            match self.options.store.apply(admission.workspace, &admission.run, &event, now_us()).await? {
                Applied::Changed(_) => {
                    trainyard_store::fail_point!("admit.intended");
                    tracing::info!(run = %admission.run, %attempt, target = %admission.target, "run admitted");
                    self.handle.shared.hub.touch(&RunKey::new(admission.workspace, &admission.run));
                }
                // Cancelled or taken between reading the queue and writing the intent: the next pass sees it as it is.
                other => tracing::debug!(run = %admission.run, outcome = ?other, "run not admitted"),
            }
        }
        Ok(())
    }

    /// Who gets slots at `now_us`. Of each share so many runs are read as it usually gets, and more only where that is not enough to decide.
    async fn plan(&self, now_us: i64) -> Result<Vec<Admission>> {
        let mut depth = FIRST_LOOK;
        loop {
            let views = self.target_views(now_us, depth).await?;
            let admissions = plan::plan(&views, now_us);
            if plan::is_certain(&views, &admissions, depth) {
                return Ok(admissions);
            }
            depth = depth.saturating_mul(8);
        }
    }

    /// For `now_us`: slots, who holds them, and the first `depth` runs of each share's queue, or as many as could be admitted.
    async fn target_views(&self, now_us: i64, depth: u32) -> Result<Vec<TargetView>> {
        let store = &self.options.store;
        let mut busy = store.busy_shares().await?;
        let mut free = Vec::new();
        for target in &self.options.targets {
            let held = busy.get(&target.name).map_or(0, |shares| shares.values().sum());
            let slots = target.slots.saturating_sub(held);
            // Set before the queue is read: a run queued after the read finds the flag that was true when it was read.
            self.handle.shared.set_full(&target.name, if slots == 0 { Fullness::Full } else { Fullness::Free });
            if slots > 0 {
                free.push((target.name.clone(), FreeSlots { free: slots.min(depth), all: target.slots }));
            }
        }
        if free.is_empty() {
            return Ok(Vec::new());
        }
        let heads = store.queue_heads(&free, now_us).await?;
        let slots = |name: &ComputeName| self.options.targets.iter().find(|target| &target.name == name).map_or(0, |target| target.slots);
        let view = |(name, queue)| TargetView { slots: slots(&name), busy: busy.remove(&name).unwrap_or_default(), name, queue };
        Ok(heads.into_iter().map(view).collect())
    }
}
