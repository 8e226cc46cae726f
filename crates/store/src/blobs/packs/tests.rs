use std::{collections::BTreeMap, time::Instant};

use proptest::prelude::*;

use super::*;

fn digest_of(content: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::new(hex::encode(sha2::Sha256::digest(content))).unwrap()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == extension)).collect())
        .unwrap_or_default();
    found.sort_unstable();
    found
}

async fn put(packs: &Packs, content: &[u8]) -> Digest {
    let digest = digest_of(content);
    packs.append(&digest, Bytes::copy_from_slice(content)).await.unwrap();
    digest
}

fn content(packs: &Packs, digest: &Digest) -> Option<Vec<u8>> {
    packs.find_new(digest).unwrap().map(|packed| packed.content().unwrap())
}

fn listed(packs: &Packs) -> Vec<String> {
    let mut all: Vec<_> =
        (0..packs.count().unwrap()).flat_map(|number| packs.list(number).unwrap()).map(|blob| blob.digest.as_str().to_owned()).collect();
    all.sort_unstable();
    all
}

/// Waits until the thread that writes has ended, which it says by its index.
fn wait_for_index(folder: &Path, count: usize) {
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    while files(folder, "index").len() < count {
        assert!(Instant::now() < deadline, "there is no index");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_start_finds_everything_with_and_without_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("packs");
    let packs = Packs::open(at.clone()).unwrap();
    assert!(!at.exists(), "a folder without small blobs has no packs");
    let contents = [&b"one"[..], b"", b"three"];
    for content in contents {
        put(&packs, content).await;
    }
    drop(packs);
    wait_for_index(&at, 1);
    for _ in 0..2 {
        let again = Packs::open(at.clone()).unwrap();
        for expected in contents {
            assert_eq!(content(&again, &digest_of(expected)).as_deref(), Some(expected));
        }
        assert_eq!(listed(&again).len(), 3);
        for index in files(&at, "index") {
            fs::remove_file(index).unwrap();
        }
    }
    fs::write(files(&at, "pack")[0].with_extension("index"), "TYindex1 and nonsense").unwrap();
    assert_eq!(listed(&Packs::open(at.clone()).unwrap()).len(), 3, "an index that is not whole is none");
    // The next process that writes puts a whole one there, and leaves the pack alone.
    let before = fs::read(&files(&at, "pack")[0]).unwrap();
    let next = Packs::open(at.clone()).unwrap();
    put(&next, b"four").await;
    assert!(PackIndex::read(&files(&at, "pack")[0].with_extension("index")).unwrap().is_some());
    assert_eq!(fs::read(&files(&at, "pack")[0]).unwrap(), before);
    assert_eq!((files(&at, "pack").len(), listed(&next).len()), (2, 4));
}

#[tokio::test]
async fn what_another_process_writes_is_found_when_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("packs");
    let (writes, reads) = (Packs::open(at.clone()).unwrap(), Packs::open(at.clone()).unwrap());
    for text in [&b"first"[..], b"second"] {
        let digest = put(&writes, text).await;
        assert!(reads.find(&digest).unwrap().is_none());
        assert_eq!(content(&reads, &digest).as_deref(), Some(text));
    }
    assert!(files(&at, "index").is_empty(), "who only reads writes nothing");
}

#[tokio::test]
async fn a_deleted_blob_stays_deleted_after_a_restart_and_can_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("packs");
    let packs = Packs::open(at.clone()).unwrap();
    let (gone, stays) = (put(&packs, &[7; 100_000]).await, put(&packs, b"stays").await);
    assert!(packs.remove(&gone).unwrap());
    assert!(!packs.remove(&gone).unwrap());
    drop(packs);
    wait_for_index(&at, 1);
    let again = Packs::open(at.clone()).unwrap();
    assert_eq!((content(&again, &gone), content(&again, &stays).as_deref()), (None, Some(&b"stays"[..])));
    assert_eq!(listed(&again), [stays.as_str()]);
    put(&again, &[7; 100_000]).await;
    assert_eq!(content(&again, &gone), Some(vec![7; 100_000]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_are_written_together() {
    let folder = tempfile::tempdir().unwrap();
    let packs = Arc::new(Packs::open(folder.path().join("packs")).unwrap());
    let tasks = (0..200u8).map(|n| {
        let packs = packs.clone();
        tokio::spawn(async move { put(&packs, &vec![n; usize::from(n) * 50]).await })
    });
    for (n, task) in futures_util::future::join_all(tasks).await.into_iter().enumerate() {
        assert_eq!(content(&packs, &task.unwrap()).unwrap(), vec![n as u8; n * 50]);
    }
    assert_eq!(files(&folder.path().join("packs"), "pack").len(), 1);
}

#[test]
fn digests_that_begin_alike_are_told_apart() {
    let (a, b, c) = (Location { pack: 0, offset: 0 }, Location { pack: 0, offset: 90 }, Location { pack: 1, offset: 0 });
    let mut index = Index::default();
    for location in [a, b, c, a] {
        index.insert(5, location);
    }
    assert_eq!(index.candidates(5), [c, b, a]);
    index.remove(5, a);
    assert_eq!(index.candidates(5).len(), 2);
    index.remove(5, c);
    index.remove(5, b);
    assert_eq!((index.candidates(5), index.candidates(6)), (vec![], vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A power cut leaves any part of what was not synced: everything before is found, and nothing is made up.
    #[test]
    fn a_pack_that_was_cut_off_gives_what_was_whole(sizes in prop::collection::vec(0usize..300, 1..8), cut in 0.0f64..1.0, garbage in prop::collection::vec(any::<u8>(), 0..80)) {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, size)| vec![n as u8 + 1; *size]).collect();
        let mut bytes = Vec::new();
        let mut ends = BTreeMap::new();
        for content in &contents {
            bytes.extend_from_slice(&Header::of(&digest_of(content), content).encode());
            bytes.extend_from_slice(content);
            ends.insert(digest_of(content).as_str().to_owned(), (bytes.len(), content.clone()));
        }
        let kept = (bytes.len() as f64 * cut) as usize;
        bytes.truncate(kept);
        bytes.extend_from_slice(&garbage);
        fs::write(folder.path().join("00.pack"), &bytes).unwrap();
        let packs = Packs::open(folder.path().to_owned()).unwrap();
        for (digest, (end, expected)) in &ends {
            let found = content(&packs, &Digest::new(digest.as_str()).unwrap());
            if *end <= kept {
                prop_assert_eq!(found.as_ref(), Some(expected));
            } else {
                prop_assert!(found.is_none_or(|found| found == *expected));
            }
        }
    }

    #[test]
    fn an_index_file_is_read_as_it_was_written_or_not_at_all(entries in prop::collection::vec(any::<(u64, u32)>(), 0..20), covers: u64, at in 0.0f64..1.0) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00.index");
        let index = PackIndex { covers, entries };
        index.write(&path).unwrap();
        let read = PackIndex::read(&path).unwrap();
        prop_assert_eq!(read.as_ref(), Some(&index));
        let mut bytes = fs::read(&path).unwrap();
        let hit = ((bytes.len() - 1) as f64 * at) as usize;
        bytes[hit] ^= 1;
        fs::write(&path, bytes).unwrap();
        prop_assert_eq!(PackIndex::read(&path).unwrap(), None);
    }
}
