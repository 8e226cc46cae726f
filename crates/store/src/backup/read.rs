//! Reading a backup to its end: whole, undamaged, and of a kind that this program understands.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use trainyard_core::{Error, ErrorKind, Result};

use super::{
    CONFIG, END, Ending, FORMAT, MANIFEST, Manifest, SUMS,
    archive::{self, Part},
    tables,
};
use crate::{
    db::migrate,
    progress::{Progress, Unit},
};

/// The most that an entry may have which is read into memory.
const SMALL_BYTES: u64 = 64 << 20;

/// What is in a backup that was read to its end.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its first entry.
    pub manifest: Manifest,
    /// Its last one.
    pub ending: Ending,
    /// The configuration file of the data directory that it is of, if there was one.
    pub config: Option<String>,
}

/// Reads the backup `file` to its end and compares every checksum. Nothing is changed.
///
/// Invalid, and which entry, when it is damaged or cut; Unavailable when a newer program made it; NotFound when there is none.
pub async fn verify(file: &Path, progress: Arc<dyn Progress>) -> Result<Contents> {
    let length = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    progress.begin("reading the backup", length, Unit::Bytes);
    let mut entries = Entries::open(file);
    let manifest = manifest(&mut entries).await?;
    let mut verifying = Verifying {
        file,
        sums: Sha256::new_with_prefix(archive::sum_line(&manifest.1, MANIFEST)),
        entries: BTreeMap::from([(MANIFEST.to_owned(), manifest.1)]),
        blobs: 0,
        rows: BTreeMap::new(),
    };
    let (mut config, mut ending) = (None, None);
    while let Some(entry) = entries.next().await? {
        if ending.is_some() {
            return Err(verifying.wrong(&format!("`{}` stands after its end", entry.name)));
        }
        progress.advance(entry.size);
        match entry.name.as_str() {
            END => ending = Some(entries.document::<Ending>(&entry).await?),
            SUMS => verifying.compare(&mut entries, &entry).await?,
            name if name.strip_prefix("files/") == Some(CONFIG) => {
                let (content, sha256) = entries.content(&entry).await?;
                config = Some(String::from_utf8_lossy(&content).into_owned());
                verifying.note(&entry.name, sha256);
            }
            _ => verifying.entry(&mut entries, &entry).await?,
        }
    }
    let ending = ending.ok_or_else(|| archive::cut(file))?;
    verifying.finish(&manifest.0, &ending)?;
    Ok(Contents { manifest: manifest.0, ending, config })
}

/// The first entry, with its sum.
async fn manifest(entries: &mut Entries) -> Result<(Manifest, String)> {
    let file = entries.file.clone();
    let wrong = |why: String| Error::invalid(format!("the backup {} is damaged or is no backup: {why}", file.display()));
    let Some(first) = entries.next().await? else { return Err(wrong("it is empty".into())) };
    if first.name != MANIFEST {
        return Err(wrong(format!("it begins with `{}`", first.name)));
    }
    let (content, sha256) = entries.content(&first).await?;
    let version: Version = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
    if version.format > FORMAT || version.schema > migrate::NEWEST {
        let message = format!(
            "the backup {} was made by a newer program ({}): it has format {} and version {} of the schema, and this program knows up to {FORMAT} and {}; \
             restore it with that one",
            file.display(),
            version.program,
            version.format,
            version.schema,
            migrate::NEWEST
        );
        return Err(Error::new(ErrorKind::Unavailable, message));
    }
    let manifest: Manifest = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
    for table in &manifest.tables {
        let known = tables::table_of(manifest.schema, &table.name);
        let same = known.is_some_and(|known| known.columns(manifest.schema).map(|column| column.name).eq(table.columns.iter()));
        if !same {
            return Err(wrong(format!("its table `{}` is not the one of version {} of the schema", table.name, manifest.schema)));
        }
    }
    Ok((manifest, sha256))
}

/// What is read of a manifest of any program.
#[derive(serde::Deserialize)]
struct Version {
    format: u32,
    schema: i64,
    program: String,
}

struct Verifying<'a> {
    file: &'a Path,
    /// What `SHA256SUMS` must hash to.
    sums: Sha256,
    /// The sums of all entries but blobs.
    entries: BTreeMap<String, String>,
    blobs: u64,
    rows: BTreeMap<String, u64>,
}

