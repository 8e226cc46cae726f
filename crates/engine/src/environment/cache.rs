//! The cache of built environments on disk, and the locks of their builders.
//!
//! ```text
//! cache_dir/envs/<hash>/                 the environment, built in place: its scripts hold absolute paths
//! cache_dir/envs/<hash>/lock.json        what was installed
//! cache_dir/envs/<hash>/size.json        how big it is, and what stood in it when it was built
//! cache_dir/envs/<hash>/files.json       its files as they were then ([`super::record`])
//! cache_dir/envs/<hash>/.complete        written last; without it the folder is somebody's half-finished work
//! cache_dir/locks/<hash>.lock            held by the one builder; never removed, so that it is one and the same file to all
//! cache_dir/uses/<hash>.lock             shared by the runs that use the environment; its time is the last use ([`super::usage`])
//! cache_dir/uses/<hash>.walked           its time is when the environment was last looked through ([`super::verify`])
//! cache_dir/changed/<hash>.json          what was found changed then
//! cache_dir/pins/<hash>                  exists: never removed to make room
//! cache_dir/trash/                       what is being removed
//! cache_dir/wheels/                      files for pip that an archive brought, for builds of locks without a network
//! cache_dir/packages/<sha256>/           conda packages that an archive brought
//! cache_dir/images/                      images as files, for Apptainer
//! cache_dir/downloads/                   when what was used last
//! cache_dir/keys/<key>.json              a specification on a node as it was -> the hash of its environment
//! cache_dir/interpreters/<landscape>.json  what was found on the node
//! cache_dir/conda/                       conda packages, unpacked, and the indexes of channels; linked into environments as well
//! cache_dir/uv/                          the packages themselves, shared with the environments by hard links
//! cache_dir/locks/downloads.lock         shared by all who install from `uv/`, `conda/`, `wheels/` and `packages/`
//! ```
//!
//! Locks are `flock`s. A builder hands its lock to the installer as standard input, so that the lock is held until the
//! installer is gone too: an installer that outlives its killed agent can not write into somebody else's build.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trainyard_core::{
    environment::{EnvironmentLock, Progress},
    ids::EnvironmentHash,
};

use super::{command::Console, host::is_executable, measure::Measured, prepare::PrepareError, record::Record, verify};

/// How often a waiting builder looks again.
const POLL: Duration = Duration::from_millis(50);
const MARKER: &str = ".complete";
/// How often what a build has written so far is written back.
const WRITE_BACK_PAUSE: Duration = Duration::from_millis(250);
/// What was measured when the environment was finished.
const SIZE: &str = "size.json";
/// What stood in it.
const FILES: &str = "files.json";
/// Tells the names of one process's trash apart.
static TRASHED: AtomicU64 = AtomicU64::new(0);

/// What the fast path needs to know of an earlier preparation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub(super) hash: EnvironmentHash,
    pub(super) warnings: Vec<String>,
}

