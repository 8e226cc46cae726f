//! Kubernetes for the suite: a double that keeps what it is given and starts real processes, and a real cluster where `KUBECONFIG` names one.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use trainyard_core::{
    definition::Definition,
    ids::{AttemptId, ComputeName},
    kubernetes::KubernetesWish,
    run::Cause,
};
use trainyard_engine::executor::{
    Executor, Observation,
    kubernetes::{KubernetesExecutor, KubernetesSettings, KubernetesTarget},
};
use trainyard_wire::native::AttemptOrder;
use uuid::Uuid;

use self::double::{Cluster, How, Kubelet, Machine, machine::attempts_of};
use super::{Bench, Place, order, see, until, write_program};

mod asked;
pub(crate) mod double;
pub(super) mod real;

/// An API server, a controller and a kubelet in this process.
pub(super) struct Double {
    cluster: Cluster,
    // After the cluster, which ends what is in it.
    place: Place,
}

/// The server of these tests.
const SERVER: Uuid = Uuid::from_u128(7);

fn target() -> KubernetesTarget {
    KubernetesTarget {
        image: "python:3.11".into(),
        agent_image: "trainyard:1".into(),
        gpu_resource: "nvidia.com/gpu".into(),
        image_wait_seconds: 300,
        ..KubernetesTarget::default()
    }
}

fn executor(kubeconfig: &Path, server: Uuid, target: KubernetesTarget) -> KubernetesExecutor {
    let settings = KubernetesSettings { kubeconfig: Some(kubeconfig.to_owned()), context: None, namespace: None };
    KubernetesExecutor::new(&settings, server, BTreeMap::from([(ComputeName::new("cpu-cluster").unwrap(), target)]))
}

impl Bench for Double {
    type Under = KubernetesExecutor;

