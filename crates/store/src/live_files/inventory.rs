//! What is there, for checks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use trainyard_core::Result;

use super::{LiveFiles, blocking, failed, is_absent};

impl LiveFiles {
    /// Every live file of every run that was last written before `older_than`.
    pub async fn older_than(&self, older_than: SystemTime) -> Result<Vec<PathBuf>> {
        let root = self.root.clone();
        blocking(move || {
            let mut found = Vec::new();
            collect_older(&root, older_than, &mut found)?;
            found.sort();
            Ok(found)
        })
        .await
    }

    /// Removes a file that [`LiveFiles::older_than`] gave, and the folders that are empty then.
    pub async fn remove_file(&self, file: PathBuf) -> Result<()> {
        let root = self.root.clone();
        blocking(move || {
            match fs::remove_file(&file) {
                Err(error) if !is_absent(&error) => return Err(failed(error)),
                _ => {}
            }
            for folder in file.ancestors().skip(1).take_while(|folder| *folder != root && folder.starts_with(&root)) {
                // Not empty, most likely.
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }
}

fn collect_older(folder: &Path, older_than: SystemTime, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // What is gone meanwhile is nothing to find.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            collect_older(&entry.path(), older_than, found)?;
        } else if metadata.modified().is_ok_and(|at| at < older_than) {
            found.push(entry.path());
        }
    }
    Ok(())
}
