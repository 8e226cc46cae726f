//! The attempt's own logs on disk while the server cannot be reached: all of them, up to a limit beyond which the middle is cut out.
//!
//! The code writes its log itself, so that it survives the agent; nothing can be kept from being written. What is cut is noted durably first and
//! then punched out of the file, whose length and offsets stay, so that the writer notices nothing. [`super::shown`] decides what
//! goes and what is shown instead. Outputs, and files in folders of the code, are never cut.
//!
//! Invariant: what was sent of a log is what this agent, or any that comes after it, would send again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    folder::AttemptFolder,
    outputs::Content,
    ship::SYSTEM_LOGS,
    shown::{Cut, Cuts, Piece, Plan, Progress, back_to_line_end, on_to_line_start},
    walk::{Found, Stamp, list},
};

/// How often the logs are looked at while the server does not take what it is sent.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A request for a log that is not answered for this long means that the server can't be reached: answers take milliseconds.
const STALL: Duration = Duration::from_secs(2);

/// How far a cut is moved at most so that it begins and ends with a line.
const LINE_WINDOW_BYTES: u64 = 4096;

/// Bytes of a log that are read at a time for its hash.
const READ_BYTES: u64 = 256 << 10;

/// The cuts of all logs, as they stand on disk: by the log's path in the run.
pub(super) type NotedCuts = BTreeMap<String, NotedLog>;

/// The cuts of one log, as they stand on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotedLog {
    /// The file that was cut.
    inode: u64,
    cuts: Cuts,
}

/// The logs of one attempt.
#[derive(Clone)]
pub(super) struct Spool {
    folder: AttemptFolder,
    limit: u64,
    logs: Arc<tokio::sync::Mutex<Logs>>,
    /// Since when a request for a log waits for its answer.
    waiting: Arc<Mutex<Option<Instant>>>,
}

struct Logs {
    by_path: BTreeMap<String, SpooledLog>,
    /// Logs that were there before this agent, of which it doesn't know how much the server has.
    inherited: BTreeSet<String>,
    holes: Option<Holes>,
    /// Logs that should be cut and, at the last look, could not be.
    uncut: BTreeSet<String>,
    warnings: BTreeSet<String>,
}

/// Whether the file system can take a part out of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holes {
    Possible,
    Impossible,
}

/// One log: its cuts, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SpooledLog {
    inode: u64,
    cuts: Cuts,
    /// What the server has, in bytes of the shown log; `None`: it has not been asked.
    acked: Option<u64>,
    /// What was sent at least once, in bytes of the shown log.
    sent: u64,
}

impl SpooledLog {
    /// The file is this long now. Another file, or a shorter one, has no cuts. `true` if that is new.
    fn is_another(&mut self, inode: u64, file_length: u64) -> bool {
        let another = inode != self.inode || file_length < self.cuts.end();
        if another {
            *self = Self { inode, cuts: Cuts::default(), acked: None, sent: self.sent };
        }
        another
    }

    /// The parts of the shown log that are about to be sent.
    fn send(&mut self, file_length: u64, offset: u64, length: u64) -> Vec<Piece> {
        self.sent = self.sent.max(offset + length);
        self.cuts.range(file_length, offset, length)
    }

    /// The server has this many bytes of the shown log.
    fn answered(&mut self, acked: u64) {
        self.acked = Some(acked);
        self.sent = self.sent.max(acked);
    }

    /// What has to be cut. A log of which nobody knows how much the server has is left alone: it was written by code that died with the agent before
    /// this one, so it does not grow any more.
    fn plan(&self, file_length: u64, limit: u64) -> Option<Plan> {
        self.cuts.plan(Progress { acked: self.acked?, sent: self.sent, file_length }, limit)
    }
}