    fn new() -> Self {
        let place = Place::new();
        // It ends when everything is delivered, as the agent does: its end is the pod's.
        let script = "#!/bin/sh\necho \"$@\" >>\"$3/agents\"\nexec flock --nonblock \"$3/agent.lock\" sh -c 'echo $$ >\"$0/pid\"; while [ ! -e \"$0/collected\" ]; do sleep 0.05; done' \"$3\"\n";
        write_program(&place.agent(), script);
        let machine = Machine { program: place.agent(), attempts: place.root(), cache: place.dir.path().join("cache") };
        Self { cluster: Cluster::start(machine), place }
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn executor(&self) -> KubernetesExecutor {
        executor(&self.cluster.kubeconfig(), SERVER, target())
    }

    fn keeps() -> bool {
        false
    }

    fn is_missed(seen: &Observation) -> bool {
        matches!(seen, Observation::Lost { cause: Cause::AgentLost { .. } })
    }

    fn is_fenced(seen: &Observation) -> bool {
        *seen == Observation::Unknown
    }
}

/// An attempt that was handed in, on a cluster whose kubelet does this.
async fn submitted(kubelet: Kubelet) -> (Double, KubernetesExecutor, AttemptOrder, AttemptId) {
    let double = Double::new();
    double.cluster.set_kubelet(kubelet);
    let (executor, order) = (double.executor(), order());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    if kubelet == Kubelet::Works {
        double.locked(attempt).await;
        until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    } else {
        until("the pod", || async {
            see(&executor, attempt).await;
            !double.cluster.objects("pods").is_empty()
        })
        .await;
    }
    (double, executor, order, attempt)
}

async fn until_seen(executor: &KubernetesExecutor, attempt: AttemptId, wanted: impl Fn(&Observation) -> bool) -> Observation {
    let last = std::cell::RefCell::new(None);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = see(executor, attempt).await;
        if wanted(&seen) {
            return seen;
        }
        last.replace(Some(seen));
        assert!(Instant::now() < deadline, "waited too long; last seen: {:?}", last.into_inner());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_waits(executor: &KubernetesExecutor, attempt: AttemptId, part: &str) {
    until_seen(executor, attempt, |seen| matches!(seen, Observation::Pending { why } if why.message.contains(part))).await;
}

async fn until_ended(executor: &KubernetesExecutor, attempt: AttemptId) -> Cause {
    match until_seen(executor, attempt, |seen| matches!(seen, Observation::Over { .. } | Observation::Lost { .. })).await {
        Observation::Over { cause } | Observation::Lost { cause } => cause,
        other => panic!("{other:?}"),
    }
}

fn definition(change: &Value) -> Definition {
    let mut definition = serde_json::to_value(super::slurm::definition()).unwrap();
    definition.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(definition).unwrap()
}

fn order_for(definition: &Definition) -> AttemptOrder {
    AttemptOrder { definition: serde_json::to_value(definition).unwrap(), ..order() }
}

/// What a container that waits shows.
fn waiting(reason: &str, message: &str) -> Value {
    let state = json!({ "waiting": { "reason": reason, "message": message } });
    json!({ "status": { "conditions": [{ "type": "PodScheduled", "status": "True" }],
        "containerStatuses": [{ "name": "run", "image": "python:3.11", "state": state }] }, "spec": { "nodeName": "n1" } })
}

#[tokio::test]
async fn kubernetes_says_what_a_pod_waits_for() {
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    let message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.";
    let condition = json!([{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message }]);
    double.cluster.change_pods(&json!({ "status": { "conditions": condition } }));
    until_waits(&executor, attempt, "3 Insufficient nvidia.com/gpu").await;
    double.cluster.change_pods(&waiting("ContainerCreating", ""));
    until_waits(&executor, attempt, "being made ready on node n1").await;
    double.cluster.change_pods(&waiting("ImagePullBackOff", "Back-off pulling image \"python:3.11\""));
    until_waits(&executor, attempt, "Back-off pulling image").await;
}

#[tokio::test]
async fn kubernetes_images_that_cannot_be_had_are_given_up_after_the_configured_time() {
    let double = Double::new();
    double.cluster.set_kubelet(Kubelet::Idle);
    let executor = executor(&double.cluster.kubeconfig(), SERVER, KubernetesTarget { image_wait_seconds: 2, ..target() });
    let (order, begun) = (order(), Instant::now());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    until("the pod", || async { !double.cluster.objects("pods").is_empty() }).await;
    double.cluster.change_pods(&waiting("ErrImagePull", "rpc error: python:3.11: not found"));
    until_waits(&executor, attempt, "not found").await;
    let seen = until_seen(&executor, attempt, |seen| !matches!(seen, Observation::Pending { .. })).await;
    let Observation::Over { cause: Cause::StartFailed { message, by_definition: true } } = seen else { panic!("{seen:?}") };
    assert!(message.contains("ErrImagePull rpc error: python:3.11: not found"), "{message}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn kubernetes_answers_that_get_lost_are_no_second_job() {
    let double = Double::new();
    double.cluster.fault("POST jobs", 1, How::Lost);
    double.cluster.fault("POST secrets", 1, How::Lost);
    let (executor, order) = (double.executor(), order());
    let attempt = AttemptId(order.attempt);
    until("the agent", || async {
        // As a pass does: an attempt that nothing is known of, or that was held back, is submitted.
        let seen = see(&executor, attempt).await;
        if matches!(seen, Observation::Unknown | Observation::NoAgent { .. }) {
            executor.submit(&order).await.unwrap();
        }
        seen == Observation::Alive
    })
    .await;
    assert_eq!(double.cluster.requests("POST jobs"), 3, "lost, found to be there, and again after the Secret's answer was lost");
    assert_eq!(double.cluster.objects("jobs").len(), 1);
    assert_eq!(double.starts(attempt), 1);
}

#[tokio::test]
async fn kubernetes_jobs_of_a_server_that_died_before_their_secret_get_it_from_the_next() {
    let double = Double::new();
    double.cluster.fault("POST secrets", 1000, How::Answers(500, "InternalError", "no"));
    let (executor, order) = (double.executor(), order());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    until("the job without its secret", || async {
        double.cluster.requests("POST secrets") > 0 && !double.cluster.objects("pods").is_empty()
    })
    .await;
    drop(executor);
    assert_eq!(double.starts(attempt), 0, "without its Secret nothing begins");
    double.cluster.clear_faults();
    let executor = double.executor();
    until_seen(&executor, attempt, |seen| *seen == Observation::NoAgent { starts: 0 }).await;
    executor.submit(&order).await.unwrap();
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    let secret = double.cluster.only("secrets").unwrap();
    let job = double.cluster.only("jobs").unwrap();
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], job["metadata"]["uid"], "it goes with its Job");
}

#[tokio::test]
async fn kubernetes_says_when_to_come_again_and_is_asked_then() {
    let double = Double::new();
    double.cluster.fault("POST jobs", 1, How::Busy(2));
    let (executor, order, begun) = (double.executor(), order(), Instant::now());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    until_waits(&executor, attempt, "too many requests").await;
    until_seen(&executor, attempt, |seen| *seen == Observation::NoAgent { starts: 0 }).await;
    assert!(begun.elapsed() >= Duration::from_secs(2));
    executor.submit(&order).await.unwrap();
    double.locked(attempt).await;
    assert_eq!(double.cluster.requests("POST jobs"), 2);
}

#[tokio::test]
async fn kubernetes_watches_that_break_or_begin_too_late_hide_nothing() {
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    for (round, trouble) in ["break", "forget", "break"].into_iter().enumerate() {
        let opened = double.cluster.requests("WATCH pods");
        match trouble {
            "break" => double.cluster.break_watches(),
            _ => double.cluster.forget_history(),
        }
        let words = format!("nothing in round {round}");
        double.cluster.change_pods(&waiting("ContainerCreating", ""));
        double.cluster.change_pods(&waiting("ErrImagePull", &words));
        until_waits(&executor, attempt, &words).await;
        until("the next watch", || async {
            see(&executor, attempt).await;
            double.cluster.requests("WATCH pods") > opened
        })
        .await;
    }
}

#[tokio::test]
async fn kubernetes_is_left_alone_as_long_as_nothing_is_new() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    let quiet = Duration::from_millis(2500);
    // The watches may have been opened a moment ago, and what came with them is looked at once more.
    let (mut lists, mut since) = (double.cluster.requests("GET pods"), Instant::now());
    until("a time without lists", || {
        let now = double.cluster.requests("GET pods");
        if now != lists {
            (lists, since) = (now, Instant::now());
        }
        let passed = since.elapsed() > quiet;
        let executor = &executor;
        async move { see(executor, attempt).await == Observation::Alive && passed }
    })
    .await;
}

