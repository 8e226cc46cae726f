//! Making a backup, beside a server that may be at work.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{Digest, RunId},
};

use super::{
    Ending, FILES, FOLDERS, FORMAT, MANIFEST, Manifest, TableRows,
    archive::ArchiveWriter,
    rows::{BlobRef, Snapshot, Unsealed},
    tables,
};
use crate::{
    blobs::Blobs,
    db::{Conn, Db, SQLITE_FILE, Sql, migrate},
    live_files::{LiveFiles, LiveKey},
    progress::{Progress, Unit},
    store::StoreOptions,
};

/// Rows of one entry are at most about this many bytes.
const ROWS_BYTES: usize = 4 << 20;
/// Bytes that are read from a file at once.
const PIECE_BYTES: usize = 256 << 10;

/// What a backup holds.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its first entry.
    pub manifest: Manifest,
    /// Its last one.
    pub ending: Ending,
    /// Logs that still grew.
    pub live_files: u64,
    /// Keys, certificates and settings.
    pub files: u64,
}

/// Writes everything that a server with these options needs to `file`, which appears when it is whole. The server may be at work.
///
/// NotFound when there is no database; Unavailable when it is one of a newer program, or `file` cannot be written; StorageFull.
pub async fn write(options: &StoreOptions, file: &Path, at_us: i64, progress: Arc<dyn Progress>) -> Result<Written> {
    if options.database == "sqlite" && !options.data_dir.join(SQLITE_FILE).exists() {
        return Err(nothing(options));
    }
    let db = Db::connect(&options.database, &options.data_dir).await?;
    let version = migrate::version(&mut db.reader().await?).await?;
    migrate::refuse_newer(version)?;
    let version = version.ok_or_else(|| nothing(options))?;
    let mut archive = ArchiveWriter::create(file, u64::try_from(at_us / 1_000_000).unwrap_or_default())?;
    let mut writing = Writing {
        blobs: Blobs::open(&options.blobs, &options.data_dir)?,
        data_dir: options.data_dir.clone(),
        archive: &mut archive,
        progress,
        missing: Vec::new(),
        live_files: 0,
        files: 0,
    };
    let written = writing.everything(&db, (version, at_us)).await;
    let (missing, live_files, files) = (writing.missing, writing.live_files, writing.files);
    db.close().await;
    match written {
        Ok(manifest) => Ok(Written { manifest, ending: archive.finish(missing).await?, live_files, files }),
        Err(error) => {
            archive.abandon().await;
            Err(error)
        }
    }
}

fn nothing(options: &StoreOptions) -> Error {
    let place = if options.database == "sqlite" { options.data_dir.join(SQLITE_FILE).display().to_string() } else { "PostgreSQL".into() };
    Error::not_found(format!("there is no database of a server at {place}; name the data directory with --data-dir"))
}

struct Writing<'a> {
    blobs: Blobs,
    data_dir: PathBuf,
    archive: &'a mut ArchiveWriter,
    progress: Arc<dyn Progress>,
    missing: Vec<String>,
    live_files: u64,
    files: u64,
}

