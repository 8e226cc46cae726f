//! Files that still grow: logs of runs in execution, appended to by agents and followed by readers.
//!
//! They are plain files under `DIR/live/<workspace>/<run>.<attempt>/<path>`, not rows: an attempt that was given up can not write into the files
//! of the next one. An agent sends the offset with the bytes; what is
//! there already is skipped and a gap is refused with the present length, so that an agent which lost an answer, or whose
//! server lost power before the bytes reached the disk, finds its place again from its own spool. That is why nothing is
//! flushed here: the agent keeps what it sent until the file is a blob. Files only grow.

mod inventory;

use std::{
    fs, io,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{AttemptId, RunId, WorkspaceId},
};

use crate::artifacts::Artifact;

/// Longest path of a live file, in bytes.
const MAX_PATH: usize = 1024;
/// Longest part between two slashes: what file systems take.
const MAX_COMPONENT: usize = 255;
/// Locks that appends are spread over.
const LOCKS: usize = 64;
/// Longest run id that is a folder's name as it is.
const MAX_PLAIN_RUN: usize = 180;

/// Which live file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LiveKey {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The run.
    pub run: RunId,
    /// The attempt that writes it; `None` for files from before a run could have several.
    pub attempt: Option<AttemptId>,
    /// The path in the run's artifact container, e.g. `azureml-logs/70_driver_log.txt`.
    pub path: String,
}

impl LiveKey {
    /// The live file of an artifact of a run that is one still; `None` when it is in a container that is no run's.
    pub fn of(artifact: &Artifact) -> Option<Self> {
        let run = artifact.run()?;
        Some(Self { workspace: artifact.workspace, run, attempt: artifact.attempt, path: artifact.path.clone() })
    }
}

/// The live files of a data directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LiveFiles {
    root: PathBuf,
    /// Appends to one file exclude each other.
    locks: Arc<[Mutex<()>; LOCKS]>,
}

/// Behind the Conflict of an append that would leave a gap.
#[derive(Debug, thiserror::Error)]
#[error("the file has {length} bytes")]
struct Gap {
    length: u64,
}

