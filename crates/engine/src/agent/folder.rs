//! The folder of an attempt: everything that an agent knows survives in it.
//!
//! An attempt on several nodes has one folder: that of node 0, and in it one for each other node, `node-1` and so on. The order and the notes for agents
//! (stop, fenced, what the engine says) are the attempt's and stand in the first; everything else is each node's own.
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
    meeting::NotedMeeting,
    spool::NotedCuts,
    tree::{own_pid, start_ticks},
};
use crate::trust::{Access, replace_file};

/// The folder of one attempt, or of one of its nodes. Cheap to clone; nothing is read before it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFolder {
    /// The node's own.
    root: PathBuf,
    /// The attempt's.
    attempt: PathBuf,
    node: u32,
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
    /// Whether it was ended only because another node of the attempt had ended like that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub with_others: bool,
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
    /// Its other processes, of a run in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) more: Vec<MainProcess>,
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

    /// The processes, unless they ended with their machine: their numbers may be anybody's now.
    pub(super) fn mains_now(&self) -> Vec<MainProcess> {
        let mains = self.main.iter().chain(&self.more).copied();
        if self.is_of_another_boot(boot_id().as_deref()) { Vec::new() } else { mains.collect() }
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
        Self::of_node(root, 0)
    }

    /// The folder of one node of the attempt whose folder is at `attempt`.
    pub fn of_node(attempt: impl Into<PathBuf>, node: u32) -> Self {
        let attempt = attempt.into();
        let root = if node == 0 { attempt.clone() } else { attempt.join(format!("{NODE_PREFIX}{node}")) };
        Self { root, attempt, node }
    }

    /// Which node it is.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// The folders of all nodes of the attempt that have one, by their numbers.
    pub fn nodes(&self) -> Vec<Self> {
        let entries = fs::read_dir(&self.attempt).into_iter().flatten().flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(NODE_PREFIX)?.parse::<u32>().ok();
        let mut numbers: Vec<u32> = entries.filter_map(number).filter(|node| *node > 0).collect();
        numbers.sort_unstable();
        [0].into_iter().chain(numbers).map(|node| Self::of_node(&self.attempt, node)).collect()
    }

    /// Makes the folder (mode 0700), with its parents, if it is not there yet.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// Stores the order. Repeating it replaces the order, which a living agent notices when it next fails to reach the server.
    pub fn write_order(&self, order: &AttemptOrder) -> io::Result<()> {
        self.of_attempt().write_document(ORDER, order)
    }

    /// The order of the attempt; an error of kind `NotFound` if there is none.
    pub fn read_order(&self) -> io::Result<AttemptOrder> {
        self.of_attempt().read_document(ORDER)?.ok_or_else(|| io::ErrorKind::NotFound.into())
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
        self.of_attempt().write_document(STOP, &request)
    }

    /// The wish to stop, if there is one.
    pub fn stop_request(&self) -> Option<StopRequest> {
        let text = fs::read_to_string(self.attempt.join(STOP)).ok()?;
        if let Ok(request) = serde_json::from_str(&text) {
            return Some(request);
        }
        // Before there were reasons the note was a name.
        let by = text.trim();
        Some(StopRequest { by: (!by.is_empty()).then(|| by.to_owned()), why: None })
    }

    /// Notes that the attempt was given up: its agent ends everything and exits, now (it looks every second) or when it is started again.
    pub fn fence(&self) -> io::Result<()> {
        self.of_attempt().replace(FENCED, b"")
    }

    /// Has everything of all nodes delivered again: the server has lost what it was given. An agent that was done is not any more.
    pub fn ask_again(&self) -> io::Result<()> {
        // The first node is done last.
        for node in self.nodes().iter().rev() {
            // In this order: whoever finds that the agent is not done finds the wish as well.
            node.replace(AGAIN, b"")?;
            match fs::remove_file(node.root.join(COLLECTED)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
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
        self.attempt.join(FENCED).exists()
    }

    /// How the user's code ended, once it has.
    pub fn exit_record(&self) -> io::Result<Option<ExitRecord>> {
        self.read_document(EXIT)
    }

    /// Notes what the engine says that ended the attempt, before an agent is started to close its books: that agent starts no code.
    pub fn write_verdict(&self, verdict: &Cause) -> io::Result<()> {
        self.of_attempt().write_document(VERDICT, verdict)
    }

    /// What the engine says that ended the attempt; `None` as long as it may go on.
    pub fn verdict(&self) -> Option<Cause> {
        match self.of_attempt().read_document(VERDICT) {
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
        self.logs().join(match self.node {
            0 => "20_image_build_log.txt".to_owned(),
            node => format!("20_image_build_log_node-{node}.txt"),
        })
    }

    /// Where the user's code writes.
    pub fn driver_log(&self) -> PathBuf {
        self.logs().join("70_driver_log.txt")
    }

    /// Where one process of several writes.
    pub(super) fn rank_log(&self, rank: u32) -> PathBuf {
        self.logs().join(format!("70_driver_log_{rank}.txt"))
    }

    /// The agent's own log.
    pub fn agent_log(&self) -> PathBuf {
        self.root.join("agent.log")
    }

    /// For what is worth nothing after a crash. On the same file system as the rest.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What this node has told the others about how to reach it.
    pub(super) fn meeting(&self) -> io::Result<Option<NotedMeeting>> {
        self.read_document(MEETING)
    }

    pub(super) fn write_meeting(&self, meeting: &NotedMeeting) -> io::Result<()> {
        self.write_document(MEETING, meeting)
    }

    fn of_attempt(&self) -> Self {
        Self::of_node(&self.attempt, 0)
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

const NODE_PREFIX: &str = "node-";
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
const MEETING: &str = "meeting.json";

#[cfg(test)]
mod tests;
