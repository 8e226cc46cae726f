//! The only writer of a run's `state, desired, cause, silent, retries, not_before_us, attempt, started_us, ended_us`.
//!
//! [`crate::Store::apply`] reads the row, lets [`trainyard_core::run::transition`] decide, and writes what it says by
//! compare-and-set on the version, in one transaction with the timeline entry and the attempt's row.

use serde_json::json;
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{RunId, WorkspaceId},
    run::{AttemptChange, Cause, Change, Refused, Retries, RunEvent, RunState, transition},
};

use crate::{
    artifacts, attempts,
    db::{Conn, Sql, json::encode},
    events, run_row,
    runs::RunRecord,
    store::Store,
    writer::Lane,
};

/// How often a lost compare-and-set is tried again. Only another server process can make it lose.
const TRIES: usize = 16;

/// What came of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// The run changed; this is it now.
    Changed(Box<RunRecord>),
    /// It was so already: success for the reporter.
    AlreadySo,
    /// The event is from an attempt that is not the live one.
    Fenced,
    /// The event makes no sense in this state.
    NotAllowed {
        /// The state.
        state: RunState,
        /// The event's name.
        event: &'static str,
    },
    /// There is no such run.
    NoRun,
}

impl Store {
    /// Applies an event to a run: the new state, the timeline entry and the attempt's row, all or nothing.
    ///
    /// `started_us` is set by the first start only. A run that ends in `Failed` gets an `error` from the cause unless it has one.
    pub async fn apply(&self, workspace: WorkspaceId, id: &RunId, event: &RunEvent, at_us: i64) -> Result<Applied> {
        let run = id.clone();
        let moment = Moment { event: event.clone(), at_us };
        let applied =
            self.writer().write(Lane::Run(id), move |conn| Box::pin(async move { apply(conn, workspace, &run, &moment).await })).await?;
        if let Applied::Changed(run) = &applied
            && let Some(cause) = &run.cause
        {
            if matches!(event, RunEvent::Finalized { .. }) {
                self.ends().attempt_ended(cause);
            }
            if run.state.is_terminal() {
                self.ends().run_ended(cause);
            }
        }
        Ok(applied)
    }
}

/// What happened and when.
struct Moment {
    event: RunEvent,
    at_us: i64,
}

async fn apply(conn: &mut Conn, workspace: WorkspaceId, id: &RunId, moment: &Moment) -> Result<Applied> {
    for _ in 0..TRIES {
        let Some(mut record) = run_row::read(conn, workspace, id).await? else { return Ok(Applied::NoRun) };
        let change = match transition(&record.standing(), &moment.event) {
            Ok(change) => change,
            Err(Refused::AlreadySo) => return Ok(Applied::AlreadySo),
            Err(Refused::Fenced) => return Ok(Applied::Fenced),
            Err(Refused::NotAllowed { state, event }) => return Ok(Applied::NotAllowed { state, event }),
        };
        let before = record.attempt;
        take_over(&mut record, &change, moment.at_us);
        if let RunEvent::CancelRequested { by, why } = &moment.event {
            record.cancelled_by = Some(by.clone());
            record.cancel_reason = why.clone().or(record.cancel_reason);
        }
        if compare_and_set(conn, &record).await? {
            if let (Some(_), Some(attempt)) = (&change.retry, before) {
                artifacts::set_aside(conn, &record, attempt).await?;
            }
            write_attempt(conn, &record, &change, moment.at_us).await?;
            events::append(conn, (workspace, id), &change.entry, moment.at_us).await?;
            return Ok(Applied::Changed(Box::new(record)));
        }
    }
    Err(Error::new(ErrorKind::Stale, format!("run `{id}` kept changing while `{}` was applied; try again", moment.event.name())))
}

/// Makes `record` what it is after `change`, its version included.
fn take_over(record: &mut RunRecord, change: &Change, at_us: i64) {
    record.version += 1;
    record.state = change.state;
    record.desired = change.desired;
    record.cause = change.cause.clone();
    record.silent = change.silent;
    match &change.retry {
        Some(retry) => {
            record.retries = retry.retries;
            let wait_us = i64::try_from(retry.wait_seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
            record.not_before_us = Some(at_us.saturating_add(wait_us));
        }
        // Admitted, or over: nothing is waited for any more.
        None => record.not_before_us = None,
    }
    match change.attempt {
        AttemptChange::None | AttemptChange::End(_) => {}
        AttemptChange::Open(attempt) => record.attempt = Some(attempt),
        AttemptChange::Close => record.attempt = None,
    }
    if change.starts && record.started_us.is_none() {
        record.started_us = Some(at_us);
    }
    if change.ends {
        record.ended_us = Some(at_us);
        if let (RunState::Failed, None, Some(cause)) = (record.state, &record.error, &record.cause) {
            record.error = Some(error_of(cause));
        }
    }
}

/// `ErrorResponse` as in azureml-wire C.10; the innermost code is [`Cause::label`].
fn error_of(cause: &Cause) -> serde_json::Value {
    let code = if cause.is_users() { "UserError" } else { "ServiceError" };
    json!({ "error": { "code": code, "message": cause.sentence(), "innerError": { "code": cause.label() } } })
}

/// Writes the record if the row still has the version before; whether it did.
async fn compare_and_set(conn: &mut Conn, record: &RunRecord) -> Result<bool> {
    let sql = Sql::new(
        "update runs set state = $4, desired = $5, cause = $6, attempt = $7, started_us = $8, ended_us = $9, error = $10, \
         cancel_reason = $11, silent = $12, retries = $13, not_before_us = $14, cancelled_by = $15, version = version + 1 where workspace = $1 and id = $2 and version = $3",
    )
    .bind(record.workspace.to_string())
    .bind(record.id.as_str())
    .bind(record.version - 1)
    .bind(record.state.as_str())
    .bind(run_row::desired_text(record.desired))
    .bind(record.cause.as_ref().map(encode).transpose()?)
    .bind(record.attempt.map(|attempt| attempt.to_string()))
    .bind(record.started_us)
    .bind(record.ended_us)
    .bind(record.error.as_ref().map(encode).transpose()?)
    .bind(record.cancel_reason.as_deref())
    .bind(record.silent)
    .bind((record.retries != Retries::default()).then(|| encode(&record.retries)).transpose()?)
    .bind(record.not_before_us)
    .bind(record.cancelled_by.as_deref());
    Ok(conn.execute(sql).await? == 1)
}

async fn write_attempt(conn: &mut Conn, record: &RunRecord, change: &Change, at_us: i64) -> Result<()> {
    match change.attempt {
        AttemptChange::None => match record.attempt.filter(|_| change.starts) {
            Some(attempt) => attempts::start(conn, attempt, at_us).await,
            None => Ok(()),
        },
        AttemptChange::Open(attempt) => attempts::open(conn, record, attempt, at_us).await,
        AttemptChange::End(attempt) => attempts::end(conn, attempt, change.cause.as_ref(), at_us).await,
        AttemptChange::Close => attempts::close_all(conn, record, at_us).await,
    }
}
