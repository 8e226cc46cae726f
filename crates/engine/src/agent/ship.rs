//! Ships logs to the server while they grow: the attempt's own (`azureml-logs/`) and every file in the folders that the definition
//! says to watch. At the end each is compared by its hash and sealed, so that what the server has is what the disk had; of the attempt's
//! own, what [`super::spool`] shows of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use trainyard_core::definition::{Definition, Distribution};
use trainyard_wire::native::Seal;

use super::{
    client::{Client, LogAnswer, Position, Refusal},
    folder::AttemptFolder,
    outputs::{Content, OUTPUTS, digest, of_node},
    spool::Spool,
    tail::{BATCH_PAUSE, CHUNK_BYTES, Next, Tail, look_pause},
    walk::{Found, Listing, Stamp, list},
};

/// The folder of the attempt's own logs, in the spool and in the run (azureml-wire F.4).
pub(super) const SYSTEM_LOGS: &str = "azureml-logs";

/// Shortest and longest time between two listings of the folders. Files that are known already are looked at more often.
const LIST_INTERVAL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Logs of processes that are looked at without a listing; of more the others are found a little later.
const QUICK_LOGS: u32 = 16;

/// How often a log is sent again when the server's copy does not fit, before the run is told that it is incomplete.
const SEAL_TRIES: u32 = 4;

/// What the shipper should expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Snapshot and environment are prepared.
    Preparing,
    /// The user's code has just been started: its first line may come any moment.
    Started,
    /// Nothing grows any more: stop following, so that the logs can be sealed.
    Finish,
}

/// Follows the logs of one attempt.
pub(super) struct Shipper {
    client: Arc<Client>,
    folder: AttemptFolder,
    spool: Spool,
    /// Processes of several whose logs are looked at as often as that of one.
    ranks: Vec<u32>,
    watched: Vec<String>,
    tails: BTreeMap<String, Tail>,
    /// Files that the server does not take, with its reason.
    refused: BTreeMap<String, String>,
    warnings: BTreeSet<String>,
}

impl Shipper {
    /// `definition` names the folders to watch. Of each of the attempt's own logs, `spool_limit_bytes` may wait for
    /// the server. To be made before anything writes a log.
    pub(super) fn new(client: Arc<Client>, folder: AttemptFolder, definition: &Definition, spool_limit_bytes: u64) -> Self {
        let (watched, warnings) = watched_folders(&definition.history.directories_to_watch);
        let ranks = own_ranks(&definition.distribution, folder.node());
        let spool = Spool::open(folder.clone(), spool_limit_bytes);
        Self { client, folder, spool, ranks, watched, tails: BTreeMap::new(), refused: BTreeMap::new(), warnings }
    }

    /// Ships what grows until the pace is [`Pace::Finish`] or the attempt was given up.
    pub(super) async fn follow(&mut self, pace: watch::Receiver<Pace>) -> Result<(), Refusal> {
        let spool = self.spool.clone();
        tokio::select! {
            result = self.follow_growth(pace) => result,
            // Beside it: while the server is away, shipping is one request that is not answered.
            never = spool.guard() => match never {},
        }
    }

