//! Stores what the code leaves in `outputs/`: files that have been quiet for a while as the run goes on, and everything at the end.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, time::Instant};

use super::{
    client::{Client, Refusal},
    ship::Pace,
    walk::{Found, Listing, Stamp, list},
};
use crate::clock::now_us;

/// The folder of the working directory whose files are kept (azureml-wire F.4).
pub(super) const OUTPUTS: &str = "outputs";

/// A file that did not change for this long is stored while the run goes on.
const QUIET: Duration = Duration::from_secs(5);

/// Between two looks at the folder.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The longest time between two looks at outputs that do not change.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Files that are stored at the same time at the end: many small ones should not wait for one answer each.
const AT_ONCE: usize = 6;

/// How often a file is stored again that changed meanwhile, at the end.
const TRIES: u32 = 3;

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// The file, as it was before it was read.
    pub(super) stamp: Stamp,
    /// SHA-256 of its first `stamp.length` bytes, lower-case hex.
    pub(super) sha256: String,
}

/// Collects the outputs of one attempt.
pub(super) struct Outputs {
    client: Arc<Client>,
    work: PathBuf,
    /// What the folder is called in the run.
    shown: String,
    /// What each file was like when it was last stored.
    stored: HashMap<String, Stamp>,
    /// What each file was like at the last look.
    seen: HashMap<String, Stamp>,
}

impl Outputs {
    pub(super) fn new(client: Arc<Client>, work: PathBuf) -> Self {
        let shown = of_node(OUTPUTS, client.node());
        Self { client, work, shown, stored: HashMap::new(), seen: HashMap::new() }
    }

