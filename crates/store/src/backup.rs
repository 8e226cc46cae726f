//! Backups: everything that a server needs to begin again, in one file.
//!
//! The file is a tar archive. It begins with `manifest.json`; then come the rows of one consistent snapshot of the database
//! (`rows/TABLE/N.jsonl`, one JSON array for each row, the same for both databases), the logs that still grow (`live/`), the keys and other small
//! files of the data directory (`files/`), and every blob that the rows name (`blobs/`). Blobs never change and are there before their
//! row, so rows first is consistent, whatever a server does meanwhile. It ends with `SHA256SUMS`, which `sha256sum -c` understands, and
//! with `end.json`, without which it is a cut one.
//!
//! [`write()`] makes one, [`verify`] reads one to its end without changing anything, and [`restore()`] puts one back. Attempts' folders and
//! built environments are not in it: the first belong to agents that may be alive, the second are made again.

mod archive;
mod intent;
mod read;
mod restore;
mod rows;
mod staged;
pub(crate) mod tables;
mod write;

use serde::{Deserialize, Serialize};

pub use self::{
    intent::refuse_unfinished,
    read::{Contents, verify},
    restore::{Replace, Restored, restore},
    write::{Written, write},
};

/// The version of the archive's layout.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";
const END: &str = "end.json";
/// Files of the data directory that a server needs beside its database and blobs.
const FILES: [&str; 3] = ["client.json", "identity.json", CONFIG];
/// Folders of it, whole.
const FOLDERS: [&str; 2] = ["keys", "tls"];
const CONFIG: &str = "config.toml";

/// The first entry of a backup: what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the archive's layout.
    pub format: u32,
    /// The program that made it.
    pub program: String,
    /// The version of the database's schema.
    pub schema: i64,
    /// RFC 3339: when it was made.
    pub made: String,
    /// The tables, in the order of their rows.
    pub tables: Vec<TableRows>,
    /// How many blobs the rows name.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
}

/// A table in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    /// Its name.
    pub name: String,
    /// The names of the values of a row.
    pub columns: Vec<String>,
    /// How many rows.
    pub rows: u64,
}

impl Manifest {
    /// How many rows there are in all.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

/// The last entry of a backup: what was not as it should have been when it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// SHA-256 of `SHA256SUMS`, lower-case hex. Names this backup.
    pub sums_sha256: String,
    /// Blobs and live files that rows name and that were not there.
    pub missing: Vec<String>,
    /// Blobs whose content was not what their name says.
    pub damaged: Vec<String>,
}
