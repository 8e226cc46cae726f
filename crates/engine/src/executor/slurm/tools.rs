//! Runs Slurm's commands, here or on a login node, and tells a refusal from no answer.
//!
//! A refusal is Slurm's own word and final. No answer (a controller that is down, restarts or is too slow, a login node that cannot be reached) says nothing
//! about what was asked.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command};
use trainyard_core::slurm::ClusterUser;

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
    /// Whose jobs are looked at, beside those of the server's user.
    users: Mutex<BTreeSet<ClusterUser>>,
}

/// A command, for somebody.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) tool: &'static str,
    pub(super) arguments: &'a [String],
    /// Whom it is run as; `None`: the server's own user.
    pub(super) user: Option<&'a ClusterUser>,
    /// What it reads.
    pub(super) input: Option<&'a str>,
    pub(super) limit: Duration,
}

/// The jobs of who asks.
pub(super) const ME: &str = "--me";

/// What sudo says when it does not let the server be somebody else. Its other words (about a name that it cannot resolve, say) change nothing.
const NOT_ALLOWED: &[&str] = &[
    "a password is required",
    "a terminal is required",
    "must have a tty",
    "unknown user",
    "is not allowed to execute",
    "is not allowed to run sudo",
    "may not run sudo",
    "not in the sudoers",
    "sudo: command not found",
    "sudo: not found",
    "no valid sudoers",
    "account validation failure",
    "no new privileges",
    "must be owned by uid 0",
];

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
        Self { folder: settings.slurm_bin.clone(), ssh: settings.ssh.clone(), users: Mutex::default() }
    }

    /// From now on, jobs of `user` are looked at as well.
    pub(super) fn watch(&self, user: ClusterUser) {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).insert(user);
    }

    /// Whether jobs of an account of this name are looked at as somebody else's.
    pub(super) fn watches(&self, name: &str) -> bool {
        self.users.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|user| user.as_str() == name)
    }

    /// Whose jobs are looked at, as `squeue` and `sacct` are told.
    pub(super) fn whose(&self) -> String {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.is_empty() {
            return ME.to_owned();
        }
        let own = match &self.ssh {
            Some(login) => login.split_once('@').map(|(user, _)| user.to_owned()),
            None => Some(rustix::process::geteuid().as_raw().to_string()),
        };
        let names: Vec<String> = users.iter().map(ToString::to_string).chain(own).collect();
        format!("--user={}", names.join(","))
    }

    /// Runs `tool` for at most `limit`; gives what it printed.
    pub(super) async fn run(&self, tool: &'static str, arguments: &[String], limit: Duration) -> Result<Printed, Failure> {
        self.call(Call { tool, arguments, user: None, input: None, limit }).await
    }

    /// Runs a command, as somebody else if it says so; gives what it printed.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Printed, Failure> {
        let Call { tool, limit, .. } = call;
        let output = match tokio::time::timeout(limit, self.output(call)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound && self.ssh.is_none() && call.user.is_some() => {
                return Err(Failure::Refused(self.not_allowed(call, "sudo is not installed")));
            }
            Ok(Err(error)) => return Err(Failure::NoAnswer(format!("`{tool}` cannot be started: {error}"))),
            Err(_) => return Err(Failure::NoAnswer(format!("`{tool}` did not end within {} s", limit.as_secs()))),
        };
        let said = said(tool, &String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(Printed { text: String::from_utf8_lossy(&output.stdout).into_owned() });
        }
        let words = if said.is_empty() { format!("`{tool}` ended with {} and said nothing", output.status) } else { said };
        let lower = words.to_lowercase();
        if call.user.is_some() && NOT_ALLOWED.iter().any(|phrase| lower.contains(phrase)) {
            return Err(Failure::Refused(self.not_allowed(call, &words)));
        }
        let unreached = self.ssh.is_some() && output.status.code() == Some(255) && !lower.contains("specification");
        let unheard = NO_ANSWER.iter().any(|phrase| lower.contains(phrase)) || output.status.code().is_none();
        Err(if unreached || unheard { Failure::NoAnswer(words) } else { Failure::Refused(words) })
    }

    async fn output(&self, call: Call<'_>) -> io::Result<Output> {
        let mut command = self.command(call);
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
        let input = if call.input.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), call.input) {
            // One that does not read has its reason, and says it.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    }

    fn command(&self, call: Call<'_>) -> Command {
        let words = self.words(call);
        let Some(login) = &self.ssh else {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            if call.user.is_some() {
                // They need not be able to be where the server is.
                command.current_dir("/");
            }
            return command;
        };
        let mut command = Command::new("ssh");
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", login]);
        command.arg(shell_line(&words));
        command
    }

    fn words(&self, call: Call<'_>) -> Vec<String> {
        let sudo = call.user.map(|user| ["sudo", "-n", "-H", "-u", user.as_str(), "--"].map(str::to_owned));
        sudo.into_iter().flatten().chain([self.program(call.tool)]).chain(call.arguments.iter().cloned()).collect()
    }

    fn program(&self, tool: &str) -> String {
        self.folder.as_ref().map_or_else(|| tool.to_owned(), |folder| folder.join(tool).to_string_lossy().into_owned())
    }

    /// Why the server may not be somebody, and what would let it.
    fn not_allowed(&self, call: Call<'_>, words: &str) -> String {
        let user = call.user.map_or_else(String::new, ToString::to_string);
        let folder = self.folder.clone().unwrap_or_else(|| PathBuf::from("/usr/bin"));
        let path = |tool: &str| folder.join(tool).display().to_string();
        let place = self.ssh.as_ref().map_or_else(|| "on the server's machine".to_owned(), |login| format!("on the login node {login}"));
        format!(
            "sudo does not let the server submit as `{user}`: {words}; it needs a line such as `trainyard ALL=({user}) NOPASSWD: {}, {}` in sudoers {place}, with the server's own user in front (deploy/slurm/README.md)",
            path("sbatch"),
            path("scancel")
        )
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
fn shell_line(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
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
        let line = shell_line(&["/opt/slurm/sbatch", "--comment=it's $HOME; rm", "a b"].map(str::to_owned));
        assert_eq!(line, r"'/opt/slurm/sbatch' '--comment=it'\''s $HOME; rm' 'a b'");
    }

    #[test]
    fn what_is_done_for_somebody_goes_through_sudo_and_its_refusal_says_what_is_missing() {
        let settings = SlurmSettings { shared_dir: "/s".into(), slurm_bin: Some("/opt/slurm".into()), ssh: None };
        let (user, arguments) = (ClusterUser::new("alice").unwrap(), ["17".to_owned()]);
        let mut tools = Tools::new(&settings);
        let call = Call { tool: "scancel", arguments: &arguments, user: Some(&user), input: None, limit: Duration::ZERO };
        assert_eq!(tools.words(call).join(" "), "sudo -n -H -u alice -- /opt/slurm/scancel 17");
        assert_eq!(tools.words(Call { user: None, ..call }).join(" "), "/opt/slurm/scancel 17");
        let words = tools.not_allowed(call, "sudo: a password is required");
        assert!(
            words.contains("ALL=(alice) NOPASSWD: /opt/slurm/sbatch, /opt/slurm/scancel` in sudoers on the server's machine"),
            "{words}"
        );
        assert_eq!(tools.whose(), "--me");
        tools.watch(user);
        tools.ssh = Some("me@login".into());
        assert_eq!(tools.whose(), "--user=alice,me");
        assert!(tools.watches("alice") && !tools.watches("me"));
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