impl Verifying<'_> {
    fn wrong(&self, why: &str) -> Error {
        Error::invalid(format!("the backup {} is damaged: {why}; use another", self.file.display()))
    }

    fn note(&mut self, name: &str, sha256: String) {
        self.sums.update(archive::sum_line(&sha256, name));
        if archive::blob_name(name).is_some() {
            self.blobs += 1;
        } else {
            self.entries.insert(name.to_owned(), sha256);
        }
    }

    async fn entry(&mut self, entries: &mut Entries, entry: &Entry) -> Result<()> {
        let table = entry.name.strip_prefix("rows/").and_then(|rest| rest.split_once('/')).map(|(table, _)| table.to_owned());
        let mut lines = 0;
        let sha256 = entries
            .stream(|bytes| {
                if table.is_some() {
                    lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                }
            })
            .await?;
        if let Some(table) = table {
            *self.rows.entry(table).or_default() += lines;
        }
        self.note(&entry.name, sha256);
        Ok(())
    }

    /// Says which entry it is when the sums do not agree.
    async fn compare(&mut self, entries: &mut Entries, entry: &Entry) -> Result<()> {
        let mut rest = String::new();
        let mut differs = None;
        let known = &self.entries;
        let sha256 = entries
            .stream(|bytes| {
                rest.push_str(&String::from_utf8_lossy(bytes));
                let end = rest.rfind('\n').map_or(0, |at| at + 1);
                let whole: String = rest.drain(..end).collect();
                for (sum, name) in whole.lines().filter_map(|line| line.split_once("  ")) {
                    if archive::blob_name(name).is_none() && known.get(name).is_none_or(|found| found != sum) {
                        differs.get_or_insert_with(|| name.to_owned());
                    }
                }
            })
            .await?;
        let expected = hex::encode(self.sums.clone().finalize());
        match differs {
            Some(name) => Err(self.wrong(&format!("`{name}` is not what it was when it was written"))),
            None if sha256 != expected => Err(self.wrong(&format!("a blob or `{}` is not what it was when it was written", entry.name))),
            None => Ok(()),
        }
    }

    fn finish(&self, manifest: &Manifest, ending: &Ending) -> Result<()> {
        if hex::encode(self.sums.clone().finalize()) != ending.sums_sha256 {
            return Err(self.wrong("its checksums are not those that its end names"));
        }
        for table in &manifest.tables {
            let found = self.rows.get(&table.name).copied().unwrap_or_default();
            if found != table.rows {
                return Err(self.wrong(&format!("the table `{}` has {found} rows instead of {}", table.name, table.rows)));
            }
        }
        let missing = ending.missing.iter().filter(|name| name.starts_with("blobs/")).count() as u64;
        if self.blobs + missing != manifest.blobs {
            return Err(self.wrong(&format!("it has {} blobs instead of {}", self.blobs, manifest.blobs - missing)));
        }
        Ok(())
    }
}

/// The entries of a backup, one after the other.
pub(super) struct Entries {
    parts: mpsc::Receiver<Result<Part>>,
    file: std::path::PathBuf,
}

/// The head of an entry; its content comes next.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
}

impl Entries {
    pub(super) fn open(file: &Path) -> Self {
        Self { parts: archive::parts(file), file: file.to_owned() }
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.file.display()
    }

    /// The next entry. The content of the one before must have been read.
    pub(super) async fn next(&mut self) -> Result<Option<Entry>> {
        match self.parts.recv().await.transpose()? {
            None => Ok(None),
            Some(Part::Begin { name, size }) => Ok(Some(Entry { name, size })),
            Some(Part::Bytes(_) | Part::End { .. }) => Err(Error::internal("an entry of a backup was not read to its end")),
        }
    }

    /// The next bytes of the present entry, or its sum at its end.
    pub(super) async fn piece(&mut self) -> Result<Piece> {
        match self.parts.recv().await.transpose()? {
            Some(Part::Bytes(bytes)) => Ok(Piece::Bytes(bytes)),
            Some(Part::End { sha256 }) => Ok(Piece::End { sha256 }),
            Some(Part::Begin { .. }) | None => Err(Error::internal("an entry of a backup has no end")),
        }
    }

    /// Hands the content of the present entry to `take`, piece by piece; its sum.
    pub(super) async fn stream(&mut self, mut take: impl FnMut(&[u8])) -> Result<String> {
        loop {
            match self.piece().await? {
                Piece::Bytes(bytes) => take(&bytes),
                Piece::End { sha256 } => return Ok(sha256),
            }
        }
    }

    /// The whole content of a small entry, and its sum.
    pub(super) async fn content(&mut self, entry: &Entry) -> Result<(Vec<u8>, String)> {
        if entry.size > SMALL_BYTES {
            return Err(Error::invalid(format!(
                "`{}` in the backup {} has {} bytes, which cannot be",
                entry.name,
                self.shown(),
                entry.size
            )));
        }
        let mut content = Vec::new();
        let sha256 = self.stream(|bytes| content.extend_from_slice(bytes)).await?;
        Ok((content, sha256))
    }

    async fn document<T: serde::de::DeserializeOwned>(&mut self, entry: &Entry) -> Result<T> {
        let (content, _) = self.content(entry).await?;
        serde_json::from_slice(&content)
            .map_err(|error| Error::invalid(format!("`{}` in the backup {} is damaged", entry.name, self.shown())).with_source(error))
    }
}

/// A part of the present entry.
pub(super) enum Piece {
    Bytes(Bytes),
    End { sha256: String },
}
