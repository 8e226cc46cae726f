//! Small blobs on disk, many to a file: a file of its own for each would cost more than its content.
//!
//! `DIR/blobs/packs/{id}.pack` holds records ([`record`]), one after the other; [`writer`] appends those that come at the same time with one
//! sync. `{id}.index` tells what is in a pack that is not written to any more, so that a start need not walk through all of them; without
//! it, or beyond what it covers, the pack itself is read. Nothing else names a blob's pack: whatever is lost but the packs can be made again.
//!
//! Invariants: a process appends only to packs that it made itself, and only after all that it appended before is synced, so of a pack that a crash
//! cut off, only what nobody was told of can be torn. The header at a place, not an index, says which blob it is. A record that was deleted
//! keeps its place and gives its space back.

mod index;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use trainyard_core::ids::Digest;

use self::{
    index::{Index, Location, PackIndex, key},
    record::{HEADER_BYTES, Header, State, sha256},
    writer::Writer,
};
use super::Listed;

/// The small blobs of a folder.
pub(super) struct Packs {
    shared: Arc<Shared>,
    writer: Writer,
}

/// What the writer and the readers know.
struct Shared {
    folder: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    packs: Vec<Pack>,
    index: Index,
}

/// A pack as far as it was read.
struct Pack {
    name: String,
    /// How far its records are in the index of this process.
    read: u64,
    /// How far its index file reaches.
    indexed: u64,
    /// Whether this process writes, or wrote, it: it is never read from the disk then.
    ours: bool,
}

/// A blob in a pack.
pub(super) struct Packed {
    pub(super) pack: File,
    /// Where its content begins.
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Packs {
    /// Reads which blobs there are in `folder`, which need not exist.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared { folder, known: Mutex::default() });
        shared.refresh()?;
        Ok(Self { writer: Writer::new(shared.clone()), shared })
    }

    /// Appends a blob; it is on stable storage when this returns, and nothing of it is left if it fails.
    pub(super) async fn append(&self, digest: &Digest, content: Bytes) -> io::Result<()> {
        self.writer.append(Header::of(digest, &content), content).await
    }

    /// Whether it is worth a look; only a forged digest makes it wrong.
    pub(super) fn may_hold(&self, digest: &Digest) -> bool {
        !self.shared.known().index.candidates(key(&sha256(digest))).is_empty()
    }

    /// The blob with this digest, if this process knows of it.
    pub(super) fn find(&self, digest: &Digest) -> io::Result<Option<Packed>> {
        let sha256 = sha256(digest);
        let found = self.shared.locate(&sha256)?.into_iter().next();
        Ok(found.map(|(location, pack, header)| Packed { pack, offset: u64::from(location.offset) + HEADER_BYTES, size: header.size }))
    }

    /// Like [`Packs::find`], after a look at what other processes wrote meanwhile.
    pub(super) fn find_new(&self, digest: &Digest) -> io::Result<Option<Packed>> {
        self.shared.refresh()?;
        self.find(digest)
    }

    /// Whether the blob is there with this content. One with other content is damaged, and taken out.
    pub(super) fn holds(&self, digest: &Digest, content: &[u8]) -> io::Result<bool> {
        let Some(found) = self.find(digest)? else { return Ok(false) };
        if found.size == content.len() as u64 && found.content()? == content {
            return Ok(true);
        }
        self.remove(digest).map(|_| false)
    }

    /// Takes the blob out and gives its space back to the file system, where that can be done; whether it was there.
    pub(super) fn remove(&self, digest: &Digest) -> io::Result<bool> {
        let sha256 = sha256(digest);
        let found = self.shared.locate(&sha256)?;
        for (location, _, header) in &found {
            let pack = File::options().write(true).open(self.shared.path(location.pack))?;
            let offset = u64::from(location.offset);
            pack.write_all_at(&Header { state: State::Gone, ..*header }.encode(), offset)?;
            pack.sync_data()?;
            self.shared.known().index.remove(key(&sha256), *location);
            if header.size > 0 {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if let Err(error) = rustix::fs::fallocate(&pack, punch, offset + HEADER_BYTES, header.size) {
                    tracing::debug!(%digest, %error, "the file system does not take back the space of a deleted blob");
                }
            }
        }
        Ok(!found.is_empty())
    }

    /// How many packs are known, after a look at what other processes wrote.
    pub(super) fn count(&self) -> io::Result<u32> {
        self.shared.refresh()?;
        Ok(u32::try_from(self.shared.known().packs.len()).unwrap_or(u32::MAX))
    }

    /// The blobs of the pack with this number, below [`Packs::count`].
    pub(super) fn list(&self, number: u32) -> io::Result<Vec<Listed>> {
        let path = self.shared.path(number);
        let Some(pack) = open(&path)? else { return Ok(Vec::new()) };
        let modified = pack.metadata()?.modified().unwrap_or(SystemTime::now());
        let mut listed = Vec::new();
        for (offset, header) in records(&pack, 0)?.0 {
            let here = Location { pack: number, offset };
            if header.state == State::Blob && self.shared.known().index.candidates(key(&header.sha256)).contains(&here) {
                listed.push(Listed { digest: header.digest(), size: header.size, modified });
            }
        }
        Ok(listed)
    }
}

