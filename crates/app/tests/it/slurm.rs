//! Runs on a real Slurm cluster of four nodes, through the real server and the real agent. `scripts/slurm` starts it; without it the tests say by
//! name that they are skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{TestServer, definition, form, until, zip};

/// A cluster of `scripts/slurm`.
pub struct Cluster {
    folder: PathBuf,
    /// Nodes are drained and killed in some of these tests: one at a time, and each test may be a process of its own.
    _alone: fs::File,
    shared: tempfile::TempDir,
}

/// Which cluster a test is for.
#[derive(Clone, Copy)]
pub enum Kind {
    Plain,
    Accounting,
}

impl Cluster {
    pub fn find(test: &str, kind: Kind) -> Option<Self> {
        let variable = match kind {
            Kind::Plain => "TRAINYARD_TEST_SLURM",
            Kind::Accounting => "TRAINYARD_TEST_SLURM_ACCOUNTING",
        };
        let Some(folder) = std::env::var_os(variable) else {
            eprintln!("SKIPPED {test}: {variable} is not set; scripts/slurm starts a cluster, and scripts/test sets it");
            return None;
        };
        let folder = PathBuf::from(folder);
        let alone = fs::File::create(folder.join("tests.lock")).unwrap();
        alone.lock().unwrap();
        let shared = tempfile::Builder::new().prefix("trainyard-shared-").tempdir().unwrap();
        Some(Self { folder, _alone: alone, shared })
    }

    /// The folder that this server shares with the nodes.
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    pub fn command(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(self.folder.join("bin").join(name)).args(arguments).output().unwrap()
    }

