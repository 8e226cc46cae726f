//! The folder of an attempt: everything that an agent knows survives in it.
//!
//! The executor makes the folder and writes the order; the agent writes the rest. Every document is replaced in one step
//! (write, fsync, rename, fsync of the folder), so that a reader sees the old or the new one. Whether an agent is alive is
//! whether its lock is held: the kernel lets go of it when the process dies, however that happens, zombie or not.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trainyard_core::{ErrorKind, run::Cause};
use trainyard_wire::native::AttemptOrder;

use crate::trust::{Access, replace_file};

/// The folder of one attempt. Cheap to clone; nothing is read before it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFolder {
    root: PathBuf,
}

/// Held for the life of an agent; dropping it, or dying, lets the next agent in. The descriptor is close-on-exec, so that the
/// user's code never holds it.
#[derive(Debug)]
pub struct AgentLock {
    _file: File,
}

/// How the user's code ended. Once written it is never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// What ended it.
    pub cause: Cause,
    /// Microseconds since the epoch.
    pub ended_us: i64,
}

/// A wish to stop that came through the file system, because the agent may not hear the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopRequest {
    /// Who asked, as far as known.
    pub by: Option<String>,
}

/// That the user's code was about to be started, and what is known of it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    /// Microseconds since the epoch.
    pub(super) started_us: i64,
    /// Its process, once it is there.
    #[serde(default)]
    pub(super) main: Option<MainProcess>,
    /// Set when the agent began to stop it, so that an agent that comes after knows the cause.
    #[serde(default)]
    pub(super) stopping: Option<Cause>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MainProcess {
    /// Its process and session id.
    pub(super) pid: i32,
    /// Clock ticks between boot and its start, field 22 of `/proc/PID/stat`.
    pub(super) start_ticks: u64,
}

impl AttemptFolder {
    /// The attempt folder at `root`, whether it exists or not.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the folder (mode 0700), with its parents, if it is not there yet.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// Stores the order. Repeating it replaces the order, which a living agent notices when it next fails to reach the server.
    pub fn write_order(&self, order: &AttemptOrder) -> io::Result<()> {
        self.write_document(ORDER, order)
    }

    /// The order of the attempt; an error of kind `NotFound` if there is none.
    pub fn read_order(&self) -> io::Result<AttemptOrder> {
        self.read_document(ORDER)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Notes that an agent is about to be started.
    pub fn count_start(&self) -> io::Result<()> {
        // A byte for each: an append can't lose what was counted before. Nothing depends on the last count being on disk.
        OpenOptions::new().create(true).append(true).mode(0o600).open(self.root.join(STARTS))?.write_all(b".")
    }

    /// How often an agent was started here.
    pub fn starts(&self) -> u32 {
        fs::metadata(self.root.join(STARTS)).map_or(0, |meta| u32::try_from(meta.len()).unwrap_or(u32::MAX))
    }

    /// Takes the agent's lock, trying again for `patience`: somebody who only looks whether an agent is alive holds it for
    /// an instant, too. `None`: another agent is alive.
    pub fn lock(&self, patience: Duration) -> io::Result<Option<AgentLock>> {
        let deadline = Instant::now() + patience;
        let file = self.open_lock()?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(AgentLock { _file: file })),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Whether an agent is at work in this folder. A lock that can't be asked about counts as held: a second agent would find
    /// out, while taking a living one for dead could end its code.
    pub fn agent_is_alive(&self) -> bool {
        if !self.root.join(LOCK).exists() {
            return false;
        }
        !self.open_lock().is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    fn open_lock(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.root.join(LOCK))
    }

    /// Asks the agent to stop without the server's help; it looks every half second. `by` names who asked.
    pub fn request_stop(&self, by: &str) -> io::Result<()> {
        self.replace(STOP, by.as_bytes())
    }

    /// The wish to stop, if there is one.
    pub fn stop_request(&self) -> Option<StopRequest> {
        let text = fs::read_to_string(self.root.join(STOP)).ok()?;
        let by = text.trim();
        Some(StopRequest { by: (!by.is_empty()).then(|| by.to_owned()) })
    }

    /// How the user's code ended, once it has.
    pub fn exit_record(&self) -> io::Result<Option<ExitRecord>> {
        self.read_document(EXIT)
    }

    pub(super) fn write_exit_record(&self, record: &ExitRecord) -> io::Result<()> {
        self.write_document(EXIT, record)
    }

    pub(super) fn started(&self) -> io::Result<Option<Started>> {
        self.read_document(STARTED)
    }

    pub(super) fn write_started(&self, started: &Started) -> io::Result<()> {
        self.write_document(STARTED, started)
    }

    /// Whether logs and outputs are all with the server: nothing is left to do but to remove the folder.
    pub fn is_collected(&self) -> bool {
        self.root.join(COLLECTED).exists()
    }

    pub(super) fn mark_collected(&self) -> io::Result<()> {
        self.replace(COLLECTED, b"")
    }

    /// The working directory of the user's code: the unpacked snapshot.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// What becomes `azureml-logs/` of the run: every file in it is shipped while it grows.
    pub fn logs(&self) -> PathBuf {
        self.root.join("spool").join(super::ship::SYSTEM_LOGS)
    }

    /// Where the build of the environment writes.
    pub fn build_log(&self) -> PathBuf {
        self.logs().join("20_image_build_log.txt")
    }

    /// Where the user's code writes.
    pub fn driver_log(&self) -> PathBuf {
        self.logs().join("70_driver_log.txt")
    }

    /// The agent's own log.
    pub fn agent_log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// For what is worth nothing after a crash. On the same file system as the rest.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn read_document<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.root.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` is damaged: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write_document<T: Serialize>(&self, name: &str, document: &T) -> io::Result<()> {
        self.replace(name, &serde_json::to_vec(document)?)
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        replace_file(&self.root.join(name), content, Access::Owner).map_err(|error| match error.kind() {
            ErrorKind::StorageFull => io::Error::new(io::ErrorKind::StorageFull, error),
            _ => io::Error::other(error),
        })
    }
}

