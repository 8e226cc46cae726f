//! Opening a database: options that the promises of the store rest on, and the pools.

use std::{path::Path, str::FromStr, time::Duration};

use sqlx::{
    ConnectOptions, PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use trainyard_core::{Error, ErrorKind, Result};

use super::{Conn, Dialect, Sql, errors::convert, migrate, network_fs};

/// Name of the SQLite file in the data directory.
pub(crate) const FILE_NAME: &str = "trainyard.sqlite";
/// How long a statement waits for a lock of another process on the SQLite file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// SQLite readers; each is a thread with a page cache of 2 MB at most.
const SQLITE_READERS: u32 = 4;
/// PostgreSQL connections for reading.
const POSTGRES_READERS: u32 = 12;
/// PostgreSQL connections for writing: one for each queue of the writer.
const POSTGRES_WRITERS: u32 = 4;

/// The pools of one database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Db {
    read: Pool,
    write: Pool,
}

#[derive(Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Db {
    /// Opens `database` (`sqlite` or a PostgreSQL URL) and brings its schema up to date.
    pub(crate) async fn open(database: &str, data_dir: &Path) -> Result<Self> {
        let db = Self::connect(database, data_dir).await?;
        migrate::run_to(&mut db.writer().await?, migrate::NEWEST).await?;
        Ok(db)
    }

    /// Opens `database`, which must be there and have the newest schema already.
    pub(crate) async fn open_as_is(database: &str, data_dir: &Path) -> Result<Self> {
        let file = data_dir.join(FILE_NAME);
        if database == "sqlite" && !file.exists() {
            return Err(Error::not_found(format!("there is no database at {}; name the data directory with --data-dir", file.display())));
        }
        let db = Self::connect(database, data_dir).await?;
        let version = migrate::version(&mut db.reader().await?).await?;
        migrate::refuse_newer(version)?;
        if version == Some(migrate::NEWEST) {
            return Ok(db);
        }
        let message =
            "the schema of the database is that of an older program; start this version's server once, which brings it up to date";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// Opens `database` and leaves its schema as it is. A SQLite file that is not there is made, empty.
    pub(crate) async fn connect(database: &str, data_dir: &Path) -> Result<Self> {
        if database == "sqlite" {
            Self::open_sqlite(data_dir).await
        } else if database.starts_with("postgres://") || database.starts_with("postgresql://") {
            Self::open_postgres(database).await
        } else {
            // The text is not repeated: it may hold a password.
            Err(Error::invalid("[store] database is neither `sqlite` nor a URL that starts with postgres://").with_target("store.database"))
        }
    }

    /// One connection writes, some read: readers never wait for the writer, and no two writers ever meet inside SQLite.
    async fn open_sqlite(data_dir: &Path) -> Result<Self> {
        tokio::fs::create_dir_all(data_dir).await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("the data directory {} can not be made", data_dir.display())).with_source(error)
        })?;
        network_fs::refuse(data_dir)?;
        let file = data_dir.join(FILE_NAME);
        let options = SqliteConnectOptions::new().filename(&file).busy_timeout(BUSY_TIMEOUT).foreign_keys(true).disable_statement_logging();
        // FULL: what was answered is on the disk, also after a power failure. Checkpoints are moved a little further apart than
        // the default, because each one writes the touched pages once more.
        let write = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-8192")
            .pragma("wal_autocheckpoint", "4000")
            .pragma("journal_size_limit", "67108864");
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_with(write)
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Unavailable, format!("the database {} can not be opened", file.display())).with_source(error)
            })?;
        let read = SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .max_lifetime(None)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(options.read_only(true));
        Ok(Self { read: Pool::Sqlite(read), write: Pool::Sqlite(write) })
    }

    async fn open_postgres(url: &str) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| {
                Error::invalid("[store] database is not a PostgreSQL URL that can be read").with_target("store.database").with_source(error)
            })?
            .application_name("trainyard")
            .disable_statement_logging();
        let write = PgPoolOptions::new()
            .max_connections(POSTGRES_WRITERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(|error| {
                let place = format!("{}:{}", options.get_host(), options.get_port());
                Error::new(ErrorKind::Unavailable, format!("the PostgreSQL server at {place} can not be reached or refuses the login"))
                    .with_source(error)
            })?;
        let read = PgPoolOptions::new().max_connections(POSTGRES_READERS).acquire_timeout(ACQUIRE_TIMEOUT).connect_lazy_with(options);
        Ok(Self { read: Pool::Postgres(read), write: Pool::Postgres(write) })
    }

    /// Which database this is.
    pub(crate) fn dialect(&self) -> Dialect {
        match self.read {
            Pool::Sqlite(_) => Dialect::Sqlite,
            Pool::Postgres(_) => Dialect::Postgres,
        }
    }

    /// A connection for reading.
    pub(crate) async fn reader(&self) -> Result<Conn> {
        self.read.acquire().await
    }

    /// A connection for writing. Only the writer and the migrations take one.
    pub(crate) async fn writer(&self) -> Result<Conn> {
        self.write.acquire().await
    }

    /// Whether the database answers.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.reader().await?.fetch_optional(Sql::new("select 1")).await.map(|_| ())
    }

    /// Closes all connections; those in use close when they are given back.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

impl Pool {
    async fn acquire(&self) -> Result<Conn> {
        match self {
            Self::Sqlite(pool) => pool.acquire().await.map(Conn::Sqlite),
            Self::Postgres(pool) => pool.acquire().await.map(Conn::Postgres),
        }
        .map_err(convert)
    }

    async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}
