//! `trainyard environments` as a person or a script uses it.

use std::fs;

use serde_json::{Value, json};

use crate::support::{TestServer, program, until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command that must succeed prints.
fn said(server: &TestServer, arguments: &[&str]) -> String {
    let output = server.cli(&[&["environments"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn json_of(server: &TestServer, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(server, &[arguments, &["--json"]].concat())).unwrap()
}

/// Exit code and standard error of a command that must fail.
fn refused(server: &TestServer, arguments: &[&str]) -> (Option<i32>, String) {
    let output = server.cli(&[&["environments"], arguments].concat());
    (output.status.code(), text(&output.stderr))
}

#[tokio::test]
async fn an_environment_is_built_shown_locked_pinned_and_pruned() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requirements.txt");
    fs::write(&file, "# ours\nsix==1.16.0\n").unwrap();
    let output = server.cli(&["environments", "build", file.to_str().unwrap()]);
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("builds it") && log.contains("six"), "the build log is followed: {log}");
    let hash = text(&output.stdout).trim().to_owned();
    assert_eq!(hash.len(), 32, "only the hash is data: {hash}");

    let listed = json_of(&server, &["list"]);
    assert_eq!(
        (&listed[0]["hash"], &listed[0]["kind"], &listed[0]["pip_packages"].as_u64().is_some()),
        (&json!(hash), &json!("python"), &true)
    );
    assert!(listed[0]["cached"]["bytes"].as_u64().unwrap() > 0 && listed[0]["cached"]["pinned"] == false, "{listed}");
    assert!(said(&server, &["list"]).contains(&hash) && said(&server, &["list", "--all"]).contains(&hash));
    let shown = said(&server, &["show", &hash[..8]]);
    assert!(shown.contains("pip          six==1.16.0") && shown.contains("built by"), "{shown}");

    let totals = server.get("/api/v1/environments").await["cache"].clone();
    assert_eq!(totals["environments"], 1, "{totals}");
    assert_eq!(totals["environment_bytes"], listed[0]["cached"]["bytes"]);
    assert!(said(&server, &["list", "--all"]).contains("in the cache: 1 environments"));

    let runs = server.get(&server.history("/experiments/environments/runs")).await;
    let run = runs["value"][0]["runId"].as_str().unwrap();
    let lock: Value = serde_json::from_str(&said(&server, &["lock", run])).unwrap();
    assert!(lock["packages"].as_array().unwrap().iter().any(|package| package["name"] == "six"), "{lock}");

    assert!(said(&server, &["pin", &hash]).contains("is pinned"));
    let pruned = json_of(&server, &["prune", "--all", "--dry-run"]);
    assert_eq!((&pruned["removed"], &pruned["dry_run"]), (&json!([]), &json!(true)), "what is pinned stays");
    said(&server, &["unpin", &hash]);
    assert!(said(&server, &["list"]).contains(&hash));
    // The agent lets go of the environment only when its folder is done with.
    until("the environment to be unused", || async {
        (json_of(&server, &["prune", "--all", "--dry-run"])["removed"] == json!([hash])).then_some(())
    })
    .await;
    assert!(said(&server, &["prune", "--all"]).contains("1 environments"));
    assert!(said(&server, &["list"]).contains("not cached"), "the lock is still known");
    assert_eq!(refused(&server, &["pin", &hash]).0, Some(4), "what is not there cannot be pinned");
}

#[tokio::test]
async fn an_environment_that_was_changed_is_verified_repaired_and_built_again() {
    let server = TestServer::start().await;
    let hash = said(&server, &["build", "--pip", "six==1.16.0"]).trim().to_owned();
    assert!(said(&server, &["verify", &hash[..8]]).contains("files are as they were built"));
    let six = server.files("environments/envs").into_iter().find(|file| file.ends_with("site-packages/six.py")).unwrap();
    let good = fs::read(&six).unwrap();
    // Not through the link: other tests share what uv keeps.
    fs::remove_file(&six).unwrap();
    fs::write(&six, "x = 1\n").unwrap();
    let output = server.cli(&["environments", "verify", &hash]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("changed") && shown.contains("site-packages/six.py") && shown.contains("1 of"), "{shown}");
    // The agent lets go of the environment only when its folder is done with.
    let repaired = until("the environment to be unused", || async {
        let output = server.cli(&["environments", "verify", &hash, "--repair", "--json"]);
        output.status.success().then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    })
    .await;
    assert_eq!((&repaired["removed"], &repaired["differences"][0]["how"]), (&json!(true), &json!("changed")));
    assert_eq!(said(&server, &["build", "--pip", "six==1.16.0"]).trim(), hash);
    assert_eq!(fs::read(&six).unwrap(), good);
    let (code, message) = refused(&server, &["verify", "00000000000000000000000000000000"]);
    assert!(code == Some(4) && message.contains("is not in the cache"), "{message}");
}

#[tokio::test]
async fn a_lock_gives_the_same_again() {
    let server = TestServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let hash = said(&server, &["build", "--pip", "six==1.15.0"]).trim().to_owned();
    let lock = folder.path().join("lock.json");
    said(&server, &["lock", &hash, "-o", lock.to_str().unwrap()]);
    let project = folder.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("train.py"), "import six; print(six.__version__)").unwrap();
    let submit = ["submit", project.to_str().unwrap(), "--script", "train.py", "--follow"];
    let output = server.cli(&[&submit[..], &["--lock", lock.to_str().unwrap()]].concat());
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "1.15.0\n"), "{}", text(&output.stderr));
    let runs: Value = serde_json::from_slice(&server.cli(&["runs", "--json", "-n", "1"]).stdout).unwrap();
    let run = runs[0]["runId"].as_str().unwrap();
    let output = server.cli(&[&submit[..], &["--same-environment-as", run]].concat());
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "1.15.0\n"), "{}", text(&output.stderr));
    fs::write(&lock, "{\"python\": \"3\", \"packages\": [], \"wheels\": []}").unwrap();
    let output = server.cli(&[&submit[..], &["--lock", lock.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("`wheels` is not known"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn what_cannot_be_built_says_why_and_exits_with_one() {
    let server = TestServer::start().await;
    let (code, message) = refused(&server, &["build", "--pip", "six==1.16.0", "--pip", "six==1.15.0"]);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("six==1.15.0") && message.contains("because:"), "{message}");
    let (code, message) = refused(&server, &["build", "--environment", "nobody-knows"]);
    assert_eq!(code, Some(4));
    assert!(message.contains("`nobody-knows` was not found"), "{message}");
    assert_eq!(refused(&server, &["build"]).0, Some(1));
    assert_eq!(refused(&server, &["build", "--lock", "x", "--pip", "six"]).0, Some(2));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("environment.yml");
    fs::write(&file, "dependencies:\n  - python=3.11\n  - 3.10\n").unwrap();
    let (code, message) = refused(&server, &["build", file.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(message.contains("line 3"), "{message}");
    let (code, message) = refused(&server, &["show", "no-such-thing"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("there is no run `no-such-thing`"), "{message}");
    let (code, _) = refused(&server, &["show", "00000000000000000000000000000000"]);
    assert_eq!(code, Some(4));
}

#[tokio::test]
async fn an_environment_moves_to_another_server_as_a_file() {
    let (here, there) = (TestServer::start().await, TestServer::start().await);
    let hash = said(&here, &["build", "--pip", "six==1.16.0"]).trim().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("six.tar");
    let on = |server: &TestServer, arguments: &[&str]| {
        let output = program().arg("--data-dir").arg(server.dir()).arg("environments").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, printed, problems) = on(&here, &["export", &hash[..10], "--downloads", "-o", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{printed}{problems}");
    assert!(printed.contains(&hash) && file.exists());
    let lock = folder.path().join("lock.json");
    let (code, printed, problems) = on(&there, &["import", file.to_str().unwrap(), "--lock", lock.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{printed}{problems}");
    let built = said(&there, &["build", lock.to_str().unwrap()]);
    assert_eq!(built.trim().len(), 32, "{built}");
    assert!(said(&there, &["show", built.trim()]).contains("six==1.16.0"));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let (code, _, problems) = on(&there, &["import", file.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(problems.contains("was not imported"), "{problems}");
    let (code, _, problems) = on(&here, &["export", "ffffffff", "-o", file.to_str().unwrap()]);
    assert!(code == Some(1) && problems.contains("begins with `ffffffff`"), "{problems}");
}

#[tokio::test]
async fn environments_of_another_workspace_are_not_seen() {
    let server = TestServer::start().await;
    let hash = said(&server, &["build", "--pip", "six==1.16.0"]).trim().to_owned();
    assert!(server.cli(&["workspace", "create", "second"]).status.success());
    let file = server.dir().join("other.json");
    let made = server.cli(&["--workspace", "second", "app", "create", "x", "--role", "Owner", "--write-client", file.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let as_other = |arguments: &[&str]| {
        let output = program().arg("--client").arg(&file).arg("environments").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, listed) = as_other(&["list"]);
    assert!(code == Some(0) && !listed.contains(&hash), "{listed}");
    for arguments in [["show", &hash], ["lock", &hash], ["pin", &hash]] {
        let (code, answer) = as_other(&arguments);
        assert_eq!(code, Some(4), "{arguments:?}: {answer}");
        assert!(!answer.contains("six"), "{answer}");
    }
    assert_eq!(as_other(&["list", "--all"]).0, Some(4));
    assert_eq!(as_other(&["prune"]).0, Some(4));
    assert_eq!(as_other(&["verify", &hash]).0, Some(4));
}

/// A package index whose only answer is a promise: the build waits until it is cancelled.
#[tokio::test]
async fn a_run_that_prepares_says_what_it_is_at() {
    let index = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = index.local_addr().unwrap();
    let server = TestServer::with_config(&format!(
        "[environments]\nindex_url = \"http://user:hunter2@{address}/simple\"\n[compute.cpu-cluster]\nslots = 1\n"
    ))
    .await;
    let run = server
        .submit("print(1)", |configuration| {
            configuration["Environment"] = json!({ "Python": { "CondaDependencies": { "dependencies": [{ "pip": ["slow"] }] } } });
        })
        .await;
    let dto = until("the run to say what it prepares", || async {
        let dto = server.run(&run).await;
        dto["preparation"]["message"].as_str().is_some().then_some(dto)
    })
    .await;
    assert_eq!(dto["status"], "Preparing");
    let message = dto["preparation"]["message"].as_str().unwrap().to_owned();
    assert!(!message.is_empty() && !dto.to_string().contains("hunter2"), "{dto:#}");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    assert!(details["preparation"]["what"].is_string(), "{details:#}");
    let attempts = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
    assert!(attempts[0]["preparation"]["what"].is_string(), "{attempts}");
    let shown = text(&server.cli(&["show", &run]).stdout);
    assert!(shown.contains("preparing    "), "{shown}");
    assert!(text(&server.cli(&["runs"]).stdout).contains("Preparing ("));
    server.cli(&["cancel", &run, "--wait"]);
    assert_eq!(server.run(&run).await.get("preparation"), None, "it is over");
    drop(index);
}
