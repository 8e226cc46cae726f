//! Reads what `squeue` and `sacct` print. Columns of fixed width and columns between bars are the same from 20.11 to 26.05; the JSON of these tools is not.

use std::cmp::Reverse;

use trainyard_core::ids::AttemptId;

/// What jobs are named after their attempts with.
pub(super) const NAME_PREFIX: &str = "trainyard-";

/// A job as Slurm shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: u64,
    /// The attempt that it is named after.
    pub(super) attempt: AttemptId,
    pub(super) state: JobState,
    /// Slurm's word for why it waits or ended.
    pub(super) reason: String,
    /// Its time limit, in seconds.
    pub(super) limit_seconds: Option<u64>,
    /// What is left of it, in seconds.
    pub(super) left_seconds: Option<u64>,
    /// Whether it has to make room for another one.
    pub(super) preempted: bool,
    pub(super) node: String,
    pub(super) partition: String,
    pub(super) priority: u64,
    /// Whose it is.
    pub(super) user: String,
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// In the queue.
    Pending,
    /// Back in the queue after it had begun.
    Requeued,
    /// It has nodes, which are being made ready.
    Configuring,
    Running,
    /// Its processes are being ended, or its nodes cleaned.
    Completing,
    Suspended,
    Ended(End),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Failed,
    Timeout,
    OutOfMemory,
    NodeFail,
    BootFail,
    Preempted,
    /// By whom, as `sacct` says it: a user id.
    Cancelled {
        by: Option<String>,
    },
    Deadline,
    /// A word of Slurm that ends a job and is none of these.
    Other(String),
}

/// The columns of `squeue`, with their widths. What is longer is cut by it.
pub(super) const SQUEUE_COLUMNS: &[(&str, usize)] = &[
    ("JobID", 20),
    ("Name", 64),
    ("State", 24),
    ("Reason", 120),
    ("TimeLimit", 20),
    ("TimeLeft", 20),
    ("PreemptTime", 24),
    ("BatchHost", 64),
    ("Partition", 64),
    ("PriorityLong", 20),
    ("UserName", 64),
];

/// The columns of `sacct`.
pub(super) const SACCT_COLUMNS: &str = "JobIDRaw,JobName,State,ExitCode,Timelimit,NodeList,Partition,User";

/// `squeue`'s own way to write the columns.
pub(super) fn format(columns: &[(&str, usize)]) -> String {
    columns.iter().map(|(name, width)| format!("{name}:{width}")).collect::<Vec<_>>().join(",")
}

/// The jobs of attempts in what `squeue` printed; others of the same user are left out.
pub(super) fn squeue(text: &str) -> Vec<Job> {
    text.lines().filter_map(squeue_line).collect()
}

fn squeue_line(line: &str) -> Option<Job> {
    let fields = fixed(line, SQUEUE_COLUMNS);
    let [id, name, state, reason, limit, left, preempted, node, partition, priority, user] = fields.as_slice() else { return None };
    Some(Job {
        // An array's job ids hold an underscore; ours are none.
        id: id.parse().ok()?,
        attempt: attempt(name)?,
        state: job_state(state),
        reason: reason.clone(),
        limit_seconds: seconds(limit),
        left_seconds: seconds(left),
        preempted: !matches!(preempted.as_str(), "" | "N/A" | "None" | "Unknown"),
        node: if node == "n/a" { String::new() } else { node.clone() },
        partition: partition.clone(),
        priority: priority.parse().unwrap_or(0),
        user: user.clone(),
    })
}

/// The jobs of attempts in what `sacct -n -P` printed.
pub(super) fn sacct(text: &str) -> Vec<Job> {
    text.lines().filter_map(sacct_line).collect()
}

fn sacct_line(line: &str) -> Option<Job> {
    let fields: Vec<&str> = line.split('|').collect();
    let [id, name, state, exit, limit, nodes, partition, user] = fields.as_slice() else { return None };
    Some(Job {
        id: id.parse().ok()?,
        attempt: attempt(name)?,
        state: job_state(state),
        reason: if matches!(*exit, "0:0" | "") { String::new() } else { format!("exit {exit}") },
        limit_seconds: seconds(limit),
        left_seconds: None,
        preempted: false,
        node: if *nodes == "None assigned" { String::new() } else { (*nodes).to_owned() },
        partition: (*partition).to_owned(),
        priority: 0,
        user: (*user).to_owned(),
    })
}

