//! Asking a container engine: which one there is, and short calls of its client.

use std::{ffi::OsString, path::Path, process::Stdio, time::Duration};

use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::super::{
    cache::Cache,
    command::{Console, command},
    host::Host,
    prepare::PrepareError,
    settings::EnvironmentSettings,
};
use crate::container::{Candidate, Client, ContainerSettings, Kind, Mount, mount_word};

/// How long a short call (an inspection, a question) may take; a daemon that wakes up takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Finds the engine that the settings allow: the first that answers. `Err` names every one that was looked for.
pub(crate) async fn find(settings: &ContainerSettings, cancel: &CancellationToken) -> Result<Client, PrepareError> {
    find_on(&Host::current(), settings, cancel).await
}

/// [`find`] on a node with given variables.
pub(super) async fn find_on(host: &Host, settings: &ContainerSettings, cancel: &CancellationToken) -> Result<Client, PrepareError> {
    let mut passed_over = Vec::new();
    for &kind in Kind::allowed(settings.engine) {
        let mut missing = true;
        for program in kind.programs().iter().flat_map(|name| host.on_path(name)) {
            missing = false;
            let shown = program.display().to_string();
            let mut question = command(host, &program);
            question.args(kind.question());
            let answer = match call(question, cancel).await {
                Ok(answer) => answer,
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => {
                    passed_over.push(error.to_string());
                    continue;
                }
            };
            match Client::from_answer(Candidate { kind, program }, &answer.out, settings) {
                Ok(client) if answer.ok => return Ok(client),
                Ok(_) => passed_over.push(format!("`{shown}` failed: {}", first_line(&answer.err))),
                Err(why) if answer.err.trim().is_empty() => passed_over.push(format!("`{shown}` {why}")),
                Err(_) => passed_over.push(format!("`{shown}` failed: {}", first_line(&answer.err))),
            }
        }
        if missing {
            passed_over.push(format!("{} is not on PATH", kind.programs().join(" or ")));
        }
    }
    Err(PrepareError::Settings(format!(
        "no container engine answers on this machine: {}; install one, name it with container_engine, or set containers = \"never\" for the target",
        passed_over.join("; ")
    )))
}

/// What a short call led to.
pub(super) struct Answer {
    pub(super) ok: bool,
    /// The exit code, if it was not a signal that ended it.
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

async fn call(mut command: Command, cancel: &CancellationToken) -> Result<Answer, PrepareError> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |error| PrepareError::disk(format!("`{program}` gave no answer"), error);
    let output = tokio::select! {
        () = cancel.cancelled() => return Err(PrepareError::Cancelled),
        output = tokio::time::timeout(PATIENCE, command.output()) => output,
    };
    let output = output.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut)).flatten().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Answer { ok: output.status.success(), code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
}

fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing")
}

/// Everything that is needed to work with an engine for one attempt.
pub(super) struct Desk<'a> {
    pub(super) host: &'a Host,
    pub(super) client: &'a Client,
    pub(super) containers: &'a ContainerSettings,
    pub(super) settings: &'a EnvironmentSettings,
    pub(super) cache: Cache,
    /// The attempt, as text.
    pub(super) attempt: &'a str,
    /// The name of every container that is made on the way; one at a time.
    pub(super) name: &'a str,
    /// For files that are worth nothing after a crash.
    pub(super) scratch: &'a Path,
}

