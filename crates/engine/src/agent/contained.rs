//! The container of an attempt, from the choice of the engine to its removal.
//!
//! To the agent a container is a process like any other: the engine's client, who ends when the code does and passes signals on. What differs is here:
//! the command line around the code's own, what its end means, and that it is removed after it was looked at.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::process::{getgid, getuid};
use tokio_util::sync::CancellationToken;
use trainyard_core::{container::ContainerSpec, run::Cause};

use super::{
    life::Attempt,
    process::{Launch, NotStarted},
    supervise::Ready,
};
use crate::{
    container::{self, Client, ContainerSettings, Kind, Mount, Note, Outline, Surroundings},
    data::DatastoreAccess,
    environment::{
        BuildLog, EnvironmentSettings, InUse, PrepareError, Prepared,
        image::{Containment, InImage, find, names_beside, prepare_in},
    },
};

/// How much of the end of a log is read for an engine's last words.
const LAST_WORDS_BYTES: u64 = 16 * 1024;

/// A container that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contained {
    client: Client,
    spec: ContainerSpec,
    settings: ContainerSettings,
    name: String,
    /// What the engine calls the image.
    image: String,
    /// The variables that the image sets.
    variables: BTreeMap<String, String>,
    /// The folder of the environment, where it is not in the image.
    mounted: Option<PathBuf>,
    /// Where the engine's client is started: it may leave notes there.
    directory: PathBuf,
    /// The log of the code, and how long it was before the code wrote to it.
    log: (PathBuf, u64),
    /// Keeps the image from being removed, where it is a file of the cache.
    in_use: Option<InUse>,
}

/// Makes the environment of `attempt` ready inside the image of `spec`.
pub(super) async fn prepare(
    attempt: &Attempt,
    spec: &ContainerSpec,
    environments: &EnvironmentSettings,
    log: &mut dyn BuildLog,
) -> Result<(Prepared, Option<Contained>), PrepareError> {
    let settings = settings(attempt)?;
    let cancel = CancellationToken::new();
    // A former agent may have been killed while it prepared.
    let folder = attempt.folder.path().to_owned();
    let swept = tokio::task::spawn_blocking(move || container::remove_leftovers(&folder)).await;
    swept.map_err(|error| io_failed("containers of a former agent cannot be removed", io::Error::other(error)))?;
    let client = find(&settings, &cancel).await?;
    let name = match attempt.folder.node() {
        0 => format!("trainyard-{}", attempt.id),
        node => format!("trainyard-{}-node-{node}", attempt.id),
    };
    let aside = format!("{name}-prepare");
    let ranks = attempt.definition.distribution.ranks(attempt.folder.node());
    let names = names_beside(&aside).into_iter().chain([name.clone()]).chain(ranks.iter().map(|rank| of_rank(&name, rank.rank))).collect();
    let note = Note { client: client.clone(), names };
    note.write(attempt.folder.path()).map_err(|error| io_failed("the note about the container cannot be written", error))?;
    let scratch = attempt.folder.temporary().join("container");
    // Another attempt to prepare begins with nothing.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).map_err(|error| io_failed("the folder for the container cannot be made", error))?;
    let id = attempt.id.to_string();
    let containment = Containment { client: &client, spec, settings: &settings, attempt: &id, name: &aside, scratch: &scratch };
    let ready = prepare_in(&attempt.definition.environment, &containment, environments, log, &cancel).await?;
    let InImage { mut prepared, image, variables, mounted, image_in_use } = ready;
    if let Some(in_use) = &image_in_use {
        in_use.inherit();
    }
    if spec.gpus && !has_gpu() {
        prepared.warnings.push("GPUs were asked for, and this machine shows none: the container goes without".to_owned());
    }
    if client.kind != Kind::Apptainer && !client.has_init {
        log.line("warning: this machine has no `catatonit`: the code gets signals as the first process of its container, which ignores those that it does not handle");
    }
    let spec = ContainerSpec { gpus: spec.gpus && has_gpu(), ..spec.clone() };
    let log = begun(attempt.folder.driver_log());
    Ok((
        prepared,
        Some(Contained { client, spec, settings, name, image, variables, mounted, directory: scratch, log, in_use: image_in_use }),
    ))
}

