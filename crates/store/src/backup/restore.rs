//! Putting a backup back.
//!
//! Nothing is touched before the whole backup was read and found good. Then blobs go to their addresses (which hurts nobody) and all else
//! beside the present state; `restore.json` says from when on there is no way back, and what comes after it can be done again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use trainyard_core::{Error, ErrorKind, Result, ids::Digest, run::Retries};

use super::{
    Ending, Manifest,
    archive::blob_name,
    intent::Intent,
    read::{Contents, Entries, Piece},
    staged::{self, Staged},
    tables::{self, Table},
};
use crate::{
    blobs::Blobs,
    db::{Conn, Db, SQLITE_FILE, Sql, Value, json::encode, migrate},
    progress::{Progress, Unit},
    server_settings::{self, Drained},
    store::StoreOptions,
};

/// Rows that are inserted with one statement.
const ROWS: usize = 100;

/// What happens to a server that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It is not touched: the restore is refused.
    Refuse,
    /// Its SQLite database and files are moved aside. A PostgreSQL database must be empty in any case.
    MoveAside,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Rows that were put back.
    pub rows: u64,
    /// Blobs that were put back or were there.
    pub blobs: u64,
    /// What was there before, and is kept under these names.
    pub moved_aside: Vec<PathBuf>,
    /// Runs that were not over when the backup was made: nothing of them is tried again by itself.
    pub held_runs: u64,
}

