//! How a container ended, and what that means for the run.
//!
//! The engine's client ends with the code of what it ran, and with codes of its own where it could not run it: the container itself tells the two
//! apart, which is why it is looked at before it is removed.

use std::{path::Path, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::process::Command;
use trainyard_core::run::Cause;

use super::client::{Client, Kind};

/// How long an engine may take to answer; a machine in trouble takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much of the engine's words an error repeats.
const MAX_WORDS: usize = 2000;

/// The file that Podman's monitor leaves where the client was started when a container ran out of memory, on machines with old control groups.
const OOM_FILE: &str = "oom";

/// What there is to know about a container after its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// Whether its code was started; `None`: the engine does not say.
    pub(crate) started: Option<bool>,
    /// Whether the kernel killed something in it for want of memory.
    pub(crate) out_of_memory: bool,
}

/// Looks at the container `name`, whose client was started in `directory`, and removes it. `Err`: what could not be removed, and why.
pub(crate) async fn close(client: &Client, name: &str, directory: &Path) -> (End, Result<(), String>) {
    if client.kind == Kind::Apptainer {
        return (End::default(), Ok(()));
    }
    let mut end = state(client, name).await;
    end.out_of_memory |= directory.join(OOM_FILE).exists();
    (end, remove(client, name).await)
}

/// Ends and removes the container `name`. It is no error if there is none.
pub(crate) async fn remove(client: &Client, name: &str) -> Result<(), String> {
    let Some(words) = client.remove_words(&[name.to_owned()]) else { return Ok(()) };
    let mut command = Command::new(&client.program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => output.map_err(|error| format!("`{}` cannot be started: {error}", client.program.display()))?,
        Err(_) => return Err(format!("{} did not answer for {} seconds", client.kind.name(), PATIENCE.as_secs())),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || said.to_ascii_lowercase().contains("no such container") { Ok(()) } else { Err(said.trim().to_owned()) }
}

async fn state(client: &Client, name: &str) -> End {
    let mut command = Command::new(&client.program);
    command.args(client.words(["inspect", "--type", "container", "--format", "{{json .State}}", name]));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => read_state(&String::from_utf8_lossy(&output.stdout)),
        // Whoever has no container never had one: nobody else removes it.
        Ok(Ok(output)) if String::from_utf8_lossy(&output.stderr).to_ascii_lowercase().contains("no such") => {
            End { started: Some(false), out_of_memory: false }
        }
        _ => End::default(),
    }
}

fn read_state(text: &str) -> End {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct State {
        #[serde(default)]
        started_at: String,
        #[serde(default, rename = "OOMKilled")]
        oom_killed: bool,
    }
    match serde_json::from_str::<State>(text) {
        Ok(state) => {
            End { started: Some(!state.started_at.is_empty() && !state.started_at.starts_with("0001-")), out_of_memory: state.oom_killed }
        }
        Err(_) => End::default(),
    }
}

impl End {
    /// What the end of the client with `cause` means, and what has to be said about it. `log`: the last of what was written while it ran.
    pub(crate) fn judge(&self, client: &Client, cause: Cause, log: &str) -> (Cause, Option<String>) {
        let code = match cause {
            Cause::ExitCode { code } => code,
            cause => return (cause, None),
        };
        if let Some(failed) = self.not_started(client, code, log) {
            return (failed, None);
        }
        // The way of shells, and of every engine: 128 and the number of the signal.
        let signal = (129..=128 + 64).contains(&code).then(|| code - 128);
        let killed = "the kernel killed a process in the container for want of memory";
        match signal {
            Some(9) if self.out_of_memory => {
                (Cause::OutOfMemory { message: format!("{killed}: the container reached its memory limit") }, None)
            }
            Some(signal) => (Cause::Signal { signal }, self.out_of_memory.then(|| killed.to_owned())),
            None => (Cause::ExitCode { code }, self.out_of_memory.then(|| killed.to_owned())),
        }
    }

