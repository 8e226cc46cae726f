//! From a specification to an interpreter that a run can be started with.
//!
//! The order is: what was remembered (a few file reads, no process); the interpreters at hand and the choice among them;
//! the cache; the lock; the build. Every later step is skipped once an earlier one has the answer. What is handed out is in use
//! from before it was last looked at, so that nobody removes it in between.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use trainyard_core::{
    environment::{CondaEnvironment, EnvironmentLock, EnvironmentSpec, HashContext, PipList, Progress, PythonEnvironment, VersionSpec},
    ids::EnvironmentHash,
};

use super::{
    activation,
    build::Build,
    cache::{BuilderLock, Cache, Remembered},
    command::{BuildLog, Console},
    conda,
    evict::{Evictable, make_room, tidy_in_background},
    host::Host,
    index::IndexSources,
    interpreter::{AtHand, Chosen, Landscape, Source, choose_because, discover, user_managed},
    locked::note_built,
    settings::EnvironmentSettings,
    usage::InUse,
    uv,
    verify::{discard_downloads, found_changed, watch},
};

/// The version of the way of building; another one builds every environment anew.
pub(super) const BUILDER: &str = "2";

/// How often an environment is asked for that vanishes between its preparation and its use.
const TRIES: u32 = 5;

/// An environment that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// What to start; absolute.
    pub interpreter: PathBuf,
    /// Its identity; `None` if the user manages it.
    pub hash: Option<EnvironmentHash>,
    /// What is installed; `None` if the user manages it.
    pub lock: Option<EnvironmentLock>,
    /// Sentences for the run's warnings; they are not in the build log yet.
    pub warnings: Vec<String>,
    /// Whether it was there before; `true` also where nothing is ever built.
    pub cached: bool,
    /// The folder of its scripts, to be put in front of the run's PATH; `None` if the user manages it.
    pub bin_dir: Option<PathBuf>,
    /// Variables that the environment sets for what runs in it, as activation scripts do.
    pub variables: BTreeMap<String, String>,
    /// Keeps it from being removed; to be held as long as the run lives. `None` where nothing was built, or the cache can not be
    /// written.
    pub in_use: Option<InUse>,
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
    /// A lock can not be followed to the letter here.
    #[error("{0}")]
    Lock(String),
    /// The build took longer than the configuration allows.
    #[error(
        "it was not ready after {limit_seconds} seconds and its build was ended (build_limit_seconds under [environments]); it was at: {step}"
    )]
    TookTooLong {
        /// The limit.
        limit_seconds: u64,
        /// What it was at.
        step: String,
    },
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

    /// Whether the machine is to blame, so that another one, or this one later, may succeed: a full disk, say.
    pub fn is_machines(&self) -> bool {
        use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        matches!(self, Self::Node { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | OutOfMemory))
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
    let limit = Some(Duration::from_secs(settings.build_limit_seconds)).filter(|limit| !limit.is_zero());
    let work = Arc::clone(console.work());
    tokio::select! {
        biased;
        prepared = prepare_for_use(host, spec, settings, console) => prepared,
        too_long = work.exceeds(limit) => Err(too_long),
    }
}

