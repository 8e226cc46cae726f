//! The cache of built environments on disk, and the locks of their builders.
//!
//! ```text
//! cache_dir/envs/<hash>/                 the environment, built in place: its scripts hold absolute paths
//! cache_dir/envs/<hash>/lock.json        what was installed
//! cache_dir/envs/<hash>/.complete        written last; without it the folder is somebody's half-finished work
//! cache_dir/locks/<hash>.lock            held by the one builder; never removed, so that it is one and the same file to all
//! cache_dir/keys/<key>.json              a specification on a node as it was -> the hash of its environment
//! cache_dir/interpreters/<landscape>.json  what was found on the node
//! cache_dir/uv/                          the packages themselves, shared with the environments by hard links
//! ```
//!
//! Locks are `flock`s. A builder hands its lock to the installer as standard input, so that the lock is held until the
//! installer is gone too: an installer that outlives its killed agent can not write into somebody else's build.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trainyard_core::ids::EnvironmentHash;

use super::{command::Console, host::is_executable, prepare::PrepareError};

/// How often a waiting builder looks again.
const POLL: Duration = Duration::from_millis(50);
const MARKER: &str = ".complete";

/// What was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The full version of Python, e.g. `3.11.7`.
    pub python: String,
    /// Everything installed, by name.
    pub packages: Vec<LockedPackage>,
    /// What built it, e.g. `uv 0.13.9`.
    pub builder: String,
}

/// A package of a [`Lock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPackage {
    /// Its name, in the form of PEP 503.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What the fast path needs to know of an earlier preparation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) hash: EnvironmentHash,
    pub(super) warnings: Vec<String>,
}

