//! The `[environments]` section of the configuration, as it travels to the agent in a file that only its user can read.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use trainyard_core::environment::requirement::hide_userinfo;

/// What to do when no interpreter at hand satisfies the version asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PythonFallback {
    /// The closest interpreter is used and the run carries a warning.
    #[default]
    Closest,
    /// The run fails with the reason.
    Fail,
}

/// How environments are prepared.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentSettings {
    /// Where environments and the packages they are made of are kept; absolute.
    pub cache_dir: PathBuf,
    /// What happens if the version of Python can not be had.
    pub python_fallback: PythonFallback,
    /// The package index; may carry credentials and is never shown. `None`: as pip or uv are configured on the node.
    pub index_url: Option<String>,
    /// Whether only what is on this node may be used.
    pub offline: bool,
    /// conda channels; named in warnings, not asked yet.
    pub conda_channels: Vec<String>,
    /// Where uv is installed if it is not on PATH; absolute.
    pub tools_dir: PathBuf,
}

impl fmt::Debug for EnvironmentSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels: Vec<String> = self.conda_channels.iter().map(|channel| hide_userinfo(channel)).collect();
        f.debug_struct("EnvironmentSettings")
            .field("cache_dir", &self.cache_dir)
            .field("python_fallback", &self.python_fallback)
            .field("index_url", &self.index_url.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .field("conda_channels", &channels)
            .field("tools_dir", &self.tools_dir)
            .finish()
    }
}
