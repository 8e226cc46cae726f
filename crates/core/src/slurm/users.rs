//! Whose jobs the runs of a target are, where they are those of the people who submit: which application is which account of the cluster.
//!
//! Invariant: an account that was read is one word that no command takes for an option, a list or a number, and it is not root.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest name of an account.
const MAX_CHARACTERS: usize = 64;

/// A Unix account of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterUser(String);

impl ClusterUser {
    /// The account of this name.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] if no account is called so, or it is root.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let begins = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let plain = name.chars().all(|character| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.' | '@'));
        let shown = || name.chars().take(MAX_CHARACTERS).collect::<String>().escape_debug().to_string();
        if !begins || !plain || name.len() > MAX_CHARACTERS {
            let rule = "letters, digits and any of _ - . @, beginning with a letter or _";
            return Err(Error::invalid(format!("`{}` is no name of an account: expected {rule}", shown())));
        }
        if name == "root" {
            return Err(Error::invalid("nobody's runs are jobs of `root`: name another account"));
        }
        Ok(Self(name))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterUser {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<ClusterUser> for String {
    fn from(user: ClusterUser) -> Self {
        user.0
    }
}

impl std::fmt::Display for ClusterUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who submits a run.
#[derive(Clone, Copy, Debug)]
pub struct Submitter<'a> {
    /// The client id of the application.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// How many applications have that name. A name that several have says nothing about who it is.
    pub namesakes: usize,
}

/// Which application's runs are jobs of which account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubmitAs(BTreeMap<String, ClusterUser>);

impl SubmitAs {
    /// The account for what `submitter` submits to `target`: by its client id, or by its name if nobody else has it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`] with what is missing in the configuration.
    pub fn user_of(&self, submitter: Submitter<'_>, target: &str) -> Result<&ClusterUser> {
        let Submitter { id, name, namesakes } = submitter;
        if let Some(user) = self.0.get(id) {
            return Ok(user);
        }
        let what = match self.0.get(name) {
            Some(user) if namesakes == 1 => return Ok(user),
            Some(_) => format!("{namesakes} applications are called `{name}`, so that its name does not say who it is; the key `{id}`"),
            None => format!("application `{name}` has no account there; the key `{name}` (or `{id}`)"),
        };
        let message =
            format!("target `{target}` runs jobs as accounts of the cluster, and {what} in [compute.{target}.submit_as] would name one");
        Err(Error::invalid(message).with_target("Configuration.Target"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_one_plain_word_and_not_root() {
        for fine in ["alice", "_apt", "first.last", "x-1", "ada@lab.example"] {
            assert_eq!(ClusterUser::new(fine).unwrap().as_str(), fine);
        }
        for bad in ["", "root", "-u", "#0", "1000", "a,b", "a b", "a;b", "$USER", "ä", "a\n", "../x", &"x".repeat(65)] {
            assert!(ClusterUser::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ClusterUser>("\"root\"").is_err(), "not from a row either");
    }

    #[test]
    fn a_client_id_wins_and_a_name_counts_while_it_is_one_applications() {
        let map: SubmitAs = serde_json::from_str(r#"{ "ada": "alice", "id-2": "bob" }"#).unwrap();
        let ask = |id: &'static str, name: &'static str, namesakes| {
            map.user_of(Submitter { id, name, namesakes }, "gpu").map(ClusterUser::as_str).map_err(|error| error.message().to_owned())
        };
        assert_eq!(ask("id-1", "ada", 1), Ok("alice"));
        assert_eq!(ask("id-2", "ada", 2), Ok("bob"));
        let twice = ask("id-1", "ada", 2).unwrap_err();
        assert!(
            twice.contains("2 applications are called `ada`") && twice.contains("the key `id-1` in [compute.gpu.submit_as]"),
            "{twice}"
        );
        let nobody = ask("id-3", "eve", 1).unwrap_err();
        assert!(
            nobody.contains("application `eve` has no account there; the key `eve` (or `id-3`) in [compute.gpu.submit_as]"),
            "{nobody}"
        );
    }

    #[test]
    fn a_run_of_before_has_no_account_and_one_with_an_account_keeps_it() {
        let old: super::super::SlurmWish = serde_json::from_str(r#"{ "partition": "cpu" }"#).unwrap();
        assert_eq!(old.submit_as, None);
        assert!(!serde_json::to_string(&old).unwrap().contains("submit_as"));
        let wish = super::super::SlurmWish { submit_as: Some(ClusterUser::new("alice").unwrap()), ..old };
        let back: super::super::SlurmWish = serde_json::from_str(&serde_json::to_string(&wish).unwrap()).unwrap();
        assert_eq!(super::super::SlurmWish::default().with(&back).submit_as, wish.submit_as);
        assert_eq!(back.options(), ["--partition=cpu"], "it is no option");
    }
}
