//! Environments of conda packages: chosen, fetched and linked by `trainyard_conda`, completed with the pip list.
//!
//! The identity of such an environment does not depend on the interpreters of the node, since it brings its own; so the way to
//! one that is there is a hash and a few file reads. What the first build chose is what everybody gets until it is removed.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use trainyard_conda::{Access, Channels, CondaError, Credential, Secret, Watch};
use trainyard_core::{
    environment::{CondaEnvironment, EnvironmentLock, HashContext, LockedConda, LockedPackage, MatchSpec, PipList, Progress},
    ids::EnvironmentHash,
};

use super::{
    activation,
    cache::{BuilderLock, Cache},
    command::{Console, ask, command, run_logged},
    downloads::{Kind, note_use},
    host::Host,
    index::IndexSources,
    installer::{Installer, failure},
    interpreter::{Interpreter, OLDEST_SERVED, ask_interpreter},
    prepare::{Origin, PrepareError, Prepared},
    pylock::exact_line,
    settings::EnvironmentSettings,
    usage::InUse,
    uv,
};
use crate::clock::now_us;

/// The version of the way of building; another one builds every environment anew.
const BUILDER: &str = "conda 1";

/// For how long channels that could not be reached are not asked again for an interpreter: a run must not wait for them every time.
const NOT_AGAIN: Duration = Duration::from_secs(600);

/// What put the conda packages there, for the lock.
const LINKER: &str = "rattler 0.55.5";

impl From<CondaError> for PrepareError {
    fn from(error: CondaError) -> Self {
        match error {
            CondaError::Request(text) => Self::Specification(text),
            CondaError::Node { what, source: Some(source) } => Self::disk(what, source),
            other => Self::Resolver(other.to_string()),
        }
    }
}

/// Makes the environment ready: from the cache, or solved, downloaded, linked and completed with pip requirements.
pub(super) async fn prepare(
    host: &Host,
    environment: &CondaEnvironment,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    Wanted::of(host, environment, settings)?.prepare(console).await.map_err(Into::into)
}

/// Why there is no environment of conda packages.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The packages could not be chosen or installed.
    #[error(transparent)]
    Conda(#[from] CondaError),
    /// Anything else.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
}

impl From<Failure> for PrepareError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Conda(error) => error.into(),
            Failure::Prepare(error) => error,
        }
    }
}

/// One environment of conda packages on one node.
pub(super) struct Wanted<'a> {
    site: Site<'a>,
    packages: Vec<MatchSpec>,
    channels: Channels,
    list: PipList,
    hash: EnvironmentHash,
    /// pip requirements that are added if they can be had.
    welcome: Vec<String>,
}

/// Where and with what environments of conda packages are built.
pub(super) struct Site<'a> {
    host: &'a Host,
    settings: &'a EnvironmentSettings,
    cache: Cache,
    index: IndexSources,
    access: Access,
}

impl<'a> Site<'a> {
    /// This node with these settings.
    pub(super) fn of(host: &'a Host, settings: &'a EnvironmentSettings) -> Result<Self, PrepareError> {
        let cache = Cache::at(&settings.cache_dir)?;
        let credential = |(host, secret): (&String, &String)| Credential { host: host.clone(), secret: Secret::parse(secret) };
        let credentials = settings.conda_credentials.iter().map(credential).collect();
        // URLs of the configuration may carry credentials, also for packages of a lock.
        let configured = trainyard_conda::resolve(&settings.conda_channels, &settings.conda_channel_alias);
        let configured = configured.map_err(|error| PrepareError::Settings(format!("conda_channels under [environments]: {error}")))?;
        let credentials = [configured.credentials, credentials].concat();
        let brought = Some(cache.brought());
        let access = Access { downloads: cache.conda_packages(), offline: settings.offline, credentials, brought };
        Ok(Self { host, settings, cache, index: IndexSources::resolve(host, settings), access })
    }

