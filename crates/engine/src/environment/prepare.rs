//! From a specification to an interpreter that a run can be started with.
//!
//! The order is: what was remembered (a few file reads, no process); the interpreters at hand and the choice among them;
//! the cache; the lock; the build. Every later step is skipped once an earlier one has the answer.

use std::{io, path::PathBuf};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use trainyard_core::{
    environment::{EnvironmentSpec, HashContext, PipList, PythonEnvironment, VersionSpec},
    ids::EnvironmentHash,
};

use super::{
    build::Build,
    cache::{BuilderLock, Cache, Lock, Remembered},
    command::{BuildLog, Console},
    host::Host,
    index::IndexSources,
    interpreter::{AtHand, Chosen, Landscape, choose, discover, user_managed},
    settings::EnvironmentSettings,
    uv,
};

/// The version of the way of building; another one builds every environment anew.
const BUILDER: &str = "1";

/// An environment that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// What to start; absolute.
    pub interpreter: PathBuf,
    /// Its identity; `None` if the user manages it.
    pub hash: Option<EnvironmentHash>,
    /// What is installed; `None` if the user manages it.
    pub lock: Option<Lock>,
    /// Sentences for the run's warnings; they are not in the build log yet.
    pub warnings: Vec<String>,
    /// Whether it was there before; `true` also where nothing is ever built.
    pub cached: bool,
    /// The folder of its scripts, to be put in front of the run's PATH; `None` if the user manages it.
    pub bin_dir: Option<PathBuf>,
}

/// Why an environment is not ready. `Display` is a sentence for the owner of the run; it shows no credentials.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Somebody wanted it to stop.
    #[error("the preparation of the environment was cancelled")]
    Cancelled,
    /// The specification can not be read; submission should have refused it.
    #[error("{0}")]
    Specification(String),
    /// The configuration of the server can not be followed.
    #[error("{0}")]
    Settings(String),
    /// No interpreter fits.
    #[error("{0}")]
    Interpreter(String),
    /// uv can not be had.
    #[error("{0}")]
    Installer(String),
    /// uv refused or failed: its own message.
    #[error("{0}")]
    Resolver(String),
    /// The node failed: a disk, a process that does not start.
    #[error("{what}: {source}")]
    Node {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl PrepareError {
    /// Whether this is the consequence of a cancellation and not a failure.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    pub(super) fn disk(what: impl Into<String>, source: io::Error) -> Self {
        Self::Node { what: what.into(), source }
    }
}

impl From<trainyard_core::Error> for PrepareError {
    fn from(error: trainyard_core::Error) -> Self {
        Self::Specification(error.message().to_owned())
    }
}

/// Makes the environment of `spec` ready. Lines of the build go to `log` as they appear.
///
/// A cached environment costs a few file reads. Several callers, in one process or many, that ask for the same environment
/// build it once. Cancelling (or dropping the future) ends the installer and leaves nothing half-built in use.
pub async fn prepare(
    spec: &EnvironmentSpec,
    settings: &EnvironmentSettings,
    log: &mut dyn BuildLog,
    cancel: &CancellationToken,
) -> Result<Prepared, PrepareError> {
    prepare_on(&Host::current(), spec, settings, &mut Console::new(log, cancel)).await
}

/// [`prepare`] on a node with given variables.
pub(super) async fn prepare_on(
    host: &Host,
    spec: &EnvironmentSpec,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    match spec {
        EnvironmentSpec::UserManaged { interpreter_path } => {
            let interpreter = user_managed(interpreter_path, host, console)?;
            console.line(&format!("the dependencies are managed by the user; interpreter: {}", interpreter.display()));
            Ok(Prepared { interpreter, hash: None, lock: None, warnings: Vec::new(), cached: true, bin_dir: None })
        }
        EnvironmentSpec::Python(environment) => {
            let request = Request::of(host, environment, settings)?;
            console.hide(request.index.secrets());
            request.prepare(console).await
        }
    }
}

/// One Python environment on one node.
struct Request<'a> {
    host: &'a Host,
    settings: &'a EnvironmentSettings,
    environment: &'a PythonEnvironment,
    version: Option<VersionSpec>,
    list: PipList,
    index: IndexSources,
    cache: Cache,
    landscape: Landscape,
}

impl<'a> Request<'a> {
    fn of(host: &'a Host, environment: &'a PythonEnvironment, settings: &'a EnvironmentSettings) -> Result<Self, PrepareError> {
        Ok(Self {
            host,
            settings,
            environment,
            version: environment.version_spec()?,
            list: environment.pip_list()?,
            index: IndexSources::resolve(host, settings),
            cache: Cache::at(&settings.cache_dir)?,
            landscape: Landscape::of(host),
        })
    }

