//! The `[environments]` section of the configuration, as it travels to the agent in a file that only its user can read.

use std::{collections::BTreeMap, fmt, path::PathBuf};

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

/// How many bytes environments may take if nobody says otherwise.
const DEFAULT_MAX_BYTES: u64 = 50 << 30;

/// How long a build may take if nobody says otherwise.
const DEFAULT_BUILD_LIMIT_SECONDS: u64 = 3600;

/// Where conda channels with a name are if nobody says otherwise.
pub(super) const DEFAULT_CHANNEL_ALIAS: &str = "https://conda.anaconda.org";

/// How environments are prepared.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EnvironmentSettings {
    /// Where environments and the packages they are made of are kept; absolute.
    pub cache_dir: PathBuf,
    /// What happens if the version of Python can not be had.
    pub python_fallback: PythonFallback,
    /// The package index; may carry credentials and is never shown. `None`: as pip or uv are configured on the node.
    pub index_url: Option<String>,
    /// Whether only what is on this node may be used.
    pub offline: bool,
    /// conda channels for specifications that name none: names, URLs (which may carry credentials) or absolute paths.
    pub conda_channels: Vec<String>,
    /// Where conda channels with a name are.
    pub conda_channel_alias: String,
    /// What hosts of conda channels are shown: `user:password`, `bearer TOKEN` or a token of conda, by host or `*.domain`.
    pub conda_credentials: BTreeMap<String, String>,
    /// Where uv is installed if it is not on PATH; absolute.
    pub tools_dir: PathBuf,
    /// How many bytes the environments may take, and as many again the downloads; beyond, those that were not used for the
    /// longest time are removed. 0: no limit.
    pub max_bytes: u64,
    /// After how many seconds a build that is not done is ended. 0: never.
    pub build_limit_seconds: u64,
}

impl Default for EnvironmentSettings {
    /// What holds where nobody says otherwise; without folders, which every user has to name.
    fn default() -> Self {
        Self {
            cache_dir: PathBuf::new(),
            python_fallback: PythonFallback::default(),
            index_url: None,
            offline: false,
            conda_channels: Vec::new(),
            conda_channel_alias: DEFAULT_CHANNEL_ALIAS.to_owned(),
            conda_credentials: BTreeMap::new(),
            tools_dir: PathBuf::new(),
            max_bytes: DEFAULT_MAX_BYTES,
            build_limit_seconds: DEFAULT_BUILD_LIMIT_SECONDS,
        }
    }
}

impl fmt::Debug for EnvironmentSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Tokens stand in their paths.
        let channels =
            trainyard_conda::resolve(&self.conda_channels, &self.conda_channel_alias).map(|channels| channels.urls).unwrap_or_default();
        f.debug_struct("EnvironmentSettings")
            .field("cache_dir", &self.cache_dir)
            .field("python_fallback", &self.python_fallback)
            .field("index_url", &self.index_url.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .field("conda_channels", &channels)
            .field("conda_channel_alias", &hide_userinfo(&self.conda_channel_alias))
            .field("conda_credentials", &self.conda_credentials.keys())
            .field("tools_dir", &self.tools_dir)
            .field("max_bytes", &self.max_bytes)
            .field("build_limit_seconds", &self.build_limit_seconds)
            .finish()
    }
}
