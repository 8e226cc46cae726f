//! Environments given as a lock: exactly that, or a failure that says what differs.
//!
//! An environment that was built here before and came to the same list is the one, whatever it was asked for as. Else the list is installed
//! as it is, without asking what the packages want: they had it when the lock was made.

use trainyard_core::{
    environment::{EnvironmentLock, HashContext, PipList, PythonVersion},
    ids::EnvironmentHash,
};

use super::{
    build::Build,
    cache::{BuilderLock, Cache, Remembered},
    command::Console,
    host::Host,
    index::IndexSources,
    interpreter::{Interpreter, Landscape},
    prepare::{BUILDER, Origin, PrepareError, Prepared, interpreters},
    settings::EnvironmentSettings,
    uv,
};

/// Makes the environment ready that `lock` describes, on the machine itself. One that stands on an image is refused: its packages are half of it.
pub(super) async fn prepare(
    host: &Host,
    lock: &EnvironmentLock,
    settings: &EnvironmentSettings,
    console: &mut Console<'_>,
) -> Result<Prepared, PrepareError> {
    if let Some(image) = &lock.image {
        return Err(PrepareError::Lock(format!(
            "the lock was made on the image `{}` ({}), and the run goes into no container: let it go into that image, or leave the lock out",
            image.reference, image.digest
        )));
    }
    let cache = Cache::at(&settings.cache_dir)?;
    if let Some(hash) = built_before(&cache, lock)?
        && let Some(found) = cache.complete(&hash)
    {
        console.line(&format!("environment {hash} is what the lock says; it was built before"));
        return Ok(ready(&cache, hash, found, Origin::Cache));
    }
    if !lock.conda.is_empty() {
        return super::conda::prepare_locked(host, lock, settings, console).await;
    }
    let index = IndexSources::resolve(host, settings);
    console.hide(index.secrets());
    let interpreter = interpreter(host, &cache, lock, console).await?;
    let context = HashContext { interpreter: &lock.python, platform: &interpreter.platform, indexes: &[], builder: BUILDER };
    let hash = nameless(lock).canonical_hash(&context)?;
    if let Some(found) = cache.complete(&hash) {
        return Ok(ready(&cache, hash, found, Origin::Cache));
    }
    let held = BuilderLock::acquire(&cache.lock_file(&hash), console).await?;
    if let Some(found) = cache.complete(&hash) {
        return Ok(ready(&cache, hash, found, Origin::Cache));
    }
    let count = lock.packages.len();
    console.line(&format!("building environment {hash} from a lock: Python {}, {count} packages", lock.python));
    let uv = uv::locate(host, settings, console).await?;
    let list = PipList { options: PipList::parse(&lock.pip_options)?.options, requirements: Vec::new() };
    let build = Build { host, cache: &cache, hash: &hash, interpreter: &interpreter, list: &list, index: &index, uv: &uv, lock: &held };
    let built = build.run_exactly(&lock.packages, console).await.map_err(|error| match error {
        PrepareError::Resolver(words) => PrepareError::Lock(format!("the lock can not be followed to the letter: {words}")),
        error => error,
    })?;
    console.line(&format!("environment {hash} is ready: Python {}, {count} packages", lock.python));
    Ok(ready(&cache, hash, built, Origin::Built))
}

fn ready(cache: &Cache, hash: EnvironmentHash, lock: EnvironmentLock, origin: Origin) -> Prepared {
    let unchecked: Vec<&str> =
        lock.packages.iter().filter(|package| package.hashes.is_empty()).map(|package| package.name.as_str()).collect();
    let warning = (!unchecked.is_empty()).then(|| {
        format!("the lock has no hashes of {}: their versions are what it says, their files were not checked", unchecked.join(", "))
    });
    Prepared { warnings: warning.into_iter().collect(), ..Prepared::in_cache(cache, hash, lock, origin) }
}

/// The lock without what does not matter: which program followed it.
fn nameless(lock: &EnvironmentLock) -> EnvironmentLock {
    EnvironmentLock { builder: String::new(), ..lock.clone() }
}

/// What a lock is known by, whatever environment it belongs to.
fn name_of(lock: &EnvironmentLock) -> Result<EnvironmentHash, PrepareError> {
    let context = HashContext { interpreter: "", platform: &lock.platform, indexes: &[], builder: "lock" };
    Ok(nameless(lock).canonical_hash(&context)?)
}

/// Notes which environment came to this lock.
pub(super) fn note_built(cache: &Cache, hash: &EnvironmentHash, lock: &EnvironmentLock) {
    if let Ok(name) = name_of(lock) {
        cache.remember(&name, &Remembered { hash: hash.clone(), warnings: Vec::new() });
    }
}

fn built_before(cache: &Cache, lock: &EnvironmentLock) -> Result<Option<EnvironmentHash>, PrepareError> {
    let Some(Remembered { hash, .. }) = cache.remembered(&name_of(lock)?) else { return Ok(None) };
    let same = cache.lock_of(&hash).is_some_and(|found| nameless(&found) == nameless(lock));
    Ok(same.then_some(hash))
}

/// The very Python of the lock, on the kind of machine that the lock was made on.
async fn interpreter(host: &Host, cache: &Cache, lock: &EnvironmentLock, console: &Console<'_>) -> Result<Interpreter, PrepareError> {
    let asked: PythonVersion =
        lock.python.parse().map_err(|_| PrepareError::Lock(format!("the lock names no version of Python but `{}`", lock.python)))?;
    let at_hand = interpreters(host, cache, &Landscape::of(host), console).await?;
    let Some(interpreter) = at_hand.exactly(asked) else {
        return Err(PrepareError::Lock(format!(
            "the lock was made with Python {asked}, which is not at hand on this node (at hand: {}); install it, or submit what the lock was made from",
            at_hand.shown()
        )));
    };
    if !fits(&lock.platform, &interpreter.platform) {
        return Err(PrepareError::Lock(format!(
            "the lock was made on {}, and this node is {}: the files of the one are not those of the other; submit what the lock was made from",
            lock.platform, interpreter.platform
        )));
    }
    Ok(interpreter)
}

/// Whether files for one platform serve on the other: the same system, processor and kind of C library. Whether a newer release of the
/// library is needed than there is, uv finds out by the names of the files. Locks of older servers do not say.
pub(super) fn fits(lock: &str, node: &str) -> bool {
    let kind = |platform: &str| -> (String, bool) {
        match platform.split_once("-glibc-") {
            Some((machine, _)) => (machine.to_owned(), true),
            None => (platform.to_owned(), false),
        }
    };
    lock.is_empty() || kind(lock) == kind(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_release_of_the_c_library_fits_and_another_machine_does_not() {
        assert!(fits("linux-x86_64-glibc-2.36", "linux-x86_64-glibc-2.31"));
        assert!(fits("", "linux-x86_64"));
        assert!(!fits("linux-aarch64-glibc-2.36", "linux-x86_64-glibc-2.36"));
        assert!(!fits("linux-x86_64", "linux-x86_64-glibc-2.36"));
    }

    #[test]
    fn a_lock_is_known_by_what_is_in_it_and_not_by_who_followed_it() {
        let lock = EnvironmentLock { python: "3.11.7".into(), builder: "uv 1.0.0".into(), ..EnvironmentLock::default() };
        let newer = EnvironmentLock { builder: "uv 2.0.0".into(), ..lock.clone() };
        let other = EnvironmentLock { python: "3.11.8".into(), ..lock.clone() };
        assert_eq!(name_of(&lock).unwrap(), name_of(&newer).unwrap());
        assert_ne!(name_of(&lock).unwrap(), name_of(&other).unwrap());
    }
}