    /// How channels are reached.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// The words that must not be shown.
    fn secrets(&self) -> Vec<String> {
        [self.access.secrets(), self.index.secrets()].concat()
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn of(host: &'a Host, environment: &CondaEnvironment, settings: &'a EnvironmentSettings) -> Result<Self, PrepareError> {
        let mut site = Site::of(host, settings)?;
        let mut packages = environment.match_specs()?;
        if !packages.iter().any(|package| package.name == "python") {
            // A run needs an interpreter, and only this one sees the packages.
            packages.push(MatchSpec::parse("python")?);
        }
        let named = if environment.channels.iter().all(|channel| channel == "nodefaults") {
            &settings.conda_channels
        } else {
            &environment.channels
        };
        let channels = trainyard_conda::resolve(named, &settings.conda_channel_alias)?;
        site.access.credentials.extend(channels.credentials.iter().cloned());
        let list = environment.pip_list()?;
        let canonical = CondaEnvironment {
            packages: packages.iter().map(ToString::to_string).collect(),
            channels: channels.urls.clone(),
            pip: environment.pip.clone(),
        };
        let indexes = site.index.for_hash();
        let indexes = if list.requirements.is_empty() { &[][..] } else { &indexes };
        let platform = trainyard_conda::platform();
        let hash = canonical.canonical_hash(&HashContext { interpreter: "", platform, indexes, builder: BUILDER })?;
        Ok(Self { site, packages, channels, list, hash, welcome: Vec::new() })
    }

    /// Also adds these pip requirements if they can be had, and does without them otherwise.
    pub(super) fn welcoming(mut self, requirements: &[&str]) -> Self {
        self.welcome = requirements.iter().filter(|name| !self.list.names(name)).map(|&name| name.to_owned()).collect();
        self
    }

    /// Why these channels could not be asked a short while ago.
    pub(super) fn was_in_vain(&self) -> Option<String> {
        if self.site.cache.is_complete(&self.hash) {
            return None;
        }
        let note = self.site.cache.recall::<InVain>("unreached", self.hash.as_str())?;
        let age = u64::try_from(now_us() - note.at_us).ok()?;
        (Duration::from_micros(age) < NOT_AGAIN).then_some(note.why)
    }

    /// Notes that they could not be asked.
    pub(super) fn note_in_vain(&self, why: &str) {
        self.site.cache.note("unreached", self.hash.as_str(), &InVain { at_us: now_us(), why: why.to_owned() });
    }

    pub(super) async fn prepare(&self, console: &mut Console<'_>) -> Result<Prepared, Failure> {
        let Self { site, hash, .. } = self;
        console.hide(site.secrets());
        if let Some(lock) = site.cache.complete(hash) {
            return Ok(site.ready(hash, lock, Origin::Cache, console));
        }
        let held = BuilderLock::acquire(&site.cache.lock_file(hash), console).await?;
        if let Some(lock) = site.cache.complete(hash) {
            return Ok(site.ready(hash, lock, Origin::Cache, console));
        }
        let names: Vec<String> = self.packages.iter().map(ToString::to_string).collect();
        console.line(&format!("building environment {hash}: conda packages {}", names.join(", ")));
        console.line(&format!("channels: {}", self.channels.urls.join(", ")));
        let place = site.cache.place(hash).await?;
        // From the first look into the indexes to the last link nobody clears them away.
        let _downloads = InUse::share(site.cache.downloads_lock(), console.cancel).await?;
        let conda = self.choose(console).await?;
        let lock = site.build(hash, &conda, (&held, Pip::List(&self.list, &self.welcome)), console).await?;
        console.progress(&Progress::step("writing to the disk"));
        place.finish(&lock).await?;
        Ok(site.ready(hash, lock, Origin::Built, console))
    }

    async fn choose(&self, console: &mut Console<'_>) -> Result<Vec<LockedConda>, Failure> {
        let Self { site, packages, channels, .. } = self;
        let alias = &site.settings.conda_channel_alias;
        let request = trainyard_conda::Request { packages, channels, alias };
        let (watch, heard) = watch();
        let conda = watched(trainyard_conda::solve(request, &site.access, &watch), heard, console).await?;
        note_use(&site.cache, Kind::Indexes);
        console.line(&format!("solved: {} conda packages", conda.len()));
        for package in &conda {
            console.line(&format!("  {} {} {}  {}", package.name, package.version, package.build, package.url));
        }
        Ok(conda)
    }
}

/// A question that got no answer.
#[derive(Serialize, Deserialize)]
struct InVain {
    at_us: i64,
    why: String,
}

/// The pip side of an environment.
#[derive(Clone, Copy)]
pub(super) enum Pip<'a> {
    /// A list to be resolved, and what is added if it can be had.
    List(&'a PipList, &'a [String]),
    /// Exactly these packages.
    Exactly(&'a [LockedPackage], &'a PipList),
}

impl Pip<'_> {
    fn list(&self) -> &PipList {
        match self {
            Self::List(list, _) | Self::Exactly(_, list) => list,
        }
    }
}

