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
        let options = StoreOptions { database, blobs: "file".into(), data_dir: dir.path().to_owned() };
        let store = Store::open(&options).await.expect("the store opens");
        Self { store, options, schema, next: AtomicU32::new(0), _dir: dir }
    }

    /// A second store on the same database, as another process would have it.
    pub(crate) async fn open_again(&self) -> Store {
        Store::open(&self.options).await.expect("the store opens again")
    }

    /// A number that this test has not had yet.
    pub(crate) fn next(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) async fn close(self) {
        self.store.close().await;
        if let Some(schema) = self.schema {
            execute(&schema.server, format!("drop schema {} cascade", schema.name)).await;
        }
    }
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
    let name = format!("test_{}", Uuid::new_v4().simple());
    execute(&server, format!("create schema {name}")).await;
    let joint = if server.contains('?') { '&' } else { '?' };
    let database = format!("{server}{joint}options=-c%20search_path%3D{name}");
    Some(Bench::open(folder(), database, Some(Schema { server, name })).await)
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