#[tokio::test]
async fn kubernetes_that_does_not_answer_is_no_verdict() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    double.cluster.set_down(true);
    let asked = double.cluster.requests("GET pods");
    until("some vain questions", || async {
        assert_eq!(see(&executor, attempt).await, Observation::Alive);
        double.cluster.requests("GET pods") > asked + 2
    })
    .await;
    // One that could not be submitted waits, and is when it is back; and so does a server that has just begun.
    let late = order();
    executor.submit(&late).await.unwrap();
    until_waits(&executor, AttemptId(late.attempt), "etcdserver: request timed out").await;
    let begun = double.executor();
    until_waits(&begun, attempt, "waits for Kubernetes' answer").await;
    assert!(begun.leftovers().await.unwrap().is_empty(), "other targets do not wait for this one");
    double.cluster.set_down(false);
    until_seen(&begun, attempt, |seen| *seen == Observation::Alive).await;
    until_seen(&executor, AttemptId(late.attempt), |seen| matches!(seen, Observation::NoAgent { .. })).await;
    executor.submit(&late).await.unwrap();
    double.locked(AttemptId(late.attempt)).await;
}

#[tokio::test]
async fn kubernetes_ends_are_causes() {
    let ended = |code: i32, reason: &str, message: &str| {
        let state =
            json!({ "terminated": { "exitCode": code, "reason": reason, "message": message, "startedAt": "2026-11-23T10:00:01Z" } });
        json!({ "status": { "phase": "Failed", "containerStatuses": [{ "name": "run", "state": state }] } })
    };
    let disrupted = |reason: &str| json!({ "status": { "phase": "Failed", "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why" }] } });
    let cases = [
        (ended(137, "OOMKilled", ""), "out_of_memory", "OOMKilled"),
        (ended(1, "Error", "the agent can do nothing: no space"), "agent_lost", "no space"),
        (
            json!({ "status": { "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage." } }),
            "preempted",
            "low on resource",
        ),
        (disrupted("PreemptionByScheduler"), "preempted", "make room"),
        (disrupted("DeletionByTaintManager"), "node_lost", "gave up the node"),
    ];
    for (change, label, words) in cases {
        let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
        double.cluster.change_pods(&change);
        let cause = until_ended(&executor, attempt).await;
        assert_eq!(cause.label(), label, "{cause:?}");
        assert!(cause.sentence().contains(words), "{}", cause.sentence());
        // The way of what is over.
        executor.clean(attempt).await.unwrap();
        until("the rest to go", || async { executor.leftovers().await.unwrap().is_empty() }).await;
        assert!(double.cluster.objects("secrets").is_empty());
    }
}

