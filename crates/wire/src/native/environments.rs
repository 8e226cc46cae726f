//! Environments and the cache of the server's machine (`/api/v1…/environments`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET {W}/environments/{hash}`, and for Owners of the server `GET /api/v1/environments/{hash}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Canonical hash.
    pub hash: String,
    /// What was asked for.
    pub spec: Value,
    /// What was installed.
    pub lock: Value,
    /// RFC 3339.
    pub created: String,
    /// How it lies in the cache of the server's machine; `None`: it does not.
    #[serde(default)]
    pub cached: Option<CachedEnvironment>,
}

/// A page of `GET {W}/environments?top=&continuationToken=` (those that runs of the workspace used), and for Owners of the server of
/// `GET /api/v1/environments` (all that the server knows, and what else lies in its cache).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnvironmentList {
    /// The environments, newest first.
    pub value: Vec<EnvironmentSummary>,
    /// Continues the list; `None` on the last page.
    #[serde(default)]
    pub continuation_token: Option<String>,
    /// The cache as a whole, on the first page for Owners of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheTotals>,
}

/// One line of a list of environments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnvironmentSummary {
    /// Canonical hash.
    pub hash: String,
    /// `user_managed`, `python`, `conda` or `locked`; `None`: no run has told this server of it.
    #[serde(default)]
    pub kind: Option<String>,
    /// The full version of Python; `None`: not known.
    #[serde(default)]
    pub python: Option<String>,
    /// How many packages pip requirements led to.
    pub pip_packages: u64,
    /// How many conda packages there are.
    pub conda_packages: u64,
    /// The image that it stands on.
    #[serde(default)]
    pub image: Option<String>,
    /// RFC 3339: when a run first used it; `None`: no run has told this server of it.
    #[serde(default)]
    pub created: Option<String>,
    /// How it lies in the cache of the server's machine; `None`: it does not.
    #[serde(default)]
    pub cached: Option<CachedEnvironment>,
}

/// How an environment lies in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedEnvironment {
    /// What it takes on the disk.
    pub bytes: u64,
    /// RFC 3339: when a run last began or ended with it.
    pub last_used: String,
    /// Whether it is never removed.
    pub pinned: bool,
    /// Whether a run uses it now.
    pub in_use: bool,
}

/// `PUT` and `DELETE /api/v1/environments/{hash}/pin` answer with this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Canonical hash.
    pub hash: String,
    /// Whether it is never removed.
    pub pinned: bool,
}

/// Body of `POST /api/v1/environments/prune`: what may stay. What a run uses and what is pinned always stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneWish {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
    /// Remove the longest unused ones until the rest takes no more than this; `None`: as configured.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Remove those that were not used for so many seconds; `None`: age does not matter.
    #[serde(default)]
    pub unused_seconds: Option<u64>,
    /// Remove all downloads that environments are made of, too; else only what is more than configured.
    #[serde(default)]
    pub downloads: bool,
    /// Remove what archives brought, too.
    #[serde(default)]
    pub imported: bool,
}

/// What `POST /api/v1/environments/prune` removed, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Whether nothing was removed really.
    pub dry_run: bool,
    /// Canonical hashes of what was removed.
    pub removed: Vec<String>,
    /// What that took on the disk.
    pub freed_bytes: u64,
    /// How many environments are left.
    pub kept: u64,
    /// What those take.
    pub kept_bytes: u64,
    /// What the downloads took that were removed.
    pub downloads_bytes: u64,
    /// What the downloads take that are left.
    pub downloads_kept: DownloadSizes,
}

/// What the cache of the server's machine keeps besides built environments, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadSizes {
    /// What uv keeps.
    pub pip: u64,
    /// Unpacked conda packages.
    pub conda: u64,
    /// The indexes of conda channels.
    pub indexes: u64,
    /// Images as files, for Apptainer.
    pub images: u64,
    /// What archives brought; it is not removed to make room.
    pub imported: u64,
}

/// What the cache of the server's machine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheTotals {
    /// How many built environments.
    pub environments: u64,
    /// What those take, files that they share with the downloads included.
    pub environment_bytes: u64,
    /// What they are made of.
    pub downloads: DownloadSizes,
}

/// Body of `POST /api/v1/environments/{hash}/verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyWish {
    /// Remove the environment, and the downloads that share its files, if it differs: the next use builds it again.
    #[serde(default)]
    pub repair: bool,
}

/// What comparing an environment with what was recorded when it was built gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Canonical hash.
    pub hash: String,
    /// Number of files that were recorded.
    pub files: u64,
    /// Those that differ; empty: it is what was built.
    pub differences: Vec<FileDifference>,
    /// Whether the environment was removed because of that.
    pub removed: bool,
}

/// A file of an environment that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDifference {
    /// Below the environment.
    pub path: String,
    /// `changed`, `missing`, `added`, or `not_as_packaged`: so from the beginning, and not what its package says.
    pub how: String,
}
