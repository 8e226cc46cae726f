//! Reading uploaded zips: opens them, asks [`trainyard_core::archive`] whether they are taken, and verifies that what their
//! headers declare is true. What is written where is left to [`unpack()`], what is allowed to the core.
//!
//! Only the central directory is believed, and only as far as it proves right: [`inspect`] inflates every file once and
//! refuses an archive with a wrong size, a wrong checksum or overlapping entries. So an archive that was inspected unpacks, and
//! a bomb that lies about its sizes is refused at the upload, at the first byte over what it declared.
//!
//! Everything but [`inspect_staged`] is synchronous: a usual 100 kB zip takes a fraction of a millisecond, a large one belongs in a
//! blocking task.

mod ends;
mod inflate;
mod one;
mod unpack;

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, SeekFrom},
    path::Path,
};

use trainyard_core::{
    Error, ErrorKind, Result,
    archive::{ArchiveLimits, ArchivePlan, EntryHeader, Method, PlannedFile, check},
};
use zip::{CompressionMethod, ZipArchive, result::ZipError};

use self::inflate::{Broken, Inflater};
pub use self::{
    one::{Wanted, read_staged},
    unpack::unpack,
};
use crate::blobs::{StagedBlob, StagedContent, storage_error};

/// What the zip crate may read to find and parse the central directory. The most that 65,534 entries with usual names need is
/// 12 MB; without a bound, a directory of gigabytes would be held in memory before the first rule is asked.
const DIRECTORY_BUDGET_BYTES: u64 = 48 << 20;

/// Inflating this much takes less than handing it to another thread and waiting for the answer on a busy machine, about a millisecond.
const INLINE_BYTES: u64 = 512 << 10;

/// Reads a staged upload, wherever its content is: [`inspect_bytes`] here and now if little is to be inflated, else in a blocking task.
pub async fn inspect_staged(staged: &StagedBlob, limits: ArchiveLimits) -> Result<ArchivePlan> {
    let task = match staged.content() {
        StagedContent::Memory(bytes) => {
            if let Some(plan) = inspect_if_small(bytes, &limits)? {
                return Ok(plan);
            }
            let bytes = bytes.clone();
            tokio::task::spawn_blocking(move || inspect_bytes(&bytes, &limits))
        }
        StagedContent::File(path) => {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || inspect(&path, &limits))
        }
    };
    task.await.map_err(Error::internal)?
}

/// As [`inspect_bytes`] if the archive declares little, else nothing: 100 kB may stand for 20 MB.
fn inspect_if_small(bytes: &[u8], limits: &ArchiveLimits) -> Result<Option<ArchivePlan>> {
    let budget = Cell::new(DIRECTORY_BUDGET_BYTES);
    let opened = Opened::new(Cursor::new(bytes), &budget, limits)?;
    if opened.plan.total_bytes <= INLINE_BYTES { opened.verified().map(Some) } else { Ok(None) }
}

/// Decides whether the zip in the file at `path` is taken, and verifies all of its content.
///
/// [`ErrorKind::Invalid`] and [`ErrorKind::TooLarge`] are the archive's fault; the sentence says which entry and why.
pub fn inspect(path: &Path, limits: &ArchiveLimits) -> Result<ArchivePlan> {
    let file = File::open(path).map_err(|error| storage_error("the uploaded zip cannot be read", error))?;
    inspect_reader(BufReader::new(file), limits)
}

/// As [`inspect`], of bytes in memory. Takes any bytes: this is also what is fuzzed.
pub fn inspect_bytes(bytes: &[u8], limits: &ArchiveLimits) -> Result<ArchivePlan> {
    inspect_reader(Cursor::new(bytes), limits)
}

fn inspect_reader(reader: impl Read + Seek, limits: &ArchiveLimits) -> Result<ArchivePlan> {
    let budget = Cell::new(DIRECTORY_BUDGET_BYTES);
    Opened::new(reader, &budget, limits)?.verified()
}

/// An archive whose headers keep the rules. What they declare about the content is not verified yet.
struct Opened<'a, R> {
    archive: ZipArchive<Budgeted<'a, R>>,
    plan: ArchivePlan,
}

impl<'a, R: Read + Seek> Opened<'a, R> {
    fn new(reader: R, budget: &'a Cell<u64>, limits: &ArchiveLimits) -> Result<Self> {
        let mut reader = Budgeted { inner: reader, left: budget };
        ends::check(&mut reader)?;
        let mut archive = ZipArchive::new(reader).map_err(unreadable)?;
        budget.set(u64::MAX);
        let headers: Vec<zip::read::ZipFileEntry<'_>> =
            (0..archive.len()).map(|index| archive.by_index_data(index)).collect::<Result<_, _>>().map_err(unreadable)?;
        let plan = check(headers.iter().map(header), limits)?;
        drop(headers);
        if archive.has_duplicate_names() {
            return Err(duplicate(archive, limits));
        }
        check_overlap(&mut archive)?;
        Ok(Self { archive, plan })
    }

    /// Reads all of it and gives the plan, which is then true.
    fn verified(mut self) -> Result<ArchivePlan> {
        let mut inflater = Inflater::new();
        for index in 0..self.plan.files.len() {
            self.read(index, &mut inflater, |_| Ok(()))?;
        }
        Ok(self.plan)
    }