/// Partition, priority and id of each line of `squeue` with these columns.
pub(super) const QUEUE_COLUMNS: &[(&str, usize)] = &[("Partition", 64), ("PriorityLong", 20), ("JobID", 20)];

pub(super) fn queue(text: &str) -> Vec<(String, Turn)> {
    let line = |line: &str| match fixed(line, QUEUE_COLUMNS).as_slice() {
        [partition, priority, id] => {
            // What waits of an array may be `17_[2-9]`.
            let id = id.split(['_', '+']).next()?.parse().ok()?;
            Some((partition.clone(), Turn::new(priority.parse().ok()?, id)))
        }
        _ => None,
    };
    text.lines().filter_map(line).collect()
}

/// A waiting job's place among others: what is greater is ahead. By priority, and where that is the same, as it is for all jobs on many clusters, by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64, Reverse<u64>);

impl Turn {
    pub(super) fn new(priority: u64, id: u64) -> Self {
        Self(priority, Reverse(id))
    }
}

/// The attempt that a job is named after.
fn attempt(name: &str) -> Option<AttemptId> {
    name.strip_prefix(NAME_PREFIX)?.parse().ok()
}

/// Cuts a line at the columns' widths, in characters.
fn fixed(line: &str, columns: &[(&str, usize)]) -> Vec<String> {
    let mut characters = line.chars();
    columns.iter().map(|(_, width)| characters.by_ref().take(*width).collect::<String>().trim().to_owned()).collect()
}

/// Slurm's words for states. A word may carry flags after a plus or comma and, from `sacct`, who cancelled.
fn job_state(text: &str) -> JobState {
    let word = text.split([' ', '+', ',']).next().unwrap_or_default();
    let end = |end| JobState::Ended(end);
    match word {
        "PENDING" | "RESV_DEL_HOLD" => JobState::Pending,
        "REQUEUED" | "REQUEUE_FED" | "REQUEUE_HOLD" | "SPECIAL_EXIT" => JobState::Requeued,
        "CONFIGURING" | "POWER_UP_NODE" => JobState::Configuring,
        "COMPLETING" | "STAGE_OUT" => JobState::Completing,
        "SUSPENDED" | "STOPPED" => JobState::Suspended,
        "COMPLETED" => end(End::Completed),
        "FAILED" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => end(End::Failed),
        "TIMEOUT" => end(End::Timeout),
        "OUT_OF_MEMORY" => end(End::OutOfMemory),
        "NODE_FAIL" => end(End::NodeFail),
        "BOOT_FAIL" => end(End::BootFail),
        "PREEMPTED" => end(End::Preempted),
        "CANCELLED" => end(End::Cancelled { by: text.split_once(" by ").map(|(_, by)| by.trim().to_owned()) }),
        "DEADLINE" => end(End::Deadline),
        "REVOKED" | "EXPEDITING" => end(End::Other(word.to_owned())),
        // RUNNING, RESIZING, SIGNALING, and what is not known yet: the agent has the word.
        _ => JobState::Running,
    }
}

