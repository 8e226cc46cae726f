//! What the end of a job means for its attempt, in words.
//!
//! How the code ended is its agent's to say. This is for where no agent could: none was up yet, it was killed with the job, or it knows only
//! that it was told to end.

use trainyard_core::run::Cause;

use super::parse::{End, Job, JobState};
use crate::agent::folder::AttemptFolder;

/// How much of the end of the job's own log is shown when no agent came up, in bytes.
const TAIL_BYTES: usize = 1000;

/// The log of the job's script, in the attempt's folder.
pub(super) const JOB_LOG: &str = "slurm.log";

/// What an attempt has left where the server can see it.
pub(super) struct Traces<'a> {
    /// Its folder, or the server's own for a guest.
    folder: &'a AttemptFolder,
    /// Of a guest, whose agent leaves nothing there: whether its job began, and the end of its log.
    guest: Option<(bool, Vec<u8>)>,
}

impl<'a> Traces<'a> {
    /// Those in a folder that the nodes share.
    pub(super) fn of(folder: &'a AttemptFolder) -> Self {
        Self { folder, guest: None }
    }

    /// Those of an attempt on somebody's account.
    pub(super) fn of_guest(folder: &'a AttemptFolder, has_begun: bool, log: Vec<u8>) -> Self {
        Self { folder, guest: Some((has_begun, log)) }
    }

    fn had_agent(&self) -> bool {
        self.guest.as_ref().map_or_else(|| self.folder.had_agent(), |(has_begun, _)| *has_begun)
    }

    fn log(&self) -> String {
        match &self.guest {
            Some((_, log)) => tail(log),
            None => tail(&std::fs::read(self.folder.path().join(JOB_LOG)).unwrap_or_default()),
        }
    }

    /// What a guest's job said, where nobody keeps it.
    fn last_words(&self) -> String {
        let log = if self.guest.is_some() { self.log() } else { String::new() };
        if log.is_empty() { log } else { format!("; its log ends with: {log}") }
    }
}

/// What ended the attempt that left `traces`, whose `job` ended with `end`.
pub(super) fn cause(job: &Job, end: &End, traces: &Traces<'_>) -> Cause {
    let name = named(job);
    match end {
        End::Timeout => time_limit(job),
        End::OutOfMemory => Cause::OutOfMemory { message: format!("Slurm ended {name} because it used more memory than it had asked for") },
        End::NodeFail => Cause::NodeLost { message: format!("Slurm gave up the node of {name} (NODE_FAIL)") },
        End::BootFail => Cause::NodeLost { message: format!("the node of {name} did not start (BOOT_FAIL)") },
        End::Preempted => preempted(job),
        End::Cancelled { by } => cancelled(by.as_deref(), traces.folder),
        End::Deadline => Cause::Cancelled { by: Some("Slurm".into()), why: Some(format!("the deadline of {name} has passed (DEADLINE)")) },
        End::Failed | End::Completed | End::Other(_) if !traces.had_agent() => not_up(job, end, traces),
        End::Failed => {
            let (detail, words) = (detail(&job.reason), traces.last_words());
            Cause::AgentLost { message: format!("{name} ended with FAILED{detail}; was something killed on its node?{words}") }
        }
        End::Completed => Cause::AgentLost { message: format!("{name} ended before everything was delivered{}", traces.last_words()) },
        End::Other(word) => Cause::AgentLost { message: format!("{name} ended with {word}{}", detail(&job.reason)) },
    }
}

/// What Slurm is doing to a job whose agent was told to end; `None` if it is doing nothing to it.
pub(super) fn explanation(job: &Job, traces: &Traces<'_>) -> Option<Cause> {
    if job.preempted {
        return Some(preempted(job));
    }
    match &job.state {
        JobState::Ended(End::Completed | End::Failed | End::Other(_)) => None,
        JobState::Ended(end) => Some(cause(job, end, traces)),
        JobState::Completing if job.reason == "TimeLimit" => Some(time_limit(job)),
        // Of a job on several nodes: the agents on the others are told to end.
        JobState::Completing if job.reason == "NodeDown" => Some(cause(job, &End::NodeFail, traces)),
        JobState::Completing => Some(cancelled(None, traces.folder)),
        // A signal some time before the limit, which can be asked for.
        JobState::Running if job.left_seconds.is_some_and(|left| left <= EARLY_SIGNAL_SECONDS) => Some(time_limit(job)),
        JobState::Pending | JobState::Requeued | JobState::Configuring | JobState::Running | JobState::Suspended => None,
    }
}

/// Slurm may send a signal that was asked for up to a minute early, and it is asked for a minute or two before the limit.
const EARLY_SIGNAL_SECONDS: u64 = 180;

/// A job that had begun and is in the queue again: its code is not started a second time.
pub(super) fn requeued(job: &Job) -> Cause {
    Cause::Preempted { message: format!("Slurm took {} off its node and put it back into the queue (REQUEUED)", named(job)) }
}

/// It was over before the server's data was restored.
pub(super) fn undelivered(job: &Job) -> Cause {
    let message = format!("{} was over before the server's data was restored, and what it had delivered is lost", named(job));
    Cause::AgentLost { message }
}

/// Slurm does not know the job any more, and nobody else knows how it ended.
pub(super) fn forgotten(id: u64) -> Cause {
    Cause::AgentLost { message: format!("Slurm does not know job {id} any more, and how it ended is not recorded") }
}

