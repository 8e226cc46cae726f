//! Rows in one consistent snapshot of the database, read table by table in pieces of bounded size.

use trainyard_core::{Error, Result};

use super::tables::{self, Table};
use crate::db::{Conn, Dialect, Row, Sql, Value};

/// Rows that are read with one statement.
const ROWS: i64 = 200;

/// A transaction that sees the database as it was when it began, however long it takes.
pub(super) struct Snapshot {
    conn: Conn,
    /// The version of the schema.
    pub(super) version: i64,
}

/// A blob that rows name, in a size that allows millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlobRef {
    pub(super) sha256: [u8; 32],
    pub(super) size_bytes: u64,
}

/// An artifact whose content is not a blob yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsealed {
    pub(super) workspace: String,
    pub(super) container: String,
    pub(super) path: String,
    pub(super) attempt: Option<String>,
}

impl Snapshot {
    /// Begins one. The schema is `version`, which this program knows.
    pub(super) async fn begin(mut conn: Conn, version: i64) -> Result<Self> {
        let begin = match conn.dialect() {
            Dialect::Sqlite => "begin deferred",
            Dialect::Postgres => "begin isolation level repeatable read read only",
        };
        conn.execute(Sql::new(begin)).await?;
        Ok(Self { conn, version })
    }

    /// Ends it.
    pub(super) async fn end(self) {
        // It has written nothing: closing the connection undoes nothing.
        self.conn.discard().await;
    }

    /// How many rows a table has.
    pub(super) async fn count(&mut self, table: &Table) -> Result<u64> {
        let mut sql = Sql::new("select count(*) from ");
        sql.push(table.name);
        let row = self.conn.fetch_optional(sql).await?.ok_or_else(|| Error::internal("a count gave no row"))?;
        row.columns().int().map(i64::cast_unsigned)
    }

    /// The next rows of a table after the one with the key `after`, with the key of the last; none at the end.
    pub(super) async fn rows(&mut self, table: &Table, after: Option<&[Value]>) -> Result<Vec<Vec<Value>>> {
        let rows = self.conn.fetch_all(table.select(self.version, after, ROWS)).await?;
        rows.iter().map(|row| table.values(self.version, row)).collect()
    }

    /// Every blob that rows name, once each, in the order of their digests.
    pub(super) async fn blobs(&mut self) -> Result<Vec<BlobRef>> {
        let mut found: Vec<BlobRef> = Vec::new();
        for name in ["snapshots", "artifacts"] {
            let Some(table) = tables::table_of(self.version, name) else { continue };
            let mut after: Option<Vec<Value>> = None;
            loop {
                let rows = self.rows(table, after.as_deref()).await?;
                let Some(last) = rows.last() else { break };
                after = Some(table.key_of(self.version, last));
                for row in &rows {
                    found.extend(blob_of(table, self.version, row)?);
                }
            }
            // Several rows may name one blob; what is kept stays small.
            found.sort_unstable();
            found.dedup_by_key(|blob| blob.sha256);
        }
        Ok(found)
    }

    /// Every artifact that is a live file still.
    pub(super) async fn unsealed(&mut self) -> Result<Vec<Unsealed>> {
        let sql = Sql::new(if self.version >= 2 {
            "select workspace, container, path, attempt from artifacts where digest is null"
        } else {
            "select workspace, container, path, null from artifacts where digest is null"
        });
        self.conn.fetch_all(sql).await?.iter().map(unsealed).collect()
    }
}

fn unsealed(row: &Row) -> Result<Unsealed> {
    let mut row = row.columns();
    Ok(Unsealed { workspace: row.text()?, container: row.text()?, path: row.text()?, attempt: row.opt_text()? })
}

fn blob_of(table: &Table, version: i64, row: &[Value]) -> Result<Option<BlobRef>> {
    let at = |name: &str| table.columns(version).position(|column| column.name == name).and_then(|at| row.get(at));
    let (Some(Value::Text(Some(digest))), Some(Value::Int(size))) = (at("digest"), at("size_bytes")) else { return Ok(None) };
    let mut sha256 = [0; 32];
    hex::decode_to_slice(digest, &mut sha256)
        .map_err(|error| Error::internal(format!("a row of `{}` names the blob `{digest}`: {error}", table.name)))?;
    Ok(Some(BlobRef { sha256, size_bytes: size.unwrap_or_default().cast_unsigned() }))
}
