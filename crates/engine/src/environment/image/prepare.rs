//! From a specification and a container to an interpreter inside an image.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use trainyard_core::{
    container::ContainerSpec,
    environment::{CondaEnvironment, EnvironmentLock, EnvironmentSpec, HashContext, PipList, PythonEnvironment},
    ids::EnvironmentHash,
};

use super::{
    super::{
        cache::Cache,
        command::{BuildLog, Console},
        conda,
        host::Host,
        index::IndexSources,
        interpreter::{AtHand, Chosen, choose},
        locked,
        prepare::{PrepareError, Prepared},
        settings::EnvironmentSettings,
        usage::InUse,
    },
    desk::Desk,
    inspect::Image,
    layer, obtain,
    on_top::{OnTop, identity},
    probe::{self, Probed},
};
use crate::container::{Client, ContainerSettings, Kind};

/// The container that an environment is prepared for.
pub(crate) struct Containment<'a> {
    /// The engine, found by [`super::find`].
    pub(crate) client: &'a Client,
    /// What the definition asks for.
    pub(crate) spec: &'a ContainerSpec,
    /// What the target says.
    pub(crate) settings: &'a ContainerSettings,
    /// The attempt, as text.
    pub(crate) attempt: &'a str,
    /// The name of containers that are made on the way.
    pub(crate) name: &'a str,
    /// For files that are worth nothing after a crash; absolute.
    pub(crate) scratch: &'a Path,
}

/// An environment that is ready inside an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InImage {
    /// Its interpreter and `bin_dir` are paths inside.
    pub(crate) prepared: Prepared,
    /// What the engine calls the image with everything in it.
    pub(crate) image: String,
    /// The variables that the image sets.
    pub(crate) variables: BTreeMap<String, String>,
    /// A folder that is mounted, where the engine has no layers.
    pub(crate) mounted: Option<PathBuf>,
    /// Keeps the image from being removed, where it is a file of the cache.
    pub(crate) image_in_use: Option<InUse>,
}

/// Makes `spec` ready inside the image of `containment`. As [`super::super::prepare()`]: a cached one costs little, several callers build once.
pub(crate) async fn prepare_in(
    spec: &EnvironmentSpec,
    containment: &Containment<'_>,
    settings: &EnvironmentSettings,
    log: &mut dyn BuildLog,
    cancel: &CancellationToken,
) -> Result<InImage, PrepareError> {
    prepare_in_on(&Host::current(), spec, containment, settings, &mut Console::new(log, cancel)).await
}

/// [`prepare_in`] on a node with given variables.
pub(super) async fn prepare_in_on(
    host: &Host,
    spec: &EnvironmentSpec,
    containment: &Containment<'_>,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<InImage, PrepareError> {
    let Containment { client, attempt, name, scratch, .. } = *containment;
    let cache = Cache::at(&settings.cache_dir)?;
    let desk = Desk { host, client, containers: containment.settings, settings, cache, attempt, name, scratch };
    console.hide(IndexSources::resolve(host, settings).secrets());
    let limit = Some(Duration::from_secs(settings.build_limit_seconds)).filter(|limit| !limit.is_zero());
    let work = Arc::clone(console.work());
    tokio::select! {
        biased;
        ready = prepare(&desk, spec, containment.spec, console) => ready,
        too_long = work.exceeds(limit) => Err(too_long),
    }
}

async fn prepare(
    desk: &Desk<'_>,
    spec: &EnvironmentSpec,
    container: &ContainerSpec,
    console: &mut Console<'_>,
) -> Result<InImage, PrepareError> {
    console.line(&format!(
        "the run goes into a container of {}{}",
        desk.engine(),
        if desk.client.rootless { ", without root" } else { "" }
    ));
    refuse_for_apptainer(desk, container)?;
    let locked = match spec {
        EnvironmentSpec::Locked(lock) => lock.image.as_ref(),
        _ => None,
    };
    let image = obtain::obtain(desk, container, locked, console).await?;
    let mut ready = match spec {
        EnvironmentSpec::UserManaged { interpreter_path } => user_managed(desk, &image, interpreter_path, console).await?,
        EnvironmentSpec::Python(environment) => python(desk, &image, environment, console).await?,
        EnvironmentSpec::Conda(environment) => {
            let prepared = conda::prepare(desk.host, environment, desk.settings, console).await?;
            of_this_machine(desk, &image, prepared, console).await?
        }
        EnvironmentSpec::Locked(lock) => exactly(desk, &image, lock, console).await?,
    };
    ready.variables = image.variables.clone();
    ready.image_in_use = image.in_use.clone();
    if let Some(hash) = &ready.prepared.hash
        && desk.cache.is_complete(hash)
    {
        ready.prepared.in_use = InUse::begin(&desk.cache, hash, console.cancel).await?;
    }
    if let Some(other) = other_architecture(&image) {
        ready.prepared.warnings.push(other);
    }
    Ok(ready)
}

