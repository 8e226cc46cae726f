//! The Job controller, the scheduler and the kubelet of the double.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Inner, Kubelet, Machine, Running, merge, signal_group};

/// The Job controller, the scheduler and the kubelet.
pub(super) async fn work(inner: Arc<Mutex<Inner>>, machine: Machine, notes: PathBuf) {
    loop {
        {
            let mut inner = inner.lock().unwrap();
            make_pods(&mut inner);
            for pod in inner.of("pods") {
                tend(&mut inner, &pod, (&machine, &notes));
            }
            judge(&mut inner);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Inner {
    fn of(&self, plural: &str) -> Vec<Value> {
        self.objects.iter().filter(|((kind, _), _)| kind == plural).map(|(_, object)| object.clone()).collect()
    }

    fn pods_of(&self, job: &Value) -> Vec<Value> {
        self.of("pods").into_iter().filter(|pod| pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]).collect()
    }
}

/// What admission says of a pod, and of no Job: nobody there looks into what its pods will be.
pub(super) fn refused_pod(inner: &Inner, pod: &Value) -> Option<String> {
    let class = pod["spec"]["priorityClassName"].as_str()?;
    let there = inner.objects.contains_key(&("priorityclasses".to_owned(), class.to_owned()));
    (!there).then(|| format!("no PriorityClass with name {class} was found"))
}

fn make_pods(inner: &mut Inner) {
    if inner.makes_no_pods {
        return;
    }
    for job in inner.of("jobs") {
        let (spec, name) = (&job["spec"], job["metadata"]["name"].as_str().unwrap());
        let over = job["status"]["conditions"].is_array() || job["status"]["failed"].is_u64();
        if spec["suspend"] == true || !inner.pods_of(&job).is_empty() || over {
            continue;
        }
        for index in 0..spec["completions"].as_u64().unwrap_or(1) {
            let mut pod = spec["template"].clone();
            if let Some(words) = refused_pod(inner, &pod) {
                let message = format!("Error creating: pods \"{name}-{index}-\" is forbidden: {words}");
                inner.change("events", name, &json!({ "reason": "FailedCreate", "message": message }));
                continue;
            }
            let metadata = json!({
                "name": format!("{name}-{index}-{:05x}", inner.ids),
                "annotations": { "batch.kubernetes.io/job-completion-index": index.to_string() },
                "ownerReferences": [{ "kind": "Job", "name": name, "uid": job["metadata"]["uid"] }],
            });
            merge(&mut pod["metadata"], &metadata);
            pod["status"] = json!({ "phase": "Pending" });
            inner.create("pods", pod);
        }
    }
}

fn tend(inner: &mut Inner, pod: &Value, (machine, notes): (&Machine, &Path)) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    if let Some(running) = inner.running.get_mut(name) {
        if running.killed_at.is_some_and(|at| at <= Instant::now()) {
            signal_group(&running.child, Signal::KILL);
        }
        if let Some(code) = running.child.try_wait().unwrap() {
            // What the first process leaves behind goes with its container.
            signal_group(&running.child, Signal::KILL);
            inner.running.remove(name);
            let code = code.code().unwrap_or(137);
            let ended = json!({ "exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "startedAt": "2026-11-23T10:00:00Z", "finishedAt": "2026-11-23T10:00:09Z" });
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            inner.change(
                "pods",
                name,
                &json!({ "status": { "phase": phase, "containerStatuses": [{ "name": "run", "state": { "terminated": ended } }] } }),
            );
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let pod = inner.objects[&("pods".to_owned(), name.to_owned())].clone();
                inner.remove_pod(pod);
            }
        } else {
            note(inner, pod, notes);
        }
        return;
    }
    if inner.kubelet == Kubelet::Works
        && pod["status"]["phase"] == "Pending"
        && pod["status"]["conditions"].is_null()
        && note(inner, pod, notes)
    {
        let child = start(pod, machine, &notes.join(name));
        inner.running.insert(name.to_owned(), Running { child, killed_at: None });
        let status = json!({
            "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{ "name": "run", "state": { "running": { "startedAt": "2026-11-23T10:00:01Z" } } }],
        });
        inner.change("pods", name, &json!({ "spec": { "nodeName": "n1" }, "status": status }));
    }
}

/// Brings the Secret of a pod to where it is mounted; whether there is one.
fn note(inner: &Inner, pod: &Value, notes: &Path) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let secret = volumes.iter().find_map(|volume| volume["secret"]["secretName"].as_str()).unwrap();
    let Some(secret) = inner.objects.get(&("secrets".to_owned(), secret.to_owned())) else { return false };
    let folder = notes.join(pod["metadata"]["name"].as_str().unwrap());
    fs::create_dir_all(&folder).unwrap();
    for (key, value) in secret["data"].as_object().unwrap() {
        let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
        let path = folder.join(key);
        if fs::read(&path).ok().as_deref() != Some(&bytes) {
            fs::write(folder.join(".new"), bytes).unwrap();
            fs::rename(folder.join(".new"), path).unwrap();
        }
    }
    true
}

/// Where the attempts of a pod are: what is in one pod is in no other.
pub(crate) fn attempts_of(first: &Path, number: u8) -> PathBuf {
    if number == 0 { first.to_owned() } else { first.with_file_name(format!("attempts-of-pod-{number}")) }
}

fn start(pod: &Value, machine: &Machine, notes: &Path) -> Child {
    let container = &pod["spec"]["containers"][0];
    let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
    let number: u8 = index.as_str().unwrap().parse().unwrap();
    let attempts = attempts_of(&machine.attempts, number);
    let inside = |text: &str| {
        let text = text.replace("$(JOB_COMPLETION_INDEX)", index.as_str().unwrap());
        let text = text.replace("/opt/trainyard/bin/trainyard", machine.program.to_str().unwrap());
        text.replace("/opt/trainyard/attempts", attempts.to_str().unwrap()).replace("/opt/trainyard/notes", notes.to_str().unwrap())
    };
    let words: Vec<String> = container["command"].as_array().unwrap().iter().map(|word| inside(word.as_str().unwrap())).collect();
    let folder = Path::new(&words[3]);
    fs::create_dir_all(folder).unwrap();
    // Nothing of this machine is a container's.
    let order = fs::read_to_string(notes.join("order.json")).unwrap();
    fs::write(notes.join("order.json"), order.replace("/opt/trainyard/cache", machine.cache.to_str().unwrap())).unwrap();
    let log = fs::File::create(folder.join("container.log")).unwrap();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("POD_IP", format!("127.0.0.{}", number + 1)).env("JOB_COMPLETION_INDEX", index.as_str().unwrap());
    let set = container["env"].as_array().unwrap().iter().filter_map(|one| Some((one["name"].as_str()?, one["value"].as_str()?)));
    command.envs(set);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    command.spawn().unwrap()
}

/// Says how Jobs ended, in the two steps that a real controller takes.
fn judge(inner: &mut Inner) {
    for job in inner.of("jobs") {
        let name = job["metadata"]["name"].as_str().unwrap();
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let has = |kind: &str| conditions.iter().any(|condition| condition["type"] == kind);
        if has("Complete") || has("Failed") {
            continue;
        }
        let pods = inner.pods_of(&job);
        let wanted = job["spec"]["completions"].as_u64().unwrap_or(1);
        let phases = |phase: &str| pods.iter().filter(|pod| pod["status"]["phase"] == phase).count() as u64;
        let add = |inner: &mut Inner, kind: &str, reason: &str, message: &str| {
            let mut conditions = conditions.clone();
            conditions.push(json!({ "type": kind, "status": "True", "reason": reason, "message": message }));
            inner.change("jobs", name, &json!({ "status": { "conditions": conditions } }));
        };
        if has("SuccessCriteriaMet") {
            add(inner, "Complete", "CompletionsReached", "Reached expected number of succeeded pods");
        } else if has("FailureTarget") {
            if phases("Running") == 0 {
                add(inner, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit");
            }
        } else if phases("Succeeded") == wanted {
            add(inner, "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods");
        } else if phases("Failed") > 0 || job["status"]["failed"].is_u64() {
            add(inner, "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit");
            for pod in pods.iter().filter(|pod| pod["status"]["phase"] == "Running" || pod["status"]["phase"] == "Pending") {
                inner.delete("pods", pod["metadata"]["name"].as_str().unwrap(), &Value::Null);
            }
        }
    }
}
