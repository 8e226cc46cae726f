//! Appends blobs to a pack: those that wait together are written together and synced once.
//!
//! One thread, started by the first blob. What a blob fails with, its own caller learns; a batch that does not fit on the disk is tried again
//! one by one, so that a small blob is not refused for a large one beside it.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    Pack, Shared,
    index::{PackIndex, key},
    record::{HEADER_BYTES, Header},
};
use crate::blobs::sync_folder;

/// A pack of this size gets no more: small enough to be copied and read through in a moment.
const FULL_BYTES: u64 = 64 << 20;

/// The most that is written before a sync, so that the first of a batch does not wait for long.
const BATCH_BYTES: usize = 8 << 20;

/// Half of what one call may be given, header and content of each.
const BATCH_BLOBS: usize = 256;

/// The way to the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<mpsc::Sender<Append>>>,
}

struct Append {
    header: Header,
    content: Bytes,
    answer: oneshot::Sender<io::Result<()>>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, thread: Mutex::new(None) }
    }

    pub(super) async fn append(&self, header: Header, content: Bytes) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the thread that writes blobs is gone");
        self.thread()?.send(Append { header, content, answer }).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    fn thread(&self) -> io::Result<mpsc::Sender<Append>> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = &*thread {
            return Ok(requests.clone());
        }
        let (requests, incoming) = mpsc::channel();
        let work = Work { shared: self.shared.clone(), open: None };
        thread::Builder::new().name("blobs".into()).spawn(move || work.run(&incoming))?;
        Ok(thread.insert(requests).clone())
    }
}

struct Work {
    shared: Arc<Shared>,
    open: Option<Open>,
}

/// The pack that is written.
struct Open {
    number: u32,
    file: File,
    end: u64,
    entries: Vec<(u64, u32)>,
}

impl Work {
    fn run(mut self, incoming: &mpsc::Receiver<Append>) {
        if let Err(error) = self.shared.index_others() {
            tracing::warn!(%error, "an index of blobs could not be written; the next start reads the blobs instead");
        }
        while let Ok(first) = incoming.recv() {
            let mut bytes = first.content.len();
            let mut batch = vec![first];
            while bytes < BATCH_BYTES
                && batch.len() < BATCH_BLOBS
                && let Ok(next) = incoming.try_recv()
            {
                bytes += next.content.len();
                batch.push(next);
            }
            self.store(batch);
        }
        if let Some(open) = self.open.take() {
            self.seal(&open);
        }
    }

    fn store(&mut self, batch: Vec<Append>) {
        match self.write(&batch) {
            Err(error) if batch.len() > 1 && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                batch.into_iter().for_each(|one| self.store(vec![one]));
            }
            result => {
                for append in batch {
                    // Whoever does not wait any more has stored a blob that nothing names.
                    let _told = append.answer.send(result.as_ref().copied().map_err(again));
                }
            }
        }
    }

    fn write(&mut self, batch: &[Append]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) if open.end < FULL_BYTES => open,
            full => {
                full.iter().for_each(|open| self.seal(open));
                self.create()?
            }
        };
        let begun = open.end;
        match open.append(batch) {
            Ok(()) if begun > 0 => {}
            // The first bytes of a pack: its name has to last as well.
            Ok(()) => sync_folder(&self.shared.folder).inspect_err(|_| self.drop_pack(&open))?,
            // After a failed sync nobody knows what is on the disk, so that pack is left as it is.
            Err(Failure::Sync(error)) => return Err(error),
            Err(Failure::Write(error)) => {
                if open.cut().is_err() {
                    return Err(error);
                }
                if open.end == 0 {
                    self.drop_pack(&open);
                } else {
                    self.open = Some(open);
                }
                return Err(error);
            }
        }
        let mut known = self.shared.known();
        let noted = open.entries.len() - batch.len();
        known.note(open.number as usize, &open.entries[noted..]);
        known.packs[open.number as usize].read = open.end;
        drop(known);
        self.open = Some(open);
        Ok(())
    }

    fn create(&self) -> io::Result<Open> {
        let folder = &self.shared.folder;
        match fs::create_dir(folder) {
            Ok(()) => folder.parent().map_or(Ok(()), sync_folder)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        // Names in the order of time, like everything that this program names.
        let name = format!("{}.pack", Uuid::now_v7().simple());
        // Held while it is made, or a look at the folder would take it for the pack of another process.
        let mut known = self.shared.known();
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(&name))?;
        known.packs.push(Pack { name, read: 0, indexed: 0, ours: true });
        let number = u32::try_from(known.packs.len() - 1).map_err(io::Error::other)?;
        Ok(Open { number, file, end: 0, entries: Vec::new() })
    }

    /// Removes a pack without a blob.
    fn drop_pack(&self, open: &Open) {
        if let Err(error) = fs::remove_file(self.shared.path(open.number)) {
            tracing::warn!(%error, "a pack without blobs could not be removed");
        }
    }

    /// Writes what is in it beside it. Without that the next start reads the pack.
    fn seal(&self, open: &Open) {
        let index = PackIndex { covers: open.end, entries: open.entries.clone() };
        if let Err(error) = index.write(&self.shared.path(open.number).with_extension("index")) {
            tracing::warn!(%error, "an index of blobs could not be written; the next start reads the blobs instead");
        }
    }
}

enum Failure {
    Write(io::Error),
    Sync(io::Error),
}

impl Open {
    /// Writes and syncs the whole batch. `end` and `entries` are those before the batch if that fails.
    fn append(&mut self, batch: &[Append]) -> Result<(), Failure> {
        let headers: Vec<_> = batch.iter().map(|append| append.header.encode()).collect();
        let mut slices: Vec<_> =
            headers.iter().zip(batch).flat_map(|(header, append)| [IoSlice::new(header), IoSlice::new(&append.content)]).collect();
        write_all(&mut self.file, &mut slices).map_err(Failure::Write)?;
        crate::fail_point!("blob.written", io).map_err(Failure::Write)?;
        self.file.sync_data().map_err(Failure::Sync)?;
        for append in batch {
            let offset = u32::try_from(self.end).expect("a pack gets nothing more long before 4 GiB");
            self.entries.push((key(&append.header.sha256), offset));
            self.end += HEADER_BYTES + append.header.size;
        }
        Ok(())
    }

    /// Takes back what was written of a batch that failed.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end)).map(drop)
    }
}

fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Empty ones at the front would look like the end of the disk.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The same error for each of a batch.
fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}
