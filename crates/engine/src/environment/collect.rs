//! Collects the files that a lock names, so that an archive can carry them to a machine without a network: conda packages as their channels
//! have them, and wheels. What is only there as a source is built here, where there is a network.
//!
//! Every file is checked against the lock. The lock that travels along names exactly these files: what was built here has its own hash, and
//! nothing comes from a repository any more.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{process::Command, sync::mpsc};
use tokio_util::sync::CancellationToken;
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentLock, LockedPackage, PipList, Progress, requirement::normalised_name},
};

use super::{
    bundle::{digest_of, failed},
    cache::Cache,
    command::{BuildLog, Console, ask, command, run_logged},
    conda::Site,
    host::Host,
    index::IndexSources,
    prepare::PrepareError,
    pylock::exact_line,
    settings::EnvironmentSettings,
    uv,
};

/// How many of pip's last lines an error repeats.
const LAST_LINES: usize = 6;

/// The files of a lock.
pub(super) struct Collected {
    /// The lock as it can be followed with these files alone.
    pub(super) lock: EnvironmentLock,
    /// A folder with the files for pip.
    pub(super) wheels: PathBuf,
    /// A folder with the conda packages, each at `SHA256/NAME`.
    pub(super) conda: PathBuf,
}

impl Collected {
    /// Collects the files for the environment that is built at `prefix` from `lock` into `folder`.
    pub(super) async fn of(
        settings: &EnvironmentSettings,
        (prefix, lock): (&Path, &EnvironmentLock),
        folder: &Path,
        progress: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Self> {
        let (wheels, conda) = (folder.join("wheels"), folder.join("conda"));
        for folder in [&wheels, &conda] {
            fs::create_dir(folder).map_err(failed("a folder for the downloads cannot be made"))?;
        }
        let host = Host::current();
        let mut lock = lock.clone();
        collect_conda((&host, settings), &mut lock, &conda, progress).await.map_err(unavailable)?;
        if !lock.packages.is_empty() {
            progress(&Progress::step("downloading wheels"));
            let (mut log, cancel) = (Words(progress), CancellationToken::new());
            let mut console = Console::new(&mut log, &cancel);
            let pip = Pip { host: &host, settings, cache: Cache::at(&settings.cache_dir).map_err(unavailable)?, prefix, folder };
            pip.collect(&lock, &wheels, &mut console).await.map_err(unavailable)?;
            lock = with_hashes_of(lock, &wheels)?;
        }
        Ok(Self { lock, wheels, conda })
    }
}

fn unavailable(error: PrepareError) -> Error {
    if error.is_machines() {
        return Error::new(ErrorKind::StorageFull, error.to_string());
    }
    Error::new(ErrorKind::Unsupported, format!("the files of the lock cannot be had: {error}"))
}

/// Progress is drawn; what programs say is repeated in errors only.
struct Words<'a>(&'a mut (dyn FnMut(&Progress) + Send));

impl BuildLog for Words<'_> {
    fn line(&mut self, line: &str) {
        tracing::debug!(line, "an export");
    }

    fn progress(&mut self, progress: &Progress) {
        (self.0)(progress);
    }
}

/// Fetches the conda packages and fills their hashes in.
async fn collect_conda(
    (host, settings): (&Host, &EnvironmentSettings),
    lock: &mut EnvironmentLock,
    folder: &Path,
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> std::result::Result<(), PrepareError> {
    if lock.conda.is_empty() {
        return Ok(());
    }
    let site = Site::of(host, settings)?;
    let (sender, mut told) = mpsc::unbounded_channel();
    let watch: trainyard_conda::Watch = Arc::new(move |progress| {
        // Nobody listens any more once the work was given up.
        let _ = sender.send(progress);
    });
    let wanted = lock.conda.clone();
    let fetching = trainyard_conda::fetch(&wanted, folder, site.access(), &watch);
    tokio::pin!(fetching);
    let hashes = loop {
        tokio::select! {
            biased;
            Some(now) = told.recv() => progress(&now),
            hashes = &mut fetching => break hashes?,
        }
    };
    for (package, sha256) in lock.conda.iter_mut().zip(hashes) {
        package.sha256 = Some(sha256);
    }
    Ok(())
}

/// The pip side of a lock.
struct Pip<'a> {
    host: &'a Host,
    settings: &'a EnvironmentSettings,
    cache: Cache,
    prefix: &'a Path,
    folder: &'a Path,
}

