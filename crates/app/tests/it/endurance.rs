//! No run is lost, run twice or ends wrong: retries, silence, fences, drains, with real processes.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestServer, is_alive, processes_with, signal, until};

/// A server whose limits are short enough to wait for.
async fn server(more: &str) -> TestServer {
    impatient(3, more).await
}

/// A server with this heartbeat limit, in seconds.
async fn impatient(heartbeat_limit: u32, more: &str) -> TestServer {
    let config = format!(
        "[server]\nheartbeat_limit_seconds = {heartbeat_limit}\ncancel_grace_seconds = 1\n{more}\n\
         [compute.cpu-cluster]\nslots = 1\nretries = 1\nretry_backoff_seconds = 0\n"
    );
    TestServer::with_config(&config).await
}

/// Notes each start in a file outside, with its process id; the first one waits for the gate, later ones end at once.
fn patient(server: &TestServer) -> String {
    let dir = server.dir().display().to_string();
    format!(
        r#"
import os, time
with open({dir:?} + "/starts", "a") as starts: starts.write("%d\n" % os.getpid())
number = len(open({dir:?} + "/starts").readlines())
print("this is start", number, flush=True)
while number == 1 and not os.path.exists({dir:?} + "/gate"): time.sleep(0.05)
print("done", number)
"#
    )
}

fn starts(server: &TestServer) -> Vec<u32> {
    let text = fs::read_to_string(server.dir().join("starts")).unwrap_or_default();
    text.lines().map(|pid| pid.parse().unwrap()).collect()
}

fn open_the_gate(server: &TestServer) {
    fs::write(server.dir().join("gate"), "").unwrap();
}

fn agent(server: &TestServer) -> u32 {
    let agents = processes_with(&server.dir().join("attempts").to_string_lossy());
    assert_eq!(agents.len(), 1, "one agent per attempt");
    agents[0]
}

async fn attempts(server: &TestServer, run: &str) -> Vec<Value> {
    let found = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
    found.as_array().unwrap().clone()
}

