//! The command line as a person or a script uses it.

use std::fs;

use serde_json::{Value, json};

use crate::support::{TestServer, program};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}\n{}", text(&output.stdout), text(&output.stderr)))
}

/// A folder with a script, and the arguments that submit it.
fn project(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.py"), script).unwrap();
    folder
}

#[tokio::test]
async fn submitting_a_folder_and_following_it_to_its_end() {
    let server = TestServer::start().await;
    let folder = project("import sys, os\nprint('args', sys.argv[1:], os.environ['A'])\nopen('outputs/m.txt', 'w').write('model')\n");
    let path = folder.path().to_str().unwrap();
    let output = server.cli(&[
        "submit",
        path,
        "--script",
        "train.py",
        "--interpreter",
        "python3",
        "--env",
        "A=1",
        "--follow",
        "--",
        "--epochs",
        "3",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "args ['--epochs', '3'] 1\n");
    assert!(text(&output.stderr).contains(": Completed"));
    let runs = json(&server.cli(&["runs", "--json"]));
    let run = runs[0]["runId"].as_str().unwrap();
    assert_eq!(runs[0]["status"], "Completed");
    assert_eq!(text(&server.cli(&["logs", run]).stdout), "args ['--epochs', '3'] 1\n");
    let shown = text(&server.cli(&["show", run]).stdout);
    for words in ["status       Completed", "script       train.py", "attempt      1 ", "log          azureml-logs/70_driver_log.txt"] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
    let target = tempfile::tempdir().unwrap();
    let output = server.cli(&["download", run, "-o", target.path().to_str().unwrap(), "--prefix", "outputs/"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(target.path().join("outputs/m.txt")).unwrap(), "model");
}

#[tokio::test]
async fn exit_codes_tell_scripts_what_happened() {
    let server = TestServer::start().await;
    let folder = project("raise SystemExit(9)");
    let path = folder.path().to_str().unwrap();
    let code = |arguments: &[&str]| server.cli(arguments).status.code();
    assert_eq!(code(&["submit", path, "--script", "train.py", "--interpreter", "python3", "--wait"]), Some(1), "the run failed");
    assert_eq!(code(&["submit", path]), Some(1));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["show", "no-such-run"]), Some(4));
    assert_eq!(code(&["submit", path, "--script", "train.py", "--target", "gpu"]), Some(4));
    let mut file: Value = serde_json::from_slice(&fs::read(server.client_json()).unwrap()).unwrap();
    file["endpoint"] = "https://127.0.0.1:9".into();
    file["authority"] = "https://127.0.0.1:9/x".into();
    let elsewhere = folder.path().join("client.json");
    fs::write(&elsewhere, file.to_string()).unwrap();
    let output = program().args(["runs", "--client"]).arg(&elsewhere).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("hint: start it with `trainyard serve`"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_log_is_followed_across_a_restart_of_the_server() {
    let mut server = TestServer::start().await;
    let gate = server.dir().join("gate");
    let script = format!(
        "import os, time\nfor n in range(10000):\n  print('line', n, flush=True)\n  time.sleep(0.05)\n  if os.path.exists({:?}): break\n",
        gate.display().to_string()
    );
    let run = server.submit(&script, |_| {}).await;
    server.wait_for_output(&run, "line 3\n").await;
    let follower = server
        .command()
        .args(["logs", "-f", &run])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let seen = server.driver_log(&run).await.lines().count();
    server.kill();
    server.start_again().await;
    server.wait_for_output(&run, &format!("line {}\n", seen + 20)).await;
    fs::write(gate, "").unwrap();
    let output = follower.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    let expected: Vec<String> = (0..lines.len()).map(|n| format!("line {n}")).collect();
    assert_eq!(lines, expected, "nothing lost, nothing twice");
    assert!(lines.len() > seen + 20);
}

#[tokio::test]
async fn applications_workspaces_and_tokens_are_managed() {
    let server = TestServer::start().await;
    let made = server.cli(&["workspace", "create", "second"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert_eq!(json(&server.cli(&["workspace", "list", "--json"])).as_array().unwrap().len(), 2);
    let file = server.dir().join("reader.json");
    let made =
        server.cli(&["--workspace", "second", "app", "create", "viewer", "--role", "Reader", "--write-client", file.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let as_reader = |arguments: &[&str]| program().arg("--client").arg(&file).args(arguments).output().unwrap();
    assert!(as_reader(&["runs"]).status.success());
    let refused = as_reader(&["experiments", "create", "x"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains("Contributor"), "{}", text(&refused.stderr));
    assert_eq!(text(&server.cli(&["token"]).stdout).trim().split('.').count(), 3);
    let listed = json(&server.cli(&["app", "list", "--json"]));
    let id = listed.as_array().unwrap().iter().find(|app| app["name"] == "viewer").unwrap()["client_id"].as_str().unwrap().to_owned();
    assert!(server.cli(&["app", "rotate", &id]).status.success());
    assert_eq!(as_reader(&["runs"]).status.code(), Some(4), "the secret in the file is the old one");
    assert!(server.cli(&["app", "delete", &id]).status.success());
    assert!(!text(&server.cli(&["app", "list"]).stdout).contains("viewer"));
}

#[tokio::test]
async fn cancel_experiments_computes_and_doctor() {
    let server = TestServer::start().await;
    let run = server.submit("import time\nprint('up', flush=True)\ntime.sleep(600)", |_| {}).await;
    server.wait_for_output(&run, "up").await;
    let output = server.cli(&["cancel", &run, "--wait"]);
    assert_eq!(text(&output.stdout), format!("{run}: Cancelled\n"), "{}", text(&output.stderr));
    assert!(text(&server.cli(&["experiments"]).stdout).contains("it "));
    let computes = json(&server.cli(&["computes", "--json"]));
    assert_eq!((computes[0]["name"].as_str(), computes[0]["slots"].as_i64()), (Some("cpu-cluster"), Some(2)));
    let doctor = server.cli(&["doctor"]);
    assert!(text(&doctor.stdout).contains("ok       server     answers"), "{}", text(&doctor.stdout));
}

#[tokio::test]
async fn a_target_shows_its_machines_who_holds_its_slots_and_who_waits_for_what() {
    let server = TestServer::start().await;
    let wait = "import os, time\nprint('up', flush=True)\nwhile not os.path.exists('/nowhere'): time.sleep(0.1)";
    let first = server.submit(wait, |configuration| configuration["Target"] = "local".into()).await;
    server.wait_for_output(&first, "up").await;
    let late = server.submit(wait, |configuration| configuration["Target"] = "local".into()).await;
    let urgent = server.submit(wait, |configuration| {
        configuration["Target"] = "local".into();
        configuration["Priority"] = 5.into();
    });
    let urgent = urgent.await;
    let shown = json(&server.cli(&["computes", "local", "--json"]));
    assert_eq!((&shown["engine"], &shown["busy"], &shown["queued"]), (&"local".into(), &1.into(), &2.into()), "{shown:#}");
    assert_eq!((&shown["nodes"][0]["state"], &shown["running"][0]["run"]), (&"running".into(), &first.as_str().into()), "{shown:#}");
    let queue: Vec<_> = shown["queue"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(queue, [urgent.as_str(), late.as_str()], "in the order in which they get the slot");
    assert_eq!((&shown["shares"][0]["user"], &shown["queue"][0]["user"]), (&shown["running"][0]["user"], &shown["running"][0]["user"]));
    assert!(!shown["shares"][0]["user"].as_str().unwrap().contains('{'), "{shown:#}");
    assert_eq!((&shown["shares"][0]["busy"], &shown["shares"][0]["waiting"]), (&1.into(), &2.into()), "{shown:#}");
    let printed = text(&server.cli(&["computes", "LOCAL"]).stdout);
    for part in ["local (local): 1 of 1 slots busy, 2 waiting", "1 of 1 busy, no run is ahead", "1 of 1 busy, 1 run is ahead"] {
        assert!(printed.contains(part), "{printed}");
    }
    let unknown = server.cli(&["computes", "gpu"]);
    assert!(text(&unknown.stderr).contains("known targets: cpu-cluster, local"), "{}", text(&unknown.stderr));
    // Who may see only another workspace sees that slots are taken, and nothing of whose they are.
    let other = json!({ "subscription_id": "s2", "resource_group": "g2", "workspace_name": "other" });
    let (status, made) = server.send(reqwest::Method::POST, "/api/v1/workspaces", other).await;
    assert!(status.is_success(), "{made}");
    let seen = server.get("/api/v1/subscriptions/s2/resourceGroups/g2/workspaces/other/computes/local").await;
    assert_eq!(seen["others"], json!({ "user": "", "busy": 1, "waiting": 2 }), "{seen:#}");
    assert!(["shares", "running", "queue"].iter().all(|list| seen[list] == json!([])), "{seen:#}");
    for run in [&urgent, &late, &first] {
        server.cli(&["cancel", run, "--wait"]);
    }
}

#[test]
fn the_demo_says_what_is_wrong_with_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), "[server]\nlisen = \"x\"\n").unwrap();
    let output = program().arg("--data-dir").arg(folder.path()).arg("demo").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("did you mean `listen`?"), "{}", text(&output.stderr));
}

#[test]
fn a_public_address_is_refused_with_only_the_generated_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let output = program().arg("--data-dir").arg(folder.path()).args(["serve", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("is a public address") && message.contains("trainyard app create"), "{message}");
}

#[tokio::test]
async fn experiments_are_archived_brought_back_and_deleted() {
    let server = TestServer::start().await;
    let run = |arguments: &[&str]| {
        let output = server.cli(&[&["experiments"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&["create", "first"]);
    assert!(run(&["list"]).contains("first"));
    run(&["archive", "first"]);
    assert!(!run(&["list"]).contains("first"));
    assert!(run(&["list", "--all"]).contains("first"));
    run(&["reactivate", "first"]);
    assert!(run(&["list"]).contains("first"));
    run(&["delete", "first"]);
    assert!(!run(&["list", "--all"]).contains("first"));
    let output = server.cli(&["experiments", "delete", "first"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("first"), "{}", text(&output.stderr));
}
