//! Child processes of a build: their output goes line by line into the build log, without secrets; cancelling ends the
//! whole process group, and so does dropping the future.

use std::{
    collections::VecDeque,
    io,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{Progress, requirement::hide_userinfo};

use super::{host::Host, limit::Work, prepare::PrepareError};

/// How long the output of a process that has ended may stay open in the hands of its children.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a quiet question (`uv --version`, a probe of an interpreter) may take.
const QUESTION: Duration = Duration::from_secs(20);
/// A line is cut into pieces of this many bytes.
const MAX_LINE: usize = 16 * 1024;
/// How many of the last lines are kept for the error message.
const KEPT_LINES: usize = 200;

/// Where the lines of a build go as they appear: the run's `azureml-logs/20_image_build_log.txt`.
pub trait BuildLog: Send {
    /// One line, without its end.
    fn line(&mut self, line: &str);

    /// What happens now, for whoever watches; it comes often, and only the last one counts.
    fn progress(&mut self, _progress: &Progress) {}
}

impl BuildLog for Vec<String> {
    fn line(&mut self, line: &str) {
        self.push(line.to_owned());
    }
}

/// What every step of a preparation needs: the log, the wish to stop, and what must not be shown.
pub(super) struct Console<'a> {
    log: &'a mut dyn BuildLog,
    pub(super) cancel: &'a CancellationToken,
    secrets: Vec<String>,
    work: Arc<Work>,
}

impl<'a> Console<'a> {
    pub(super) fn new(log: &'a mut dyn BuildLog, cancel: &'a CancellationToken) -> Self {
        Self { log, cancel, secrets: Vec::new(), work: Arc::default() }
    }

    /// From now on these words are masked.
    pub(super) fn hide(&mut self, secrets: Vec<String>) {
        self.secrets.extend(secrets);
    }

    /// Writes a line to the build log.
    pub(super) fn line(&mut self, line: &str) {
        let masked = self.masked(line);
        self.log.line(&masked);
    }

    /// Tells what happens now.
    pub(super) fn progress(&mut self, progress: &Progress) {
        self.work.is_at(progress);
        self.log.progress(progress);
    }

    /// What the time limit looks at.
    pub(super) fn work(&self) -> &Arc<Work> {
        &self.work
    }

    /// The text without credentials.
    pub(super) fn masked(&self, text: &str) -> String {
        let mut masked = hide_userinfo(text);
        for secret in &self.secrets {
            masked = masked.replace(secret.as_str(), "***");
        }
        masked
    }
}

/// How a logged process ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The last lines of its standard error, masked.
    pub(super) stderr: Vec<String>,
}

/// A command with the variables of `host` and no others, in its own process group.
pub(super) fn command(host: &Host, program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(host.variables());
    // A root without project files: uv reads `pyproject.toml` and `uv.toml` of the folders above it.
    command.current_dir("/").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// Runs `command` with both outputs going to the log line by line.
pub(super) async fn run_logged(command: Command, console: &mut Console<'_>) -> Result<Ended, PrepareError> {
    run_watched(command, console, |_| None).await
}

/// [`run_logged`], with a reader of the lines who knows how far the process is.
pub(super) async fn run_watched(
    mut command: Command,
    console: &mut Console<'_>,
    mut read: impl FnMut(&str) -> Option<Progress>,
) -> Result<Ended, PrepareError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    let mut group = Group::of(&child);
    let mut stdout = Lines::new(child.stdout.take());
    let mut stderr = Lines::new(child.stderr.take());
    let mut kept = VecDeque::new();
    let mut status = None;
    let drained = tokio::time::sleep(DRAIN);
    tokio::pin!(drained);
    let cancel = console.cancel;
    while status.is_none() || stdout.open() || stderr.open() {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                group.kill();
                let _ = child.wait().await;
                return Err(PrepareError::Cancelled);
            }
            Some(line) = stdout.next(), if stdout.open() => {
                console.line(&line);
                if let Some(progress) = read(&line) {
                    console.progress(&progress);
                }
            }
            Some(line) = stderr.next(), if stderr.open() => {
                console.line(&line);
                if let Some(progress) = read(&line) {
                    console.progress(&progress);
                }
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(console.masked(&line));
            }
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.map_err(|error| PrepareError::disk("failed to wait for a child process", error))?);
                drained.as_mut().reset(tokio::time::Instant::now() + DRAIN);
            }
            () = &mut drained, if status.is_some() => {
                // A daemon that the build left behind holds the output open.
                group.kill();
                break;
            }
            else => {}
        }
    }
    group.forget();
    let status = status.expect("the loop ends only once the status is known");
    Ok(Ended { status, stderr: kept.into() })
}

