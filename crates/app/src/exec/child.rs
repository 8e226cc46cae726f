//! Runs the program: same terminal, same standard streams, same process group; signals and the exit code pass through.

use std::{ffi::OsString, fs, io, process::ExitStatus};

use rustix::process::{Pid, Signal};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Signals that would end `exec` before its program, and what is passed on in their place.
///
/// Not here: SIGTSTP and SIGCONT, whose defaults stop and continue `exec` together with the program when the terminal
/// or the shell sends them to the group; SIGKILL and SIGSTOP, which cannot be caught.
const PASSED_ON: [(Signal, SignalKind); 8] = [
    (Signal::INT, SignalKind::interrupt()),
    (Signal::QUIT, SignalKind::quit()),
    (Signal::TERM, SignalKind::terminate()),
    (Signal::HUP, SignalKind::hangup()),
    (Signal::USR1, SignalKind::user_defined1()),
    (Signal::USR2, SignalKind::user_defined2()),
    (Signal::ALARM, SignalKind::alarm()),
    (Signal::WINCH, SignalKind::window_change()),
];

/// Runs `command` with `variables` on top of our own environment and waits for its end, passing signals on meanwhile.
///
/// An error means that it was not started: [`io::ErrorKind::NotFound`], [`io::ErrorKind::PermissionDenied`] and so on.
pub async fn run(command: &[OsString], variables: Vec<(&'static str, OsString)>) -> io::Result<ExitStatus> {
    let (program, arguments) = command.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Before the program starts: a signal in between would end us and leave the program without its proxy.
    let mut signals = listen()?;
    let mut child = Command::new(program).args(arguments).envs(variables).spawn()?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    loop {
        tokio::select! {
            // The child is reaped only here, so `pid` is its number for as long as signals are passed on.
            status = child.wait() => return status,
            Some(signal) = signals.recv() => {
                if let Some(pid) = pid.filter(|_| !came_from_terminal(signal)) {
                    // It may have ended already, which is about to be seen.
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        }
    }
}

/// The exit code a shell would report: the program's own, or 128 and the number of the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

/// One channel for all of [`PASSED_ON`].
fn listen() -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let ignored = ignored_signals();
    let (sender, receiver) = mpsc::unbounded_channel();
    for (number, kind) in PASSED_ON {
        // What is ignored (by `nohup`, say) stays ignored for us and, since it is inherited, for the program. A handler
        // would put the default back for the program.
        if ignored & (1 << (number.as_raw() - 1)) != 0 {
            continue;
        }
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} });
    }
    Ok(receiver)
}

/// Bit n-1 is set if signal n is ignored. Nothing is where there is no `/proc`.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether the program has received `signal` already.
///
/// A terminal sends Ctrl-C, Ctrl-\ and changes of size to every process of its foreground group, to the program as to us,
/// and a program that got Ctrl-C twice may take it for "now, at once". So these are passed on only when we are not in
/// the foreground of a terminal: then a process sent them, to us alone.
fn came_from_terminal(signal: Signal) -> bool {
    let generated = [Signal::INT, Signal::QUIT, Signal::WINCH].contains(&signal);
    generated
        && fs::File::open("/dev/tty")
            .is_ok_and(|terminal| rustix::termios::tcgetpgrp(terminal).is_ok_and(|foreground| foreground == rustix::process::getpgrp()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[tokio::test]
    async fn the_program_gets_its_variables_and_its_exit_code_is_ours() {
        let status = run(&command(&["sh", "-c", "test \"$TY_TEST\" = yes && exit 7"]), vec![("TY_TEST", "yes".into())]).await.unwrap();
        assert_eq!(exit_code(status), 7);
    }

    #[tokio::test]
    async fn a_program_that_a_signal_ended_is_128_and_the_signal() {
        let status = run(&command(&["sh", "-c", "kill -KILL $$"]), vec![]).await.unwrap();
        assert_eq!(exit_code(status), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_started_is_an_error_of_its_kind() {
        let error = run(&command(&["trainyard-no-such-program"]), vec![]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = run(&command(&["/"]), vec![]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn a_signal_sent_to_us_reaches_the_program() {
        let waiting = "trap 'exit 42' USR1; kill -USR1 $PPID; while :; do sleep 0.05; done";
        let status = run(&command(&["sh", "-c", waiting]), vec![]).await.unwrap();
        assert_eq!(exit_code(status), 42);
    }
}