/// `[D-]H:M:S`, `M:S`; `None` for UNLIMITED, INVALID, N/A and the like.
fn seconds(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    let parts: Vec<u64> = rest.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match parts.as_slice() {
        [hours, minutes, seconds] => (*hours, *minutes, *seconds),
        [minutes, seconds] => (0, *minutes, *seconds),
        _ => return None,
    };
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60)?.checked_add(seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ATTEMPT: &str = "01901f2e-0000-7000-8000-000000000001";

    /// A line as `squeue` pads it.
    fn line(fields: [&str; 11]) -> String {
        SQUEUE_COLUMNS.iter().zip(fields).map(|((_, width), field)| format!("{field:<width$}")).collect()
    }

    #[test]
    fn jobs_of_one_priority_wait_in_the_order_of_their_ids() {
        let line = |partition: &str, priority: &str, id: &str| format!("{partition:<64}{priority:<20}{id:<20}\n");
        let text =
            [line("cpu", "1", "9_[0-3]"), line("cpu,gpu", "1", "12"), line("cpu", "4000000000", "30"), line("cpu", "?", "8")].concat();
        let turns: Vec<Turn> = queue(&text).into_iter().map(|(_, turn)| turn).collect();
        assert_eq!(turns, [Turn::new(1, 9), Turn::new(1, 12), Turn::new(4_000_000_000, 30)]);
        let ahead = |own: Turn| turns.iter().filter(|turn| **turn > own).count();
        assert_eq!((ahead(Turn::new(1, 12)), ahead(Turn::new(1, 9)), ahead(Turn::new(4_000_000_000, 30))), (2, 1, 0));
    }

    #[test]
    fn a_line_of_squeue_is_cut_at_its_columns() {
        let name = format!("trainyard-{ATTEMPT}");
        let text = line(["17", &name, "RUNNING", "None", "1-00:00:10", "0:57", "N/A", "n1", "cpu", "4294901753", "ada"]);
        let job = squeue(&text).remove(0);
        assert_eq!((job.id, job.attempt.to_string().as_str(), job.state), (17, ATTEMPT, JobState::Running));
        assert_eq!((job.limit_seconds, job.left_seconds, job.preempted), (Some(86_410), Some(57), false));
        assert_eq!((job.node.as_str(), job.partition.as_str(), job.priority), ("n1", "cpu", 4_294_901_753));
        let reason = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions";
        let text = line(["18", &name, "PENDING", reason, "UNLIMITED", "UNLIMITED", "2026-11-23T16:34:05", "n/a", "cpu", "1", "bob"]);
        let job = squeue(&text).remove(0);
        assert_eq!((job.reason.as_str(), job.limit_seconds, job.preempted, job.node.as_str()), (reason, None, true, ""));
        assert_eq!(job.user, "bob");
    }

    #[test]
    fn jobs_of_others_and_lines_of_something_else_are_left_out() {
        let text = format!("{}\nsqueue: something\n\n", line(["3", "wrap", "RUNNING", "", "", "", "", "", "", "", ""]));
        assert!(squeue(&text).is_empty());
        assert!(sacct("3|wrap|COMPLETED|0:0|UNLIMITED|n1|cpu|ada\n").is_empty());
    }

    #[test]
    fn accounting_knows_who_cancelled() {
        let jobs = sacct(&format!("8|trainyard-{ATTEMPT}|CANCELLED by 1000|0:0|00:01:00|n[1-2]|cpu|ada\n"));
        assert_eq!(jobs[0].state, JobState::Ended(End::Cancelled { by: Some("1000".into()) }));
        assert_eq!((jobs[0].limit_seconds, jobs[0].node.as_str(), jobs[0].user.as_str()), (Some(60), "n[1-2]", "ada"));
    }

    #[test]
    fn every_state_of_slurm_has_a_meaning_and_unknown_ones_are_left_to_the_agent() {
        let cases = [
            ("PENDING", JobState::Pending),
            ("REQUEUED", JobState::Requeued),
            ("CONFIGURING", JobState::Configuring),
            ("COMPLETING", JobState::Completing),
            ("COMPLETED", JobState::Ended(End::Completed)),
            ("FAILED", JobState::Ended(End::Failed)),
            ("TIMEOUT", JobState::Ended(End::Timeout)),
            ("OUT_OF_MEMORY", JobState::Ended(End::OutOfMemory)),
            ("NODE_FAIL", JobState::Ended(End::NodeFail)),
            ("BOOT_FAIL", JobState::Ended(End::BootFail)),
            ("PREEMPTED", JobState::Ended(End::Preempted)),
            ("CANCELLED", JobState::Ended(End::Cancelled { by: None })),
            ("CANCELLED+", JobState::Ended(End::Cancelled { by: None })),
            ("DEADLINE", JobState::Ended(End::Deadline)),
            ("RESIZING", JobState::Running),
            ("SOMETHING_NEW", JobState::Running),
        ];
        for (word, state) in cases {
            assert_eq!(job_state(word), state, "{word}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in ".*", fields in prop::collection::vec("[^|]{0,20}", 8)) {
            let _ = (squeue(&text), sacct(&text), queue(&text), seconds(&text), sacct(&fields.join("|")));
        }
    }
}
