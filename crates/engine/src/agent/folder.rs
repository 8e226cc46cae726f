//! The folder of an attempt: everything that an agent knows survives in it.
//!
//! The executor makes the folder and writes the order; the agent writes the rest. Every document is replaced in one step
//! (write, fsync, rename, fsync of the folder), so that a reader sees the old or the new one. Whether an agent is alive is
//! whether its lock is held: the kernel lets go of it when the process dies, however that happens, zombie or not.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trainyard_core::{ErrorKind, run::Cause};
use trainyard_wire::native::AttemptOrder;

use super::{
    spool::NotedCuts,
    tree::{own_pid, start_ticks},
};
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Who asked, as far as known.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, if they said so.
    #[serde(default)]
    pub why: Option<String>,
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
    /// Which life of the machine it was started in.
    #[serde(default)]
    pub(super) boot_id: Option<String>,
}

impl Started {
    /// Whether the machine was restarted since: `boot_id` is which life it is in now. Not where either is not known.
    pub(super) fn is_of_another_boot(&self, boot_id: Option<&str>) -> bool {
        self.boot_id.is_some() && boot_id.is_some() && self.boot_id.as_deref() != boot_id
    }

    /// The process, unless it ended with its machine: its number may be anybody's now.
    pub(super) fn main_now(&self) -> Option<MainProcess> {
        self.main.filter(|_| !self.is_of_another_boot(boot_id().as_deref()))
    }
}