impl Desk<'_> {
    /// The client with its global options and `words`.
    pub(super) fn command<I, W>(&self, words: I) -> Command
    where
        I: IntoIterator<Item = W>,
        W: AsRef<std::ffi::OsStr>,
    {
        let mut client = command(self.host, &self.client.program);
        client.args(&self.client.globals).args(words);
        client
    }

    /// A short call.
    pub(super) async fn call<I, W>(&self, words: I, console: &Console<'_>) -> Result<Answer, PrepareError>
    where
        I: IntoIterator<Item = W>,
        W: AsRef<std::ffi::OsStr>,
    {
        call(self.command(words), console.cancel).await
    }

    /// Whether containers have names, by which they are removed.
    pub(super) fn has_names(&self) -> bool {
        self.client.kind != Kind::Apptainer
    }

    /// The word that names a throwaway container.
    fn name_word(&self) -> Option<OsString> {
        self.has_names().then(|| format!("--name={}", self.name).into())
    }

    /// A short call of a program in a throwaway container.
    pub(super) async fn call_inside(&self, words: &[&str], console: &Console<'_>) -> Result<Answer, PrepareError> {
        let before = self.throwaway(&[], &[]).into_iter().chain(self.name_word());
        let answer = self.call(before.chain(words.iter().map(Into::into)), console).await;
        if let Some(removal) = self.removal() {
            self.call(removal.into_iter().chain([self.name]), console).await?;
        }
        answer
    }

    /// The words before the name that remove a throwaway container which has ended. Docker's `--rm` is done when its client ends; Podman's goes on for a while, and the next
    /// container cannot have the name then, so Podman is told apart and waited for.
    pub(super) fn removal(&self) -> Option<[&'static str; 3]> {
        (self.client.kind == Kind::Podman).then_some(["rm", "--force", "--ignore"])
    }

    /// The words before name, image and program of a container that does not outlast its program. `variables` go in by name.
    pub(super) fn throwaway(&self, mounts: &[Mount], variables: &[&str]) -> Vec<OsString> {
        let agent = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let say = |words: &mut Vec<OsString>, text: &str| words.push(text.into());
        let mut words = Vec::new();
        if self.client.kind == Kind::Apptainer {
            for word in ["--silent", "exec", "--cleanenv", "--no-home"] {
                say(&mut words, word);
            }
            words.extend(self.containers.arguments.iter().map(OsString::from));
            for mount in mounts {
                let path = mount.path.display();
                say(&mut words, &format!("--bind={path}:{path}:{}", if mount.writable { "rw" } else { "ro" }));
            }
            say(&mut words, "--pwd=/");
            return words;
        }
        for word in ["run", "--network=host", "--log-driver=none"] {
            say(&mut words, word);
        }
        if self.client.kind != Kind::Podman {
            say(&mut words, "--rm");
        }
        if self.client.kind == Kind::Podman {
            // One that a killed agent left.
            say(&mut words, "--replace");
            say(&mut words, "--security-opt=label=disable");
        } else if let Some(runtime) = &self.containers.runtime {
            say(&mut words, &format!("--runtime={runtime}"));
        }
        for limit in &self.containers.ulimits {
            say(&mut words, &format!("--ulimit={limit}"));
        }
        words.extend(self.containers.arguments.iter().map(OsString::from));
        say(&mut words, &format!("--label=trainyard.attempt={}", self.attempt));
        say(&mut words, &format!("--user={}", self.client.user(agent)));
        say(&mut words, "--entrypoint=");
        say(&mut words, "--workdir=/");
        words.extend(mounts.iter().map(mount_word));
        for name in variables {
            say(&mut words, &format!("--env={name}"));
        }
        words
    }

    /// `Podman 4.3.1`, for people.
    pub(super) fn engine(&self) -> String {
        format!("{} {}", self.client.kind.name(), self.client.version)
    }
}

/// One word for the shell.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What an engine said about a failure: its last lines without prefixes and without what only accompanies them.
pub(super) fn engine_words(lines: &[String]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("time=\"")).collect();
    let begins = |line: &&str| ["Error", "ERROR", "error", "FATAL"].iter().any(|begin| line.starts_with(begin));
    let from = lines.iter().rposition(begins).unwrap_or(lines.len().saturating_sub(5));
    let text = lines[from..].join("\n");
    let mut text = text.as_str();
    for prefix in ["Error: ", "FATAL: ", "ERROR: ", "Error response from daemon: "] {
        text = text.strip_prefix(prefix).unwrap_or(text).trim_start();
    }
    let text = text.trim_end_matches('.');
    if text.is_empty() { "it said nothing".into() } else { text.chars().take(2000).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_engine_are_its_error_without_the_tries_before() {
        let lines = [
            "Trying to pull 127.0.0.1:9/nope:1...",
            "time=\"2026-11-23T16:02:02Z\" level=warning msg=\"Failed, retrying in 1s ... (1/3)\"",
            "Error: initializing source docker://127.0.0.1:9/nope:1: connection refused",
        ];
        let lines: Vec<String> = lines.iter().map(|&line| line.into()).collect();
        assert_eq!(engine_words(&lines), "initializing source docker://127.0.0.1:9/nope:1: connection refused");
        assert_eq!(engine_words(&["Error response from daemon: manifest unknown.".into()]), "manifest unknown");
        assert_eq!(engine_words(&[]), "it said nothing");
    }
}
