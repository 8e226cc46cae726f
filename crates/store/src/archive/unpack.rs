//! Writes the files of an archive to a folder that appears complete or not at all.
//!
//! Invariant: nothing is written outside the new folder, whatever the archive says. The core's rules make each path stay below
//! it; beyond that every file is opened relative to the folder's descriptor with `openat2` and `RESOLVE_BENEATH`, never through
//! a link, and only if it does not exist.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use trainyard_core::{
    Error, ErrorKind, Result,
    archive::{ArchiveLimits, ArchivePlan},
};

use super::{DIRECTORY_BUDGET_BYTES, Opened, inflate::Inflater};
use crate::blobs::storage_error;

/// Unpacks the zip in `file` to the new (or empty) folder `destination`; its parent must exist.
///
/// The rules and the content are checked as in [`super::inspect`]. Files are written to a folder beside `destination`, which is
/// renamed when it is complete and removed when anything fails. Times and owners of the archive are not restored; modes are
/// 0644 or 0755, less the umask. Not synced to disk: a snapshot can be unpacked again.
///
/// [`ErrorKind::AlreadyExists`] if `destination` exists and is not an empty folder; [`ErrorKind::StorageFull`] if the disk is full.
pub fn unpack(file: File, limits: &ArchiveLimits, destination: &Path) -> Result<()> {
    let budget = std::cell::Cell::new(DIRECTORY_BUDGET_BYTES);
    let mut opened = Opened::new(BufReader::new(file), &budget, limits)?;
    // A rename replaces an empty folder and nothing else; better to know before the work.
    let vacant =
        fs::read_dir(destination).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |mut entries| entries.next().is_none());
    if !vacant {
        return Err(taken(destination));
    }
    let unfinished = Unfinished::beside(destination)?;
    let tree = Tree::open(&unfinished.path)?;
    tree.make_folders(&opened.plan)?;
    let mut inflater = Inflater::new();
    for index in 0..opened.plan.files.len() {
        let planned = &opened.plan.files[index];
        let mut target = tree.create(&planned.path, planned.mode)?;
        opened.read(index, &mut inflater, |bytes| target.write_all(bytes).map_err(cannot_write))?;
    }
    unfinished.finish(destination)
}

fn cannot_write(error: impl Into<io::Error>) -> Error {
    storage_error("the snapshot cannot be unpacked", error.into())
}

fn taken(destination: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("cannot unpack to {}: it exists already", destination.display()))
}

/// The folder that is being filled; removed unless it is finished.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn beside(destination: &Path) -> Result<Self> {
        let name = destination.file_name().ok_or_else(|| Error::invalid(format!("cannot unpack to {}", destination.display())))?;
        let mut attempt = 0u32;
        loop {
            let mut unfinished = std::ffi::OsString::from(".");
            unfinished.push(name);
            unfinished.push(format!(".{attempt}.unpacking"));
            let path = destination.with_file_name(unfinished);
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Somebody else is unpacking to the same place, or was killed doing it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => return Err(cannot_write(error)),
            }
        }
    }

    fn finish(mut self, destination: &Path) -> Result<()> {
        match fs::rename(&self.path, destination) {
            Ok(()) => {
                self.path = PathBuf::new();
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => {
                Err(taken(destination))
            }
            Err(error) => Err(cannot_write(error)),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished snapshot folder could not be removed");
        }
    }
}

/// A folder by its descriptor: what is made in it stays in it.
struct Tree {
    root: OwnedFd,
}

impl Tree {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty()).map_err(cannot_write)? })
    }

    /// Makes the folders that the archive lists and those that its files need.
    fn make_folders(&self, plan: &ArchivePlan) -> Result<()> {
        let of_files = plan.files.iter().filter_map(|file| file.path.rsplit_once('/').map(|(folder, _)| folder));
        let mut last = "";
        for folder in plan.folders.iter().map(String::as_str).chain(of_files) {
            if folder == last {
                continue;
            }
            last = folder;
            for end in folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]) {
                let (above, name) = folder[..end].rsplit_once('/').unwrap_or((".", &folder[..end]));
                let above = open_beneath(&self.root, above, OFlags::DIRECTORY | OFlags::RDONLY, 0).map_err(cannot_write)?;
                match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(cannot_write(error)),
                }
            }
        }
        Ok(())
    }

    fn create(&self, path: &str, mode: u32) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        open_beneath(&self.root, path, flags, mode).map(File::from).map_err(cannot_write)
    }
}

/// Opens a path below `root` without leaving it and without following a link.
fn open_beneath(root: impl AsFd, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::openat2(root.as_fd(), path, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        // Before Linux 5.6, and where a container's filter does not know the call. The folder is new and nobody makes links in
        // it, and the path has no `..`.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(root, path, flags, mode),
        result => result,
    }
}
