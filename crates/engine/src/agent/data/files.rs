//! Folders and files that the node sees: copied in and out file by file, and never from outside the place that was named.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use super::{
    bucket::{Replaces, Stored},
    fault::Fault,
    journal::Meter,
    partial::{Partial, make_parent},
};
use crate::agent::walk::{Found, Listing, Stamp, list};

/// Bytes that are copied between two looks at the clock.
const STEP: u64 = 64 << 20;

/// A path on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// Nothing outside of this folder is reached; for an address of its own the path itself.
    root: PathBuf,
    /// Relative to it.
    path: String,
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum Content {
    /// One file.
    File(Found),
    /// A folder.
    Folder(Listing),
}

impl Local {
    /// The place `path` below `url`, which is a path or a `file` URL.
    pub(super) fn open(url: &str, path: &str) -> Self {
        let root = match url.get(.."file://".len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case("file://") => {
                percent_encoding::percent_decode_str(&url["file://".len()..]).decode_utf8_lossy().into_owned()
            }
            _ => url.to_owned(),
        };
        Self { root: root.into(), path: path.to_owned() }
    }

    /// The path as it was named.
    pub(super) fn named(&self) -> PathBuf {
        if self.path.is_empty() { self.root.clone() } else { self.root.join(&self.path) }
    }

    /// The path without links, which lies in the place that was named.
    pub(super) fn resolve(&self) -> Result<PathBuf, Fault> {
        let root = self.root.canonicalize().map_err(|error| self.root_fault(&error))?;
        let named = self.named();
        let path = named.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Fault::Refused(format!("`{}` is not there on the node", named.display()))
            }
            io::ErrorKind::PermissionDenied => Fault::Refused(format!("`{}` may not be read on the node", named.display())),
            _ => Fault::Passing(format!("`{}` cannot be opened on the node: {error}", named.display())),
        })?;
        if path.starts_with(&root) { Ok(path) } else { Err(self.leads_outside()) }
    }

    /// The same, of a folder that is made if it is missing.
    pub(super) fn make(&self) -> Result<PathBuf, Fault> {
        let root = self.root.canonicalize().map_err(|error| self.root_fault(&error))?;
        let named = self.named();
        // The part that is there must lie inside before anything is made in it.
        let mut there = named.as_path();
        while !there.exists() {
            let Some(parent) = there.parent() else { break };
            there = parent;
        }
        if !there.canonicalize().is_ok_and(|there| there.starts_with(&root)) {
            return Err(self.leads_outside());
        }
        fs::create_dir_all(&named).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::AlreadyExists => {
                Fault::Refused(format!("the folder `{}` cannot be made on the node: {error}", named.display()))
            }
            _ => Fault::disk(format_args!("the folder `{}` cannot be made on the node", named.display()), &error),
        })?;
        self.resolve()
    }

    fn leads_outside(&self) -> Fault {
        Fault::Refused(format!("`{}` leads out of `{}` through a link", self.named().display(), self.root.display()))
    }

    fn root_fault(&self, error: &io::Error) -> Fault {
        let root = self.root.display();
        match error.kind() {
            io::ErrorKind::NotFound if self.path.is_empty() => Fault::Refused(format!("`{root}` is not there on the node")),
            // The datastore is somewhere, and this node does not see it.
            io::ErrorKind::NotFound => {
                Fault::Machine(format!("the folder `{root}` of the datastore is not there on the node: is it mounted?"))
            }
            io::ErrorKind::PermissionDenied => Fault::Refused(format!("`{root}` may not be read on the node")),
            _ => Fault::Passing(format!("`{root}` cannot be opened on the node: {error}")),
        }
    }

    /// What is there.
    pub(super) fn content(&self) -> Result<Content, Fault> {
        let path = self.resolve()?;
        let meta = fs::metadata(&path).map_err(|error| Fault::Passing(format!("`{}` cannot be looked at: {error}", path.display())))?;
        if meta.is_dir() {
            let root = self.root.canonicalize().map_err(|error| self.root_fault(&error))?;
            return Ok(Content::Folder(listing_below(&path, &root)));
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        match (meta.is_file(), name) {
            (true, Some(name)) => Ok(Content::File(Found { path: name, file: path, stamp: Stamp::of(&meta) })),
            _ => Err(Fault::Refused(format!("`{}` is neither a file nor a folder", path.display()))),
        }
    }
}

/// The files below a folder by their paths in it.
pub(super) fn listing_below(folder: &Path, within: &Path) -> Listing {
    const PREFIX: &str = ".";
    let mut listing = list(folder, PREFIX, within);
    for found in &mut listing.files {
        found.path = found.path.trim_start_matches("./").to_owned();
    }
    for sentence in &mut listing.left_out {
        *sentence = sentence.replacen("`./", "`", 1);
    }
    listing
}

