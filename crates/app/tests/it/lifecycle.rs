//! Restarts, kills and cancels, with real processes.

use std::{fs, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{TestServer, is_alive, processes_with, signal, until};

/// A script that writes its process id, starts two children (one in a session of its own), and waits for a file.
fn family(server: &TestServer) -> String {
    let dir = server.dir().display().to_string();
    format!(
        r#"
import os, subprocess, time
open({dir:?} + "/main.pid", "w").write(str(os.getpid()))
a = subprocess.Popen(["sleep", "600"])
b = subprocess.Popen(["sleep", "600"], start_new_session=True)
open({dir:?} + "/children", "w").write("%d %d" % (a.pid, b.pid))
print("family is up", flush=True)
count = 0
while not os.path.exists({dir:?} + "/gate"):
    time.sleep(0.05)
    count += 1
    if count % 10 == 0: print("tick", count, flush=True)
for child in (a, b): child.kill(); child.wait()
print("done")
"#
    )
}

fn pids(server: &TestServer) -> Vec<u32> {
    let text =
        fs::read_to_string(server.dir().join("main.pid")).unwrap() + " " + &fs::read_to_string(server.dir().join("children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

async fn gone(pids: &[u32]) {
    until("the processes to be gone", || async { pids.iter().all(|pid| !is_alive(*pid)).then_some(()) }).await;
}

#[tokio::test]
async fn a_restart_of_the_server_changes_nothing_for_the_run() {
    let mut server = TestServer::start().await;
    let run = server.submit(&family(&server), |_| {}).await;
    server.wait_for_output(&run, "family is up").await;
    let before = pids(&server);
    server.kill();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(before.iter().all(|pid| is_alive(*pid)), "the code must not notice");
    server.start_again().await;
    assert_eq!(server.run(&run).await["status"], "Running");
    fs::write(server.dir().join("gate"), "").unwrap();
    server.wait_for(&run, "Completed").await;
    let log = server.driver_log(&run).await;
    assert!(log.starts_with("family is up\n") && log.ends_with("done\n"), "{log}");
    let ticks: Vec<u32> = log.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
    assert!(ticks.windows(2).all(|pair| pair[1] == pair[0] + 10), "lines were lost or repeated: {ticks:?}");
    assert_eq!(server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_run_that_ends_while_the_server_is_down_is_found_ended() {
    let mut server = TestServer::start().await;
    let run = server.submit(&family(&server), |_| {}).await;
    server.wait_for_output(&run, "family is up").await;
    assert!(server.stop().success(), "TERM is a clean end");
    fs::write(server.dir().join("gate"), "").unwrap();
    gone(&pids(&server)).await;
    server.start_again().await;
    server.wait_for(&run, "Completed").await;
    assert!(server.driver_log(&run).await.ends_with("done\n"));
}

#[tokio::test]
async fn a_cancel_ends_the_whole_tree() {
    let server = TestServer::start().await;
    let run = server.submit(&family(&server), |_| {}).await;
    server.wait_for_output(&run, "family is up").await;
    let family = pids(&server);
    let uri = server.run(&run).await["cancelUri"].as_str().unwrap().replace(&server.file.endpoint, "");
    let response = server.request(Method::POST, &uri).await.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    server.wait_for(&run, "Cancelled").await;
    gone(&family).await;
    // The SDK reads the same run with its own spelling.
    let sdk = server.request(Method::GET, &server.history(&format!("/runs/{run}"))).await.header("x-ms-client-session-id", "1");
    let sdk: serde_json::Value = sdk.send().await.unwrap().json().await.unwrap();
    assert_eq!(sdk["status"], "Canceled");
}

#[tokio::test]
async fn code_that_ignores_term_is_killed_after_the_grace() {
    let server = TestServer::with_config("[server]\ncancel_grace_seconds = 1\n[compute.cpu-cluster]\nslots = 1\n").await;
    let script = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('no', flush=True))\nprint('up', flush=True)\nwhile True: time.sleep(1)";
    let run = server.submit(script, |_| {}).await;
    server.wait_for_output(&run, "up").await;
    server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    server.wait_for(&run, "Cancelled").await;
    assert_eq!(server.driver_log(&run).await, "up\nno\n");
}

#[tokio::test]
async fn a_queued_run_is_cancelled_at_once() {
    let server = TestServer::with_config("[compute.cpu-cluster]\nslots = 0\n").await;
    let run = server.submit("print(1)", |_| {}).await;
    let queued = server.run(&run).await;
    assert_eq!(queued["queueingInfo"]["code"], "NoSlots", "{queued:#}");
    let (status, answer) = server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    assert_eq!((status, answer["status"].as_str()), (StatusCode::OK, Some("Cancelled")));
}

#[tokio::test]
async fn a_cancel_while_the_server_restarts_is_not_lost() {
    let mut server = TestServer::start().await;
    let run = server.submit(&family(&server), |_| {}).await;
    server.wait_for_output(&run, "family is up").await;
    let family = pids(&server);
    server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    server.kill();
    server.start_again().await;
    server.wait_for(&run, "Cancelled").await;
    gone(&family).await;
}

#[tokio::test]
async fn a_killed_agent_is_reported_and_leaves_nothing_behind() {
    let server = TestServer::start().await;
    let run = server.submit(&family(&server), |configuration| configuration["Retries"] = json!({ "Infrastructure": 0 })).await;
    server.wait_for_output(&run, "family is up").await;
    let family = pids(&server);
    let agents = processes_with(&server.dir().join("attempts").to_string_lossy());
    assert_eq!(agents.len(), 1, "one agent per attempt");
    signal(agents[0], "KILL");
    let dto = server.wait_for(&run, "Failed").await;
    assert!(dto["error"]["error"]["message"].as_str().unwrap().contains("the agent beside the code is gone"), "{dto:#}");
    gone(&family).await;
    assert!(server.driver_log(&run).await.starts_with("family is up\n"), "what had arrived is kept");
}

#[tokio::test]
async fn a_second_server_on_one_data_directory_is_refused() {
    let server = TestServer::start().await;
    let output = crate::support::program().arg("--data-dir").arg(server.dir()).args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("another server uses the data directory"), "{text}");
}

/// The whole on PostgreSQL: a run, a restart in its middle, its end.
#[tokio::test]
async fn a_server_on_postgres_keeps_its_runs_across_a_restart() {
    let name = "a_server_on_postgres_keeps_its_runs_across_a_restart";
    let Ok(url) = std::env::var("TRAINYARD_TEST_POSTGRES") else {
        eprintln!("SKIPPED {name}: TRAINYARD_TEST_POSTGRES is not set; scripts/test starts PostgreSQL and sets it");
        return;
    };
    let database = format!("it_{}", std::process::id());
    let made = std::process::Command::new("psql").args([&url, "-c", &format!("create database {database}")]).output();
    if !made.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED {name}: psql cannot make a database: {made:?}");
        return;
    }
    let (head, query) = url.split_once('?').map_or((url.as_str(), String::new()), |(head, query)| (head, format!("?{query}")));
    let (base, _) = head.rsplit_once('/').unwrap();
    let config = format!("[store]\ndatabase = \"{base}/{database}{query}\"\n[compute.cpu-cluster]\nslots = 1\n");
    let mut server = TestServer::with_config(&config).await;
    let run = server.submit(&family(&server), |_| {}).await;
    server.wait_for_output(&run, "family is up").await;
    server.kill();
    server.start_again().await;
    fs::write(server.dir().join("gate"), "").unwrap();
    server.wait_for(&run, "Completed").await;
    let found = server.cli(&["runs", "--json"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains(&run));
}
