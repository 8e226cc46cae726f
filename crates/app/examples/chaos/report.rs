//! The counts of many rounds, and the page that shows them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use trainyard_store::fail::FAIL_POINTS;

use crate::{
    judge::{Broken, Violation},
    ledger::Record,
    observe::Seen,
};

/// What all rounds did and found.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) rounds: u64,
    /// Worlds that a file system could be filled in.
    pub(crate) worlds_with_small_disk: u64,
    pub(crate) worlds: u64,
    pub(crate) runs: u64,
    pub(crate) attempts: u64,
    pub(crate) lines: u64,
    pub(crate) resubmitted: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) fired: BTreeMap<String, u64>,
    pub(crate) causes: BTreeMap<&'static str, u64>,
    /// How often runs were said to be `NotResponding`.
    pub(crate) silences: u64,
    pub(crate) violations: Vec<(String, Violation)>,
    pub(crate) elapsed: Duration,
}

impl Tally {
    /// Adds a round.
    pub(crate) fn add(&mut self, record: &Record, seen: &BTreeMap<String, Seen>, lines: usize) {
        self.rounds += 1;
        self.runs += seen.len() as u64;
        self.lines += lines as u64;
        self.resubmitted += record.resubmitted;
        for (word, count) in &record.faults {
            *self.faults.entry(word).or_default() += count;
        }
        for (name, count) in &record.fired {
            *self.fired.entry(name.clone()).or_default() += count;
        }
        for run in seen.values() {
            self.attempts += run.attempts.len() as u64;
            self.silences += run.timeline.iter().filter(|(_, name, _)| name.ends_with(".NotResponding")).count() as u64;
            for cause in run.attempts.iter().filter_map(|attempt| attempt.cause.as_ref()) {
                *self.causes.entry(cause.label()).or_default() += 1;
            }
        }
    }

    /// How often a promise of this kind was broken.
    pub(crate) fn broken(&self, kind: Broken) -> usize {
        self.violations.iter().filter(|(_, violation)| violation.broken == kind).count()
    }

    /// The counts, a line each.
    pub(crate) fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("rounds".to_owned(), self.rounds.to_string()),
            ("runs accepted".to_owned(), self.runs.to_string()),
            ("attempts".to_owned(), self.attempts.to_string()),
            ("attempts whose code ran".to_owned(), self.lines.to_string()),
            ("submissions and cancellations sent again for want of an answer".to_owned(), self.resubmitted.to_string()),
            ("times that a run was said to be NotResponding".to_owned(), self.silences.to_string()),
        ];
        rows.extend(self.faults.iter().map(|(word, count)| (format!("fault: {word}"), count.to_string())));
        rows.extend(self.causes.iter().map(|(label, count)| (format!("attempts that ended as `{label}`"), count.to_string())));
        rows.extend(Broken::ALL.iter().map(|kind| (format!("**{}**", kind.words()), format!("**{}**", self.broken(*kind)))));
        rows
    }

    /// The page.
    pub(crate) fn page(&self, how: &How) -> String {
        let mut page = format!(
            "# No run is lost, run twice, or ends wrong: the crash report\n\n\
             Made by `{}` on {}: {}. {} rounds took {}, with a new world every few rounds ({} of {} on a small file system of their own). \
             What a round does and what is checked after it is said in `crates/app/examples/chaos/main.rs`.\n\n\
             | what | count |\n| --- | --- |\n",
            how.command,
            how.date,
            how.machine,
            self.rounds,
            minutes(self.elapsed),
            self.worlds_with_small_disk,
            self.worlds,
        );
        for (what, count) in self.rows() {
            let _ = writeln!(page, "| {what} | {count} |");
        }
        page.push_str("\n## Fail points\n\nHow often each fired: the process that passed it was killed there, held up, or told that its disk is full.\n\n| fail point | between | fired |\n| --- | --- | --- |\n");
        for point in FAIL_POINTS {
            let _ = writeln!(page, "| `{}` | {} | {} |", point.name, point.between, self.fired.get(point.name).copied().unwrap_or(0));
        }
        if !self.violations.is_empty() {
            page.push_str("\n## Broken promises\n\n");
            for (round, violation) in &self.violations {
                let _ = writeln!(page, "* {round}: {}", violation.to_string().replace('\n', " "));
            }
        }
        page
    }
}

/// How the rounds were made.
pub(crate) struct How {
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) machine: String,
}

impl How {
    /// As of now, on this machine.
    pub(crate) fn now(command: String, binary: &Path) -> Result<Self> {
        let date = jiff::Zoned::now().strftime("%Y-%m-%d").to_string();
        let version = Command::new(binary).arg("--version").output().context("the program does not say its version")?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes: u64 = memory.lines().next().and_then(|line| line.split_ascii_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let machine = format!(
            "{}, {cores} cores, {} GiB of memory, Linux {}",
            String::from_utf8_lossy(&version.stdout).trim(),
            kilobytes / (1 << 20),
            // The rest of it names who built the kernel.
            kernel.trim().split('-').next().unwrap_or_default()
        );
        Ok(Self { command, date, machine })
    }
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..180 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
