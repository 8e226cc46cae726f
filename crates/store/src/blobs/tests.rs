use std::{os::unix::fs::MetadataExt, path::PathBuf, time::Duration};

use super::*;

/// SHA-256 of `hello`.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

/// A small file system of its own, unmounted when dropped.
pub(crate) struct TinyDisk<'a>(&'a Path);

impl<'a> TinyDisk<'a> {
    /// `None`, and a line that the test was skipped, where mounting is not allowed.
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub(crate) fn mount(at: &'a Path, size: &str, test: &str) -> Option<Self> {
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        match rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                eprintln!("skipped {test}: a tmpfs cannot be mounted here ({error})");
                None
            }
        }
    }
}

impl Drop for TinyDisk<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

struct Place {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { blobs: Blobs::open("file", folder.path()).unwrap(), folder }
    }

    fn staged_files(&self) -> usize {
        fs::read_dir(self.folder.path().join("staging")).unwrap().count()
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        self.folder.path().join("blobs").join(&digest.as_str()[..2]).join(digest.as_str())
    }

    /// The only pack.
    fn pack(&self) -> PathBuf {
        let mut packs = fs::read_dir(self.folder.path().join("blobs/packs")).unwrap().map(|entry| entry.unwrap().path());
        packs.find(|path| path.extension().is_some_and(|extension| extension == "pack")).unwrap()
    }

    /// Turns the content into one that begins with a `j`.
    fn damage(&self, content: &[u8]) {
        let mut bytes = fs::read(self.pack()).unwrap();
        let at = bytes.windows(content.len()).position(|window| window == content).unwrap();
        bytes[at] = b'j';
        fs::write(self.pack(), bytes).unwrap();
    }

    async fn listed(&self) -> Vec<Digest> {
        self.blobs.list().map_ok(|blob| blob.digest).try_collect().await.unwrap()
    }

    async fn stage(&self, pieces: &[&[u8]]) -> StagedBlob {
        let mut writer = self.blobs.stage(u64::MAX).await.unwrap();
        for piece in pieces {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn content(&self, digest: &Digest, range: Option<Range<u64>>) -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = self.blobs.read(digest, range).await?.stream.try_collect().await?;
        Ok(pieces.concat())
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    StagedBlob::of_bytes(Bytes::copy_from_slice(bytes)).digest().clone()
}

fn large() -> Vec<u8> {
    (0..3_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn a_small_upload_stays_in_memory_and_ends_in_a_pack() {
    let place = Place::new();
    let staged = place.stage(&[b"he", b"", b"llo"]).await;
    assert_eq!((staged.digest().as_str(), staged.size()), (HELLO, 5));
    assert!(matches!(staged.content(), StagedContent::Memory(bytes) if bytes == "hello"));
    assert_eq!(place.staged_files(), 0);
    let stored = place.blobs.commit(staged).await.unwrap();
    assert_eq!((stored.digest.as_str(), stored.size), (HELLO, 5));
    assert_eq!(place.content(&stored.digest, None).await.unwrap(), b"hello");
    let packs = || fs::read_dir(place.folder.path().join("blobs/packs")).unwrap().map(|entry| entry.unwrap().path());
    assert!(packs().any(|pack| fs::read(pack).unwrap().ends_with(b"hello")));
    assert_eq!(packs().count(), 1);
    assert_eq!(place.staged_files(), 0);
}

#[tokio::test]
async fn a_large_upload_is_staged_in_a_file_and_hashed_as_a_whole() {
    let place = Place::new();
    let large = large();
    for pieces in [large.chunks(300_001).collect::<Vec<_>>(), large.chunks(2 << 20).collect(), vec![&large[..]]] {
        let staged = place.stage(&pieces).await;
        assert_eq!((staged.digest(), staged.size()), (&digest_of(&large), large.len() as u64));
        let StagedContent::File(path) = staged.content() else { panic!("3.5 MB are not kept in memory") };
        assert_eq!(fs::read(path).unwrap(), large);
        assert_eq!(place.staged_files(), 1);
        let stored = place.blobs.commit(staged).await.unwrap();
        assert_eq!(place.staged_files(), 0);
        assert_eq!(place.content(&stored.digest, None).await.unwrap(), large);
        place.blobs.delete(&stored.digest).await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_over_its_limit_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let large = large();
    for (limit, piece) in [(4, &b"hello"[..]), (3 << 20, &large[..1 << 20]), (100, &large)] {
        let mut writer = place.blobs.stage(limit).await.unwrap();
        let error = loop {
            if let Err(error) = writer.write(Bytes::copy_from_slice(piece)).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(error.message().contains(&format!("limit of {limit} bytes")), "{error}");
        assert_eq!(place.staged_files(), 0);
        assert!(writer.write(Bytes::new()).await.is_err() && writer.finish().await.is_err());
    }
    let mut exact = place.blobs.stage(5).await.unwrap();
    exact.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(exact.finish().await.unwrap().size(), 5);
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let place = Place::new();
    let mut writer = place.blobs.stage(u64::MAX).await.unwrap();
    writer.write(large().into()).await.unwrap();
    assert_eq!(place.staged_files(), 1);
    drop(writer);
    assert_eq!(place.staged_files(), 0);
    drop(place.stage(&[&large()]).await);
    assert_eq!(place.staged_files(), 0);
}

#[tokio::test]
async fn a_write_that_is_given_up_in_the_middle_cannot_end_in_a_wrong_hash() {
    let place = Place::new();
    let mut writer = place.blobs.stage(u64::MAX).await.unwrap();
    let mut write = Box::pin(writer.write(large().into()));
    assert!(futures_util::poll!(write.as_mut()).is_pending());
    drop(write);
    assert!(writer.write(Bytes::from_static(b"more")).await.is_err());
    assert!(writer.finish().await.is_err());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while place.staged_files() > 0 {
        assert!(std::time::Instant::now() < deadline, "the abandoned file is still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn committing_twice_keeps_the_first_and_a_damaged_one_is_replaced() {
    let place = Place::new();
    let stored = place.blobs.put_bytes(Bytes::from_static(b"hello")).await.unwrap();
    let written = fs::read(place.pack()).unwrap();
    assert_eq!(place.blobs.commit(place.stage(&[b"hello"]).await).await.unwrap(), stored);
    assert_eq!(fs::read(place.pack()).unwrap(), written);
    place.damage(b"hello");
    assert_eq!(place.content(&stored.digest, None).await.unwrap(), b"jello");
    place.blobs.put_bytes(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(place.content(&stored.digest, None).await.unwrap(), b"hello");
    assert_eq!(place.listed().await, [stored.digest]);

    let large = large();
    let stored = place.blobs.put_bytes(large.clone().into()).await.unwrap();
    let inode = place.file(&stored.digest).metadata().unwrap().ino();
    assert_eq!(place.blobs.commit(place.stage(&[&large, b""]).await).await.unwrap(), stored);
    assert_eq!(place.file(&stored.digest).metadata().unwrap().ino(), inode);
    fs::write(place.file(&stored.digest), "cut").unwrap();
    place.blobs.commit(place.stage(&[&large]).await).await.unwrap();
    assert_eq!(place.content(&stored.digest, None).await.unwrap(), large);
    assert_eq!(place.staged_files(), 0);
}

#[tokio::test]
async fn a_small_blob_at_an_address_of_its_own_is_still_read_and_kept_once() {
    let place = Place::new();
    let digest = digest_of(b"hello");
    fs::create_dir(place.file(&digest).parent().unwrap()).unwrap();
    fs::write(place.file(&digest), "hello").unwrap();
    assert_eq!(place.content(&digest, Some(1..3)).await.unwrap(), b"el");
    assert_eq!(place.listed().await, std::slice::from_ref(&digest));
    place.blobs.put_bytes(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(place.listed().await, std::slice::from_ref(&digest), "a check would take the second for one that no row names");
    place.blobs.delete(&digest).await.unwrap();
    assert!(!place.blobs.exists(&digest).await.unwrap());
}

#[tokio::test]
async fn a_damaged_blob_is_set_aside_wherever_it_is() {
    let place = Place::new();
    let large = large();
    for content in [&b"hello"[..], &large] {
        let digest = place.blobs.put_bytes(Bytes::copy_from_slice(content)).await.unwrap().digest;
        place.blobs.set_aside(&digest).await.unwrap();
        assert!(!place.blobs.exists(&digest).await.unwrap());
        assert_eq!(fs::read(place.folder.path().join("blobs/damaged").join(digest.as_str())).unwrap(), content);
        place.blobs.put_bytes(Bytes::copy_from_slice(content)).await.unwrap();
        assert_eq!(place.content(&digest, None).await.unwrap(), content);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_commits_at_once_of_few_contents_all_succeed() {
    let place = Place::new();
    let tasks = (0..64u8).map(|n| {
        let blobs = place.blobs.clone();
        tokio::spawn(async move { blobs.put_bytes(Bytes::from(vec![n % 4; 10_000])).await })
    });
    for (n, task) in futures_util::future::join_all(tasks).await.into_iter().enumerate() {
        let stored = task.unwrap().unwrap();
        assert_eq!(place.content(&stored.digest, None).await.unwrap(), vec![n as u8 % 4; 10_000]);
    }
    assert_eq!(place.staged_files(), 0);
}

#[tokio::test]
async fn a_blob_is_read_whole_or_by_range() {
    let place = Place::new();
    let large = large();
    let digest = place.blobs.put_bytes(large.clone().into()).await.unwrap().digest;
    let size = large.len() as u64;
    for range in [0..1, 5..1_000_000, size - 3..size, 0..size] {
        let reader = place.blobs.read(&digest, Some(range.clone())).await.unwrap();
        assert_eq!((reader.size, reader.range), (size, range.clone()));
        assert_eq!(place.content(&digest, Some(range.clone())).await.unwrap(), &large[range.start as usize..range.end as usize]);
    }
    let beyond = place.blobs.read(&digest, Some(size - 3..size + 50)).await.unwrap();
    assert_eq!(beyond.range, size - 3..size);
    for range in [size..size + 1, 7..7] {
        assert_eq!(place.blobs.read(&digest, Some(range)).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let empty = place.blobs.put_bytes(Bytes::new()).await.unwrap().digest;
    assert_eq!(place.content(&empty, None).await.unwrap(), b"");
    let small = place.blobs.put_bytes(Bytes::from_static(b"0123456789")).await.unwrap().digest;
    assert_eq!(place.content(&small, Some(3..7)).await.unwrap(), b"3456");
    let beyond = place.blobs.read(&small, Some(8..50)).await.unwrap();
    assert_eq!((beyond.range, beyond.size), (8..10, 10));
    assert_eq!(place.blobs.read(&small, Some(10..11)).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_not_found_and_deleting_it_succeeds() {
    let place = Place::new();
    let digest = Digest::new(HELLO).unwrap();
    assert_eq!(place.blobs.size(&digest).await.unwrap(), None);
    for range in [None, Some(0..1)] {
        assert_eq!(place.blobs.read(&digest, range).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    place.blobs.put_bytes(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(place.blobs.size(&digest).await.unwrap(), Some(5));
    place.blobs.delete(&digest).await.unwrap();
    assert!(!place.blobs.exists(&digest).await.unwrap());
    place.blobs.delete(&digest).await.unwrap();
}

#[tokio::test]
async fn blobs_are_there_after_a_restart_and_stale_uploads_are_swept() {
    let place = Place::new();
    let digest = place.blobs.put_bytes(Bytes::from_static(b"hello")).await.unwrap().digest;
    let staging = place.folder.path().join("staging");
    fs::write(staging.join("upload-0"), "left by a killed process").unwrap();
    let again = Blobs::open("file", place.folder.path()).unwrap();
    assert_eq!(again.size(&digest).await.unwrap(), Some(5));
    // A name that is taken is not in the way.
    again.put_bytes(Bytes::from_static(b"other")).await.unwrap();
    let written = staging.join("upload-0").metadata().unwrap().modified().unwrap();
    assert_eq!(again.sweep_staging(written).await.unwrap(), 0);
    assert_eq!(again.sweep_staging(written + Duration::from_secs(1)).await.unwrap(), 1);
    assert_eq!(place.staged_files(), 0);
}

#[test]
fn a_place_for_blobs_is_file_or_a_bucket() {
    let folder = tempfile::tempdir().unwrap();
    for spec in ["", "disk", "s3://", "s3:///prefix", "s3://Bucket", "s3://b/a//c", "gs://bucket/x"] {
        let error = Blobs::open(spec, folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{spec}");
        assert!(error.message().contains("expected \"file\" or \"s3://bucket/prefix\""), "{error}");
    }
    for (spec, expected) in [("s3://bucket", ""), ("s3://bucket/", ""), ("s3://a-b.c/some/prefix/", "some/prefix")] {
        assert_eq!(bucket_and_prefix(spec).unwrap().1.as_ref(), expected, "{spec}");
    }
}

#[test]
fn a_full_disk_and_a_full_quota_are_told_as_such_and_nothing_else_is() {
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let error = storage_error("the upload cannot be staged", errno.into());
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(error.message().starts_with("the upload cannot be staged: the disk that the server keeps its data on is full"), "{error}");
    }
    assert_eq!(storage_error("x", rustix::io::Errno::FBIG.into()).kind(), ErrorKind::StorageFull);
    for errno in [rustix::io::Errno::IO, rustix::io::Errno::ACCESS, rustix::io::Errno::ROFS] {
        let error = storage_error("the upload cannot be staged", errno.into());
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.chain().contains("the upload cannot be staged"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_full_disk_refuses_uploads_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mounted) = TinyDisk::mount(folder.path(), "2m", "a_full_disk_refuses_uploads_and_leaves_nothing") else { return };
    let blobs = Blobs::open("file", folder.path()).unwrap();
    let staged_files = || fs::read_dir(folder.path().join("staging")).unwrap().count();
    let mut writer = blobs.stage(u64::MAX).await.unwrap();
    let error = writer.write(large().into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(error.message().contains("is full"), "{error}");
    assert_eq!(staged_files(), 0);

    let mut stored = Vec::new();
    let error = loop {
        match blobs.put_bytes(Bytes::from(vec![stored.len() as u8; 700_000])).await {
            Ok(blob) => stored.push(blob.digest),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!((stored.len(), staged_files()), (2, 0));
    blobs.delete(&stored[0]).await.unwrap();
    blobs.put_bytes(Bytes::from(vec![9; 700_000])).await.expect("space was freed");
}

/// Wants a bucket: `TRAINYARD_TEST_BLOBS=s3://bucket/prefix` and the `AWS_` variables, for instance of an emulator on loopback.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
async fn a_bucket_keeps_what_it_is_given() {
    let Ok(spec) = std::env::var("TRAINYARD_TEST_BLOBS") else {
        eprintln!("skipped a_bucket_keeps_what_it_is_given: TRAINYARD_TEST_BLOBS names no bucket");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let place = Place { blobs: Blobs::open(&spec, folder.path()).unwrap(), folder };
    // Parts of 5 MiB: three, of which the last is short.
    let large = large().repeat(4);
    for content in [&b"hello"[..], b"", &large] {
        let staged = place.stage(&content.chunks(700_000).collect::<Vec<_>>()).await;
        let digest = staged.digest().clone();
        place.blobs.delete(&digest).await.unwrap();
        assert!(!place.blobs.exists(&digest).await.unwrap());
        assert_eq!(place.blobs.read(&digest, None).await.unwrap_err().kind(), ErrorKind::NotFound);
        place.blobs.commit(staged).await.unwrap();
        place.blobs.put_bytes(Bytes::copy_from_slice(content)).await.unwrap();
        assert_eq!(place.blobs.size(&digest).await.unwrap(), Some(content.len() as u64));
        assert_eq!(place.content(&digest, None).await.unwrap(), content);
        if !content.is_empty() {
            assert_eq!(place.content(&digest, Some(1..4)).await.unwrap(), &content[1..4]);
        }
        assert_eq!(place.staged_files(), 0);
    }
}
