//! What is in the cache, and what goes when it gets too big.
//!
//! An environment goes only while nobody builds it, nobody uses it and nobody has pinned it, and it goes at one stroke: it is renamed
//! into the trash under both of its locks. So a crash at any instant leaves it whole or gone, and what lies in the trash is removed
//! by the next one who tidies. Whoever was about to use it builds it again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use trainyard_core::{Error, ErrorKind, Result, ids::EnvironmentHash};

use super::{
    cache::{BuilderLock, Cache},
    downloads::{self, Downloads, How},
    measure::Measured,
    settings::EnvironmentSettings,
    usage::{Unused, is_in_use},
};

/// Notes that were not written for this long are removed; they only save time.
const NOTE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// An environment in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedEnvironment {
    /// Its identity.
    pub hash: EnvironmentHash,
    /// What it takes on the disk, files that are shared with the downloads included.
    pub bytes: u64,
    /// When a run last began or ended to use it, in microseconds since the epoch.
    pub last_used_us: i64,
    /// Whether it stays whatever happens.
    pub pinned: bool,
    /// Whether a run uses it now.
    pub in_use: bool,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PruneOptions {
    /// Environments go, the least recently used ones first, until the rest takes no more bytes than this. `None`: what the
    /// settings say.
    pub max_bytes: Option<u64>,
    /// Environments that were not used for this many seconds go.
    pub unused_for_seconds: Option<u64>,
    /// All downloads go that can be fetched again; else only what is more than the settings allow.
    pub downloads: bool,
    /// What archives brought goes, too.
    pub imported: bool,
    /// Nothing goes; what would go is told.
    pub dry_run: bool,
}

/// What went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The environments that went, or would go.
    pub removed: Vec<CachedEnvironment>,
    /// What they took.
    pub freed_bytes: u64,
    /// How many environments are left, and what they take.
    pub kept: u64,
    /// See `kept`.
    pub kept_bytes: u64,
    /// What the downloads took that went, or would go.
    pub downloads_bytes: u64,
    /// What the downloads take that are left, or would be.
    pub downloads_kept: Downloads,
}

/// The environments in the cache, the least recently used one first.
pub fn cached(settings: &EnvironmentSettings) -> Vec<CachedEnvironment> {
    Cache::at(&settings.cache_dir).map(|cache| inventory(&cache)).unwrap_or_default()
}

/// What the downloads take that environments are made of. Walks through all of them.
pub fn downloads(settings: &EnvironmentSettings) -> Downloads {
    Cache::at(&settings.cache_dir).map(|cache| downloads::measure(&cache)).unwrap_or_default()
}

/// Keeps an environment from being removed. [`ErrorKind::NotFound`] if it is not in the cache.
pub fn pin(settings: &EnvironmentSettings, hash: &EnvironmentHash) -> Result<()> {
    let cache = open(settings)?;
    if !cache.is_complete(hash) {
        return Err(Error::new(ErrorKind::NotFound, format!("environment {hash} is not in the cache {}", cache.root().display())));
    }
    pin_in(&cache, hash).map_err(failed("failed to pin the environment"))
}

/// Lets an environment be removed again when room is needed; nothing happens if it was not pinned.
pub fn unpin(settings: &EnvironmentSettings, hash: &EnvironmentHash) -> Result<()> {
    match fs::remove_file(open(settings)?.pin_file(hash)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("failed to unpin the environment")(error)),
        _ => Ok(()),
    }
}

