//! What Slurm said when it was last asked, and when it may be asked again: for all jobs at once, at most once a second.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;

use super::{
    parse::{self, Job, JobState, QUEUE_COLUMNS, SACCT_COLUMNS, SQUEUE_COLUMNS, Turn},
    tools::{Failure, ME, Tools},
};

/// Between the end of a call and the next one of the same command. Counted from the end: on a busy machine a command may reach Slurm well after it
/// was started, and then two of them less than a second apart.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(30);

/// Between two counts of everybody's waiting jobs.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// Job ids in one call of `sacct`.
const IDS: usize = 1000;

/// All jobs of this server that Slurm knew at one time.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// When it was asked: a job that was submitted later may be missing.
    pub(super) began: Instant,
    jobs: HashMap<u64, Job>,
}

/// What is known of a job at the last look.
#[derive(Debug)]
pub(super) enum Seen {
    /// Slurm shows it.
    Job(Box<Job>),
    /// Slurm does not show it any more (or never did).
    Missing,
    /// There was no look since it is known.
    NotLooked,
}

#[derive(Debug, Default)]
struct Known {
    snapshot: Option<Arc<Snapshot>>,
    /// Why the last question had no answer; none after an answer.
    trouble: Option<String>,
    /// Ended jobs that accounting told of.
    ended: HashMap<u64, Job>,
    /// Since when jobs are asked for that Slurm does not show.
    missing: HashMap<u64, Instant>,
    /// The turns of waiting jobs, by partition, the last one first.
    queue: BTreeMap<String, Vec<Turn>>,
    counted: Option<Instant>,
    accounting: Accounting,
}

/// Whether there is accounting to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Accounting {
    #[default]
    Unknown,
    Works,
    /// Slurm said so. Asked again when the server is started again.
    None,
}

/// The last look, and the order in which looks are taken.
#[derive(Debug, Default)]
pub(super) struct View {
    known: Mutex<Known>,
    /// When the last call of `squeue` and `sacct` ended, or began if it was given up. Held while they are called.
    squeue: tokio::sync::Mutex<Option<Instant>>,
    sacct: tokio::sync::Mutex<Option<Instant>>,
}

impl View {
    /// What is known of job `id`, which exists since `since`.
    pub(super) fn job(&self, id: u64, since: Instant) -> Seen {
        self.find(since, |snapshot| snapshot.jobs.get(&id))
    }

    /// What is known of a job with the name of `attempt`, if it `is_its_own`: everybody can give a job that name.
    pub(super) fn named(&self, attempt: AttemptId, since: Instant, is_its_own: impl Fn(&Job) -> bool) -> Seen {
        self.find(since, |snapshot| {
            let jobs = snapshot.jobs.values().filter(|job| job.attempt == attempt && is_its_own(job));
            // Of two with one name the one that has not ended: the other one is over in any case.
            jobs.min_by_key(|job| (matches!(job.state, JobState::Ended(_)), job.id))
        })
    }

    fn find(&self, since: Instant, find: impl FnOnce(&Snapshot) -> Option<&Job>) -> Seen {
        match &self.lock().snapshot {
            Some(snapshot) => match find(snapshot) {
                Some(job) => Seen::Job(Box::new(job.clone())),
                None if snapshot.began > since => Seen::Missing,
                None => Seen::NotLooked,
            },
            None => Seen::NotLooked,
        }
    }

    /// When the last look that was answered began.
    pub(super) fn began(&self) -> Option<Instant> {
        self.lock().snapshot.as_ref().map(|snapshot| snapshot.began)
    }

    /// Why the last question had no answer.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// How accounting says that job `id` ended.
    pub(super) fn ended(&self, id: u64) -> Option<Job> {
        self.lock().ended.get(&id).cloned()
    }

    /// How long job `id` has been asked for in vain, and whether there is nobody to ask any more.
    pub(super) fn missing(&self, id: u64) -> (Duration, bool) {
        let known = self.lock();
        (known.missing.get(&id).map_or(Duration::ZERO, Instant::elapsed), known.accounting == Accounting::None)
    }

    /// Whether accounting may have more to say about an end.
    pub(super) fn has_accounting(&self) -> bool {
        self.lock().accounting != Accounting::None
    }

    /// How many waiting jobs are ahead of `job`, if they were counted.
    pub(super) fn ahead(&self, job: &Job) -> Option<usize> {
        let known = self.lock();
        known.counted?;
        let waiting = known.queue.get(&job.partition)?;
        Some(waiting.len() - waiting.partition_point(|turn| *turn <= Turn::new(job.priority, job.id)))
    }

