//! The processes of the world: finding agents and the user's code in the process table, and hitting exactly the one that was looked at.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// An agent that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) pid: i32,
    /// The attempt whose folder it was started in.
    pub(crate) attempt: String,
}

/// The agents whose attempts are in `attempts`, in the order of their process ids.
pub(crate) fn agents(attempts: &Path) -> Vec<Agent> {
    let mut found: Vec<Agent> = pids().into_iter().filter_map(|pid| agent(pid, attempts)).collect();
    found.sort_by_key(|agent| agent.pid);
    found
}

fn agent(pid: i32, attempts: &Path) -> Option<Agent> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let folder = words.iter().position(|word| *word == b"--attempt-dir").and_then(|index| words.get(index + 1))?;
    let folder = PathBuf::from(String::from_utf8_lossy(folder).into_owned());
    let is_agent = folder.parent() == Some(attempts) && words.get(1) == Some(&&b"agent"[..]);
    // A process that an agent has forked looks like the agent until it becomes the code.
    let is_fork = || fs::read(format!("/proc/{}/cmdline", parent(pid)?)).ok().filter(|of_parent| *of_parent == line);
    (is_agent && is_fork().is_none()).then(|| Some(Agent { pid, attempt: folder.file_name()?.to_str()?.to_owned() }))?
}

/// The process id of the parent.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Sends a signal to `pid` if it is still the agent that it was.
pub(crate) fn signal_agent(agent_seen: &Agent, attempts: &Path, signal: Signal) -> bool {
    send(agent_seen.pid, signal, |pid| agent(pid, attempts).as_ref() == Some(agent_seen))
}

/// Sends a signal to the main process of the code of `attempt` if it is alive.
pub(crate) fn signal_code(pid: i32, attempt: &str, signal: Signal) -> bool {
    let entry = format!("TRAINYARD_ATTEMPT_ID={attempt}");
    send(pid, signal, |pid| {
        is_alive(pid)
            && fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|at| at == entry.as_bytes()))
    })
}

/// The descriptor is opened before the last look, so that a number given to somebody else in between is never hit.
fn send(pid: i32, signal: Signal, is_it: impl Fn(i32) -> bool) -> bool {
    let Some(descriptor) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return false };
    is_it(pid) && pidfd_send_signal(descriptor, signal).is_ok()
}

/// Everything that still runs on behalf of the world below `root`, as lines for messages: by command line, environment or working
/// directory.
pub(crate) fn left_running(root: &Path) -> Vec<(i32, String)> {
    let text = root.to_string_lossy().into_owned();
    let own = std::process::id().cast_signed();
    let mentions = |pid: i32, file: &str| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|content| contains(&content, text.as_bytes()));
    pids()
        .into_iter()
        .filter(|pid| *pid != own && is_alive(*pid))
        .filter(|pid| {
            mentions(*pid, "cmdline")
                || mentions(*pid, "environ")
                || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at.starts_with(root))
        })
        .map(|pid| (pid, describe(pid)))
        .collect()
}

/// Kills a process that [`left_running`] gave.
pub(crate) fn kill(pid: i32) {
    // It may have ended by itself.
    send(pid, Signal::KILL, is_alive);
}

fn contains(content: &[u8], text: &[u8]) -> bool {
    content.windows(text.len()).any(|window| window == text)
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn describe(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("process {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ").trim())
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
