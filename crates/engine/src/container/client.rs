//! The program that speaks for a container engine: finding it, and the beginnings of its command lines.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::{ContainerSettings, EngineChoice};

/// Which engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Podman: containers are children of what started them.
    Podman,
    /// Docker: containers belong to a daemon.
    Docker,
    /// Apptainer or Singularity: a container is a process with another root.
    Apptainer,
}

/// An engine that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// Which it is.
    pub(crate) kind: Kind,
    /// The program.
    pub(crate) program: PathBuf,
    /// E.g. `4.3.1`.
    pub(crate) version: String,
    /// Whether root inside is somebody else outside: the one who runs the engine.
    pub(crate) rootless: bool,
    /// Whether the engine has a first process of its own, which passes signals on and reaps.
    pub(crate) has_init: bool,
    /// Options before the command, e.g. `--runtime runc`.
    pub(crate) globals: Vec<String>,
}

/// What was found of an engine: a program and how it is asked whether it is at work.
pub(crate) struct Candidate {
    /// Which it would be.
    pub(crate) kind: Kind,
    /// The program.
    pub(crate) program: PathBuf,
}

impl Kind {
    /// The names of its program, best first.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Podman => &["podman"],
            Self::Docker => &["docker"],
            Self::Apptainer => &["apptainer", "singularity"],
        }
    }

    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Podman => "Podman",
            Self::Docker => "Docker",
            Self::Apptainer => "Apptainer",
        }
    }

    /// The question whose answer [`Client::from_answer`] reads.
    pub(crate) fn question(self) -> &'static [&'static str] {
        match self {
            Self::Podman | Self::Docker => &["info", "--format", "{{json .}}"],
            Self::Apptainer => &["--version"],
        }
    }

    /// The engines that a choice allows, in the order in which they are asked.
    pub(crate) fn allowed(choice: EngineChoice) -> &'static [Self] {
        match choice {
            EngineChoice::Auto => &[Self::Podman, Self::Docker, Self::Apptainer],
            EngineChoice::Podman => &[Self::Podman],
            EngineChoice::Docker => &[Self::Docker],
            EngineChoice::Apptainer => &[Self::Apptainer],
        }
    }
}

impl Client {
    /// Reads what the candidate answered to [`Kind::question`]. `Err`: why it is not an engine at work.
    pub(crate) fn from_answer(candidate: Candidate, answer: &str, settings: &ContainerSettings) -> Result<Self, String> {
        let Candidate { kind, program } = candidate;
        let mut client = Self { kind, program, version: String::new(), rootless: false, has_init: true, globals: Vec::new() };
        if kind == Kind::Apptainer {
            // `apptainer version 1.3.4`, `singularity version 3.8.7`, `singularity-ce version 4.0.0`.
            let version = answer.split_once(" version ").map(|(_, version)| version.trim()).filter(|version| !version.is_empty());
            client.version = version.ok_or_else(|| "does not say which version it is".to_owned())?.to_owned();
            client.rootless = true;
            return Ok(client);
        }
        let answer: Value = serde_json::from_str(answer).map_err(|_| "does not say what it is: is it a real engine?".to_owned())?;
        let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        match kind {
            Kind::Podman => {
                client.version = text("/version/Version").ok_or("does not say which version it is")?;
                client.rootless = answer.pointer("/host/security/rootless").and_then(Value::as_bool).unwrap_or_default();
                client.has_init = podman_has_init();
                client.globals = settings.runtime.iter().flat_map(|runtime| ["--runtime".to_owned(), runtime.clone()]).collect();
            }
            _ => {
                // Without a daemon the client still answers, with nothing of a server in it.
                client.version = text("/ServerVersion").filter(|version| !version.is_empty()).ok_or_else(|| {
                    let errors = answer.pointer("/ServerErrors").and_then(Value::as_array);
                    let said = errors.and_then(|errors| errors.first()).and_then(Value::as_str).unwrap_or("no daemon answers");
                    said.to_owned()
                })?;
                let options = answer.pointer("/SecurityOptions").and_then(Value::as_array);
                client.rootless =
                    options.is_some_and(|options| options.iter().filter_map(Value::as_str).any(|option| option.contains("rootless")));
            }
        }
        Ok(client)
    }

