//! What the planner and the reconciler ask: who waits, who executes, how many.

use std::collections::BTreeMap;

use trainyard_core::{
    Error, Result,
    definition::Definition,
    ids::{ComputeName, ExperimentId, RunId, WorkspaceId},
    plan::{QueuedRun, Share},
    run::{Desired, Retries, RunState},
};

use crate::{
    attempts::{self, Attempt},
    db::{Columns, Conn, Row, Sql},
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
    /// For each target with its number of free slots: of every share the waiting runs that could get one at `now_us`, in the order of the
    /// share. Targets without free slots or without such runs are left out.
    ///
    /// Costs two index lookups and a few rows for every share that waits, whatever the length of its queue.
    pub async fn queue_heads(&self, free: &[(ComputeName, u32)], now_us: i64) -> Result<Vec<(ComputeName, Vec<QueuedRun>)>> {
        let mut conn = self.reader().await?;
        let mut heads = Vec::new();
        for (target, slots) in free.iter().filter(|(_, slots)| *slots > 0) {
            let mut queue = Vec::new();
            let mut share = next_share(&mut conn, target, None).await?;
            while let Some(this) = share {
                queue.extend(head_of_share(&mut conn, (target, &this), *slots, now_us).await?);
                share = next_share(&mut conn, target, Some(&this)).await?;
            }
            if !queue.is_empty() {
                heads.push((target.clone(), queue));
            }
        }
        Ok(heads)
    }

    /// How many runs are in execution (`Starting` to `Finalizing`) on each target, by whose they are.
    pub async fn busy_shares(&self) -> Result<BTreeMap<ComputeName, BTreeMap<Share, u32>>> {
        let sql = Sql::new(
            "select target, created_by, workspace, experiment, count(*) from runs \
             where state in ('Starting', 'Preparing', 'Running', 'Finalizing') \
             and ownership = 'Managed' and target is not null group by target, created_by, workspace, experiment",
        );
        let mut busy: BTreeMap<ComputeName, BTreeMap<Share, u32>> = BTreeMap::new();
        for row in &self.reader().await?.fetch_all(sql).await? {
            let mut row = row.columns();
            let target = row.parse()?;
            let share = share(&mut row)?;
            busy.entry(target).or_default().insert(share, count(row.int()?));
        }
        Ok(busy)
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

/// The share after `after` (or the first one) that has a run waiting for `target`.
async fn next_share(conn: &mut Conn, target: &ComputeName, after: Option<&Share>) -> Result<Option<Share>> {
    let mut sql =
        Sql::new("select created_by, workspace, experiment from runs where state = 'Queued' and target = $1").bind(target.as_str());
    if let Some(after) = after {
        sql.push(" and (created_by, workspace, experiment) > (");
        sql.push_value(after.user.as_str()).push(", ").push_value(after.workspace.to_string());
        sql.push(", ").push_value(after.experiment.to_string()).push(")");
    }
    sql.push(" order by created_by, workspace, experiment limit 1");
    conn.fetch_optional(sql).await?.map(|row| share(&mut row.columns())).transpose()
}

/// The first `limit` runs of a share that may be admitted at `now_us`.
async fn head_of_share(conn: &mut Conn, (target, share): (&ComputeName, &Share), limit: u32, now_us: i64) -> Result<Vec<QueuedRun>> {
    let sql = Sql::new(
        "select id, priority, created_us, not_before_us from runs where state = 'Queued' and target = $1 \
         and created_by = $2 and workspace = $3 and experiment = $4 and (not_before_us is null or not_before_us <= $5) \
         order by priority desc, created_us, id limit $6",
    )
    .bind(target.as_str())
    .bind(share.user.as_str())
    .bind(share.workspace.to_string())
    .bind(share.experiment.to_string())
    .bind(now_us)
    .bind(i64::from(limit));
    let rows = conn.fetch_all(sql).await?;
    let queued = |row: &Row| {
        let mut row = row.columns();
        let (run, priority) = (row.parse()?, row.int()?);
        Ok(QueuedRun { share: share.clone(), run, priority, created_us: row.int()?, not_before_us: row.opt_int()? })
    };
    rows.iter().map(queued).collect()
}

fn share(row: &mut Columns<'_>) -> Result<Share> {
    Ok(Share { user: row.text()?, workspace: row.parse()?, experiment: row.parse()? })
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
