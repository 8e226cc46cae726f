//! Creating runs: the hot path.
//!
//! All new runs of a transaction are written together: one counter update per experiment, then rows in statements of up to 32.
//! When an id turns out to be taken, or anything else is wrong with one of them, the transaction begins again and does them
//! one by one, each in its own savepoint. Numbers are taken from the experiment's counter in the same transaction, so that an
//! experiment's runs are numbered without gaps.

use std::collections::{BTreeMap, HashSet};

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{ExperimentId, RunId, WorkspaceId},
};

use crate::{
    db::{
        Conn, Sql, Value,
        json::{encode, encode_value},
    },
    run_row,
    runs::{Created, NewRun},
    store::Store,
};

/// Rows in one insert. Few sizes, so that few statements are ever prepared, and close enough that any lot takes two or three:
/// on PostgreSQL each is a journey. No larger ones: SQLite finds a value's place by going through all of them.
const ROWS: [usize; 10] = [32, 24, 16, 12, 8, 6, 4, 3, 2, 1];

impl Store {
    /// Stores a run with its first event, its snapshot and its experiment's counters, in one transaction shared with other
    /// callers. Durable when it returns.
    ///
    /// NotFound when the experiment does not exist. An id that is taken is no error: see [`Created::Existing`].
    pub async fn create_run(&self, run: NewRun) -> Result<Created> {
        self.writer().create(run).await
    }
}

/// Stores `runs` within the present transaction, in which nothing else was written. The outer error means that the transaction is lost.
pub(crate) async fn create_all(conn: &mut Conn, runs: &[&NewRun]) -> Result<Vec<Result<Created>>> {
    let mut ids = HashSet::new();
    let mut distinct = Vec::with_capacity(runs.len());
    let mut repeated = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let first = ids.insert((run.record.workspace, &run.record.id));
        if first { distinct.push(index) } else { repeated.push(index) }
    }
    let mut results: Vec<Option<Result<Created>>> = runs.iter().map(|_| None).collect();
    if distinct.len() > 1 {
        let lot: Vec<&NewRun> = distinct.iter().map(|index| runs[*index]).collect();
        if let Ok(Some(numbers)) = insert(conn, &lot).await {
            for (index, number) in distinct.drain(..).zip(numbers) {
                results[index] = Some(Ok(Created::New(number)));
            }
        } else {
            // Nothing else was written yet, so the transaction is the savepoint: two statements less where nothing is wrong.
            conn.execute(Sql::new("rollback")).await?;
            conn.execute(Sql::new(conn.dialect().begin_write())).await?;
        }
    }
    for index in distinct.into_iter().chain(repeated) {
        results[index] = Some(create_one(conn, runs[index]).await?);
    }
    Ok(results.into_iter().map(|result| result.expect("every index is in one of the two lists")).collect())
}

async fn create_one(conn: &mut Conn, run: &NewRun) -> Result<Result<Created>> {
    match insert_guarded(conn, &[run]).await? {
        Ok(Some(numbers)) => {
            Ok(numbers.first().map(|number| Created::New(*number)).ok_or_else(|| Error::internal("a run was stored without a number")))
        }
        Ok(None) => {
            let existing = run_row::read(conn, run.record.workspace, &run.record.id).await?;
            Ok(existing
                .map(|record| Created::Existing(Box::new(record)))
                .ok_or_else(|| Error::new(ErrorKind::Conflict, format!("run `{}` was removed while it was created again", run.record.id))))
        }
        Err(error) => Ok(Err(error)),
    }
}

/// Inserts in a savepoint, and undoes it when an id is taken (`None`) or something failed (inner error).
async fn insert_guarded(conn: &mut Conn, runs: &[&NewRun]) -> Result<Result<Option<Vec<i64>>>> {
    conn.execute(Sql::new("savepoint runs_created")).await?;
    let inserted = insert(conn, runs).await;
    if !matches!(inserted, Ok(Some(_))) {
        conn.execute(Sql::new("rollback to savepoint runs_created")).await?;
    }
    conn.execute(Sql::new("release savepoint runs_created")).await?;
    Ok(inserted)
}

