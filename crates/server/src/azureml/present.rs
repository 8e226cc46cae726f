//! From rows to answers: what an answer about runs says that is not in their own rows.
//!
//! GUIDs of relatives come from the relatives' rows, the reason for waiting from the counts of the queue. Both are read once for a
//! page of runs, not once for each.

use std::collections::BTreeMap;

use trainyard_core::{
    Result,
    ids::{ComputeName, RunId},
    plan::{AHEAD_COUNTED, Backoff, WaitFacts, WaitReason, waiting},
    run::{Cause, Desired, Ownership, RunState},
};
use trainyard_store::{Page, runs::RunRecord};
use trainyard_wire::azureml::{
    paging,
    runs::{QueueingInfo, RunDto},
    time::UtcTime,
};
use uuid::Uuid;

use super::convert::runs::{Related, Viewpoint, to_dto};
use crate::{context::Context, state::AppState};

/// One run.
pub(crate) async fn run(state: &AppState, context: &Context, run: RunRecord) -> Result<RunDto> {
    Presenter::new(state, context).present(run).await
}

/// One page of runs.
pub(crate) async fn page(state: &AppState, context: &Context, found: Page<RunRecord>) -> Result<paging::Page<RunDto>> {
    let mut presenter = Presenter::new(state, context);
    let mut runs = Vec::with_capacity(found.items.len());
    for run in found.items {
        runs.push(presenter.present(run).await?);
    }
    Ok(paging::Page::new(runs, found.token))
}

/// Presents runs to one caller; remembers what it had to look up.
pub(crate) struct Presenter<'a> {
    pub(crate) state: &'a AppState,
    pub(crate) context: &'a Context,
    workspace_path: String,
    uuids: BTreeMap<RunId, Option<Uuid>>,
    busy: Option<BTreeMap<ComputeName, u32>>,
    drained: Option<bool>,
}

/// The wait of a run that is tried again later.
fn backoff(run: &RunRecord, now_us: i64) -> Option<Backoff> {
    let left_us = u64::try_from(run.not_before_us? - now_us).ok().filter(|left| *left > 0)?;
    let reason = run.cause.as_ref().map(Cause::sentence).unwrap_or_default();
    Some(Backoff { seconds: left_us.div_ceil(1_000_000), reason })
}

impl<'a> Presenter<'a> {
    /// For the caller of `context`.
    pub(crate) fn new(state: &'a AppState, context: &'a Context) -> Self {
        Self { state, context, workspace_path: context.workspace.path.arm_id(), uuids: BTreeMap::new(), busy: None, drained: None }
    }

    /// One run as the caller sees it.
    pub(crate) async fn present(&mut self, run: RunRecord) -> Result<RunDto> {
        self.uuids.insert(run.id.clone(), Some(run.uuid));
        let parent_uuid = match &run.parent {
            Some(parent) => self.uuid(parent).await?,
            None => None,
        };
        let root_uuid = self.uuid(&run.root).await?;
        let queueing = self.queueing(&run).await?;
        let preparation =
            run.attempt.filter(|_| run.state == RunState::Preparing).and_then(|attempt| self.state.engine.preparation(attempt));
        let seen = Viewpoint {
            base_url: &self.context.base_url,
            workspace_path: &self.workspace_path,
            spelling: self.context.spelling,
            tenant: self.state.settings.tenant,
            targets: self.state.engine.targets(),
        };
        Ok(to_dto(run, &seen, Related { parent_uuid, root_uuid, queueing, preparation }))
    }

    async fn uuid(&mut self, id: &RunId) -> Result<Option<Uuid>> {
        if let Some(known) = self.uuids.get(id) {
            return Ok(*known);
        }
        let found = self.state.store.run(self.context.workspace.id, id).await?.map(|run| run.uuid);
        self.uuids.insert(id.clone(), found);
        Ok(found)
    }

    /// Why a run waits; nothing for one that does not.
    async fn queueing(&mut self, run: &RunRecord) -> Result<Option<QueueingInfo>> {
        // It has an attempt, which waits in the queue of its engine.
        if run.state == RunState::Starting
            && let Some(reason) = run.attempt.and_then(|attempt| self.state.engine.wait(attempt))
        {
            return Ok(Some(self.info(reason)));
        }
        if run.ownership != Ownership::Managed || run.state != RunState::Queued || run.desired == Desired::Cancel {
            return Ok(None);
        }
        let Some(definition) = &run.definition else { return Ok(None) };
        let target = definition.target.clone();
        let reason = waiting(&WaitFacts {
            slots: self.state.engine.target(target.as_str()).map(|target| target.slots),
            needs: self.state.engine.slots(definition),
            busy: self.busy_on(&target).await?,
            ahead: self.state.store.runs_ahead(run, AHEAD_COUNTED).await?,
            drained: self.drained().await?,
            backoff: backoff(run, self.context.now_us),
            target,
        });
        Ok(Some(self.info(reason)))
    }

    fn info(&self, reason: WaitReason) -> QueueingInfo {
        QueueingInfo {
            code: reason.code.to_owned(),
            message: reason.message,
            last_refresh_timestamp: UtcTime::from_microseconds(self.context.now_us),
        }
    }

    async fn drained(&mut self) -> Result<bool> {
        if self.drained.is_none() {
            self.drained = Some(self.state.store.is_drained().await?);
        }
        Ok(self.drained.unwrap_or(false))
    }

    async fn busy_on(&mut self, target: &ComputeName) -> Result<u32> {
        if self.busy.is_none() {
            self.busy = Some(self.state.store.busy_slots().await?);
        }
        Ok(self.busy.as_ref().and_then(|busy| busy.get(target)).copied().unwrap_or(0))
    }
}
