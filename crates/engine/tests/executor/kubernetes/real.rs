//! The suite on a real cluster: the one that `KUBECONFIG` names, with `kubectl` on PATH. Everything is made in a namespace of its own, which is removed.
//!
//! Instead of the agent its pods run a script, with the image in `TRAINYARD_TEST_KUBERNETES_IMAGE` (`busybox` if that is not set).

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::json;
use trainyard_core::{
    ids::{AttemptId, ComputeName},
    run::Cause,
};
use trainyard_engine::executor::{
    Observation,
    kubernetes::{KubernetesExecutor, KubernetesSettings, KubernetesTarget},
};
use uuid::Uuid;

use crate::{Bench, Place, until};

/// Ends as its one child does: with 137 when that is killed, with 0 when everything is delivered.
const SCRIPT: &str =
    "trap 'exit 143' TERM; sh -c 'while [ ! -e /tmp/collected ]; do sleep 0.2; done' & echo $! >/tmp/pid; wait $!; exit $?";

pub(crate) struct RealKubernetes {
    place: Place,
    kubeconfig: PathBuf,
    namespace: String,
    server: Uuid,
}

impl RealKubernetes {
    fn kubectl(&self, arguments: &[&str]) -> Output {
        Command::new("kubectl").arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).output().expect("kubectl must be on PATH")
    }

    fn kubectl_here(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(&[&["--namespace", &self.namespace], arguments].concat());
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Names of the attempt's pods whose container runs or has run.
    fn pods(&self, attempt: AttemptId) -> Vec<String> {
        let path = "jsonpath={range .items[?(@.status.phase!=\"Pending\")]}{.metadata.name}{\"\\n\"}{end}";
        let listed = self.kubectl_here(&["get", "pods", "--selector", &format!("trainyard.attempt={attempt}"), "--output", path]);
        listed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn inside(&self, attempt: AttemptId, script: &str) {
        let pod = &self.pods(attempt)[0];
        self.kubectl_here(&["exec", pod, "--container", "run", "--", "sh", "-c", script]);
    }
}

impl Bench for RealKubernetes {
    type Under = KubernetesExecutor;

    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn is_there(test: &str) -> bool {
        let there = std::env::var_os("KUBECONFIG").is_some();
        if !there {
            eprintln!("SKIPPED {test}: KUBECONFIG is not set; it names the cluster that this test is for");
        }
        there
    }

    fn new() -> Self {
        let kubeconfig = PathBuf::from(std::env::var_os("KUBECONFIG").unwrap());
        let server = Uuid::new_v4();
        let this = Self { place: Place::new(), kubeconfig, namespace: format!("trainyard-test-{}", server.simple()), server };
        let made = this.kubectl(&["create", "namespace", &this.namespace]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        this
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn executor(&self) -> KubernetesExecutor {
        let image = std::env::var("TRAINYARD_TEST_KUBERNETES_IMAGE").unwrap_or_else(|_| "busybox".into());
        let settings =
            KubernetesSettings { kubeconfig: Some(self.kubeconfig.clone()), context: None, namespace: Some(self.namespace.clone()) };
        let container = json!({ "name": "run", "command": ["sh", "-c", SCRIPT], "imagePullPolicy": "IfNotPresent" });
        let target = KubernetesTarget {
            image: image.clone(),
            agent_image: image,
            template: Some(json!({ "spec": { "initContainers": null, "containers": [container] } })),
            image_wait_seconds: 60,
            ..KubernetesTarget::default()
        };
        KubernetesExecutor::new(&settings, self.server, BTreeMap::from([(ComputeName::new("cpu-cluster").unwrap(), target)]))
    }

    fn keeps() -> bool {
        false
    }

    fn starts(&self, attempt: AttemptId) -> usize {
        self.pods(attempt).len()
    }

    async fn locked(&self, attempt: AttemptId) {
        until("the script", || async { !self.pods(attempt).is_empty() }).await;
        self.inside(attempt, "until [ -s /tmp/pid ]; do sleep 0.1; done");
    }

    fn kill_agent(&self, attempt: AttemptId) {
        self.inside(attempt, "kill -9 $(cat /tmp/pid)");
    }

    fn stop_agent(&self, attempt: AttemptId) {
        self.inside(attempt, "kill -STOP $(cat /tmp/pid)");
    }

    fn deliver(&self, attempt: AttemptId) {
        self.inside(attempt, "touch /tmp/collected");
    }

    fn is_missed(seen: &Observation) -> bool {
        matches!(seen, Observation::Lost { cause: Cause::AgentLost { .. } })
    }

    fn is_fenced(seen: &Observation) -> bool {
        *seen == Observation::Unknown
    }
}

impl Drop for RealKubernetes {
    fn drop(&mut self) {
        self.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}
