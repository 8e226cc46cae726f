//! The log about a run's data, `65_job_prep.txt` before the code and `75_job_post.txt` after it (azureml-wire F.4), and how far a copy is.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::agent::folder::AttemptFolder;

/// Between two lines about how far something is.
const INTERVAL: Duration = Duration::from_secs(5);

/// A log. A line that cannot be written is lost, and the work goes on.
#[derive(Debug)]
pub(super) struct Journal(Option<Mutex<File>>);

impl Journal {
    /// Appends to the log `name` of a node.
    pub(super) fn of(folder: &AttemptFolder, name: &str) -> Self {
        let node = folder.node();
        let name = if node == 0 { format!("{name}.txt") } else { format!("{name}_node-{node}.txt") };
        Self::open(&folder.logs().join(name))
    }

    /// Appends to the file at `path`.
    pub(super) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.inspect_err(|error| tracing::warn!(%error, "the log about the data of the run cannot be written"));
        Self(file.ok().map(Mutex::new))
    }

    /// Writes a line.
    pub(super) fn line(&self, line: &str) {
        let Some(file) = &self.0 else { return };
        let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            tracing::warn!(%error, "a line about the data of the run is lost");
        }
    }
}

/// Counts the bytes of one input or output and says now and then how many they are.
#[derive(Debug)]
pub(super) struct Meter<'a> {
    journal: &'a Journal,
    what: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: u64,
    expected: Option<u64>,
    begun: Instant,
    said: Instant,
}

impl<'a> Meter<'a> {
    /// For what `what` names.
    pub(super) fn new(journal: &'a Journal, what: &str) -> Self {
        let now = Instant::now();
        Self { journal, what: what.to_owned(), state: Mutex::new(State { bytes: 0, expected: None, begun: now, said: now }) }
    }

    /// How many bytes there will be.
    pub(super) fn expect(&self, bytes: u64) {
        self.state().expected = Some(bytes);
    }

    /// More bytes are there.
    pub(super) fn add(&self, bytes: u64) {
        let mut state = self.state();
        state.bytes += bytes;
        if state.said.elapsed() < INTERVAL {
            return;
        }
        state.said = Instant::now();
        let done = size(state.bytes);
        let line = match state.expected {
            Some(expected) if expected > 0 => {
                format!(
                    "{}: {done} of {} ({} %)",
                    self.what,
                    size(expected),
                    (state.bytes.min(expected) as f64 * 100.0 / expected as f64) as u64
                )
            }
            _ => format!("{}: {done}", self.what),
        };
        self.journal.line(&line);
    }

    /// Some bytes that were counted have to come again.
    pub(super) fn take_back(&self, bytes: u64) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// How long it has taken so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.state().begun.elapsed()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Bytes for people: `1.5 GB`.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A number of files for people: `1 file`, `3 files`.
pub(super) fn files(count: usize) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5_000_000_000, "5.0 GB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