    /// Stores quiet files until the pace is [`Pace::Finish`] or the attempt was given up.
    pub(super) async fn follow(&mut self, mut pace: watch::Receiver<Pace>) -> Result<(), Refusal> {
        let mut pause = LOOK_INTERVAL;
        loop {
            tokio::select! {
                _ = pace.wait_for(|pace| *pace == Pace::Finish) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            let began = Instant::now();
            let files = self.list().await.files;
            let now_ns = i128::from(now_us()) * 1000;
            let unchanged = files.len() == self.seen.len() && files.iter().all(|found| self.seen.get(&found.path) == Some(&found.stamp));
            // As long as nothing changes there is ever less reason to look.
            let next = if unchanged { pause.mul_f32(1.5).min(LOOK_LIMIT) } else { LOOK_INTERVAL };
            pause = next.max(began.elapsed() * 20);
            for found in &files {
                let due = is_due(&found.stamp, self.seen.get(&found.path), self.stored.get(&found.path), now_ns);
                if !due {
                    continue;
                }
                // An upload under way is finished even if the code ends meanwhile: it would be the next one anyway.
                match self.store(found).await {
                    Ok(stamp) => drop(self.stored.insert(found.path.clone(), stamp)),
                    Err(Refusal::Abandoned) => return Err(Refusal::Abandoned),
                    // It may have changed while it was read; the end will tell.
                    Err(refusal) => tracing::info!(path = found.path, %refusal, "an output is not stored yet"),
                }
            }
            self.seen = files.into_iter().map(|found| (found.path, found.stamp)).collect();
        }
    }

    /// Stores everything that is not stored as it is now. Gives what has to be said about it.
    pub(super) async fn finish(self) -> Result<Vec<String>, Refusal> {
        let listing = self.list().await;
        let mut warnings = listing.left_out;
        let missing = listing.files.iter().filter(|found| self.stored.get(&found.path) != Some(&found.stamp));
        let mut results = futures_util::stream::iter(missing.map(|found| async { (&found.path, self.store_settled(found).await) }))
            .buffer_unordered(AT_ONCE);
        while let Some((path, result)) = results.next().await {
            match result {
                Ok(()) => {}
                Err(Refusal::Abandoned) => return Err(Refusal::Abandoned),
                Err(refusal) => warnings.push(format!("`{path}` is not kept: {refusal}")),
            }
        }
        drop(results);
        warnings.sort_unstable();
        Ok(warnings)
    }

    async fn list(&self) -> Listing {
        let (folder, work, shown) = (self.work.join(OUTPUTS), self.work.clone(), self.shown.clone());
        let task = tokio::task::spawn_blocking(move || list(&folder, &shown, &work));
        task.await.expect("listing a folder does not panic, and nobody ends the task")
    }

    async fn store(&self, found: &Found) -> Result<Stamp, Refusal> {
        let content = digest(&found.file).await?;
        self.client.upload_output(&found.path, &found.file, content.stamp.length, &content.sha256).await?;
        Ok(content.stamp)
    }

    async fn store_settled(&self, found: &Found) -> Result<(), Refusal> {
        let mut tries = 1;
        loop {
            match self.store(found).await {
                Ok(_) => return Ok(()),
                // Somebody outside the process tree may still be writing to it.
                Err(Refusal::Refused { .. }) if tries < TRIES && is_changed(found) => tries += 1,
                Err(refusal) => return Err(refusal),
            }
        }
    }
}

/// What a folder of the working directory is called in the run: those of nodes other than the first are in folders of their own in it, so that the
/// nodes do not overwrite each other's files.
pub(super) fn of_node(folder: &str, node: u32) -> String {
    if node == 0 { folder.to_owned() } else { format!("{folder}/node-{node}") }
}

fn is_changed(found: &Found) -> bool {
    std::fs::metadata(&found.file).is_ok_and(|meta| Stamp::of(&meta) != found.stamp)
}

/// Whether a file is stored now, while the run goes on: it is not stored as it is, was the same at the last look, and has been quiet.
fn is_due(now: &Stamp, seen: Option<&Stamp>, stored: Option<&Stamp>, now_ns: i128) -> bool {
    // The later of the two times: the code may set the first one to anything.
    let changed_ns = now.modified_ns.max(now.changed_ns);
    stored != Some(now) && seen == Some(now) && now_ns - changed_ns >= QUIET.as_nanos().cast_signed()
}

/// Reads a file to its end (as it was when opened) and hashes it, off the agent's one thread.
pub(super) async fn digest(file: &Path) -> io::Result<Content> {
    let file = file.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let mut file = File::open(file)?;
        let stamp = Stamp::of(&file.metadata()?);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        let mut left = stamp.length;
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.read(&mut buffer[..wanted])?;
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
            }
            hash.update(&buffer[..count]);
            left -= count as u64;
        }
        Ok(Content { stamp, sha256: hex::encode(hash.finalize()) })
    });
    task.await.expect("reading a file does not panic, and nobody ends the task")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn stamp(length: u64, modified_ns: i128, changed_ns: i128) -> Stamp {
        Stamp { inode: 1, length, modified_ns, changed_ns }
    }

    #[test]
    fn a_file_is_stored_once_it_has_been_quiet() {
        let file = stamp(3, 10 * SECOND, 10 * SECOND);
        assert!(!is_due(&file, None, None, 100 * SECOND), "just found");
        assert!(!is_due(&file, Some(&file), None, 12 * SECOND), "still warm");
        assert!(is_due(&file, Some(&file), None, 16 * SECOND));
        assert!(!is_due(&file, Some(&file), Some(&file), 100 * SECOND), "stored as it is");
        let grown = stamp(4, 90 * SECOND, 90 * SECOND);
        assert!(!is_due(&grown, Some(&file), Some(&file), 100 * SECOND), "different at the last look");
        assert!(is_due(&grown, Some(&grown), Some(&file), 100 * SECOND), "stored as it was");
    }

    #[test]
    fn a_file_with_an_old_date_is_not_taken_for_quiet() {
        let unpacked = stamp(3, SECOND, 99 * SECOND);
        assert!(!is_due(&unpacked, Some(&unpacked), None, 100 * SECOND));
    }

    #[tokio::test]
    async fn a_digest_is_that_of_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "abc").unwrap();
        let content = digest(&file).await.unwrap();
        assert_eq!(content.stamp.length, 3);
        assert_eq!(content.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn what_is_stored_as_it_is_is_never_stored_again(length: u64, modified in 0..200i64, changed in 0..200i64, now in 0..400i64) {
            let file = stamp(length, i128::from(modified) * SECOND, i128::from(changed) * SECOND);
            let now_ns = i128::from(now) * SECOND;
            prop_assert!(!is_due(&file, Some(&file), Some(&file), now_ns));
            prop_assert_eq!(is_due(&file, Some(&file), None, now_ns), now - modified.max(changed) >= 5);
        }
    }
}