impl Pip<'_> {
    /// Fetches the files: wheels as they are, checked against the hashes; what is only there as a source is built.
    async fn collect(&self, lock: &EnvironmentLock, wheels: &Path, console: &mut Console<'_>) -> std::result::Result<(), PrepareError> {
        let index = IndexSources::resolve(self.host, self.settings);
        console.hide(index.secrets());
        let python = self.python_with_pip(&index, console).await?;
        let list = self.folder.join("exact.txt");
        let lines: String = lock.packages.iter().map(|package| format!("{}\n", exact_line(package))).collect();
        fs::write(&list, lines).map_err(|error| PrepareError::disk("the list of files cannot be written", error))?;
        let mut pip = command(self.host, &python);
        pip.args(["-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--wheel-dir"]);
        pip.arg(wheels).arg("-r").arg(&list);
        index.apply_to_pip(&mut pip, &PipList::parse(&lock.pip_options)?.options);
        succeed(pip, console).await
    }

    /// The environment's own Python where it has pip; else one like it, in a folder beside, that has.
    async fn python_with_pip(&self, index: &IndexSources, console: &mut Console<'_>) -> std::result::Result<PathBuf, PrepareError> {
        let own = self.prefix.join("bin/python");
        let mut question = command(self.host, &own);
        question.args(["-m", "pip", "--version"]);
        if ask(question, console.cancel).await?.0.success() {
            return Ok(own);
        }
        let uv = uv::locate(self.host, self.settings, console).await?;
        let beside = self.folder.join("pip");
        let call = |words: &[&str]| {
            let mut call = command(self.host, &uv.path);
            call.args(words).env("UV_PYTHON_DOWNLOADS", "never").env("UV_NO_PROGRESS", "1").env("NO_COLOR", "1");
            if self.host.var("UV_CACHE_DIR").is_none() {
                call.env("UV_CACHE_DIR", self.cache.packages());
            }
            index.apply_policy(&mut call, self.host);
            call
        };
        let mut make = call(&["venv", "--no-project", "--python"]);
        make.arg(&own).arg(&beside);
        succeed(make, console).await?;
        let python = beside.join("bin/python");
        let mut install = call(&["pip", "install", "--python"]);
        install.arg(&python);
        index.apply(&mut install, &[]);
        install.arg("pip");
        succeed(install, console).await?;
        Ok(python)
    }
}

async fn succeed(command: Command, console: &mut Console<'_>) -> std::result::Result<(), PrepareError> {
    let ended = run_logged(command, console).await?;
    if ended.status.success() {
        return Ok(());
    }
    let last: Vec<&str> = ended.stderr.iter().rev().map(|line| line.trim()).filter(|line| !line.is_empty()).take(LAST_LINES).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(PrepareError::Resolver(last.join("\n")))
}

/// The lock as it can be followed with the files in `folder` alone.
fn with_hashes_of(mut lock: EnvironmentLock, folder: &Path) -> Result<EnvironmentLock> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed("the downloads cannot be read"))? {
        let path = entry.map_err(failed("the downloads cannot be read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let Some((package, _)) = name.split_once('-') else { continue };
        let digest = digest_of(&path).map_err(failed(format!("`{name}` cannot be read")))?;
        found.insert(normalised_name(package), format!("sha256:{digest}"));
    }
    for package in &mut lock.packages {
        let Some(hash) = found.get(&package.name) else {
            return Err(Error::new(ErrorKind::Unsupported, format!("pip brought no file for {} {}", package.name, package.version)));
        };
        let LockedPackage { url, hashes, .. } = package;
        if url.take().is_some() {
            hashes.clear();
        }
        if !hashes.contains(hash) {
            hashes.push(hash.clone());
        }
    }
    // Where the files come from now is the folder.
    lock.pip_options.retain(|option| option == "--pre");
    Ok(lock)
}
