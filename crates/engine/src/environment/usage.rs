//! Who uses an environment: a shared lock on its file in `uses/`, held for the life of a run.
//!
//! Nothing has to be cleaned up after a crash, since the system frees the locks of a process that dies. Whoever wants to
//! remove an environment must have the lock for himself. The time of the file is when the environment was last used.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::io::{FdFlags, fcntl_setfd};
use tokio_util::sync::CancellationToken;
use trainyard_core::ids::EnvironmentHash;

use super::{cache::Cache, prepare::PrepareError};

/// How often somebody looks again who found the lock taken; it is taken only as long as a rename lasts.
const POLL: Duration = Duration::from_millis(5);

/// The same for whoever waits until everybody else is done, which may take as long as a build.
const LONG_POLL: Duration = Duration::from_millis(100);

/// Keeps an environment from being removed until it, its clones, and the processes that [inherited](Self::inherit) it are gone.
#[derive(Clone, Debug)]
pub struct InUse(Arc<Held>);

#[derive(Debug)]
struct Held {
    file: File,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        touch(&self.file, &self.path);
    }
}

/// Two are equal if they keep the same environment.
impl PartialEq for InUse {
    fn eq(&self, other: &Self) -> bool {
        self.0.path == other.0.path
    }
}

impl Eq for InUse {}

impl InUse {
    /// Begins a use. `None` where the cache can only be read: then nobody of this user removes anything from it either.
    pub(super) async fn begin(cache: &Cache, hash: &EnvironmentHash, cancel: &CancellationToken) -> Result<Option<Self>, PrepareError> {
        Self::share(cache.use_file(hash), cancel).await
    }

    /// Shares the lock on any file of this kind.
    pub(super) async fn share(path: PathBuf, cancel: &CancellationToken) -> Result<Option<Self>, PrepareError> {
        let failed = |error| PrepareError::disk(format!("failed to lock {}", path.display()), error);
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        loop {
            match file.try_lock_shared() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(PrepareError::Cancelled),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        touch(&file, &path);
        Ok(Some(Self(Arc::new(Held { file, path }))))
    }

    /// [`InUse::begin`] for whoever may block.
    pub(super) fn wait(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        file.lock_shared()?;
        touch(&file, &path);
        Ok(Self(Arc::new(Held { file, path })))
    }

    /// Lets every process that is started from now on hold the lock, too: code whose agent was killed keeps its environment
    /// until it is gone itself.
    pub fn inherit(&self) {
        if let Err(error) = fcntl_setfd(&self.0.file, FdFlags::empty()) {
            tracing::warn!(%error, "the code does not hold the lock of its environment; its agent does");
        }
    }
}

/// The right to remove an environment, as long as it is held.
pub(super) struct Unused {
    _file: File,
}

impl Unused {
    /// `None`: somebody uses it.
    pub(super) fn claim(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// [`Unused::claim`], once nobody uses it any more.
    pub(super) async fn wait(path: &Path, cancel: &CancellationToken) -> Result<Self, PrepareError> {
        loop {
            let claimed = Self::claim(path);
            if let Some(claimed) = claimed.map_err(|error| PrepareError::disk(format!("failed to lock {}", path.display()), error))? {
                return Ok(claimed);
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(PrepareError::Cancelled),
                () = tokio::time::sleep(LONG_POLL) => {}
            }
        }
    }
}

/// Whether somebody holds the lock on this file. For display: it may be otherwise a moment later.
pub(super) fn is_in_use(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // Whoever begins a use in this very moment looks again a little later.
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

fn open(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn touch(file: &File, path: &Path) {
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!(path = %path.display(), %error, "the last use of an environment is not noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_environment_is_in_use_as_long_as_anybody_holds_it_and_also_by_a_process_that_inherited_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("uses/x.lock");
        let cancel = CancellationToken::new();
        assert!(!is_in_use(&path));
        let first = InUse::share(path.clone(), &cancel).await.unwrap().unwrap();
        let second = InUse::share(path.clone(), &cancel).await.unwrap().unwrap();
        drop(first.clone());
        drop(first);
        assert!(is_in_use(&path) && Unused::claim(&path).unwrap().is_none());
        second.inherit();
        let mut code = tokio::process::Command::new("sleep").arg("300").spawn().unwrap();
        drop(second);
        assert!(is_in_use(&path), "the process that inherited the lock lives");
        code.kill().await.unwrap();
        assert!(!is_in_use(&path));
        let claimed = Unused::claim(&path).unwrap().unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(50), InUse::share(path.clone(), &cancel)).await;
        assert!(waits.is_err(), "it was begun to be used while it was being removed");
        drop(claimed);
        assert!(InUse::share(path, &cancel).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_end_of_a_use_counts_as_the_last_use() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.lock");
        let used = InUse::share(path.clone(), &CancellationToken::new()).await.unwrap().unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        File::open(&path).unwrap().set_modified(long_ago).unwrap();
        drop(used);
        assert!(std::fs::metadata(&path).unwrap().modified().unwrap() > long_ago);
    }
}