    /// Whom the processes inside run as, so that their files belong to `agent` (user and group) outside.
    pub(crate) fn user(&self, agent: (u32, u32)) -> String {
        if self.rootless || agent.0 == 0 { "0:0".into() } else { format!("{}:{}", agent.0, agent.1) }
    }

    /// `rm -f` of containers by name; nothing for Apptainer, whose containers are processes.
    pub(crate) fn remove_words(&self, names: &[String]) -> Option<Vec<OsString>> {
        let options: &[&str] = match self.kind {
            Kind::Podman => &["rm", "--force", "--ignore", "--volumes", "--time", "0"],
            Kind::Docker => &["rm", "--force", "--volumes"],
            Kind::Apptainer => return None,
        };
        Some(self.words(options.iter().copied().chain(names.iter().map(String::as_str))))
    }

    /// The global options and then these words.
    pub(crate) fn words<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Vec<OsString> {
        self.globals.iter().map(OsString::from).chain(words.into_iter().map(OsString::from)).collect()
    }
}

/// Podman takes its first process from the machine; where there is none, `--init` would be an error.
fn podman_has_init() -> bool {
    const PLACES: [&str; 6] = [
        "/usr/libexec/podman/catatonit",
        "/usr/lib/podman/catatonit",
        "/usr/local/libexec/podman/catatonit",
        "/usr/local/lib/podman/catatonit",
        "/usr/bin/catatonit",
        "/usr/local/bin/catatonit",
    ];
    PLACES.iter().any(|place| Path::new(place).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, answer: &str) -> Result<Client, String> {
        let settings = ContainerSettings { runtime: Some("runc".into()), ..ContainerSettings::default() };
        Client::from_answer(Candidate { kind, program: "/bin/x".into() }, answer, &settings)
    }

    #[test]
    fn an_engine_is_one_that_says_so() {
        let podman = read(Kind::Podman, r#"{"host":{"security":{"rootless":true}},"version":{"Version":"4.3.1"}}"#).unwrap();
        assert_eq!((podman.version.as_str(), podman.rootless), ("4.3.1", true));
        assert_eq!(podman.globals, ["--runtime", "runc"]);
        let docker = read(Kind::Docker, r#"{"ServerVersion":"24.0.7","SecurityOptions":["name=seccomp","name=rootless"]}"#).unwrap();
        assert_eq!((docker.version.as_str(), docker.rootless), ("24.0.7", true));
        let apptainer = read(Kind::Apptainer, "apptainer version 1.3.4\n").unwrap();
        assert_eq!(apptainer.version, "1.3.4");
        assert_eq!(read(Kind::Apptainer, "singularity-ce version 4.0.0").unwrap().version, "4.0.0");
    }

    #[test]
    fn a_client_without_a_daemon_or_a_program_of_that_name_is_none() {
        let dead = r#"{"ServerVersion":"","ServerErrors":["Cannot connect to the Docker daemon at unix:///var/run/docker.sock"]}"#;
        assert!(read(Kind::Docker, dead).unwrap_err().contains("Cannot connect"));
        assert!(read(Kind::Docker, "{}").unwrap_err().contains("no daemon"));
        assert!(read(Kind::Podman, "hello").unwrap_err().contains("a real engine"));
        assert!(read(Kind::Apptainer, "hello").is_err());
    }

    #[test]
    fn files_belong_to_the_agents_user_whoever_is_root() {
        let client = |rootless| Client { rootless, ..read(Kind::Docker, r#"{"ServerVersion":"1"}"#).unwrap() };
        assert_eq!(client(false).user((0, 0)), "0:0");
        assert_eq!(client(false).user((1000, 100)), "1000:100");
        assert_eq!(client(true).user((1000, 100)), "0:0", "root inside is the agent's user outside");
    }
}