#[tokio::test]
async fn kubernetes_deadlines_are_time_limits_although_their_pods_are_gone() {
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    let job = double.cluster.only("jobs").unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let conditions = ["FailureTarget", "Failed"].map(|kind| json!({ "type": kind, "status": "True", "reason": "DeadlineExceeded", "message": "Job was active longer than specified deadline" }));
    double.cluster.change("jobs", &job, &json!({ "spec": { "activeDeadlineSeconds": 60 }, "status": { "conditions": conditions } }));
    assert_eq!(until_ended(&executor, attempt).await, Cause::TimeLimit { limit_seconds: 60, of: Some(format!("Kubernetes Job {job}")) });
}

#[tokio::test]
async fn kubernetes_jobs_that_somebody_deletes_are_cancelled_by_somebody() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    double.cluster.delete_job(&format!("trainyard-{attempt}"));
    let explained = executor.explain(attempt).await.unwrap();
    assert!(explained.sentence().contains("somebody outside of this server"), "{explained:?}");
    let seen = until_seen(&executor, attempt, |seen| matches!(seen, Observation::Lost { .. })).await;
    let Observation::Lost { cause: Cause::Cancelled { why: Some(why), .. } } = seen else { panic!("{seen:?}") };
    assert!(why.ends_with("was deleted"), "{why}");
}

#[tokio::test]
async fn kubernetes_pods_that_vanish_before_they_began_end_their_attempt() {
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    double.cluster.delete_pods();
    let cause = until_ended(&executor, attempt).await;
    assert!(cause.label() == "agent_lost" && cause.sentence().contains("BackoffLimitExceeded"), "{cause:?}");
    assert!(double.cluster.objects("pods").is_empty(), "none is made anew");
}

#[tokio::test]
async fn kubernetes_jobs_that_a_queue_suspends_wait_and_are_another_attempts_once_they_had_begun() {
    let suspended = json!({ "spec": { "suspend": true } });
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    let job = format!("trainyard-{attempt}");
    double.cluster.change("jobs", &job, &suspended);
    double.cluster.delete_pods();
    until_waits(&executor, attempt, "is suspended").await;

    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    let job = format!("trainyard-{attempt}");
    double.cluster.change("jobs", &job, &suspended);
    assert!(executor.explain(attempt).await.unwrap().sentence().contains("was suspended"));
    double.cluster.delete_pods();
    let cause = until_ended(&executor, attempt).await;
    assert!(matches!(&cause, Cause::Preempted { message } if message.contains("was suspended")), "{cause:?}");
}

#[tokio::test]
async fn kubernetes_nodes_that_are_not_heard_of_are_noticed_before_their_pods_are_given_up() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    double.cluster.freeze_pods();
    let unknown =
        json!([{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status." }]);
    double.cluster.change("nodes", "n1", &json!({ "status": { "conditions": unknown } }));
    double.cluster.change_pods(&json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }));
    let seen = until_seen(&executor, attempt, |seen| *seen != Observation::Alive).await;
    let Observation::Doubtful { cause: Cause::NodeLost { message } } = seen else { panic!("{seen:?}") };
    assert!(message.contains("stopped posting"), "{message}");
    let heard = json!([{ "type": "Ready", "status": "True", "reason": "KubeletReady" }]);
    double.cluster.change("nodes", "n1", &json!({ "status": { "conditions": heard } }));
    double.cluster.change_pods(&json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } }));
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
}

