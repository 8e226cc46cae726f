//! Content-addressed blobs: bytes by their SHA-256, on disk or in S3.
//!
//! Bytes come in through a [`StagedWriter`], which counts and hashes them and stops at a limit; the [`StagedBlob`] it gives
//! can be read, and judged, before [`Blobs::commit`] moves it to its address. Up to 1 MiB stays in memory until then; more goes to
//! `DIR/staging`. Large blobs, and all in a bucket, are read, asked for and deleted through `object_store`.
//!
//! What a blob means, and which rows name it, is left to the rest of this crate.
//!
//! Invariants: what is at an address has that hash and is on stable storage before `commit` returns; a staged upload that is not committed
//! leaves no file; committing twice has no second effect.
//!
//! On disk a blob that was staged in a file is `DIR/blobs/{first two digits}/{digest}`, and one that stayed in memory is in a pack
//! ([`packs`]). A data directory of an older version has small blobs at addresses of their own too; those stay there.

mod folder;
mod inventory;
mod packs;
mod staging;

use std::{fmt, fs, io, ops::Range, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, GetResultPayload, ObjectStore, ObjectStoreExt, WriteMultipart, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path as Key,
};
use tokio_util::io::ReaderStream;
use trainyard_core::{Error, ErrorKind, Result, ids::Digest};

pub use self::inventory::Listed;
pub use self::staging::{StagedBlob, StagedContent, StagedWriter};
use self::{
    folder::Folder,
    packs::{Packed, Packs},
    staging::Staging,
};

/// Pieces that a blob on disk is read in: each costs one switch to a blocking thread.
const READ_PIECE_BYTES: usize = 256 << 10;
/// The least that S3 takes as a part, except the last.
const LEAST_PART_BYTES: u64 = 5 << 20;
/// Less than the 10,000 that S3 takes.
const MOST_PARTS: u64 = 9_000;

/// The blobs of a server. Cheap to clone.
#[derive(Clone)]
pub struct Blobs(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    place: Place,
    staging: Arc<Staging>,
}

/// Where committed blobs are.
enum Place {
    /// Below this folder.
    Folder(Arc<Folder>),
    /// In a bucket, below this prefix.
    Bucket(Key),
}

/// A blob that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its address.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The content of a blob, or a range of it, as it is read.
pub struct BlobReader {
    /// Size of the whole blob in bytes.
    pub size: u64,
    /// Which of its bytes the stream gives.
    pub range: Range<u64>,
    /// The bytes, in pieces.
    pub stream: BoxStream<'static, Result<Bytes>>,
}

impl Blobs {
    /// Opens the place that `spec` names: `file`, which is `data_dir/blobs`, or `s3://bucket/prefix` with credentials, region
    /// and endpoint from the standard `AWS_` variables. Uploads are staged in `data_dir/staging` in both cases.
    ///
    /// [`ErrorKind::Invalid`] for any other `spec` and for credentials that make no sense.
    pub fn open(spec: &str, data_dir: &Path) -> Result<Self> {
        let staging = data_dir.join("staging");
        let cannot = |error| storage_error("the data directory cannot be used", error);
        fs::create_dir_all(&staging).map_err(cannot)?;
        let (store, place): (Arc<dyn ObjectStore>, Place) = if spec == "file" {
            let path = data_dir.join("blobs");
            fs::create_dir_all(&path).and_then(|()| sync_folder(data_dir)).map_err(cannot)?;
            let local = LocalFileSystem::new_with_prefix(&path).map_err(Error::internal)?.with_fsync(true);
            (Arc::new(local), Place::Folder(Arc::new(Folder::open(path).map_err(cannot)?)))
        } else {
            let (bucket, prefix) = bucket_and_prefix(spec)?;
            let s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(|error| {
                Error::invalid(format!("blobs = \"{spec}\" cannot be used; check the AWS_ variables of the server")).with_source(error)
            })?;
            (Arc::new(s3), Place::Bucket(prefix))
        };
        Ok(Self(Arc::new(Inner { store, place, staging: Arc::new(Staging::new(staging)) })))
    }

    /// Begins an upload of at most `limit_bytes`.
    pub async fn stage(&self, limit_bytes: u64) -> Result<StagedWriter> {
        Ok(StagedWriter::new(self.0.staging.clone(), limit_bytes))
    }