    fn scontrol(&self, arguments: &[&str]) {
        let output = self.command("scontrol", arguments);
        assert!(output.status.success(), "scontrol {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `node` or `controller` of the cluster's folder.
    pub fn daemon(&self, name: &str, arguments: &[&str]) {
        let status = Command::new(self.folder.join(name)).args(arguments).status().unwrap();
        assert!(status.success(), "{name} {arguments:?}");
    }

    /// A server whose target `cpu-cluster` is this cluster; `more` are further keys of it.
    pub async fn server(&self, more: &str) -> TestServer {
        let config = format!(
            "[server]\nheartbeat_limit_seconds = 6\ncancel_grace_seconds = 3\n[compute.cpu-cluster]\nengine = \"slurm\"\nshared_dir = \"{}\"\nslurm_bin = \"{}\"\nretry_backoff_seconds = 0\n{more}\n\
             [compute.local]\nslots = 1\n",
            self.shared.path().display(),
            self.folder.join("bin").display()
        );
        TestServer::with_config(&config).await
    }

    /// The jobs of this server's attempts that Slurm knows, by `squeue`'s columns.
    pub fn jobs(&self, states: &str) -> Vec<String> {
        let attempts: Vec<String> = names(&self.shared.path().join("attempts"));
        let output = self.command("squeue", &["-h", "-t", states, "-o", "%i %j %T %N"]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| attempts.iter().any(|attempt| line.contains(attempt))).map(str::to_owned).collect()
    }

    /// The attempts of which something is left.
    pub fn attempts(&self) -> Vec<String> {
        names(&self.shared.path().join("attempts"))
    }

    /// Waits for the one job of this server in these states; gives its id and node.
    pub async fn job(&self, states: &str) -> (String, String) {
        until(&format!("a job that is {states}"), || async {
            let jobs = self.jobs(states);
            let mut words = jobs.first()?.split(' ').map(str::to_owned);
            Some((words.next()?, words.nth(2)?))
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ids: Vec<String> = self.jobs("PD,R,CG").iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect();
        if !ids.is_empty() {
            let mut arguments = vec!["--signal=KILL"];
            arguments.extend(ids.iter().map(String::as_str));
            self.command("scancel", &arguments);
            self.command("scancel", &arguments[1..]);
        }
        for pid in crate::support::processes_with(&self.shared.path().to_string_lossy()) {
            crate::support::signal(pid, "KILL");
        }
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn slurm(change: Value) -> impl FnOnce(&mut Value) {
    move |configuration| configuration["Slurm"] = change
}

/// Prints where it runs, and keeps a file.
const HELLO: &str = "import os, pathlib\npathlib.Path('outputs/model.txt').write_text('kept')\nprint('job', os.environ['SLURM_JOB_NAME'], os.environ['SLURMD_NODENAME'])\n";

/// Runs until it is stopped.
const LONG: &str = "import time\nprint('running', flush=True)\ntime.sleep(600)\n";

pub async fn ends(server: &TestServer, run: &str, status: &str) -> (Value, String) {
    let dto = server.wait_for(run, status).await;
    let message = dto["error"]["error"]["message"].as_str().unwrap_or_default().to_owned();
    (dto, message)
}

async fn wait_reason(server: &TestServer, run: &str, part: &str) -> String {
    until(&format!("the wait of {run} to name {part}"), || async {
        let message = server.run(run).await["queueingInfo"]["message"].as_str().unwrap_or_default().to_owned();
        message.contains(part).then_some(message)
    })
    .await
}

/// The last event that has a cause.
async fn cause(server: &TestServer, run: &str) -> (String, String) {
    let url = server.client().native(&format!("/runs/{run}/events"));
    let events = server.get(&url).await;
    let ended = events.as_array().unwrap().iter().rev().find(|event| !event["data"]["Cause"].is_null()).unwrap().clone();
    (
        ended["data"]["Cause"]["kind"].as_str().unwrap_or_default().to_owned(),
        ended["data"]["Message"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn a_run_is_a_job_and_everything_of_it_comes_back() {
    for kind in [Kind::Plain, Kind::Accounting] {
        let Some(cluster) = Cluster::find("a_run_is_a_job_and_everything_of_it_comes_back", kind) else { return };
        let server = cluster.server("partition = \"cpu\"").await;
        let run = server.submit(HELLO, |_| {}).await;
        server.wait_for(&run, "Completed").await;
        let log = server.driver_log(&run).await;
        assert!(log.starts_with("job trainyard-") && log.contains(" n"), "{log}");
        let outputs = server.cli(&["download", &run, "--output", server.dir().join("out").to_str().unwrap()]);
        assert!(outputs.status.success(), "{}", String::from_utf8_lossy(&outputs.stderr));
        assert!(server.files("out").iter().any(|file| file.ends_with("outputs/model.txt")), "{:?}", server.files("out"));
        until("the folder of the attempt to be swept", || async {
            names(&cluster.shared.path().join("attempts")).is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_slurm_would_never_take_is_refused_at_submission_with_its_own_sentence() {
    for kind in [Kind::Plain, Kind::Accounting] {
        let Some(cluster) = Cluster::find("what_slurm_would_never_take_is_refused", kind) else { return };
        let server = cluster.server("").await;
        let mut cases = vec![
            (json!({ "Partition": "nope" }), "invalid partition specified: nope"),
            (json!({ "Memory": "900G" }), "Requested node configuration is not available"),
            (json!({ "Gres": "gpu:1" }), "Invalid generic resource (gres) specification"),
            (json!({ "Constraint": "big" }), "Invalid feature specification"),
            (json!({ "TimeLimit": "soon" }), "Invalid --time specification"),
            (json!({ "Arguments": ["--array=1-3"] }), "this server sets that option itself"),
            (json!({ "Arguments": ["--surprise"] }), "unrecognized option"),
            (json!({ "Node": "n1" }), "has the property `Node`"),
        ];
        if matches!(kind, Kind::Accounting) {
            cases.push((json!({ "Account": "nope" }), "Invalid account"));
            cases.push((json!({ "Qos": "nope" }), "Invalid qos specification"));
        }
        for (wish, sentence) in cases {
            let mut definition = definition();
            definition["Configuration"]["Slurm"] = wish.clone();
            let (status, answer) = server.start_run("", form(&definition, &zip(&[("hello.py", HELLO)]))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{wish}: {answer}");
            assert!(answer.to_string().contains(&sentence.replace('"', "\\\"")), "{wish}: {answer}");
        }
        assert!(names(&cluster.shared.path().join("attempts")).is_empty(), "nothing was stored, so nothing was started");
    }
}

#[tokio::test]
async fn a_run_that_waits_in_slurm_says_why_and_is_cancelled_there() {
    let Some(cluster) = Cluster::find("a_run_that_waits_in_slurm_says_why", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let later = server.submit(LONG, slurm(json!({ "Arguments": ["--begin=now+1hour"] }))).await;
    let held = server.submit(LONG, slurm(json!({ "Arguments": ["--hold"] }))).await;
    let over = server.submit(LONG, slurm(json!({ "Partition": "short", "TimeLimit": "10" }))).await;
    wait_reason(&server, &later, "BeginTime").await;
    wait_reason(&server, &held, "scontrol release").await;
    wait_reason(&server, &over, "more time than partition short gives").await;
    for run in [&later, &held, &over] {
        assert!(server.cli(&["cancel", run]).status.success());
        server.wait_for(run, "Cancelled").await;
    }
    until("the jobs to leave the queue", || async { cluster.jobs("PD,R,CG").is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn jobs_ahead_are_counted() {
    let Some(cluster) = Cluster::find("jobs_ahead_are_counted", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let mut runs = Vec::new();
    for number in 1..=6 {
        runs.push(server.submit(LONG, slurm(json!({ "Arguments": ["--exclusive"] }))).await);
        until("the job", || async { (cluster.jobs("PD,R").len() == number).then_some(()) }).await;
    }
    // Each has a node to itself: four run, two wait, one is next, and one has the other ahead.
    wait_reason(&server, &runs[4], "next in partition cpu").await;
    wait_reason(&server, &runs[5], "1 job ahead in partition cpu").await;
    for run in &runs {
        assert!(server.cli(&["cancel", run]).status.success());
    }
    for run in &runs {
        server.wait_for(run, "Cancelled").await;
    }
}

#[tokio::test]
async fn a_cancel_ends_the_job_with_its_grace() {
    let Some(cluster) = Cluster::find("a_cancel_ends_the_job_with_its_grace", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let script = "import signal, sys, time\ndef bye(*_):\n    print('saved', flush=True)\n    sys.exit(0)\nsignal.signal(signal.SIGTERM, bye)\nprint('running', flush=True)\ntime.sleep(600)\n";
    let run = server.submit(script, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    assert!(server.cli(&["cancel", &run]).status.success());
    server.wait_for(&run, "Cancelled").await;
    assert!(server.driver_log(&run).await.contains("saved"), "it had its grace");
    until("the job to leave the queue", || async { cluster.jobs("PD,R,CG").is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_scancel_from_outside_is_a_cancel_and_says_whose() {
    for (kind, who) in [(Kind::Plain, "scancel, outside of this server"), (Kind::Accounting, "(scancel)")] {
        let Some(cluster) = Cluster::find("a_scancel_from_outside_is_a_cancel", kind) else { return };
        let server = cluster.server("").await;
        let run = server.submit(LONG, |_| {}).await;
        let queued = server.submit(LONG, slurm(json!({ "Arguments": ["--begin=now+1hour"] }))).await;
        server.wait_for_output(&run, "running").await;
        wait_reason(&server, &queued, "BeginTime").await;
        for states in ["R", "PD"] {
            let (job, _) = cluster.job(states).await;
            assert!(cluster.command("scancel", &[&job]).status.success());
        }
        // Accounting tells who it was some seconds later. A run that was in execution ends with what is known in time.
        for (run, who) in [(&run, "scancel"), (&queued, who)] {
            server.wait_for(run, "Cancelled").await;
            let (kind, message) = cause(&server, run).await;
            assert_eq!(kind, "cancelled");
            assert!(message.contains("cancelled by") && message.contains(who), "{message}");
        }
        assert!(server.driver_log(&run).await.contains("running"), "its log is kept");
    }
}

#[tokio::test]
async fn a_job_that_reaches_slurms_time_limit_says_so_and_is_not_tried_again() {
    let Some(cluster) = Cluster::find("a_job_that_reaches_slurms_time_limit", Kind::Accounting) else { return };
    let server = cluster.server("").await;
    let run = server.submit(LONG, slurm(json!({ "Partition": "short" }))).await;
    server.wait_for_output(&run, "running").await;
    let (_, message) = ends(&server, &run, "Failed").await;
    assert!(message.contains("the time limit of Slurm job") && message.contains("is 60 s"), "{message}");
    assert_eq!(cause(&server, &run).await.0, "time_limit");
}

#[tokio::test]
async fn a_job_that_has_to_make_room_is_preempted_and_tried_again() {
    let Some(cluster) = Cluster::find("a_job_that_has_to_make_room", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let script = "import os, time\nprint('running', os.environ['SLURM_JOB_PARTITION'], flush=True)\ntime.sleep(600)\n";
    let run = server.submit(script, slurm(json!({ "Partition": "spare", "Arguments": ["--exclusive"] }))).await;
    server.wait_for_output(&run, "running spare").await;
    let urgent = cluster.command("sbatch", &["--parsable", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5"]);
    assert!(urgent.status.success(), "{}", String::from_utf8_lossy(&urgent.stderr));
    let url = server.client().native(&format!("/runs/{run}/attempts"));
    let attempts = until("the second attempt", || async {
        let attempts = server.get(&url).await;
        (attempts.as_array().unwrap().len() == 2).then_some(attempts)
    })
    .await;
    assert_eq!(attempts[0]["cause"]["kind"], "preempted", "{attempts:#}");
    assert!(attempts[0]["cause"]["message"].as_str().unwrap().contains("PREEMPTED"), "{attempts:#}");
    assert!(server.cli(&["cancel", &run]).status.success());
    server.wait_for(&run, "Cancelled").await;
    let id = String::from_utf8(urgent.stdout).unwrap();
    cluster.command("scancel", &[id.trim()]);
}

#[tokio::test]
async fn a_node_that_dies_under_a_run_is_noticed_fenced_and_the_run_tried_again() {
    let Some(cluster) = Cluster::find("a_node_that_dies_under_a_run", Kind::Plain) else { return };
    let server = cluster.server("").await;
    let script = "import time\nprint('running', flush=True)\ntime.sleep(600)\n";
    let run = server.submit(script, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    let (_, node) = cluster.job("R").await;
    cluster.daemon("node", &[&node, "kill"]);
    let url = server.client().native(&format!("/runs/{run}/attempts"));
    let attempts = until("the second attempt", || async {
        let attempts = server.get(&url).await;
        (attempts.as_array().unwrap().len() == 2).then_some(attempts)
    })
    .await;
    cluster.daemon("node", &[&node, "start"]);
    assert_eq!(attempts[0]["cause"]["kind"], "node_lost", "{attempts:#}");
    assert!(attempts[0]["cause"]["message"].as_str().unwrap().contains("NODE_FAIL"), "{attempts:#}");
    let first = attempts[0]["id"].as_str().unwrap().to_owned();
    until("the code of the lost attempt to be ended by the fence", || async {
        crate::support::processes_with(&first).is_empty().then_some(())
    })
    .await;
    assert!(server.cli(&["cancel", &run]).status.success());
    server.wait_for(&run, "Cancelled").await;
    until("the node to be back", || async {
        let nodes = cluster.command("sinfo", &["-h", "-N", "-p", "cpu", "-t", "idle,mix,alloc,comp", "-o", "%N"]);
        (String::from_utf8_lossy(&nodes.stdout).lines().count() == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_controller_that_is_away_changes_nothing_and_a_server_that_restarts_finds_its_jobs() {
    let Some(cluster) = Cluster::find("a_controller_that_is_away_changes_nothing", Kind::Plain) else { return };
    let mut server = cluster.server("").await;
    let release = server.dir().join("release");
    let script = format!(
        "import os, time\nprint('running', flush=True)\nwhile not os.path.exists('{}'):\n    time.sleep(0.1)\nprint('released', flush=True)\n",
        release.display()
    );
    let run = server.submit(&script, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    let queued = server.submit(HELLO, slurm(json!({ "Arguments": ["--begin=now+20"] }))).await;
    wait_reason(&server, &queued, "BeginTime").await;
    cluster.daemon("controller", &["stop"]);
    // The check at submission has no answer either: the run is taken with a warning.
    let away = server.submit(HELLO, slurm(json!({ "Cpus": 1 }))).await;
    wait_reason(&server, &away, "waits for Slurm's answer").await;
    wait_reason(&server, &queued, "waits for Slurm's answer").await;
    server.kill();
    server.start_again().await;
    fs::write(&release, "").unwrap();
    server.wait_for(&run, "Completed").await;
    cluster.daemon("controller", &["start"]);
    for run in [&queued, &away] {
        let dto = server.wait_for(run, "Completed").await;
        let url = server.client().native(&format!("/runs/{run}/attempts"));
        assert_eq!(server.get(&url).await.as_array().unwrap().len(), 1, "{dto:#}");
    }
    let warnings = server.run(&away).await["warnings"].to_string();
    assert!(warnings.contains("could not be asked"), "{warnings}");
}

#[tokio::test]
async fn runs_wait_while_every_node_is_drained() {
    let Some(cluster) = Cluster::find("runs_wait_while_every_node_is_drained", Kind::Plain) else { return };
    let server = cluster.server("").await;
    cluster.scontrol(&["update", "NodeName=n[1-4]", "State=DRAIN", "Reason=test"]);
    let run = server.submit(HELLO, |_| {}).await;
    let waits = until("the wait for nodes", || async {
        let message = server.run(&run).await["queueingInfo"]["message"].as_str().unwrap_or_default().to_owned();
        (message.contains("down, drained or reserved") || message.contains("waits for resources")).then_some(message)
    })
    .await;
    cluster.scontrol(&["update", "NodeName=n[1-4]", "State=RESUME"]);
    assert!(waits.contains("Slurm job"), "{waits}");
    server.wait_for(&run, "Completed").await;
}

#[tokio::test]
async fn an_agent_that_is_killed_on_its_node_leaves_its_books_to_be_closed() {
    let Some(cluster) = Cluster::find("an_agent_that_is_killed_on_its_node", Kind::Plain) else { return };
    let server = cluster.server("retries = 0").await;
    let run = server.submit(LONG, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    let attempt = names(&cluster.shared.path().join("attempts")).remove(0);
    for pid in crate::support::processes_with(&format!("attempts/{attempt}")) {
        crate::support::signal(pid, "KILL");
    }
    let (_, message) = ends(&server, &run, "Failed").await;
    assert!(message.contains("Slurm job") && message.contains("FAILED"), "{message}");
    assert!(server.driver_log(&run).await.contains("running"), "its log is kept");
    let url = server.client().native(&format!("/runs/{run}/attempts"));
    assert_eq!(server.get(&url).await[0]["cause"]["kind"], "agent_lost");
}

#[tokio::test]
async fn what_a_qos_allows_is_waited_for() {
    let Some(cluster) = Cluster::find("what_a_qos_allows_is_waited_for", Kind::Accounting) else { return };
    let server = cluster.server("account = \"lab\"\nqos = \"single\"").await;
    let first = server.submit(LONG, |_| {}).await;
    server.wait_for_output(&first, "running").await;
    let second = server.submit(HELLO, |_| {}).await;
    wait_reason(&server, &second, "QOSMaxJobsPerUserLimit").await;
    assert!(server.cli(&["cancel", &first]).status.success());
    server.wait_for(&second, "Completed").await;
}

#[tokio::test]
async fn a_program_that_nodes_cannot_start_shows_the_jobs_last_words() {
    let Some(cluster) = Cluster::find("a_program_that_nodes_cannot_start", Kind::Plain) else { return };
    let server = cluster.server("retries = 0").await;
    let first = server.submit(HELLO, |_| {}).await;
    server.wait_for(&first, "Completed").await;
    for name in names(&cluster.shared.path().join("bin")) {
        fs::remove_file(cluster.shared.path().join("bin").join(name)).unwrap();
    }
    let run = server.submit(HELLO, |_| {}).await;
    let (_, message) = ends(&server, &run, "Failed").await;
    assert!(message.contains("before its agent was up") && message.contains("not found"), "{message}");
}