/// The cache in one folder.
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(super) fn at(root: &Path) -> Result<Self, PrepareError> {
        if !root.is_absolute() {
            return Err(PrepareError::Settings(format!("the cache folder of environments, `{}`, is not an absolute path", root.display())));
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where uv keeps packages.
    pub(super) fn packages(&self) -> PathBuf {
        self.root.join("uv")
    }

    pub(super) fn root_of_environments(&self) -> PathBuf {
        self.root.join("envs")
    }

    pub(super) fn environment(&self, hash: &EnvironmentHash) -> PathBuf {
        self.root_of_environments().join(hash.as_str())
    }

    pub(super) fn lock_file(&self, hash: &EnvironmentHash) -> PathBuf {
        self.root.join("locks").join(format!("{hash}.lock"))
    }

    /// What the preparation with this key led to.
    pub(super) fn remembered(&self, key: &EnvironmentHash) -> Option<Remembered> {
        self.recall("keys", key.as_str())
    }

    pub(super) fn remember(&self, key: &EnvironmentHash, remembered: &Remembered) {
        self.note("keys", key.as_str(), remembered);
    }

    /// Reads a note; a missing or unreadable one is as good as none.
    pub(super) fn recall<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Option<T> {
        let text = std::fs::read(self.root.join(kind).join(format!("{name}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes a note. Notes only save time, so a failure is logged and otherwise of no consequence.
    pub(super) fn note<T: Serialize>(&self, kind: &str, name: &str, value: &T) {
        let folder = self.root.join(kind);
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&folder)?;
            let aside = folder.join(format!(".{name}.{}", std::process::id()));
            std::fs::write(&aside, serde_json::to_vec(value)?)?;
            std::fs::rename(&aside, folder.join(format!("{name}.json")))
        };
        if let Err(error) = write() {
            tracing::warn!(folder = %folder.display(), %error, "failed to write a note of the environment cache");
        }
    }

    /// What is installed in the environment, if it is complete and its interpreter still exists: the `python` of a virtual
    /// environment is a link to the interpreter that it was made from.
    pub(super) fn complete(&self, hash: &EnvironmentHash) -> Option<Lock> {
        let folder = self.environment(hash);
        if !folder.join(MARKER).exists() || !is_executable(&folder.join("bin/python")) {
            return None;
        }
        serde_json::from_slice(&std::fs::read(folder.join("lock.json")).ok()?).ok()
    }

    /// Removes whatever stands at the place of the environment. Only the holder of its lock may do that.
    pub(super) async fn sweep(&self, hash: &EnvironmentHash) -> Result<(), PrepareError> {
        let folder = self.environment(hash);
        let failed = |error| PrepareError::disk(format!("failed to remove the unfinished environment {}", folder.display()), error);
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Declares the environment complete: the list of packages, then everything to the disk, then the marker. A marker
    /// that survives a power failure must not stand in front of files that did not.
    pub(super) async fn finish(&self, hash: &EnvironmentHash, lock: &Lock) -> Result<(), PrepareError> {
        let folder = self.environment(hash);
        let text = serde_json::to_vec_pretty(lock).map_err(|error| PrepareError::disk("failed to write the lock", error.into()))?;
        let finish = move || -> io::Result<()> {
            std::fs::write(folder.join("lock.json"), text)?;
            sync_file_system(&File::open(&folder)?)?;
            let mut marker = File::create(folder.join(MARKER))?;
            marker.write_all(b"complete\n")?;
            marker.sync_all()?;
            File::open(&folder)?.sync_all()
        };
        let done = tokio::task::spawn_blocking(finish).await.map_err(io::Error::other).flatten();
        done.map_err(|error| PrepareError::disk("failed to write the finished environment to the disk", error))
    }
}

#[cfg(target_os = "linux")]
fn sync_file_system(folder: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(folder)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_file_system(_folder: &File) -> io::Result<()> {
    Ok(())
}

/// An exclusive lock on a file, held until it and every process that got it as standard input are gone.
pub(super) struct BuilderLock {
    file: File,
}

impl BuilderLock {
    /// Waits for the lock, telling the log once whom it waits for.
    pub(super) async fn acquire(path: &Path, console: &mut Console<'_>) -> Result<Self, PrepareError> {
        let failed = |error| PrepareError::disk(format!("failed to lock {}", path.display()), error);
        let open = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        let file = open().map_err(failed)?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if !told {
                let owner = std::fs::read_to_string(path).unwrap_or_default();
                let owner = if owner.is_empty() { "of unknown id".to_owned() } else { format!("(pid {})", owner.trim()) };
                console.line(&format!("waiting for another builder {owner}, which is at work on the same"));
                told = true;
            }
            tokio::select! {
                () = console.cancel.cancelled() => return Err(PrepareError::Cancelled),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        let sign = || -> io::Result<()> {
            file.set_len(0)?;
            (&file).write_all(std::process::id().to_string().as_bytes())
        };
        sign().map_err(failed)?;
        Ok(Self { file })
    }

    /// The lock as standard input of a child, which then holds it as well.
    pub(super) fn as_stdin(&self) -> Result<Stdio, PrepareError> {
        self.file.try_clone().map(Stdio::from).map_err(|error| PrepareError::disk("failed to hand a lock on", error))
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn hash() -> EnvironmentHash {
        "0123456789abcdef0123456789abcdef".parse().unwrap()
    }

    #[tokio::test]
    async fn an_environment_counts_only_with_marker_lock_and_living_interpreter() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path()).unwrap();
        let bin = cache.environment(&hash()).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let interpreter = root.path().join("python3");
        std::fs::copy("/bin/sh", &interpreter).unwrap();
        std::os::unix::fs::symlink(&interpreter, bin.join("python")).unwrap();
        assert_eq!(cache.complete(&hash()), None);

        let lock = Lock { python: "3.11.7".into(), packages: Vec::new(), builder: "uv 1.0.0".into() };
        cache.finish(&hash(), &lock).await.unwrap();
        assert_eq!(cache.complete(&hash()), Some(lock));

        std::fs::remove_file(&interpreter).unwrap();
        assert_eq!(cache.complete(&hash()), None);
        cache.sweep(&hash()).await.unwrap();
        cache.sweep(&hash()).await.unwrap();
        assert!(!cache.environment(&hash()).exists());
    }

    #[test]
    fn a_relative_cache_folder_is_refused() {
        assert!(matches!(Cache::at(Path::new("cache")), Err(PrepareError::Settings(_))));
    }

    #[tokio::test]
    async fn the_second_builder_waits_until_the_first_and_its_installer_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("locks/x.lock");
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let first = BuilderLock::acquire(&path, &mut Console::new(&mut log, &cancel)).await.unwrap();
        let mut installer = tokio::process::Command::new("sleep").arg("300").stdin(first.as_stdin().unwrap()).spawn().unwrap();
        drop(first);
        assert!(log.is_empty());

        let mut console = Console::new(&mut log, &cancel);
        let second = tokio::time::timeout(Duration::from_millis(300), BuilderLock::acquire(&path, &mut console)).await;
        assert!(second.is_err(), "the lock was given away while the installer lives");
        assert_eq!(log, [format!("waiting for another builder (pid {}), which is at work on the same", std::process::id())]);

        installer.kill().await.unwrap();
        let mut console = Console::new(&mut log, &cancel);
        tokio::time::timeout(Duration::from_secs(10), BuilderLock::acquire(&path, &mut console)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn waiting_for_a_builder_can_be_cancelled() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.lock");
        let cancel = CancellationToken::new();
        let (mut first_log, mut log) = (Vec::new(), Vec::new());
        let _first = BuilderLock::acquire(&path, &mut Console::new(&mut first_log, &cancel)).await.unwrap();
        cancel.cancel();
        let outcome = BuilderLock::acquire(&path, &mut Console::new(&mut log, &cancel)).await;
        assert!(matches!(outcome, Err(PrepareError::Cancelled)));
    }
}
