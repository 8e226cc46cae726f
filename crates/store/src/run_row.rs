//! A run as a row: the column list, and the way there and back.

use trainyard_core::{
    Error, Result,
    ids::{Digest, EnvironmentHash, RunId, WorkspaceId},
    run::{Desired, Ownership, RunState},
};

use crate::{
    db::{
        Columns, Conn, Row, Sql, Value,
        json::{self, encode_object, encode_texts, encode_value},
    },
    runs::RunRecord,
    store::Store,
};

/// The columns of a [`RunRecord`], in the order of [`decode`].
macro_rules! run_columns {
    () => {
        "select r.workspace, r.id, r.uuid, r.number, r.experiment, e.name, r.parent, r.root, r.ownership, r.state, r.desired, \
         r.version, r.attempt, r.cause, r.created_us, r.started_us, r.ended_us, r.priority, r.target, r.name, r.display_name, \
         r.description, r.run_type, r.script_name, r.cancel_reason, r.hidden, r.created_by, r.properties, r.tags, r.extra, \
         r.warnings, r.error, r.snapshot, r.environment, r.request_digest, r.silent, r.retries, r.not_before_us, r.cancelled_by, \
         d.definition, d.document"
    };
}
pub(crate) use run_columns;

/// What [`run_columns`] needs beside `runs r`.
macro_rules! run_joins {
    () => {
        " join experiments e on e.workspace = r.workspace and e.id = r.experiment \
         left join run_documents d on d.workspace = r.workspace and d.run = r.id"
    };
}
pub(crate) use run_joins;

/// Reads one whole [`RunRecord`].
const SELECT_ONE: &str = concat!(run_columns!(), " from runs r", run_joins!(), " where r.workspace = $1 and r.id = $2");

/// Writes what [`encode`] gives. What a new run never has (silence, retries, a cancel) is left to the defaults of the columns.
pub(crate) const INSERT: &str = "insert into runs (workspace, id, uuid, number, experiment, parent, root, ownership, state, desired, version, \
     attempt, cause, created_us, started_us, ended_us, priority, target, name, display_name, description, run_type, script_name, \
     cancel_reason, hidden, created_by, properties, tags, extra, warnings, error, snapshot, environment, request_digest, slots) values ";

impl Store {
    /// A run with everything that is known of it.
    pub async fn run(&self, workspace: WorkspaceId, id: &RunId) -> Result<Option<RunRecord>> {
        read(&mut self.reader().await?, workspace, id).await
    }
}

/// Reads a run.
pub(crate) async fn read(conn: &mut Conn, workspace: WorkspaceId, id: &RunId) -> Result<Option<RunRecord>> {
    read_by(conn, Sql::new(SELECT_ONE).bind(workspace.to_string()).bind(id.as_str())).await
}

/// Reads a run that is written back later in the same transaction. NotFound when there is none.
pub(crate) async fn read_for_update(conn: &mut Conn, workspace: WorkspaceId, id: &RunId) -> Result<RunRecord> {
    let mut sql = Sql::new(SELECT_ONE).bind(workspace.to_string()).bind(id.as_str());
    sql.push(conn.dialect().for_update());
    read_by(conn, sql).await?.ok_or_else(|| no_run(id))
}

async fn read_by(conn: &mut Conn, sql: Sql) -> Result<Option<RunRecord>> {
    conn.fetch_optional(sql).await?.as_ref().map(decode).transpose()
}

/// The failure for a run that does not exist.
pub(crate) fn no_run(id: &RunId) -> Error {
    Error::not_found(format!("run `{id}` was not found in this workspace"))
}

