//! The tar file of a backup, as streams: entries whose bytes come from and go to asynchronous code, while a thread of its own does the reading and
//! writing. Every entry is hashed on its way.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};
use trainyard_core::{Error, ErrorKind, Result};

use super::{END, Ending, SUMS};

/// Pieces on their way between the two sides.
const PIECES: usize = 8;
const PIECE_BYTES: usize = 256 << 10;

/// Where a backup is written to. Nothing is at its final place before [`ArchiveWriter::finish`].
pub(super) struct ArchiveWriter {
    /// `None` once the last was sent.
    pieces: Option<mpsc::Sender<Piece>>,
    /// `None` once its end was seen.
    thread: Option<JoinHandle<Result<Ending>>>,
    /// Bytes that the present entry still lacks.
    left: u64,
    partial: PathBuf,
    file: PathBuf,
}

enum Piece {
    Begin { name: String, size: u64 },
    Bytes(Bytes),
    Finish { missing: Vec<String> },
}

impl ArchiveWriter {
    /// Begins the backup `file`, as `file.partial` until it is whole. `modified_s` is what every entry says of its time, in seconds.
    pub(super) fn create(file: &Path, modified_s: u64) -> Result<Self> {
        let mut partial = file.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let open = |path: &Path| File::options().create(true).truncate(true).read(true).write(true).mode(0o600).open(path);
        let target = open(&partial).map_err(|error| failed(&partial, error))?;
        // Gone with the last handle: one line for each blob is too much for memory.
        let mut sums_path = partial.as_os_str().to_owned();
        sums_path.push(".sums");
        let sums = open(Path::new(&sums_path)).and_then(|sums| fs::remove_file(&sums_path).map(|()| sums));
        let sums = BufWriter::new(sums.map_err(|error| failed(&partial, error))?);
        let (sender, receiver) = mpsc::channel(PIECES);
        let shown = partial.clone();
        let thread = tokio::task::spawn_blocking(move || {
            let writing = Writing { builder: tar::Builder::new(BufWriter::new(target)), sums, damaged: Vec::new(), modified_s };
            writing.run(receiver).map_err(|error| failed(&shown, error))
        });
        Ok(Self { pieces: Some(sender), thread: Some(thread), left: 0, partial, file: file.to_owned() })
    }

    /// Begins an entry of `size` bytes, which must follow.
    pub(super) async fn begin(&mut self, name: impl Into<String>, size: u64) -> Result<()> {
        if self.left > 0 {
            return Err(Error::internal("an entry of a backup was cut"));
        }
        self.left = size;
        self.send(Piece::Begin { name: name.into(), size }).await
    }

    /// The next bytes of the entry.
    pub(super) async fn bytes(&mut self, bytes: Bytes) -> Result<()> {
        self.left =
            self.left.checked_sub(bytes.len() as u64).ok_or_else(|| Error::internal("an entry of a backup is longer than was said"))?;
        if bytes.is_empty() { Ok(()) } else { self.send(Piece::Bytes(bytes)).await }
    }

    /// A whole entry.
    pub(super) async fn entry(&mut self, name: impl Into<String>, content: Bytes) -> Result<()> {
        self.begin(name, content.len() as u64).await?;
        self.bytes(content).await
    }