/// Makes the environment ready that `lock`, which has conda packages, describes: exactly that, or a failure.
pub(super) async fn prepare_locked(
    host: &Host,
    lock: &EnvironmentLock,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    let site = Site::of(host, settings)?;
    console.hide(site.secrets());
    let nameless = EnvironmentLock { builder: String::new(), ..lock.clone() };
    let context = HashContext { interpreter: "", platform: trainyard_conda::platform(), indexes: &[], builder: BUILDER };
    let hash = nameless.canonical_hash(&context)?;
    if let Some(found) = site.cache.complete(&hash) {
        return Ok(site.ready(&hash, found, Origin::Cache, console));
    }
    let held = BuilderLock::acquire(&site.cache.lock_file(&hash), console).await?;
    if let Some(found) = site.cache.complete(&hash) {
        return Ok(site.ready(&hash, found, Origin::Cache, console));
    }
    console.line(&format!("building environment {hash} from a lock: {} conda packages", lock.conda.len()));
    let list = PipList { options: PipList::parse(&lock.pip_options)?.options, requirements: Vec::new() };
    let place = site.cache.place(&hash).await?;
    let built =
        site.build(&hash, &lock.conda, (&held, Pip::Exactly(&lock.packages, &list)), console).await.map_err(|failure| match failure {
            Failure::Conda(error) if !error.is_passing() => {
                PrepareError::Lock(format!("the lock can not be followed to the letter: {error}"))
            }
            other => other.into(),
        })?;
    if built.python != lock.python {
        let (found, said) = (&built.python, &lock.python);
        return Err(PrepareError::Lock(format!(
            "the lock says Python {said}, and its conda packages brought {found}; make the lock again"
        )));
    }
    console.progress(&Progress::step("writing to the disk"));
    place.finish(&built).await?;
    Ok(site.ready(&hash, built, Origin::Built, console))
}

