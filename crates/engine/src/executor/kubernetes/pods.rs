//! What the pods of a Job say about its attempt. Pure: documents in, one word out.

use std::{collections::BTreeMap, time::Duration};

use trainyard_core::{plan::WaitReason, run::Cause};

use super::{
    documents::{ContainerStatus, Job, Pod},
    ending, reason,
};

/// How long after its grace a pod that is to end may still be there, before its node counts as gone.
const MARGIN: Duration = Duration::from_secs(15);

/// What is seen of the pods of a Job that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of them are up, or about to end.
    Up,
    /// Some wait for something that comes by itself.
    Waits(WaitReason),
    /// Something keeps one from being started that rarely mends itself.
    Trouble {
        /// In words, for the one who waits.
        why: WaitReason,
        /// What ends the attempt if it does not.
        cause: Cause,
        /// It never does.
        hopeless: bool,
    },
    /// One is on its way out, which its own agent may have something to say about.
    Leaving {
        /// For that long.
        patience: Duration,
        /// What ends the attempt if it does not.
        cause: Cause,
    },
    /// Kubernetes does not hear of the node of one, on which it may run on all the same.
    Doubtful(Cause),
    /// There is none yet.
    None,
    /// One was replaced by another one, which must not begin.
    Lost(Cause),
}

/// What the `pods` of `job` say, older ones first. `lost_nodes`: nodes that Kubernetes does not hear of, and its words.
pub(super) fn sight(job: &Job, pods: &[Pod], lost_nodes: &BTreeMap<String, String>) -> Sight {
    let mut newest: BTreeMap<u32, &Pod> = BTreeMap::new();
    for pod in pods {
        if let Some(before) = newest.insert(pod.index(), pod)
            && before.has_begun()
        {
            return Sight::Lost(ending::replaced(before, pod));
        }
    }
    let sights: Vec<Sight> = newest.values().map(|pod| of(job, pod, lost_nodes)).collect();
    if sights.is_empty() {
        return Sight::None;
    }
    let first = |wanted: fn(&Sight) -> bool| sights.iter().find(|sight| wanted(sight)).cloned();
    let worst = first(|sight| matches!(sight, Sight::Lost(_)))
        .or_else(|| first(|sight| matches!(sight, Sight::Leaving { .. })))
        .or_else(|| first(|sight| matches!(sight, Sight::Doubtful(_))))
        .or_else(|| first(|sight| matches!(sight, Sight::Trouble { .. })))
        .or_else(|| first(|sight| matches!(sight, Sight::Waits(_))));
    match worst {
        Some(Sight::Waits(why)) if job.nodes() > 1 => {
            let up = sights.iter().filter(|sight| **sight == Sight::Up).count();
            Sight::Waits(reason::some_up(&why, up, job.nodes()))
        }
        Some(sight) => sight,
        // Some are not made yet.
        None if sights.len() < job.nodes() as usize => Sight::Waits(reason::being_made(sights.len(), job.nodes())),
        None => Sight::Up,
    }
}

fn of(job: &Job, pod: &Pod, lost_nodes: &BTreeMap<String, String>) -> Sight {
    if pod.metadata.is_going() {
        return Sight::Leaving { patience: pod.grace() + MARGIN, cause: ending::leaving(job, pod) };
    }
    let node = pod.spec.node_name.as_deref().unwrap_or_default();
    if let Some(words) = lost_nodes.get(node).filter(|_| !pod.is_over()) {
        return Sight::Doubtful(ending::node_lost(pod, words));
    }
    match pod.status.phase.as_str() {
        // How it ended is the Job's to say, in a moment.
        "Succeeded" | "Failed" => Sight::Up,
        "Unknown" => Sight::Doubtful(ending::node_lost(pod, "its state is not known")),
        _ => waiting(pod).unwrap_or(Sight::Up),
    }
}

/// Why a pod is not up yet; `None`: it is.
fn waiting(pod: &Pod) -> Option<Sight> {
    if let Some(scheduled) = pod.lacks("PodScheduled") {
        return Some(Sight::Waits(reason::unscheduled(pod, scheduled)));
    }
    let statuses = || pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
    for status in statuses() {
        if let Some(sight) = trouble(pod, status) {
            return Some(sight);
        }
    }
    if pod.is_up() || pod.has_begun() {
        return None;
    }
    Some(Sight::Waits(reason::being_started(pod)))
}

