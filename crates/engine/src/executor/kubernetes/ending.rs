//! What the end of a Job or a pod means for its attempt, in words.
//!
//! How the code ended is its agent's to say. This is for where no agent could: none was up yet, it was killed with its pod, or it knows only
//! that it was told to end.

use trainyard_core::run::Cause;

use super::{
    documents::{ContainerStatus, Job, Pod, Terminated, Waiting},
    reason::shortened,
};

/// Somebody who is not this server.
const SOMEBODY: &str = "somebody outside of this server";

/// What ended the attempt whose `job` Kubernetes calls failed.
pub(super) fn failed(job: &Job, pods: &[Pod]) -> Cause {
    let condition = job.holds("Failed").or_else(|| job.holds("FailureTarget"));
    if condition.is_some_and(|condition| condition.reason == "DeadlineExceeded") {
        return deadline(job);
    }
    // The first that ended badly: the others are ended because of it.
    if let Some(pod) = pods.iter().find(|pod| pod.status.phase == "Failed") {
        return of_pod(pod);
    }
    if let Some(pod) = pods.iter().find(|pod| pod.metadata.is_going()) {
        return leaving(job, pod);
    }
    let words = condition.map_or_else(String::new, |condition| format!(": {} ({})", shortened(&condition.message), condition.reason));
    Cause::AgentLost { message: format!("Kubernetes Job {} failed, and its pod is gone{words}", job.metadata.name) }
}

/// What Kubernetes is doing to a pod whose agent was told to end; `None` if it is doing nothing to it.
pub(super) fn explanation(job: &Job, pods: &[Pod]) -> Option<Cause> {
    if job.holds("FailureTarget").or_else(|| job.holds("Failed")).is_some_and(|condition| condition.reason == "DeadlineExceeded") {
        return Some(deadline(job));
    }
    let told = |pod: &&Pod| pod.metadata.is_going() || pod.holds("DisruptionTarget").is_some() || is_shutdown(&pod.status.reason);
    match pods.iter().find(told) {
        Some(pod) => Some(leaving(job, pod)),
        // Its pods may be off the list already.
        None => job.spec.suspend.then(|| suspended(job)),
    }
}

/// Somebody stopped its Job for a while after its pods had begun: a queue that needs their room, say. What comes after is another attempt's.
pub(super) fn suspended(job: &Job) -> Cause {
    Cause::Preempted { message: format!("Kubernetes Job {} was suspended, by a queue or by somebody", job.metadata.name) }
}

/// Its Job was there, and is not any more.
pub(super) fn deleted(job: &str) -> Cause {
    Cause::Cancelled { by: Some(SOMEBODY.into()), why: Some(format!("Kubernetes Job {job} was deleted")) }
}

/// It was over before the server's data was restored.
pub(super) fn undelivered(job: &str) -> Cause {
    Cause::AgentLost {
        message: format!("Kubernetes Job {job} was over before the server's data was restored, and what it had delivered is lost"),
    }
}

/// A pod of `job` that is on its way out.
pub(super) fn leaving(job: &Job, pod: &Pod) -> Cause {
    if let Some(cause) = disrupted(pod) {
        return cause;
    }
    if job.spec.suspend {
        return suspended(job);
    }
    if is_shutdown(&pod.status.reason) {
        return shut_down(pod);
    }
    Cause::Cancelled { by: Some(SOMEBODY.into()), why: Some(format!("{} was deleted", named(pod))) }
}

/// The node of a pod is gone, as Kubernetes says in `words`.
pub(super) fn node_lost(pod: &Pod, words: &str) -> Cause {
    Cause::NodeLost { message: format!("Kubernetes does not hear of the node of {}: {}", named(pod), shortened(words)) }
}

/// Kubernetes made a second pod where the first had begun.
pub(super) fn replaced(before: &Pod, after: &Pod) -> Cause {
    match disrupted(before) {
        Some(cause) => cause,
        None => Cause::NodeLost {
            message: format!("Kubernetes replaced {} by {}; the code is not started a second time", named(before), named(after)),
        },
    }
}

/// A container that could not be started.
pub(super) fn not_started(pod: &Pod, status: &ContainerStatus, waiting: &Waiting) -> Cause {
    let words = shortened(&waiting.message);
    let message = format!("{} could not be started with image {}: {} {words}", named(pod), status.image, waiting.reason);
    Cause::StartFailed { message: message.trim_end().to_owned(), by_definition: is_definitions(waiting) }
}