fn time_limit(job: &Job) -> Cause {
    Cause::TimeLimit { limit_seconds: job.limit_seconds.unwrap_or(0), of: Some(format!("Slurm job {}", job.id)) }
}

fn preempted(job: &Job) -> Cause {
    Cause::Preempted { message: format!("Slurm took {} off its node to make room for another job (PREEMPTED)", named(job)) }
}

fn cancelled(by: Option<&str>, folder: &AttemptFolder) -> Cause {
    if let Some(asked) = folder.stop_request() {
        return Cause::Cancelled { by: asked.by, why: asked.why };
    }
    let by = by.map_or_else(|| "scancel, outside of this server".to_owned(), |uid| format!("uid {uid} (scancel)"));
    Cause::Cancelled { by: Some(by), why: None }
}

fn not_up(job: &Job, end: &End, traces: &Traces<'_>) -> Cause {
    let how = match end {
        End::Failed => format!("failed{}", detail(&job.reason)),
        _ => "ended".to_owned(),
    };
    let tail = traces.log();
    let said = if tail.is_empty() { "it left no log".to_owned() } else { format!("its log ends with: {tail}") };
    Cause::StartFailed { message: format!("{} {how} before its agent was up; {said}", named(job)), by_definition: false }
}

fn named(job: &Job) -> String {
    if job.node.is_empty() { format!("Slurm job {}", job.id) } else { format!("Slurm job {} on {}", job.id, job.node) }
}

fn detail(reason: &str) -> String {
    if matches!(reason, "" | "None") { String::new() } else { format!(" ({reason})") }
}

/// The last lines of a log, whole where possible.
fn tail(log: &[u8]) -> String {
    let start = log.len().saturating_sub(TAIL_BYTES);
    let text = String::from_utf8_lossy(&log[start..]);
    let text = if start > 0 { text.split_once('\n').map_or(&*text, |(_, rest)| rest) } else { &text };
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use trainyard_core::ids::AttemptId;

    use super::*;

    fn job(state: JobState) -> Job {
        Job {
            id: 17,
            attempt: AttemptId(uuid::Uuid::nil()),
            state,
            reason: "None".into(),
            limit_seconds: Some(60),
            left_seconds: Some(9999),
            preempted: false,
            node: "n1".into(),
            partition: "cpu".into(),
            priority: 1,
            user: "ada".into(),
        }
    }

    fn folder() -> (tempfile::TempDir, AttemptFolder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(dir.path());
        (dir, folder)
    }

    fn ended(end: End, folder: &AttemptFolder) -> (&'static str, String) {
        let cause = cause(&job(JobState::Ended(end.clone())), &end, &Traces::of(folder));
        (cause.label(), cause.sentence())
    }

    #[test]
    fn every_end_of_a_job_has_a_cause_in_words() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("agent.lock"), "").unwrap();
        let cases = [
            (End::Timeout, "time_limit", "the time limit of Slurm job 17 is 60 s"),
            (End::OutOfMemory, "out_of_memory", "Slurm job 17 on n1"),
            (End::NodeFail, "node_lost", "NODE_FAIL"),
            (End::BootFail, "node_lost", "BOOT_FAIL"),
            (End::Preempted, "preempted", "make room"),
            (End::Cancelled { by: Some("1000".into()) }, "cancelled", "cancelled by uid 1000 (scancel)"),
            (End::Cancelled { by: None }, "cancelled", "outside of this server"),
            (End::Deadline, "cancelled", "DEADLINE"),
            (End::Failed, "agent_lost", "FAILED"),
            (End::Completed, "agent_lost", "before everything was delivered"),
            (End::Other("REVOKED".into()), "agent_lost", "REVOKED"),
        ];
        for (end, label, words) in cases {
            let (found, sentence) = ended(end.clone(), &folder);
            assert_eq!(found, label, "{end:?}");
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn a_job_that_never_got_to_its_agent_shows_its_last_words() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join(JOB_LOG), "x\n".repeat(900) + "/shared/bin/trainyard: No such file or directory\n").unwrap();
        let (label, sentence) = ended(End::Failed, &folder);
        assert_eq!(label, "start_failed");
        assert!(sentence.ends_with("No such file or directory") && sentence.len() < 1300, "{sentence}");
    }

    #[test]
    fn a_cancel_of_our_own_names_who_asked_for_it() {
        let (_dir, folder) = folder();
        folder.request_stop("ada", Some("no need")).unwrap();
        assert_eq!(ended(End::Cancelled { by: Some("0".into()) }, &folder).1, "cancelled by ada: no need");
    }

    #[test]
    fn an_agent_that_was_told_to_end_learns_why() {
        let (_dir, folder) = folder();
        let label = |job: &Job| explanation(job, &Traces::of(&folder)).map(|cause| cause.label());
        assert_eq!(label(&Job { reason: "TimeLimit".into(), ..job(JobState::Completing) }), Some("time_limit"));
        assert_eq!(label(&Job { reason: "NodeDown".into(), ..job(JobState::Completing) }), Some("node_lost"));
        assert_eq!(label(&Job { left_seconds: Some(59), ..job(JobState::Running) }), Some("time_limit"));
        assert_eq!(label(&Job { preempted: true, ..job(JobState::Running) }), Some("preempted"));
        assert_eq!(label(&job(JobState::Completing)), Some("cancelled"));
        assert_eq!(label(&job(JobState::Running)), None, "somebody sent a signal: Slurm knows nothing of it");
        assert_eq!(label(&job(JobState::Ended(End::Timeout))), Some("time_limit"));
    }
}
