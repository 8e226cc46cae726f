//! Rows of either database, read column after column in the order of the select list.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::{Row as _, postgres::PgRow, sqlite::SqliteRow};
use trainyard_core::{Error, Result};

/// A row.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    /// Reads the row from its first column on.
    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns { row: self, next: 0 }
    }
}

/// The columns of a row that have not been read yet.
pub(crate) struct Columns<'r> {
    row: &'r Row,
    next: usize,
}

macro_rules! reader {
    ($name:ident, $type:ty) => {
        pub(crate) fn $name(&mut self) -> Result<$type> {
            let index = self.next;
            self.next += 1;
            match self.row {
                Row::Sqlite(row) => row.try_get(index),
                Row::Postgres(row) => row.try_get(index),
            }
            .map_err(Error::internal)
        }
    };
}

impl Columns<'_> {
    reader!(int, i64);
    reader!(opt_int, Option<i64>);
    reader!(text, String);
    reader!(opt_text, Option<String>);
    reader!(flag, bool);

    /// A text that is an id or a name.
    pub(crate) fn parse<T: FromStr<Err = Error>>(&mut self) -> Result<T> {
        parse(&self.text()?)
    }

    /// The same, or null.
    pub(crate) fn opt_parse<T: FromStr<Err = Error>>(&mut self) -> Result<Option<T>> {
        self.opt_text()?.map(|text| parse(&text)).transpose()
    }

    /// A GUID.
    pub(crate) fn uuid(&mut self) -> Result<uuid::Uuid> {
        uuid::Uuid::parse_str(&self.text()?).map_err(Error::internal)
    }

    /// A GUID or null.
    pub(crate) fn opt_uuid(&mut self) -> Result<Option<uuid::Uuid>> {
        self.opt_text()?.map(|text| uuid::Uuid::parse_str(&text).map_err(Error::internal)).transpose()
    }

    /// JSON text.
    pub(crate) fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        serde_json::from_str(&self.text()?).map_err(Error::internal)
    }

    /// JSON text or null.
    pub(crate) fn opt_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        self.opt_text()?.map(|text| serde_json::from_str(&text).map_err(Error::internal)).transpose()
    }
}

/// What is in a row was valid when it was written: if it is not now, that is our bug.
fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T> {
    text.parse().map_err(|error: Error| Error::internal(error))
}
