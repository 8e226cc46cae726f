//! A file on its way: it gets its name only when it is whole, and what is there of it is known to be of one version of the source.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::fault::Fault;

/// The place of a file that is not whole yet.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    content: PathBuf,
    tag: PathBuf,
}

impl Partial {
    /// In `folder`, for the file that will be called `name`.
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let word = hex::encode(&Sha256::digest(name)[..12]);
        Self { content: folder.join(&word), tag: folder.join(format!("{word}.tag")) }
    }

    /// Which version of the source it is of, and how many bytes of it are there; `None`: begin with nothing.
    pub(super) fn begun(&self) -> Option<(String, u64)> {
        let length = fs::metadata(&self.content).ok()?.len();
        let tag = fs::read_to_string(&self.tag).ok()?;
        (length > 0 && !tag.is_empty()).then_some((tag, length))
    }

    /// Begins with nothing. `tag` names the version of the source; without one it cannot be gone on with.
    pub(super) fn begin(&self, tag: Option<&str>) -> io::Result<File> {
        // In this order: a tag never stands beside content of another version.
        self.forget()?;
        let file = File::create(&self.content)?;
        if let Some(tag) = tag {
            fs::write(&self.tag, tag)?;
        }
        Ok(file)
    }

    /// Goes on at the end of what is there.
    pub(super) fn go_on(&self) -> io::Result<File> {
        OpenOptions::new().append(true).open(&self.content)
    }

    /// Throws away what is there.
    pub(super) fn forget(&self) -> io::Result<()> {
        for path in [&self.tag, &self.content] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Where the bytes are.
    pub(super) fn path(&self) -> &Path {
        &self.content
    }

    /// Gives the whole file its name.
    pub(super) fn finish(&self, to: &Path) -> Result<(), Fault> {
        let named = make_parent(to).and_then(|()| fs::rename(&self.content, to)).and_then(|()| self.forget());
        named.map_err(|error| Fault::disk(format_args!("`{}` cannot be made", to.display()), &error))
    }
}

/// Makes the folders above `path`.
pub(super) fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Fails where fewer than `bytes` are free in the file system of `folder`.
pub(super) fn make_sure_of_room(folder: &Path, bytes: u64) -> Result<(), Fault> {
    // A file system that does not tell will say so itself.
    let Ok(found) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let (needed, free) = (super::journal::size(bytes), super::journal::size(free));
    Err(Fault::Machine(format!("{needed} are needed on the node, and its disk has {free} left")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, whole) = (Partial::new(folder.path(), "a/b"), folder.path().join("to/a/b"));
        assert_eq!(partial.begun(), None);
        partial.begin(Some("v1")).unwrap().write_all(b"one").unwrap();
        assert_eq!(partial.begun(), Some(("v1".into(), 3)));
        partial.go_on().unwrap().write_all(b"two").unwrap();
        assert!(!whole.exists());
        partial.finish(&whole).unwrap();
        assert_eq!((fs::read(&whole).unwrap(), partial.begun()), (b"onetwo".to_vec(), None));
    }

    #[test]
    fn what_is_of_an_unknown_version_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let partial = Partial::new(folder.path(), "a");
        partial.begin(Some("v1")).unwrap().write_all(b"one").unwrap();
        partial.begin(None).unwrap().write_all(b"two").unwrap();
        assert_eq!(partial.begun(), None);
    }

    #[test]
    fn more_than_the_disk_has_is_told_before_it_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(make_sure_of_room(folder.path(), 1), Ok(()));
        let fault = make_sure_of_room(folder.path(), u64::MAX).unwrap_err();
        assert!(matches!(&fault, Fault::Machine(why) if why.contains("its disk has")), "{fault:?}");
    }
}