    fn not_started(&self, client: &Client, code: i32, log: &str) -> Option<Cause> {
        let engine = client.kind.name();
        let failed = |message: String, by_definition: bool| Some(Cause::StartFailed { message, by_definition });
        if let Some(said) = init_failed(code, log) {
            return failed(format!("the program could not be started in the container: {said}"), true);
        }
        let of_the_engine = match client.kind {
            Kind::Apptainer => apptainer_failed(code, log),
            _ => match self.started {
                Some(started) => !started,
                None => (125..=127).contains(&code),
            },
        };
        if !of_the_engine {
            return None;
        }
        let said = words(log);
        let said = if said.is_empty() { format!("it ended with {code} and said nothing") } else { said };
        let lower = said.to_ascii_lowercase();
        let no_program =
            ["executable file not found", "no such file or directory: oci", "not found in $path", "permission denied: oci runtime"];
        if matches!(code, 126 | 127 | 255) && no_program.iter().any(|words| lower.contains(words)) && !lower.contains("rlimit") {
            return failed(format!("the program could not be started in the container: {said}"), true);
        }
        let arguments =
            ["unknown flag", "unknown shorthand flag", "flag needs an argument", "invalid argument", "invalid reference format"];
        if arguments.iter().any(|words| lower.contains(words)) {
            return failed(format!("{engine} does not take the arguments of the container: {said}"), true);
        }
        failed(format!("{engine} could not start the container: {said}{}", advice(&lower)), false)
    }
}

/// What an operator can do about the commonest failures.
pub(crate) fn advice(said: &str) -> &'static str {
    if said.contains("rlimit") {
        "; set container_ulimits for the target to what this machine allows, e.g. [\"nofile=1024:1024\", \"nproc=1000:1000\"]"
    } else if said.contains("cgroup") {
        "; this machine lacks the control groups that the engine needs: set container_runtime = \"runc\" or container_arguments = [\"--cgroups=disabled\"] for the target"
    } else if said.contains("requesting capability set") {
        "; Apptainer wants root to have every capability, and the server does not have them all: run it as another user, or set container_arguments = [\"--no-privs\"] for the target"
    } else if said.contains("nvidia") || said.contains("could not select device driver") {
        "; the machine has no GPU, or the engine was not set up for it (NVIDIA Container Toolkit)"
    } else {
        ""
    }
}

/// The words of the container's first process about a program that it could not start: it is there, the code never was.
fn init_failed(code: i32, log: &str) -> Option<String> {
    let last = log.lines().rfind(|line| !line.trim().is_empty())?.trim();
    let failed = (code == 1 && last.starts_with("ERROR (catatonit:") && last.contains("failed to exec pid1"))
        || (matches!(code, 126 | 127) && last.starts_with("[FATAL tini (") && last.contains("exec "))
        || (last.starts_with("[dumb-init] ") && matches!(code, 1 | 2));
    failed.then(|| last.to_owned())
}

/// Whether a client of Apptainer that ended with `code` was itself what failed. Its own part says `FATAL:` and ends with 255; the program below it that
/// makes the namespaces says `ERROR  :`, in red whatever it was told, and ends with 1 (seen with 1.4.5). Nothing else tells their ends from the code's.
pub(crate) fn apptainer_failed(code: i32, log: &str) -> bool {
    let mut lines = log.lines().map(plain).filter(|line| !line.is_empty());
    match code {
        255 => lines.any(|line| line.starts_with("FATAL:")),
        1 => lines.next_back().is_some_and(|line| line.starts_with("ERROR  :")),
        _ => false,
    }
}

/// A line without the colours around it.
fn plain(line: &str) -> &str {
    let mut line = line.trim();
    for colour in ["\u{1b}[0m", "\u{1b}[91m", "\u{1b}[31m"] {
        line = line.trim_start_matches(colour).trim_end_matches(colour);
    }
    line.trim()
}

