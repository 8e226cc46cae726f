//! Starting the user's code and learning how it ended.
//!
//! The code runs in a session of its own, writes to a file (so that its output does not depend on the agent), and is
//! killed by the kernel when the agent dies: its end could not be recorded any more. The agent is subreaper, and
//! [`Reaper`] waits for any child; nothing else may wait for processes while one exists, or the two would take each other's results.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, set_child_subreaper, set_parent_process_death_signal, setsid, wait},
};
use tokio::signal::unix::{self, SignalKind};
use trainyard_core::run::Cause;

use super::{folder::MainProcess, tree::start_ticks};

/// What is started, and with what. Not to be shown: its environment holds the run's token.
pub(super) struct Launch {
    /// A path, or a name that is searched on the `PATH` of `variables`.
    pub(super) program: OsString,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// Its whole environment.
    pub(super) variables: BTreeMap<OsString, OsString>,
    /// Where it starts.
    pub(super) directory: PathBuf,
    /// The file that takes stdout and stderr; made if need be, appended to.
    pub(super) output: PathBuf,
}

/// The children of the agent while the user's code runs.
pub(super) struct Reaper {
    signals: unix::Signal,
    main: Pid,
    status: Option<WaitStatus>,
}

/// Whether the agent has children. Thanks to the subreaper, "none" means that nothing of the code's tree is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Children {
    /// None at all.
    None,
    /// At least one that has not ended.
    Some,
}

/// Makes orphans of the user's code children of this process. Once, before anything is started.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Starts the user's code. To be called on the thread that lives as long as the agent: the kernel ties the life of
/// the code to that thread.
pub(super) fn spawn(launch: &Launch) -> io::Result<(Reaper, MainProcess)> {
    let signals = unix::signal(SignalKind::child())?;
    let output = OpenOptions::new().create(true).append(true).open(&launch.output)?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .env_clear()
        .envs(&launch.variables)
        .current_dir(&launch.directory)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let agent = getpid();
    let before_exec = move || {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The agent may have died before the signal was armed; then nobody would ever send it.
        if getppid() == Some(agent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    #[expect(unsafe_code, reason = "the closure only makes system calls, which is what may be done between fork and exec")]
    // SAFETY: three system calls and a comparison; no allocation, no lock, nothing shared with the parent.
    unsafe {
        command.pre_exec(before_exec);
    }
    let child = command.spawn()?;
    let pid = child.id().cast_signed();
    let main = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    // It can't have been reaped yet, so its entry is there even if it has ended.
    let start_ticks = start_ticks(pid).unwrap_or_default();
    Ok((Reaper { signals, main, status: None }, MainProcess { pid, start_ticks }))
}

impl Reaper {
    /// Takes the results of all children that have ended, adopted ones included.
    pub(super) fn reap(&mut self) -> Children {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.main => self.status = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return Children::Some,
                Err(_) => return Children::None,
            }
        }
    }

    /// Resolves when a child may have ended since the last call. Cancel-safe.
    pub(super) async fn child_event(&mut self) {
        self.signals.recv().await;
    }

    /// Resolves when the main process has ended, with its result. Cancel-safe.
    pub(super) async fn main_ended(&mut self) -> WaitStatus {
        loop {
            self.reap();
            if let Some(status) = self.status {
                return status;
            }
            self.child_event().await;
        }
    }

    /// Resolves when no child is left. Cancel-safe.
    pub(super) async fn all_ended(&mut self) {
        while self.reap() == Children::Some {
            self.child_event().await;
        }
    }
}

/// What the result of the main process means for the run when nobody stopped it.
pub(super) fn cause_of(status: WaitStatus) -> Cause {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Cause::Completed,
        (Some(code), _) => Cause::ExitCode { code },
        (None, Some(signal)) => Cause::Signal { signal },
        (None, None) => Cause::AgentLost { message: format!("the system gave a result without meaning: {:#x}", status.as_raw()) },
    }
}

/// Why the process could not be started, for the person who wrote the definition.
pub(super) fn start_failure(launch: &Launch, error: &io::Error) -> String {
    let program = launch.program.to_string_lossy();
    let searched = || match launch.variables.get(std::ffi::OsStr::new("PATH")) {
        Some(path) if !program.contains('/') => format!(" on PATH ({})", path.to_string_lossy()),
        _ => String::new(),
    };
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("`{program}` was not found{}, or the interpreter named in its first line was not", searched())
        }
        io::ErrorKind::PermissionDenied => format!("`{program}` may not be executed; is it marked as executable?"),
        io::ErrorKind::ArgumentListTooLong => "arguments and environment variables together are longer than the system allows".into(),
        io::ErrorKind::StorageFull => format!("the disk of `{}` is full", launch.output.display()),
        _ => format!("`{program}`: {error}"),
    }
}