/// Which life of the machine this is; `None` where the kernel does not say.
pub(super) fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
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
                Ok(()) => {
                    note_holder(&file);
                    return Ok(Some(AgentLock { _file: file }));
                }
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

    /// The process id of the living agent; `None` if there is none, or if it has only just begun to live.
    pub fn agent_pid(&self) -> Option<i32> {
        if !self.agent_is_alive() {
            return None;
        }
        let text = fs::read_to_string(self.root.join(LOCK)).ok()?;
        let mut words = text.split_ascii_whitespace();
        let pid: i32 = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let noted: Option<u64> = words.next().and_then(|ticks| ticks.parse().ok());
        // The lock may be another agent's that has not written yet: then what stands here is a dead one's, and its number anybody's.
        (noted.is_none() || noted == start_ticks(pid)).then_some(pid)
    }

    /// Asks the agent to stop without the server's help; it looks every second. `by` names who asked; empty: nobody knows.
    pub fn request_stop(&self, by: &str, why: Option<&str>) -> io::Result<()> {
        let request = StopRequest { by: (!by.is_empty()).then(|| by.to_owned()), why: why.map(str::to_owned) };
        self.write_document(STOP, &request)
    }

    /// The wish to stop, if there is one.
    pub fn stop_request(&self) -> Option<StopRequest> {
        let text = fs::read_to_string(self.root.join(STOP)).ok()?;
        if let Ok(request) = serde_json::from_str(&text) {
            return Some(request);
        }
        // Before there were reasons the note was a name.
        let by = text.trim();
        Some(StopRequest { by: (!by.is_empty()).then(|| by.to_owned()), why: None })
    }

    /// Notes that the attempt was given up: its agent ends everything and exits, now (it looks every second) or when it is started again.
    pub fn fence(&self) -> io::Result<()> {
        self.replace(FENCED, b"")
    }

    /// Has everything delivered again: the server has lost what it was given. An agent that was done is not any more.
    pub fn ask_again(&self) -> io::Result<()> {
        // In this order: whoever finds that the agent is not done finds the wish as well.
        self.replace(AGAIN, b"")?;
        match fs::remove_file(self.root.join(COLLECTED)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether what was delivered since the agent was started may be lost.
    pub(super) fn is_asked_again(&self) -> bool {
        self.root.join(AGAIN).exists()
    }

    /// An agent that was just started has delivered nothing, and so nothing twice.
    pub(super) fn answer_again(&self) -> io::Result<()> {
        match fs::remove_file(self.root.join(AGAIN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the attempt was given up.
    pub fn is_fenced(&self) -> bool {
        self.root.join(FENCED).exists()
    }

    /// How the user's code ended, once it has.
    pub fn exit_record(&self) -> io::Result<Option<ExitRecord>> {
        self.read_document(EXIT)
    }

    /// Notes what the engine says that ended the attempt, before an agent is started to close its books: that agent starts no code.
    pub fn write_verdict(&self, verdict: &Cause) -> io::Result<()> {
        self.write_document(VERDICT, verdict)
    }

    /// What the engine says that ended the attempt; `None` as long as it may go on.
    pub fn verdict(&self) -> Option<Cause> {
        match self.read_document(VERDICT) {
            Ok(verdict) => verdict,
            // It is there: whatever it says, nothing is to be started.
            Err(error) => Some(Cause::AgentLost { message: format!("what its engine noted cannot be read: {error}") }),
        }
    }

    /// Whether an agent was ever at work here. Asks for the list of files, which a network file system does not answer from memory.
    pub fn had_agent(&self) -> bool {
        fs::read_dir(&self.root).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() == LOCK))
    }

    /// Whether the user's code was started, or may have been.
    pub fn was_started(&self) -> bool {
        !matches!(self.started(), Ok(None))
    }

    pub(super) fn write_exit_record(&self, record: &ExitRecord) -> io::Result<()> {
        self.write_document(EXIT, record)
    }

    pub(super) fn started(&self) -> io::Result<Option<Started>> {
        self.read_document(STARTED)
    }

    /// When the code was started, in seconds since the epoch, as far as can be read.
    pub fn started_at(&self) -> Option<i64> {
        self.started().ok().flatten().map(|started| started.started_us / 1_000_000)
    }

    pub(super) fn write_started(&self, started: &Started) -> io::Result<()> {
        self.write_document(STARTED, started)
    }

    /// What was cut out of the attempt's logs.
    pub(super) fn cuts(&self) -> io::Result<Option<NotedCuts>> {
        self.read_document(CUTS)
    }

    pub(super) fn write_cuts(&self, cuts: &NotedCuts) -> io::Result<()> {
        self.write_document(CUTS, cuts)
    }

    /// Whether logs and outputs are all with the server: nothing is left to do but to remove the folder.
    pub fn is_collected(&self) -> bool {
        self.root.join(COLLECTED).exists()
    }

    /// For how long everything has been with the server; `None`: it is not.
    pub fn collected_for(&self) -> Option<Duration> {
        let noted = fs::metadata(self.root.join(COLLECTED)).ok()?.modified().ok()?;
        Some(noted.elapsed().unwrap_or_default())
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

    /// What the run installs for itself, over its environment.
    pub(super) fn layer(&self) -> PathBuf {
        self.root.join("venv")
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
        trainyard_store::fail_point!("agent.document", io)?;
        self.replace(name, &serde_json::to_vec(document)?)
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        replace_file(&self.root.join(name), content, Access::Owner).map_err(|error| match error.kind() {
            ErrorKind::StorageFull => io::Error::new(io::ErrorKind::StorageFull, error),
            _ => io::Error::other(error),
        })
    }
}

/// Writes who holds the lock into its file, over what stands there: a full disk has room for that. Without it the lock holds as well, only that
/// nobody can say whose it is.
fn note_holder(file: &File) {
    let pid = own_pid();
    let text = format!("{:<LOCK_TEXT_BYTES$}\n", format!("{pid} {}", start_ticks(pid).unwrap_or_default()));
    if let Err(error) = file.write_all_at(text.as_bytes(), 0) {
        tracing::warn!(%error, "the agent's process id cannot be noted");
    }
}

/// Room for two numbers.
const LOCK_TEXT_BYTES: usize = 40;

const ORDER: &str = "order.json";
const LOCK: &str = "agent.lock";
const STARTED: &str = "started.json";
const EXIT: &str = "exit.json";
const COLLECTED: &str = "collected";
const STOP: &str = "stop";
const AGAIN: &str = "again";
const FENCED: &str = "fenced";
const CUTS: &str = "cuts.json";
const STARTS: &str = "starts";
const VERDICT: &str = "verdict.json";

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
        folder.request_stop("ada", Some("too slow")).unwrap();
        assert_eq!(folder.stop_request(), Some(StopRequest { by: Some("ada".into()), why: Some("too slow".into()) }));
        folder.request_stop("", None).unwrap();
        assert_eq!(folder.stop_request(), Some(StopRequest::default()));
        fs::write(folder.path().join(STOP), "bob\n").unwrap();
        assert_eq!(
            folder.stop_request(),
            Some(StopRequest { by: Some("bob".into()), why: None }),
            "as it was written before there were reasons"
        );
    }

    #[test]
    fn a_fence_stays() {
        let (_dir, folder) = folder();
        assert!(!folder.is_fenced());
        folder.fence().unwrap();
        folder.fence().unwrap();
        assert!(folder.is_fenced());
    }

    #[test]
    fn the_holder_of_the_lock_is_known_while_it_holds_it() {
        let (dir, folder) = folder();
        assert_eq!(folder.agent_pid(), None);
        let lock = folder.lock(Duration::ZERO).unwrap().unwrap();
        assert_eq!(folder.agent_pid(), Some(own_pid()));
        fs::write(dir.path().join(LOCK), format!("{} 1", own_pid())).unwrap();
        assert_eq!(folder.agent_pid(), None, "the number of a former agent that is another process's now");
        drop(lock);
        drop(folder.lock(Duration::ZERO).unwrap());
        assert_eq!(folder.agent_pid(), None);
    }

    #[test]
    fn who_is_asked_to_deliver_again_is_not_done() {
        let (_dir, folder) = folder();
        folder.mark_collected().unwrap();
        folder.ask_again().unwrap();
        assert!(!folder.is_collected() && folder.is_asked_again());
        folder.answer_again().unwrap();
        folder.answer_again().unwrap();
        assert!(!folder.is_asked_again());
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
            containers: serde_json::Value::Null,
            archive_limits: serde_json::Value::Null,
            variables: std::collections::BTreeMap::new(),
            grace_seconds: 1,
            started_at: None,
            workspace: None,
            heartbeat_seconds: 10,
            spool_limit_bytes: 1 << 20,
        };
        folder.create().unwrap();
        folder.write_order(&order).unwrap();
        assert_eq!(folder.read_order().unwrap().token, "secret");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(folder.path()), mode(&folder.path().join(ORDER))), (0o700, 0o600));
    }
}