/// Whether what is wrong is wrong with what was asked for: a registry that is away would have answered otherwise.
fn is_definitions(waiting: &Waiting) -> bool {
    const WORDS: [&str; 7] =
        ["not found", "manifest unknown", "denied", "unauthorized", "authentication required", "does not exist", "invalid reference"];
    let said = waiting.message.to_lowercase();
    matches!(waiting.reason.as_str(), "InvalidImageName" | "ErrImageNeverPull") || WORDS.iter().any(|words| said.contains(words))
}

fn deadline(job: &Job) -> Cause {
    Cause::TimeLimit {
        limit_seconds: job.spec.active_deadline_seconds.unwrap_or(0),
        of: Some(format!("Kubernetes Job {}", job.metadata.name)),
    }
}

/// A pod that failed.
fn of_pod(pod: &Pod) -> Cause {
    let statuses = pod.status.container_statuses.iter().chain(&pod.status.init_container_statuses);
    let ended: Vec<(&ContainerStatus, &Terminated)> =
        statuses.filter_map(|status| Some((status, status.state.terminated.as_ref()?))).filter(|(_, ended)| ended.exit_code != 0).collect();
    if let Some((status, _)) = ended.iter().find(|(_, ended)| ended.reason == "OOMKilled") {
        return Cause::OutOfMemory {
            message: format!(
                "Kubernetes ended container {} of {} because it used more memory than its limit (OOMKilled)",
                status.name,
                named(pod)
            ),
        };
    }
    if let Some(cause) = disrupted(pod) {
        return cause;
    }
    let said = |words: &str| if words.trim().is_empty() { String::new() } else { format!(": {}", shortened(words)) };
    let (reason, words) = (pod.status.reason.as_str(), said(&pod.status.message));
    match reason {
        "Evicted" => return Cause::Preempted { message: format!("the kubelet evicted {}{words} (Evicted)", named(pod)) },
        "DeadlineExceeded" => return Cause::TimeLimit { limit_seconds: 0, of: Some(named(pod)) },
        "NodeLost" => return Cause::NodeLost { message: format!("the node of {} is gone{words} (NodeLost)", named(pod)) },
        _ if is_shutdown(reason) => return shut_down(pod),
        _ => {}
    }
    match ended.first() {
        Some((status, ended)) if !pod.has_begun() => Cause::StartFailed {
            message: format!(
                "container {} of {} ended with code {} ({}) before the agent was up{}",
                status.name,
                named(pod),
                ended.exit_code,
                ended.reason,
                said(&ended.message)
            ),
            by_definition: ended.reason == "StartError" || ended.reason == "ContainerCannotRun",
        },
        Some((_, ended)) => Cause::AgentLost {
            message: format!(
                "the container of {} ended with code {} ({}){}",
                named(pod),
                ended.exit_code,
                ended.reason,
                said(&ended.message)
            ),
        },
        // A node that did not take it after all: another one may.
        None if !pod.has_begun() => {
            Cause::StartFailed { message: format!("{} was not taken by its node{words} ({reason})", named(pod)), by_definition: false }
        }
        None => Cause::AgentLost { message: format!("{} failed{words} ({reason})", named(pod)) },
    }
}

/// What a pod was taken away for, if Kubernetes says so.
fn disrupted(pod: &Pod) -> Option<Cause> {
    let condition = pod.holds("DisruptionTarget")?;
    let words = if condition.message.is_empty() { String::new() } else { format!(": {}", shortened(&condition.message)) };
    let reason = condition.reason.as_str();
    Some(match reason {
        "DeletionByTaintManager" | "DeletionByPodGC" => {
            Cause::NodeLost { message: format!("Kubernetes gave up the node of {}{words} ({reason})", named(pod)) }
        }
        "PreemptionByScheduler" => Cause::Preempted {
            message: format!("Kubernetes took {} off its node to make room for another pod{words} ({reason})", named(pod)),
        },
        "EvictionByEvictionAPI" => {
            Cause::Preempted { message: format!("{} was evicted, as when its node is drained{words} ({reason})", named(pod)) }
        }
        _ => Cause::Preempted { message: format!("Kubernetes took {} off its node{words} ({reason})", named(pod)) },
    })
}

fn is_shutdown(reason: &str) -> bool {
    matches!(reason, "NodeShutdown" | "Shutdown" | "Terminated")
}

fn shut_down(pod: &Pod) -> Cause {
    Cause::Preempted { message: format!("the node of {} was shut down ({})", named(pod), pod.status.reason) }
}