    /// Reads the planned file `index`, handing its bytes to `sink` piece by piece; at the end they proved to be as many as
    /// declared and to have the checksum declared.
    fn read(&mut self, index: usize, inflater: &mut Inflater, sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let file: &PlannedFile = &self.plan.files[index];
        let mut entry = self.archive.by_index_raw(file.entry).map_err(unreadable)?;
        let (method, checksum) = (method(entry.compression()), entry.crc32());
        let broken = match inflater.run(&mut entry, method, file.size_bytes, checksum, sink) {
            Ok(()) => return Ok(()),
            Err(broken) => broken,
        };
        let at = format!("entry {} of the zip (`{}`)", file.entry + 1, trainyard_core::archive::printable(file.path.as_bytes()));
        Err(match broken {
            Broken::Longer => Error::invalid(format!("{at} unpacks to more than the {} bytes that it declares", file.size_bytes)),
            Broken::Shorter(found) => {
                Error::invalid(format!("{at} unpacks to {found} bytes where it declares {}; the zip is damaged", file.size_bytes))
            }
            Broken::Checksum => Error::invalid(format!("{at} does not have the checksum that it declares; the zip is damaged")),
            Broken::Stream => Error::invalid(format!("{at} cannot be inflated; the zip is damaged")),
            Broken::Io(error) => storage_error("the uploaded zip cannot be read", error),
            Broken::Sink(error) => error,
        })
    }
}

fn header<'a>(entry: &'a zip::read::ZipFileEntry<'_>) -> EntryHeader<'a> {
    EntryHeader {
        name: entry.name_raw(),
        // Of the attributes and not `unix_mode()`, which believes the system named in the header before it looks.
        unix_mode: entry.external_attributes() >> 16,
        compressed_bytes: entry.compressed_size(),
        size_bytes: entry.size(),
        encrypted: entry.encrypted(),
        method: method(entry.compression()),
    }
}

#[expect(deprecated, reason = "`to_u16` is only for those who match on numbers; here it is for the message")]
fn method(method: CompressionMethod) -> Method {
    match method {
        CompressionMethod::Stored => Method::Stored,
        CompressionMethod::Deflated => Method::Deflated,
        other => Method::Other(other.to_u16()),
    }
}

/// Refuses entries that share bytes with each other or with the central directory: how small zips become big bombs.
fn check_overlap<R: Read + Seek>(archive: &mut ZipArchive<Budgeted<'_, R>>) -> Result<()> {
    let directory_start = archive.central_directory_start();
    let mut ranges = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(unreadable)?;
        let data_start = entry.data_start().unwrap_or(u64::MAX);
        ranges.push((entry.header_start(), data_start.saturating_add(entry.compressed_size()), index));
    }
    ranges.sort_unstable();
    let entry_past_end = ranges.iter().find(|(_, end, _)| *end > directory_start).map(|(_, _, index)| *index);
    if let Some(index) = entry_past_end {
        return Err(Error::invalid(format!("entry {} of the zip reaches into the directory at its end; the zip is damaged", index + 1)));
    }
    match ranges.array_windows().find(|[(_, end, _), (next, _, _)]| end > next) {
        Some([(_, _, a), (_, _, b)]) => Err(Error::invalid(format!("entries {} and {} of the zip overlap", a + 1, b + 1))),
        None => Ok(()),
    }
}

/// The error for an archive with a name that occurs twice. The zip crate keeps only one of the two entries, so the names are
/// read again from the directory.
fn duplicate<R: Read + Seek>(archive: ZipArchive<Budgeted<'_, R>>, limits: &ArchiveLimits) -> Error {
    let start = archive.central_directory_start();
    let generic = || Error::invalid("two entries of the zip have the same name");
    let Ok(names) = directory_names(&mut archive.into_inner(), start) else { return generic() };
    let headers = names.iter().map(|name| EntryHeader {
        name,
        unix_mode: 0,
        compressed_bytes: 0,
        size_bytes: 0,
        encrypted: false,
        method: Method::Stored,
    });
    check(headers, limits).err().unwrap_or_else(generic)
}

fn directory_names(reader: &mut (impl Read + Seek), start: u64) -> io::Result<Vec<Vec<u8>>> {
    reader.seek(SeekFrom::Start(start))?;
    let mut names = Vec::new();
    let mut header = [0; 46];
    while reader.read_exact(&mut header).is_ok() && header.starts_with(b"PK\x01\x02") {
        let length = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let mut name = vec![0; length(28)];
        reader.read_exact(&mut name)?;
        names.push(name);
        reader.seek(SeekFrom::Current((length(30) + length(32)) as i64))?;
    }
    Ok(names)
}

/// The archive's structure cannot be read.
fn unreadable(error: ZipError) -> Error {
    match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::invalid("the zip is truncated: its directory names bytes that are not there; send it again").with_source(error)
        }
        ZipError::Io(error) if matches!(error.get_ref(), Some(inner) if inner.is::<OverBudget>()) => {
            Error::new(ErrorKind::TooLarge, "the directory of the zip's entries is larger than this server reads").with_source(error)
        }
        ZipError::Io(error) => storage_error("the uploaded zip cannot be read", error),
        other => Error::invalid(format!("the zip is damaged: {other}")),
    }
}

/// A reader that gives no more than a budget of bytes.
struct Budgeted<'a, R> {
    inner: R,
    left: &'a Cell<u64>,
}

/// Marks the error of a [`Budgeted`] reader.
#[derive(Debug, thiserror::Error)]
#[error("more bytes were needed than are read at most")]
struct OverBudget;

impl<R: Read> Read for Budgeted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64).ok_or_else(|| io::Error::other(OverBudget))?;
        self.left.set(left);
        Ok(read)
    }
}

impl<R: Seek> Seek for Budgeted<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests;
