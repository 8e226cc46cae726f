//! Backup, restore and fsck, with the real program and agents that live on.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{TestServer, program, until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command on a data directory.
fn offline(data_dir: &Path, arguments: &[&str]) -> Output {
    program().arg("--data-dir").arg(data_dir).args(arguments).output().unwrap()
}

fn succeeds(output: Output) -> Output {
    assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&output.stdout), text(&output.stderr));
    output
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}\n{}", text(&output.stdout), text(&output.stderr)))
}

/// A script that notes in a file outside that it was executed, and ends when a gate opens.
fn gated(dir: &Path, name: &str) -> String {
    let (lines, gate) = (dir.join(format!("{name}.lines")), dir.join(format!("{name}.gate")));
    format!(
        "import os, time\nopen({:?}, 'a').write('executed\\n')\nprint('{name} is up', flush=True)\n\
         while not os.path.exists({:?}):\n    time.sleep(0.05)\n    if os.path.exists({:?}) and not os.path.exists('outputs/early.txt'):\n        \
         open('outputs/early.txt', 'w').write('early')\nprint('{name} is done')\nopen('outputs/late.txt', 'w').write('late')\n",
        lines.display().to_string(),
        gate.display().to_string(),
        dir.join(format!("{name}.early")).display().to_string(),
    )
}

fn open_gate(dir: &Path, name: &str) {
    fs::write(dir.join(format!("{name}.gate")), "").unwrap();
}

fn executions(dir: &Path, name: &str) -> usize {
    fs::read_to_string(dir.join(format!("{name}.lines"))).unwrap().lines().count()
}

