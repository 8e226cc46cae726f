//! Applications (service principals) and what they were granted. Secrets are here only as hashes.

use futures_util::future::BoxFuture;
use trainyard_core::{Error, ErrorKind, Result, access::Grant, ids::AppId};

use crate::{
    db::{Conn, Row, Sql, json::encode},
    store::Store,
    writer::Lane,
};

/// An application.
#[derive(Clone, PartialEq, Eq)]
pub struct App {
    /// The `client_id` of token requests.
    pub id: AppId,
    /// For people, and for `createdBy`.
    pub name: String,
    /// SHA-256 of its 256-bit random secret, 64 lower-case hexadecimal digits.
    pub secret_sha256: String,
    /// What it may do, and where.
    pub grants: Vec<Grant>,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
    /// Whether these are the default credentials that the first start made.
    pub generated: bool,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("grants", &self.grants)
            .field("created_us", &self.created_us)
            .field("generated", &self.generated)
            .finish_non_exhaustive()
    }
}

macro_rules! select {
    () => {
        "select id, name, secret_sha256, grants, created_us, generated from apps"
    };
}

impl Store {
    /// Stores an application. AlreadyExists when its id is taken.
    pub async fn create_app(&self, app: &App) -> Result<()> {
        let app = app.clone();
        self.change_app(move |conn| Box::pin(insert(conn, app))).await
    }

    /// The application with an id. From memory once it was read.
    pub async fn app(&self, id: AppId) -> Result<Option<App>> {
        let generation = match self.cache().apps.get(&id) {
            Ok(app) => return Ok(Some(app)),
            Err(generation) => generation,
        };
        let sql = Sql::new(concat!(select!(), " where id = $1")).bind(id.to_string());
        let found = self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()?;
        if let Some(app) = &found {
            self.cache().apps.fill(generation, id, app.clone());
        }
        Ok(found)
    }

    /// All applications, oldest first.
    pub async fn list_apps(&self) -> Result<Vec<App>> {
        self.reader().await?.fetch_all(Sql::new(concat!(select!(), " order by created_us, id"))).await?.iter().map(decode).collect()
    }

    /// Replaces the secret's hash; credentials that were generated are no longer counted as such. NotFound.
    pub async fn set_app_secret(&self, id: AppId, secret_sha256: &str) -> Result<()> {
        let sql = Sql::new("update apps set secret_sha256 = $2, generated = $3 where id = $1");
        let sql = sql.bind(id.to_string()).bind(secret_sha256).bind(false);
        self.change_app(move |conn| Box::pin(change_one(conn, id, sql))).await
    }

    /// Removes an application. NotFound.
    pub async fn delete_app(&self, id: AppId) -> Result<()> {
        let sql = Sql::new("delete from apps where id = $1").bind(id.to_string());
        self.change_app(move |conn| Box::pin(change_one(conn, id, sql))).await
    }

    async fn change_app<F>(&self, change: F) -> Result<()>
    where
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<()>> + Send + 'static,
    {
        let changed = self.writer().write(Lane::Shared, change).await;
        self.cache().apps.clear();
        changed
    }
}

async fn insert(conn: &mut Conn, app: App) -> Result<()> {
    let sql = Sql::new(
        "insert into apps (id, name, secret_sha256, grants, created_us, generated) values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
    )
    .bind(app.id.to_string())
    .bind(app.name.as_str())
    .bind(app.secret_sha256.as_str())
    .bind(encode(&app.grants)?)
    .bind(app.created_us)
    .bind(app.generated);
    match conn.execute(sql).await? {
        1 => Ok(()),
        _ => Err(Error::new(ErrorKind::AlreadyExists, format!("application {} exists already", app.id))),
    }
}

async fn change_one(conn: &mut Conn, id: AppId, sql: Sql) -> Result<()> {
    match conn.execute(sql).await? {
        1 => Ok(()),
        _ => Err(Error::not_found(format!("application {id} was not found"))),
    }
}

fn decode(row: &Row) -> Result<App> {
    let mut row = row.columns();
    Ok(App {
        id: row.parse()?,
        name: row.text()?,
        secret_sha256: row.text()?,
        grants: row.json()?,
        created_us: row.int()?,
        generated: row.flag()?,
    })
}
