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
    process::{
        Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper, set_parent_process_death_signal, setsid,
        wait,
    },
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
    /// The main processes, in the order in which they were started.
    mains: Vec<Pid>,
    /// How main processes ended, by their places among them, the first one first.
    ended: Vec<(usize, WaitStatus)>,
}

/// Why the code is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotStarted {
    /// For the person who wrote the definition.
    pub(super) message: String,
    /// Whether the definition is to blame, so that another try would end the same way, or the machine.
    pub(super) by_definition: bool,
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

impl Reaper {
    /// For a code that is about to be started.
    pub(super) fn new() -> Result<Self, NotStarted> {
        let signals = unix::signal(SignalKind::child())
            .map_err(|error| NotStarted { message: format!("the ends of processes cannot be watched: {error}"), by_definition: false })?;
        Ok(Self { signals, mains: Vec::new(), ended: Vec::new() })
    }

    /// Starts a main process of the user's code. To be called on the thread that lives as long as the agent: the kernel ties the life of the code to
    /// that thread.
    pub(super) fn spawn(&mut self, launch: &Launch) -> Result<MainProcess, NotStarted> {
        let machine = |what: String| move |error: io::Error| NotStarted { message: format!("{what}: {error}"), by_definition: false };
        let output = OpenOptions::new().create(true).append(true).open(&launch.output);
        let output = output.map_err(machine(format!("`{}` cannot be opened", launch.output.display())))?;
        let copy = output.try_clone().map_err(machine("the log of the code cannot be opened twice".into()))?;
        self.spawn_into(launch, (copy.into(), output.into()))
    }

    /// The same, with standard output and standard error going elsewhere than into the log of the launch.
    pub(super) fn spawn_into(&mut self, launch: &Launch, outputs: (Stdio, Stdio)) -> Result<MainProcess, NotStarted> {
        let main = spawn(launch, outputs)?;
        self.mains.push(Pid::from_raw(main.pid).expect("a child that was just started has a number above zero"));
        Ok(main)
    }

    /// How the main process at a place ended, once it has been reaped.
    pub(super) fn end_of(&self, place: usize) -> Option<WaitStatus> {
        self.ended.iter().find(|(ended, _)| *ended == place).map(|(_, status)| *status)
    }
}

fn spawn(launch: &Launch, (output, errors): (Stdio, Stdio)) -> Result<MainProcess, NotStarted> {
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .env_clear()
        .envs(&launch.variables)
        .current_dir(&launch.directory)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let agent = getpid();
    let before_exec = move || {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The agent may have died before the signal was armed; then nobody would ever send it. Nor is anybody left to read an error: the
        // standard library would complain about that in the code's own log.
        if getppid() != Some(agent) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the closure only makes system calls, which is what may be done between fork and exec")]
    // SAFETY: a few system calls and a comparison; no allocation, no lock, nothing shared with the parent.
    unsafe {
        command.pre_exec(before_exec);
    }
    let child = command.spawn().map_err(|error| not_started(launch, &error))?;
    let pid = child.id().cast_signed();
    // It can't have been reaped yet, so its entry is there even if it has ended.
    let start_ticks = start_ticks(pid).unwrap_or_default();
    Ok(MainProcess { pid, start_ticks })
}

impl Reaper {
    /// Takes the results of all children that have ended, adopted ones included.
    pub(super) fn reap(&mut self) -> Children {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let place = self.mains.iter().position(|main| *main == pid);
                    // An orphan may have got the number of a main process that ended before.
                    if let Some(place) = place.filter(|place| self.ended.iter().all(|(ended, _)| ended != place)) {
                        self.ended.push((place, status));
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) => return Children::Some,
                Err(_) => return Children::None,
            }
        }
    }

    /// Resolves when a child may have ended since the last call. Cancel-safe.
    pub(super) async fn child_event(&mut self) {
        self.signals.recv().await;
    }

    /// Resolves when a main process has ended badly, with its place and result, or when the first `awaited` have ended well. Cancel-safe.
    pub(super) async fn ended_badly_or_first(&mut self, awaited: usize) -> Option<(usize, WaitStatus)> {
        loop {
            self.reap();
            if let Some(failed) = self.ended.iter().find(|(_, status)| status.exit_status() != Some(0)) {
                return Some(*failed);
            }
            if (0..awaited).all(|place| self.ended.iter().any(|(ended, _)| *ended == place)) {
                return None;
            }
            self.child_event().await;
        }
    }

    /// Resolves when every main process has ended, however. Cancel-safe.
    pub(super) async fn mains_ended(&mut self) {
        loop {
            self.reap();
            if self.ended.len() >= self.mains.len() {
                return;
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

/// Why the process could not be started.
fn not_started(launch: &Launch, error: &io::Error) -> NotStarted {
    if !launch.directory.is_dir() {
        let message = format!("the working directory `{}` is gone", launch.directory.display());
        return NotStarted { message, by_definition: false };
    }
    NotStarted { message: start_failure(launch, error), by_definition: is_by_definition(error) }
}

/// What is wrong with the program that was named, rather than with the machine's room for another process.
fn is_by_definition(error: &io::Error) -> bool {
    const THE_PROGRAM: [Errno; 9] = [
        Errno::NOENT,
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOEXEC,
        Errno::TOOBIG,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::LOOP,
        Errno::NAMETOOLONG,
    ];
    // Without a number it is the standard library that refuses an argument with a NUL in it.
    Errno::from_io_error(error).map_or(error.kind() == io::ErrorKind::InvalidInput, |errno| THE_PROGRAM.contains(&errno))
}

fn start_failure(launch: &Launch, error: &io::Error) -> String {
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
        _ if Errno::from_io_error(error) == Some(Errno::NOEXEC) => {
            format!("`{program}` is no program that this machine can run; does its first line name its interpreter?")
        }
        _ => format!("`{program}`: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_run_is_the_definitions_and_a_full_machine_is_not() {
        let table = [
            (Errno::NOENT, true),
            (Errno::ACCESS, true),
            (Errno::NOEXEC, true),
            (Errno::TOOBIG, true),
            (Errno::AGAIN, false),
            (Errno::NOMEM, false),
            (Errno::MFILE, false),
            (Errno::NOSPC, false),
            (Errno::SRCH, false),
        ];
        for (errno, expected) in table {
            assert_eq!(is_by_definition(&errno.into()), expected, "{errno}");
        }
    }
}
