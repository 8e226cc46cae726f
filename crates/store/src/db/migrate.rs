//! The schema: numbered texts, applied in order, never changed once released, never undone.
//!
//! A database of an older server is brought forward when it is opened; one of a newer server is refused before anything is touched.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};
use trainyard_core::{Error, ErrorKind, Result};

use super::{Conn, Dialect, Sql};

/// Version, name and text of each migration. `{text}` and `{without_rowid}` are replaced by the dialect's words.
const MIGRATIONS: [(i64, &str, &str); 6] = [
    (1, "initial", include_str!("../../migrations/0001_initial.sql")),
    (2, "attempts and retries", include_str!("../../migrations/0002_attempts_and_retries.sql")),
    (3, "environments under names", include_str!("../../migrations/0003_environments.sql")),
    (4, "fair shares", include_str!("../../migrations/0004_fair_shares.sql")),
    (5, "runs on several nodes", include_str!("../../migrations/0005_several_nodes.sql")),
    (6, "fewer pages per new run", include_str!("../../migrations/0006_fewer_pages_per_new_run.sql")),
];

/// The version of the schema that this server works with.
pub(crate) const NEWEST: i64 = MIGRATIONS[MIGRATIONS.len() - 1].0;

/// Brings the schema to `version`, which must be one of [`MIGRATIONS`]. A schema that is further already, as far as this server
/// knows it, stays; one that is beyond [`NEWEST`] is refused.
pub(crate) async fn run_to(conn: &mut Conn, version: i64) -> Result<()> {
    let present = self::version(conn).await?;
    refuse_newer(present)?;
    let migrator = Migrator::with_migrations(migrations(conn.dialect()));
    match conn {
        Conn::Sqlite(conn) => migrator.run_to(version, &mut **conn).await,
        Conn::Postgres(conn) => migrator.run_to(version, &mut **conn).await,
    }
    .map_err(|error| {
        let from = present.map_or_else(|| "an empty database".to_owned(), |present| format!("version {present}"));
        Error::new(
            ErrorKind::Unavailable,
            format!("the schema of the database can not be brought from {from} to version {version}; the log has the reason"),
        )
        .with_source(error)
    })?;
    if let Some(present) = present.filter(|present| *present < version) {
        tracing::info!(from = present, to = version, "the schema of the database was brought up to date");
    }
    Ok(())
}

/// The version of the database's schema; `None` when there is none yet.
pub(crate) async fn version(conn: &mut Conn) -> Result<Option<i64>> {
    let known = match conn.dialect() {
        Dialect::Sqlite => "select name from sqlite_master where type = 'table' and name = '_sqlx_migrations'",
        Dialect::Postgres => {
            "select table_name::text from information_schema.tables where table_schema = current_schema() and table_name = '_sqlx_migrations'"
        }
    };
    if conn.fetch_optional(Sql::new(known)).await?.is_none() {
        return Ok(None);
    }
    let row = conn.fetch_optional(Sql::new("select max(version) from _sqlx_migrations")).await?;
    row.map_or(Ok(None), |row| row.columns().opt_int())
}

/// Fails for a schema that only a newer server knows.
pub(crate) fn refuse_newer(version: Option<i64>) -> Result<()> {
    match version {
        Some(version) if version > NEWEST => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the database has version {version} of the schema and this program knows versions up to {NEWEST}: a newer version of the program \
                 has been at work on it; start that one, or restore a backup that was made before the upgrade"
            ),
        )),
        _ => Ok(()),
    }
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