const ORDER: &str = "order.json";
const LOCK: &str = "agent.lock";
const STARTED: &str = "started.json";
const EXIT: &str = "exit.json";
const COLLECTED: &str = "collected";
const STOP: &str = "stop";
const STARTS: &str = "starts";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> (tempfile::TempDir, AttemptFolder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(dir.path());
        (dir, folder)
    }

    #[test]
    fn an_agent_is_alive_exactly_as_long_as_it_holds_the_lock() {
        let (_dir, folder) = folder();
        assert!(!folder.agent_is_alive());
        let lock = folder.lock(Duration::ZERO).unwrap().expect("nobody holds it");
        assert!(folder.agent_is_alive());
        assert!(folder.lock(Duration::ZERO).unwrap().is_none(), "one agent at a time");
        drop(lock);
        assert!(!folder.agent_is_alive());
    }

    #[test]
    fn looking_whether_an_agent_is_alive_does_not_keep_one_from_starting() {
        let (_dir, folder) = folder();
        drop(folder.lock(Duration::ZERO).unwrap());
        let looker = folder.open_lock().unwrap();
        looker.try_lock_shared().unwrap();
        let waiting = std::thread::spawn({
            let folder = folder.clone();
            move || folder.lock(Duration::from_secs(30)).unwrap().is_some()
        });
        drop(looker);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn starts_are_counted() {
        let (_dir, folder) = folder();
        assert_eq!(folder.starts(), 0);
        folder.count_start().unwrap();
        folder.count_start().unwrap();
        assert_eq!(folder.starts(), 2);
    }

    #[test]
    fn a_stop_request_says_who_asked() {
        let (_dir, folder) = folder();
        assert_eq!(folder.stop_request(), None);
        folder.request_stop("ada").unwrap();
        assert_eq!(folder.stop_request(), Some(StopRequest { by: Some("ada".into()) }));
        folder.request_stop("").unwrap();
        assert_eq!(folder.stop_request(), Some(StopRequest { by: None }));
    }

    #[test]
    fn the_exit_record_is_read_as_it_was_written() {
        let (_dir, folder) = folder();
        assert_eq!(folder.exit_record().unwrap(), None);
        let record = ExitRecord { cause: Cause::ExitCode { code: 3 }, ended_us: 17 };
        folder.write_exit_record(&record).unwrap();
        assert_eq!(folder.exit_record().unwrap(), Some(record));
    }

    #[test]
    fn a_damaged_document_is_named() {
        let (dir, folder) = folder();
        fs::write(dir.path().join(EXIT), "{").unwrap();
        let error = folder.exit_record().unwrap_err();
        assert!(error.to_string().contains("exit.json` is damaged"), "{error}");
    }

    #[test]
    fn only_the_owner_can_read_the_order() {
        let dir = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(dir.path().join("attempts/one"));
        let order = AttemptOrder {
            protocol: 1,
            attempt: uuid::Uuid::nil(),
            run_id: "run".into(),
            endpoint: "https://localhost:1".into(),
            ca_pem: String::new(),
            token: "secret".into(),
            token_expires_on: 0,
            definition: serde_json::Value::Null,
            snapshot_sha256: None,
            environments: serde_json::Value::Null,
            archive_limits: serde_json::Value::Null,
            variables: std::collections::BTreeMap::new(),
            grace_seconds: 1,
            started_at: None,
        };
        folder.create().unwrap();
        folder.write_order(&order).unwrap();
        assert_eq!(folder.read_order().unwrap().token, "secret");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&folder.path().join(ORDER))), (0o700, 0o600));
    }
}