/// What a definition says in the words of `docker run` means nothing to Apptainer.
fn refuse_for_apptainer(desk: &Desk<'_>, container: &ContainerSpec) -> Result<(), PrepareError> {
    if desk.client.kind != Kind::Apptainer || container.arguments.is_empty() {
        return Ok(());
    }
    let message = "the definition's Docker.Arguments are options of `docker run`, and this machine has only Apptainer, which takes none of them: leave them out";
    Err(PrepareError::Settings(message.into()))
}

fn other_architecture(image: &Image) -> Option<String> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let differs = !image.architecture.is_empty() && image.architecture != own;
    differs.then(|| {
        format!("the image `{}` is for {}, and this machine is {own}: it may not run, or be slow", image.reference, image.architecture)
    })
}

/// The interpreter as it is in the image.
async fn user_managed(desk: &Desk<'_>, image: &Image, name: &str, console: &mut Console<'_>) -> Result<InImage, PrepareError> {
    let found = probe::find(desk, image, name.trim(), console).await?.map_err(PrepareError::Interpreter)?;
    console.line(&format!("the dependencies are managed by the user; interpreter in the image: {}", found.program().display()));
    as_it_is(desk, image, &found)
}

/// Nothing on top: the image's digest and interpreter are all there is to know.
fn as_it_is(desk: &Desk<'_>, image: &Image, found: &Probed) -> Result<InImage, PrepareError> {
    let program = found.program();
    let lock = EnvironmentLock {
        python: found.interpreter.as_ref().map(|interpreter| interpreter.version.to_string()).unwrap_or_default(),
        platform: found.interpreter.as_ref().map(|interpreter| interpreter.platform.clone()).unwrap_or_default(),
        builder: desk.engine(),
        image: Some(image.locked()),
        ..EnvironmentLock::default()
    };
    let identity = Sha256::digest(format!("image\n{}\n{}", image.digest, program.display()));
    let hash = EnvironmentHash::new(hex::encode(&identity[..16]))?;
    let prepared = Prepared { hash: Some(hash), lock: Some(lock), ..Prepared::user_managed(program) };
    Ok(InImage { prepared, image: image.id.clone(), variables: BTreeMap::new(), mounted: None, image_in_use: None })
}

/// A Python version and pip requirements.
async fn python(
    desk: &Desk<'_>,
    image: &Image,
    environment: &PythonEnvironment,
    console: &mut Console<'_>,
) -> Result<InImage, PrepareError> {
    let list = environment.pip_list()?;
    let version = environment.version_spec()?;
    let asked = environment.python.as_deref().unwrap_or_default().trim();
    let found = probe::find(desk, image, "python", console).await?;
    let interpreter = found.as_ref().ok().filter(|found| found.usable).and_then(|found| found.interpreter.clone());
    let fits = interpreter.as_ref().is_some_and(|interpreter| version.as_ref().is_none_or(|version| version.matches(interpreter.version)));
    if !fits && let Some(brought) = from_channels(desk, environment, console).await? {
        return of_this_machine(desk, image, brought, console).await;
    }
    let Some(interpreter) = interpreter else {
        let why = found
            .err()
            .unwrap_or_else(|| format!("the Python in the image `{}` is none that packages can be installed for", image.reference));
        return Err(PrepareError::Interpreter(format!(
            "{why}; use an image with Python, or name conda channels: they bring an interpreter along"
        )));
    };
    let Chosen { interpreter, warning } = choose(version.as_ref(), asked, &AtHand::only(interpreter), desk.settings)?;
    let warning = warning.map(|warning| format!("in the image `{}`: {warning}", image.reference));
    let mut ready = match found {
        Ok(found) if list.requirements.is_empty() => {
            console.line(&format!("the image has Python {}, and nothing is to be installed: it is used as it is", interpreter.version));
            as_it_is(desk, image, &found)?
        }
        _ => {
            let hash = identity(desk, image, &interpreter, environment)?;
            topped(OnTop { desk, image, interpreter: &interpreter, list: &list, exactly: None, hash }, console).await?
        }
    };
    ready.prepared.warnings.extend(warning);
    Ok(ready)
}