async fn prepare_for_use(
    host: &Host,
    spec: &EnvironmentSpec,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut prepared = prepare_once(host, spec, settings, console).await?;
        let Some(hash) = prepared.hash.clone() else { return Ok(prepared) };
        let cache = Cache::at(&settings.cache_dir)?;
        let folder = cache.environment(&hash);
        if prepared.bin_dir.as_deref() != Some(folder.join("bin").as_path()) {
            // It stands somewhere else, in an image say.
            return Ok(prepared);
        }
        prepared.in_use = InUse::begin(&cache, &hash, console.cancel).await?;
        if !cache.is_complete(&hash) && tries < TRIES {
            console.line(&format!("environment {hash} was removed meanwhile; it is prepared again"));
            continue;
        }
        let installed = cache.measured(&hash).map(|measured| measured.changes(&folder)).unwrap_or_default();
        let rewritten = found_changed(&cache, &hash).unwrap_or_default();
        let changes = [installed.as_slice(), &rewritten.files].concat();
        if !changes.is_empty() {
            let changed = format!("environment {hash} was changed since it was built ({})", shortened(&changes));
            prepared.in_use = None;
            let cannot = |error| PrepareError::disk("failed to remove a changed environment", error);
            if tries < TRIES
                && let Some(claimed) = Evictable::claim(&cache, &hash).map_err(cannot)?
            {
                console.line(&format!("{changed}; it is built again"));
                discard_downloads(host, (&cache, settings), &rewritten, console).await?;
                claimed.evict(&cache, &hash).map_err(cannot)?;
                continue;
            }
            prepared.in_use = InUse::begin(&cache, &hash, console.cancel).await?;
            prepared.warnings.push(format!("{changed}; it is used as it is, because other runs use it or it is pinned"));
        }
        if prepared.cached {
            watch(&cache, &hash);
        }
        if !prepared.cached {
            if let Some(lock) = &prepared.lock {
                note_built(&cache, &hash, lock);
            }
            for removed in make_room(&cache, settings.max_bytes, &hash) {
                console.line(&removed);
            }
            tidy_in_background(&cache, settings);
        }
        return Ok(prepared);
    }
}

/// The first few of the names.
fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown} and {} more", names.len() - 4) } else { shown }
}

async fn prepare_once(
    host: &Host,
    spec: &EnvironmentSpec,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    match spec {
        EnvironmentSpec::UserManaged { interpreter_path } => {
            let interpreter = user_managed(interpreter_path, host, console)?;
            console.line(&format!("the dependencies are managed by the user; interpreter: {}", interpreter.display()));
            Ok(Prepared::user_managed(interpreter))
        }
        EnvironmentSpec::Python(environment) => {
            let request = Request::of(host, environment, settings)?;
            console.hide(request.index.secrets());
            request.prepare(console).await
        }
        EnvironmentSpec::Conda(environment) => super::conda::prepare(host, environment, settings, console).await,
        EnvironmentSpec::Locked(lock) => super::locked::prepare(host, lock, settings, console).await,
    }
}

impl Prepared {
    /// Nothing was built.
    pub(super) fn user_managed(interpreter: PathBuf) -> Self {
        Self {
            interpreter,
            hash: None,
            lock: None,
            warnings: Vec::new(),
            cached: true,
            bin_dir: None,
            variables: BTreeMap::new(),
            in_use: None,
        }
    }

    /// An environment in the cache.
    pub(super) fn in_cache(cache: &Cache, hash: EnvironmentHash, lock: EnvironmentLock, origin: Origin) -> Self {
        let folder = cache.environment(&hash);
        let variables = if lock.conda.is_empty() { BTreeMap::new() } else { activation::recall(&folder) };
        Self {
            interpreter: folder.join("bin/python"),
            bin_dir: Some(folder.join("bin")),
            hash: Some(hash),
            lock: Some(lock),
            warnings: Vec::new(),
            cached: matches!(origin, Origin::Cache),
            variables,
            in_use: None,
        }
    }
}

/// What became of asking channels for an interpreter.
enum Asked {
    /// There was no need, or nobody to ask.
    Unasked,
    /// It came from there.
    Ready(Box<Prepared>),
    /// None has it, or none could be asked.
    InVain {
        /// The reason.
        why: String,
        /// Whether it may be otherwise the next time.
        is_passing: bool,
    },
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
        console.progress(&Progress::step("looking for an interpreter"));