    /// Writes the sums and the ending, flushes everything to the disk, and moves the file to its place. After an error nothing is left.
    pub(super) async fn finish(mut self, missing: Vec<String>) -> Result<Ending> {
        match self.try_finish(missing).await {
            Ok(ending) => Ok(ending),
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    async fn try_finish(&mut self, missing: Vec<String>) -> Result<Ending> {
        if self.left > 0 {
            return Err(Error::internal("the last entry of a backup was cut"));
        }
        self.send(Piece::Finish { missing }).await?;
        let ending = self.end().await?;
        let placed = fs::rename(&self.partial, &self.file).and_then(|()| sync_folder_of(&self.file));
        placed.map_err(|error| failed(&self.file, error))?;
        Ok(ending)
    }

    /// Removes what was written.
    pub(super) async fn abandon(mut self) {
        // The thread ends because nothing comes any more; its error is about that.
        let _ = self.end().await;
        let _ = fs::remove_file(&self.partial);
    }

    async fn send(&mut self, piece: Piece) -> Result<()> {
        let sent = match &self.pieces {
            Some(pieces) => pieces.send(piece).await.is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        // The thread ended early, and knows why.
        self.end().await?;
        Err(Error::internal("a backup was written to after its end"))
    }

    /// Lets the thread come to its end.
    async fn end(&mut self) -> Result<Ending> {
        self.pieces = None;
        let Some(thread) = self.thread.take() else { return Err(Error::internal("a backup was ended twice")) };
        thread.await.map_err(Error::internal)?
    }
}

/// The thread's side.
struct Writing {
    builder: tar::Builder<BufWriter<File>>,
    sums: BufWriter<File>,
    damaged: Vec<String>,
    modified_s: u64,
}

impl Writing {
    fn run(mut self, mut pieces: mpsc::Receiver<Piece>) -> io::Result<Ending> {
        loop {
            match pieces.blocking_recv() {
                Some(Piece::Begin { name, size }) => self.entry(&name, size, &mut pieces)?,
                Some(Piece::Finish { missing }) => return self.finish(missing),
                Some(Piece::Bytes(_)) => return Err(io::Error::other("bytes of no entry")),
                None => return Err(io::Error::other("the backup was given up")),
            }
        }
    }

    fn entry(&mut self, name: &str, size: u64, pieces: &mut mpsc::Receiver<Piece>) -> io::Result<()> {
        let mut content = Incoming { pieces, present: Bytes::new(), left: size, hasher: Sha256::new() };
        self.builder.append_data(&mut header(size, self.modified_s), name, &mut content)?;
        if content.left > 0 {
            return Err(io::Error::other(format!("`{name}` lacks {} bytes", content.left)));
        }
        let sha256 = hex::encode(content.hasher.finalize());
        if blob_name(name).is_some_and(|digest| digest != sha256) {
            self.damaged.push(name.to_owned());
        }
        self.sums.write_all(sum_line(&sha256, name).as_bytes())
    }

    fn finish(mut self, missing: Vec<String>) -> io::Result<Ending> {
        let mut sums = self.sums.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = sums.stream_position()?;
        sums.rewind()?;
        let mut hashed = Hashing { inner: BufReader::new(sums), hasher: Sha256::new() };
        self.builder.append_data(&mut header(size, self.modified_s), SUMS, &mut hashed)?;
        let ending = Ending { sums_sha256: hex::encode(hashed.hasher.finalize()), missing, damaged: self.damaged };
        let text = serde_json::to_vec_pretty(&ending)?;
        self.builder.append_data(&mut header(text.len() as u64, self.modified_s), END, text.as_slice())?;
        self.builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(ending)
    }
}

fn header(size: u64, modified_s: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(modified_s);
    header
}

/// A line of `SHA256SUMS`.
pub(super) fn sum_line(sha256: &str, name: &str) -> String {
    format!("{sha256}  {name}\n")
}

/// The digest that the name of a blob's entry says.
pub(super) fn blob_name(name: &str) -> Option<&str> {
    name.strip_prefix("blobs/")?.split_once('/').map(|(_, digest)| digest)
}

/// Bytes of one entry as they come from the other side.
struct Incoming<'a> {
    pieces: &'a mut mpsc::Receiver<Piece>,
    present: Bytes,
    left: u64,
    hasher: Sha256,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.present.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.present = bytes,
                Some(Piece::Begin { .. } | Piece::Finish { .. }) => return Err(io::Error::other("an entry was cut")),
                None => return Err(io::Error::other("the backup was given up")),
            }
        }
        let piece = self.present.split_to(self.present.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        self.hasher.update(&piece);
        self.left = self.left.saturating_sub(piece.len() as u64);
        Ok(piece.len())
    }
}

struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// What comes out of a backup.
pub(super) enum Part {
    /// An entry begins.
    Begin {
        /// Its name.
        name: String,
        /// Its bytes.
        size: u64,
    },
    /// The next bytes of it.
    Bytes(Bytes),
    /// It ends.
    End {
        /// SHA-256 of it, lower-case hex.
        sha256: String,
    },
}

/// The entries of a backup, first to last; read by a thread that ends when the receiver is dropped.
pub(super) fn parts(file: &Path) -> mpsc::Receiver<Result<Part>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = send_parts(&file, &sender) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

fn send_parts(file: &Path, sender: &mpsc::Sender<Result<Part>>) -> Result<()> {
    let opened = File::open(file).map_err(|error| {
        let kind = if error.kind() == io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Unavailable };
        Error::new(kind, format!("the backup {} cannot be opened", file.display())).with_source(error)
    })?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(PIECE_BYTES, opened));
    for entry in archive.entries().map_err(|error| damaged(file, error))? {
        let mut entry = entry.map_err(|error| damaged(file, error))?;
        let name = entry.path().map_err(|error| damaged(file, error))?.to_string_lossy().into_owned();
        let size = entry.size();
        if sender.blocking_send(Ok(Part::Begin { name: name.clone(), size })).is_err() {
            return Ok(());
        }
        let mut hasher = Sha256::new();
        let mut left = size;
        while left > 0 {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
            let count = entry.read(&mut piece).map_err(|error| damaged(file, error))?;
            if count == 0 {
                return Err(cut(file));
            }
            piece.truncate(count);
            hasher.update(&piece);
            left -= count as u64;
            if sender.blocking_send(Ok(Part::Bytes(piece.into()))).is_err() {
                return Ok(());
            }
        }
        if sender.blocking_send(Ok(Part::End { sha256: hex::encode(hasher.finalize()) })).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The failure for a file that ends too early.
pub(super) fn cut(file: &Path) -> Error {
    Error::invalid(format!("the backup {} is cut: its end is missing; use another", file.display()))
}

fn damaged(file: &Path, error: io::Error) -> Error {
    Error::invalid(format!("the backup {} is damaged or is no backup; use another", file.display())).with_source(error)
}

fn sync_folder_of(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn failed(file: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the backup {} cannot be written", file.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_backup_whose_place_goes_away_fails_with_the_reason_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.tar");
        let mut archive = ArchiveWriter::create(&file, 1).unwrap();
        archive.entry("one", Bytes::from_static(b"content")).await.unwrap();
        // The rename at the end finds a folder in its place.
        fs::create_dir(&file).unwrap();
        fs::write(file.join("x"), "").unwrap();
        let error = archive.finish(Vec::new()).await.unwrap_err();
        assert!(error.message().contains("b.tar cannot be written"), "{error}");
        assert!(!dir.path().join("b.tar.partial").exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_entry_that_is_cut_fails_the_backup() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = ArchiveWriter::create(&dir.path().join("b.tar"), 1).unwrap();
        archive.begin("one", 9).await.unwrap();
        archive.bytes(Bytes::from_static(b"four")).await.unwrap();
        assert!(archive.begin("two", 1).await.is_err());
        assert!(archive.bytes(Bytes::from_static(b"too many")).await.is_err());
        archive.abandon().await;
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thread_that_ended_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = ArchiveWriter::create(&dir.path().join("b.tar"), 1).unwrap();
        // No tar has an entry with such a name.
        let mut result = archive.entry("../up", Bytes::from_static(b"x")).await;
        for _ in 0..1000 {
            if result.is_err() {
                break;
            }
            result = archive.entry("next", Bytes::from_static(b"x")).await;
        }
        assert!(result.unwrap_err().message().contains("b.tar.partial cannot be written"));
        archive.abandon().await;
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