impl LiveFiles {
    /// The live files under `data_dir`. Nothing is made before the first append.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("live"), locks: Arc::new(std::array::from_fn(|_| Mutex::new(()))) }
    }

    /// Appends `bytes`, the first of which belongs at `offset`; gives the new length. Bytes before the present length were sent
    /// before and are skipped.
    ///
    /// Conflict when `offset` is beyond the present length, which [`LiveFiles::gap`] takes out of the error; Invalid for a bad path;
    /// StorageFull.
    pub async fn append(&self, key: &LiveKey, offset: u64, bytes: Bytes) -> Result<u64> {
        let file = self.locate(key)?;
        let shown = key.path.clone();
        let locks = Arc::clone(&self.locks);
        // Locked in the thread and not around it: a caller that is dropped leaves the thread at work.
        blocking(move || {
            let _alone = locks[lock_index(&file)].lock().unwrap_or_else(PoisonError::into_inner);
            append(&file, offset, &bytes, &shown)
        })
        .await
    }

    /// The present length, when `error` is the Conflict of an append that would have left a gap.
    pub fn gap(error: &Error) -> Option<u64> {
        let source = std::error::Error::source(error)?;
        source.downcast_ref::<Gap>().map(|gap| gap.length)
    }

    /// The length; `None` when there is no such file.
    pub async fn len(&self, key: &LiveKey) -> Result<Option<u64>> {
        let file = self.locate(key)?;
        blocking(move || match fs::metadata(&file) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        })
        .await
    }

    /// The bytes of `range`, as far as they are there. They are read into memory: ask for pieces. NotFound when there is no such
    /// file.
    pub async fn read(&self, key: &LiveKey, range: Range<u64>) -> Result<Bytes> {
        let (file, shown) = (self.locate(key)?, key.path.clone());
        blocking(move || {
            let mut file = fs::File::open(&file).map_err(|error| absent_or_failed(error, &shown))?;
            file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
            let mut bytes = Vec::new();
            file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes).map_err(failed)?;
            Ok(bytes.into())
        })
        .await
    }

    /// Where the file is on disk, for streaming it elsewhere. NotFound when there is none.
    pub async fn path(&self, key: &LiveKey) -> Result<PathBuf> {
        let (file, shown) = (self.locate(key)?, key.path.clone());
        blocking(move || match fs::metadata(&file) {
            Ok(_) => Ok(file),
            Err(error) => Err(absent_or_failed(error, &shown)),
        })
        .await
    }

    /// The paths of an attempt's live files, in the order of their bytes.
    pub async fn list(&self, workspace: WorkspaceId, run: &RunId, attempt: Option<AttemptId>) -> Result<Vec<String>> {
        let folder = self.folder(workspace, run, attempt);
        blocking(move || {
            let mut paths = Vec::new();
            collect(&folder, "", &mut paths)?;
            paths.sort();
            Ok(paths)
        })
        .await
    }

    /// Removes one live file, so that it can be written anew; that there is none is fine.
    pub async fn remove(&self, key: &LiveKey) -> Result<()> {
        let file = self.locate(key)?;
        let locks = Arc::clone(&self.locks);
        blocking(move || {
            let _alone = locks[lock_index(&file)].lock().unwrap_or_else(PoisonError::into_inner);
            match fs::remove_file(&file) {
                Err(error) if !is_absent(&error) => Err(failed(error)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Removes all live files of an attempt; that there are none is fine.
    pub async fn remove_all(&self, workspace: WorkspaceId, run: &RunId, attempt: Option<AttemptId>) -> Result<()> {
        let folder = self.folder(workspace, run, attempt);
        blocking(move || match fs::remove_dir_all(&folder) {
            Err(error) if !is_absent(&error) => Err(failed(error)),
            _ => Ok(()),
        })
        .await
    }

    fn folder(&self, workspace: WorkspaceId, run: &RunId, attempt: Option<AttemptId>) -> PathBuf {
        let run = run_folder(run);
        let name = attempt.map_or_else(|| run.clone(), |attempt| format!("{run}.{attempt}"));
        self.root.join(workspace.to_string()).join(name)
    }

    /// Where the file of `key` is, or would be.
    pub(crate) fn locate(&self, key: &LiveKey) -> Result<PathBuf> {
        check_path(&key.path)?;
        Ok(self.folder(key.workspace, &key.run, key.attempt).join(&key.path))
    }
}

/// A run id may be one character longer than a folder's name; a long one is cut and told apart by its hash. The dot keeps such
/// names apart from ids, which have none.
fn run_folder(run: &RunId) -> String {
    let id = run.as_str();
    if id.len() <= MAX_PLAIN_RUN {
        return id.to_owned();
    }
    format!("{}.{}", &id[..100], hex::encode(Sha256::digest(id.as_bytes())))
}

/// Relative, in plain components, of bounded length.
fn check_path(path: &str) -> Result<()> {
    let reason = if path.is_empty() {
        "it is empty".to_owned()
    } else if path.len() > MAX_PATH {
        format!("it is longer than {MAX_PATH} bytes")
    } else if path.chars().any(char::is_control) {
        "it holds a control character".to_owned()
    } else if path.contains('\\') {
        "it holds a backslash; parts are divided by `/`".to_owned()
    } else if path.starts_with('/') {
        "it is absolute".to_owned()
    } else if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        "it has an empty part, `.` or `..`".to_owned()
    } else if path.split('/').any(|part| part.len() > MAX_COMPONENT) {
        format!("one of its parts is longer than {MAX_COMPONENT} bytes")
    } else {
        return Ok(());
    };
    let shown: String = path.chars().filter(|c| !c.is_control()).take(120).collect();
    Err(Error::invalid(format!("`{shown}` can not be the path of a file: {reason}")).with_target("path"))
}

fn lock_index(file: &Path) -> usize {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    usize::try_from(hasher.finish() % LOCKS as u64).expect("less than the number of locks")
}

fn append(file: &Path, offset: u64, bytes: &[u8], shown: &str) -> Result<u64> {
    let open = || fs::OpenOptions::new().append(true).create(true).open(file);
    let mut opened = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = file.parent().ok_or_else(|| Error::internal("a live file has no folder"))?;
            fs::create_dir_all(parent).and_then(|()| open())
        }
        other => other,
    }
    .map_err(|error| not_a_file(error, shown))?;
    let length = opened.metadata().map_err(failed)?.len();
    let Some(known) = length.checked_sub(offset) else {
        let message = format!("`{shown}` has {length} bytes; the next must have offset {length}, not {offset}");
        return Err(Error::new(ErrorKind::Conflict, message).with_source(Gap { length }));
    };
    let fresh = usize::try_from(known).ok().and_then(|known| bytes.get(known..)).unwrap_or_default();
    match opened.write_all(fresh) {
        Ok(()) => Ok(length + fresh.len() as u64),
        Err(error) => {
            // A piece that was written in part would be followed by the same bytes again.
            let _ = opened.set_len(length);
            Err(failed(error))
        }
    }
}

fn collect(folder: &Path, prefix: &str, paths: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().map_err(failed)?.is_dir() {
            collect(&entry.path(), &format!("{path}/"), paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::internal(error)))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn absent_or_failed(error: io::Error, shown: &str) -> Error {
    if is_absent(&error) { Error::not_found(format!("`{shown}` was not found among the run's live files")) } else { failed(error) }
}

fn not_a_file(error: io::Error, shown: &str) -> Error {
    match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            let message = format!("`{shown}` is a folder in the run's files, or lies below a file");
            Error::new(ErrorKind::Conflict, message).with_target("path").with_source(error)
        }
        _ => failed(error),
    }
}

fn failed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorKind::StorageFull, "the disk of the data directory is full").with_source(error)
        }
        _ => Error::internal(error),
    }
}

#[cfg(test)]
mod tests;
