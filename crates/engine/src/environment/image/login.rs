//! Logins at registries: a file that only this user can read, for as long as a pull or a build takes.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, json};
use tokio::process::Command;

use super::{
    super::{command::Console, prepare::PrepareError},
    desk::Desk,
};
use crate::container::{Kind, Login};

/// The registry of Docker has two names: the one in names of images, and the one in files of logins.
const DOCKER_HUB: (&str, &str) = ("docker.io", "https://index.docker.io/v1/");

/// Logins in a file; removed when dropped.
pub(super) struct Logins {
    folder: Option<PathBuf>,
    single: Option<Login>,
    kind: Kind,
}

impl Logins {
    /// Those for `hosts` that are known; without any the engine uses what it is logged in to itself.
    pub(super) fn write(desk: &Desk<'_>, hosts: &[&str], console: &mut Console<'_>) -> Result<Self, PrepareError> {
        let known: Vec<&Login> = hosts.iter().filter_map(|host| desk.containers.login(host)).collect();
        console.hide(known.iter().map(|login| login.password.clone()).filter(|password| password.len() > 2).collect());
        let kind = desk.client.kind;
        if known.is_empty() || kind == Kind::Apptainer {
            return Ok(Self { folder: None, single: known.first().map(|&login| login.clone()), kind });
        }
        let folder = desk.scratch.join("registry");
        let failed = |error| PrepareError::disk("the logins of registries cannot be written", error);
        let write = || -> std::io::Result<()> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let path = folder.join("config.json");
            let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(document(&known).as_bytes())
        };
        write().map_err(failed)?;
        Ok(Self { folder: Some(folder), single: None, kind })
    }

    /// Hands them to a pull or a build, whose command has its name already.
    pub(super) fn apply(&self, command: &mut Command) {
        match (&self.folder, self.kind) {
            (Some(folder), Kind::Podman) => {
                command.arg("--authfile").arg(folder.join("config.json"));
            }
            (Some(folder), _) => {
                command.env("DOCKER_CONFIG", folder);
            }
            (None, _) => {}
        }
        if let Some(login) = &self.single {
            for prefix in ["APPTAINER", "SINGULARITY"] {
                command.env(format!("{prefix}_DOCKER_USERNAME"), &login.username);
                command.env(format!("{prefix}_DOCKER_PASSWORD"), &login.password);
            }
        }
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            tracing::warn!(%error, "the logins of registries stay in the attempt's folder, which only its user can read");
        }
    }
}

fn document(logins: &[&Login]) -> String {
    let mut auths = Map::new();
    for Login { host, username, password } in logins {
        let auth = json!({ "auth": BASE64_STANDARD.encode(format!("{username}:{password}")) });
        if host.eq_ignore_ascii_case(DOCKER_HUB.0) {
            auths.insert(DOCKER_HUB.1.to_owned(), auth.clone());
        }
        auths.insert(host.clone(), auth);
    }
    json!({ "auths": auths }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_one_that_engines_read() {
        let login = Login { host: "docker.io".into(), username: "ada".into(), password: "pass".into() };
        let document: serde_json::Value = serde_json::from_str(&document(&[&login])).unwrap();
        let auth = json!({ "auth": "YWRhOnBhc3M=" });
        assert_eq!(document, json!({ "auths": { "docker.io": auth, "https://index.docker.io/v1/": auth } }));
    }
}
