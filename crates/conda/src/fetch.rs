//! Fetching locked packages as files, to be carried to a machine without a network.

use std::{
    io,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rattler_digest::{Md5, Sha256, compute_file_digest};
use rattler_networking::LazyClient;
use tokio::{fs::File, io::AsyncWriteExt as _};
use trainyard_core::environment::{LockedConda, Progress};
use url::Url;

use crate::{Access, CondaError, Watch, error::chain};

/// How many packages are fetched at once.
const DOWNLOADS: usize = 8;

/// How often a package is asked for.
const TRIES: u32 = 3;

/// Fetches the files of `packages` into `folder`, each at `SHA256/NAME`. Gives their SHA-256s in lower-case hex, in the order of the packages.
///
/// A file that is not what the lock says is refused; one of which the lock has no hash is taken as it comes.
pub async fn fetch(packages: &[LockedConda], folder: &Path, access: &Access, watch: &Watch) -> Result<Vec<String>, CondaError> {
    let fetching = Fetching { folder, access, client: access.client()? };
    let total = packages.len() as u64;
    watch(Progress::counted("downloading", 0, total, "packages"));
    let mut done = 0;
    let one = |(number, package)| {
        let fetching = &fetching;
        async move { fetching.package(number, package).await }
    };
    let fetched = stream::iter(packages.iter().enumerate()).map(one).buffered(DOWNLOADS).inspect_ok(|_| {
        done += 1;
        watch(Progress::counted("downloading", done, total, "packages"));
    });
    let fetched: Result<Vec<String>, CondaError> = fetched.try_collect().await;
    fetched.map_err(|error| error.masked(&access.secrets()))
}

struct Fetching<'a> {
    folder: &'a Path,
    access: &'a Access,
    client: LazyClient,
}

impl Fetching<'_> {
    async fn package(&self, number: usize, package: &LockedConda) -> Result<String, CondaError> {
        let url = Url::parse(&package.url)
            .map_err(|error| CondaError::Request(format!("the URL of the package {} can not be read: {error}", package.name)))?;
        let name = url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default().to_owned();
        let aside = self.folder.join(format!(".{number}.part"));
        self.bring(package, (&url, &name), &aside).await?;
        let (path, wanted) = (aside.clone(), package.clone());
        let checked = tokio::task::spawn_blocking(move || check(&path, &wanted)).await;
        let sha256 = checked.map_err(|error| node("the hash of a package can not be told", io::Error::other(error)))??;
        let place = self.folder.join(&sha256);
        let moved = async {
            tokio::fs::create_dir_all(&place).await?;
            tokio::fs::rename(&aside, place.join(&name)).await
        };
        moved.await.map_err(|error| node(&format!("the package {name} can not be put into its place"), error))?;
        Ok(sha256)
    }

    /// Writes the file of the package to `aside`: from what was brought here, from a channel that is a folder, or from its URL.
    async fn bring(&self, package: &LockedConda, (url, name): (&Url, &str), aside: &Path) -> Result<(), CondaError> {
        let local = self.access.brought(package.sha256.as_deref(), name);
        let local = local.or_else(|| url.to_file_path().ok().filter(|_| url.scheme() == "file"));
        if let Some(local) = local {
            let copied = tokio::fs::copy(&local, aside).await;
            return copied.map(drop).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CondaError::Package(format!("the package {name} is gone: there is no {}", local.display())),
                _ => node(&format!("{} can not be copied", local.display()), error),
            });
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.download(url, aside).await {
                Err(Failed::ForNow(_)) if tries < TRIES => {}
                Err(Failed::ForNow(error) | Failed::ForGood(error)) => return Err(error),
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn download(&self, url: &Url, aside: &Path) -> Result<(), Failed> {
        let for_now = |why: String| Failed::ForNow(CondaError::Channel(format!("the package {url} can not be fetched: {why}")));
        let unwritable = |error| Failed::ForGood(node("a package can not be written", error));
        if self.access.offline {
            return Err(Failed::ForGood(CondaError::Offline(format!(
                "the package {url} is not at hand as a file, and `offline = true` under [environments] forbids fetching it"
            ))));
        }
        let answer = self.client.client().get(url.clone()).send().await.map_err(|error| for_now(chain(&error)))?;
        let status = answer.status();
        if status.is_client_error() {
            return Err(Failed::ForGood(CondaError::Package(format!("the package {url} can not be had: its channel answers {status}"))));
        }
        let mut answer = answer.error_for_status().map_err(|error| for_now(chain(&error)))?;
        let mut file = File::create(aside).await.map_err(unwritable)?;
        while let Some(piece) = answer.chunk().await.map_err(|error| for_now(chain(&error)))? {
            file.write_all(&piece).await.map_err(unwritable)?;
        }
        file.flush().await.map_err(unwritable)
    }
}

/// Why a download failed.
enum Failed {
    /// It may succeed if it is tried again.
    ForNow(CondaError),
    /// It will not.
    ForGood(CondaError),
}

fn node(what: &str, error: io::Error) -> CondaError {
    CondaError::Node { what: format!("{what}: {error}"), source: Some(error) }
}

/// The SHA-256 of the file, which has the hashes of the lock.
fn check(path: &PathBuf, package: &LockedConda) -> Result<String, CondaError> {
    let unreadable = |error| node(&format!("{} can not be read", path.display()), error);
    let refused = |wanted: &str, found: &str| {
        let LockedConda { name, version, url, .. } = package;
        CondaError::Package(format!("the package {name} {version} from {url} has another hash: {found} instead of {wanted}"))
    };
    let sha256 = hex::encode(compute_file_digest::<Sha256>(path).map_err(unreadable)?);
    match (&package.sha256, &package.md5) {
        (Some(wanted), _) if *wanted != sha256 => Err(refused(wanted, &sha256)),
        (None, Some(wanted)) => {
            let md5 = hex::encode(compute_file_digest::<Md5>(path).map_err(unreadable)?);
            if md5 == *wanted { Ok(sha256) } else { Err(refused(wanted, &md5)) }
        }
        _ => Ok(sha256),
    }
}