/// The paths of a run's files.
async fn files(server: &TestServer, run: &str) -> Vec<String> {
    let base = server.ws("artifact/v2.0", &format!("/artifacts/prefix/contentinfo/ExperimentRun/dcid.{run}/"));
    let page = server.get(&base).await;
    page["value"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

fn message(dto: &Value) -> String {
    dto["error"]["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_server_at_work_is_backed_up_and_comes_back_elsewhere() {
    let server = TestServer::start().await;
    let done = server.submit("open('outputs/m.txt', 'w').write('model')\nprint('well done')", |_| {}).await;
    server.wait_for(&done, "Completed").await;
    let running = server.submit(&gated(server.dir(), "running"), |_| {}).await;
    server.wait_for_output(&running, "running is up").await;
    let file = server.dir().join("backup.tar");
    let name = file.to_str().unwrap();
    let summary = json_of(&succeeds(offline(server.dir(), &["backup", name, "--json"])));
    assert_eq!((&summary["missing"], &summary["damaged"]), (&json!([]), &json!([])));
    assert!(summary["rows"].as_u64() > Some(10) && summary["live_files"].as_u64() > Some(0), "{summary:#}");
    let checked = succeeds(program().args(["backup", "--check", name]).output().unwrap());
    assert!(text(&checked.stdout).contains("backup.tar: whole; made "), "{}", text(&checked.stdout));

    let restored = TestServer::on(|dir| {
        let output = succeeds(offline(dir, &["restore", name]));
        assert!(text(&output.stdout).contains("the server is drained"), "{}", text(&output.stdout));
        // The server of before is still there: nobody should find it through this file.
        let client = dir.join("client.json");
        let mut file: Value = serde_json::from_slice(&fs::read(&client).unwrap()).unwrap();
        file["endpoint"] = "https://127.0.0.1:9".into();
        fs::write(client, file.to_string()).unwrap();
    })
    .await;
    assert_eq!(restored.file.client_secret, server.file.client_secret, "clients need no new credentials");
    assert_eq!(restored.run(&done).await["status"], "Completed");
    assert_eq!(restored.driver_log(&done).await, "well done\n");
    assert!(files(&restored, &done).await.contains(&"outputs/m.txt".to_owned()));
    // Its agent lives on another machine, as far as this server can know.
    let lost = restored.wait_for(&running, "Failed").await;
    assert!(message(&lost).contains("the server was restored from a backup"), "{lost:#}");
    assert!(restored.driver_log(&running).await.starts_with("running is up"), "what was there is kept");
    let waiting = restored.submit("print(1)", |_| {}).await;
    assert_eq!(restored.run(&waiting).await["queueingInfo"]["code"], "Drained");
    succeeds(restored.cli(&["drain", "--end"]));
    restored.wait_for(&waiting, "Completed").await;
    open_gate(server.dir(), "running");
    server.wait_for(&running, "Completed").await;
}

#[tokio::test]
async fn a_restored_server_takes_its_living_agents_back() {
    let mut server = TestServer::start().await;
    let dir = server.dir().to_owned();
    let steady = server.submit(&gated(&dir, "steady"), |_| {}).await;
    let blocker = server.submit(&gated(&dir, "blocker"), |_| {}).await;
    for (run, name) in [(&steady, "steady"), (&blocker, "blocker")] {
        server.wait_for_output(run, &format!("{name} is up")).await;
    }
    let late = server.submit(&gated(&dir, "late"), |_| {}).await;
    assert_eq!(server.run(&late).await["status"], "Queued");
    let file = dir.join("backup.tar");
    let name = file.to_str().unwrap();
    succeeds(offline(&dir, &["backup", name]));

    // What the backup does not know: one run ended, another started, an output was stored.
    fs::write(dir.join("steady.early"), "").unwrap();
    open_gate(&dir, "blocker");
    server.wait_for(&blocker, "Completed").await;
    server.wait_for_output(&late, "late is up").await;
    until("the early output to be stored", || async {
        files(&server, &steady).await.contains(&"outputs/early.txt".to_owned()).then_some(())
    })
    .await;
    until("the folder of the ended run to be removed", || async {
        (fs::read_dir(dir.join("attempts")).unwrap().count() == 2).then_some(())
    })
    .await;
    let refused = offline(&dir, &["restore", name, "--replace"]);
    assert!(text(&refused.stderr).contains("another server uses the data directory"), "{}", text(&refused.stderr));
    server.kill();
    let refused = offline(&dir, &["restore", name]);
    assert!(text(&refused.stderr).contains("say --replace"), "{}", text(&refused.stderr));
    let restored = json_of(&succeeds(offline(&dir, &["restore", name, "--replace", "--json"])));
    assert_eq!(restored["held_runs"], 3, "{restored:#}");
    server.start_again().await;

    assert_eq!(server.wait_for(&late, "Running").await["status"], "Running", "the one that it thought to be waiting");
    assert_eq!(server.run(&steady).await["status"], "Running");
    let lost = server.wait_for(&blocker, "Failed").await;
    assert!(message(&lost).contains("the server was restored from a backup"), "{lost:#}");
    succeeds(server.cli(&["drain", "--end"]));
    for (run, name) in [(&steady, "steady"), (&late, "late")] {
        open_gate(&dir, name);
        let dto = server.wait_for(run, "Completed").await;
        assert_eq!(server.driver_log(run).await, format!("{name} is up\n{name} is done\n"));
        assert!(dto["startTimeUtc"].is_string(), "{dto:#}");
        let attempts = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
        assert_eq!(attempts.as_array().unwrap().len(), 1, "{attempts:#}");
    }
    let kept = files(&server, &steady).await;
    assert!(["outputs/early.txt", "outputs/late.txt"].iter().all(|path| kept.contains(&(*path).to_owned())), "{kept:?}");
    for name in ["steady", "blocker", "late"] {
        assert_eq!(executions(&dir, name), 1, "{name}");
    }
    assert!(fs::read_dir(&dir).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().contains("before-restore-")));
}

#[tokio::test]
async fn a_server_does_not_start_on_half_a_restore() {
    let mut server = TestServer::start().await;
    let file = server.dir().join("backup.tar");
    let name = file.to_str().unwrap();
    let output = succeeds(offline(server.dir(), &["backup", name, "--json"]));
    server.stop();
    let sums = json_of(&output)["sums_sha256"].as_str().unwrap().to_owned();
    let intent = json!({ "backup": sums, "file": file, "stamp": "20261123T000000Z" });
    fs::write(server.dir().join("restore.json"), intent.to_string()).unwrap();
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["fsck"][..]] {
        let output = offline(server.dir(), command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let said = text(&output.stderr);
        assert!(said.contains("was begun and not finished") && said.contains(&format!("trainyard restore {name}")), "{said}");
    }
    succeeds(offline(server.dir(), &["restore", name]));
    server.start_again().await;
    assert_eq!(server.get("/api/v1/drain").await["drained"], false, "nothing was left to be done but to take the note away");
}

#[tokio::test]
async fn a_damaged_backup_changes_nothing() {
    let server = TestServer::start().await;
    let file = server.dir().join("backup.tar");
    let name = file.to_str().unwrap();
    succeeds(offline(server.dir(), &["backup", name]));
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let target = tempfile::tempdir().unwrap();
    for output in [program().args(["backup", "--check", name]).output().unwrap(), offline(target.path(), &["restore", name])] {
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("backup.tar is"), "{}", text(&output.stderr));
    }
    let left: Vec<_> = fs::read_dir(target.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["server.lock"]);
    let nowhere = offline(&target.path().join("nowhere"), &["backup", name]);
    assert!(text(&nowhere.stderr).contains("there is no data directory at"), "{}", text(&nowhere.stderr));
}

#[tokio::test]
async fn fsck_finds_and_repairs_and_says_so_by_its_exit_code() {
    let mut server = TestServer::start().await;
    let run = server.submit("open('outputs/m.txt', 'w').write('model')", |_| {}).await;
    server.wait_for(&run, "Completed").await;
    let output = succeeds(offline(server.dir(), &["fsck", "--deep"]));
    assert_eq!(text(&output.stdout), "nothing was found\n", "beside a server at work");
    let refused = offline(server.dir(), &["fsck", "--repair"]);
    assert!(text(&refused.stderr).contains("another server uses"), "{}", text(&refused.stderr));
    server.stop();
    // An upload that a crash left, two hours old.
    let staged = server.dir().join("staging/upload-0");
    fs::write(&staged, "half").unwrap();
    let touched = std::process::Command::new("touch").args(["-d", "2 hours ago"]).arg(&staged).stdin(Stdio::null()).status().unwrap();
    assert!(touched.success());
    let found = offline(server.dir(), &["fsck", "--json"]);
    assert_eq!(found.status.code(), Some(1));
    let findings = json_of(&found);
    assert_eq!((&findings[0]["invariant"], &findings[0]["repair"]), (&json!("stale_upload"), &json!("possible")));
    let repaired = succeeds(offline(server.dir(), &["fsck", "--repair"]));
    assert!(text(&repaired.stdout).ends_with("1 found, 1 repaired, 0 left\n"), "{}", text(&repaired.stdout));
    // A blob that is gone cannot be made up.
    let blob = server.files("blobs").into_iter().find(|path| path.extension().is_some_and(|extension| extension == "pack")).unwrap();
    fs::remove_file(&blob).unwrap();
    let left = offline(server.dir(), &["fsck", "--repair"]);
    assert_eq!(left.status.code(), Some(1));
    assert!(text(&left.stdout).contains("blob_missing") && text(&left.stdout).contains("cannot be repaired"), "{}", text(&left.stdout));
}

#[tokio::test]
async fn broken_invariants_are_counted_in_the_metrics() {
    let server = TestServer::start().await;
    let text = until("the first count", || async {
        let response = server.request(reqwest::Method::GET, "/metrics").await.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        text.contains("trainyard_invariant_violations{").then_some(text)
    })
    .await;
    for word in trainyard_store::check::CHEAP {
        assert!(text.contains(&format!("trainyard_invariant_violations{{invariant=\"{word}\"}} 0")), "{word}: {text}");
    }
}