impl Site<'_> {
    /// Links `conda` at the place of `hash` and adds the pip side.
    async fn build(
        &self,
        hash: &EnvironmentHash,
        conda: &[LockedConda],
        (held, pip): (&BuilderLock, Pip<'_>),
        console: &mut Console<'_>,
    ) -> Result<EnvironmentLock, Failure> {
        let prefix = self.cache.environment(hash);
        let downloads = InUse::share(self.cache.downloads_lock(), console.cancel).await?;
        let (watch, heard) = watch();
        // A clone of the lock stays with the work until nothing writes into the folder any more.
        let hold = (held.as_stdin()?, downloads);
        watched(trainyard_conda::install(conda, &prefix, &self.access, &watch, hold), heard, console).await?;
        console.line(&format!("linked {} conda packages", conda.len()));
        activation::evaluate(&prefix, self.host, console).await?;
        let interpreter = self.interpreter(&prefix, console).await?;
        let (packages, builder) = self.pip(&prefix, &interpreter, (held, pip), console).await?;
        Ok(EnvironmentLock {
            python: interpreter.version.to_string(),
            packages,
            builder,
            platform: interpreter.platform,
            conda: conda.to_vec(),
            pip_options: pip.list().options.iter().map(ToString::to_string).collect(),
            image: None,
        })
    }

    async fn interpreter(&self, prefix: &Path, console: &Console<'_>) -> Result<Interpreter, PrepareError> {
        let python = prefix.join("bin/python");
        ask_interpreter(self.host, &python, console.cancel).await?.ok_or_else(|| {
            PrepareError::Interpreter("the conda packages brought a Python that does not run on this node; the build log lists them".into())
        })
    }

    /// Adds the pip side with uv, or with the environment's own pip where uv does not serve its Python. Also gives who did it.
    async fn pip(
        &self,
        prefix: &Path,
        interpreter: &Interpreter,
        (held, pip): (&BuilderLock, Pip<'_>),
        console: &mut Console<'_>,
    ) -> Result<(Vec<LockedPackage>, String), PrepareError> {
        let is_empty = match pip {
            Pip::List(list, welcome) => list.requirements.is_empty() && welcome.is_empty(),
            Pip::Exactly(packages, _) => packages.is_empty(),
        };
        if is_empty {
            return Ok((Vec::new(), LINKER.to_owned()));
        }
        if interpreter.version < OLDEST_SERVED {
            let packages = self.own_pip(prefix, (held, pip), console).await?;
            return Ok((packages, format!("{LINKER}, pip")));
        }
        let uv = uv::locate(self.host, self.settings, console).await?;
        let builder = format!("{LINKER}, uv {}", uv.version);
        let installer = Installer {
            host: self.host,
            cache: &self.cache,
            uv: &uv,
            lock: held,
            index: &self.index,
            options: &pip.list().options,
            python: prefix.join("bin/python"),
            folder: prefix.to_owned(),
        };
        let packages = match pip {
            Pip::Exactly(packages, _) => installer.install_exactly(packages, console).await?,
            Pip::List(list, welcome) => {
                let mut packages = installer.install_into(list, console).await?;
                packages.extend(self.welcome(&installer, welcome, console).await?);
                packages
            }
        };
        Ok((packages, builder))
    }

    async fn welcome(
        &self,
        installer: &Installer<'_>,
        names: &[String],
        console: &mut Console<'_>,
    ) -> Result<Vec<LockedPackage>, PrepareError> {
        let list = PipList::parse(names.iter())?;
        match installer.install_into(&list, console).await {
            Err(PrepareError::Resolver(_)) => {
                console.line(&format!("{} can not be had; the environment is used without", names.join(" and ")));
                Ok(Vec::new())
            }
            outcome => outcome,
        }
    }

    /// What uv does, with the environment's own pip.
    async fn own_pip(
        &self,
        prefix: &Path,
        (held, pip): (&BuilderLock, Pip<'_>),
        console: &mut Console<'_>,
    ) -> Result<Vec<LockedPackage>, PrepareError> {
        let lines: Vec<String> = match pip {
            Pip::List(list, _) => list.requirements.clone(),
            Pip::Exactly(packages, _) => packages.iter().map(exact_line).collect(),
        };
        console.line("uv does not serve this version of Python; its own pip installs the list");
        let requirements = prefix.join("requirements.txt");
        let written = std::fs::write(&requirements, lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        written.map_err(|error| PrepareError::disk("failed to write the requirements", error))?;
        console.progress(&Progress::counted("installing", 0, lines.len() as u64, "packages"));
        let mut install = command(self.host, &prefix.join("bin/python"));
        install.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r"]).arg(&requirements);
        if matches!(pip, Pip::Exactly(..)) {
            install.arg("--no-deps");
        }
        self.index.apply_to_pip(&mut install, &pip.list().options);
        install.stdin(held.as_stdin()?);
        let ended = run_logged(install, console).await?;
        if !ended.status.success() {
            let missing = ended.stderr.iter().any(|line| line.contains("No module named pip"));
            let hint = if missing { "the environment has no pip; add `pip` to the conda dependencies\n" } else { "" };
            return Err(failure(&self.cache, &ended, hint));
        }
        self.frozen(prefix, console).await
    }

    /// What pip says is installed and did not come as a conda package.
    async fn frozen(&self, prefix: &Path, console: &Console<'_>) -> Result<Vec<LockedPackage>, PrepareError> {
        let mut freeze = command(self.host, &prefix.join("bin/python"));
        freeze.args(["-m", "pip", "freeze", "--disable-pip-version-check"]);
        let (status, answer) = ask(freeze, console.cancel).await?;
        if !status.success() {
            return Err(PrepareError::Installer(format!("pip could not list what it installed ({status})")));
        }
        let pinned = answer.lines().filter_map(|line| line.split_once("=="));
        let package = |(name, version): (&str, &str)| LockedPackage {
            name: trainyard_core::environment::requirement::normalised_name(name.trim()),
            version: version.trim().to_owned(),
            ..LockedPackage::default()
        };
        Ok(pinned.map(package).collect())
    }

    /// The environment of `hash`, which is complete.
    fn ready(&self, hash: &EnvironmentHash, lock: EnvironmentLock, origin: Origin, console: &mut Console<'_>) -> Prepared {
        let before = if matches!(origin, Origin::Cache) { ", it was built before" } else { "" };
        let (python, conda, pip) = (&lock.python, lock.conda.len(), lock.packages.len());
        console.line(&format!("environment {hash} is ready{before}: Python {python}, {conda} conda packages, {pip} pip packages"));
        Prepared::in_cache(&self.cache, hash.clone(), lock, origin)
    }
}

/// A watch that can be called from any thread, and where its words arrive.
fn watch() -> (Watch, mpsc::UnboundedReceiver<Progress>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let watch: Watch = Arc::new(move |progress| {
        // Nobody listens any more once the work was given up.
        let _ = sender.send(progress);
    });
    (watch, receiver)
}

/// Waits for `work`, telling the console what is `heard` of it. A cancel drops the work.
async fn watched<T>(
    work: impl Future<Output = Result<T, CondaError>>,
    mut heard: mpsc::UnboundedReceiver<Progress>,
    console: &mut Console<'_>,
) -> Result<T, Failure> {
    tokio::pin!(work);
    let cancel = console.cancel;
    let mut told = String::new();
    let mut tell = |progress: &Progress, console: &mut Console<'_>| {
        // Each step has a line in the log, its counts are for who watches.
        if told != progress.what {
            console.line(&progress.to_string());
            told.clone_from(&progress.what);
        }
        console.progress(progress);
    };
    let result = loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(PrepareError::Cancelled.into()),
            Some(progress) = heard.recv() => tell(&progress, console),
            result = &mut work => break result,
        }
    };
    // What it said last, in the same moment as it ended.
    while let Ok(progress) = heard.try_recv() {
        tell(&progress, console);
    }
    result.map_err(Into::into)
}

#[cfg(test)]
mod tests;
