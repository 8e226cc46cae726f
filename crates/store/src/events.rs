//! The append-only timeline of a run (azureml-wire C.6).

use serde_json::Value;
use trainyard_core::{
    Result,
    ids::{RunId, WorkspaceId},
    run::TimelineEntry,
};

use crate::{
    db::{Conn, Row, Sql, json::encode_value},
    run_row::no_run,
    store::Store,
    writer::Lane,
};

/// An entry of a run's timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its place in the timeline, from 1, without gaps.
    pub seq: i64,
    /// When, microseconds since the epoch.
    pub at_us: i64,
    /// E.g. `Microsoft.MachineLearning.Run.Start`.
    pub name: String,
    /// PascalCase keys, as in azureml-wire C.6.
    pub data: Value,
}

impl Store {
    /// At most `limit` events of a run after `after_seq` (0: from the first), in order. None for a run that does not exist.
    pub async fn events(&self, workspace: WorkspaceId, run: &RunId, after_seq: i64, limit: u32) -> Result<Vec<Event>> {
        let sql = Sql::new(
            "select seq, at_us, name, data from events where workspace = $1 and run = $2 and seq > $3 order by seq limit ($4 + 0)",
        )
        .bind(workspace.to_string())
        .bind(run.as_str())
        .bind(after_seq)
        .bind(i64::from(limit));
        self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect()
    }

    /// Appends to a run's timeline. NotFound.
    pub async fn append_event(&self, workspace: WorkspaceId, run: &RunId, entry: &TimelineEntry, at_us: i64) -> Result<()> {
        let (id, entry) = (run.clone(), entry.clone());
        self.writer().write(Lane::Run(run), move |conn| Box::pin(async move { append(conn, (workspace, &id), &entry, at_us).await })).await
    }
}

/// Appends within the present transaction. The run's row is locked by it (SQLite: everything is), so that numbers have no gaps.
pub(crate) async fn append(conn: &mut Conn, run: (WorkspaceId, &RunId), entry: &TimelineEntry, at_us: i64) -> Result<()> {
    let (workspace, id) = run;
    let mut lock = Sql::new("select 1 from runs r where r.workspace = $1 and r.id = $2").bind(workspace.to_string()).bind(id.as_str());
    lock.push(conn.dialect().for_update());
    conn.fetch_optional(lock).await?.ok_or_else(|| no_run(id))?;
    let sql = Sql::new(
        "insert into events (workspace, run, seq, at_us, name, data) \
         select $1, $2, coalesce(max(seq), 0) + 1, $3, $4, $5 from events where workspace = $1 and run = $2",
    )
    .bind(workspace.to_string())
    .bind(id.as_str())
    .bind(at_us)
    .bind(entry.name.as_str())
    .bind(encode_value(&entry.data, "data")?);
    conn.execute(sql).await.map(|_| ())
}

fn decode(row: &Row) -> Result<Event> {
    let mut row = row.columns();
    Ok(Event { seq: row.int()?, at_us: row.int()?, name: row.text()?, data: row.json()? })
}