/// A row of [`run_columns`].
pub(crate) fn decode(row: &Row) -> Result<RunRecord> {
    let mut row = row.columns();
    Ok(RunRecord {
        workspace: row.parse()?,
        id: row.parse()?,
        uuid: row.uuid()?,
        number: row.int()?,
        experiment: row.parse()?,
        experiment_name: row.parse()?,
        parent: row.opt_parse()?,
        root: row.parse()?,
        ownership: ownership(&mut row)?,
        state: state(&mut row)?,
        desired: desired(&mut row)?,
        version: row.int()?,
        attempt: row.opt_parse()?,
        cause: row.opt_json()?,
        created_us: row.int()?,
        started_us: row.opt_int()?,
        ended_us: row.opt_int()?,
        priority: row.int()?,
        target: row.opt_text()?,
        name: row.opt_text()?,
        display_name: row.opt_text()?,
        description: row.opt_text()?,
        run_type: row.opt_text()?,
        script_name: row.opt_text()?,
        cancel_reason: row.opt_text()?,
        hidden: row.flag()?,
        created_by: row.json()?,
        properties: row.json()?,
        tags: row.json()?,
        extra: row.json()?,
        warnings: row.json()?,
        error: row.opt_json()?,
        snapshot: row.opt_uuid()?,
        environment: row.opt_parse()?,
        request_digest: row.opt_parse()?,
        silent: row.flag()?,
        retries: row.opt_json()?.unwrap_or_default(),
        not_before_us: row.opt_int()?,
        cancelled_by: row.opt_text()?,
        definition: row.opt_json()?,
        document: row.opt_json()?,
    })
}

/// The row of a new run, with its number.
pub(crate) fn encode(record: &RunRecord, number: i64, slots: u32) -> Result<Vec<Value>> {
    Ok(vec![
        record.workspace.to_string().into(),
        record.id.as_str().into(),
        record.uuid.to_string().into(),
        number.into(),
        record.experiment.to_string().into(),
        record.parent.as_ref().map(RunId::as_str).into(),
        record.root.as_str().into(),
        ownership_text(record.ownership).into(),
        record.state.as_str().into(),
        desired_text(record.desired).into(),
        record.version.into(),
        record.attempt.map(|attempt| attempt.to_string()).into(),
        record.cause.as_ref().map(json::encode).transpose()?.into(),
        record.created_us.into(),
        record.started_us.into(),
        record.ended_us.into(),
        record.priority.into(),
        record.target.as_deref().into(),
        record.name.as_deref().into(),
        record.display_name.as_deref().into(),
        record.description.as_deref().into(),
        record.run_type.as_deref().into(),
        record.script_name.as_deref().into(),
        record.cancel_reason.as_deref().into(),
        record.hidden.into(),
        encode_value(&record.created_by, "createdBy")?.into(),
        encode_texts(&record.properties, "properties")?.into(),
        encode_texts(&record.tags, "tags")?.into(),
        encode_object(&record.extra, "the run's other fields")?.into(),
        json::encode(&record.warnings)?.into(),
        record.error.as_ref().map(json::encode).transpose()?.into(),
        record.snapshot.map(|id| id.to_string()).into(),
        record.environment.as_ref().map(EnvironmentHash::as_str).into(),
        record.request_digest.as_ref().map(Digest::as_str).into(),
        i64::from(slots).into(),
    ])
}

/// `runs.state`
pub(crate) fn state(row: &mut Columns<'_>) -> Result<RunState> {
    let text = row.text()?;
    RunState::parse(&text).ok_or_else(|| Error::internal(format!("a run has the unknown state `{text}`")))
}

/// `runs.desired`
pub(crate) fn desired(row: &mut Columns<'_>) -> Result<Desired> {
    match row.text()?.as_str() {
        "Run" => Ok(Desired::Run),
        "Cancel" => Ok(Desired::Cancel),
        other => Err(Error::internal(format!("a run has the unknown wish `{other}`"))),
    }
}

/// `runs.desired` as stored.
pub(crate) fn desired_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Run => "Run",
        Desired::Cancel => "Cancel",
    }
}

fn ownership(row: &mut Columns<'_>) -> Result<Ownership> {
    match row.text()?.as_str() {
        "Managed" => Ok(Ownership::Managed),
        "External" => Ok(Ownership::External),
        other => Err(Error::internal(format!("a run has the unknown ownership `{other}`"))),
    }
}

fn ownership_text(ownership: Ownership) -> &'static str {
    match ownership {
        Ownership::Managed => "Managed",
        Ownership::External => "External",
    }
}