impl Spool {
    /// The logs that are in `folder` already, and those that come. `limit`: bytes of each that may wait for the server.
    pub(super) fn open(folder: AttemptFolder, limit: u64) -> Self {
        let mut warnings = BTreeSet::new();
        let noted = folder.cuts().unwrap_or_else(|error| {
            warnings.insert(format!("what was cut out of the logs is not known any more, and is shown as NUL bytes: {error}"));
            None
        });
        let inherited = list(&folder.logs(), SYSTEM_LOGS, &folder.logs()).files.into_iter().map(|found| found.path).collect();
        let noted = noted.unwrap_or_default().into_iter();
        let by_path: BTreeMap<_, _> = noted
            .map(|(path, NotedLog { inode, cuts })| {
                // Whatever may have been sent of them was: they stay as they are.
                let sent = cuts.length(cuts.end());
                (path, SpooledLog { inode, cuts, acked: None, sent })
            })
            .collect();
        let spool = Self {
            folder,
            limit,
            logs: Arc::new(tokio::sync::Mutex::new(Logs {
                by_path: by_path.clone(),
                inherited,
                holes: None,
                uncut: BTreeSet::new(),
                warnings,
            })),
            waiting: Arc::default(),
        };
        for (path, log) in by_path {
            spool.punch_again(&path, &log);
        }
        spool
    }

    /// The agent before may have died between the note and the hole.
    fn punch_again(&self, path: &str, log: &SpooledLog) {
        let Some(name) = path.strip_prefix(SYSTEM_LOGS) else { return };
        let file = self.folder.logs().join(name.trim_start_matches('/'));
        if fs::metadata(&file).is_ok_and(|meta| meta.ino() == log.inode && meta.len() >= log.cuts.end()) {
            for cut in log.cuts.all() {
                punch(&file, cut.start, cut.end);
            }
        }
    }

    /// Whether `path` is one of the attempt's own logs.
    pub(super) fn owns(path: &str) -> bool {
        path.strip_prefix(SYSTEM_LOGS).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Gives the own logs among `files` the length that is shown of them.
    pub(super) async fn show(&self, files: &mut [Found]) {
        let mut logs = self.logs.lock().await;
        for found in files.iter_mut().filter(|found| Self::owns(&found.path)) {
            // Looked at again: since the files were listed one may have grown and been cut.
            if let Ok(meta) = fs::metadata(&found.file) {
                let stamp = Stamp::of(&meta);
                let length = logs.current(&self.folder, &found.path, &stamp).cuts.length(stamp.length);
                found.stamp = Stamp { length, ..stamp };
            }
        }
    }

    /// The `length` bytes from `offset` on of what is shown of an own log, to be sent: from now on they stay as they are. An error if the file is
    /// another one now, or too short.
    pub(super) async fn read(&self, found: &Found, offset: u64, length: u64) -> io::Result<bytes::Bytes> {
        let mut logs = self.logs.lock().await;
        let file = File::open(&found.file)?;
        let stamp = Stamp::of(&file.metadata()?);
        let log = logs.current(&self.folder, &found.path, &stamp);
        if stamp.inode != found.stamp.inode || log.cuts.length(stamp.length) < offset + length {
            return Err(io::ErrorKind::NotFound.into());
        }
        let pieces = log.send(stamp.length, offset, length);
        read_pieces(&file, pieces).map(Into::into)
    }

    /// The server has `acked` bytes of what is shown of an own log.
    pub(super) async fn answered(&self, path: &str, acked: u64) {
        if let Some(log) = self.logs.lock().await.by_path.get_mut(path) {
            log.answered(acked);
        }
    }

    /// The hash of what is shown of an own log that does not grow any more.
    pub(super) async fn digest(&self, found: &Found) -> io::Result<Content> {
        let mut logs = self.logs.lock().await;
        let file = File::open(&found.file)?;
        let stamp = Stamp::of(&file.metadata()?);
        let cuts = logs.current(&self.folder, &found.path, &stamp).cuts.clone();
        drop(logs);
        let task = tokio::task::spawn_blocking(move || {
            let (mut hash, mut at, whole) = (Sha256::new(), 0, cuts.length(stamp.length));
            while at < whole {
                let part = read_pieces(&file, cuts.range(stamp.length, at, READ_BYTES))?;
                hash.update(&part);
                at += part.len() as u64;
            }
            Ok(Content { stamp: Stamp { length: whole, ..stamp }, sha256: hex::encode(hash.finalize()) })
        });
        task.await.expect("reading a file does not panic, and nobody ends the task")
    }

    /// Waits for the answer to a request for any log, which the server may not give for long.
    pub(super) async fn during<T>(&self, request: impl Future<Output = T>) -> T {
        let set = |waiting| *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        set(Some(Instant::now()));
        let answer = request.await;
        set(None);
        answer
    }

    fn is_stalled(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() >= STALL)
    }

