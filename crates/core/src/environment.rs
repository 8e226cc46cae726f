//! Environments as data: what was asked for, how it is read, and the hash that identifies it.
//!
//! A conda specification is read once, at submission ([`conda`]); everything that this server does not act on is refused
//! there, never dropped. What remains is a Python version ([`version`]) or conda packages ([`matchspec`]), and a pip list
//! ([`requirement`]), whose canonical form is both what is hashed ([`hash`]) and what is built, so that equal hashes mean
//! equal builds. Building, finding interpreters and caching belong to the engine.

use serde::{Deserialize, Serialize};

pub mod conda;
pub mod hash;
pub mod lock;
pub mod matchspec;
pub mod progress;
pub mod requirement;
pub mod version;

pub use conda::{CondaSpecification, parse_conda};
pub use hash::HashContext;
pub use lock::{EnvironmentLock, LockedConda, LockedImage, LockedPackage};
pub use matchspec::MatchSpec;
pub use progress::Progress;
pub use requirement::{PipLine, PipList, PipOption};
pub use version::{Choice, PythonVersion, VersionSpec, closest};

/// The environment of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentSpec {
    /// `UserManagedDependencies: true`: nothing is built, this interpreter is used.
    UserManaged {
        /// A path or a name found on PATH.
        interpreter_path: String,
    },
    /// Built by this server from a Python version and a pip list.
    Python(PythonEnvironment),
    /// Built by this server from conda packages and a pip list.
    Conda(CondaEnvironment),
    /// Exactly what this lock says.
    Locked(EnvironmentLock),
}

/// A Python version and a list of pip requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PythonEnvironment {
    /// The version asked for as conda writes it (`3.6.2`, `3.9.*`, `>=3.8,<3.10`); `None`: any.
    pub python: Option<String>,
    /// pip requirements, as given.
    pub pip: Vec<String>,
    /// Pins of pip, setuptools and wheel given on the conda side, as pip requirements.
    pub tools: Vec<String>,
    /// conda channels that the specification names, in order, for an interpreter that the node lacks; empty: the server's.
    #[serde(default)]
    pub channels: Vec<String>,
}

/// conda packages and a list of pip requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CondaEnvironment {
    /// Match specifications of conda, as given: `numpy=1.26`, `python >=3.9,<3.12`, `conda-forge::six 1.16.0 py_0`.
    pub packages: Vec<String>,
    /// Channels, in order of precedence: names or URLs; empty: the server's.
    pub channels: Vec<String>,
    /// pip requirements, as given.
    pub pip: Vec<String>,
}