/// Runs `command` quietly and gives its status and standard output; it is ended after a while.
pub(super) async fn ask(mut command: Command, cancel: &CancellationToken) -> Result<(ExitStatus, String), PrepareError> {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let child = spawn(&mut command)?;
    let mut group = Group::of(&child);
    let output = tokio::select! {
        () = cancel.cancelled() => return Err(PrepareError::Cancelled),
        output = tokio::time::timeout(QUESTION, child.wait_with_output()) => output,
    };
    let output = output.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten();
    let output = output.map_err(|error| PrepareError::disk("a child process gave no answer", error))?;
    group.forget();
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn spawn(command: &mut Command) -> Result<Child, PrepareError> {
    command.spawn().map_err(|error| {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        PrepareError::disk(format!("failed to start `{program}`"), error)
    })
}

/// The process group of a child; killed when dropped, unless the child has ended by itself.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // Fails only if nothing of the group is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lines of a stream, cut at [`MAX_LINE`]. `next` keeps what it has read when it is dropped half-way.
struct Lines<R> {
    stream: Option<BufReader<R>>,
    partial: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: Option<R>) -> Self {
        Self { stream: stream.map(BufReader::new), partial: Vec::new() }
    }

    fn open(&self) -> bool {
        self.stream.is_some()
    }

    /// The next line; `None` once the stream has ended.
    async fn next(&mut self) -> Option<String> {
        loop {
            let stream = self.stream.as_mut()?;
            let available = match stream.fill_buf().await {
                Ok(available) if !available.is_empty() => available,
                // A stream that can not be read any more has ended as far as the log is concerned.
                Ok(_) | Err(_) => {
                    self.stream = None;
                    return if self.partial.is_empty() { None } else { Some(self.take()) };
                }
            };
            let room = MAX_LINE - self.partial.len();
            let end = available.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let taken = end.unwrap_or(available.len()).min(room);
            self.partial.extend_from_slice(&available[..taken]);
            let at_end = end == Some(taken);
            let consumed = taken + usize::from(at_end);
            if let Some(stream) = self.stream.as_mut() {
                stream.consume(consumed);
            }
            if at_end && self.partial.is_empty() {
                continue;
            }
            if at_end || self.partial.len() == MAX_LINE {
                return Some(self.take());
            }
        }
    }

    fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = command(&Host::current(), Path::new("/bin/sh"));
        shell.args(["-c", script]);
        shell
    }

    #[tokio::test]
    async fn both_outputs_reach_the_log_without_secrets() {
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let mut console = Console::new(&mut log, &cancel);
        console.hide(vec!["s3cret".into()]);
        let script = "echo one; echo 'https://u:p@h/x s3cret' >&2; printf 'a\\rb'; exit 3";
        let ended = run_logged(shell(script), &mut console).await.unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stderr, ["https://***@h/x ***"]);
        log.sort();
        assert_eq!(log, ["a", "b", "https://***@h/x ***", "one"]);
    }

    #[tokio::test]
    async fn an_endless_line_is_cut() {
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        run_logged(shell("head -c 40000 /dev/zero | tr '\\0' x"), &mut Console::new(&mut log, &cancel)).await.unwrap();
        assert_eq!(log.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 40000 - 2 * MAX_LINE]);
    }

    #[tokio::test]
    async fn cancelling_ends_the_whole_process_group() {
        let cancel = CancellationToken::new();
        let trigger = cancel.clone();
        /// Cancels as soon as the grandchild has told its id.
        struct Trigger(CancellationToken, Option<i32>);
        impl BuildLog for Trigger {
            fn line(&mut self, line: &str) {
                self.1 = line.parse().ok();
                self.0.cancel();
            }
        }
        let mut log = Trigger(trigger, None);
        let outcome = run_logged(shell("sleep 300 & echo $!; wait"), &mut Console::new(&mut log, &cancel)).await;
        assert!(matches!(outcome, Err(PrepareError::Cancelled)));
        let grandchild = Pid::from_raw(log.1.unwrap()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while is_alive(grandchild) {
            assert!(std::time::Instant::now() < deadline, "the grandchild outlived the cancellation");
            tokio::task::yield_now().await;
        }
    }

    /// A zombie that waits for its new parent does not count.
    fn is_alive(process: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_output_open_does_not_hold_the_build_up() {
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let begun = std::time::Instant::now();
        let ended = run_logged(shell("sleep 300 & echo done"), &mut Console::new(&mut log, &cancel)).await.unwrap();
        assert!(ended.status.success());
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
