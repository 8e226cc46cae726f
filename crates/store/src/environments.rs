//! Environments: what was asked for and, once built, the lock, by canonical hash.

use serde_json::Value;
use trainyard_core::{
    Result,
    ids::{EnvironmentHash, WorkspaceId},
};

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
        "select e.hash, e.spec, e.lock, e.created_us from environments e"
    };
}

/// Whether a run of the workspace `$1` used the environment; the words are those of an index.
macro_rules! used {
    () => {
        "(select 1 from runs r where r.workspace = $1 and r.environment = e.hash and r.environment is not null)"
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
        let sql = Sql::new(concat!(select!(), " where e.hash = $1")).bind(hash.as_str());
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }

    /// The environment with a hash, if a run of the workspace used it.
    pub async fn environment_used_in(&self, workspace: WorkspaceId, hash: &EnvironmentHash) -> Result<Option<EnvironmentRecord>> {
        let sql = Sql::new(concat!(select!(), " where exists ", used!(), " and e.hash = $2"));
        let sql = sql.bind(workspace.to_string()).bind(hash.as_str());
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }

    /// A page of all environments, newest first.
    pub async fn list_environments(&self, page: &PageRequest) -> Result<Page<EnvironmentRecord>> {
        self.page_of(Sql::new(concat!(select!(), " where true")), page, "environments").await
    }

    /// A page of the environments that runs of the workspace used, newest first.
    pub async fn list_environments_used_in(&self, workspace: WorkspaceId, page: &PageRequest) -> Result<Page<EnvironmentRecord>> {
        let sql = Sql::new(concat!(select!(), " where exists ", used!())).bind(workspace.to_string());
        self.page_of(sql, page, &format!("environments/{workspace}")).await
    }

    async fn page_of(&self, mut sql: Sql, page: &PageRequest, identity: &str) -> Result<Page<EnvironmentRecord>> {
        let after: Option<(i64, String)> = page::after(page, identity)?;
        if let Some((created_us, hash)) = after {
            sql.push(" and (e.created_us, e.hash) < (").push_value(created_us).push(", ").push_value(hash).push(")");
        }
        sql.push(" order by e.created_us desc, e.hash desc").push_limit(page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, page, identity, |environment| (environment.created_us, environment.hash.to_string()))
    }
}

fn decode(row: &Row) -> Result<EnvironmentRecord> {
    let mut row = row.columns();
    Ok(EnvironmentRecord { hash: row.parse()?, spec: row.json()?, lock: row.json()?, created_us: row.int()? })
}
