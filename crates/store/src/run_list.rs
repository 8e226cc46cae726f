//! Lists of runs: keyset pages in any order, with a filter.
//!
//! An order by a time that a run may not have yet is read in two parts, the runs that have it and then, by id, those that have
//! not. Each part is one range of one index, so that the last page costs what the first one does. The page is found among the
//! runs alone and joined with the rest afterwards: what has to be sorted or skipped stays small.

use serde::{Deserialize, Serialize};
use trainyard_core::{
    Result,
    filter::{Direction, OrderField},
};

use crate::{
    db::{Conn, Sql},
    page::{self, Page},
    run_filter,
    run_row::{self, run_columns, run_joins},
    runs::{Hidden, RunQuery, RunRecord},
    store::Store,
};

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    /// The sort key; `None` when the order is by id, or the runs without a key have begun.
    key: Option<i64>,
    /// The run.
    id: String,
}

/// Which part of the list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Runs that have the key (all, in an order by id).
    Keyed,
    /// Runs without.
    Keyless,
}

impl Store {
    /// A page of runs. Invalid when the token is not one of this query.
    pub async fn list_runs(&self, query: &RunQuery) -> Result<Page<RunRecord>> {
        let identity = identity(query);
        let after: Option<Position> = page::after(&query.page, &identity)?;
        let wanted = query.page.limit() + 1;
        let mut conn = self.reader().await?;
        let field = query.order.field;
        let began_keyless = is_optional(field) && after.as_ref().is_some_and(|position| position.key.is_none());
        let mut found = Vec::new();
        if !began_keyless {
            found = fetch(&mut conn, part(query, Part::Keyed, after.as_ref(), wanted, self)).await?;
        }
        if is_optional(field) && found.len() < wanted {
            let after = after.as_ref().filter(|_| began_keyless);
            found.extend(fetch(&mut conn, part(query, Part::Keyless, after, wanted - found.len(), self)).await?);
        }
        page::page(found, &query.page, &identity, |run| Position { key: key(field, run), id: run.id.to_string() })
    }
}

/// Everything that the list depends on, for its token.
fn identity(query: &RunQuery) -> String {
    let filter = query.filter.as_ref().map(ToString::to_string);
    format!("{}/{:?}/{:?}/{filter:?}/{:?}/{:?}", query.workspace, query.experiment, query.parent, query.order, query.hidden)
}

async fn fetch(conn: &mut Conn, sql: Sql) -> Result<Vec<RunRecord>> {
    conn.fetch_all(sql).await?.iter().map(run_row::decode).collect()
}

fn part(query: &RunQuery, part: Part, after: Option<&Position>, wanted: usize, store: &Store) -> Sql {
    let mut sql = Sql::new(concat!(run_columns!(), " from (select r.workspace, r.id from runs r where r.workspace = $1"))
        .bind(query.workspace.to_string());
    if let Some(experiment) = query.experiment {
        sql.push(" and r.experiment = ").push_value(experiment.to_string());
    }
    if let Some(parent) = &query.parent {
        sql.push(" and r.parent = ").push_value(parent.as_str());
    }
    if query.hidden == Hidden::Exclude {
        sql.push(" and r.hidden = ").push_value(false);
    }
    if let Some(filter) = &query.filter {
        sql.push(" and ");
        run_filter::push(&mut sql, filter, store.dialect());
    }
    // An order by id has no key; in the part without keys the id is all that is left.
    let sort_column = column(query.order.field);
    let column = sort_column.filter(|_| part == Part::Keyed);
    if let Some(column) = column.filter(|_| is_optional(query.order.field)) {
        sql.push(" and ").push(column).push(" is not null");
    } else if let (Part::Keyless, Some(column)) = (part, sort_column) {
        sql.push(" and ").push(column).push(" is null");
    }
    let (beyond, direction) = match query.order.direction {
        Direction::Ascending => (" > ", " asc"),
        Direction::Descending => (" < ", " desc"),
    };
    match (column, after) {
        (Some(column), Some(Position { key: Some(key), id })) => {
            sql.push(" and (").push(column).push(", r.id)").push(beyond).push("(").push_value(*key);
            sql.push(", ").push_value(id.as_str()).push(")");
        }
        (_, Some(Position { id, .. })) => {
            sql.push(" and r.id").push(beyond).push_value(id.as_str());
        }
        (_, None) => {}
    }
    push_order(&mut sql, column, direction);
    sql.push_limit(wanted as i64);
    sql.push(concat!(") page join runs r on r.workspace = page.workspace and r.id = page.id", run_joins!()));
    push_order(&mut sql, column, direction);
    sql
}

fn push_order(sql: &mut Sql, column: Option<&'static str>, direction: &'static str) {
    sql.push(" order by ");
    if let Some(column) = column {
        sql.push(column).push(direction).push(", ");
    }
    sql.push("r.id").push(direction);
}

/// The column of the sort key, unless it is the id.
fn column(field: OrderField) -> Option<&'static str> {
    match field {
        OrderField::CreatedUtc => Some("r.created_us"),
        OrderField::StartTimeUtc => Some("r.started_us"),
        OrderField::EndTimeUtc => Some("r.ended_us"),
        OrderField::RunId => None,
    }
}

/// Whether a run may have no value of the sort key.
fn is_optional(field: OrderField) -> bool {
    match field {
        OrderField::StartTimeUtc | OrderField::EndTimeUtc => true,
        OrderField::CreatedUtc | OrderField::RunId => false,
    }
}

/// A run's value of the sort key.
fn key(field: OrderField, run: &RunRecord) -> Option<i64> {
    match field {
        OrderField::CreatedUtc => Some(run.created_us),
        OrderField::StartTimeUtc => run.started_us,
        OrderField::EndTimeUtc => run.ended_us,
        OrderField::RunId => None,
    }
}
