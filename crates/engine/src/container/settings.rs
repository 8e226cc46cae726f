//! How a target runs containers, as it travels to the agent in a file that only its user can read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which container engine a target uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The first that answers: Podman, Docker, Apptainer.
    #[default]
    Auto,
    /// Podman.
    Podman,
    /// Docker.
    Docker,
    /// Apptainer, or Singularity, its older name.
    Apptainer,
}

/// How containers are run on the machines of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSettings {
    /// Which engine.
    pub engine: EngineChoice,
    /// The engine's OCI runtime, e.g. `runc`; `None`: its own choice.
    pub runtime: Option<String>,
    /// `--ulimit` of every container, e.g. `nofile=1024:1024`.
    pub ulimits: Vec<String>,
    /// More arguments of every `run`, before those of the definition.
    pub arguments: Vec<String>,
    /// What definitions with `SharedVolumes` see: `/host/path:/path[:ro]`.
    pub volumes: Vec<String>,
    /// Logins at registries; the first one for a host counts.
    pub logins: Vec<Login>,
    /// Why the definition's own login is not among them, if it should be.
    pub login_error: Option<String>,
}

/// A login at a registry, in the clear.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Host, with a port if need be.
    pub host: String,
    /// User.
    pub username: String,
    /// Password or token; never shown.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("host", &self.host).field("username", &self.username).finish_non_exhaustive()
    }
}

impl ContainerSettings {
    /// The login for a host.
    pub(crate) fn login(&self, host: &str) -> Option<&Login> {
        self.logins.iter().find(|login| login.host.eq_ignore_ascii_case(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_do_not_show_in_debug_output_and_the_first_login_for_a_host_counts() {
        let login = |username: &str| Login { host: "r.example".into(), username: username.into(), password: "hunter2".into() };
        let settings = ContainerSettings { logins: vec![login("of the run"), login("of the server")], ..ContainerSettings::default() };
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.login("R.example").unwrap().username, "of the run");
        assert!(settings.login("other.example").is_none());
    }

    #[test]
    fn an_order_of_an_older_server_means_the_defaults() {
        assert_eq!(serde_json::from_str::<ContainerSettings>("{}").unwrap(), ContainerSettings::default());
    }
}
