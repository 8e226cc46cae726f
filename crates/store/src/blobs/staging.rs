//! Uploads on their way in: counted, hashed, limited, and gone without a trace unless they are committed.
//!
//! Invariant: every file in the staging folder belongs to a [`TempFile`], which removes it when dropped. What a killed process
//! leaves is swept by age.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use trainyard_core::{Error, ErrorKind, Result, ids::Digest};

use super::storage_error;

/// Uploads up to this size stay in memory, and larger ones are written in pieces of it.
pub(super) const IN_MEMORY_BYTES: usize = 1 << 20;

/// Room that an upload begins with: most projects fit, and growing copies what is there.
const FIRST_BYTES: u64 = 128 << 10;

/// The folder of uploads on their way in.
pub(super) struct Staging {
    folder: PathBuf,
    next: AtomicU64,
}

impl Staging {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, next: AtomicU64::new(0) }
    }

    fn create(&self) -> io::Result<TempFile> {
        loop {
            let path = self.folder.join(format!("upload-{}", self.next.fetch_add(1, Ordering::Relaxed)));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok(TempFile { file, path }),
                // Left by a killed process, and swept later.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn sweep(&self, older_than: SystemTime) -> io::Result<usize> {
        Ok(self.stale(older_than)?.into_iter().filter(|path| fs::remove_file(path).is_ok()).count())
    }

    /// The files last written before `older_than`.
    pub(super) fn stale(&self, older_than: SystemTime) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // A file that is gone meanwhile was committed or dropped.
            if entry.metadata().is_ok_and(|meta| meta.is_file() && meta.modified().is_ok_and(|at| at < older_than)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

/// A file in the staging folder, removed when dropped.
pub(super) struct TempFile {
    file: File,
    path: PathBuf,
}

impl TempFile {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Moves it to where it stays.
    pub(super) fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "a staged upload could not be removed");
            }
            _ => {}
        }
    }
}

/// Takes an upload piece by piece. Dropping it, and any error, removes what was staged.
pub struct StagedWriter {
    staging: Arc<Staging>,
    limit_bytes: u64,
    size: u64,
    content: Content,
}

enum Content {
    Memory(BytesMut),
    File(Spill),
    /// A write failed, or its future was dropped before it ended.
    Lost,
}

/// An upload that outgrew memory. It moves into the blocking task that writes it and back, so that a future dropped in the
/// middle leaves neither half a hash nor a file.
struct Spill {
    temp: TempFile,
    hasher: Sha256,
    buffer: BytesMut,
}

impl Spill {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.temp.file.write_all(bytes)
    }

    /// Writes what is buffered, then keeps `chunk` for later or writes it too if it is large itself.
    fn advance(&mut self, chunk: &[u8]) -> io::Result<()> {
        let mut buffer = mem::take(&mut self.buffer);
        self.write(&buffer)?;
        buffer.clear();
        if chunk.len() < IN_MEMORY_BYTES {
            buffer.extend_from_slice(chunk);
        } else {
            self.write(chunk)?;
        }
        self.buffer = buffer;
        Ok(())
    }
}

impl StagedWriter {
    pub(super) fn new(staging: Arc<Staging>, limit_bytes: u64) -> Self {
        Self { staging, limit_bytes, size: 0, content: Content::Memory(BytesMut::with_capacity(limit_bytes.min(FIRST_BYTES) as usize)) }
    }

    /// Bytes taken so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next piece.
    ///
    /// [`ErrorKind::TooLarge`] when the limit is exceeded, [`ErrorKind::StorageFull`] when the disk is full; after an error, or
    /// when this future was dropped, the upload is lost and everything after it fails too.
    pub async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let content = mem::replace(&mut self.content, Content::Lost);
        let size = self.size.saturating_add(chunk.len() as u64);
        if size > self.limit_bytes {
            return Err(Error::new(ErrorKind::TooLarge, format!("the upload is over the limit of {} bytes", self.limit_bytes)));
        }
        self.size = size;
        self.content = match content {
            Content::Memory(mut buffer) if buffer.len() + chunk.len() <= IN_MEMORY_BYTES => {
                buffer.extend_from_slice(&chunk);
                Content::Memory(buffer)
            }
            Content::Memory(buffer) => {
                let staging = self.staging.clone();
                let spilled = spawn_blocking(move || {
                    let mut spill = Spill { temp: staging.create()?, hasher: Sha256::new(), buffer };
                    spill.advance(&chunk).map(|()| spill)
                });
                Content::File(blocking(spilled).await?)
            }
            Content::File(mut spill) if spill.buffer.len() + chunk.len() <= IN_MEMORY_BYTES => {
                spill.buffer.extend_from_slice(&chunk);
                Content::File(spill)
            }
            Content::File(mut spill) => Content::File(blocking(spawn_blocking(move || spill.advance(&chunk).map(|()| spill))).await?),
            Content::Lost => return Err(lost()),
        };
        Ok(())
    }

    /// Ends the upload.
    pub async fn finish(self) -> Result<StagedBlob> {
        let size = self.size;
        match self.content {
            Content::Memory(buffer) => Ok(StagedBlob::of_bytes(buffer.freeze())),
            Content::File(mut spill) => {
                let finished = spawn_blocking(move || {
                    spill.advance(&[])?;
                    Ok((digest(spill.hasher), spill.temp))
                });
                let (digest, temp) = blocking(finished).await?;
                Ok(StagedBlob { digest, size, kept: Kept::File(temp) })
            }
            Content::Lost => Err(lost()),
        }
    }
}

async fn blocking<T>(task: tokio::task::JoinHandle<io::Result<T>>) -> Result<T> {
    task.await.map_err(Error::internal)?.map_err(|error| storage_error("the upload cannot be staged", error))
}

fn lost() -> Error {
    Error::internal("an upload was written to after a write of it had failed")
}

fn digest(hasher: Sha256) -> Digest {
    Digest::new(hex::encode(hasher.finalize())).expect("32 bytes in hexadecimal are a digest")
}

/// A whole upload that is not at its address yet. Dropping it removes it.
pub struct StagedBlob {
    digest: Digest,
    size: u64,
    kept: Kept,
}

enum Kept {
    Memory(Bytes),
    File(TempFile),
}

/// Where the bytes of a [`StagedBlob`] can be read.
#[derive(Clone, Copy, Debug)]
pub enum StagedContent<'a> {
    /// Here.
    Memory(&'a Bytes),
    /// In this file, for as long as the staged blob lives.
    File(&'a Path),
}

impl StagedBlob {
    pub(super) fn of_bytes(bytes: Bytes) -> Self {
        Self { digest: digest(Sha256::new_with_prefix(&bytes)), size: bytes.len() as u64, kept: Kept::Memory(bytes) }
    }

    /// The address it will have.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes.
    pub fn content(&self) -> StagedContent<'_> {
        match &self.kept {
            Kept::Memory(bytes) => StagedContent::Memory(bytes),
            Kept::File(temp) => StagedContent::File(&temp.path),
        }
    }

    /// Its bytes in a file of the staging folder.
    pub(super) fn into_file(self, staging: &Staging) -> io::Result<TempFile> {
        match self.kept {
            Kept::Memory(bytes) => {
                let mut temp = staging.create()?;
                temp.file.write_all(&bytes)?;
                Ok(temp)
            }
            Kept::File(temp) => Ok(temp),
        }
    }
}

impl fmt::Debug for StagedBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedBlob").field("digest", &self.digest).field("size", &self.size).finish_non_exhaustive()
    }
}