    async fn prepare(&self, console: &mut Console<'_>) -> Result<Prepared, PrepareError> {
        let key = self.key()?;
        if let Some(Remembered { hash, warnings }) = self.cache.remembered(&key)
            && let Some(lock) = self.cache.complete(&hash)
        {
            return Ok(self.ready(hash, lock, warnings, Origin::Cache, console));
        }

        let chosen = self.choose(console).await?;
        let hash = self.hash(&chosen)?;
        let warnings: Vec<String> = chosen.warning.iter().cloned().collect();
        let (lock, origin) = self.complete_or_build(&hash, &chosen, console).await?;
        self.cache.remember(&key, &Remembered { hash: hash.clone(), warnings: warnings.clone() });
        Ok(self.ready(hash, lock, warnings, origin, console))
    }

    /// Names this request on this node as it is now: a hash of everything that the choice of the interpreter and the build
    /// depend on, without looking for interpreters.
    fn key(&self) -> Result<EnvironmentHash, PrepareError> {
        let situation = format!("{:?} {:?}\n{}", self.settings.python_fallback, self.settings.conda_channels, self.landscape.text);
        let indexes = self.index.for_hash();
        let context = HashContext { interpreter: &situation, platform: "", indexes: &indexes, builder: BUILDER };
        Ok(self.environment.canonical_hash(&context)?)
    }

    fn hash(&self, chosen: &Chosen) -> Result<EnvironmentHash, PrepareError> {
        let version = chosen.interpreter.version.to_string();
        let indexes = self.index.for_hash();
        let platform = chosen.interpreter.platform.as_str();
        let context = HashContext { interpreter: &version, platform, indexes: &indexes, builder: BUILDER };
        Ok(self.environment.canonical_hash(&context)?)
    }

    async fn choose(&self, console: &mut Console<'_>) -> Result<Chosen, PrepareError> {
        let name = hex::encode(&Sha256::digest(&self.landscape.text)[..16]);
        let known = self.cache.recall::<AtHand>("interpreters", &name).filter(AtHand::still_there);
        let at_hand = match known {
            Some(at_hand) => at_hand,
            None => {
                let at_hand = discover(self.host, &self.landscape, console.cancel).await?;
                self.cache.note("interpreters", &name, &at_hand);
                at_hand
            }
        };
        let asked = self.environment.python.as_deref().unwrap_or_default().trim();
        choose(self.version.as_ref(), asked, &at_hand, self.settings)
    }

    async fn complete_or_build(
        &self,
        hash: &EnvironmentHash,
        chosen: &Chosen,
        console: &mut Console<'_>,
    ) -> Result<(Lock, Origin), PrepareError> {
        if let Some(lock) = self.cache.complete(hash) {
            return Ok((lock, Origin::Cache));
        }
        let held = BuilderLock::acquire(&self.cache.lock_file(hash), console).await?;
        if let Some(lock) = self.cache.complete(hash) {
            return Ok((lock, Origin::Cache));
        }
        let interpreter = &chosen.interpreter;
        let count = self.list.requirements.len();
        console.line(&format!("building environment {hash}: Python {} ({})", interpreter.version, interpreter.path.display()));
        console.line(&format!("{count} requirement{}: {}", if count == 1 { "" } else { "s" }, self.list.requirements.join(", ")));
        let uv = uv::locate(self.host, self.settings, console).await?;
        let build =
            Build { host: self.host, cache: &self.cache, hash, interpreter, list: &self.list, index: &self.index, uv: &uv, lock: &held };
        Ok((build.run(console).await?, Origin::Built))
    }

    fn ready(&self, hash: EnvironmentHash, lock: Lock, warnings: Vec<String>, origin: Origin, console: &mut Console<'_>) -> Prepared {
        let folder = self.cache.environment(&hash);
        let (python, packages) = (&lock.python, lock.packages.len());
        match origin {
            Origin::Built => console.line(&format!("environment {hash} is ready: Python {python}, {packages} packages")),
            Origin::Cache => {
                console.line(&format!("environment {hash} is ready, it was built before: Python {python}, {packages} packages"));
            }
        }
        Prepared {
            interpreter: folder.join("bin/python"),
            bin_dir: Some(folder.join("bin")),
            hash: Some(hash),
            lock: Some(lock),
            warnings,
            cached: matches!(origin, Origin::Cache),
        }
    }
}

/// Where a ready environment came from.
#[derive(Clone, Copy)]
enum Origin {
    /// Built by this call.
    Built,
    /// Built before, or by another builder while this call waited.
    Cache,
}