/// The interpreter of a channel, with the pip requirements in it; `None`: no channel has it, or none is known.
async fn from_channels(
    desk: &Desk<'_>,
    environment: &PythonEnvironment,
    console: &mut Console<'_>,
) -> Result<Option<Prepared>, PrepareError> {
    if environment.channels.is_empty() && desk.settings.conda_channels.is_empty() {
        return Ok(None);
    }
    let python = environment.python.as_deref().map(str::trim).filter(|version| !version.is_empty());
    let wanted = CondaEnvironment {
        packages: vec![python.map_or_else(|| "python".to_owned(), |version| format!("python {version}")), "pip".to_owned()],
        channels: environment.channels.clone(),
        pip: environment.pip.iter().chain(&environment.tools).cloned().collect(),
    };
    match conda::prepare(desk.host, &wanted, desk.settings, console).await {
        Ok(prepared) => Ok(Some(prepared)),
        Err(error) if error.is_cancelled() => Err(error),
        Err(error) => {
            console.line(&format!("the channels have no such interpreter: {error}"));
            Ok(None)
        }
    }
}

async fn topped(on_top: OnTop<'_>, console: &mut Console<'_>) -> Result<InImage, PrepareError> {
    let topped = on_top.ensure(console).await?;
    let packages = topped.lock.packages.len();
    let before = if topped.cached { ", it was built before" } else { "" };
    console.line(&format!("environment {} on the image is ready{before}: {packages} packages", on_top.hash));
    let mounted = (on_top.desk.client.kind == Kind::Apptainer).then(|| topped.prefix.clone());
    let prepared = Prepared {
        hash: Some(on_top.hash),
        lock: Some(topped.lock),
        cached: topped.cached,
        bin_dir: Some(topped.prefix.join("bin")),
        ..Prepared::user_managed(topped.prefix.join("bin/python"))
    };
    Ok(InImage { prepared, image: topped.image, variables: BTreeMap::new(), mounted, image_in_use: None })
}

/// An environment that was built on this machine and needs nothing of it, conda's: a layer at the same path.
async fn of_this_machine(
    desk: &Desk<'_>,
    image: &Image,
    mut prepared: Prepared,
    console: &mut Console<'_>,
) -> Result<InImage, PrepareError> {
    let folder = prepared.bin_dir.as_deref().and_then(Path::parent).map(Path::to_owned);
    let (Some(hash), Some(folder), Some(lock)) = (prepared.hash.clone(), folder, prepared.lock.as_ref()) else {
        return Err(PrepareError::Settings("an environment without a folder cannot be put on top of an image".into()));
    };
    let (made, mounted) = if desk.client.kind == Kind::Apptainer {
        (image.id.clone(), Some(folder))
    } else {
        (layer::ensure(desk, image, (&folder, &layer::tag(desk, image, (&hash, lock))), console).await?, None)
    };
    if let Some(lock) = &mut prepared.lock {
        lock.image = Some(image.locked());
    }
    Ok(InImage { prepared, image: made, variables: BTreeMap::new(), mounted, image_in_use: None })
}

/// Exactly what a lock says.
async fn exactly(desk: &Desk<'_>, image: &Image, lock: &EnvironmentLock, console: &mut Console<'_>) -> Result<InImage, PrepareError> {
    if !lock.conda.is_empty() {
        let of_machine = EnvironmentLock { image: None, ..lock.clone() };
        let prepared = locked::prepare(desk.host, &of_machine, desk.settings, console).await?;
        return of_this_machine(desk, image, prepared, console).await;
    }
    if lock.image.is_none() {
        let message = "the lock was made on a machine, not on an image: leave the container out, or make the lock of a run in this image";
        return Err(PrepareError::Specification(message.into()));
    }
    let found = probe::find(desk, image, "python", console).await?.map_err(PrepareError::Interpreter)?;
    let here = found.interpreter.as_ref().map(|interpreter| interpreter.version.to_string()).unwrap_or_default();
    if lock.packages.is_empty() {
        return as_it_is(desk, image, &found);
    }
    let Some(interpreter) = found.interpreter.filter(|_| here == lock.python) else {
        return Err(PrepareError::Interpreter(format!("the lock was made with Python {}, and the image has {here}", lock.python)));
    };
    let list = PipList::parse(lock.pip_options.iter())?;
    let context = HashContext { interpreter: &image.digest, platform: &interpreter.platform, indexes: &[], builder: "image-lock-1" };
    let hash = lock.canonical_hash(&context)?;
    topped(OnTop { desk, image, interpreter: &interpreter, list: &list, exactly: Some(&lock.packages), hash }, console).await
}
