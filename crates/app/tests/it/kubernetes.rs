//! Runs as Kubernetes Jobs, through the real server and the real agent. The cluster is the double of the executor suite, whose kubelet starts a real process
//! for every pod; so everything but the API server is what it is elsewhere.

use reqwest::StatusCode;
use serde_json::{Value, json};

use self::double::{Cluster, Kubelet, Machine};
use crate::{
    distributed::{all_four_ranks, downloaded, message, ring, submit_ring},
    support::{TestServer, definition, form, until, zip},
};

#[path = "../../../engine/tests/executor/kubernetes/double.rs"]
#[expect(dead_code, reason = "the executor suite asks it for more")]
mod double;

struct Bench {
    server: TestServer,
    cluster: Cluster,
    /// After the cluster, which ends what is in it.
    _machine: tempfile::TempDir,
}

impl Bench {
    /// A server whose target `cpu-cluster` is on the double; `more` are further keys of it.
    async fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine {
            program: env!("CARGO_BIN_EXE_trainyard").into(),
            attempts: dir.path().join("attempts"),
            cache: dir.path().join("cache"),
        };
        let cluster = Cluster::start(machine);
        let config = format!(
            "[server]\nheartbeat_limit_seconds = 6\ncancel_grace_seconds = 3\n[compute.cpu-cluster]\nengine = \"kubernetes\"\nkubeconfig = \"{}\"\nimage = \"python:3.11\"\n\
             agent_image = \"trainyard:1\"\nretry_backoff_seconds = 0\n{more}\n[compute.local]\nslots = 1\n",
            cluster.kubeconfig().display()
        );
        Self { server: TestServer::with_config(&config).await, cluster, _machine: dir }
    }

    async fn attempts(&self, run: &str, number: usize) -> Value {
        let url = self.server.client().native(&format!("/runs/{run}/attempts"));
        until("an attempt", || async {
            let attempts = self.server.get(&url).await;
            (attempts.as_array().unwrap().len() >= number).then_some(attempts)
        })
        .await
    }
}

const HELLO: &str = "import os, pathlib\npathlib.Path('outputs/model.txt').write_text('kept')\nprint('pod', os.environ['POD_IP'])\n";

const LONG: &str = "import time\nprint('running', flush=True)\ntime.sleep(600)\n";

