//! What a server does once, before anything else: it takes back attempts that its rows know nothing of, or not enough.
//!
//! That happens when the rows are older than the world: after a restore from a backup, or a fail-over to a copy that lagged behind. An
//! attempt without a row whose order names a waiting run is that run's attempt: its agent is alive, or has ended and knows how. Admitting the run a second time
//! would execute it twice. What a server of before was given, this one may not have, so agents of held runs are asked to deliver everything
//! again. In the ordinary life of a server there is nothing to do here.
//!
//! Nothing is admitted, cleaned or served before this came to its end once: an agent that nobody knows would be told to give up.

use std::{cmp::Reverse, collections::HashSet, sync::Arc};

use trainyard_core::{
    Result,
    ids::{AttemptId, RunId, WorkspaceId},
    run::RunEvent,
};
use trainyard_store::{queue::LiveRun, runs::RunRecord, transitions::Applied};
use trainyard_wire::native::AttemptOrder;
use uuid::Uuid;

use super::Passes;
use crate::{clock::now_us, engine::Target};

/// Agents of servers that did not put the workspace into the order itself find it here.
const WORKSPACE_VARIABLE: &str = "AZUREML_WORKSPACE_ID";

impl Passes {
    pub(super) async fn adopt(&mut self) -> Result<()> {
        let live = self.options.store.runs_in_execution().await?;
        for run in live.iter().filter(|run| run.retries.held) {
            self.catch_up(run).await?;
        }
        let known: HashSet<AttemptId> = live.iter().map(|run| run.attempt.id).collect();
        for target in self.options.targets.clone() {
            let mut unknown = target.executor.leftovers().await?;
            unknown.retain(|attempt| !known.contains(attempt));
            // Ids grow with time. The youngest of a run's attempts is the one that had not been given up.
            unknown.sort_by_key(|attempt| Reverse(*attempt));
            for attempt in unknown {
                self.adopt_one(&target, attempt).await?;
            }
        }
        Ok(())
    }

    /// Makes `attempt` that of the waiting run which its order names, if there is no row for it and there is such a run.
    async fn adopt_one(&self, target: &Target, attempt: AttemptId) -> Result<()> {
        let store = &self.options.store;
        if store.attempt(attempt).await?.is_some() {
            return Ok(());
        }
        let Some(order) = target.executor.order(attempt).await? else { return Ok(()) };
        let Some((workspace, run)) = names_run(&order) else { return Ok(()) };
        let Some(record) = store.run(workspace, &run).await? else { return Ok(()) };
        if !self.executes(target, &record) {
            return Ok(());
        }
        match store.apply(workspace, &run, &RunEvent::Admitted { attempt }, now_us()).await? {
            Applied::Changed(_) => {
                tracing::warn!(%run, %attempt, "an attempt that is under way was not in the rows; the waiting run that it is of has it again");
                target.executor.redeliver(attempt).await?;
                self.note_start((workspace, &run, attempt), &order).await
            }
            // The run has ended, has another attempt or is to be cancelled: what is left of this one is the janitor's.
            other => {
                tracing::info!(%run, %attempt, outcome = ?other, "an attempt that is not in the rows is not wanted");
                Ok(())
            }
        }
    }

    /// An attempt in execution whose row is older than the world.
    async fn catch_up(&self, live: &LiveRun) -> Result<()> {
        let attempt = live.attempt.id;
        let Some(target) = self.options.targets.iter().find(|target| target.name == live.attempt.target) else { return Ok(()) };
        let Some(order) = target.executor.order(attempt).await? else { return Ok(()) };
        target.executor.redeliver(attempt).await?;
        self.note_start((live.workspace, &live.run, attempt), &order).await
    }

    /// The agent said so to a server whose rows are gone, and does not say it twice.
    async fn note_start(&self, (workspace, run, attempt): (WorkspaceId, &RunId, AttemptId), order: &AttemptOrder) -> Result<()> {
        let Some(started_at) = order.started_at else { return Ok(()) };
        let at_us = started_at.saturating_mul(1_000_000);
        self.options.store.apply(workspace, run, &RunEvent::Started { attempt }, at_us).await.map(|_| ())
    }

    /// Whether the run's target is bound to the executor that `target` is.
    fn executes(&self, target: &Target, run: &RunRecord) -> bool {
        let bound = self.options.targets.iter().find(|bound| Some(bound.name.as_str()) == run.target.as_deref());
        bound.is_some_and(|bound| Arc::ptr_eq(&bound.executor, &target.executor))
    }
}

/// The run that an order is for.
fn names_run(order: &AttemptOrder) -> Option<(WorkspaceId, RunId)> {
    let in_variables = || order.variables.get(WORKSPACE_VARIABLE).and_then(|text| Uuid::parse_str(text).ok());
    let workspace = order.workspace.or_else(in_variables)?;
    Some((WorkspaceId(workspace), RunId::new(order.run_id.as_str()).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(workspace: Option<Uuid>, variable: &str) -> AttemptOrder {
        let order = json!({
            "protocol": 1, "attempt": Uuid::nil(), "run_id": "run", "endpoint": "", "ca_pem": "", "token": "", "token_expires_on": 0,
            "definition": null, "snapshot_sha256": null, "environments": null, "archive_limits": null, "grace_seconds": 1,
            "variables": { WORKSPACE_VARIABLE: variable }, "workspace": workspace,
        });
        serde_json::from_value(order).unwrap()
    }

    #[test]
    fn an_order_names_its_run_by_the_field_or_by_the_variable_of_older_servers() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let named = |order: AttemptOrder| names_run(&order).map(|(workspace, run)| (workspace.0, run.to_string()));
        assert_eq!(named(order(Some(one), &two.to_string())), Some((one, "run".into())));
        assert_eq!(named(order(None, &two.to_string())), Some((two, "run".into())));
        assert_eq!(named(order(None, "none")), None);
    }
}
