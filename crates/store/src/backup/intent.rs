//! `DIR/restore.json`: that a restore has come so far that the data directory is neither the old nor the new one.
//!
//! Written, and synced, once everything of the new one lies beside the old one; removed when it is in its place. While it is there a
//! server does not start, and `trainyard restore` with the same backup goes on where the one before ended.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use trainyard_core::{Error, ErrorKind, Result};

const NAME: &str = "restore.json";

/// What is being restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    /// The backup, by the SHA-256 of its sums.
    pub(super) backup: String,
    /// Where it was, for messages.
    pub(super) file: PathBuf,
    /// The time in the names of what is moved aside, e.g. `20261123T125704Z`.
    pub(super) stamp: String,
}

/// Fails while a restore of `data_dir` has not come to its end. Conflict.
pub fn refuse_unfinished(data_dir: &Path) -> Result<()> {
    match Intent::read(data_dir)? {
        None => Ok(()),
        Some(intent) => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "a restore of the data directory {} was begun and not finished; run it again: trainyard restore {} --data-dir {}",
                data_dir.display(),
                intent.file.display(),
                data_dir.display()
            ),
        )),
    }
}

impl Intent {
    /// The one that is there.
    pub(super) fn read(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(NAME);
        match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content).map(Some).map_err(|error| {
                Error::new(ErrorKind::Internal, format!("{} is damaged; it says that a restore is not finished", path.display()))
                    .with_source(error)
            }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(failed(&path, error)),
        }
    }

    /// Puts it in place; it survives a power cut when this returns.
    pub(super) fn write(&self, data_dir: &Path) -> Result<()> {
        let (path, staged) = (data_dir.join(NAME), data_dir.join("restore.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(Error::internal)?;
        let written = || {
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&staged)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(data_dir)?.sync_all()
        };
        written().map_err(|error| failed(&path, error))
    }

    /// Takes it away.
    pub(super) fn remove(data_dir: &Path) -> Result<()> {
        let path = data_dir.join(NAME);
        let removed = fs::remove_file(&path).and_then(|()| File::open(data_dir)?.sync_all());
        removed.map_err(|error| failed(&path, error))
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} cannot be used", path.display())).with_source(error)
}