/// Removes what is not needed. Blocks as long as removing takes.
pub fn prune(settings: &EnvironmentSettings, options: &PruneOptions) -> Result<Pruned> {
    let cache = open(settings)?;
    let now = SystemTime::now();
    let limit = options.max_bytes.unwrap_or(if settings.max_bytes == 0 { u64::MAX } else { settings.max_bytes });
    let environments = inventory(&cache);
    let is_old = |environment: &CachedEnvironment| {
        options.unused_for_seconds.is_some_and(|seconds| age(environment, now) >= Duration::from_secs(seconds))
    };
    let mut kept_bytes: u64 = environments.iter().map(|environment| environment.bytes).sum();
    let mut pruned = Pruned::default();
    for environment in environments {
        let goes = !environment.pinned && !environment.in_use && (is_old(&environment) || kept_bytes > limit);
        if goes && (options.dry_run || evict(&cache, &environment.hash).map_err(failed("failed to remove an environment"))?) {
            kept_bytes -= environment.bytes;
            pruned.freed_bytes += environment.bytes;
            pruned.removed.push(environment);
        } else {
            pruned.kept += 1;
        }
    }
    pruned.kept_bytes = kept_bytes;
    let unremovable = failed("failed to remove downloads");
    let how = if options.dry_run { How::Dry } else { How::Really };
    let download_limit = if options.downloads { 0 } else { limit_of_downloads(settings) };
    let before = downloads::measure(&cache);
    pruned.downloads_kept = before;
    let gone = downloads::make_room(&cache, download_limit, how).map_err(&unremovable)?;
    pruned.downloads_kept.subtract(&gone);
    pruned.downloads_bytes = gone.removable();
    if options.imported {
        let gone = downloads::clear_imported(&cache, how).map_err(&unremovable)?;
        pruned.downloads_kept.imported = before.imported.saturating_sub(gone);
        pruned.downloads_bytes += gone;
    }
    if !options.dry_run {
        tidy(&cache);
    }
    Ok(pruned)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::new(ErrorKind::Internal, format!("{what}: {error}"))
}

fn open(settings: &EnvironmentSettings) -> Result<Cache> {
    Cache::at(&settings.cache_dir).map_err(|error| Error::invalid(error.to_string()))
}

pub(super) fn pin_in(cache: &Cache, hash: &EnvironmentHash) -> io::Result<()> {
    let pin = cache.pin_file(hash);
    pin.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(pin, "")
}

/// Removes, after a build, the least recently used environments until the rest takes no more than `max_bytes`; gives a sentence for each
/// one. What was just built, what is used and what is pinned stays, whatever it takes.
pub(super) fn make_room(cache: &Cache, max_bytes: u64, built: &EnvironmentHash) -> Vec<String> {
    if max_bytes == 0 {
        return Vec::new();
    }
    let environments = inventory(cache);
    let mut bytes: u64 = environments.iter().map(|environment| environment.bytes).sum();
    let now = SystemTime::now();
    let mut told = Vec::new();
    for environment in environments {
        if bytes <= max_bytes {
            break;
        }
        if environment.hash == *built || environment.pinned || environment.in_use {
            continue;
        }
        let (hash, days) = (&environment.hash, age(&environment, now).as_secs() / 86_400);
        match evict(cache, hash) {
            Ok(true) => {
                bytes -= environment.bytes;
                let megabytes = environment.bytes >> 20;
                told.push(format!(
                    "environment {hash} ({megabytes} MB, not used for {days} days) was removed: environments may take {max_bytes} bytes (max_bytes)"
                ));
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%hash, %error, "an environment could not be removed to make room"),
        }
    }
    told
}

/// The right to take an environment out of the cache, as long as it is held.
pub(super) struct Evictable {
    _builder: BuilderLock,
    _unused: Unused,
}

impl Evictable {
    /// `None`: somebody builds or uses it, or it is pinned.
    pub(super) fn claim(cache: &Cache, hash: &EnvironmentHash) -> io::Result<Option<Self>> {
        let Some(builder) = BuilderLock::try_acquire(&cache.lock_file(hash))? else { return Ok(None) };
        let Some(unused) = Unused::claim(&cache.use_file(hash))? else { return Ok(None) };
        let claimed = Self { _builder: builder, _unused: unused };
        Ok(Some(claimed).filter(|_| !cache.pin_file(hash).exists()))
    }

    /// Takes it out. It is gone at once, and removing its files goes on in the background.
    pub(super) fn evict(self, cache: &Cache, hash: &EnvironmentHash) -> io::Result<()> {
        if let Some(trash) = cache.trash(hash)? {
            discard(trash);
        }
        Ok(())
    }
}