async fn event_names(server: &TestServer, run: &str) -> Vec<String> {
    let events = server.get(&server.client().native(&format!("/runs/{run}/events"))).await;
    let name = |event: &Value| event["name"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
    events.as_array().unwrap().iter().map(name).collect()
}

fn causes(attempts: &[Value]) -> Vec<&str> {
    attempts.iter().map(|attempt| attempt["cause"]["kind"].as_str().unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_lost_attempt_is_tried_again_under_the_same_run_and_both_logs_are_kept() {
    let server = server("").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let mut follower = server.command().args(["logs", "-f", &run]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    signal(agent(&server), "KILL");
    server.wait_for(&run, "Completed").await;
    let attempts = attempts(&server, &run).await;
    assert_eq!(causes(&attempts), ["agent_lost", "completed"]);
    assert_eq!(starts(&server).len(), 2);
    assert_eq!(server.driver_log(&run).await, "this is start 2\ndone 2\n");
    assert_eq!(server.log(&run, "attempts/1/azureml-logs/70_driver_log.txt").await, "this is start 1\n");
    let events = event_names(&server, &run).await;
    assert_eq!(events.iter().filter(|name| *name == "Retrying").count(), 1, "{events:?}");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    let logs: Vec<&String> = details["logFiles"].as_object().unwrap().keys().collect();
    assert!(logs.iter().any(|path| *path == "attempts/1/azureml-logs/70_driver_log.txt"), "{logs:?}");

    let mut followed = String::new();
    std::io::Read::read_to_string(follower.stdout.as_mut().unwrap(), &mut followed).unwrap();
    assert!(follower.wait().unwrap().success());
    assert!(followed.ends_with("this is start 2\ndone 2\n"), "{followed}");
    let metrics = server.anonymous(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        r#"trainyard_runs_ended_total{cause="completed"} 1"#,
        r#"trainyard_attempts_ended_total{cause="agent_lost"} 1"#,
        r#"trainyard_runs_ended_total{cause="agent_lost"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let shown = String::from_utf8(server.cli(&["show", &run]).stdout).unwrap();
    assert!(shown.contains("agent_lost") && shown.contains("Retrying"), "{shown}");
}

#[tokio::test]
async fn code_that_fails_is_tried_again_only_if_that_was_asked_for() {
    let server = server("").await;
    let once = server.submit("import sys\nsys.exit(3)", |_| {}).await;
    let dto = server.wait_for(&once, "Failed").await;
    assert!(dto["error"]["error"]["message"].as_str().unwrap().contains("exit code 3"), "{dto:#}");
    assert_eq!(dto["error"]["error"]["innerError"]["code"], "exit_code", "{dto:#}");
    assert_eq!(attempts(&server, &once).await.len(), 1);
    let asked = json!({ "userCode": 1, "BackoffSeconds": 0 });
    let twice = server.submit("import sys\nsys.exit(4)", |configuration| configuration["Retries"] = asked).await;
    server.wait_for(&twice, "Failed").await;
    assert_eq!(causes(&attempts(&server, &twice).await), ["exit_code", "exit_code"]);
}

#[tokio::test]
async fn a_run_that_waits_for_another_try_says_so_and_can_be_cancelled() {
    let server = server("").await;
    let asked = json!({ "UserCode": 1, "BackoffSeconds": 3600 });
    let run = server.submit("import sys\nsys.exit(4)", |configuration| configuration["Retries"] = asked).await;
    let waiting = until("the run to wait for another try", || async {
        let dto = server.run(&run).await;
        (dto["queueingInfo"]["code"] == "RetryBackoff").then_some(dto)
    })
    .await;
    assert_eq!(waiting["status"], "Queued");
    assert!(waiting["queueingInfo"]["message"].as_str().unwrap().contains("exit code 4"), "{waiting:#}");
    let output = server.cli(&["cancel", &run, "--reason", "not worth it"]);
    assert!(output.status.success());
    let dto = server.wait_for(&run, "Cancelled").await;
    assert_eq!(dto["cancelationReason"], "not worth it");
}

#[tokio::test]
async fn a_silent_agent_makes_the_run_not_responding_and_its_next_word_ends_that() {
    let server = server("").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let agent = agent(&server);
    signal(agent, "STOP");
    server.wait_for(&run, "NotResponding").await;
    signal(agent, "CONT");
    server.wait_for(&run, "Running").await;
    open_the_gate(&server);
    server.wait_for(&run, "Completed").await;
    assert_eq!(attempts(&server, &run).await.len(), 1, "silence alone ends nothing");
    let events = event_names(&server, &run).await;
    assert!(events.contains(&"NotResponding".into()) && events.contains(&"Responding".into()), "{events:?}");
}

#[tokio::test]
async fn a_cancel_does_not_wait_for_an_agent_that_does_not_hear() {
    let server = server("").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let (agent, code) = (agent(&server), starts(&server)[0]);
    signal(agent, "STOP");
    server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    server.wait_for(&run, "Cancelled").await;
    until("agent and code to be gone", || async { (!is_alive(agent) && !is_alive(code)).then_some(()) }).await;
}

#[tokio::test]
async fn a_cancel_does_not_wait_for_an_agent_that_stopped_delivering() {
    let server = server("").await;
    let script = "for number in range(3000): open('outputs/%d' % number, 'w').write('x')";
    let run = server.submit(script, |_| {}).await;
    server.wait_for(&run, "Finalizing").await;
    let agent = agent(&server);
    signal(agent, "STOP");
    server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    // How the code ended was known before anybody cancelled; what is missing is said.
    let dto = server.wait_for(&run, "Completed").await;
    assert!(dto["warnings"].to_string().contains("could not deliver everything"), "{dto:#}");
    until("the agent to be gone", || async { (!is_alive(agent)).then_some(()) }).await;
}

#[tokio::test]
async fn an_attempt_that_stays_silent_is_given_up_behind_a_fence() {
    let server = server("silence_limit_seconds = 8").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let (agent, code) = (agent(&server), starts(&server)[0]);
    let order = order(&server);
    signal(agent, "STOP");
    server.wait_for(&run, "Completed").await;
    assert_eq!(causes(&attempts(&server, &run).await), ["node_lost", "completed"]);
    until("agent and code to be gone", || async { (!is_alive(agent) && !is_alive(code)).then_some(()) }).await;
    // What it would say when it came back is not taken any more.
    let (attempt, token) = (order["attempt"].as_str().unwrap(), order["token"].as_str().unwrap());
    let path = format!("/api/v1/attempts/{attempt}/logs/azureml-logs/70_driver_log.txt?offset=0");
    let late = server.anonymous(Method::PUT, &path).bearer_auth(token).body("late").send().await.unwrap();
    assert_eq!(late.status(), StatusCode::FORBIDDEN);
    assert_eq!(server.driver_log(&run).await, "this is start 2\ndone 2\n");
}

fn order(server: &TestServer) -> Value {
    let path = order_path(server);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn order_path(server: &TestServer) -> PathBuf {
    server.files("attempts").into_iter().find(|path| path.ends_with("order.json")).expect("an attempt")
}

#[tokio::test]
async fn nobody_is_blamed_for_a_pause_of_the_server_itself() {
    // Longer than an agent on a busy machine may be kept from speaking.
    let server = impatient(9, "silence_limit_seconds = 10").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let pid = processes_with(&server.dir().to_string_lossy()).into_iter().find(|pid| is_server(*pid)).expect("the server");
    signal(pid, "STOP");
    let paused = Instant::now();
    until("the pause to be longer than every limit", || async { (paused.elapsed() > Duration::from_secs(13)).then_some(()) }).await;
    signal(pid, "CONT");
    open_the_gate(&server);
    server.wait_for(&run, "Completed").await;
    assert_eq!(causes(&attempts(&server, &run).await), ["completed"]);
    let events = event_names(&server, &run).await;
    assert!(!events.contains(&"NotResponding".into()), "{events:?}");
}

fn is_server(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"serve"))
}

#[tokio::test]
async fn a_drained_server_starts_nothing_new_until_told_to_and_says_when_it_is_safe() {
    let mut server = server("").await;
    let running = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&running, "this is start 1").await;
    assert_eq!(server.cli(&["drain"]).status.code(), Some(5), "a run is still in execution");
    let waiting = server.submit("print('later')", |_| {}).await;
    server.kill();
    server.start_again().await;
    open_the_gate(&server);
    server.wait_for(&running, "Completed").await;
    let output = server.cli(&["drain", "--wait", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && status["safe"] == true && status["queued"] == 1, "{status}");
    assert_eq!(server.run(&waiting).await["queueingInfo"]["code"], "Drained");
    assert!(server.cli(&["drain", "--end"]).status.success());
    server.wait_for(&waiting, "Completed").await;
}

#[tokio::test]
async fn the_time_limit_counts_while_the_server_is_away() {
    let mut server = server("").await;
    let run = server.submit(&patient(&server), |configuration| configuration["MaxRunDurationSeconds"] = json!(3)).await;
    server.wait_for_output(&run, "this is start 1").await;
    let code = starts(&server)[0];
    server.kill();
    until("the code to be stopped", || async { (!is_alive(code)).then_some(()) }).await;
    server.start_again().await;
    let dto = server.wait_for(&run, "Failed").await;
    assert!(dto["error"]["error"]["message"].as_str().unwrap().contains("MaxRunDurationSeconds = 3"), "{dto:#}");
    assert_eq!(causes(&attempts(&server, &run).await), ["time_limit"]);
}

#[tokio::test]
async fn an_agent_of_another_protocol_is_told_what_does_not_fit() {
    let server = server("").await;
    let run = server.submit(&patient(&server), |_| {}).await;
    server.wait_for_output(&run, "this is start 1").await;
    let order = order(&server);
    let (attempt, token) = (order["attempt"].as_str().unwrap(), order["token"].as_str().unwrap());
    let ask = |version: &'static str| {
        let request = server.anonymous(Method::GET, &format!("/api/v1/attempts/{attempt}/instruction")).bearer_auth(token);
        request.header("x-trainyard-agent-protocol", version).send()
    };
    assert_eq!(ask("1").await.unwrap().status(), StatusCode::OK);
    let refused = ask("99").await.unwrap();
    assert_eq!(refused.status(), StatusCode::UPGRADE_REQUIRED);
    let text = refused.text().await.unwrap();
    assert!(text.contains("speaks version 99") && text.contains("understands versions 1 to 2"), "{text}");
    open_the_gate(&server);
    server.wait_for(&run, "Completed").await;
}