#[tokio::test]
async fn kubernetes_pods_that_replace_one_that_had_begun_are_not_wanted() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    double.cluster.set_kubelet(Kubelet::Idle);
    let mut second = double.cluster.only("pods").unwrap();
    second["metadata"]["name"] = json!("second");
    second["metadata"]["creationTimestamp"] = json!("2026-11-23T12:00:00Z");
    second["status"] = json!({ "phase": "Pending" });
    double.cluster.change("pods", "second", &second);
    let seen = until_seen(&executor, attempt, |seen| matches!(seen, Observation::Lost { .. })).await;
    let Observation::Lost { cause } = seen else { unreachable!() };
    assert!(cause.sentence().contains("not started a second time"), "{cause:?}");
}

#[tokio::test]
async fn kubernetes_jobs_that_wait_are_taken_back_by_a_cancel() {
    let (double, executor, _, attempt) = submitted(Kubelet::Idle).await;
    executor.stop(attempt, "ada", Some("no need")).await.unwrap();
    let cause = until_ended(&executor, attempt).await;
    assert_eq!(cause, Cause::Cancelled { by: Some("ada".into()), why: Some("no need".into()) });
    assert!(double.cluster.objects("jobs").is_empty() && double.cluster.objects("secrets").is_empty());
}

#[tokio::test]
async fn kubernetes_servers_that_share_a_namespace_do_not_see_each_others_jobs() {
    let (double, _executor, order, attempt) = submitted(Kubelet::Works).await;
    let other = executor(&double.cluster.kubeconfig(), Uuid::from_u128(8), target());
    assert!(other.leftovers().await.unwrap().is_empty());
    assert_eq!(see(&other, attempt).await, Observation::Unknown);
    assert_eq!(see(&other, AttemptId(order.attempt)).await, Observation::Unknown);
}

#[tokio::test]
async fn kubernetes_brings_a_new_order_to_where_the_agent_looks() {
    let (double, executor, mut order, attempt) = submitted(Kubelet::Works).await;
    order.endpoint = "https://127.0.0.1:2".into();
    executor.refresh(&order).await.unwrap();
    until("the new order", || async { double.cluster.note("order.json").contains("https://127.0.0.1:2") }).await;
    executor.redeliver(attempt).await.unwrap();
    until("the wish", || async { !double.cluster.note("again").is_empty() }).await;
    let first = double.cluster.note("again");
    executor.redeliver(attempt).await.unwrap();
    until("another wish", || async { double.cluster.note("again") != first }).await;
}

#[tokio::test]
async fn kubernetes_starts_an_agent_for_each_node_of_a_run_that_knows_its_number() {
    let double = Double::new();
    let spread = definition(&json!({ "distribution": { "node_count": 3, "processes_per_node": 1, "communication": "none" } }));
    let (executor, order) = (double.executor(), order_for(&spread));
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    let agents_in = |pod| fs::read_to_string(attempts_of(&double.place.root(), pod).join(attempt.to_string()).join("agents"));
    let agents = || (0..3).map(|pod| agents_in(pod).unwrap_or_default()).collect::<String>();
    until("three agents", || async {
        see(&executor, attempt).await;
        agents().lines().count() == 3
    })
    .await;
    for node in 0..3 {
        assert!(agents_in(node).unwrap().ends_with(&format!("--node {node}\n")), "{}", agents());
    }
    let job = double.cluster.only("jobs").unwrap();
    assert_eq!((&job["spec"]["completions"], &job["spec"]["parallelism"]), (&json!(3), &json!(3)));
}

