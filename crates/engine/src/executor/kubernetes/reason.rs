//! Why an attempt waits, in words for the person who does. Kubernetes' own are kept in the sentence, so that they can be looked up.

use trainyard_core::plan::WaitReason;

use super::documents::{Condition, ContainerStatus, Pod, Waiting};

/// The longest that Kubernetes' own words may be, in characters.
pub(super) const MAX_WORDS: usize = 600;

fn because(code: &'static str, message: String) -> WaitReason {
    WaitReason { code, message }
}

/// Kubernetes' words, cut where they are endless.
pub(super) fn shortened(words: &str) -> String {
    let words = words.trim();
    match words.char_indices().nth(MAX_WORDS) {
        Some((at, _)) => format!("{}…", &words[..at]),
        None => words.to_owned(),
    }
}

/// It is on its way to Kubernetes.
pub(super) fn submitting() -> WaitReason {
    because("Submitting", "is being submitted to Kubernetes".into())
}

/// Kubernetes has it, and has not been looked at since.
pub(super) fn submitted() -> WaitReason {
    because("Submitted", "has been submitted to Kubernetes".into())
}

/// Kubernetes does not answer.
pub(super) fn unanswered(words: &str) -> WaitReason {
    because("KubernetesDoesNotAnswer", format!("waits for Kubernetes' answer: {}", shortened(words)))
}

/// Kubernetes does not take it now.
pub(super) fn held_back(words: &str) -> WaitReason {
    because("LimitReached", format!("Kubernetes does not take it now, and is asked again: {}", shortened(words)))
}

/// Somebody has stopped its Job for a while: a queue, or a person.
pub(super) fn suspended(job: &str) -> WaitReason {
    because("Suspended", format!("Kubernetes Job {job} is suspended, by a queue or by somebody; it starts when that is taken back"))
}

/// Its Job has no pods. `words`: why, if Kubernetes says.
pub(super) fn without_pods(job: &str, words: Option<&str>) -> WaitReason {
    match words {
        Some(words) => because("PodsNotMade", format!("Kubernetes Job {job}: its pods cannot be made: {}", shortened(words))),
        None => because("PodsNotMade", format!("Kubernetes Job {job}: its pods are being made")),
    }
}

/// Some of its pods are not made yet.
pub(super) fn being_made(made: usize, nodes: u32) -> WaitReason {
    because("PodsNotMade", format!("{made} of {nodes} pods are there"))
}

/// The scheduler has no place for it.
pub(super) fn unscheduled(pod: &Pod, scheduled: &Condition) -> WaitReason {
    let name = &pod.metadata.name;
    match scheduled.reason.as_str() {
        "SchedulingGated" => {
            because("SchedulingGated", format!("pod {name} is held back by a scheduling gate ({})", shortened(&scheduled.message)))
        }
        _ => because("Unschedulable", format!("no node has room for pod {name}: {} ({})", shortened(&scheduled.message), scheduled.reason)),
    }
}

/// A node has it, and makes it ready.
pub(super) fn being_started(pod: &Pod) -> WaitReason {
    let name = &pod.metadata.name;
    let Some(node) = pod.spec.node_name.as_deref().filter(|node| !node.is_empty()) else {
        return because("WaitingForScheduler", format!("pod {name} waits for a node"));
    };
    let on = format!("pod {name} is being made ready on node {node}");
    // They run one after the other: what comes after the one that is at work waits for nothing else.
    let inits = &pod.status.init_container_statuses;
    if let Some(init) = inits.iter().find(|status| status.state.running.is_some()) {
        return because("Starting", format!("{on}: container {} is at work", init.name));
    }
    let waiting = inits.iter().chain(&pod.status.container_statuses).find_map(|status| Some((status, status.state.waiting.as_ref()?)));
    match waiting {
        Some((status, waiting)) if !waiting.reason.is_empty() => {
            because("Starting", format!("{on}, which may have to fetch image {} ({})", status.image, waiting.reason))
        }
        _ => because("Starting", on),
    }
}

/// Something keeps a container from being started.
pub(super) fn trouble(pod: &Pod, status: &ContainerStatus, waiting: &Waiting) -> WaitReason {
    let (name, image) = (&pod.metadata.name, &status.image);
    let words = shortened(&waiting.message);
    let words = if words.is_empty() { waiting.reason.clone() } else { format!("{}: {words}", waiting.reason) };
    because("ImageOrContainerTrouble", format!("pod {name} cannot be started with image {image}: {words}"))
}

/// The same, for one of several pods.
pub(super) fn some_up(why: &WaitReason, up: usize, nodes: u32) -> WaitReason {
    because(why.code, format!("{up} of {nodes} pods are up; {}", why.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_words_are_cut() {
        assert_eq!(shortened(" short "), "short");
        let long = shortened(&"ü".repeat(2000));
        assert_eq!(long.chars().count(), MAX_WORDS + 1);
    }

    #[test]
    fn a_pod_without_a_node_waits_for_one() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({ "metadata": { "name": "p" }, "status": { "phase": "Pending" } })).unwrap();
        assert_eq!(being_started(&pod).code, "WaitingForScheduler");
    }

    #[test]
    fn a_pod_on_a_node_waits_for_its_containers_one_after_the_other() {
        let status = |agent: serde_json::Value| {
            let waits = serde_json::json!({ "waiting": { "reason": "PodInitializing" } });
            let pod = serde_json::json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n1" }, "status": { "phase": "Pending",
                "initContainerStatuses": [{ "name": "agent", "image": "agent:1", "state": agent }],
                "containerStatuses": [{ "name": "run", "image": "python:3.11", "state": waits }] } });
            being_started(&serde_json::from_value(pod).unwrap()).message
        };
        let words = status(serde_json::json!({ "waiting": { "reason": "PodInitializing" } }));
        assert!(words.contains("may have to fetch image agent:1"), "{words}");
        let words = status(serde_json::json!({ "running": {} }));
        assert_eq!(words, "pod p is being made ready on node n1: container agent is at work");
        let words = status(serde_json::json!({ "terminated": { "exitCode": 0, "reason": "Completed" } }));
        assert!(words.contains("may have to fetch image python:3.11"), "{words}");
    }
}
