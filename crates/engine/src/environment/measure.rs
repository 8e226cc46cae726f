//! How big a built environment is, and whether somebody has installed into it since.
//!
//! A run has a layer of its own for what it installs ([`super::overlay()`]), but whoever is root, or calls the interpreter of the cache
//! by its path, can write into the environment itself. Installing, upgrading and removing packages changes the names in
//! `site-packages`, which is what is compared at every use. A file that is rewritten in place is found by [`super::verify()`].

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Made by every import, and no sign of an installation.
const COMPILED: &str = "__pycache__";

/// What was found in an environment when it was finished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Bytes on the disk, files that are shared with the downloads included.
    pub(super) bytes: u64,
    /// Number of files.
    pub(super) files: u64,
    /// The names in its `site-packages`, sorted.
    #[serde(default)]
    pub(super) installed: Vec<String>,
}

impl Measured {
    /// Walks the environment in `folder`.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let mut measured = Self { installed: installed(folder)?, ..Self::default() };
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                measured.bytes += bytes_of(&metadata);
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    measured.files += 1;
                }
            }
        }
        Ok(measured)
    }

    /// What was installed into or removed from the environment in `folder` since, by name; empty: nothing.
    pub(super) fn changes(&self, folder: &Path) -> Vec<String> {
        if self.installed.is_empty() {
            return Vec::new();
        }
        let Ok(now) = installed(folder) else { return Vec::new() };
        let differs = |one: &[String], other: &[String]| -> Vec<String> {
            one.iter().filter(|name| other.binary_search(name).is_err()).cloned().collect()
        };
        let mut changes = differs(&now, &self.installed);
        changes.extend(differs(&self.installed, &now));
        changes
    }
}

/// What a file takes on the disk.
pub(super) fn bytes_of(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

/// The `site-packages` folders of the environment in `folder`.
pub(super) fn site_packages(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder.join("lib")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let place = entry?.path();
        let is_python = place.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python"));
        // `python3.1` of conda is a link to `python3.11`.
        if is_python && !place.is_symlink() && place.join("site-packages").is_dir() {
            found.push(place.join("site-packages"));
        }
    }
    found.sort();
    Ok(found)
}

fn installed(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for place in site_packages(folder)? {
        for entry in fs::read_dir(place)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != COMPILED {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_is_noticed_and_importing_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("lib/python3.11/site-packages");
        fs::create_dir_all(place.join("six-1.16.0.dist-info")).unwrap();
        fs::write(place.join("six.py"), vec![b'x'; 10_000]).unwrap();
        let measured = Measured::of(folder.path()).unwrap();
        assert!(measured.bytes >= 10_000 && measured.files == 1, "{measured:?}");
        fs::create_dir(place.join("__pycache__")).unwrap();
        fs::write(place.join("__pycache__/six.pyc"), "").unwrap();
        assert!(measured.changes(folder.path()).is_empty());
        fs::rename(place.join("six-1.16.0.dist-info"), place.join("six-1.15.0.dist-info")).unwrap();
        assert_eq!(measured.changes(folder.path()), ["six-1.15.0.dist-info", "six-1.16.0.dist-info"]);
    }
}
