//! What an environment is made of, exactly: the lock that every built environment stores, that can be printed, sent along with a
//! definition, and built again on another machine.
//!
//! Invariant: a lock holds no credentials; URLs in it have lost theirs.

use serde::{Deserialize, Serialize};

mod check;

/// Everything that was put into an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentLock {
    /// The full version of Python, e.g. `3.11.7`.
    pub python: String,
    /// What pip requirements led to, by name. Also packages of the conda side that are Python distributions are listed here only
    /// if pip brought them.
    pub packages: Vec<LockedPackage>,
    /// What built it, e.g. `uv 0.13.9`.
    pub builder: String,
    /// Operating system, architecture and C library, e.g. `linux-x86_64-glibc-2.36`; empty in locks of older servers.
    #[serde(default)]
    pub platform: String,
    /// What the conda side led to, in the order of installation; empty: no conda packages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conda: Vec<LockedConda>,
    /// The image that the environment stands on; `None`: the machine itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<LockedImage>,
    /// pip options that say where packages come from (`--extra-index-url …`), in canonical order, without credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pip_options: Vec<String>,
}

/// A package that pip requirements led to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedPackage {
    /// Its name, in the form of PEP 503.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it came from, if not from an index: a URL with the commit of a repository, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Hashes of the files that count as this version, e.g. `sha256:…`; empty where the source has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<String>,
}

/// A conda package.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedConda {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Build, e.g. `py311h_0`.
    pub build: String,
    /// The file, without credentials.
    pub url: String,
    /// SHA-256 of the file, lower-case hex; `None` where the channel gives none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// MD5 of the file, lower-case hex, for channels that give nothing better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// Of a Python: where its packages are, if not where the version says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site_packages: Option<String>,
}

/// A container image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedImage {
    /// As it was named.
    pub reference: String,
    /// `sha256:…` of its manifest where it came from a registry, else of its configuration.
    pub digest: String,
}
