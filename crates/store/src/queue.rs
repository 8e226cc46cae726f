//! What the planner and the reconciler ask: who waits, who executes, how many.

use std::collections::BTreeMap;

use trainyard_core::{
    Error, Result,
    definition::Definition,
    ids::{ComputeName, ExperimentId, RunId, WorkspaceId},
    plan::QueuedRun,
    run::{Desired, Retries, RunState},
};

use crate::{
    attempts::{self, Attempt},
    db::{Row, Sql},
    run_row,
    runs::RunRecord,
    store::Store,
};

/// A run in execution (`Starting` to `Finalizing`) with its live attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveRun {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its id.
    pub run: RunId,
    /// Its live attempt.
    pub attempt: Attempt,
    /// Where it is.
    pub state: RunState,
    /// What is wanted.
    pub desired: Desired,
    /// Whether the live attempt counts as silent.
    pub silent: bool,
    /// How often it was tried again.
    pub retries: Retries,
    /// Who asked for a cancel.
    pub cancelled_by: Option<String>,
    /// Why, if they said so.
    pub cancel_reason: Option<String>,
    /// The row's version.
    pub version: i64,
    /// What it executes.
    pub definition: Option<Definition>,
}

impl Store {
    /// For each target with its number of free slots: as many waiting runs as could get one at `now_us`, in queue order. Targets without
    /// free slots or without such runs are left out.
    pub async fn queue_heads(&self, free: &[(ComputeName, u32)], now_us: i64) -> Result<Vec<(ComputeName, Vec<QueuedRun>)>> {
        let mut conn = self.reader().await?;
        let mut heads = Vec::new();
        for (target, slots) in free.iter().filter(|(_, slots)| *slots > 0) {
            let sql = Sql::new(
                "select workspace, id, priority, created_us, not_before_us from runs where state = 'Queued' and target = $1 \
                 and (not_before_us is null or not_before_us <= $3) order by priority desc, created_us, id, workspace limit $2",
            );
            let rows = conn.fetch_all(sql.bind(target.as_str()).bind(i64::from(*slots)).bind(now_us)).await?;
            let queue = rows.iter().map(queued).collect::<Result<Vec<_>>>()?;
            if !queue.is_empty() {
                heads.push((target.clone(), queue));
            }
        }
        Ok(heads)
    }

    /// How many runs are in execution (`Starting` to `Finalizing`) on each target that has some.
    pub async fn busy_slots(&self) -> Result<BTreeMap<ComputeName, u32>> {
        let sql = Sql::new(
            "select target, count(*) from runs where state in ('Starting', 'Preparing', 'Running', 'Finalizing') \
             and ownership = 'Managed' and target is not null group by target",
        );
        let rows = self.reader().await?.fetch_all(sql).await?;
        rows.iter()
            .map(|row| {
                let mut row = row.columns();
                Ok((row.parse()?, count(row.int()?)))
            })
            .collect()
    }

    /// How many runs wait for each target that has some.
    pub async fn queued_counts(&self) -> Result<BTreeMap<ComputeName, u64>> {
        let sql = Sql::new("select target, count(*) from runs where state = 'Queued' and target is not null group by target");
        let rows = self.reader().await?.fetch_all(sql).await?;
        rows.iter()
            .map(|row| {
                let mut row = row.columns();
                Ok((row.parse()?, u64::from(count(row.int()?))))
            })
            .collect()
    }

    /// How many waiting runs are ahead of `run` in its target's queue, counted up to `limit`.
    pub async fn runs_ahead(&self, run: &RunRecord, limit: u32) -> Result<u32> {
        let Some(target) = &run.target else { return Ok(0) };
        let sql = Sql::new(
            "select count(*) from (select 1 from runs where state = 'Queued' and target = $1 and (priority > $2 or \
             (priority = $2 and (created_us, id, workspace) < ($3, $4, $5))) limit $6) ahead",
        )
        .bind(target.as_str())
        .bind(run.priority)
        .bind(run.created_us)
        .bind(run.id.as_str())
        .bind(run.workspace.to_string())
        .bind(i64::from(limit));
        let row = self.reader().await?.fetch_optional(sql).await?;
        row.ok_or_else(|| Error::internal("a count gave no row"))?.columns().int().map(count)
    }

    /// How many runs of a workspace (or of one experiment) are in each state that occurs.
    pub async fn run_counts(&self, workspace: WorkspaceId, experiment: Option<ExperimentId>) -> Result<Vec<(RunState, i64)>> {
        let mut sql = Sql::new("select state, count(*) from runs where workspace = $1").bind(workspace.to_string());
        if let Some(experiment) = experiment {
            sql.push(" and experiment = ").push_value(experiment.to_string());
        }
        sql.push(" group by state order by state");
        let rows = self.reader().await?.fetch_all(sql).await?;
        rows.iter()
            .map(|row| {
                let mut row = row.columns();
                Ok((run_row::state(&mut row)?, row.int()?))
            })
            .collect()
    }

    /// Every run that this server executes now, with its live attempt: what the reconciler works through.
    pub async fn runs_in_execution(&self) -> Result<Vec<LiveRun>> {
        let sql = Sql::new(
            "select r.workspace, r.id, r.state, r.desired, r.silent, r.retries, r.cancelled_by, r.cancel_reason, r.version, d.definition, \
             a.id, a.workspace, a.run, a.number, a.target, a.state, a.intended_us, a.started_us, a.ended_us, a.cause, a.node \
             from runs r join attempts a on a.id = r.attempt \
             left join run_documents d on d.workspace = r.workspace and d.run = r.id \
             where r.state in ('Starting', 'Preparing', 'Running', 'Finalizing') order by a.intended_us, a.id",
        );
        self.reader().await?.fetch_all(sql).await?.iter().map(live).collect()
    }
}

fn queued(row: &Row) -> Result<QueuedRun> {
    let mut row = row.columns();
    Ok(QueuedRun {
        workspace: row.parse()?,
        run: row.parse()?,
        priority: row.int()?,
        created_us: row.int()?,
        not_before_us: row.opt_int()?,
    })
}

fn live(row: &Row) -> Result<LiveRun> {
    let mut row = row.columns();
    Ok(LiveRun {
        workspace: row.parse()?,
        run: row.parse()?,
        state: run_row::state(&mut row)?,
        desired: run_row::desired(&mut row)?,
        silent: row.flag()?,
        retries: row.opt_json()?.unwrap_or_default(),
        cancelled_by: row.opt_text()?,
        cancel_reason: row.opt_text()?,
        version: row.int()?,
        definition: row.opt_json()?,
        attempt: attempts::decode(&mut row)?,
    })
}

fn count(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