/// The kubelet's words for what is wrong with an image or a container, and whether that never mends itself.
fn trouble(pod: &Pod, status: &ContainerStatus) -> Option<Sight> {
    let waiting = status.state.waiting.as_ref()?;
    let hopeless = match waiting.reason.as_str() {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => false,
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "CrashLoopBackOff" => false,
        "InvalidImageName" => true,
        _ => return None,
    };
    Some(Sight::Trouble { why: reason::trouble(pod, status, waiting), cause: ending::not_started(pod, status, waiting), hopeless })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(nodes: u32) -> Job {
        serde_json::from_value(json!({ "metadata": { "name": "trainyard-1" }, "spec": { "completions": nodes } })).unwrap()
    }

    fn pod(index: u32, change: Value) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": format!("trainyard-1-{index}-abcde"),
                "annotations": { "batch.kubernetes.io/job-completion-index": index.to_string() },
            },
            "spec": { "nodeName": "n1" },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "run", "state": { "running": {} } }] },
        });
        for (section, fields) in change.as_object().unwrap() {
            for (key, value) in fields.as_object().unwrap() {
                pod[section][key] = value.clone();
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    fn one(change: Value) -> Sight {
        sight(&job(1), &[pod(0, change)], &BTreeMap::new())
    }

    fn waits(change: Value) -> String {
        match one(change) {
            Sight::Waits(why) => format!("{}: {}", why.code, why.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_that_waits_says_what_for() {
        let unschedulable = json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu." }]);
        let words = waits(
            json!({ "spec": { "nodeName": null }, "status": { "phase": "Pending", "conditions": unschedulable, "containerStatuses": [] } }),
        );
        assert!(words.starts_with("Unschedulable: ") && words.contains("1 Insufficient cpu"), "{words}");
        let creating = json!([{ "name": "run", "image": "python:3.11", "state": { "waiting": { "reason": "ContainerCreating" } } }]);
        let words = waits(json!({ "status": { "phase": "Pending", "containerStatuses": creating } }));
        assert!(words.starts_with("Starting: ") && words.contains("n1"), "{words}");
        assert_eq!(one(json!({})), Sight::Up);
        assert_eq!(sight(&job(1), &[], &BTreeMap::new()), Sight::None);
    }

    #[test]
    fn an_image_that_cannot_be_had_is_trouble_in_the_kubelets_words() {
        let case = |reason: &str, message: &str| {
            let waiting =
                json!([{ "name": "run", "image": "nowhere/none:1", "state": { "waiting": { "reason": reason, "message": message } } }]);
            one(json!({ "status": { "phase": "Pending", "containerStatuses": waiting } }))
        };
        let Sight::Trouble { why, cause, hopeless } = case("ImagePullBackOff", "Back-off pulling image \"nowhere/none:1\": not found")
        else {
            panic!("no trouble")
        };
        assert!(why.message.contains("ImagePullBackOff") && why.message.contains("nowhere/none:1"), "{}", why.message);
        assert!(matches!(&cause, Cause::StartFailed { by_definition: true, message } if message.contains("not found")), "{cause:?}");
        assert!(!hopeless);
        let Sight::Trouble { cause, .. } = case("ErrImagePull", "dial tcp: i/o timeout") else { panic!("no trouble") };
        assert!(matches!(cause, Cause::StartFailed { by_definition: false, .. }), "a registry that is away is not the definition's fault");
        assert!(matches!(case("InvalidImageName", "couldn't parse"), Sight::Trouble { hopeless: true, .. }));
        for reason in ["ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError"] {
            assert!(matches!(case(reason, ""), Sight::Trouble { hopeless: false, .. }), "{reason}");
        }
    }

    #[test]
    fn of_several_pods_the_worst_counts_and_who_waits_is_told_how_many_are_up() {
        let pending = || pod(1, json!({ "status": { "phase": "Pending", "containerStatuses": [] } }));
        let Sight::Waits(why) = sight(&job(2), &[pod(0, json!({})), pending()], &BTreeMap::new()) else { panic!("nobody waits") };
        assert!(why.message.contains("1 of 2"), "{}", why.message);
        let Sight::Waits(why) = sight(&job(3), &[pod(0, json!({}))], &BTreeMap::new()) else { panic!("nobody waits") };
        assert!(why.message.contains("1 of 3"), "{}", why.message);
        let going = pod(0, json!({ "metadata": { "deletionTimestamp": "2026-11-23T10:00:00Z", "deletionGracePeriodSeconds": 40 } }));
        let seen = sight(&job(2), &[going, pending()], &BTreeMap::new());
        assert!(matches!(seen, Sight::Leaving { patience, .. } if patience == Duration::from_secs(55)), "{seen:?}");
    }

    #[test]
    fn a_pod_that_had_begun_is_not_replaced() {
        let older = pod(0, json!({ "metadata": { "deletionTimestamp": "2026-11-23T10:00:00Z" } }));
        let newer =
            pod(0, json!({ "metadata": { "name": "trainyard-1-0-fghij" }, "status": { "phase": "Pending", "containerStatuses": [] } }));
        assert!(matches!(sight(&job(1), &[older, newer], &BTreeMap::new()), Sight::Lost(_)));
        let never = pod(0, json!({ "status": { "phase": "Failed", "reason": "OutOfcpu", "containerStatuses": [] } }));
        assert_eq!(sight(&job(1), &[never, pod(0, json!({}))], &BTreeMap::new()), Sight::Up, "the first had not begun");
    }

    #[test]
    fn a_node_that_kubernetes_does_not_hear_of_is_in_doubt() {
        let lost = BTreeMap::from([("n1".to_owned(), "Kubelet stopped posting node status.".to_owned())]);
        let Sight::Doubtful(cause) = sight(&job(1), &[pod(0, json!({}))], &lost) else { panic!("not in doubt") };
        assert!(matches!(&cause, Cause::NodeLost { message } if message.contains("stopped posting")), "{cause:?}");
    }
}
