//! The store as a whole: what it is made of, opening and closing. What it can do is in the files of the nouns.

use std::{path::PathBuf, sync::Arc};

use trainyard_core::Result;

use crate::{
    blobs::Blobs,
    cache::Cache,
    db::{Conn, Db},
    ends::EndCounts,
    live_files::LiveFiles,
    writer::Writer,
};

/// Where things are kept.
#[derive(Clone)]
pub struct StoreOptions {
    /// `sqlite` (a file in the data directory) or a `postgres://` URL, which may hold a password.
    pub database: String,
    /// `file` or an `s3://` URL.
    pub blobs: String,
    /// The data directory.
    pub data_dir: PathBuf,
}

/// The database, the blobs and the live files. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    db: Db,
    writer: Writer,
    cache: Cache,
    blobs: Blobs,
    live_files: LiveFiles,
    ends: EndCounts,
}

impl Store {
    /// Opens the database and brings its schema up to date, and opens the blobs.
    ///
    /// Invalid when the options make no sense, a network file system included; Unavailable when a place cannot be reached.
    /// Starts tasks on the present runtime that end with [`Store::close`] or with the last clone.
    pub async fn open(options: &StoreOptions) -> Result<Store> {
        let db = Db::open(&options.database, &options.data_dir).await?;
        Self::of(db, options)
    }

    /// Opens what is there and leaves the schema as it is, for looking at it beside a server that may be at work.
    ///
    /// Like [`Store::open`]; NotFound when there is no database, Unavailable when its schema is not the newest.
    pub async fn open_as_is(options: &StoreOptions) -> Result<Store> {
        let db = Db::open_as_is(&options.database, &options.data_dir).await?;
        Self::of(db, options)
    }

    fn of(db: Db, options: &StoreOptions) -> Result<Store> {
        let blobs = Blobs::open(&options.blobs, &options.data_dir)?;
        let live_files = LiveFiles::new(&options.data_dir);
        let writer = Writer::start(&db);
        Ok(Self(Arc::new(Inner { db, writer, cache: Cache::default(), blobs, live_files, ends: EndCounts::default() })))
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.0.blobs
    }

    /// The files that still grow.
    pub fn live_files(&self) -> &LiveFiles {
        &self.0.live_files
    }

    /// What ended since this process started.
    pub fn ends(&self) -> &EndCounts {
        &self.0.ends
    }

    /// Whether the database answers; Unavailable when not.
    pub async fn ping(&self) -> Result<()> {
        self.0.db.ping().await
    }

    /// Finishes the writes that wait and closes all connections. Later calls, of any clone, fail with Unavailable.
    pub async fn close(&self) {
        self.0.writer.close().await;
        self.0.db.close().await;
    }

    pub(crate) async fn reader(&self) -> Result<Conn> {
        self.0.db.reader().await
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.0.writer
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub(crate) fn dialect(&self) -> crate::db::Dialect {
        self.0.db.dialect()
    }
}