fn named(pod: &Pod) -> String {
    let name = &pod.metadata.name;
    match pod.spec.node_name.as_deref() {
        Some(node) if !node.is_empty() => format!("pod {name} on node {node}"),
        _ => format!("pod {name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(reason: &str) -> Job {
        serde_json::from_value(json!({
            "metadata": { "name": "trainyard-1" }, "spec": { "activeDeadlineSeconds": 90 },
            "status": { "conditions": [
                { "type": "FailureTarget", "status": "True", "reason": reason },
                { "type": "Failed", "status": "True", "reason": reason, "message": "Job has reached the specified backoff limit" },
            ] },
        }))
        .unwrap()
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n1" }, "status": status })).unwrap()
    }

    fn ended(exit_code: i32, reason: &str, message: &str) -> Value {
        let state =
            json!({ "terminated": { "exitCode": exit_code, "reason": reason, "message": message, "startedAt": "2026-11-23T10:00:00Z" } });
        json!({ "phase": "Failed", "containerStatuses": [{ "name": "run", "image": "python", "state": state }] })
    }

    fn cause(status: Value) -> (&'static str, String) {
        let cause = failed(&job("BackoffLimitExceeded"), &[pod(status)]);
        (cause.label(), cause.sentence())
    }

    #[test]
    fn every_end_of_a_pod_has_a_cause_in_words() {
        let target = |reason: &str| json!({ "phase": "Failed", "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m" }] });
        let cases = [
            (ended(137, "OOMKilled", ""), "out_of_memory", "more memory than its limit"),
            (ended(1, "Error", "the agent can do nothing"), "agent_lost", "the agent can do nothing"),
            (ended(137, "Error", ""), "agent_lost", "code 137"),
            (ended(128, "StartError", "exec: \"/opt/trainyard/bin/trainyard\": no such file"), "start_failed", "no such file"),
            (
                json!({ "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory." }),
                "preempted",
                "low on resource: memory",
            ),
            (
                json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu" }),
                "start_failed",
                "OutOfcpu",
            ),
            (json!({ "phase": "Failed", "reason": "Terminated", "message": "" }), "preempted", "shut down"),
            (target("PreemptionByScheduler"), "preempted", "make room"),
            (target("EvictionByEvictionAPI"), "preempted", "drained"),
            (target("DeletionByTaintManager"), "node_lost", "DeletionByTaintManager"),
            (target("DeletionByPodGC"), "node_lost", "DeletionByPodGC"),
            (target("TerminationByKubelet"), "preempted", "TerminationByKubelet"),
        ];
        for (status, label, words) in cases {
            let (found, sentence) = cause(status.clone());
            assert_eq!(found, label, "{status}");
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn a_deadline_is_told_by_the_job_because_its_pod_is_gone() {
        let cause = failed(&job("DeadlineExceeded"), &[]);
        assert_eq!(cause, Cause::TimeLimit { limit_seconds: 90, of: Some("Kubernetes Job trainyard-1".into()) });
        let cause = failed(&job("BackoffLimitExceeded"), &[]);
        assert!(cause.label() == "agent_lost" && cause.sentence().contains("BackoffLimitExceeded"), "{cause:?}");
    }

    #[test]
    fn an_agent_that_was_told_to_end_learns_why() {
        let alive: Job = serde_json::from_value(json!({ "metadata": { "name": "trainyard-1" } })).unwrap();
        let running = pod(json!({ "phase": "Running" }));
        assert_eq!(explanation(&alive, std::slice::from_ref(&running)), None, "somebody sent a signal: Kubernetes knows nothing of it");
        let mut going = running.clone();
        going.metadata.deletion_timestamp = Some("2026-11-23T10:00:00Z".into());
        let told = explanation(&alive, std::slice::from_ref(&going)).unwrap();
        assert!(told.label() == "cancelled" && told.sentence().contains("pod p on node n1 was deleted"), "{told:?}");
        let stopped: Job = serde_json::from_value(json!({ "metadata": { "name": "trainyard-1" }, "spec": { "suspend": true } })).unwrap();
        for pods in [&[going][..], &[]] {
            let told = explanation(&stopped, pods).unwrap();
            assert!(told.label() == "preempted" && told.sentence().contains("Job trainyard-1 was suspended"), "{told:?}");
        }
        assert_eq!(explanation(&job("DeadlineExceeded"), &[running]).unwrap().label(), "time_limit");
    }

    #[test]
    fn a_job_that_was_deleted_names_nobody_in_particular() {
        let cause = deleted("trainyard-1");
        assert_eq!(cause.sentence(), "cancelled by somebody outside of this server: Kubernetes Job trainyard-1 was deleted");
    }
}
