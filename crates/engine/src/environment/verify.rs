//! Whether an environment in the cache is still what was built, and what is done when it is not.
//!
//! Its files are hard links to what the caches of uv and of conda packages hold, wherever the file system has such: a file that is rewritten
//! in place is rewritten for every environment that shares it, and for the next build. So an environment that was changed is built again
//! only after the downloads of the packages that the change was found in were thrown away.
//!
//! [`verify()`] reads every file and is for people. A use of a cached environment may not cost the time of such a walk: the walk is
//! made beside the first use in a day, and what it finds counts from the next use on ([`watch()`]).

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use trainyard_conda::kept_package;
use trainyard_core::{Error, ErrorKind, Result, ids::EnvironmentHash};

use super::{
    bundle::failed,
    cache::Cache,
    command::{Console, command, run_logged},
    downloads::take_away,
    evict::{Evictable, modified, remove},
    host::Host,
    prepare::PrepareError,
    record::{Difference, Suspects, suspects},
    settings::EnvironmentSettings,
    usage::{InUse, Unused},
    uv,
};

/// How often an environment that is used is looked through.
const PAUSE: Duration = Duration::from_secs(24 * 3600);

/// How long somebody who asks for a repair waits for those who build.
const PATIENCE: Duration = Duration::from_secs(60);

/// The kind of notes about environments that were found changed.
const CHANGED: &str = "changed";

/// What looking through an environment gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Number of files that were recorded when it was built.
    pub files: u64,
    /// What differs, by path.
    pub differences: Vec<Difference>,
    /// Whether it was removed because of that: the next use builds it again.
    pub removed: bool,
}

/// What is done with an environment that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing; it is only told.
    No,
    /// It is removed, and so are the downloads that share its files: the next use builds it again.
    Remove,
}

/// What a walk beside a use found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Changed {
    /// The first few of the files.
    pub(super) files: Vec<String>,
    suspects: Suspects,
    /// Of which building of it this was found.
    built_ns: i128,
}

/// Compares an environment with what was recorded when it was built. Blocks as long as reading it takes. [`ErrorKind::NotFound`] if it is
/// not in the cache, [`ErrorKind::Unsupported`] if nothing was recorded, [`ErrorKind::Conflict`] if it is to be removed and is used or pinned.
pub async fn verify(settings: &EnvironmentSettings, hash: &EnvironmentHash, repair: Repair) -> Result<Verified> {
    let cache = Cache::at(&settings.cache_dir).map_err(|error| Error::invalid(error.to_string()))?;
    let (reader, read_hash) = (cache.clone(), hash.clone());
    let looked = tokio::task::spawn_blocking(move || look(&reader, &read_hash)).await.map_err(Error::internal)?;
    let (files, differences, suspects) = looked?;
    let mut verified = Verified { files, differences, removed: false };
    if verified.differences.is_empty() || repair == Repair::No {
        return Ok(verified);
    }
    let cannot = || failed("the environment cannot be removed");
    let Some(claimed) = Evictable::claim(&cache, hash).map_err(cannot())? else {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "environment {hash} differs from what was built in {} files and was not removed: a run uses it, or it is pinned (an imported one \
                 is); cancel the run or unpin it, and ask again",
                verified.differences.len()
            ),
        ));
    };
    let (mut log, cancel) = (Vec::new(), CancellationToken::new());
    let mut console = Console::new(&mut log, &cancel);
    // Before the environment: whoever finds it missing builds it from them.
    let host = Host::current();
    let discarded = tokio::time::timeout(PATIENCE, discard(&host, (&cache, settings), &suspects, &mut console)).await;
    let Ok(discarded) = discarded else {
        let words = "was not removed: its downloads have to go first, and somebody builds with them; ask again when that build is over";
        return Err(Error::new(ErrorKind::Conflict, format!("environment {hash} {words}")));
    };
    discarded.map_err(|error| {
        Error::new(ErrorKind::Internal, format!("the downloads that share the files of environment {hash} cannot be removed: {error}"))
    })?;
    claimed.evict(&cache, hash).map_err(cannot())?;
    verified.removed = true;
    Ok(verified)
}

fn look(cache: &Cache, hash: &EnvironmentHash) -> Result<(u64, Vec<Difference>, Suspects)> {
    let _in_use = InUse::wait(cache.use_file(hash)).map_err(failed("the environment cannot be kept in its place"))?;
    if !cache.is_complete(hash) {
        return Err(Error::not_found(format!("environment {hash} is not in the cache {}", cache.root().display())));
    }
    let folder = cache.environment(hash);
    let record = cache.record(hash).ok_or_else(|| {
        let words = "was built by an older server, which recorded nothing that it could be compared with; build it again";
        Error::new(ErrorKind::Unsupported, format!("environment {hash} {words}"))
    })?;
    let unreadable = || failed(format!("the environment {} cannot be read", folder.display()));
    let differences = record.differences(&folder).map_err(unreadable())?;
    let suspects = suspects(&folder, &differences).map_err(unreadable())?;
    Ok((record.len() as u64, differences, suspects))
}