    /// Cuts what waits beyond the limit whenever the server does not answer, for ever. What is written within [`LOOK_INTERVAL`] may come on top.
    pub(super) async fn guard(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.is_stalled() {
                self.trim().await;
            }
        }
    }

    async fn trim(&self) {
        let mut logs = Arc::clone(&self.logs).lock_owned().await;
        let (folder, limit) = (self.folder.clone(), self.limit);
        // The lock goes along: nothing is sent while it is not clear what is shown.
        let task = tokio::task::spawn_blocking(move || {
            for found in list(&folder.logs(), SYSTEM_LOGS, &folder.logs()).files {
                match logs.trim(&folder, &found, limit) {
                    Ok(()) => drop(logs.uncut.remove(&found.path)),
                    Err(error) if logs.uncut.insert(found.path.clone()) => {
                        tracing::warn!(path = found.path, %error, "the log is over its limit and cannot be cut; trying until it can");
                    }
                    // Said already: this happens twice a second.
                    Err(_) => {}
                }
            }
        });
        task.await.expect("cutting logs does not panic, and nobody ends the task");
    }

    /// What has to be said about what was cut.
    pub(super) async fn warnings(&self) -> Vec<String> {
        let logs = self.logs.lock().await;
        let cut = logs.by_path.iter().filter(|(_, log)| !log.cuts.all().is_empty()).map(|(path, log)| {
            let (bytes, places, limit) = (log.cuts.bytes(), log.cuts.all().len(), self.limit);
            format!(
                "{bytes} bytes of `{path}` were cut out in {places} place(s), each of which says so: the server could not be reached and spool_limit_bytes = {limit} was exceeded"
            )
        });
        logs.warnings.iter().cloned().chain(cut).collect()
    }
}

impl Logs {
    /// The log `path`, whose file is like `stamp` now.
    fn current(&mut self, folder: &AttemptFolder, path: &str, stamp: &Stamp) -> &mut SpooledLog {
        let acked = (!self.inherited.contains(path)).then_some(0);
        let fresh = || SpooledLog { inode: stamp.inode, cuts: Cuts::default(), acked, sent: 0 };
        let log = self.by_path.entry(path.to_owned()).or_insert_with(fresh);
        let had_cuts = !log.cuts.all().is_empty();
        if log.is_another(stamp.inode, stamp.length) && had_cuts {
            tracing::warn!(path, "a log that had been cut was replaced");
            if let Err(error) = self.note(folder) {
                tracing::warn!(%error, "that a log was replaced is not noted");
            }
        }
        self.by_path.get_mut(path).expect("it was put there just now")
    }

    fn note(&self, folder: &AttemptFolder) -> io::Result<()> {
        let cut = self.by_path.iter().filter(|(_, log)| !log.cuts.all().is_empty());
        let noted = cut.map(|(path, log)| (path.clone(), NotedLog { inode: log.inode, cuts: log.cuts.clone() }));
        folder.write_cuts(&noted.collect())
    }