    /// A snapshot that was asked for after `after`. `None`: Slurm did not answer.
    pub(super) async fn fresh(&self, tools: &Tools, after: Instant) -> Option<Arc<Snapshot>> {
        let mut last = self.squeue.lock().await;
        // Somebody else may have asked while this one waited.
        if let Some(snapshot) = self.lock().snapshot.clone().filter(|snapshot| snapshot.began > after) {
            return Some(snapshot);
        }
        pause(*last).await;
        let began = Instant::now();
        *last = Some(began);
        let arguments =
            ["--noheader", &tools.whose(), "--states=all", &format!("--Format={}", parse::format(SQUEUE_COLUMNS))].map(str::to_owned);
        let answer = tools.run("squeue", &arguments, QUESTION).await;
        *last = Some(Instant::now());
        let mut known = self.lock();
        match answer {
            Ok(printed) => {
                let jobs: HashMap<u64, Job> = parse::squeue(&printed.text).into_iter().map(|job| (job.id, job)).collect();
                let snapshot = Arc::new(Snapshot { began, jobs });
                known.trouble = None;
                known.snapshot = Some(Arc::clone(&snapshot));
                Some(snapshot)
            }
            Err(failure) => {
                if known.trouble.is_none() {
                    tracing::warn!(error = failure.words(), "Slurm does not answer; attempts stay as they are");
                }
                known.trouble = Some(failure.words().to_owned());
                None
            }
        }
    }

    /// Asks accounting for the jobs `ids`, all in one call, unless it was asked less than a second ago.
    pub(super) async fn ask_accounting(&self, tools: &Tools, mut ids: Vec<u64>) {
        let Ok(mut last) = self.sacct.try_lock() else { return };
        if ids.is_empty() || !self.has_accounting() || last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        ids.truncate(IDS);
        let list = ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let mut arguments = ["--noheader", "--parsable2", "--allocations", "--jobs", &list, &format!("--format={SACCT_COLUMNS}")]
            .map(str::to_owned)
            .to_vec();
        // Its own user's jobs it shows without that.
        arguments.extend(Some(tools.whose()).filter(|whose| whose != ME));
        let answer = tools.run("sacct", &arguments, QUESTION).await;
        *last = Some(Instant::now());
        let mut known = self.lock();
        match answer {
            Ok(printed) => {
                known.accounting = Accounting::Works;
                for job in parse::sacct(&printed.text) {
                    // Its rows come some seconds after the fact: what still runs there may be over.
                    if matches!(job.state, JobState::Ended(_)) {
                        known.ended.insert(job.id, job);
                    }
                }
            }
            Err(Failure::Refused(words)) => {
                if known.accounting == Accounting::Unknown {
                    tracing::info!(words, "Slurm has no accounting that can be asked; ends are what squeue shows of them");
                    known.accounting = Accounting::None;
                }
            }
            Err(Failure::NoAnswer(words)) => tracing::warn!(words, "Slurm's accounting does not answer; asking again"),
        }
    }

    /// Counts everybody's waiting jobs, if that was not done for a while. Takes the turn of a look. Gives whether it did.
    pub(super) async fn count_queue(&self, tools: &Tools) -> bool {
        let mut last = self.squeue.lock().await;
        if self.lock().counted.is_some_and(|at| at.elapsed() < COUNT_INTERVAL) || last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return false;
        }
        *last = Some(Instant::now());
        let arguments = ["--noheader", "--states=PENDING", &format!("--Format={}", parse::format(QUEUE_COLUMNS))].map(str::to_owned);
        let answer = tools.run("squeue", &arguments, QUESTION).await;
        *last = Some(Instant::now());
        let mut known = self.lock();
        // Also after no answer: what is asked for is a courtesy.
        known.counted = Some(Instant::now());
        if let Ok(printed) = answer {
            let mut queue: BTreeMap<String, Vec<Turn>> = BTreeMap::new();
            for (partitions, turn) in parse::queue(&printed.text) {
                for partition in partitions.split(',') {
                    queue.entry(partition.to_owned()).or_default().push(turn);
                }
            }
            queue.values_mut().for_each(|turns| turns.sort_unstable());
            known.queue = queue;
        }
        true
    }

    /// Whether one of this server's jobs waits for others to end.
    pub(super) fn somebody_waits(&self) -> bool {
        let known = self.lock();
        let Some(snapshot) = &known.snapshot else { return false };
        snapshot.jobs.values().any(|job| job.state == JobState::Pending && matches!(job.reason.as_str(), "Priority" | "Resources"))
    }

    /// Notes which jobs are asked for in vain, and forgets those that nobody asks for any more.
    pub(super) fn note_missing(&self, missing: &[u64]) {
        let mut known = self.lock();
        known.missing.retain(|id, _| missing.contains(id));
        for id in missing {
            known.missing.entry(*id).or_insert_with(Instant::now);
        }
    }

    /// Forgets ends of jobs that are not among `ids`.
    pub(super) fn keep(&self, ids: &std::collections::HashSet<u64>) {
        self.lock().ended.retain(|id, _| ids.contains(id));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until [`INTERVAL`] has passed since `last`.
async fn pause(last: Option<Instant>) {
    if let Some(rest) = last.and_then(|last| INTERVAL.checked_sub(last.elapsed())) {
        tokio::time::sleep(rest).await;
    }
}