/// What a walk beside an earlier use found changed.
pub(super) fn found_changed(cache: &Cache, hash: &EnvironmentHash) -> Option<Changed> {
    cache.recall::<Changed>(CHANGED, hash.as_str()).filter(|changed| Some(changed.built_ns) == built_ns(cache, hash))
}

/// When its files were recorded: what tells one building of an environment from the next.
fn built_ns(cache: &Cache, hash: &EnvironmentHash) -> Option<i128> {
    let recorded = modified(&cache.record_file(hash))?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i128::try_from(recorded.as_nanos()).ok()
}

/// Nothing is known against the environment any more.
pub(super) fn forget(cache: &Cache, hash: &EnvironmentHash) {
    // It is not there but for an environment that was found changed.
    let _ = std::fs::remove_file(cache.root().join(CHANGED).join(format!("{hash}.json")));
}

/// Looks through an environment in the background, unless somebody did so within a day. It costs its use nothing, and whoever ends before the
/// walk does leaves it to the next one.
pub(super) fn watch(cache: &Cache, hash: &EnvironmentHash) {
    let due = modified(&walked(cache, hash)).and_then(|walked| walked.elapsed().ok()).is_none_or(|age| age > PAUSE);
    if due {
        let (cache, hash) = (cache.clone(), hash.clone());
        std::thread::spawn(move || walk(&cache, &hash));
    }
}

/// Its time is when the environment was last looked through.
fn walked(cache: &Cache, hash: &EnvironmentHash) -> PathBuf {
    cache.root().join("uses").join(format!("{hash}.walked"))
}

/// The walk; what it finds is noted for the next use. It keeps nobody from removing the environment meanwhile.
pub(super) fn walk(cache: &Cache, hash: &EnvironmentHash) {
    let place = walked(cache, hash);
    // One at a time. Where nothing can be written nothing was changed either.
    let Ok(Some(_alone)) = Unused::claim(&place) else { return };
    let (Some(built_ns), Some(record)) = (built_ns(cache, hash), cache.record(hash)) else { return };
    let folder = cache.environment(hash);
    let found = record.changes(&folder).and_then(|changes| Ok((suspects(&folder, &changes)?, changes)));
    match found {
        Ok((_, changes)) if changes.is_empty() => {}
        Ok((suspects, changes)) => {
            let files: Vec<String> = changes.into_iter().map(|change| change.path).collect();
            tracing::warn!(%hash, files = files.len(), first = files[0], "files of a cached environment were changed since it was built");
            cache.note(CHANGED, hash.as_str(), &Changed { files: files.into_iter().take(100).collect(), suspects, built_ns });
        }
        Err(error) => tracing::debug!(%hash, %error, "a cached environment could not be looked through"),
    }
    let told = File::open(&place).and_then(|place| place.set_modified(SystemTime::now()));
    if let Err(error) = told {
        tracing::debug!(%hash, %error, "that an environment was looked through is not noted");
    }
}

/// Removes the downloads of what was found changed, so that the next build does not link the same files again. Comes before the environment is
/// removed: a process that dies in between leaves it to the next use, which finds the same.
pub(super) async fn discard_downloads(
    host: &Host,
    (cache, settings): (&Cache, &EnvironmentSettings),
    changed: &Changed,
    console: &mut Console<'_>,
) -> std::result::Result<(), PrepareError> {
    discard(host, (cache, settings), &changed.suspects, console).await
}

async fn discard(
    host: &Host,
    (cache, settings): (&Cache, &EnvironmentSettings),
    suspects: &Suspects,
    console: &mut Console<'_>,
) -> std::result::Result<(), PrepareError> {
    if *suspects == Suspects::default() {
        return Ok(());
    }
    // Somebody else may be linking these very files.
    let alone = Unused::wait(&cache.downloads_lock(), console.cancel).await?;
    for package in &suspects.conda {
        let kept = kept_package(&cache.conda_packages(), package);
        let gone = take_away(cache, &kept.folder);
        if let Some(trash) = gone.map_err(|error| PrepareError::disk("a changed conda package cannot be removed", error))? {
            remove(&trash);
        }
    }
    // uv has a lock of its own, and may have to be installed first.
    drop(alone);
    if suspects.pip.is_empty() || !downloads_of_uv(host, cache).is_dir() {
        return Ok(());
    }
    let uv = uv::locate(host, settings, console).await?;
    let mut clean = command(host, &uv.path);
    clean.args(["cache", "clean"]).args(&suspects.pip).env("UV_CACHE_DIR", downloads_of_uv(host, cache));
    let ended = run_logged(clean, console).await?;
    if ended.status.success() {
        return Ok(());
    }
    Err(PrepareError::Installer(format!("uv could not remove what it keeps of the changed packages: {}", ended.stderr.join("\n"))))
}

fn downloads_of_uv(host: &Host, cache: &Cache) -> PathBuf {
    host.var("UV_CACHE_DIR").map_or_else(|| cache.packages(), |folder| Path::new(folder).to_owned())
}