impl Packed {
    /// Its content.
    pub(super) fn content(&self) -> io::Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(self.size).map_err(io::Error::other)?];
        self.pack.read_exact_at(&mut content, self.offset)?;
        Ok(content)
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change under the lock is whole before anything can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u32) -> PathBuf {
        self.folder.join(&self.known().packs[number as usize].name)
    }

    /// Every record of the digest, the newest first, by what the packs themselves say.
    fn locate(&self, sha256: &[u8; 32]) -> io::Result<Vec<(Location, File, Header)>> {
        let candidates = self.known().index.candidates(key(sha256));
        let mut found = Vec::new();
        for location in candidates {
            let Some(pack) = open(&self.path(location.pack))? else { continue };
            if let Some(header) = Header::read(&pack, u64::from(location.offset))?
                && header.state == State::Blob
                && header.sha256 == *sha256
            {
                found.push((location, pack, header));
            }
        }
        Ok(found)
    }

    /// Reads what is in the folder and not known yet.
    fn refresh(&self) -> io::Result<()> {
        let mut names = match fs::read_dir(&self.folder) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        names.sort_unstable();
        let mut known = self.known();
        for name in names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".pack")) {
            let number = match known.packs.iter().position(|pack| pack.name == name) {
                Some(number) => number,
                None => {
                    let index = PackIndex::read(&self.folder.join(&name).with_extension("index"))?.unwrap_or_default();
                    known.packs.push(Pack { name, read: index.covers, indexed: index.covers, ours: false });
                    let number = known.packs.len() - 1;
                    known.note(number, &index.entries);
                    number
                }
            };
            if !known.packs[number].ours {
                self.read_on(&mut known, number)?;
            }
        }
        Ok(())
    }

    /// Notes the records of a pack behind those that are known.
    fn read_on(&self, known: &mut Known, number: usize) -> io::Result<()> {
        let pack = &mut known.packs[number];
        let Some(file) = open(&self.folder.join(&pack.name))? else { return Ok(()) };
        let size = file.metadata()?.len();
        if size <= pack.read {
            return Ok(());
        }
        let (mut found, mut end) = records(&file, pack.read)?;
        // Others follow only when a record is synced, so no more than what was written last can be torn, or be on its way.
        if let Some((offset, header)) = found.last().copied()
            && header.state == State::Blob
            && !header.holds(&file, u64::from(offset))?
        {
            found.pop();
            end = u64::from(offset);
        }
        if end < size {
            tracing::debug!(
                pack = pack.name,
                bytes = size - end,
                "the end of a pack belongs to no blob: nobody was told that it was stored"
            );
        }
        pack.read = end;
        let entries: Vec<_> = live(&found);
        known.note(number, &entries);
        Ok(())
    }

    /// Writes index files for the packs of other processes that are gone, before this process makes one.
    fn index_others(&self) -> io::Result<()> {
        let unindexed: Vec<_> = {
            let known = self.known();
            known.packs.iter().filter(|pack| !pack.ours && pack.indexed < pack.read).map(|pack| (pack.name.clone(), pack.read)).collect()
        };
        for (name, covers) in unindexed {
            let path = self.folder.join(&name);
            let Some(pack) = open(&path)? else { continue };
            let entries = live(&records(&pack, 0)?.0);
            PackIndex { covers, entries }.write(&path.with_extension("index"))?;
            if let Some(pack) = self.known().packs.iter_mut().find(|pack| pack.name == name) {
                pack.indexed = covers;
            }
        }
        Ok(())
    }
}

impl Known {
    fn note(&mut self, number: usize, entries: &[(u64, u32)]) {
        let pack = u32::try_from(number).expect("there are fewer packs than file names of 32 digits in memory");
        for (key, offset) in entries {
            self.index.insert(*key, Location { pack, offset: *offset });
        }
    }
}

/// Index entries of the records that are blobs.
fn live(records: &[(u32, Header)]) -> Vec<(u64, u32)> {
    records.iter().filter(|(_, header)| header.state == State::Blob).map(|(offset, header)| (key(&header.sha256), *offset)).collect()
}

/// The records from `offset` on, and where they end: at the end of the file, or at bytes that are no whole record.
fn records(pack: &File, mut offset: u64) -> io::Result<(Vec<(u32, Header)>, u64)> {
    let size = pack.metadata()?.len();
    let mut found = Vec::new();
    while let (Ok(here), Some(header)) = (u32::try_from(offset), Header::read(pack, offset)?) {
        let Some(next) = header.next(offset).filter(|next| *next <= size) else { break };
        found.push((here, header));
        offset = next;
    }
    Ok((found, offset))
}

/// `None` if it is not there: a pack that came to nothing is removed.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