impl Writing<'_> {
    async fn everything(&mut self, db: &Db, (version, at_us): (i64, i64)) -> Result<Manifest> {
        let mut snapshot = Snapshot::begin(db.reader().await?, version).await?;
        let rows = self.rows(&mut snapshot, at_us).await;
        // Before the blobs: a transaction that stays open keeps the database from tidying up.
        snapshot.end().await;
        let (manifest, blobs, unsealed) = rows?;
        self.live(db, unsealed).await?;
        self.small_files().await?;
        self.progress.begin("copying blobs", manifest.blob_bytes, Unit::Bytes);
        for blob in blobs {
            self.blob(blob).await?;
        }
        Ok(manifest)
    }

    /// The manifest and the rows; what the rows name is for the caller to add.
    async fn rows(&mut self, snapshot: &mut Snapshot, at_us: i64) -> Result<(Manifest, Vec<BlobRef>, Vec<Unsealed>)> {
        let blobs = snapshot.blobs().await?;
        let unsealed = snapshot.unsealed().await?;
        let mut listed = Vec::new();
        for table in tables::tables(snapshot.version) {
            listed.push(TableRows {
                name: table.name.to_owned(),
                columns: table.columns(snapshot.version).map(|column| column.name.to_owned()).collect(),
                rows: snapshot.count(table).await?,
            });
        }
        let manifest = Manifest {
            format: FORMAT,
            program: format!("trainyard {}", env!("CARGO_PKG_VERSION")),
            schema: snapshot.version,
            made: jiff::Timestamp::from_microsecond(at_us).map_err(Error::internal)?.to_string(),
            tables: listed,
            blobs: blobs.len() as u64,
            blob_bytes: blobs.iter().map(|blob| blob.size_bytes).sum(),
        };
        self.archive.entry(MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(Error::internal)?.into()).await?;
        self.progress.begin("copying rows", manifest.rows(), Unit::Count);
        for table in tables::tables(snapshot.version) {
            self.table(snapshot, table).await?;
        }
        Ok((manifest, blobs, unsealed))
    }

    async fn table(&mut self, snapshot: &mut Snapshot, table: &tables::Table) -> Result<()> {
        let (mut after, mut number, mut text) = (None, 0, String::new());
        loop {
            let rows = snapshot.rows(table, after.as_deref()).await?;
            after = rows.last().map(|last| table.key_of(snapshot.version, last));
            for row in &rows {
                text.push_str(&tables::encode(row));
                text.push('\n');
            }
            self.progress.advance(rows.len() as u64);
            if text.len() >= ROWS_BYTES || (after.is_none() && !text.is_empty()) {
                number += 1;
                self.archive.entry(format!("rows/{}/{number:06}.jsonl", table.name), std::mem::take(&mut text).into()).await?;
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The logs that still grow, as far as they go now; one that became a blob meanwhile is taken from there.
    async fn live(&mut self, db: &Db, unsealed: Vec<Unsealed>) -> Result<()> {
        let root = self.data_dir.join("live");
        self.progress.begin("copying growing logs", unsealed.len() as u64, Unit::Count);
        let live_files = LiveFiles::new(&self.data_dir);
        for artifact in unsealed {
            let place = live_key(&artifact).and_then(|key| live_files.locate(&key).ok());
            let Some(relative) = place.as_ref().and_then(|place| place.strip_prefix(&root).ok()).map(|path| path.display().to_string())
            else {
                self.missing.push(format!("{}/{}", artifact.container, artifact.path));
                continue;
            };
            let kept = self.file(&root.join(&relative), format!("live/{relative}")).await? || self.sealed(db, &artifact, &relative).await?;
            if kept {
                self.live_files += 1;
            } else {
                self.missing.push(format!("live/{relative}"));
            }
            self.progress.advance(1);
        }
        Ok(())
    }

    /// Takes the content of an artifact that was a live file in the snapshot and is a blob now.
    async fn sealed(&mut self, db: &Db, artifact: &Unsealed, relative: &str) -> Result<bool> {
        let Some(digest) = sealed_as(&mut db.reader().await?, artifact).await? else { return Ok(false) };
        self.blob_as(&digest, format!("live/{relative}")).await
    }

    async fn small_files(&mut self) -> Result<()> {
        let mut paths: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
        for folder in FOLDERS {
            walk(&self.data_dir, Path::new(folder), &mut paths).map_err(|error| unreadable(&self.data_dir.join(folder), error))?;
        }
        for path in paths {
            if self.file(&self.data_dir.join(&path), format!("files/{}", path.display())).await? {
                self.files += 1;
            }
        }
        Ok(())
    }

    /// A file as long as it is now; false if there is none.
    async fn file(&mut self, path: &Path, name: String) -> Result<bool> {
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(false),
            Err(error) => return Err(unreadable(path, error)),
        };
        let mut left = file.metadata().map_err(|error| unreadable(path, error))?.len();
        self.archive.begin(name, left).await?;
        while left > 0 {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
            let count = file.read(&mut piece).map_err(|error| unreadable(path, error))?;
            if count == 0 {
                return Err(unreadable(path, std::io::ErrorKind::UnexpectedEof.into()));
            }
            piece.truncate(count);
            left -= count as u64;
            self.archive.bytes(piece.into()).await?;
        }
        Ok(true)
    }

    async fn blob(&mut self, blob: BlobRef) -> Result<()> {
        let digest = Digest::new(hex::encode(blob.sha256)).map_err(Error::internal)?;
        let name = format!("blobs/{}/{digest}", &digest.as_str()[..2]);
        if !self.blob_as(&digest, name.clone()).await? {
            self.missing.push(name);
        }
        self.progress.advance(blob.size_bytes);
        Ok(())
    }

    async fn blob_as(&mut self, digest: &Digest, name: String) -> Result<bool> {
        let mut reader = match self.blobs.read(digest, None).await {
            Ok(reader) => reader,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        self.archive.begin(name, reader.size).await?;
        while let Some(piece) = reader.stream.try_next().await? {
            let piece: Bytes = piece;
            self.archive.bytes(piece).await?;
        }
        Ok(true)
    }
}

fn live_key(artifact: &Unsealed) -> Option<LiveKey> {
    Some(LiveKey {
        workspace: artifact.workspace.parse().ok()?,
        run: RunId::new(artifact.container.strip_prefix("dcid.")?).ok()?,
        attempt: artifact.attempt.as_deref().map(str::parse).transpose().ok()?,
        path: artifact.path.clone(),
    })
}

/// The blob that an artifact became since; it may have been moved to the folder of its attempt.
async fn sealed_as(conn: &mut Conn, artifact: &Unsealed) -> Result<Option<Digest>> {
    let plain = Sql::new("select path, digest from artifacts where workspace = $1 and container = $2 and digest is not null and path = $3");
    let moved = "select path, digest from artifacts where workspace = $1 and container = $2 and digest is not null and attempt = $3";
    let bind = |sql: Sql| sql.bind(artifact.workspace.as_str()).bind(artifact.container.as_str());
    let sql = match &artifact.attempt {
        Some(attempt) => bind(Sql::new(moved)).bind(attempt.as_str()),
        None => bind(plain).bind(artifact.path.as_str()),
    };
    for row in conn.fetch_all(sql).await? {
        let mut row = row.columns();
        let path = row.text()?;
        let aside = path.strip_prefix("attempts/").and_then(|rest| rest.split_once('/')).map(|(_, path)| path);
        if path == artifact.path || aside == Some(artifact.path.as_str()) {
            return row.parse().map(Some);
        }
    }
    Ok(None)
}

/// The files below `folder`, relative to `root`. Locks are no content.
fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(root.join(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(root, &path, found)?;
        } else if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(path);
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} cannot be read", path.display())).with_source(error)
}