        let at_hand = interpreters(self.host, &self.cache, &self.landscape, console).await?;
        let (source, is_passing) = match self.ask_channels(&at_hand, console).await? {
            Asked::Ready(prepared) => return Ok(*prepared),
            Asked::Unasked => (Source::Unasked, false),
            Asked::InVain { why, is_passing } => (Source::InVain(why), is_passing),
        };
        let asked = self.environment.python.as_deref().unwrap_or_default().trim();
        let chosen = choose_because(self.version.as_ref(), asked, &at_hand, (self.settings.python_fallback, &source))?;
        let hash = self.hash(&chosen)?;
        let warnings: Vec<String> = chosen.warning.iter().cloned().collect();
        let (lock, origin) = self.complete_or_build(&hash, &chosen, console).await?;
        // The next run asks a channel again that could not be reached.
        if !is_passing {
            self.cache.remember(&key, &Remembered { hash: hash.clone(), warnings: warnings.clone() });
        }
        Ok(self.ready(hash, lock, warnings, origin, console))
    }

    /// Asks the conda channels for a Python that the node lacks. Where neither the specification nor the configuration names one,
    /// nobody is asked.
    async fn ask_channels(&self, at_hand: &AtHand, console: &mut Console<'_>) -> Result<Asked, PrepareError> {
        let Some(version) = self.version.as_ref().filter(|version| !at_hand.satisfies(version)) else { return Ok(Asked::Unasked) };
        let channels = if self.environment.channels.is_empty() { &self.settings.conda_channels } else { &self.environment.channels };
        if channels.iter().all(|channel| channel == "nodefaults") {
            return Ok(Asked::Unasked);
        }
        let pip = self.environment.pip.iter().chain(&self.environment.tools).cloned().collect();
        let packages = vec![format!("python[version=\"{}\"]", version)];
        let environment = CondaEnvironment { packages, channels: channels.clone(), pip };
        let wanted = conda::Wanted::of(self.host, &environment, self.settings)?.welcoming(&["pip"]);
        if let Some(why) = wanted.was_in_vain() {
            return Ok(Asked::InVain { why, is_passing: true });
        }
        match wanted.prepare(console).await {
            Ok(prepared) => Ok(Asked::Ready(Box::new(prepared))),
            Err(conda::Failure::Conda(error)) => {
                console.line(&format!("no conda channel has that Python: {error}"));
                let why = console.masked(&error.to_string());
                if error.is_passing() {
                    wanted.note_in_vain(&why);
                }
                Ok(Asked::InVain { why, is_passing: error.is_passing() })
            }
            Err(conda::Failure::Prepare(error)) => Err(error),
        }
    }

    /// Names this request on this node as it is now: a hash of everything that the choice of the interpreter and the build
    /// depend on, without looking for interpreters.
    fn key(&self) -> Result<EnvironmentHash, PrepareError> {
        let Self { settings, environment, .. } = self;
        let channels = (&settings.conda_channels, &settings.conda_channel_alias, &environment.channels);
        let situation = format!("{:?} {channels:?}\n{}", settings.python_fallback, self.landscape.text);
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

    async fn complete_or_build(
        &self,
        hash: &EnvironmentHash,
        chosen: &Chosen,
        console: &mut Console<'_>,
    ) -> Result<(EnvironmentLock, Origin), PrepareError> {
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

    fn ready(
        &self,
        hash: EnvironmentHash,
        lock: EnvironmentLock,
        warnings: Vec<String>,
        origin: Origin,
        console: &mut Console<'_>,
    ) -> Prepared {
        let (python, packages) = (&lock.python, lock.packages.len());
        match origin {
            Origin::Built => console.line(&format!("environment {hash} is ready: Python {python}, {packages} packages")),
            Origin::Cache => {
                console.line(&format!("environment {hash} is ready, it was built before: Python {python}, {packages} packages"));
            }
        }
        Prepared { warnings, ..Prepared::in_cache(&self.cache, hash, lock, origin) }
    }
}

/// The interpreters of the node: as they were noted, if nothing has changed since.
pub(super) async fn interpreters(host: &Host, cache: &Cache, landscape: &Landscape, console: &Console<'_>) -> Result<AtHand, PrepareError> {
    let name = hex::encode(&Sha256::digest(&landscape.text)[..16]);
    if let Some(known) = cache.recall::<AtHand>("interpreters", &name).filter(AtHand::still_there) {
        return Ok(known);
    }
    let at_hand = discover(host, landscape, console.cancel).await?;
    cache.note("interpreters", &name, &at_hand);
    Ok(at_hand)
}

/// Where a ready environment came from.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// Built by this call.
    Built,
    /// Built before, or by another builder while this call waited.
    Cache,
}
