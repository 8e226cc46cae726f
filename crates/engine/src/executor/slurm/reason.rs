//! Why a job waits, in words for the person who does. Slurm's own word is kept in the sentence, so that it can be looked up.

use trainyard_core::plan::WaitReason;

use super::parse::{Job, JobState};

/// Why `job` waits. `ahead`: how many waiting jobs of its partition have a higher priority, if that was counted.
pub(super) fn of(job: &Job, ahead: Option<usize>) -> WaitReason {
    let (code, words) = match job.state {
        JobState::Configuring => ("NodesStarting", "its nodes are being made ready".to_owned()),
        JobState::Suspended => ("Suspended", "Slurm has suspended it".to_owned()),
        _ => queued(job, ahead),
    };
    WaitReason { code, message: format!("Slurm job {}: {words}", job.id) }
}

fn queued(job: &Job, ahead: Option<usize>) -> (&'static str, String) {
    let partition = &job.partition;
    let reason = job.reason.as_str();
    let resources = |code| (code, format!("waits for resources: {}", place(partition, ahead)));
    let limit = |whose: &str| ("LimitReached", format!("waits until less of {whose} is in use ({reason})"));
    match reason {
        "Resources" => resources("WaitingForResources"),
        "Priority" => resources("WaitingForPriority"),
        "None" | "" => ("WaitingForScheduler", format!("waits for Slurm to look at it, in partition {partition}")),
        "BeginTime" => {
            ("BeginTime", "does not begin before the time that was asked for, or Slurm waits after it was put back (BeginTime)".to_owned())
        }
        "Dependency" => ("Dependency", "waits for the jobs that it depends on (Dependency)".to_owned()),
        "DependencyNeverSatisfied" => {
            ("NeverStarts", "will never start: a job that it depends on ended badly (DependencyNeverSatisfied); cancel the run".to_owned())
        }
        "PartitionTimeLimit" => (
            "NeverStarts",
            format!("asks for more time than partition {partition} gives (PartitionTimeLimit); cancel the run and ask for less"),
        ),
        "PartitionNodeLimit" => (
            "NeverStarts",
            format!("asks for more nodes than partition {partition} gives (PartitionNodeLimit); cancel the run and ask for fewer"),
        ),
        "PartitionDown" | "PartitionInactive" => ("PartitionDown", format!("partition {partition} takes no jobs now ({reason})")),
        "JobHeldUser" | "JobHeldAdmin" => {
            ("Held", format!("is held and starts when it is released, with `scontrol release {}` ({reason})", job.id))
        }
        "Licenses" => ("Licenses", "waits for licences (Licenses)".to_owned()),
        "Reservation" | "ReservationDeleted" => ("Reservation", format!("waits for its reservation ({reason})")),
        "JobArrayTaskLimit" | "NodeDown" | "BadConstraints" | "InvalidAccount" | "InvalidQOS" | "AccountNotAllowed" | "QOSNotAllowed" => {
            ("NeverStarts", format!("may never start: {reason}; its operator knows more"))
        }
        _ if reason.starts_with("ReqNodeNotAvail") || reason.starts_with("Nodes required for job are") => {
            ("NodesNotAvailable", format!("waits for nodes that are down, drained or reserved ({reason})"))
        }
        _ if reason.starts_with("QOS") => limit("what its QOS allows"),
        _ if reason.starts_with("Assoc") => limit("what its account allows"),
        _ if reason.starts_with("MaxMem") || reason.starts_with("MaxCpu") => limit("what one user may have"),
        _ => ("WaitingInSlurm", format!("waits: {reason}")),
    }
}

fn place(partition: &str, ahead: Option<usize>) -> String {
    match ahead {
        None => format!("in the queue of partition {partition}"),
        Some(0) => format!("next in partition {partition}"),
        Some(1) => format!("1 job ahead in partition {partition}"),
        Some(ahead) => format!("{ahead} jobs ahead in partition {partition}"),
    }
}

/// It is on its way to Slurm.
pub(super) fn submitting() -> WaitReason {
    WaitReason { code: "Submitting", message: "is being submitted to Slurm".into() }
}

/// Slurm does not answer, or does not take it now.
pub(super) fn unanswered(words: &str) -> WaitReason {
    WaitReason { code: "SlurmDoesNotAnswer", message: format!("waits for Slurm's answer: {words}") }
}

/// Slurm has it, and has not been looked at since.
pub(super) fn submitted(id: u64) -> WaitReason {
    WaitReason { code: "Submitted", message: format!("Slurm job {id}: has been submitted") }
}

/// Slurm does not take it now.
pub(super) fn held_back(words: &str) -> WaitReason {
    WaitReason { code: "LimitReached", message: format!("Slurm does not take it now, and is asked again: {words}") }
}

#[cfg(test)]
mod tests {
    use trainyard_core::ids::AttemptId;

    use super::*;

    fn words(state: JobState, reason: &str, ahead: Option<usize>) -> (&'static str, String) {
        let job = Job {
            id: 17,
            attempt: AttemptId(uuid::Uuid::nil()),
            state,
            reason: reason.into(),
            limit_seconds: None,
            left_seconds: None,
            preempted: false,
            node: String::new(),
            partition: "cpu".into(),
            priority: 1,
            user: "ada".into(),
        };
        let WaitReason { code, message } = of(&job, ahead);
        (code, message)
    }

    #[test]
    fn whoever_waits_is_told_what_for() {
        let cases = [
            ("Priority", Some(3), "WaitingForPriority", "Slurm job 17: waits for resources: 3 jobs ahead in partition cpu"),
            ("Priority", Some(1), "WaitingForPriority", "1 job ahead in partition cpu"),
            ("Resources", Some(0), "WaitingForResources", "waits for resources: next in partition cpu"),
            ("Resources", None, "WaitingForResources", "in the queue of partition cpu"),
            ("QOSMaxJobsPerUserLimit", None, "LimitReached", "until less of what its QOS allows is in use (QOSMaxJobsPerUserLimit)"),
            ("AssocGrpCpuLimit", None, "LimitReached", "what its account allows"),
            ("ReqNodeNotAvail, UnavailableNodes:n1", None, "NodesNotAvailable", "(ReqNodeNotAvail, UnavailableNodes:n1)"),
            ("DependencyNeverSatisfied", None, "NeverStarts", "cancel the run"),
            ("PartitionTimeLimit", None, "NeverStarts", "more time than partition cpu gives"),
            ("JobHeldUser", None, "Held", "scontrol release 17"),
            ("SomethingNew", None, "WaitingInSlurm", "Slurm job 17: waits: SomethingNew"),
        ];
        for (reason, ahead, code, part) in cases {
            let (found, message) = words(JobState::Pending, reason, ahead);
            assert_eq!(found, code, "{reason}");
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(words(JobState::Configuring, "None", None).0, "NodesStarting");
        assert_eq!(words(JobState::Suspended, "None", None).0, "Suspended");
    }
}
