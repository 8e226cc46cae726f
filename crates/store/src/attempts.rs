//! Attempts: one row for each try at executing a run, written before anything is started.
//!
//! Rows are opened, ended and closed only by [`crate::transitions`]; here they are read, and told their node.

use trainyard_core::{
    Error, Result,
    ids::{AttemptId, ComputeName, RunId, WorkspaceId},
    run::Cause,
};

use crate::{
    db::{Columns, Conn, Row, Sql, json::encode},
    runs::RunRecord,
    store::Store,
    writer::Lane,
};

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptState {
    /// Stored; the outside world may or may not have begun with it.
    Intended,
    /// Its end and cause are known; logs and outputs are being collected.
    Ended,
    /// Nothing of it is left to do.
    Closed,
}

/// One try at executing a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its id, which names the process or job outside.
    pub id: AttemptId,
    /// The workspace of the run.
    pub workspace: WorkspaceId,
    /// The run.
    pub run: RunId,
    /// 1 for the first try.
    pub number: i64,
    /// Where it runs.
    pub target: ComputeName,
    /// Where it is.
    pub state: AttemptState,
    /// When it was stored, microseconds since the epoch.
    pub intended_us: i64,
    /// When the user's code started.
    pub started_us: Option<i64>,
    /// When its end became known.
    pub ended_us: Option<i64>,
    /// What ended it.
    pub cause: Option<Cause>,
    /// The machine it runs on, once known.
    pub node: Option<String>,
}

impl AttemptState {
    /// The name, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "Intended",
            Self::Ended => "Ended",
            Self::Closed => "Closed",
        }
    }
}

macro_rules! select {
    () => {
        "select a.id, a.workspace, a.run, a.number, a.target, a.state, a.intended_us, a.started_us, a.ended_us, a.cause, a.node from attempts a"
    };
}

impl Store {
    /// The attempts of a run, first to last.
    pub async fn attempts(&self, workspace: WorkspaceId, run: &RunId) -> Result<Vec<Attempt>> {
        let sql = Sql::new(concat!(select!(), " where a.workspace = $1 and a.run = $2 order by a.number"));
        let sql = sql.bind(workspace.to_string()).bind(run.as_str());
        self.reader().await?.fetch_all(sql).await?.iter().map(|row| decode(&mut row.columns())).collect()
    }

    /// One attempt.
    pub async fn attempt(&self, id: AttemptId) -> Result<Option<Attempt>> {
        let sql = Sql::new(concat!(select!(), " where a.id = $1")).bind(id.to_string());
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(|row: &Row| decode(&mut row.columns())).transpose()
    }

    /// Notes the machine that an attempt runs on. NotFound.
    pub async fn set_attempt_node(&self, id: AttemptId, node: &str) -> Result<()> {
        let sql = Sql::new("update attempts set node = $2 where id = $1").bind(id.to_string()).bind(node);
        let changed = self.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await?;
        if changed == 1 { Ok(()) } else { Err(Error::not_found(format!("attempt {id} was not found"))) }
    }
}

/// Writes the row of a new attempt at `record`, which has it as its live attempt already.
pub(crate) async fn open(conn: &mut Conn, record: &RunRecord, attempt: AttemptId, at_us: i64) -> Result<()> {
    let target = record.target.as_deref().ok_or_else(|| Error::internal(format!("run {} was admitted without a target", record.id)))?;
    let sql = Sql::new(
        "insert into attempts (id, workspace, run, number, target, state, intended_us) \
         select $3, $1, $2, coalesce(max(number), 0) + 1, $4, 'Intended', $5 from attempts where workspace = $1 and run = $2",
    )
    .bind(record.workspace.to_string())
    .bind(record.id.as_str())
    .bind(attempt.to_string())
    .bind(target)
    .bind(at_us);
    conn.execute(sql).await.map(|_| ())
}

/// Notes the start of the user's code.
pub(crate) async fn start(conn: &mut Conn, attempt: AttemptId, at_us: i64) -> Result<()> {
    let sql = Sql::new("update attempts set started_us = $2 where id = $1 and started_us is null");
    conn.execute(sql.bind(attempt.to_string()).bind(at_us)).await.map(|_| ())
}

/// Notes the end and cause of an attempt.
pub(crate) async fn end(conn: &mut Conn, attempt: AttemptId, cause: Option<&Cause>, at_us: i64) -> Result<()> {
    let sql = Sql::new("update attempts set state = 'Ended', ended_us = $2, cause = $3 where id = $1 and state = 'Intended'")
        .bind(attempt.to_string())
        .bind(at_us)
        .bind(cause.map(encode).transpose()?);
    conn.execute(sql).await.map(|_| ())
}

/// Closes every attempt of a run.
pub(crate) async fn close_all(conn: &mut Conn, record: &RunRecord, at_us: i64) -> Result<()> {
    let sql = Sql::new(
        "update attempts set state = 'Closed', ended_us = coalesce(ended_us, $3) where workspace = $1 and run = $2 and state <> 'Closed'",
    );
    conn.execute(sql.bind(record.workspace.to_string()).bind(record.id.as_str()).bind(at_us)).await.map(|_| ())
}

/// Reads the columns of an attempt, in the order of `select a.…` above.
pub(crate) fn decode(row: &mut Columns<'_>) -> Result<Attempt> {
    Ok(Attempt {
        id: row.parse()?,
        workspace: row.parse()?,
        run: row.parse()?,
        number: row.int()?,
        target: row.parse()?,
        state: match row.text()?.as_str() {
            "Intended" => AttemptState::Intended,
            "Ended" => AttemptState::Ended,
            "Closed" => AttemptState::Closed,
            other => return Err(Error::internal(format!("an attempt has the unknown state `{other}`"))),
        },
        intended_us: row.int()?,
        started_us: row.opt_int()?,
        ended_us: row.opt_int()?,
        cause: row.opt_json()?,
        node: row.opt_text()?,
    })
}