/// Inserts distinct runs; their numbers, or `None` when an id is taken.
async fn insert(conn: &mut Conn, runs: &[&NewRun]) -> Result<Option<Vec<i64>>> {
    let numbers = number(conn, runs).await?;
    let mut rows = Vec::with_capacity(runs.len());
    for (run, number) in runs.iter().zip(&numbers) {
        rows.push(run_row::encode(&run.record, *number, run.slots)?);
    }
    let inserted = insert_rows(conn, run_row::INSERT, " on conflict (workspace, id) do nothing", rows).await?;
    if inserted < runs.len() as u64 {
        return Ok(None);
    }
    let documents = runs.iter().filter_map(|run| documents(run).transpose()).collect::<Result<Vec<_>>>()?;
    insert_rows(conn, "insert into run_documents (workspace, run, definition, document) values ", "", documents).await?;
    let events = runs.iter().map(|run| first_event(run)).collect::<Result<Vec<_>>>()?;
    insert_rows(conn, "insert into events (workspace, run, seq, at_us, name, data) values ", "", events).await?;
    let snapshots = runs.iter().filter_map(|run| snapshot(run)).collect();
    let keep = " on conflict (workspace, id) do nothing";
    insert_rows(conn, "insert into snapshots (workspace, id, digest, size_bytes, created_us) values ", keep, snapshots).await?;
    Ok(Some(numbers))
}

/// Takes numbers from the experiments' counters and notes the youngest runs.
async fn number(conn: &mut Conn, runs: &[&NewRun]) -> Result<Vec<i64>> {
    // In the order of the experiments' ids, so that two transactions never wait for each other.
    let mut experiments: BTreeMap<(WorkspaceId, ExperimentId), Latest<'_>> = BTreeMap::new();
    for run in runs {
        let record = &run.record;
        let latest = experiments.entry((record.workspace, record.experiment)).or_insert(Latest {
            count: 0,
            run: &record.id,
            created_us: record.created_us,
        });
        latest.count += 1;
        if record.created_us >= latest.created_us {
            (latest.run, latest.created_us) = (&record.id, record.created_us);
        }
    }
    let mut next = BTreeMap::new();
    for ((workspace, experiment), latest) in experiments {
        let update = Sql::new(
            "update experiments set last_number = last_number + $3, latest_run_id = $4, latest_run_created_us = $5 \
             where workspace = $1 and id = $2 returning last_number",
        )
        .bind(workspace.to_string())
        .bind(experiment.to_string())
        .bind(latest.count)
        .bind(latest.run.as_str())
        .bind(latest.created_us);
        let Some(row) = conn.fetch_optional(update).await? else {
            return Err(Error::not_found(format!("experiment {experiment} does not exist; it may just have been deleted")));
        };
        next.insert((workspace, experiment), row.columns().int()? - latest.count);
    }
    let numbers = runs.iter().map(|run| {
        let last = next.entry((run.record.workspace, run.record.experiment)).or_default();
        *last += 1;
        *last
    });
    Ok(numbers.collect())
}

struct Latest<'a> {
    count: i64,
    run: &'a RunId,
    created_us: i64,
}

fn documents(run: &NewRun) -> Result<Option<Vec<Value>>> {
    let record = &run.record;
    if record.definition.is_none() && record.document.is_none() {
        return Ok(None);
    }
    let definition = record.definition.as_ref().map(encode).transpose()?;
    let document = record.document.as_ref().map(encode).transpose()?;
    Ok(Some(vec![record.workspace.to_string().into(), record.id.as_str().into(), definition.into(), document.into()]))
}

fn first_event(run: &NewRun) -> Result<Vec<Value>> {
    let record = &run.record;
    let data = encode_value(&run.first_event.data, "data")?;
    let name = run.first_event.name.as_str();
    Ok(vec![record.workspace.to_string().into(), record.id.as_str().into(), 1.into(), record.created_us.into(), name.into(), data.into()])
}

fn snapshot(run: &NewRun) -> Option<Vec<Value>> {
    let snapshot = run.snapshot.as_ref()?;
    Some(vec![
        run.record.workspace.to_string().into(),
        snapshot.id.to_string().into(),
        snapshot.digest.as_str().into(),
        snapshot.size_bytes.into(),
        run.record.created_us.into(),
    ])
}

/// Inserts rows in as few statements as [`ROWS`] allows; how many were inserted.
async fn insert_rows(conn: &mut Conn, insert: &'static str, end: &'static str, rows: Vec<Vec<Value>>) -> Result<u64> {
    let mut inserted = 0;
    let mut rows = rows.into_iter();
    while rows.len() > 0 {
        let size = ROWS.into_iter().find(|size| *size <= rows.len()).unwrap_or(1);
        let mut sql = Sql::new(insert);
        for (index, row) in rows.by_ref().take(size).enumerate() {
            if index > 0 {
                sql.push(", ");
            }
            sql.push_row(row);
        }
        sql.push(end);
        inserted += conn.execute(sql).await?;
    }
    Ok(inserted)
}
