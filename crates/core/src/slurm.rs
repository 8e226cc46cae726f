//! What a run asks of Slurm, as data: the options of `sbatch` that a target's configuration and a run definition may say, and which of them
//! this server keeps for itself.
//!
//! Invariant: no value that passed [`SlurmWish::check`] can become another option, another argument or a second line.

use serde::{Deserialize, Serialize};

pub use self::users::{ClusterUser, SubmitAs, Submitter};
use crate::{Error, Result};

mod users;

/// What a run (or a target, for all of its runs) asks of Slurm. What is left out is Slurm's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SlurmWish {
    /// `--partition`.
    pub partition: Option<String>,
    /// `--account`.
    pub account: Option<String>,
    /// `--qos`.
    pub qos: Option<String>,
    /// `--time`, as Slurm writes it: minutes, `H:M:S`, `D-H`, …
    pub time_limit: Option<String>,
    /// `--gres`, e.g. `gpu:2`.
    pub gres: Option<String>,
    /// `--mem`, e.g. `16G`.
    pub memory: Option<String>,
    /// `--cpus-per-task`.
    pub cpus: Option<u32>,
    /// `--constraint`.
    pub constraint: Option<String>,
    /// Further options, each as `--name` or `--name=value`.
    pub arguments: Vec<String>,
    /// Whose job it is, where that is not the server's own user. Decided at submission, by [`SubmitAs`]; no definition and no target says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submit_as: Option<ClusterUser>,
}

/// Options that this server sets, or that would take away what it relies on.
const KEPT: &[&str] = &[
    "array",
    "batch",
    "chdir",
    "clusters",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "help",
    "input",
    "job-name",
    "kill-on-invalid-dep",
    "nodes",
    "no-requeue",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "requeue",
    "test-only",
    "uid",
    "gid",
    "usage",
    "verbose",
    "version",
    "wait",
    "wrap",
];

/// The longest value, in characters.
const MAX_CHARACTERS: usize = 400;

impl SlurmWish {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This wish, with what `wish` says instead; its further options come after these, so that Slurm takes them.
    #[must_use]
    pub fn with(&self, wish: &Self) -> Self {
        let either = |one: &Option<String>, other: &Option<String>| one.as_ref().or(other.as_ref()).cloned();
        Self {
            partition: either(&wish.partition, &self.partition),
            account: either(&wish.account, &self.account),
            qos: either(&wish.qos, &self.qos),
            time_limit: either(&wish.time_limit, &self.time_limit),
            gres: either(&wish.gres, &self.gres),
            memory: either(&wish.memory, &self.memory),
            cpus: wish.cpus.or(self.cpus),
            constraint: either(&wish.constraint, &self.constraint),
            arguments: self.arguments.iter().chain(&wish.arguments).cloned().collect(),
            submit_as: wish.submit_as.clone(),
        }
    }

    /// The options for `sbatch`.
    pub fn options(&self) -> Vec<String> {
        let cpus = self.cpus.map(|cpus| cpus.to_string());
        let named = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("time", &self.time_limit),
            ("gres", &self.gres),
            ("mem", &self.memory),
            ("cpus-per-task", &cpus),
            ("constraint", &self.constraint),
        ];
        let named = named.into_iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("--{name}={value}")));
        named.chain(self.arguments.iter().cloned()).collect()
    }

    /// Refuses what cannot be meant or is not the caller's to say. Whether Slurm takes the rest, Slurm says.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`]; the target is the property in PascalCase, e.g. `Arguments[0]`.
    pub fn check(&self) -> Result<()> {
        let texts = [
            ("Partition", &self.partition),
            ("Account", &self.account),
            ("Qos", &self.qos),
            ("TimeLimit", &self.time_limit),
            ("Gres", &self.gres),
            ("Memory", &self.memory),
            ("Constraint", &self.constraint),
        ];
        for (property, text) in texts {
            if let Some(text) = text {
                plain(text).map_err(|why| refuse(property, text, why))?;
            }
        }
        if self.cpus == Some(0) {
            return Err(refuse("Cpus", "0", "it must be at least 1"));
        }
        for (index, argument) in self.arguments.iter().enumerate() {
            let refuse = |why: &str| refuse(&format!("Arguments[{index}]"), argument, why);
            plain(argument).map_err(refuse)?;
            let name = argument.strip_prefix("--").map(|rest| rest.split('=').next().unwrap_or_default());
            let Some(name) = name.filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase())) else {
                return Err(refuse("write an option of sbatch as `--name` or `--name=value`"));
            };
            // sbatch takes any beginning of a name that fits only one option.
            if KEPT.iter().any(|kept| *kept == name || (name.len() >= 2 && kept.starts_with(name))) {
                return Err(refuse("this server sets that option itself, or relies on its default"));
            }
        }
        Ok(())
    }
}

fn refuse(property: &str, text: &str, why: &str) -> Error {
    let shown: String = text.chars().take(80).collect();
    Error::invalid(format!("`{}` is not possible: {why}", shown.escape_debug())).with_target(property)
}

fn plain(text: &str) -> std::result::Result<(), &'static str> {
    if text.trim().is_empty() {
        return Err("it is empty; leave it out for the default");
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character");
    }
    if text.chars().count() > MAX_CHARACTERS { Err("it is longer than 400 characters") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_run_says_what_differs_from_its_target() {
        let target =
            SlurmWish { partition: some("cpu"), memory: some("1G"), arguments: vec!["--exclusive".into()], ..SlurmWish::default() };
        let run = SlurmWish { memory: some("4G"), cpus: Some(2), arguments: vec!["--nice=5".into()], ..SlurmWish::default() };
        let options = target.with(&run).options();
        assert_eq!(options, ["--partition=cpu", "--mem=4G", "--cpus-per-task=2", "--exclusive", "--nice=5"]);
        assert!(SlurmWish::default().options().is_empty() && SlurmWish::default().is_empty());
    }

    #[test]
    fn what_the_server_relies_on_is_not_the_callers_to_say() {
        let check = |argument: &str| SlurmWish { arguments: vec![argument.into()], ..SlurmWish::default() }.check();
        for fine in
            ["--exclusive", "--nice=100", "--mail-user=ada", "--reservation=x", "--begin=now+1hour", "--gpus=1", "--signal=B:USR1@60"]
        {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for bad in
            ["--array=1-9", "--arr=1-9", "--output=/dev/null", "-p", "cpu", "--", "--requeue", "--nodes=2", "--wrap=x", "--job-name=x", ""]
        {
            let error = check(bad).unwrap_err();
            assert_eq!(error.target(), Some("Arguments[0]"), "{bad}");
        }
    }

    #[test]
    fn a_value_cannot_become_something_else() {
        let check = |text: &str| SlurmWish { partition: some(text), ..SlurmWish::default() }.check();
        assert!(check("cpu,gpu").is_ok());
        for bad in ["", "  ", "cpu\n--uid=0", "a\0b"] {
            assert_eq!(check(bad).unwrap_err().target(), Some("Partition"), "{bad:?}");
        }
        assert!(check(&"x".repeat(401)).is_err());
        assert!(SlurmWish { cpus: Some(0), ..SlurmWish::default() }.check().is_err());
    }
}