/// A log and how long it is.
fn begun(log: PathBuf) -> (PathBuf, u64) {
    let length = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    (log, length)
}

/// The name of the container of one process of several.
fn of_rank(name: &str, rank: u32) -> String {
    format!("{name}-rank-{rank}")
}

fn settings(attempt: &Attempt) -> Result<ContainerSettings, PrepareError> {
    if attempt.order.containers.is_null() {
        return Ok(ContainerSettings::default());
    }
    serde_json::from_value(attempt.order.containers.clone())
        .map_err(|error| PrepareError::Settings(format!("the settings for containers in the order cannot be read: {error}")))
}

fn io_failed(what: &str, source: io::Error) -> PrepareError {
    PrepareError::Node { what: what.to_owned(), source }
}

/// Whether the machine shows a GPU.
fn has_gpu() -> bool {
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"].iter().any(|device| Path::new(device).exists())
}

impl Contained {
    /// The container of one process of several, which writes to `log`.
    pub(super) fn for_rank(&self, rank: u32, log: &Path) -> Self {
        let (name, directory) = (of_rank(&self.name, rank), self.directory.join(format!("rank-{rank}")));
        Self { name, directory, log: begun(log.to_owned()), ..self.clone() }
    }

    /// The same, writing to another log.
    pub(super) fn logging_to(&self, log: &Path) -> Self {
        Self { log: begun(log.to_owned()), ..self.clone() }
    }

    /// Whether a signal for the client reaches the code. Apptainer's containers are processes that get it themselves.
    pub(super) fn passes_signals_on(&self) -> bool {
        self.client.kind != Kind::Apptainer
    }

    /// The variables that the run's are made from.
    pub(super) fn surroundings(&self, own: &BTreeMap<OsString, OsString>) -> BTreeMap<OsString, OsString> {
        container::surroundings(own, &self.variables)
    }

    /// The launch of the engine's client around the launch of the code.
    pub(super) fn around(
        &self,
        attempt: &Attempt,
        launch: Launch,
        ready: &Ready,
        own: &BTreeMap<OsString, OsString>,
    ) -> Result<Launch, NotStarted> {
        let Launch { program, arguments, variables, directory: work, output } = launch;
        let mut mounts = vec![Mount::writable(&work), Mount::writable(attempt.folder.logs()), Mount::read_only(&ready.ca_bundle)];
        mounts.extend(ready.data.mounts.iter().map(|(path, access)| match access {
            DatastoreAccess::Read => Mount::read_only(path),
            DatastoreAccess::ReadWrite => Mount::writable(path),
        }));
        mounts.extend(self.mounted.as_ref().map(Mount::read_only));
        let id = attempt.id.to_string();
        let around = Surroundings {
            client: &self.client,
            spec: &self.spec,
            settings: &self.settings,
            image: &self.image,
            attempt: &id,
            name: &self.name,
            agent: (getuid().as_raw(), getgid().as_raw()),
            work: &work,
            mounts,
            prefix: ready.prefix.as_deref(),
        };
        let Outline { program, arguments, variables } = container::outline(&around, (&program, &arguments), &variables, own);
        fs::create_dir_all(&self.directory).map_err(|error| NotStarted {
            message: format!("the folder for the container cannot be made: {error}"),
            by_definition: false,
        })?;
        Ok(Launch { program, arguments, variables, directory: self.directory.clone(), output })
    }

    /// The client ended with `cause`: what that means for the run, and what has to be said about it. The container is removed.
    pub(super) async fn ended(&self, attempt: &Attempt, cause: Cause) -> (Cause, Option<String>) {
        let (end, removed) = container::close(&self.client, &self.name, &self.directory).await;
        if let Err(error) = removed {
            attempt.warn(format!("the container of the run could not be removed: {error}"));
        }
        let log = tail(&self.log.0, self.log.1).unwrap_or_default();
        end.judge(&self.client, cause, &log)
    }

    /// Ends and removes the container.
    pub(super) async fn remove(&self) -> Result<(), String> {
        container::remove(&self.client, &self.name).await
    }
}

/// The end of what was written to a log after `begins`.
fn tail(path: &Path, begins: u64) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(begins.max(length.saturating_sub(LAST_WORDS_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
