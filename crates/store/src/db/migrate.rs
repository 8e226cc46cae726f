//! The schema: numbered texts, applied in order, never changed once released.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};
use trainyard_core::{Error, ErrorKind, Result};

use super::{Conn, Dialect};

/// Version, name and text of each migration. `{text}` and `{without_rowid}` are replaced by the dialect's words.
const MIGRATIONS: [(i64, &str, &str); 1] = [(1, "initial", include_str!("../../migrations/0001_initial.sql"))];

/// Applies what is missing. Migrations that a newer server applied are refused: this one does not know that schema.
pub(super) async fn run(conn: &mut Conn) -> Result<()> {
    let migrator = Migrator::with_migrations(migrations(conn.dialect()));
    match conn {
        Conn::Sqlite(conn) => migrator.run(&mut **conn).await,
        Conn::Postgres(conn) => migrator.run(&mut **conn).await,
    }
    .map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            "the schema of the database can not be brought up to date; \
             was it written by a newer version of this server? The log has the reason",
        )
        .with_source(error)
    })
}

fn migrations(dialect: Dialect) -> Vec<Migration> {
    MIGRATIONS
        .into_iter()
        .map(|(version, name, text)| {
            let text = text.replace("{text}", dialect.text_type()).replace("{without_rowid}", dialect.without_rowid());
            Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, AssertSqlSafe(text).into_sql_str(), false)
        })
        .collect()
}
