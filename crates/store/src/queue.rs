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
    db::{Columns, Row, Sql},
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

/// The slots of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSlots {
    /// How many are free: no more runs than that are read of each share.
    pub free: u32,
    /// How many there are.
    pub all: u32,
}

impl Store {
    /// For each target with its number of free slots and of all its slots: of every share the waiting runs that could get some at `now_us`, in the
    /// order of the share. Targets without free slots or without such runs are left out, and so are runs that take more than there are.
    ///
    /// Costs a few index lookups and rows for every share that waits, whatever the length of its queue.
    pub async fn queue_heads(&self, free: &[(ComputeName, FreeSlots)], now_us: i64) -> Result<Vec<(ComputeName, Vec<QueuedRun>)>> {
        let mut conn = self.reader().await?;
        let mut heads = Vec::new();
        for (target, slots) in free.iter().filter(|(_, slots)| slots.free > 0) {
            let sql = Sql::new(HEADS).bind(target.as_str()).bind(now_us).bind(i64::from(slots.all)).bind(i64::from(slots.free));
            let queue = conn.fetch_all(sql).await?.iter().map(queued).collect::<Result<Vec<_>>>()?;
            if !queue.is_empty() {
                heads.push((target.clone(), queue));
            }
        }
        Ok(heads)
    }

    /// How many slots the runs in execution (`Starting` to `Finalizing`) take on each target, by whose they are.
    pub async fn busy_shares(&self) -> Result<BTreeMap<ComputeName, BTreeMap<Share, u32>>> {
        let sql = Sql::new(
            "select target, created_by, workspace, experiment, cast(sum(slots) as bigint) from runs \
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

    /// How many slots the runs in execution (`Starting` to `Finalizing`) take on each target that has some.
    pub async fn busy_slots(&self) -> Result<BTreeMap<ComputeName, u32>> {
        let sql = Sql::new(
            "select target, cast(sum(slots) as bigint) from runs where state in ('Starting', 'Preparing', 'Running', 'Finalizing') \
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

    /// How many runs are in execution (`Starting` to `Finalizing`) on targets.
    pub async fn executing_count(&self) -> Result<u64> {
        let sql = Sql::new(
            "select count(*) from runs where state in ('Starting', 'Preparing', 'Running', 'Finalizing') \
             and ownership = 'Managed' and target is not null",
        );
        let row = self.reader().await?.fetch_optional(sql).await?;
        row.ok_or_else(|| Error::internal("a count gave no row"))?.columns().int().map(|number| u64::from(count(number)))
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
             (priority = $2 and (created_us, id, workspace) < ($3, $4, $5))) limit ($6 + 0)) ahead",
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

/// For every share that waits, its first runs. One statement, because a question for each share costs more than its answer. From one share to the next
/// there are three ways (another experiment, another workspace, another user), each a range of one index: a comparison of all three columns at once
/// would read every run of the user.
const HEADS: &str = "with recursive shares (created_by, workspace, experiment) as ( \
       select * from (select created_by, workspace, experiment from runs where state = 'Queued' and target = $1 \
         order by created_by, workspace, experiment limit 1) first_share \
       union all \
       select n.created_by, n.workspace, n.experiment from shares s join runs n on (n.workspace, n.id) = ( \
         select x.workspace, x.id from ( \
           select * from (select 1 as way, m.workspace, m.id from runs m where m.state = 'Queued' and m.target = $1 \
             and m.created_by = s.created_by and m.workspace = s.workspace and m.experiment > s.experiment \
             order by m.experiment, m.priority desc, m.created_us, m.id limit 1) a \
           union all \
           select * from (select 2 as way, m.workspace, m.id from runs m where m.state = 'Queued' and m.target = $1 \
             and m.created_by = s.created_by and m.workspace > s.workspace \
             order by m.workspace, m.experiment, m.priority desc, m.created_us, m.id limit 1) b \
           union all \
           select * from (select 3 as way, m.workspace, m.id from runs m where m.state = 'Queued' and m.target = $1 \
             and m.created_by > s.created_by \
             order by m.created_by, m.workspace, m.experiment, m.priority desc, m.created_us, m.id limit 1) c \
         ) x order by x.way limit 1)) \
     select r.created_by, r.workspace, r.experiment, r.id, r.priority, r.created_us, r.not_before_us, r.slots \
     from shares s join runs r on r.workspace = s.workspace and r.id in ( \
       select q.id from runs q where q.state = 'Queued' and q.target = $1 \
         and q.created_by = s.created_by and q.workspace = s.workspace and q.experiment = s.experiment \
         and (q.not_before_us is null or q.not_before_us <= $2) and q.slots <= $3 \
         order by q.priority desc, q.created_us, q.id limit ($4 + 0)) \
     order by r.created_by, r.workspace, r.experiment, r.priority desc, r.created_us, r.id";

fn queued(row: &Row) -> Result<QueuedRun> {
    let mut row = row.columns();
    Ok(QueuedRun {
        share: share(&mut row)?,
        run: row.parse()?,
        priority: row.int()?,
        created_us: row.int()?,
        not_before_us: row.opt_int()?,
        slots: count(row.int()?),
    })
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
