//! The file in which environments travel to machines without a network: a tar archive.
//!
//! ```text
//! manifest.json      first: what it is, for which platform, with which lock
//! files/…            the environment itself, or
//! wheels/…           the files that a lock names: those of pip,
//! conda/SHA256/…     and those of conda
//! checksums.json     last: the SHA-256 of every file before it; an archive without it is cut off
//! ```
//!
//! Writing is [`super::export()`]'s, reading [`super::import()`]'s. The checksums protect from damage, not from malice: what is imported
//! is run, so an archive is to be trusted like any program.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trainyard_core::{Error, ErrorKind, Result, environment::EnvironmentLock, ids::EnvironmentHash};

/// Of this form of archive: the newest one that is read.
pub(super) const FORMAT: u32 = 2;
/// The first form in which conda packages travel as files.
const WITH_CONDA: u32 = 2;
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const CHECKSUMS: &str = "checksums.json";
pub(super) const FILES: &str = "files";
pub(super) const WHEELS: &str = "wheels";
pub(super) const CONDA: &str = "conda";
/// More than the documents of any environment.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

/// What an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// The built environment; for a machine of the same kind.
    Environment,
    /// The files of its lock, to build it from.
    Downloads,
}

/// The first document of an archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) form: Form,
    pub(super) hash: EnvironmentHash,
    /// Where it stood; scripts in it name this path.
    pub(super) prefix: PathBuf,
    /// The interpreter that a virtual environment was made from; `None`: it has its own.
    pub(super) interpreter: Option<PathBuf>,
    pub(super) lock: EnvironmentLock,
}

/// The oldest form that says all of this, so that older programs read what they can.
pub(super) fn format_of(form: Form, lock: &EnvironmentLock) -> u32 {
    if form == Form::Downloads && !lock.conda.is_empty() { WITH_CONDA } else { 1 }
}

/// SHA-256 by path in the archive.
pub(super) type Checksums = BTreeMap<String, String>;

/// Hashes what goes through.
pub(super) struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashing<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Lower-case hex.
    pub(super) fn digest(self) -> String {
        hex::encode(self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The SHA-256 of a file, in lower-case hex.
pub(super) fn digest_of(path: &Path) -> io::Result<String> {
    let mut hashing = Hashing::new(std::fs::File::open(path)?);
    io::copy(&mut hashing, &mut io::sink())?;
    Ok(hashing.digest())
}

/// The path below `folder` that an entry of the archive stands for. `None`: it is not below this folder, or would lead out of it.
pub(super) fn below<'a>(path: &'a Path, folder: &str) -> Option<&'a Path> {
    let inner = path.strip_prefix(folder).ok()?;
    let plain = inner.components().all(|component| matches!(component, Component::Normal(_)));
    (plain && inner.components().next().is_some()).then_some(inner)
}

/// Whether a link at `at` (below the environment) with this target stays within the environment: it may go up at its beginning
/// only, since what comes after a name could be a link itself.
pub(super) fn stays_within(at: &Path, target: &Path) -> bool {
    let mut height = at.components().count().saturating_sub(1);
    let mut goes_down = false;
    for component in target.components() {
        match component {
            Component::Normal(_) => goes_down = true,
            Component::CurDir => {}
            Component::ParentDir if height > 0 && !goes_down => height -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// Something about the archive is wrong.
pub(super) fn refused(why: impl Into<String>) -> Error {
    Error::invalid(why)
}

/// Something on this machine is in the way.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| {
        let kind = if error.kind() == io::ErrorKind::StorageFull { ErrorKind::StorageFull } else { ErrorKind::Internal };
        Error::new(kind, format!("{what}: {error}"))
    }
}

/// Gives the document as the archive has it.
pub(super) fn document<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_folder_count() {
        assert_eq!(below(Path::new("files/bin/python"), FILES), Some(Path::new("bin/python")));
        for bad in ["files/../x", "files", "wheels/x", "/files/x", "files//../../etc/passwd", "../files/x"] {
            assert_eq!(below(Path::new(bad), FILES), None, "{bad}");
        }
    }

    #[test]
    fn a_link_may_go_up_as_far_as_the_environment_reaches() {
        assert!(stays_within(Path::new("bin/python3"), Path::new("python")));
        assert!(stays_within(Path::new("lib/a/b"), Path::new("../../share/x")));
        assert!(!stays_within(Path::new("lib/a/b"), Path::new("../../../x")));
        assert!(!stays_within(Path::new("bin/x"), Path::new("../../x/../../y")));
        assert!(!stays_within(Path::new("bin/x"), Path::new("/etc/passwd")));
        assert!(!stays_within(Path::new("lib/a/b"), Path::new("link/../x")), "what is up from a link is not known");
    }
}
