//! Makes ready what the code needs: the working directory from the snapshot, the environment, the CA bundle, the data.
//!
//! Each part can be begun again after a crash: the working directory appears complete or not at all, and so does an environment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use reqwest::Response;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use trainyard_core::{ErrorKind, archive::ArchiveLimits, environment::Progress, run::Cause};
use trainyard_wire::native::Report;

use super::{
    client::{Refusal, chain},
    contained::{self, Contained},
    data::{self, Placed},
    life::Attempt,
    report::Reporter,
    supervise::Ready,
};
use crate::{
    environment::{self, BuildLog, EnvironmentSettings, PrepareError},
    trust,
};

/// How often a snapshot is fetched again that does not have its hash.
const HASH_TRIES: u32 = 3;

/// For how long the system's roots are not read again: a new one counts for runs that start later than that.
const BUNDLE_LIFETIME: Duration = Duration::from_secs(600);

/// A download without a byte for this long is begun again.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Prepares everything at the same time. `Err`: what ends the attempt.
pub(super) async fn prepare(attempt: &Attempt) -> Result<Ready, Cause> {
    let bundle = async {
        let (settings, folder, ca_pem) = (environment_settings(attempt)?, attempt.folder.path().to_owned(), attempt.order.ca_pem.clone());
        let task = tokio::task::spawn_blocking(move || ca_bundle(&settings.cache_dir, &folder, &ca_pem));
        task.await
            .expect("writing the bundle does not panic, and nobody ends the task")
            .map_err(|error| Cause::StartFailed { message: error.message().to_owned(), by_definition: false })
    };
    let working_directory = async {
        // Nothing may run before the server has said that this attempt is still wanted.
        if attempt.folder.node() == 0 {
            attempt.reporter.deliver(Report::Preparing { node: node_name() }).await;
        } else {
            attempt.meeting.known().await;
        }
        working_directory(attempt).await
    };
    let ((), ca_bundle, (prepared, container), fetched) =
        tokio::try_join!(working_directory, bundle, environment(attempt), data::fetch(attempt))?;
    let prefix = prepared.bin_dir.as_deref().and_then(Path::parent).map(Path::to_owned);
    let data = Placed::new(fetched, &attempt.folder.work())?;
    Ok(Ready {
        interpreter: prepared.interpreter,
        prefix,
        variables: prepared.variables,
        _in_use: prepared.in_use,
        ca_bundle,
        container,
        definition: data.fill(&attempt.definition),
        data,
    })
}

fn environment_settings(attempt: &Attempt) -> Result<EnvironmentSettings, Cause> {
    serde_json::from_value(attempt.order.environments.clone()).map_err(|error| Cause::EnvironmentFailed {
        message: format!("the settings for environments in the order cannot be read: {error}"),
    })
}

/// The CA bundle that the attempts of this node share: reading the system's hundreds of files for every run would be most
/// of what a start costs. Where the cache cannot be written the attempt gets its own.
fn ca_bundle(cache_dir: &Path, folder: &Path, ca_pem: &str) -> trainyard_core::Result<PathBuf> {
    let name = hex::encode(&Sha256::digest(ca_pem)[..8]);
    let shared = cache_dir.join("ca").join(format!("{name}.pem"));
    let age = fs::metadata(&shared).and_then(|meta| meta.modified()).map(|modified| modified.elapsed().unwrap_or_default());
    if age.is_ok_and(|age| age < BUNDLE_LIFETIME) {
        return Ok(shared);
    }
    match trust::write_bundle(&shared, ca_pem, &[]) {
        Ok(()) => {
            // It is left alone where nothing changed, but it is fresh again.
            if let Err(error) = File::open(&shared).and_then(|file| file.set_modified(SystemTime::now())) {
                tracing::info!(%error, "the age of the CA bundle cannot be set back");
            }
            Ok(shared)
        }
        Err(error) => {
            tracing::warn!(error = error.chain(), "the shared CA bundle cannot be written; this attempt gets its own");
            trust::bundle(folder, ca_pem)
        }
    }
}

async fn environment(attempt: &Attempt) -> Result<(environment::Prepared, Option<Contained>), Cause> {
    let failed = |message: String| Cause::EnvironmentFailed { message };
    let mut log = FileLog::open(&attempt.folder.build_log(), attempt.reporter.clone())
        .map_err(|error| failed(format!("the build log cannot be written: {error}")))?;
    log.line(&format!("preparing the environment on {}", node_name()));
    let settings = environment_settings(attempt)?;
    let spec = &attempt.definition.environment;
    let ready = match &attempt.definition.container {
        None => on_this_machine(attempt, &settings, &mut log).await.map(|prepared| (prepared, None)),
        Some(container) => contained::prepare(attempt, container, &settings, &mut log).await,
    };
    match ready {
        Ok((prepared, container)) => {
            for warning in &prepared.warnings {
                log.line(&format!("warning: {warning}"));
            }
            log.line("the environment is ready");
            attempt.reporter.tell(Report::EnvironmentReady {
                hash: prepared.hash.as_ref().map(ToString::to_string),
                spec: serde_json::to_value(spec).unwrap_or_default(),
                lock: prepared.lock.as_ref().and_then(|lock| serde_json::to_value(lock).ok()),
                warnings: prepared.warnings.clone(),
            });
            Ok((prepared, container))
        }
        Err(error) => {
            let message = error.to_string();
            log.line(&format!("error: {message}"));
            // A full disk says nothing about the environment, and another try may find room.
            Err(if error.is_machines() { machine_failed(message) } else { failed(message) })
        }
    }
}