/// Restores the backup `file`, which [`super::verify`] has found to hold `contents`, to where `options` say. The caller holds the lock of the data
/// directory. Afterwards the server is drained, and what was not over in the backup is held. The backup's configuration is put into a data
/// directory that has none.
///
/// Conflict when there is something already (see `replace`), or another restore was begun; StorageFull.
pub async fn restore(
    (file, contents): (&Path, &Contents),
    options: &StoreOptions,
    replace: Replace,
    at_us: i64,
    progress: Arc<dyn Progress>,
) -> Result<Restored> {
    let data_dir = &options.data_dir;
    let restoring = Restoring { file, manifest: &contents.manifest, ending: &contents.ending, options, progress };
    let intent = match Intent::read(data_dir)? {
        Some(intent) if intent.backup != contents.ending.sums_sha256 => {
            let message = format!(
                "a restore of another backup was begun in {} and not finished; finish that one first: trainyard restore {}",
                data_dir.display(),
                intent.file.display()
            );
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        Some(intent) => intent,
        None => {
            refuse_occupied(options, replace).await?;
            restoring.stage().await?;
            let intent = Intent { backup: contents.ending.sums_sha256.clone(), file: file.to_owned(), stamp: stamp(at_us)? };
            intent.write(data_dir)?;
            intent
        }
    };
    let held_runs = restoring.finish_database().await?;
    let moved_aside = Staged::of(data_dir).swap(&intent.stamp)?;
    if let Some(config) = &contents.config {
        staged::place_config(data_dir, config)?;
    }
    Intent::remove(data_dir)?;
    let missing = contents.ending.missing.iter().filter(|name| name.starts_with("blobs/")).count() as u64;
    Ok(Restored { rows: contents.manifest.rows(), blobs: contents.manifest.blobs - missing, moved_aside, held_runs })
}

fn stamp(at_us: i64) -> Result<String> {
    Ok(jiff::Timestamp::from_microsecond(at_us).map_err(Error::internal)?.strftime("%Y%m%dT%H%M%SZ").to_string())
}

fn is_sqlite(options: &StoreOptions) -> bool {
    options.database == "sqlite"
}

/// Fails when there is something that a restore would overwrite.
async fn refuse_occupied(options: &StoreOptions, replace: Replace) -> Result<()> {
    if is_sqlite(options) {
        let file = options.data_dir.join(SQLITE_FILE);
        if replace == Replace::MoveAside || !file.exists() {
            return Ok(());
        }
        let occupied = match Db::connect(&options.database, &options.data_dir).await {
            // What cannot be read may be worth something still.
            Err(_) => true,
            Ok(db) => {
                let occupied = holds_rows(&db).await.unwrap_or(true);
                db.close().await;
                occupied
            }
        };
        if !occupied {
            return Ok(());
        }
        let message = format!(
            "the data directory {} holds a server's data already; restore to another one, or say --replace to move it aside",
            options.data_dir.display()
        );
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let db = Db::connect(&options.database, &options.data_dir).await?;
    let occupied = holds_rows(&db).await;
    db.close().await;
    if !occupied? {
        return Ok(());
    }
    let message = "the PostgreSQL database holds a server's rows already, and a restore never removes rows; make an empty one (`createdb NAME`) \
                   and name it in [store] database";
    Err(Error::new(ErrorKind::Conflict, message))
}

/// Whether any table has a row, or the schema is one that is not known.
async fn holds_rows(db: &Db) -> Result<bool> {
    let mut conn = db.writer().await?;
    let Some(version) = migrate::version(&mut conn).await? else { return Ok(false) };
    migrate::refuse_newer(Some(version))?;
    for table in tables::tables(version) {
        let mut sql = Sql::new("select 1 from ");
        sql.push(table.name).push(" limit 1");
        if conn.fetch_optional(sql).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Restoring<'a> {
    file: &'a Path,
    manifest: &'a Manifest,
    ending: &'a Ending,
    options: &'a StoreOptions,
    progress: Arc<dyn Progress>,
}

impl Restoring<'_> {
    /// Everything that can be done without touching what is there.
    async fn stage(&self) -> Result<()> {
        let staged = Staged::new(&self.options.data_dir)?;
        self.files_and_blobs(&staged).await?;
        if is_sqlite(self.options) {
            let db = Db::connect("sqlite", staged.root()).await?;
            let filled = async {
                self.fill(&db).await?;
                finish_rows(&db).await?;
                // One file, without a log beside it.
                db.writer().await?.fetch_all(Sql::new("pragma wal_checkpoint(truncate)")).await.map(drop)
            };
            let filled = filled.await;
            db.close().await;
            filled?;
        }
        staged.sync()
    }

    /// PostgreSQL has no place beside the present one: it is filled in one transaction, so that it is empty or complete.
    async fn finish_database(&self) -> Result<u64> {
        if is_sqlite(self.options) {
            let staged = Staged::of(&self.options.data_dir);
            let folder = if staged.root().join(SQLITE_FILE).exists() { staged.root().to_owned() } else { self.options.data_dir.clone() };
            let db = Db::connect("sqlite", &folder).await?;
            let held = count_held(&db).await;
            db.close().await;
            return held;
        }
        let db = Db::connect(&self.options.database, &self.options.data_dir).await?;
        let done = async {
            if !holds_rows(&db).await? {
                self.fill(&db).await?;
            }
            finish_rows(&db).await?;
            count_held(&db).await
        };
        let done = done.await;
        db.close().await;
        done
    }

    async fn files_and_blobs(&self, staged: &Staged) -> Result<()> {
        let blobs = Blobs::open(&self.options.blobs, &self.options.data_dir)?;
        self.progress.begin("restoring blobs", self.manifest.blob_bytes, Unit::Bytes);
        let mut entries = Entries::open(self.file);
        while let Some(entry) = entries.next().await? {
            if let Some(digest) = blob_name(&entry.name).filter(|_| !self.ending.damaged.contains(&entry.name)) {
                let digest = Digest::new(digest)?;
                put_blob(&blobs, &digest, &mut entries).await?;
                self.progress.advance(entry.size);
            } else if let Some(mut file) = staged.file(&entry.name)? {
                while let Piece::Bytes(bytes) = entries.piece().await? {
                    file.write(&bytes)?;
                }
                file.finish()?;
            } else {
                entries.stream(|_| {}).await?;
            }
        }
        Ok(())
    }

    /// Brings an empty database to the schema of the backup and puts the rows in, all or none.
    async fn fill(&self, db: &Db) -> Result<()> {
        let mut conn = db.writer().await?;
        migrate::run_to(&mut conn, self.manifest.schema).await?;
        if migrate::version(&mut conn).await? != Some(self.manifest.schema) {
            let message = "the database is empty and has the schema of a newer program than the backup; make a new, empty one and name it in [store] database";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let begin = conn.dialect().begin_write();
        conn.execute(Sql::new(begin)).await?;
        match self.rows(&mut conn).await {
            Ok(()) => conn.execute(Sql::new("commit")).await.map(|_| ()),
            Err(error) => {
                conn.discard().await;
                Err(error)
            }
        }
    }

    async fn rows(&self, conn: &mut Conn) -> Result<()> {
        self.progress.begin("restoring rows", self.manifest.rows(), Unit::Count);
        let mut entries = Entries::open(self.file);
        while let Some(entry) = entries.next().await? {
            let name = entry.name.strip_prefix("rows/").and_then(|rest| rest.split_once('/')).map(|(table, _)| table.to_owned());
            let Some(name) = name else {
                entries.stream(|_| {}).await?;
                continue;
            };
            let table = tables::table_of(self.manifest.schema, &name)
                .ok_or_else(|| Error::invalid(format!("the backup has rows of a table `{name}`, which its schema does not have")))?;
            let (mut rest, mut rows) = (Vec::new(), Vec::new());
            while let Piece::Bytes(bytes) = entries.piece().await? {
                rest.extend_from_slice(&bytes);
                let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                for line in rest.drain(..whole).as_slice().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let line =
                        std::str::from_utf8(line).map_err(|error| Error::invalid("a row of the backup is no text").with_source(error))?;
                    rows.push(table.decode(self.manifest.schema, line)?);
                }
                while rows.len() >= ROWS {
                    self.insert(conn, table, rows.drain(..ROWS).collect()).await?;
                }
            }
            self.insert(conn, table, rows).await?;
        }
        Ok(())
    }

    async fn insert(&self, conn: &mut Conn, table: &Table, rows: Vec<Vec<Value>>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.progress.advance(rows.len() as u64);
        let mut sql = table.insert(self.manifest.schema);
        for (index, row) in rows.into_iter().enumerate() {
            if index > 0 {
                sql.push(", ");
            }
            sql.push_row(row);
        }
        conn.execute(sql).await.map(|_| ())
    }
}

async fn put_blob(blobs: &Blobs, digest: &Digest, entries: &mut Entries) -> Result<()> {
    let mut staged = blobs.stage(u64::MAX).await?;
    while let Piece::Bytes(bytes) = entries.piece().await? {
        staged.write(bytes).await?;
    }
    let staged = staged.finish().await?;
    if staged.digest() != digest {
        return Err(Error::invalid(format!("the blob {digest} in the backup has another content; use another backup")));
    }
    blobs.commit(staged).await.map(|_| ())
}

/// Brings the schema to the newest version, drains the server, and holds what was not over: what became of it since the backup is not known.
async fn finish_rows(db: &Db) -> Result<()> {
    let mut conn = db.writer().await?;
    migrate::run_to(&mut conn, migrate::NEWEST).await?;
    let begin = conn.dialect().begin_write();
    conn.execute(Sql::new(begin)).await?;
    match hold(&mut conn).await {
        Ok(()) => conn.execute(Sql::new("commit")).await.map(|_| ()),
        Err(error) => {
            conn.discard().await;
            Err(error)
        }
    }
}

/// Runs that this server executes and that are not over.
macro_rules! unfinished {
    ($columns:literal) => {
        concat!("select ", $columns, " from runs where ownership = 'Managed' and state not in ('Completed', 'Failed', 'Canceled')")
    };
}

async fn hold(conn: &mut Conn) -> Result<()> {
    conn.execute(server_settings::set(Drained::Yes)).await?;
    for row in conn.fetch_all(Sql::new(unfinished!("workspace, id, retries"))).await? {
        let mut row = row.columns();
        let (workspace, id) = (row.text()?, row.text()?);
        let retries: Option<Retries> = row.opt_json()?;
        let held = Retries { held: true, ..retries.unwrap_or_default() };
        let sql = Sql::new("update runs set retries = $3 where workspace = $1 and id = $2");
        conn.execute(sql.bind(workspace).bind(id).bind(encode(&held)?)).await?;
    }
    Ok(())
}

async fn count_held(db: &Db) -> Result<u64> {
    let row = db.writer().await?.fetch_optional(Sql::new(unfinished!("count(*)"))).await?;
    row.ok_or_else(|| Error::internal("a count gave no row"))?.columns().int().map(i64::cast_unsigned)
}