/// Copies a file to `to`, where it appears when it is whole.
pub(super) async fn copy_in(found: &Found, to: &Path, partial: Partial, meter: &Meter<'_>) -> Result<(), Fault> {
    let what = found.file.display().to_string();
    // The steps are short, so that a run that is cancelled does not wait for a large file.
    let (mut source, mut target) = {
        let opened = File::open(&found.file).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Fault::Refused(format!("`{what}` may not be read on the node")),
            io::ErrorKind::NotFound => Fault::Refused(format!("`{what}` went away while it was copied")),
            _ => Fault::Passing(format!("`{what}` cannot be read: {error}")),
        })?;
        let begun = partial.begin(None).map_err(|error| Fault::disk(format_args!("a copy of `{what}` cannot be made"), &error))?;
        (opened, begun)
    };
    loop {
        let task = tokio::task::spawn_blocking(move || {
            let copied = io::copy(&mut (&mut source).take(STEP), &mut target);
            (copied, source, target)
        });
        let (copied, next_source, next_target) = task.await.map_err(|_| Fault::Machine("copying broke off".into()))?;
        (source, target) = (next_source, next_target);
        match copied.map_err(|error| Fault::disk(format_args!("`{what}` cannot be copied"), &error))? {
            0 => break,
            bytes => meter.add(bytes),
        }
    }
    target.flush().map_err(|error| Fault::disk(format_args!("`{what}` cannot be copied"), &error))?;
    drop(target);
    partial.finish(to)
}

/// Stores a file as `path` below `folder`.
pub(super) fn store(file: &Path, (folder, path): (&Path, &str), replaces: Replaces) -> Result<Stored, Fault> {
    let to = folder.join(path);
    let failed = |error: &io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => Fault::Refused(format!("`{}` cannot be written: {error}", to.display())),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Fault::Passing(format!("`{}` cannot be written: {error}", to.display()))
        }
        _ => Fault::disk(format_args!("`{}` cannot be written", to.display()), error),
    };
    match (is_same(file, &to), replaces) {
        (Ok(true), _) => return Ok(Stored::WasThere),
        (Ok(false), Replaces::Nothing) => return Ok(Stored::OtherIsThere),
        (Ok(false), Replaces::Others) => {}
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => {}
        (Err(error), _) => return Err(failed(&error)),
    }
    make_parent(&to).map_err(|error| failed(&error))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = to.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = fs::copy(file, &aside).and_then(|_| File::open(&aside)?.sync_all()).and_then(|()| fs::rename(&aside, &to));
    written.map_err(|error| {
        let _ = fs::remove_file(&aside);
        failed(&error)
    })?;
    Ok(Stored::Now)
}

/// Whether two files hold the same; `NotFound` is about the second.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let meta = fs::metadata(other)?;
    if meta.len() != fs::metadata(one)?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (io::BufReader::new(File::open(one)?), io::BufReader::new(File::open(other)?));
    let (mut a, mut b) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    loop {
        let read = one.read(&mut a)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..read])?;
        if a[..read] != b[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_named_place_is_reached_through_a_link() {
        let (store, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), store.path().join("out")).unwrap();
        fs::create_dir(store.path().join("in")).unwrap();
        symlink("../out/secret", store.path().join("in/secret")).unwrap();
        fs::write(store.path().join("in/open"), "o").unwrap();
        let url = store.path().to_str().unwrap();
        for path in ["out", "out/secret", "in/secret"] {
            let fault = Local::open(url, path).content().unwrap_err();
            assert!(fault.message().contains("leads out of"), "{path}: {fault:?}");
        }
        assert!(Local::open(url, "out/new").make().unwrap_err().message().contains("leads out of"));
        assert!(!outside.path().join("new").exists());
        let Content::Folder(listing) = Local::open(url, "in").content().unwrap() else { panic!("a folder") };
        assert_eq!(listing.files.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), ["open"]);
        assert_eq!(listing.left_out.len(), 1, "{:?}", listing.left_out);
    }

    #[test]
    fn a_missing_file_is_the_definitions_fault_and_a_missing_datastore_the_machines() {
        let store = tempfile::tempdir().unwrap();
        let url = format!("file://{}", store.path().display());
        assert!(matches!(Local::open(&url, "gone").content(), Err(Fault::Refused(why)) if why.contains("is not there on the node")));
        assert!(matches!(Local::open("/gone/store", "x").content(), Err(Fault::Machine(why)) if why.contains("is it mounted?")));
        assert!(matches!(Local::open("/gone/file", "").content(), Err(Fault::Refused(_))), "an address of its own");
    }

    #[test]
    fn the_same_bytes_are_stored_once_and_others_only_if_they_may() {
        let (run, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = run.path().join("f");
        fs::write(&file, "one").unwrap();
        let put = |replaces| super::store(&file, (store.path(), "a/f"), replaces).unwrap();
        assert_eq!(put(Replaces::Nothing), Stored::Now);
        assert_eq!(put(Replaces::Nothing), Stored::WasThere);
        fs::write(&file, "two").unwrap();
        assert_eq!(put(Replaces::Nothing), Stored::OtherIsThere);
        assert_eq!(fs::read(store.path().join("a/f")).unwrap(), b"one");
        assert_eq!(put(Replaces::Others), Stored::Now);
        assert_eq!(fs::read(store.path().join("a/f")).unwrap(), b"two");
        assert_eq!(fs::read_dir(store.path().join("a")).unwrap().count(), 1, "nothing else is left there");
    }
}
