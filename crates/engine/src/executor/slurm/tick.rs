//! What is done once a second, beside the passes: one look at all jobs, one question about those that are not shown any more, and word to Slurm about
//! those that are to end.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use trainyard_core::{ids::AttemptId, slurm::ClusterUser};

use super::{
    Inner,
    jobs::Wish,
    parse::{End, Job, JobState},
    tools::Call,
    view::{INTERVAL, Seen},
};

/// Slurm is told the same again after this.
const REPEAT: Duration = Duration::from_secs(5);

/// How long after its grace an agent that was asked to stop may go on before Slurm tells it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a word about a job may take.
const WORD: Duration = Duration::from_secs(30);

/// Jobs in one call of `scancel`.
const AT_ONCE: usize = 200;

/// The grace of agents whose orders cannot be read.
const USUAL_GRACE: Duration = Duration::from_secs(10);

/// Begins a tick, unless one is under way.
pub(super) fn begin(inner: &Arc<Inner>) {
    let at_work = Arc::clone(inner);
    inner.ticking.begin(async move { at_work.tick().await });
}

impl Inner {
    async fn tick(&self) {
        if self.view.somebody_waits() && self.view.count_queue(&self.tools).await {
            return;
        }
        let Some(_) = self.view.fresh(&self.tools, Instant::now().checked_sub(INTERVAL).unwrap_or_else(Instant::now)).await else { return };
        self.ask_for_the_missing().await;
        self.pass_wishes_on().await;
    }

    /// Accounting is asked for jobs that Slurm does not show any more, and for who cancelled one.
    async fn ask_for_the_missing(&self) {
        let known = self.jobs.known();
        self.view.keep(&known.iter().map(|(_, id, _)| *id).collect());
        let mut missing = Vec::new();
        let mut open = Vec::new();
        for (attempt, id, since) in known {
            match self.job((attempt, id), since) {
                Seen::Missing => missing.push((attempt, id)),
                Seen::Job(job) if job.state == JobState::Ended(End::Cancelled { by: None }) => open.push((attempt, id)),
                Seen::Job(_) | Seen::NotLooked => {}
            }
        }
        let vain: Vec<u64> = missing.iter().chain(&open).map(|(_, id)| *id).filter(|id| self.view.ended(*id).is_none()).collect();
        self.view.note_missing(&vain);
        let wanted = missing.into_iter().chain(open).filter(|(attempt, _)| !self.is_told(*attempt));
        let wanted: Vec<u64> = wanted.map(|(_, id)| id).filter(|id| vain.contains(id)).collect();
        self.view.ask_accounting(&self.tools, wanted).await;
    }

    /// Whether what ended `attempt` is on disk already.
    fn is_told(&self, attempt: AttemptId) -> bool {
        let folder = self.folder(attempt);
        folder.is_collected() || folder.verdict().is_some()
    }

    /// Tells Slurm to end what is not wanted: at once what waits, with a word first and after its grace what runs.
    async fn pass_wishes_on(&self) {
        let before = Instant::now().checked_sub(REPEAT).unwrap_or_else(Instant::now);
        let (mut waiting, mut term, mut gang, mut end, mut kill) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (attempt, id, wish) in self.jobs.unwanted(before) {
            let Seen::Job(job) = self.job((attempt, id), Instant::now()) else { continue };
            match (wish, &job.state) {
                (_, JobState::Ended(_)) => continue,
                (Wish::Kill, _) => kill.push((attempt, job)),
                (Wish::Stop { .. }, JobState::Pending | JobState::Requeued | JobState::Configuring) => waiting.push((attempt, job)),
                (Wish::Stop { since }, _) => match self.patience_left(attempt, since) {
                    Left::All => {}
                    // Where a step of the job has the agents, the shell of the job passes nothing on.
                    Left::Word if self.is_gang(attempt) => gang.push((attempt, job)),
                    Left::Word => term.push((attempt, job)),
                    Left::None => end.push((attempt, job)),
                },
            }
        }
        // Only as long as it still waits: what has just begun has an agent, which stops it in its own way.
        self.scancel(&["--state=PENDING"], &waiting).await;
        self.scancel(&["--batch", "--signal=TERM"], &term).await;
        self.scancel(&["--signal=TERM"], &gang).await;
        self.scancel(&[], &end).await;
        // The first ends processes, stopped ones too; the second what has none yet.
        self.scancel(&["--signal=KILL"], &kill).await;
        self.scancel(&[], &kill).await;
    }

    fn patience_left(&self, attempt: AttemptId, since: Instant) -> Left {
        let folder = self.folder(attempt);
        if folder.exit_record().is_ok_and(|record| record.is_some()) {
            // The code is over, and what is left is delivered.
            return Left::All;
        }
        let grace = folder.read_order().map_or(USUAL_GRACE, |order| Duration::from_secs(order.grace_seconds));
        match since.elapsed() {
            passed if passed > 2 * (grace + PATIENCE) => Left::None,
            passed if passed > grace + PATIENCE => Left::Word,
            _ => Left::All,
        }
    }

    /// Whether a step of its job has its agents.
    fn is_gang(&self, attempt: AttemptId) -> bool {
        self.guests.of(attempt).map_or_else(|| self.folder(attempt).nodes().len() > 1, |guest| guest.nodes > 1)
    }

    /// As whoever the jobs belong to.
    async fn scancel(&self, how: &[&str], jobs: &[(AttemptId, Box<Job>)]) {
        let mut by_user: BTreeMap<Option<ClusterUser>, Vec<(AttemptId, u64)>> = BTreeMap::new();
        for (attempt, job) in jobs {
            by_user.entry(self.guests.of(*attempt).map(|guest| guest.user.clone())).or_default().push((*attempt, job.id));
        }
        for (user, jobs) in &by_user {
            for some in jobs.chunks(AT_ONCE) {
                self.scancel_some(how, user.as_ref(), some).await;
            }
        }
    }

    async fn scancel_some(&self, how: &[&str], user: Option<&ClusterUser>, jobs: &[(AttemptId, u64)]) {
        let ids = jobs.iter().map(|(_, id)| id.to_string());
        let arguments: Vec<String> = how.iter().map(|word| (*word).to_owned()).chain(ids).collect();
        let attempts: HashSet<AttemptId> = jobs.iter().map(|(attempt, _)| *attempt).collect();
        // A job that has ended meanwhile is an error of scancel and none of ours; whether the rest was heard, the next look tells.
        match self.tools.call(Call { tool: "scancel", arguments: &arguments, user, input: None, limit: WORD }).await {
            Ok(_) => tracing::info!(jobs = jobs.len(), how = how.join(" "), "Slurm was told to end jobs"),
            Err(failure) => tracing::warn!(jobs = jobs.len(), error = failure.words(), "scancel"),
        }
        attempts.into_iter().for_each(|attempt| self.jobs.told(attempt));
    }
}

/// How much patience is left with an agent that was asked to stop.
enum Left {
    All,
    /// Enough for a word from Slurm.
    Word,
    None,
}
