//! Putting locked packages into a folder.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
};

use rattler::{
    install::{ExternalSymlinkPolicy, Installer, InstallerError},
    package_cache::PackageCache,
};
use rattler_conda_types::{
    PackageName, PackageRecord, RepoDataRecord, VersionWithSource,
    package::{BuildString, DistArchiveIdentifier},
};
use tokio_util::sync::CancellationToken;
use trainyard_core::environment::LockedConda;
use url::Url;

use crate::{
    Access, CondaError, Watch,
    error::{chain, of_installer},
    kept::touch,
    platform::subdir,
    progress::Counter,
};

/// How many packages are fetched at once.
const DOWNLOADS: usize = 12;

/// Fetches `packages` and links them into `prefix`, which is the folder's final place: paths are written into files.
///
/// Packages whose hash is not the locked one are refused. Dropping the future stops the work as soon as may be; it can go on
/// for a moment, so `hold` (a lock on the folder, say) is kept until nothing writes into the folder any more.
pub async fn install(
    packages: &[LockedConda],
    prefix: &Path,
    access: &Access,
    watch: &Watch,
    hold: impl Send + 'static,
) -> Result<(), CondaError> {
    let records = packages.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let cache = access.packages();
    let brought = brought(&records, access);
    let installer = Installer::new()
        .with_package_cache(cache.clone())
        .with_download_client(access.client()?)
        .with_installed_packages(Vec::new())
        .with_target_platform(subdir()?)
        .with_execute_link_scripts(false)
        .with_external_symlink_policy(ExternalSymlinkPolicy::Deny)
        .with_max_concurrent_requests(DOWNLOADS)
        .with_reporter(Counter::new(watch.clone(), records.len()));
    let cancel = CancellationToken::new();
    let guard = cancel.clone().drop_guard();
    let prefix = prefix.to_owned();
    let work = tokio::spawn(async move {
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            result = async {
                unpack(&cache, brought).await?;
                installer.install(prefix, records).await
            } => Some(result.map(drop)),
        };
        if !matches!(result, Some(Ok(()))) {
            rest().await;
        }
        drop(hold);
        result
    });
    let result = work.await;
    drop(guard);
    match result {
        Ok(Some(Ok(()))) => {
            touch(&access.downloads, packages);
            Ok(())
        }
        Ok(Some(Err(error))) => Err(of_installer(&error).masked(&access.secrets())),
        Ok(None) => Err(CondaError::Node { what: "the installation was given up".into(), source: None }),
        Err(error) => Err(CondaError::Node { what: format!("the installation broke off: {error}"), source: None }),
    }
}

/// The packages that were brought here as files.
fn brought(records: &[RepoDataRecord], access: &Access) -> Vec<(PathBuf, RepoDataRecord)> {
    let file = |record: &RepoDataRecord| {
        let sha256 = record.package_record.sha256.map(hex::encode);
        access.brought(sha256.as_deref(), &record.identifier.to_file_name())
    };
    records.iter().filter_map(|record| Some((file(record)?, record.clone()))).collect()
}

/// Unpacks them into the cache of packages, where the installer finds them and asks no channel.
async fn unpack(cache: &PackageCache, brought: Vec<(PathBuf, RepoDataRecord)>) -> Result<(), InstallerError> {
    for (file, record) in brought {
        let unpacked = cache.get_or_fetch_from_path(&file, Some(&record.package_record), None).await;
        unpacked.map_err(|error| InstallerError::FailedToFetch(record.identifier.to_string(), error))?;
    }
    Ok(())
}

/// Waits until the links of an installation that was given up have been made: its jobs stand in the queue of rayon's pool, first in, first
/// out, and can't be taken back. One more job begins after all of them have begun, and what is then sent to every thread
/// begins on each after they have ended.
async fn rest() {
    let (begun, wait) = tokio::sync::oneshot::channel();
    rayon::spawn_fifo(move || {
        // Nobody waits only if the runtime is gone.
        let _ = begun.send(());
    });
    // It only fails if the job was lost with the whole pool.
    let _ = wait.await;
    let _ = tokio::task::spawn_blocking(|| rayon::broadcast(|_| ())).await;
}

/// What the installer wants to know of a package. Everything else is in the package itself.
fn record(package: &LockedConda) -> Result<RepoDataRecord, CondaError> {
    let refused =
        |why: String| CondaError::Request(format!("the package {} {} of the lock can not be used: {why}", package.name, package.version));
    let url = Url::parse(&package.url).map_err(|error| refused(format!("`{}` is not a URL: {error}", package.url)))?;
    let file = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default().to_owned();
    let identifier = DistArchiveIdentifier::from_str(&file).map_err(|_| refused(format!("`{file}` is not the name of a conda package")))?;
    let name = PackageName::try_from(package.name.as_str()).map_err(|error| refused(chain(&error)))?;
    let version = VersionWithSource::from_str(&package.version).map_err(|error| refused(chain(&error)))?;
    // Old channels have builds that nobody would accept today; the name of the file is what counts.
    let build = BuildString::new_unchecked(package.build.as_str());
    let mut record = PackageRecord::new(name, version, build);
    record.sha256 = digest::<32>(package.sha256.as_deref(), &refused)?.map(Into::into);
    record.md5 = digest::<16>(package.md5.as_deref(), &refused)?.map(Into::into);
    record.python_site_packages_path.clone_from(&package.site_packages);
    let folder = url.path_segments().and_then(|segments| segments.rev().nth(1)).unwrap_or_default();
    let own = subdir()?.to_string();
    if folder != "noarch" && folder != own {
        return Err(refused(format!("it was made for `{folder}`, and this machine is `{own}`")));
    }
    folder.clone_into(&mut record.subdir);
    Ok(RepoDataRecord { package_record: record, identifier, url, channel: None })
}

/// A hash from its hexadecimal digits.
fn digest<const N: usize>(text: Option<&str>, refused: impl Fn(String) -> CondaError) -> Result<Option<[u8; N]>, CondaError> {
    let Some(text) = text else { return Ok(None) };
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| refused(format!("`{text}` is not a hash of {N} bytes")))?;
    Ok(Some(bytes))
}