    /// Cuts what is over the limit of one log.
    fn trim(&mut self, folder: &AttemptFolder, found: &Found, limit: u64) -> io::Result<()> {
        let meta = fs::symlink_metadata(&found.file)?;
        // What has another name, too, is not only a log.
        if !meta.is_file() || meta.nlink() != 1 || self.holes == Some(Holes::Impossible) {
            return Ok(());
        }
        let before = self.current(folder, &found.path, &Stamp::of(&meta)).clone();
        let Some(plan) = before.plan(meta.len(), limit) else { return Ok(()) };
        let file = File::open(&found.file)?;
        let Some((cuts, taken)) = cut_at_lines(&file, &before.cuts, plan, limit)? else { return Ok(()) };
        if self.holes.is_none() {
            self.know_holes(try_holes(folder)?, limit);
            if self.holes == Some(Holes::Impossible) {
                return Ok(());
            }
        }
        self.by_path.insert(found.path.clone(), SpooledLog { cuts, ..before.clone() });
        if let Err(error) = self.note(folder) {
            self.by_path.insert(found.path.clone(), before);
            return Err(error);
        }
        tracing::info!(path = found.path, from = taken.0, to = taken.1, "the server can't be reached; a part of the log was cut out");
        punch(&found.file, taken.0, taken.1);
        Ok(())
    }

    /// Remembers whether holes can be punched here, and says so if they can not.
    fn know_holes(&mut self, holes: Holes, limit: u64) {
        self.holes = Some(holes);
        if holes == Holes::Impossible {
            self.warnings.insert(format!(
                "logs are kept whole although more than spool_limit_bytes = {limit} waited for a server that could not be reached: the file system of the attempt's folder cannot take a part out of a file"
            ));
        }
    }
}

/// Finds out on a file of our own whether holes can be punched here. An error: not now.
fn try_holes(folder: &AttemptFolder) -> io::Result<Holes> {
    let path = folder.temporary().join("hole");
    fs::create_dir_all(folder.temporary())?;
    fs::write(&path, [1; 8192])?;
    let punched = fallocate(File::options().write(true).open(&path)?, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096);
    let read = fs::read(&path)?;
    fs::remove_file(&path)?;
    match punched {
        Ok(()) if read.len() == 8192 && read[0] == 0 && read[4096] == 1 => Ok(Holes::Possible),
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL | Errno::PERM) => Ok(Holes::Impossible),
        Err(error) => Err(error.into()),
    }
}

/// Carries a plan out on the notes: the cuts from now on, and which bytes of the file are taken. `None`: moved to the ends of lines, nothing is left of it.
fn cut_at_lines(file: &File, cuts: &Cuts, plan: Plan, limit: u64) -> io::Result<Option<(Cuts, (u64, u64))>> {
    // Never so far that what is to stay becomes much less.
    let window = LINE_WINDOW_BYTES.min(limit / 8);
    let to_line = |end: u64| -> io::Result<u64> {
        let from = end.saturating_sub(1);
        Ok(end + on_to_line_start(&read_part(file, from, window + 1)?).unwrap_or(0))
    };
    match plan {
        Plan::Grow { end } => {
            let (end, present) = (to_line(end)?, cuts.end());
            Ok((end > present).then(|| (cuts.grown(end, limit), (present, end))))
        }
        Plan::New { start, end, floor } => {
            let from = start.saturating_sub(window).max(floor);
            let back = back_to_line_end(&read_part(file, from, start - from)?);
            let start = start - back.unwrap_or(0);
            let end = to_line(end)?;
            // Behind another cut stands the end of its line.
            let breaks_line = start > cuts.end() && read_part(file, start - 1, 1)? != b"\n";
            Ok((end > start).then(|| (cuts.with(Cut { start, end, limit, breaks_line }), (start, end))))
        }
    }
}

/// Up to `length` bytes from `offset` on; fewer where the file ends.
fn read_part(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn read_pieces(file: &File, pieces: Vec<Piece>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Line(text) => bytes.extend(text),
            Piece::File { offset, length } => {
                let at = bytes.len();
                bytes.resize(at + usize::try_from(length).map_err(io::Error::other)?, 0);
                file.read_exact_at(&mut bytes[at..], offset)?;
            }
        }
    }
    Ok(bytes)
}

/// Gives the bytes of a cut back to the file system. If that fails they stay on disk and are not shown.
fn punch(file: &Path, start: u64, end: u64) {
    let punched = File::options()
        .write(true)
        .open(file)
        .and_then(|file| Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, end - start)?));
    if let Err(error) = punched {
        tracing::warn!(file = %file.display(), %error, "the bytes of a cut stay on disk");
    }
}

#[cfg(test)]
mod tests;