/// The environment for a run that goes into no container: what the run installs goes into a layer of its own.
async fn on_this_machine(
    attempt: &Attempt,
    settings: &EnvironmentSettings,
    log: &mut dyn BuildLog,
) -> Result<environment::Prepared, PrepareError> {
    // Never cancelled through the token: whoever wants it to stop drops the future, which ends the installer, too.
    let mut prepared = environment::prepare(&attempt.definition.environment, settings, log, &CancellationToken::new()).await?;
    environment::overlay(&mut prepared, &attempt.folder.layer())
        .map_err(|source| PrepareError::Node { what: "the run's own layer of the environment cannot be made".into(), source })?;
    if let Some(in_use) = &prepared.in_use {
        in_use.inherit();
    }
    Ok(prepared)
}

/// The build log as a file. A line that can't be written is lost, and the build goes on.
struct FileLog {
    file: File,
    reporter: Reporter,
}

impl FileLog {
    fn open(path: &Path, reporter: Reporter) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().create(true).append(true).open(path)?, reporter })
    }
}

impl BuildLog for FileLog {
    fn line(&mut self, line: &str) {
        if let Err(error) = self.file.write_all(format!("{line}\n").as_bytes()) {
            tracing::warn!(%error, "a line of the build log is lost");
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.reporter.progress(Some(progress.clone()));
    }
}

impl Drop for FileLog {
    /// The preparation is over.
    fn drop(&mut self) {
        self.reporter.progress(None);
    }
}

async fn working_directory(attempt: &Attempt) -> Result<(), Cause> {
    let failed = |message: String| Cause::SnapshotFailed { message };
    let work = attempt.folder.work();
    if work.is_dir() {
        return Ok(());
    }
    let Some(expected) = &attempt.order.snapshot_sha256 else {
        return fs::create_dir(&work).map_err(|error| failed(format!("the working directory cannot be made: {error}")));
    };
    let limits: ArchiveLimits = serde_json::from_value(attempt.order.archive_limits.clone())
        .map_err(|error| failed(format!("the limits of archives in the order cannot be read: {error}")))?;
    let zip = attempt.folder.temporary().join("snapshot.zip");
    fetch(attempt, expected, &zip).await?;
    trainyard_store::fail_point!("agent.snapshot_fetched");
    let task = tokio::task::spawn_blocking(move || {
        let file = File::open(&zip).map_err(|error| machine_failed(format!("the snapshot cannot be read: {error}")))?;
        match trainyard_store::archive::unpack(file, &limits, &work) {
            Err(error) if error.kind() == ErrorKind::StorageFull => return Err(machine_failed(error.message().to_owned())),
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error.message().to_owned())),
            _ => {}
        }
        // Not needed any more; if it stays it goes with the folder.
        let _ = fs::remove_file(&zip);
        Ok(())
    });
    task.await.unwrap_or_else(|_| Err(machine_failed("unpacking broke off".into())))?;
    trainyard_store::fail_point!("agent.unpacked");
    Ok(())
}

/// The machine is to blame, on another one or later it may go: the disk is full, say.
fn machine_failed(message: String) -> Cause {
    Cause::StartFailed { message, by_definition: false }
}

/// Fetches the snapshot until it is whole.
async fn fetch(attempt: &Attempt, expected: &str, zip: &Path) -> Result<(), Cause> {
    let failed = |message: String| Cause::SnapshotFailed { message };
    let mut pause = None;
    let mut tries = 0;
    loop {
        let response = match attempt.client.snapshot().await {
            Ok(response) => response,
            Err(refusal) => return Err(failed(refusal.to_string())),
        };
        match receive(response, zip).await {
            Ok(found) if found == expected => return Ok(()),
            Ok(found) => {
                tries += 1;
                tracing::warn!(found, expected, "the snapshot that arrived is another one");
                if tries == HASH_TRIES {
                    return Err(failed(format!("what the server sends has the SHA-256 {found} instead of {expected}")));
                }
            }
            Err(Broken::Stream(reason)) => tracing::warn!(reason, "the snapshot broke off; fetching it again"),
            Err(Broken::Disk(error)) => return Err(machine_failed(format!("`{}` cannot be written: {error}", zip.display()))),
        }
        if let Err(refusal @ Refusal::Abandoned) = attempt.client.pause(&mut pause).await {
            return Err(failed(refusal.to_string()));
        }
    }
}

enum Broken {
    Stream(String),
    Disk(io::Error),
}

/// Writes the body to `zip`; gives its SHA-256.
async fn receive(response: Response, zip: &Path) -> Result<String, Broken> {
    let mut file = File::create(zip).map_err(Broken::Disk)?;
    let mut hash = Sha256::new();
    let mut body = response.bytes_stream();
    loop {
        match tokio::time::timeout(STALL_TIMEOUT, body.next()).await {
            Ok(Some(Ok(bytes))) => {
                hash.update(&bytes);
                file.write_all(&bytes).map_err(Broken::Disk)?;
            }
            Ok(None) => return Ok(hex::encode(hash.finalize())),
            Ok(Some(Err(error))) => return Err(Broken::Stream(chain(&error))),
            Err(_) => return Err(Broken::Stream(format!("nothing came for {} seconds", STALL_TIMEOUT.as_secs()))),
        }
    }
}

/// The name of this machine.
pub(crate) fn node_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}