    /// Moves a staged upload to its address; when this returns it survives a power cut. A blob that is there already stays.
    ///
    /// [`ErrorKind::StorageFull`] if the disk is full, [`ErrorKind::Unavailable`] if the bucket does not answer; nothing is left.
    pub async fn commit(&self, staged: StagedBlob) -> Result<Stored> {
        let stored = Stored { digest: staged.digest().clone(), size: staged.size() };
        match &self.0.place {
            Place::Folder(folder) => {
                folder.commit(staged, &self.0.staging).await.map_err(|error| storage_error("the upload cannot be stored", error))?;
            }
            Place::Bucket(_) => self.commit_to_bucket(staged).await?,
        }
        Ok(stored)
    }

    /// Stores bytes that are at hand.
    pub async fn put_bytes(&self, bytes: Bytes) -> Result<Stored> {
        self.commit(StagedBlob::of_bytes(bytes)).await
    }

    /// Reads a blob, or a range of it that begins within it; the end is cut to the blob's size.
    ///
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Invalid`] if the range is empty or begins after the end.
    pub async fn read(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<BlobReader> {
        if let Some(wanted) = &range {
            let size = self.size(digest).await?.ok_or_else(|| missing(digest))?;
            if wanted.is_empty() || wanted.start >= size {
                let Range { start, end } = wanted;
                return Err(Error::invalid(format!("the range {start}..{end} is not within the {size} bytes of the content")));
            }
        }
        if let Some(packed) = self.packed(digest).await? {
            return packed_reader(packed, range);
        }
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let result = match self.0.store.get_opts(&self.key(digest), options).await {
            Ok(result) => result,
            Err(error @ object_store::Error::NotFound { .. }) => {
                let packed = self.packed_meanwhile(digest).await?;
                return packed.map_or_else(|| Err(failed(digest, error)), |packed| packed_reader(packed, range));
            }
            Err(error) => return Err(failed(digest, error)),
        };
        let (size, range) = (result.meta.size, result.range.clone());
        let digest = digest.clone();
        let stream = match result.payload {
            GetResultPayload::File(file, _) => file_stream(file, range.clone())?,
            GetResultPayload::Stream(stream) => stream.map_err(move |error| failed(&digest, error)).boxed(),
        };
        Ok(BlobReader { size, range, stream })
    }

    /// Size of a blob in bytes; `None` if there is none.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        if let Some(packed) = self.packed(digest).await? {
            return Ok(Some(packed.size));
        }
        match self.0.store.head(&self.key(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(self.packed_meanwhile(digest).await?.map(|packed| packed.size)),
            Err(error) => Err(failed(digest, error)),
        }
    }

    /// Whether there is such a blob.
    pub async fn exists(&self, digest: &Digest) -> Result<bool> {
        Ok(self.size(digest).await?.is_some())
    }

    /// Deletes a blob; success if there is none. Whoever calls this knows that no row names it.
    pub async fn delete(&self, digest: &Digest) -> Result<()> {
        if let Place::Folder(folder) = &self.0.place {
            folder.remove_packed(digest).await.map_err(|error| storage_error("a blob cannot be deleted", error))?;
        }
        match self.0.store.delete(&self.key(digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(digest, error)),
        }
    }

    /// Removes what killed processes left in the staging folder: files last written before `older_than`. Gives their number.
    /// At start-up, before uploads are taken, everything is stale and `older_than` may be now.
    pub async fn sweep_staging(&self, older_than: SystemTime) -> Result<usize> {
        let staging = self.0.staging.clone();
        tokio::task::spawn_blocking(move || staging.sweep(older_than))
            .await
            .map_err(Error::internal)?
            .map_err(|error| storage_error("the staging folder cannot be swept", error))
    }

    fn key(&self, digest: &Digest) -> Key {
        let shard = &digest.as_str()[..2];
        match &self.0.place {
            Place::Folder(_) => Key::from_iter([shard, digest.as_str()]),
            Place::Bucket(prefix) => prefix.clone().join(shard).join(digest.as_str()),
        }
    }

    /// A blob in a pack, as far as this process knows.
    async fn packed(&self, digest: &Digest) -> Result<Option<Packed>> {
        match &self.0.place {
            Place::Folder(folder) if folder.may_hold(digest) => folder.packed(digest, Packs::find).await.map_err(unreachable_blob),
            Place::Folder(_) | Place::Bucket(_) => Ok(None),
        }
    }

    /// A blob that is nowhere else: another process may have written it meanwhile.
    async fn packed_meanwhile(&self, digest: &Digest) -> Result<Option<Packed>> {
        match &self.0.place {
            Place::Folder(folder) => folder.packed(digest, Packs::find_new).await.map_err(unreachable_blob),
            Place::Bucket(_) => Ok(None),
        }
    }

    async fn commit_to_bucket(&self, staged: StagedBlob) -> Result<()> {
        let digest = staged.digest();
        if self.size(digest).await? == Some(staged.size()) {
            return Ok(());
        }
        let key = self.key(digest);
        match staged.content() {
            StagedContent::Memory(bytes) => {
                self.0.store.put(&key, bytes.clone().into()).await.map_err(|error| failed(digest, error))?;
            }
            StagedContent::File(path) => {
                let upload = self.0.store.put_multipart(&key).await.map_err(|error| failed(digest, error))?;
                let part_bytes = staged.size().div_ceil(MOST_PARTS).max(LEAST_PART_BYTES) as usize;
                let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
                if let Err(error) = send_parts(&mut upload, path).await {
                    // Parts that stay behind cost money until the bucket's own rule removes them.
                    if let Err(abort) = upload.abort().await {
                        tracing::warn!(%digest, error = %abort, "a failed multipart upload could not be aborted");
                    }
                    return Err(error);
                }
                upload.finish().await.map_err(|error| failed(digest, error))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blobs({})", self.0.store)
    }
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader").field("size", &self.size).field("range", &self.range).finish_non_exhaustive()
    }
}

async fn send_parts(upload: &mut WriteMultipart, path: &Path) -> Result<()> {
    let cannot = |error| storage_error("a staged upload cannot be read", error);
    let file = tokio::fs::File::open(path).await.map_err(cannot)?;
    let mut pieces = ReaderStream::with_capacity(file, READ_PIECE_BYTES);
    while let Some(piece) = pieces.next().await {
        upload.put(piece.map_err(cannot)?);
        // One part on its way while the next fills: 10 MiB for parts of the least size.
        upload
            .wait_for_capacity(1)
            .await
            .map_err(|error| Error::new(ErrorKind::Unavailable, "the bucket of the blobs does not answer").with_source(error))?;
    }
    Ok(())
}

/// A part of a file, in pieces.
fn file_stream(mut file: fs::File, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
    let cannot = |error| storage_error("a blob cannot be read", error);
    io::Seek::seek(&mut file, io::SeekFrom::Start(range.start)).map_err(cannot)?;
    let rest = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), range.end - range.start);
    Ok(ReaderStream::with_capacity(rest, READ_PIECE_BYTES).map_err(cannot).boxed())
}

/// `range` begins within the blob.
fn packed_reader(packed: Packed, range: Option<Range<u64>>) -> Result<BlobReader> {
    let range = range.map_or(0..packed.size, |range| range.start..range.end.min(packed.size));
    let stream = file_stream(packed.pack, packed.offset + range.start..packed.offset + range.end)?;
    Ok(BlobReader { size: packed.size, range, stream })
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

fn bucket_and_prefix(spec: &str) -> Result<(String, Key)> {
    let wrong = || Error::invalid(format!("blobs = \"{spec}\" is not a place for blobs: expected \"file\" or \"s3://bucket/prefix\""));
    let (bucket, prefix) = spec.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))).ok_or_else(wrong)?;
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
    if bucket.is_empty() || !bucket.bytes().all(valid) {
        return Err(wrong());
    }
    Ok((bucket.to_owned(), Key::parse(prefix).map_err(|error| wrong().with_source(error))?))
}

fn unreachable_blob(error: io::Error) -> Error {
    storage_error("a blob cannot be reached", error)
}

fn missing(digest: &Digest) -> Error {
    Error::not_found(format!("there is no blob {digest}"))
}

fn failed(digest: &Digest, error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => missing(digest),
        other => match io_source(&other) {
            Some(kind) => unreachable_blob(io::Error::new(kind, other)),
            None => Error::new(ErrorKind::Unavailable, "the place of the blobs does not answer").with_source(other),
        },
    }
}

/// The kind of the I/O error that a failure of the local file system comes from.
fn io_source(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(error) = source.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = source.source();
    }
    None
}

/// What a failure of the file system means to whoever asked for `what`, a fragment such as "the upload cannot be stored".
///
/// A full disk or quota is [`ErrorKind::StorageFull`] and says so; everything else is [`ErrorKind::Internal`] and leaves the reason to the log.
pub(crate) fn storage_error(what: &str, error: io::Error) -> Error {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull | K::QuotaExceeded => {
            let why = "the disk that the server keeps its data on is full; free space on it, or have its operator do so, and try again";
            Error::new(ErrorKind::StorageFull, format!("{what}: {why}")).with_source(error)
        }
        K::FileTooLarge => {
            let why = "the server's file system or its limits (RLIMIT_FSIZE) allow no file of this size";
            Error::new(ErrorKind::StorageFull, format!("{what}: {why}")).with_source(error)
        }
        _ => Error::internal(io::Error::new(error.kind(), format!("{what}: {error}"))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