#[tokio::test]
async fn kubernetes_older_than_numbered_pods_refuses_runs_on_several_nodes() {
    let double = Double::new();
    double.cluster.drop_completion_mode();
    let spread = definition(&json!({ "distribution": { "node_count": 2, "processes_per_node": 1, "communication": "none" } }));
    let (executor, order) = (double.executor(), order_for(&spread));
    executor.submit(&order).await.unwrap();
    let cause = until_ended(&executor, AttemptId(order.attempt)).await;
    assert!(cause.sentence().contains("older than 1.24"), "{cause:?}");
    assert!(double.cluster.objects("jobs").is_empty());
}

#[tokio::test]
async fn kubernetes_says_why_it_makes_no_pods() {
    let double = Double::new();
    double.cluster.set_kubelet(Kubelet::Idle);
    double.cluster.make_no_pods();
    let (executor, order) = (double.executor(), order());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    until_waits(&executor, attempt, "its pods are being made").await;
    let message = "Error creating: pods \"x\" is forbidden: exceeded quota: compute, requested: cpu=4, used: cpu=8, limited: cpu=8";
    double.cluster.change("events", "one", &json!({ "reason": "FailedCreate", "message": message }));
    until_waits(&executor, attempt, "exceeded quota: compute").await;
}

#[tokio::test]
async fn kubernetes_jobs_that_were_over_before_a_restore_are_given_up_with_words() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    double.deliver(attempt);
    until_seen(&executor, attempt, |seen| *seen == Observation::Collected).await;
    let restored = double.executor();
    restored.redeliver(attempt).await.unwrap();
    let seen = until_seen(&restored, attempt, |seen| matches!(seen, Observation::Lost { .. })).await;
    let Observation::Lost { cause } = seen else { unreachable!() };
    assert!(cause.sentence().contains("before the server's data was restored"), "{cause:?}");
}

#[tokio::test]
async fn kubernetes_shows_its_nodes_to_those_who_may_see_them() {
    let (double, executor, _, _attempt) = submitted(Kubelet::Works).await;
    let ready =
        |status: &str| json!([{ "type": "Ready", "status": status, "reason": "KubeletNotReady", "message": "container runtime is down" }]);
    let node = |status: &str| json!({ "status": { "conditions": ready(status), "allocatable": { "cpu": "8", "nvidia.com/gpu": "2" } } });
    double.cluster.change("nodes", "n1", &node("True"));
    double.cluster.change("nodes", "n2", &node("True"));
    double.cluster.change("nodes", "n3", &node("False"));
    double.cluster.change("nodes", "n4", &node("True"));
    double.cluster.change("nodes", "n4", &json!({ "spec": { "unschedulable": true } }));
    let target = ComputeName::new("cpu-cluster").unwrap();
    let machines = executor.machines(&target).await.unwrap().unwrap();
    let seen: Vec<(&str, &str)> = machines.iter().map(|machine| (machine.name.as_str(), machine.state.as_str())).collect();
    assert_eq!(seen, [("n1", "running"), ("n2", "idle"), ("n3", "unusable"), ("n4", "leaving")]);
    assert_eq!(machines[1].says, "ready, 8 CPUs, 2 nvidia.com/gpu");
    assert!(machines[2].says.contains("container runtime is down"), "{}", machines[2].says);

    let other = double.executor();
    double.cluster.fault("GET nodes", 1, How::Answers(403, "Forbidden", "nodes is forbidden"));
    assert_eq!(other.machines(&target).await.unwrap(), None);
}

#[tokio::test]
async fn kubernetes_knows_why_an_agent_was_told_to_end() {
    let (double, executor, _, attempt) = submitted(Kubelet::Works).await;
    assert_eq!(executor.explain(attempt).await, None, "nobody has told it");
    let condition = json!([{ "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting" }]);
    double.cluster.change_pods(&json!({ "status": { "conditions": condition } }));
    let cause = executor.explain(attempt).await.unwrap();
    assert!(matches!(&cause, Cause::Preempted { message } if message.contains("make room")), "{cause:?}");
    double.cluster.delete_pods();
    until("the pod to be gone, with all that it said", || async { executor.explain(attempt).await.is_none() }).await;
}
