//! Runs Slurm's commands, here or on a login node, and tells a refusal from no answer.
//!
//! A refusal is Slurm's own word and final. No answer (a controller that is down, restarts or is too slow, a login node that cannot be reached) says nothing
//! about what was asked.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::process::Command;

use super::{super::kept, SlurmSettings};

/// What a command came to when it did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Slurm said no, in these words.
    Refused(String),
    /// Nothing was heard from Slurm; why, as far as known.
    NoAnswer(String),
}

impl Failure {
    pub(super) fn words(&self) -> &str {
        match self {
            Self::Refused(words) | Self::NoAnswer(words) => words,
        }
    }
}

/// Where the commands are.
#[derive(Debug)]
pub(super) struct Tools {
    folder: Option<PathBuf>,
    ssh: Option<String>,
}

/// Variables of the server that Slurm's commands get, and through `sbatch` the agents, beside those of every engine: Slurm's own configuration, and what
/// proves who asks. What belongs to this machine alone (its accelerators, its folder for temporary files) is not among them.
const KEPT_VARIABLES: [&str; 3] = ["SLURM_CONF", "SSH_AUTH_SOCK", "KRB5CCNAME"];

/// Words of Slurm's tools that mean: nobody was there to answer. Slurm 20.11 to 26.05.
const NO_ANSWER: &[&str] = &[
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "connect failure",
    "connection timed out",
    "zero bytes were transmitted",
    "communication connection failure",
    "communication shutdown failure",
    "message receive failure",
    "message send failure",
    "temporarily unable to accept job",
    "slurm backup controller in standby mode",
    "authentication error",
    "authentication credential",
    "unable to establish configuration source",
    "no route to host",
    "resource temporarily unavailable",
    "slurm controller does not respond",
    "sending persistinit msg",
    "problem talking to the database",
    "unable to connect to database",
];

impl Tools {
    pub(super) fn new(settings: &SlurmSettings) -> Self {
        Self { folder: settings.slurm_bin.clone(), ssh: settings.ssh.clone() }
    }

    /// Runs `tool` for at most `limit`; gives what it printed.
    pub(super) async fn run(&self, tool: &'static str, arguments: &[String], limit: Duration) -> Result<Printed, Failure> {
        let mut command = self.command(tool, arguments);
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        let child = command.spawn().map_err(|error| Failure::NoAnswer(format!("`{tool}` cannot be started: {error}")))?;
        let output = match tokio::time::timeout(limit, child.wait_with_output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(Failure::NoAnswer(format!("`{tool}` cannot be waited for: {error}"))),
            Err(_) => return Err(Failure::NoAnswer(format!("`{tool}` did not end within {} s", limit.as_secs()))),
        };
        let said = said(tool, &String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(Printed { text: String::from_utf8_lossy(&output.stdout).into_owned() });
        }
        let words = if said.is_empty() { format!("`{tool}` ended with {} and said nothing", output.status) } else { said };
        let lower = words.to_lowercase();
        let unreached = self.ssh.is_some() && output.status.code() == Some(255) && !lower.contains("specification");
        let unheard = NO_ANSWER.iter().any(|phrase| lower.contains(phrase)) || output.status.code().is_none();
        Err(if unreached || unheard { Failure::NoAnswer(words) } else { Failure::Refused(words) })
    }

    fn command(&self, tool: &str, arguments: &[String]) -> Command {
        let program = self.folder.as_ref().map_or_else(|| PathBuf::from(tool), |folder| folder.join(tool));
        let Some(login) = &self.ssh else {
            let mut command = Command::new(program);
            command.args(arguments);
            return command;
        };
        let mut command = Command::new("ssh");
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", login]);
        command.arg(shell_line(&program.to_string_lossy(), arguments));
        command
    }
}

/// What a command printed.
pub(super) struct Printed {
    pub(super) text: String,
}

fn is_kept(name: &str) -> bool {
    kept::is_kept(name, (&KEPT_VARIABLES, &[]))
}

/// One line that a shell takes apart into exactly these words.
fn shell_line(program: &str, arguments: &[String]) -> String {
    let words = std::iter::once(program).chain(arguments.iter().map(String::as_str));
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// A word that a shell leaves as it is.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a tool said, on one line, without its own name before each sentence.
fn said(tool: &str, stderr: &str) -> String {
    let sentence = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix(tool).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(line);
        line.strip_prefix("error: ").or_else(|| line.strip_prefix("fatal: ")).unwrap_or(line).to_owned()
    };
    let mut sentences: Vec<String> = stderr.lines().map(sentence).filter(|line| !line.is_empty()).collect();
    sentences.dedup();
    let text = sentences.join("; ");
    if text.chars().count() > MAX_SAID { text.chars().take(MAX_SAID).chain(['…']).collect() } else { text }
}

/// Characters of a tool's words that are kept.
const MAX_SAID: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slurms_sentences_are_its_own_without_the_names_of_its_tools() {
        let text = "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified\n";
        assert_eq!(
            said("sbatch", text),
            "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
        );
        assert_eq!(said("sbatch", "allocation failure: Invalid qos specification\n"), "allocation failure: Invalid qos specification");
        assert_eq!(said("sbatch", &"x".repeat(5000)).chars().count(), MAX_SAID + 1);
    }

    #[test]
    fn a_login_shell_gets_exactly_these_words() {
        let line = shell_line("/opt/slurm/sbatch", &["--comment=it's $HOME; rm".to_owned(), "a b".to_owned()]);
        assert_eq!(line, r"'/opt/slurm/sbatch' '--comment=it'\''s $HOME; rm' 'a b'");
    }

    #[test]
    fn the_accelerators_and_secrets_of_this_machine_stay_here() {
        for name in
            ["CUDA_VISIBLE_DEVICES", "TMPDIR", "AWS_SECRET_ACCESS_KEY", "TRAINYARD_STORE__DATABASE", "SBATCH_PARTITION", "SLURM_JOB_ID"]
        {
            assert!(!is_kept(name), "{name}");
        }
        assert!(is_kept("PATH") && is_kept("PIP_INDEX_URL") && is_kept("SLURM_CONF"));
    }
}