/// Takes an environment out of the cache; `false`: that is not possible now.
pub(super) fn evict(cache: &Cache, hash: &EnvironmentHash) -> io::Result<bool> {
    let claimed = Evictable::claim(cache, hash)?;
    claimed.map_or(Ok(false), |claimed| claimed.evict(cache, hash).map(|()| true))
}

/// Everything complete in the cache, the least recently used one first.
fn inventory(cache: &Cache) -> Vec<CachedEnvironment> {
    let mut found: Vec<CachedEnvironment> =
        hashes(cache).into_iter().filter(|hash| cache.is_complete(hash)).map(|hash| describe(cache, hash)).collect();
    found.sort_by_key(|environment| environment.last_used_us);
    found
}

fn hashes(cache: &Cache) -> Vec<EnvironmentHash> {
    names(&cache.root_of_environments()).iter().filter_map(|name| name.parse().ok()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn describe(cache: &Cache, hash: EnvironmentHash) -> CachedEnvironment {
    let folder = cache.environment(&hash);
    let bytes = cache.measured(&hash).or_else(|| Measured::of(&folder).ok()).map_or(0, |measured| measured.bytes);
    let used = modified(&cache.use_file(&hash)).into_iter().chain(modified(&folder.join(".complete"))).max();
    let used = used.and_then(|used| used.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    CachedEnvironment {
        bytes,
        last_used_us: i64::try_from(used.as_micros()).unwrap_or(i64::MAX),
        pinned: cache.pin_file(&hash).exists(),
        in_use: is_in_use(&cache.use_file(&hash)),
        hash,
    }
}

/// When a file or folder was last written; `None`: it is not there.
pub(super) fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn age(environment: &CachedEnvironment, now: SystemTime) -> Duration {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_micros(u64::try_from(environment.last_used_us).unwrap_or(0)))
}

/// How many bytes of downloads stay. Where there is no network nothing could be fetched again.
fn limit_of_downloads(settings: &EnvironmentSettings) -> u64 {
    if settings.max_bytes == 0 || settings.offline { u64::MAX } else { settings.max_bytes }
}

/// Removes in the background what dead builders, interrupted removals and time have left behind, and downloads if they take more than the
/// settings allow.
pub(super) fn tidy_in_background(cache: &Cache, settings: &EnvironmentSettings) {
    let (cache, limit) = (cache.clone(), limit_of_downloads(settings));
    std::thread::spawn(move || {
        tidy(&cache);
        if limit != u64::MAX {
            downloads::make_room_sometimes(&cache, limit);
        }
    });
}

fn tidy(cache: &Cache) {
    for name in names(&cache.trash_folder()) {
        remove(&cache.trash_folder().join(name));
    }
    for hash in hashes(cache) {
        if !cache.is_complete(&hash)
            && let Ok(Some(_builder)) = BuilderLock::try_acquire(&cache.lock_file(&hash))
            && let Ok(Some(_unused)) = Unused::claim(&cache.use_file(&hash))
            // Somebody may have finished it before the locks were free.
            && !cache.is_complete(&hash)
            && !cache.pin_file(&hash).exists()
            && let Ok(Some(trash)) = cache.trash(&hash)
        {
            remove(&trash);
        }
    }
    for kind in ["keys", "interpreters"] {
        let folder = cache.root().join(kind);
        for name in names(&folder) {
            let note = folder.join(name);
            if modified(&note).and_then(|written| written.elapsed().ok()).is_some_and(|age| age > NOTE_LIFETIME) {
                let _ = fs::remove_file(note);
            }
        }
    }
}

fn discard(trash: PathBuf) {
    std::thread::spawn(move || remove(&trash));
}

/// Removes what is in the trash.
pub(super) fn remove(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        // Two may be at the same.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "something in the trash of environments can not be removed now");
        }
        _ => {}
    }
}
