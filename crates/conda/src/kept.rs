//! What stays in the folder of downloads for the next environment: unpacked packages, and the indexes of channels.
//!
//! Only the layout is known here. What goes when there is too much of it, and when nobody needs it, is the engine's business. A package
//! was last used when it was last linked: that is the time of its folder.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use trainyard_core::environment::LockedConda;

/// An unpacked package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What takes the room. Whoever removes the package takes this away first.
    pub folder: PathBuf,
    /// A note about it, which is worth nothing without the folder.
    pub note: PathBuf,
    /// When it was last unpacked or linked.
    pub last_used: SystemTime,
}

/// The unpacked packages in a folder of downloads.
pub fn kept_packages(downloads: &Path) -> Vec<Kept> {
    let Ok(entries) = fs::read_dir(packages_in(downloads)) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .map(|entry| {
            let folder = entry.path();
            let last_used = entry.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            Kept { note: note_of(&folder), folder, last_used }
        })
        .collect()
}

/// The unpacked package of this name, version and build, whether it is there or not.
pub fn kept_package(downloads: &Path, package: &LockedConda) -> Kept {
    let folder = packages_in(downloads).join(format!("{}-{}-{}", package.name, package.version, package.build));
    let last_used = fs::metadata(&folder).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Kept { note: note_of(&folder), folder, last_used }
}

/// Where the indexes of channels are kept.
pub fn indexes_in(downloads: &Path) -> PathBuf {
    downloads.join("indexes")
}

pub(crate) fn packages_in(downloads: &Path) -> PathBuf {
    downloads.join("pkgs")
}

fn note_of(folder: &Path) -> PathBuf {
    let mut note = folder.as_os_str().to_owned();
    note.push(".lock");
    note.into()
}

/// Notes that these packages are used.
pub(crate) fn touch(downloads: &Path, packages: &[LockedConda]) {
    for package in packages {
        let folder = kept_package(downloads, package).folder;
        let touched = File::open(&folder).and_then(|folder| folder.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(folder = %folder.display(), %error, "the last use of a package is not noted");
        }
    }
}