/// The cache in one folder.
#[derive(Clone, Debug)]
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

    /// The folder itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where conda packages and the indexes of channels are kept.
    pub(super) fn conda_packages(&self) -> PathBuf {
        self.root.join("conda")
    }

    /// Where files for pip lie that an archive brought.
    pub(super) fn wheels(&self) -> PathBuf {
        self.root.join("wheels")
    }

    /// Where conda packages lie that an archive brought.
    pub(super) fn brought(&self) -> PathBuf {
        self.root.join("packages")
    }

    /// Where images lie as files.
    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where notes about downloads are.
    pub(super) fn download_note(&self, name: &str) -> PathBuf {
        self.root.join("downloads").join(format!("{name}.json"))
    }

    /// Held, shared, by everybody who installs from downloads; whoever removes any of them holds it alone.
    pub(super) fn downloads_lock(&self) -> PathBuf {
        self.root.join("locks/downloads.lock")
    }

    /// The file whose lock the users of an environment share.
    pub(super) fn use_file(&self, hash: &EnvironmentHash) -> PathBuf {
        self.root.join("uses").join(format!("{hash}.lock"))
    }

    /// The file that says that an environment is to stay.
    pub(super) fn pin_file(&self, hash: &EnvironmentHash) -> PathBuf {
        self.root.join("pins").join(hash.as_str())
    }

    /// The note of [`Cache::finish`] about what it found.
    pub(super) fn measured(&self, hash: &EnvironmentHash) -> Option<Measured> {
        serde_json::from_slice(&std::fs::read(self.environment(hash).join(SIZE)).ok()?).ok()
    }

    /// The files of the environment when it was finished; `None`: nobody wrote that down.
    pub(super) fn record(&self, hash: &EnvironmentHash) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.record_file(hash)).ok()?).ok()
    }

    /// Where that is written down.
    pub(super) fn record_file(&self, hash: &EnvironmentHash) -> PathBuf {
        self.environment(hash).join(FILES)
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
    pub(super) fn complete(&self, hash: &EnvironmentHash) -> Option<EnvironmentLock> {
        if !self.is_complete(hash) {
            return None;
        }
        self.lock_of(hash)
    }

    /// [`Cache::complete`] without reading what is installed.
    pub(super) fn is_complete(&self, hash: &EnvironmentHash) -> bool {
        let folder = self.environment(hash);
        folder.join(MARKER).exists() && is_executable(&folder.join("bin/python"))
    }

    /// The list of what is installed, whether the environment is complete or not.
    pub(super) fn lock_of(&self, hash: &EnvironmentHash) -> Option<EnvironmentLock> {
        serde_json::from_slice(&std::fs::read(self.environment(hash).join("lock.json")).ok()?).ok()
    }

    /// Removes whatever stands at the place of the environment. Only the holder of its lock may do that.
    pub(super) async fn sweep(&self, hash: &EnvironmentHash) -> Result<(), PrepareError> {
        let folder = self.environment(hash);
        let failed = |error| PrepareError::disk(format!("failed to remove the unfinished environment {}", folder.display()), error);
        let Some(trash) = self.trash(hash).map_err(failed)? else { return Ok(()) };
        match tokio::fs::remove_dir_all(&trash).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Takes the environment out of its place at one stroke; `None`: nothing was there. What it gives is to be removed, and if it
    /// is not, the next one who tidies does it.
    pub(super) fn trash(&self, hash: &EnvironmentHash) -> io::Result<Option<PathBuf>> {
        let place = self.new_trash(hash.as_str())?;
        match std::fs::rename(self.environment(hash), &place) {
            Ok(()) => Ok(Some(place)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A name in the trash that nothing has yet.
    pub(super) fn new_trash(&self, name: &str) -> io::Result<PathBuf> {
        let trash = self.trash_folder();
        std::fs::create_dir_all(&trash)?;
        let number = TRASHED.fetch_add(1, Ordering::Relaxed);
        Ok(trash.join(format!("{name}.{}.{number}", std::process::id())))
    }

    /// Where things wait for their removal.
    pub(super) fn trash_folder(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Clears the place of an environment and stands guard over it: what is not [finished](Place::finish) when the guard goes,
    /// because a step failed, or was cancelled, or took too long, goes with it. Only for the holder of the environment's lock.
    pub(super) fn place_now(&self, hash: &EnvironmentHash) -> io::Result<Place> {
        if let Some(trash) = self.trash(hash)? {
            std::fs::remove_dir_all(trash)?;
        }
        std::fs::create_dir_all(self.root_of_environments())?;
        Ok(Place::new(self, hash))
    }

    /// [`Cache::place_now`] without blocking.
    pub(super) async fn place(&self, hash: &EnvironmentHash) -> Result<Place, PrepareError> {
        self.sweep(hash).await?;
        let made = std::fs::create_dir_all(self.root_of_environments());
        made.map_err(|error| PrepareError::disk("failed to make the folder of environments", error))?;
        Ok(Place::new(self, hash))
    }

    /// Declares the environment complete: the list of packages, then everything to the disk, then the marker. A marker
    /// that survives a power failure must not stand in front of files that did not.
    pub(super) async fn finish(&self, hash: &EnvironmentHash, lock: &EnvironmentLock, elsewhere: u64) -> Result<(), PrepareError> {
        let (cache, hash, lock) = (self.clone(), hash.clone(), lock.clone());
        let finish = move || cache.finish_now(&hash, &lock, elsewhere);
        let done = tokio::task::spawn_blocking(finish).await.map_err(io::Error::other).flatten();
        done.map_err(|error| PrepareError::disk("failed to write the finished environment to the disk", error))
    }

    /// `elsewhere`: bytes that the environment takes in other places.
    fn finish_now(&self, hash: &EnvironmentHash, lock: &EnvironmentLock, elsewhere: u64) -> io::Result<()> {
        let folder = self.environment(hash);
        std::fs::write(folder.join("lock.json"), serde_json::to_vec_pretty(lock)?)?;
        std::fs::write(folder.join(FILES), serde_json::to_vec(&Record::of(&folder)?)?)?;
        let mut measured = Measured::of(&folder)?;
        measured.bytes += elsewhere;
        std::fs::write(folder.join(SIZE), serde_json::to_vec(&measured)?)?;
        sync_file_system(&File::open(&folder)?)?;
        let mut marker = File::create(folder.join(MARKER))?;
        marker.write_all(b"complete\n")?;
        marker.sync_all()?;
        verify::forget(self, hash);
        File::open(&folder)?.sync_all()
    }
}

/// The place of an environment while it is built.
pub(super) struct Place {
    cache: Cache,
    hash: EnvironmentHash,
    finished: bool,
    /// Bytes that the environment takes in other places.
    elsewhere: u64,
    /// Dropped when there is nothing more to write back.
    write_back: Option<mpsc::Sender<()>>,
}

impl Place {
    fn new(cache: &Cache, hash: &EnvironmentHash) -> Self {
        Self {
            cache: cache.clone(),
            hash: hash.clone(),
            finished: false,
            elsewhere: 0,
            write_back: write_back(cache.root_of_environments()),
        }
    }

    /// Counts bytes that the environment takes in other places: a layer of an image, say.
    pub(super) fn takes_elsewhere(&mut self, bytes: u64) {
        self.elsewhere += bytes;
    }

    /// [`Cache::finish`]; from now on the environment stays.
    pub(super) async fn finish(mut self, lock: &EnvironmentLock) -> Result<(), PrepareError> {
        self.write_back = None;
        self.cache.finish(&self.hash, lock, self.elsewhere).await?;
        self.finished = true;
        Ok(())
    }
}

impl Place {
    /// [`Place::finish`] for whoever may block.
    pub(super) fn finish_now(mut self, lock: &EnvironmentLock) -> io::Result<()> {
        self.write_back = None;
        self.cache.finish_now(&self.hash, lock, self.elsewhere)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The installers of this build are being killed, and may still write: nobody looks into the trash. Removing takes longer
        // than a drop may, and what is left if this process ends first is removed by the next one who tidies.
        match self.cache.trash(&self.hash) {
            Ok(Some(trash)) => drop(std::thread::spawn(move || std::fs::remove_dir_all(trash))),
            Ok(None) => {}
            Err(error) => tracing::warn!(hash = %self.hash, %error, "failed to remove an environment whose build failed"),
        }
    }
}

/// Has what a build writes go to the disk while the build still waits for the network, so that the wait at its end is short. It is that
/// wait alone that counts: nothing depends on what happens here.
fn write_back(folder: PathBuf) -> Option<mpsc::Sender<()>> {
    let (building, ended) = mpsc::channel();
    let work = move || {
        while ended.recv_timeout(WRITE_BACK_PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
            if let Err(error) = File::open(&folder).and_then(|folder| sync_file_system(&folder)) {
                return tracing::debug!(%error, "what a build has written so far is not written back early");
            }
        }
    };
    std::thread::Builder::new().name("write-back".into()).spawn(work).ok().map(|_| building)
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
                console.progress(&Progress::step("waiting for another builder"));
                console.work().pause();
                told = true;
            }
            tokio::select! {
                () = console.cancel.cancelled() => return Err(PrepareError::Cancelled),
                () = tokio::time::sleep(POLL) => {}
            }
        }
        console.work().go_on();
        let sign = || -> io::Result<()> {
            file.set_len(0)?;
            (&file).write_all(std::process::id().to_string().as_bytes())
        };
        sign().map_err(failed)?;
        Ok(Self { file })
    }

    /// The lock, for whoever may block.
    pub(super) fn wait(path: &Path) -> io::Result<Self> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        Ok(Self { file })
    }

    /// The lock, if nobody has it.
    pub(super) fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
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

        let lock = EnvironmentLock { python: "3.11.7".into(), builder: "uv 1.0.0".into(), ..EnvironmentLock::default() };
        cache.finish(&hash(), &lock, 0).await.unwrap();
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
