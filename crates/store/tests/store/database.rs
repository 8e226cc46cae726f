//! A store of its own for each test, on either database.

use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use trainyard_store::{Store, StoreOptions};
use uuid::Uuid;

/// A store for one test and what is to be removed after it.
pub(crate) struct Bench {
    pub(crate) store: Store,
    options: StoreOptions,
    schema: Option<Schema>,
    next: AtomicU32,
    _dir: TempDir,
}

struct Schema {
    server: String,
    name: String,
}

impl Bench {
    async fn open(dir: TempDir, database: String, schema: Option<Schema>) -> Self {
        let options = options(&dir, database);
        let store = Store::open(&options).await.expect("the store opens");
        Self { store, options, schema, next: AtomicU32::new(0), _dir: dir }
    }

    /// A second store on the same database, as another process would have it.
    pub(crate) async fn open_again(&self) -> Store {
        Store::open(&self.options).await.expect("the store opens again")
    }

    /// How the store was opened.
    pub(crate) fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// A place of the same kind that nothing was done with yet.
    pub(crate) async fn vacancy(&self) -> Vacancy {
        match &self.schema {
            Some(schema) => Vacancy::postgres(&schema.server).await,
            None => Vacancy::sqlite(),
        }
    }

    /// One of the other kind; `None` when there is no PostgreSQL server.
    pub(crate) async fn other_vacancy(&self) -> Option<Vacancy> {
        match (&self.schema, std::env::var("TRAINYARD_TEST_POSTGRES")) {
            (Some(_), _) => Some(Vacancy::sqlite()),
            (None, Ok(server)) => Some(Vacancy::postgres(&server).await),
            (None, Err(_)) => None,
        }
    }

    /// A number that this test has not had yet.
    pub(crate) fn next(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) async fn close(self) {
        self.store.close().await;
        if let Some(schema) = self.schema {
            schema.drop().await;
        }
    }
}

/// Where a store can be made.
pub(crate) struct Vacancy {
    pub(crate) options: StoreOptions,
    schema: Option<Schema>,
    _dir: TempDir,
}

impl Vacancy {
    fn sqlite() -> Self {
        let dir = folder();
        Self { options: options(&dir, "sqlite".into()), schema: None, _dir: dir }
    }

    async fn postgres(server: &str) -> Self {
        let (dir, schema) = (folder(), Schema::create(server).await);
        Self { options: options(&dir, schema.url()), schema: Some(schema), _dir: dir }
    }

    /// Runs statements as they are, beside every store.
    pub(crate) async fn execute(&self, sql: &str) {
        execute_at(&self.options, sql.to_owned()).await;
    }

    pub(crate) async fn close(self) {
        if let Some(schema) = self.schema {
            schema.drop().await;
        }
    }
}

impl Schema {
    async fn create(server: &str) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        execute(server, format!("create schema {name}")).await;
        Self { server: server.to_owned(), name }
    }

    fn url(&self) -> String {
        let joint = if self.server.contains('?') { '&' } else { '?' };
        format!("{}{joint}options=-c%20search_path%3D{}", self.server, self.name)
    }

    async fn drop(self) {
        execute(&self.server, format!("drop schema {} cascade", self.name)).await;
    }
}

fn options(dir: &TempDir, database: String) -> StoreOptions {
    StoreOptions { database, blobs: "file".into(), data_dir: dir.path().to_owned() }
}

/// Runs statements as they are on the database of a store.
pub(crate) async fn execute_at(options: &StoreOptions, sql: String) {
    use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
    if options.database != "sqlite" {
        return execute(&options.database, sql).await;
    }
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(options.data_dir.join("trainyard.sqlite")).create_if_missing(true);
    let mut conn = file.connect().await.expect("the SQLite file opens");
    conn.execute(sqlx::AssertSqlSafe(sql)).await.expect("the statements are right");
    conn.close().await.expect("the connection closes");
}

/// SQLite in a temporary folder.
pub(crate) async fn sqlite() -> Bench {
    Bench::open(folder(), "sqlite".into(), None).await
}

/// A new schema on the PostgreSQL server of the environment; `None`, said by name, when there is none.
pub(crate) async fn postgres(test: &str) -> Option<Bench> {
    let Ok(server) = std::env::var("TRAINYARD_TEST_POSTGRES") else {
        say(&format!("skipped postgres::{test}: TRAINYARD_TEST_POSTGRES is not set"));
        return None;
    };
    let schema = Schema::create(&server).await;
    Some(Bench::open(folder(), schema.url(), Some(schema)).await)
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

async fn execute(server: &str, sql: String) {
    use sqlx::{Connection as _, Executor as _};
    let mut conn = sqlx::PgConnection::connect(server).await.expect("the PostgreSQL server of TRAINYARD_TEST_POSTGRES answers");
    // The name of the schema is made here, from hexadecimal digits.
    conn.execute(sqlx::AssertSqlSafe(sql)).await.expect("the schema can be made and dropped");
    conn.close().await.expect("the connection closes");
}

#[expect(clippy::print_stderr, reason = "a skipped test has to be seen")]
fn say(message: &str) {
    eprintln!("{message}");
}