#[tokio::test]
async fn a_run_is_a_kubernetes_job_and_everything_of_it_comes_back() {
    let bench = Bench::new("").await;
    let run = bench.server.submit(HELLO, |_| {}).await;
    bench.server.wait_for(&run, "Completed").await;
    assert!(bench.server.driver_log(&run).await.starts_with("pod 127.0.0.1"));
    let outputs = bench.server.cli(&["download", &run, "--output", bench.server.dir().join("out").to_str().unwrap()]);
    assert!(outputs.status.success(), "{}", String::from_utf8_lossy(&outputs.stderr));
    assert!(bench.server.files("out").iter().any(|file| file.ends_with("outputs/model.txt")), "{:?}", bench.server.files("out"));
    until("the objects to be swept", || async {
        ["jobs", "pods", "secrets"].into_iter().all(|kind| bench.cluster.objects(kind).is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_run_asks_of_kubernetes_reaches_its_pod_and_what_it_cannot_ask_is_refused() {
    let bench = Bench::new("memory = \"1Gi\"").await;
    bench.cluster.set_kubelet(Kubelet::Idle);
    let change = |configuration: &mut Value| {
        configuration["Kubernetes"] =
            json!({ "Cpus": "500m", "Gpus": 1, "NodeSelector": { "zone": "a" }, "Tolerations": ["gpu:NoSchedule"] });
        configuration["Environment"]["Docker"] = json!({ "Enabled": true, "BaseImage": "registry.example/torch:2" });
        configuration["Environment"]["Python"] = json!({ "UserManagedDependencies": true });
    };
    let run = bench.server.submit(HELLO, change).await;
    let pod = until("the pod", || async { bench.cluster.only("pods") }).await;
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/torch:2");
    assert_eq!(
        container["resources"],
        json!({ "requests": { "cpu": "500m", "memory": "1Gi" }, "limits": { "memory": "1Gi", "nvidia.com/gpu": "1" } })
    );
    assert_eq!(pod["spec"]["nodeSelector"], json!({ "zone": "a" }));
    assert!(bench.server.cli(&["cancel", &run]).status.success());
    bench.server.wait_for(&run, "Cancelled").await;
    until("the job to be taken back", || async { bench.cluster.objects("jobs").is_empty().then_some(()) }).await;

    for (wish, sentence) in [
        (json!({ "Kubernetes": { "Memory": "lots" } }), "Kubernetes.Memory"),
        (json!({ "Kubernetes": { "Queue": "x" } }), "has the property `Queue`"),
        (json!({ "Kubernetes": { "Gpus": -1 } }), "must be 0 or more"),
        (json!({ "Environment": { "Docker": { "Enabled": true, "BaseDockerfile": "FROM python" } } }), "builds no images"),
    ] {
        let mut definition = definition();
        for (key, value) in wish.as_object().unwrap() {
            definition["Configuration"][key] = value.clone();
        }
        let (status, answer) = bench.server.start_run("", form(&definition, &zip(&[("hello.py", HELLO)]))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wish}: {answer}");
        assert!(answer.to_string().contains(sentence), "{wish}: {answer}");
    }
}

#[tokio::test]
async fn a_cancel_ends_a_pod_with_its_grace() {
    let bench = Bench::new("").await;
    let script = "import signal, sys, time\ndef bye(*_):\n    print('saved', flush=True)\n    sys.exit(0)\nsignal.signal(signal.SIGTERM, bye)\nprint('running', flush=True)\ntime.sleep(600)\n";
    let run = bench.server.submit(script, |_| {}).await;
    bench.server.wait_for_output(&run, "running").await;
    assert!(bench.server.cli(&["cancel", &run]).status.success());
    bench.server.wait_for(&run, "Cancelled").await;
    assert!(bench.server.driver_log(&run).await.contains("saved"), "it had its grace");
}

#[tokio::test]
async fn a_pod_does_not_notice_that_the_server_was_killed() {
    let mut bench = Bench::new("").await;
    let script = "import time\nprint('running', flush=True)\ntime.sleep(4)\nprint('done')\n";
    let run = bench.server.submit(script, |_| {}).await;
    bench.server.wait_for_output(&run, "running").await;
    bench.server.kill();
    bench.server.start_again().await;
    bench.server.wait_for(&run, "Completed").await;
    assert!(bench.server.driver_log(&run).await.contains("done"));
    let attempts = bench.attempts(&run, 1).await;
    assert_eq!(attempts.as_array().unwrap().len(), 1, "{attempts:#}");
}

#[tokio::test]
async fn a_pod_that_is_evicted_says_why_and_the_run_is_tried_again() {
    let bench = Bench::new("").await;
    let run = bench.server.submit(LONG, |_| {}).await;
    bench.server.wait_for_output(&run, "running").await;
    // As the eviction API does: the condition, then a deletion with grace, which the agent hears of as TERM.
    let condition =
        json!([{ "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting" }]);
    bench.cluster.change_pods(&json!({ "status": { "conditions": condition } }));
    bench.cluster.delete_pods();
    let attempts = bench.attempts(&run, 2).await;
    assert_eq!(attempts[0]["cause"]["kind"], "preempted", "{attempts:#}");
    assert!(attempts[0]["cause"]["message"].as_str().unwrap().contains("evicted"), "{attempts:#}");
    assert!(bench.server.cli(&["cancel", &run]).status.success());
    bench.server.wait_for(&run, "Cancelled").await;
}

#[tokio::test]
async fn a_node_that_kubernetes_does_not_hear_of_is_lost_only_if_the_agent_is_silent_too() {
    let bench = Bench::new("").await;
    let run = bench.server.submit("import time\nprint('running', flush=True)\ntime.sleep(40)\n", |_| {}).await;
    bench.server.wait_for_output(&run, "running").await;
    let message = "Kubelet stopped posting node status.";
    let unknown = json!([{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": message }]);
    bench.cluster.change("nodes", "n1", &json!({ "status": { "conditions": unknown } }));
    bench.cluster.change_pods(&json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }));
    until("two looks at the node", || async { (bench.cluster.requests("GET nodes") >= 2).then_some(()) }).await;
    let attempts = bench.attempts(&run, 1).await;
    assert_eq!((attempts.as_array().unwrap().len(), &attempts[0]["cause"]), (1, &Value::Null), "its agent is heard: the code runs on");

    bench.cluster.freeze_pods();
    let attempts = bench.attempts(&run, 2).await;
    assert_eq!(attempts[0]["cause"]["kind"], "node_lost", "{attempts:#}");
    assert!(attempts[0]["cause"]["message"].as_str().unwrap().contains(message), "{attempts:#}");
    assert!(bench.server.cli(&["cancel", &run]).status.success());
    bench.server.wait_for(&run, "Cancelled").await;
}

#[tokio::test]
async fn a_job_that_somebody_deletes_is_a_cancelled_run() {
    let bench = Bench::new("").await;
    let run = bench.server.submit(LONG, |_| {}).await;
    bench.server.wait_for_output(&run, "running").await;
    let job = bench.cluster.only("jobs").unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    bench.cluster.delete_job(&job);
    let dto = bench.server.wait_for(&run, "Cancelled").await;
    assert!(bench.server.driver_log(&run).await.contains("running"), "its log is kept: {dto:#}");
}

/// Whether any process was started for a run.
fn has_processes(run: &str) -> bool {
    let entry = format!("AZUREML_RUN_ID={run}");
    let environments =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|process| std::fs::read(process.path().join("environ")).ok());
    environments.into_iter().any(|environment| environment.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()))
}

#[tokio::test]
async fn an_open_mpi_program_runs_over_two_pods() {
    let Some(ring) = ring("an_open_mpi_program_runs_over_two_pods") else { return };
    let bench = Bench::new("").await;
    let run = submit_ring(&bench.server, &ring, &[]).await;
    bench.server.wait_for(&run, "Completed").await;
    assert_eq!(all_four_ranks(&bench.server, &run).await, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    let files = downloaded(&bench.server, &run);
    for name in ["outputs/from-0", "outputs/from-1", "outputs/node-1/from-2", "outputs/node-1/from-3"] {
        assert!(files.iter().any(|file| file == name), "{name}: {files:?}");
    }
    until("its processes to be gone", || async { (!has_processes(&run)).then_some(()) }).await;
}

#[tokio::test]
async fn an_mpi_rank_that_fails_in_another_pod_is_the_cause_and_the_end_of_all() {
    let Some(ring) = ring("an_mpi_rank_that_fails_in_another_pod_is_the_cause_and_the_end_of_all") else { return };
    let bench = Bench::new("").await;
    let run = submit_ring(&bench.server, &ring, &["3"]).await;
    let message = message(&bench.server.wait_for(&run, "Failed").await);
    let named = message.contains("rank 3 on node 1 (127.0.0.2)") && message.contains("exit code 5");
    assert!(named, "{message}; {}", bench.server.driver_log(&run).await);
    until("its processes to be gone", || async { (!has_processes(&run)).then_some(()) }).await;
}

#[tokio::test]
async fn a_cancel_of_an_mpi_run_leaves_no_process_in_any_pod() {
    let Some(ring) = ring("a_cancel_of_an_mpi_run_leaves_no_process_in_any_pod") else { return };
    let bench = Bench::new("").await;
    // No rank has this number: all wait for ever.
    let run = submit_ring(&bench.server, &ring, &["99"]).await;
    until("the last rank", || async {
        let log = bench.server.log(&run, "azureml-logs/70_driver_log_3.txt").await;
        log.contains("on 127.0.0.2").then_some(())
    })
    .await;
    assert!(has_processes(&run));
    assert!(bench.server.cli(&["cancel", &run]).status.success());
    bench.server.wait_for(&run, "Cancelled").await;
    until("its processes to be gone", || async { (!has_processes(&run)).then_some(()) }).await;
}