    async fn follow_growth(&mut self, mut pace: watch::Receiver<Pace>) -> Result<(), Refusal> {
        let mut last_growth = Instant::now();
        let mut next_listing = Instant::now();
        loop {
            if *pace.borrow_and_update() == Pace::Finish {
                return Ok(());
            }
            let files = if Instant::now() >= next_listing {
                let began = Instant::now();
                let files = self.list().await.files;
                // A folder with very many files must not keep a core busy, nor a thousand runs that say nothing.
                let quiet = (last_growth.elapsed() / 10).clamp(LIST_INTERVAL.0, LIST_INTERVAL.1);
                next_listing = Instant::now() + quiet.max(began.elapsed() * 20);
                files
            } else {
                self.own_logs().await
            };
            let pause = if self.ship(&files).await? {
                last_growth = Instant::now();
                BATCH_PAUSE
            } else {
                look_pause(last_growth.elapsed())
            };
            tokio::select! {
                changed = pace.changed() => match changed {
                    // The user's code has just been started: its first line may come any moment.
                    Ok(()) => last_growth = Instant::now(),
                    Err(_) => return Ok(()),
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Completes and seals every log. Gives what has to be said about them.
    pub(super) async fn finish(mut self) -> Result<Vec<String>, Refusal> {
        let listing = self.list().await;
        for found in &listing.files {
            if !self.refused.contains_key(&found.path) {
                self.settle(found).await?;
            }
            self.tails.remove(&found.path);
        }
        for path in self.tails.keys() {
            self.warnings.insert(format!("`{path}` was removed by the code; what had been sent until then is kept"));
        }
        for (path, why) in self.refused {
            self.warnings.insert(format!("`{path}` is not kept: {why}"));
        }
        self.warnings.extend(listing.left_out);
        self.warnings.extend(self.spool.warnings().await);
        Ok(self.warnings.into_iter().collect())
    }

    /// The logs that the attempt has in any case, without a look at any folder.
    async fn own_logs(&self) -> Vec<Found> {
        let ranks = self.ranks.iter().map(|rank| self.folder.rank_log(*rank));
        let mut logs: Vec<_> = [self.folder.driver_log(), self.folder.build_log()]
            .into_iter()
            .chain(ranks)
            .filter_map(|file| {
                let stamp = Stamp::of(&std::fs::metadata(&file).ok()?);
                Some(Found { path: format!("{SYSTEM_LOGS}/{}", file.file_name()?.to_str()?), file, stamp })
            })
            .collect();
        self.spool.show(&mut logs).await;
        logs
    }

    async fn list(&self) -> Listing {
        let (logs, work, watched) = (self.folder.logs(), self.folder.work(), self.watched.clone());
        let node = self.folder.node();
        let task = tokio::task::spawn_blocking(move || {
            let mut all = list(&logs, SYSTEM_LOGS, &logs);
            for folder in watched {
                let listing = list(&work.join(&folder), &of_node(&folder, node), &work);
                all.files.extend(listing.files);
                all.left_out.extend(listing.left_out);
            }
            // A folder may be named together with one inside it.
            all.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            all.files.dedup_by(|a, b| a.path == b.path);
            all
        });
        let mut listing = task.await.expect("listing folders does not panic, and nobody ends the task");
        self.spool.show(&mut listing.files).await;
        listing
    }

    /// Bytes to be sent; an error if the file is another one now, or it is too short.
    async fn read(&self, found: &Found, offset: u64, length: u64) -> io::Result<bytes::Bytes> {
        if Spool::owns(&found.path) {
            self.spool.read(found, offset, length).await
        } else {
            read_range(&found.file, found.stamp.inode, offset, length)
        }
    }

    /// Sends bytes of a log, and lets the spool see for how long that takes.
    async fn append(&self, path: &str, position: Position, bytes: bytes::Bytes) -> Result<LogAnswer, Refusal> {
        self.spool.during(self.client.append_log(path, position, bytes)).await
    }

    async fn digest(&self, found: &Found) -> io::Result<Content> {
        if Spool::owns(&found.path) { self.spool.digest(found).await } else { digest(&found.file).await }
    }

    /// Sends what is new in `files`; `true` if anything was.
    async fn ship(&mut self, files: &[Found]) -> Result<bool, Refusal> {
        let mut grew = false;
        for found in files {
            if self.refused.contains_key(&found.path) {
                continue;
            }
            let mut tail = self.tails.get(&found.path).copied().unwrap_or_else(|| Tail::new(&found.stamp));
            while let Next::Send { offset, length } = tail.look(&found.stamp) {
                // Gone or replaced since the look: the next one shows.
                let Ok(bytes) = self.read(found, offset, length).await else { break };
                match self.append(&found.path, Position::At(offset), bytes).await {
                    Ok(answer) => {
                        tail.answered(offset + length, answer);
                        self.spool.answered(&found.path, tail.offset()).await;
                    }
                    Err(Refusal::Refused { message, .. }) => {
                        tracing::warn!(path = found.path, message, "the server does not take a log");
                        self.refused.insert(found.path.clone(), message);
                        break;
                    }
                    Err(refusal) => return Err(refusal),
                }
                grew = true;
            }
            self.tails.insert(found.path.clone(), tail);
        }
        Ok(grew)
    }

    /// Sends what is missing of one log and seals it.
    async fn settle(&mut self, found: &Found) -> Result<(), Refusal> {
        let mut tail = self.tails.get(&found.path).copied();
        if tail.as_mut().is_some_and(|tail| matches!(tail.look(&found.stamp), Next::Wait) && tail.is_rewritten()) {
            self.warnings.insert(format!("`{}` was rewritten while it was followed; it is kept as it was at the end", found.path));
        }
        let mut missing = first_missing(tail.as_ref(), found.stamp.length);
        for _ in 0..SEAL_TRIES {
            match self.complete(found, missing).await {
                Ok(LogAnswer::Done(_)) => return Ok(()),
                Ok(LogAnswer::Holds(length)) => missing = next_missing(missing, length, found.stamp.length),
                Err(Refusal::Abandoned) => return Err(Refusal::Abandoned),
                Err(refusal) => {
                    self.warnings.insert(format!("`{}` may be incomplete: {refusal}", found.path));
                    return Ok(());
                }
            }
        }
        self.warnings.insert(format!("`{}` may be incomplete: it kept changing while it was stored", found.path));
        Ok(())
    }

    async fn complete(&self, found: &Found, missing: Missing) -> Result<LogAnswer, Refusal> {
        let content = self.digest(found).await?;
        match missing {
            Missing::Perhaps => {}
            Missing::From(offset) => self.send(found, Position::At(offset), content.stamp.length).await?,
            Missing::All => self.send(found, Position::Replacing, content.stamp.length).await?,
        }
        self.client.seal_log(&found.path, &Seal { length: content.stamp.length, sha256: content.sha256 }).await
    }

    /// Sends the log from `position` up to `length`. At least one request: that is how a log without a line comes to be.
    async fn send(&self, found: &Found, mut position: Position, length: u64) -> Result<(), Refusal> {
        let found = Found { stamp: Stamp { inode: std::fs::metadata(&found.file)?.ino(), ..found.stamp }, ..found.clone() };
        loop {
            let offset = match position {
                Position::At(offset) => offset.min(length),
                Position::Replacing => 0,
            };
            let count = (length - offset).min(CHUNK_BYTES);
            let bytes = self.read(&found, offset, count).await?;
            let reached = match self.append(&found.path, position, bytes).await? {
                LogAnswer::Done(held) => held.unwrap_or(0).max(offset + count),
                // A gap: the seal's answer says where the server is.
                LogAnswer::Holds(_) => return Ok(()),
            };
            if reached >= length {
                return Ok(());
            }
            position = Position::At(reached);
        }
    }
}

/// What the server may lack of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// Perhaps nothing: ask first.
    Perhaps,
    /// Everything from this offset on.
    From(u64),
    /// What it has is not what the log begins with.
    All,
}

/// Before the first question. A log that this agent has sent nothing of may have been sealed by the agent before it. A log
/// without a byte comes to be by being sent.
fn first_missing(tail: Option<&Tail>, length: u64) -> Missing {
    match tail {
        Some(tail) if tail.is_rewritten() => Missing::All,
        _ if length == 0 => Missing::From(0),
        Some(tail) if tail.offset() > 0 && tail.offset() < length => Missing::From(tail.offset()),
        _ => Missing::Perhaps,
    }
}

/// After the server said that it holds `held` bytes of a log of `length`, which are not the log.
fn next_missing(before: Missing, held: u64, length: u64) -> Missing {
    match before {
        // Fewer than the log has: they may well be its beginning.
        Missing::Perhaps if held < length || held == 0 => Missing::From(held),
        Missing::From(offset) if held < length && held != offset => Missing::From(held),
        Missing::Perhaps | Missing::From(_) | Missing::All => Missing::All,
    }
}

/// The processes, the first ones of many, whose logs this node has.
fn own_ranks(spread: &Distribution, node: u32) -> Vec<u32> {
    match (spread.world_size(), spread.is_launched(), node) {
        (1, _, _) => Vec::new(),
        (world, true, 0) => (0..world.min(QUICK_LOGS)).collect(),
        (_, true, _) => Vec::new(),
        (_, false, _) => spread.ranks(node).into_iter().map(|rank| rank.rank).take(QUICK_LOGS as usize).collect(),
    }
}

/// The folders to watch, below the working directory, and what has to be said about the others.
fn watched_folders(directories: &[String]) -> (Vec<String>, BTreeSet<String>) {
    let (mut watched, mut warnings) = (BTreeSet::new(), BTreeSet::new());
    for directory in directories {
        let parts: Vec<&str> = directory.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        match parts.first() {
            Some(&OUTPUTS) => {} // Kept with the outputs.
            Some(first) if !directory.starts_with('/') && !parts.contains(&"..") && *first != SYSTEM_LOGS => drop(watched.insert(parts.join("/"))),
            _ => drop(warnings.insert(format!(
                "the folder `{directory}` of DirectoriesToWatch is not watched: it must be a folder inside the working directory other than {SYSTEM_LOGS}"
            ))),
        }
    }
    (watched.into_iter().collect(), warnings)
}

/// Bytes of the file that has this inode; an error if there is another one now, or it is too short.
fn read_range(path: &Path, inode: u64, offset: u64, length: u64) -> io::Result<bytes::Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.ino() != inode {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_folders_inside_the_working_directory_are_watched() {
        let names = ["logs", "./runs/tb/", "runs/tb", "/etc", "../x", "a/../../b", ".", "", "outputs", "azureml-logs"].map(String::from);
        let (watched, warnings) = watched_folders(&names);
        assert_eq!(watched, ["logs", "runs/tb"]);
        assert_eq!(warnings.len(), 6, "{warnings:?}");
    }

    #[test]
    fn bytes_of_a_file_that_was_replaced_are_not_taken_for_those_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "0123456789").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        assert_eq!(read_range(&path, inode, 3, 4).unwrap(), "3456");
        assert!(read_range(&path, inode, 8, 4).is_err(), "too short");
        std::fs::write(dir.path().join("new"), "abcdefghij").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(read_range(&path, inode, 3, 4).is_err());
    }

    proptest! {
        /// Whatever the server holds at first, a few rounds of sending what it seems to lack make it hold the log.
        #[test]
        fn a_server_with_any_copy_ends_with_the_log(log in proptest::collection::vec(any::<u8>(), 0..20), held in proptest::collection::vec(any::<u8>(), 0..25)) {
            let (mut server, mut missing) = (held, Missing::Perhaps);
            let mut sealed = false;
            for _ in 0..SEAL_TRIES {
                match missing {
                    Missing::Perhaps => {}
                    Missing::From(offset) => {
                        prop_assert!(offset as usize <= server.len(), "never a gap");
                        let skip = server.len().min(log.len());
                        server.extend(&log[skip..]);
                    }
                    Missing::All => server = log.clone(),
                }
                if server == log { sealed = true; break }
                missing = next_missing(missing, server.len() as u64, log.len() as u64);
            }
            prop_assert!(sealed);
        }
    }
}
