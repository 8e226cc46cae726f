//! What is asked about a compute target: whose runs it has, and which of a workspace's.

use std::collections::BTreeMap;

use trainyard_core::{
    Error, Result,
    ids::{AttemptId, ComputeName, RunId, WorkspaceId},
    run::{Cause, RunState},
};

use crate::{
    db::{Row, Sql},
    run_row,
    store::Store,
};

/// A run that has slots of a target, or waits for some.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedRun {
    /// Its id.
    pub run: RunId,
    /// The name of its experiment.
    pub experiment: String,
    /// Who submitted it.
    pub user: String,
    /// Higher goes first.
    pub priority: i64,
    /// How many slots it takes.
    pub slots: u32,
    /// Where it is.
    pub state: RunState,
    /// When it was accepted, microseconds since the epoch.
    pub created_us: i64,
    /// Not admitted before this, microseconds since the epoch.
    pub not_before_us: Option<i64>,
    /// What ended the attempt before.
    pub cause: Option<Cause>,
    /// Its live attempt.
    pub attempt: Option<AttemptId>,
    /// Where that runs.
    pub node: Option<String>,
}

const COLUMNS: &str = "select r.id, e.name, r.created_by, r.priority, r.slots, r.state, r.created_us, r.not_before_us, r.cause, r.attempt, a.node \
     from runs r join experiments e on e.workspace = r.workspace and e.id = r.experiment left join attempts a on a.id = r.attempt ";

impl Store {
    /// How many runs of every user wait for `target`, by workspace and user. Costs the length of the queue in one index.
    pub async fn waiting_shares(&self, target: &ComputeName) -> Result<BTreeMap<(WorkspaceId, String), u64>> {
        let sql = Sql::new(
            "select workspace, created_by, count(*) from runs where state = 'Queued' and target = $1 group by created_by, workspace",
        )
        .bind(target.as_str());
        let rows = self.reader().await?.fetch_all(sql).await?;
        let share = |row: &Row| {
            let mut row = row.columns();
            let key = (row.parse()?, row.text()?);
            Ok((key, u64::try_from(row.int()?).map_err(Error::internal)?))
        };
        rows.iter().map(share).collect()
    }

    /// The runs of a workspace that have slots of `target`, the oldest first, at most `limit`.
    pub async fn placed_runs(&self, workspace: WorkspaceId, target: &ComputeName, limit: u32) -> Result<Vec<PlacedRun>> {
        let mut sql = Sql::new(COLUMNS);
        sql.push("where r.target = ").push_value(target.as_str()).push(" and r.workspace = ").push_value(workspace.to_string());
        sql.push(" and r.ownership = 'Managed' and r.state in ('Starting', 'Preparing', 'Running', 'Finalizing')");
        sql.push(" order by r.created_us, r.id").push_limit(i64::from(limit));
        self.reader().await?.fetch_all(sql).await?.iter().map(placed).collect()
    }

    /// The runs of a workspace that wait for `target`: higher priorities first, then older ones, at most `limit`.
    pub async fn waiting_runs(&self, workspace: WorkspaceId, target: &ComputeName, limit: u32) -> Result<Vec<PlacedRun>> {
        let mut sql = Sql::new(COLUMNS);
        sql.push("where r.target = ").push_value(target.as_str()).push(" and r.workspace = ").push_value(workspace.to_string());
        sql.push(" and r.state = 'Queued' order by r.priority desc, r.created_us, r.id").push_limit(i64::from(limit));
        self.reader().await?.fetch_all(sql).await?.iter().map(placed).collect()
    }
}

fn placed(row: &Row) -> Result<PlacedRun> {
    let mut row = row.columns();
    Ok(PlacedRun {
        run: row.parse()?,
        experiment: row.text()?,
        user: row.text()?,
        priority: row.int()?,
        slots: u32::try_from(row.int()?).unwrap_or(u32::MAX),
        state: run_row::state(&mut row)?,
        created_us: row.int()?,
        not_before_us: row.opt_int()?,
        cause: row.opt_json()?,
        attempt: row.opt_text()?.map(|id| id.parse().map(AttemptId)).transpose().map_err(Error::internal)?,
        node: row.opt_text()?,
    })
}