/// The last words of an engine: without its prefixes, and without warnings if there is anything else.
fn words(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(plain).filter(|line| !line.is_empty()).collect();
    let from = lines.iter().rposition(|line| ["Error:", "FATAL:", "ERROR  :", "docker: "].iter().any(|begin| line.starts_with(begin)));
    let lines = &lines[from.unwrap_or(lines.len().saturating_sub(5))..];
    let text = lines.iter().filter(|line| !line.starts_with("See '")).copied().collect::<Vec<_>>().join("\n");
    let mut text = text.as_str();
    for prefix in ["docker: ", "Error: ", "FATAL: ", "ERROR  : ", "Error response from daemon: "] {
        text = text.strip_prefix(prefix).unwrap_or(text).trim_start();
    }
    match text.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.trim_end_matches('.').to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(kind: Kind) -> Client {
        Client { kind, program: "/bin/x".into(), version: "1".into(), rootless: false, has_init: true, globals: Vec::new() }
    }

    fn judge(started: Option<bool>, out_of_memory: bool, code: i32, log: &str) -> Cause {
        End { started, out_of_memory }.judge(&client(Kind::Podman), Cause::ExitCode { code }, log).0
    }

    fn start_failed(cause: Cause) -> (String, bool) {
        match cause {
            Cause::StartFailed { message, by_definition } => (message, by_definition),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_codes_of_the_code_are_its_own_even_those_that_engines_use() {
        for code in [1, 2, 125, 126, 127, 255] {
            assert_eq!(judge(Some(true), false, code, "Error: whatever"), Cause::ExitCode { code });
        }
        assert_eq!(judge(Some(true), false, 137, ""), Cause::Signal { signal: 9 });
        assert_eq!(judge(Some(true), false, 139, ""), Cause::Signal { signal: 11 });
    }

    #[test]
    fn want_of_memory_is_told_from_a_kill() {
        assert!(matches!(judge(Some(true), true, 137, ""), Cause::OutOfMemory { .. }));
        let end = End { started: Some(true), out_of_memory: true };
        let (cause, warning) = end.judge(&client(Kind::Docker), Cause::ExitCode { code: 3 }, "");
        assert_eq!(cause, Cause::ExitCode { code: 3 });
        assert!(warning.unwrap().contains("want of memory"));
    }

    #[test]
    fn an_engine_that_could_not_start_the_container_says_why_in_its_own_words() {
        let rlimits = "Error: runc: runc create failed: unable to start container process: error during container init: error setting rlimits for ready process: error setting rlimit type 7: operation not permitted: OCI permission denied\n";
        let (message, by_definition) = start_failed(judge(Some(false), false, 126, rlimits));
        assert!(message.starts_with("Podman could not start the container: runc: runc create failed"), "{message}");
        assert!(message.contains("container_ulimits") && !by_definition, "{message}");
        let (message, by_definition) =
            start_failed(judge(Some(false), false, 125, "Error: unknown flag: --bogus\nSee 'podman run --help'\n"));
        assert!(message.ends_with("does not take the arguments of the container: unknown flag: --bogus") && by_definition, "{message}");
        let missing = "Error: runc: runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH: OCI runtime attempted to invoke a command that was not found\n";
        assert!(start_failed(judge(Some(false), false, 127, missing)).1);
        let cgroups = "Error: OCI runtime error: crun: the requested cgroup controller `pids` is not available\n";
        let (message, by_definition) = start_failed(judge(None, false, 126, cgroups));
        assert!(message.contains("--cgroups=disabled") && !by_definition, "{message}");
        assert!(start_failed(judge(Some(false), false, 125, "")).0.contains("said nothing"));
    }

    #[test]
    fn a_first_process_that_finds_no_program_means_that_the_code_was_not_started() {
        let (message, by_definition) =
            start_failed(judge(Some(true), false, 1, "ERROR (catatonit:6): failed to exec pid1: No such file or directory\n"));
        assert!(message.contains("No such file") && by_definition);
        assert!(start_failed(judge(Some(true), false, 127, "[FATAL tini (7)] exec nope failed: No such file or directory\n")).1);
    }

    #[test]
    fn apptainers_own_failures_are_fatal_lines() {
        let end = End::default();
        let fatal = "FATAL:   \"nope\": executable file not found in $PATH\n";
        let (message, by_definition) = start_failed(end.judge(&client(Kind::Apptainer), Cause::ExitCode { code: 255 }, fatal).0);
        assert!(message.contains("nope") && by_definition, "{message}");
        let below = "\u{1b}[91mERROR  : Requesting capability set 0x1ff while permitted capability set is 0x1fe\n\u{1b}[0m";
        let (message, by_definition) = start_failed(end.judge(&client(Kind::Apptainer), Cause::ExitCode { code: 1 }, below).0);
        assert!(message.starts_with("Apptainer could not start the container: Requesting capability set"), "{message}");
        assert!(message.contains("--no-privs") && !by_definition, "{message}");
        let codes_own = end.judge(&client(Kind::Apptainer), Cause::ExitCode { code: 1 }, "ERROR  : of mine\nbye\n").0;
        assert_eq!(codes_own, Cause::ExitCode { code: 1 });
        let own = end.judge(&client(Kind::Apptainer), Cause::ExitCode { code: 255 }, "bye").0;
        assert_eq!(own, Cause::ExitCode { code: 255 });
    }

    #[test]
    fn the_state_of_a_container_is_read_as_both_engines_write_it() {
        let ended = r#"{"Status":"exited","OOMKilled":true,"ExitCode":137,"StartedAt":"2026-11-23T16:02:00.391598752Z"}"#;
        assert_eq!(read_state(ended), End { started: Some(true), out_of_memory: true });
        let created = r#"{"Status":"created","OOMKilled":false,"StartedAt":"0001-01-01T00:00:00Z"}"#;
        assert_eq!(read_state(created), End { started: Some(false), out_of_memory: false });
        assert_eq!(read_state("garbage"), End::default());
    }
}
