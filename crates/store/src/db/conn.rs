//! One connection, of either database.

use std::borrow::Cow;

use sqlx::{AssertSqlSafe, Database, Encode, Postgres, Sqlite, Type, pool::PoolConnection, query::Query};
use trainyard_core::{Error, Result};

use super::{Dialect, Row, Sql, Value, errors::convert};

/// A connection that was taken from a pool.
pub(crate) enum Conn {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

impl Conn {
    /// Which database this is.
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Runs a statement; gives the number of rows that it changed.
    pub(crate) async fn execute(&mut self, sql: Sql) -> Result<u64> {
        refuse_nul(&sql)?;
        match self {
            Self::Sqlite(conn) => prepare(sql).execute(&mut **conn).await.map(|done| done.rows_affected()),
            Self::Postgres(conn) => prepare(sql).execute(&mut **conn).await.map(|done| done.rows_affected()),
        }
        .map_err(convert)
    }

    /// All rows of a query.
    pub(crate) async fn fetch_all(&mut self, sql: Sql) -> Result<Vec<Row>> {
        refuse_nul(&sql)?;
        match self {
            Self::Sqlite(conn) => prepare(sql).fetch_all(&mut **conn).await.map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Self::Postgres(conn) => prepare(sql).fetch_all(&mut **conn).await.map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        }
        .map_err(convert)
    }

    /// The first row of a query.
    pub(crate) async fn fetch_optional(&mut self, sql: Sql) -> Result<Option<Row>> {
        refuse_nul(&sql)?;
        match self {
            Self::Sqlite(conn) => prepare(sql).fetch_optional(&mut **conn).await.map(|row| row.map(Row::Sqlite)),
            Self::Postgres(conn) => prepare(sql).fetch_optional(&mut **conn).await.map(|row| row.map(Row::Postgres)),
        }
        .map_err(convert)
    }

    /// Closes the connection instead of giving it back: what it was in the middle of is undone by the database.
    pub(crate) async fn discard(self) {
        let closed = match self {
            Self::Sqlite(conn) => conn.close().await,
            Self::Postgres(conn) => conn.close().await,
        };
        if let Err(error) = closed {
            tracing::debug!(%error, "a database connection did not close cleanly");
        }
    }
}

fn prepare<DB: Database>(sql: Sql) -> Query<'static, DB, DB::Arguments>
where
    Option<i64>: Encode<'static, DB> + Type<DB>,
    Option<String>: Encode<'static, DB> + Type<DB>,
    bool: Encode<'static, DB> + Type<DB>,
{
    // `Sql` is only ever put together from `&'static str` and placeholders.
    let mut query = match sql.text {
        Cow::Borrowed(text) => sqlx::query(text),
        Cow::Owned(text) => sqlx::query(AssertSqlSafe(text)),
    };
    for value in sql.values {
        query = match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
            Value::Flag(value) => query.bind(value),
        };
    }
    query
}

/// PostgreSQL has no text with U+0000; refused for both, so that moving from one to the other never fails.
fn refuse_nul(sql: &Sql) -> Result<()> {
    let holds_nul = sql.values.iter().any(|value| matches!(value, Value::Text(Some(text)) if text.contains('\0')));
    if holds_nul { Err(Error::invalid("a text holds the character U+0000, which can not be stored; leave it out")) } else { Ok(()) }
}
