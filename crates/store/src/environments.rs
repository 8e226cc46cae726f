//! Environments: what was asked for and, once built, the lock, by canonical hash.

use serde_json::Value;
use trainyard_core::{Result, ids::EnvironmentHash};

use crate::{
    db::{Row, Sql, json::encode},
    page::{self, Page, PageRequest},
    store::Store,
    writer::Lane,
};

/// A known environment.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentRecord {
    /// Its canonical hash.
    pub hash: EnvironmentHash,
    /// What was asked for.
    pub spec: Value,
    /// What was resolved: the package list and the interpreter.
    pub lock: Value,
    /// When it was first stored, microseconds since the epoch.
    pub created_us: i64,
}

macro_rules! select {
    () => {
        "select hash, spec, lock, created_us from environments"
    };
}

impl Store {
    /// Stores an environment; one that is there already is kept as it is.
    pub async fn put_environment(&self, environment: &EnvironmentRecord) -> Result<()> {
        let sql = Sql::new("insert into environments (hash, spec, lock, created_us) values ($1, $2, $3, $4) on conflict (hash) do nothing")
            .bind(environment.hash.as_str())
            .bind(encode(&environment.spec)?)
            .bind(encode(&environment.lock)?)
            .bind(environment.created_us);
        self.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
    }

    /// The environment with a hash.
    pub async fn environment(&self, hash: &EnvironmentHash) -> Result<Option<EnvironmentRecord>> {
        let sql = Sql::new(concat!(select!(), " where hash = $1")).bind(hash.as_str());
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }

    /// A page of environments, newest first.
    pub async fn list_environments(&self, page: &PageRequest) -> Result<Page<EnvironmentRecord>> {
        let after: Option<(i64, String)> = page::after(page, "environments")?;
        let mut sql = Sql::new(select!());
        if let Some((created_us, hash)) = after {
            sql.push(" where (created_us, hash) < (").push_value(created_us).push(", ").push_value(hash).push(")");
        }
        sql.push(" order by created_us desc, hash desc limit ").push_value(page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, page, "environments", |environment| (environment.created_us, environment.hash.to_string()))
    }
}

fn decode(row: &Row) -> Result<EnvironmentRecord> {
    let mut row = row.columns();
    Ok(EnvironmentRecord { hash: row.parse()?, spec: row.json()?, lock: row.json()?, created_us: row.int()? })
}
