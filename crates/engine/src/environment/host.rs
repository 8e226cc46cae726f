//! The node as environments see it: the variables of this process, taken once, and what they lead to.
//!
//! A build must not depend on the run that happens to ask for it, nor see its token, so the variables that belong to runs
//! are left out here and reach no child process.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Variables that belong to a run or to this server.
const OF_RUNS: [&str; 3] = ["TRAINYARD_", "AZUREML_", "MLFLOW_"];

/// Variables that bend the meaning of an interpreter or redirect uv.
const BENDING: [&str; 14] = [
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONSAFEPATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT",
    "UV_WORKING_DIR",
    "UV_VENV_SEED",
    "UV_VENV_CLEAR",
    "UV_BREAK_SYSTEM_PACKAGES",
];

/// The variables of a process.
#[derive(Clone, Debug)]
pub(super) struct Host {
    variables: BTreeMap<OsString, OsString>,
}

impl Host {
    /// As this process sees it.
    pub(super) fn current() -> Self {
        Self::with(std::env::vars_os())
    }

    /// As a process with these variables sees it.
    pub(super) fn with(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let kept = variables.into_iter().filter(|(name, _)| {
            let name = name.to_string_lossy();
            !BENDING.contains(&name.as_ref()) && !OF_RUNS.iter().any(|prefix| name.starts_with(prefix))
        });
        Self { variables: kept.collect() }
    }

    /// For child processes.
    pub(super) fn variables(&self) -> &BTreeMap<OsString, OsString> {
        &self.variables
    }

    /// A variable, unless it is unset or empty.
    pub(super) fn var(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A variable as text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.var(name).and_then(OsStr::to_str)
    }

    pub(super) fn home(&self) -> Option<PathBuf> {
        self.var("HOME").map(PathBuf::from)
    }

    /// `$XDG_CONFIG_HOME` or `~/.config`.
    pub(super) fn config_home(&self) -> Option<PathBuf> {
        self.var("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| self.home().map(|home| home.join(".config")))
    }

    /// The folders of PATH, absolute ones only: a relative one would mean another folder for every run.
    pub(super) fn path(&self) -> Vec<PathBuf> {
        self.var("PATH").map(|path| std::env::split_paths(path).filter(|dir| dir.is_absolute()).collect()).unwrap_or_default()
    }

    /// All executables of this name on PATH, the first one first.
    pub(super) fn on_path(&self, name: &str) -> Vec<PathBuf> {
        self.path().into_iter().map(|dir| dir.join(name)).filter(|path| is_executable(path)).collect()
    }

    /// Where pyenv keeps its interpreters.
    pub(super) fn pyenv_root(&self) -> Option<PathBuf> {
        self.var("PYENV_ROOT").map(PathBuf::from).or_else(|| self.home().map(|home| home.join(".pyenv")))
    }

    /// Where uv keeps interpreters that it installed at somebody's wish.
    pub(super) fn uv_pythons(&self) -> Option<PathBuf> {
        let data_home = || self.var("XDG_DATA_HOME").map(PathBuf::from).or_else(|| self.home().map(|home| home.join(".local/share")));
        self.var("UV_PYTHON_INSTALL_DIR").map(PathBuf::from).or_else(|| data_home().map(|data| data.join("uv/python")))
    }
}

/// Whether this is a file (through links) that somebody may execute.
pub(super) fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
