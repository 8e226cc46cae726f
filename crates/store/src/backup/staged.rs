//! What a restore makes lies in `DIR/restoring/` first, and is then moved to its place, while what is there is moved aside.
//!
//! Moving is a row of renames, each of which can be the last before a crash: what is still in `restoring/` has not been moved, so that
//! doing it again does the rest.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use trainyard_core::{Error, ErrorKind, Result};

use super::CONFIG;
use crate::db::SQLITE_FILE;

const FOLDER: &str = "restoring";
/// What is moved, as a whole each. Attempts and environments stay: agents may be alive there.
const MOVED: [&str; 6] = [SQLITE_FILE, "live", "keys", "tls", "identity.json", "client.json"];
/// What belongs to a SQLite file.
const SQLITE_SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// The folder of what a restore makes.
pub(super) struct Staged {
    data_dir: PathBuf,
    root: PathBuf,
}

impl Staged {
    /// That of a restore that came so far.
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), root: data_dir.join(FOLDER) }
    }

    /// An empty one. What a restore that was given up left in it is removed.
    pub(super) fn new(data_dir: &Path) -> Result<Self> {
        let staged = Self::of(data_dir);
        let made = || {
            remove(&staged.root)?;
            make_folder(&staged.root)?;
            make_folder(&staged.root.join("live"))
        };
        made().map_err(|error| failed(&staged.root, error))?;
        Ok(staged)
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the file of an entry `live/…` or `files/…`. `None`: the entry is not for the data directory. The configuration is never
    /// replaced: it says where to restore to.
    pub(super) fn file(&self, name: &str) -> Result<Option<StagedFile>> {
        let relative = match name.strip_prefix("files/") {
            Some(CONFIG) => return Ok(None),
            Some(relative) => relative,
            None if name.starts_with("live/") => name,
            None => return Ok(None),
        };
        let plain = Path::new(relative).components().all(|part| matches!(part, Component::Normal(_)));
        let known = relative.split('/').next().is_some_and(|first| MOVED.contains(&first) && first != SQLITE_FILE);
        if !plain || !known {
            return Err(Error::invalid(format!("the backup has a file `{name}`, which belongs nowhere in a data directory")));
        }
        let path = self.root.join(relative);
        let public = relative.starts_with("tls/") && relative.ends_with(".pem");
        let opened = || {
            make_folder(path.parent().unwrap_or(&self.root))?;
            File::options().create_new(true).write(true).mode(if public { 0o644 } else { 0o600 }).open(&path)
        };
        let file = opened().map_err(|error| failed(&path, error))?;
        Ok(Some(StagedFile { file, path }))
    }

    /// Makes sure that all of it survives a power cut.
    pub(super) fn sync(&self) -> Result<()> {
        sync_folders(&self.root).map_err(|error| failed(&self.root, error))
    }

    /// Moves everything to its place; `stamp` goes into the names of what is moved aside. Gives what was moved aside.
    pub(super) fn swap(&self, stamp: &str) -> Result<Vec<PathBuf>> {
        let mut aside = Vec::new();
        for name in MOVED {
            self.swap_one(name, stamp, &mut aside).map_err(|error| failed(&self.data_dir.join(name), error))?;
        }
        remove(&self.root).map_err(|error| failed(&self.root, error))?;
        Ok(aside)
    }

    fn swap_one(&self, name: &str, stamp: &str, aside: &mut Vec<PathBuf>) -> io::Result<()> {
        let new = self.root.join(name);
        if !new.try_exists()? {
            return Ok(());
        }
        let suffixes: &[&str] = if name == SQLITE_FILE { &SQLITE_SUFFIXES } else { &[""] };
        for suffix in suffixes {
            let present = self.data_dir.join(format!("{name}{suffix}"));
            if !present.try_exists()? {
                continue;
            }
            let target = if name == SQLITE_FILE {
                self.data_dir.join(format!("{name}.before-restore-{stamp}{suffix}"))
            } else {
                let folder = self.data_dir.join(format!("before-restore-{stamp}"));
                make_folder(&folder)?;
                folder.join(name)
            };
            fs::rename(&present, &target)?;
            aside.push(target);
        }
        // What is aside must be so before its place is taken: a log of the old database would be taken for one of the new.
        File::open(&self.data_dir)?.sync_all()?;
        fs::rename(&new, self.data_dir.join(name))?;
        File::open(&self.data_dir)?.sync_all()
    }
}

/// A file that is being made.
pub(super) struct StagedFile {
    file: File,
    path: PathBuf,
}

impl StagedFile {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed(&self.path, error))
    }

    pub(super) fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|error| failed(&self.path, error))
    }
}

/// Puts the configuration of a backup into a data directory that has none.
pub(super) fn place_config(data_dir: &Path, config: &str) -> Result<()> {
    let (path, staged) = (data_dir.join(CONFIG), data_dir.join("config.toml.restoring"));
    if path.exists() {
        return Ok(());
    }
    let written = || {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
        file.write_all(config.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, &path)?;
        File::open(data_dir)?.sync_all()
    };
    written().map_err(|error| failed(&path, error))
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

fn failed(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{} cannot be restored", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn a_swap_that_was_interrupted_anywhere_is_finished_by_the_next() {
        // The renames of a swap are: three files of the database aside, the new one in, live aside, the new one in, and so on. Stopping after
        // each one is the same as a folder in which that many have been made.
        for stop in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            for suffix in SQLITE_SUFFIXES {
                write(at(&format!("trainyard.sqlite{suffix}")), &format!("old{suffix}"));
            }
            write(at("live/log"), "old");
            write(at("keys/key"), "old");
            let staged = Staged::new(dir.path()).unwrap();
            write(staged.root().join(SQLITE_FILE), "new");
            write(staged.root().join("keys/key"), "new");
            let moves = [
                ("trainyard.sqlite", "trainyard.sqlite.before-restore-T"),
                ("trainyard.sqlite-wal", "trainyard.sqlite.before-restore-T-wal"),
                ("trainyard.sqlite-shm", "trainyard.sqlite.before-restore-T-shm"),
                ("restoring/trainyard.sqlite", "trainyard.sqlite"),
                ("live", "before-restore-T/live"),
                ("restoring/live", "live"),
                ("keys", "before-restore-T/keys"),
                ("restoring/keys", "keys"),
            ];
            fs::create_dir_all(at("before-restore-T")).unwrap();
            for (from, to) in &moves[..stop] {
                fs::rename(at(from), at(to)).unwrap();
            }
            Staged::of(dir.path()).swap("T").unwrap();
            assert_eq!(read(at("trainyard.sqlite")), "new", "stopped after {stop}");
            assert!(!at("trainyard.sqlite-wal").exists() && !at("restoring").exists(), "stopped after {stop}");
            assert_eq!(read(at("trainyard.sqlite.before-restore-T-wal")), "old-wal");
            assert_eq!((read(at("keys/key")), read(at("before-restore-T/keys/key"))), ("new".into(), "old".into()));
            assert_eq!(read(at("before-restore-T/live/log")), "old");
        }
    }

    #[test]
    fn a_backup_cannot_write_outside_of_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        let staged = Staged::new(dir.path()).unwrap();
        for name in ["files/../x", "files//etc/passwd", "files/attempts/x", "live/../x", "files/trainyard.sqlite"] {
            assert!(staged.file(name).is_err(), "{name}");
        }
        assert!(staged.file("files/config.toml").unwrap().is_none());
        staged.file("files/keys/k").unwrap().unwrap().finish().unwrap();
    }
}
