//! Runs in containers: real ones, in the image of `scripts/test-image`, of Podman or of the engine that `TRAINYARD_TEST_CONTAINERS` names. Where they
//! cannot be had the tests say so by name and pass.

use std::{process::Command, time::Duration};

use serde_json::json;

use crate::stage::{Stage, until};

const IMAGE: &str = "localhost/trainyard-test:latest";

#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

/// `podman` or `docker`: what the tests need of both has the same words.
fn engine() -> String {
    std::env::var("TRAINYARD_TEST_CONTAINERS").unwrap_or_else(|_| "podman".to_owned())
}

fn ask(words: &[&str]) -> Option<String> {
    let output = Command::new(engine()).args(words).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A stage whose code runs in a container; `None`, with a message, where that is not possible.
async fn contained(test: &str, script: &str) -> Option<Stage> {
    if ask(&["image", "inspect", IMAGE]).is_none() {
        skip(test, &format!("{} with the image {IMAGE} is not there; scripts/test-image makes it", engine()));
        return None;
    }
    let mut stage = Stage::new(script).await;
    let outside = stage.outside.path().to_str().unwrap().to_owned();
    stage.define("container", json!({ "image": { "named": { "reference": IMAGE } }, "shm_bytes": 1 << 20, "shared_volumes": true }));
    let has_runc = Command::new("runc").arg("--version").output().is_ok_and(|output| output.status.success());
    // What containers need on machines with old control groups and low limits; it does no harm elsewhere.
    stage.order.containers = json!({
        "engine": engine(), "runtime": if has_runc { Some("runc") } else { None },
        "ulimits": ["nofile=1024:1024", "nproc=1000:1000"], "volumes": [format!("{outside}:{outside}")],
    });
    Some(stage)
}

/// Containers of the attempt, in whatever state.
fn containers(stage: &Stage) -> String {
    let filter = format!("name=trainyard-{}", stage.order.attempt);
    ask(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}} {{.Status}}"]).unwrap_or_default()
}

fn log(stage: &Stage) -> String {
    std::fs::read_to_string(stage.folder.driver_log()).unwrap_or_default()
}

fn build_log(stage: &Stage) -> String {
    std::fs::read_to_string(stage.folder.build_log()).unwrap_or_default()
}

fn cause(stage: &Stage) -> serde_json::Value {
    let record = stage.folder.exit_record().unwrap();
    serde_json::to_value(record.unwrap_or_else(|| panic!("no end; {}\n{}", stage.agent_log(), build_log(stage))).cause).unwrap()
}

#[tokio::test]
async fn the_code_runs_in_the_image_with_its_files_variables_and_logs_where_they_belong() {
    const TEST: &str = "the_code_runs_in_the_image_with_its_files_variables_and_logs_where_they_belong";
    let script = r#"
        echo "in the image: $IN_THE_IMAGE; token: ${AZUREML_RUN_TOKEN:+set}; run: $AZUREML_RUN_ID; quoted: $QUOTED"
        pwd; ls main.sh
        echo done >outputs/result.txt
        stat -c '%u' outputs/result.txt
        echo oops >&2
        test -r "$SSL_CERT_FILE" && echo bundle
        exit 3
    "#;
    let Some(mut stage) = contained(TEST, script).await else { return };
    stage.order.definition["environment_variables"]["QUOTED"] = json!("a 'b'\n\"c\" $d");
    stage.run().await;
    let log = log(&stage);
    assert!(log.contains("in the image: yes; token: set; run: run-1; quoted: a 'b'\n\"c\" $d"), "{log}\n{}", build_log(&stage));
    assert!(log.contains(stage.folder.work().to_str().unwrap()) && log.contains("oops") && log.contains("bundle"), "{log}");
    assert_eq!(cause(&stage), json!({ "kind": "exit_code", "code": 3 }));
    let owner = rustix::process::getuid().as_raw();
    let metadata = std::fs::metadata(stage.folder.work().join("outputs/result.txt")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), owner, "files belong to the agent's user");
    assert_eq!(containers(&stage), "", "removed once it was looked at");
}

#[tokio::test]
async fn no_secret_is_on_a_command_line() {
    let Some(mut stage) =
        contained("no_secret_is_on_a_command_line", "touch $OUTSIDE/up; while [ ! -e $OUTSIDE/go ]; do sleep 0.1; done").await
    else {
        return;
    };
    stage.order.definition["environment_variables"]["MY_KEY"] = json!("super-secret-value");
    let mut agent = stage.agent();
    stage.until_outside("up").await;
    let lines =
        std::fs::read_dir("/proc").unwrap().flatten().map(|process| std::fs::read(process.path().join("cmdline")).unwrap_or_default());
    let attempt = stage.order.attempt.to_string();
    let ours: Vec<String> = lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(&attempt)).collect();
    assert!(ours.iter().any(|line| line.contains("AZUREML_RUN_TOKEN")), "the engine's client is among them: {ours:?}");
    for line in ours {
        assert!(!line.contains("super-secret-value") && !line.contains("token-1"), "{line}");
    }
    stage.make_outside("go");
    assert!(agent.ended().await.success());
    assert_eq!(cause(&stage), json!({ "kind": "completed" }));
}

#[tokio::test]
async fn a_cancel_gives_the_code_its_time_and_leaves_no_container() {
    const TEST: &str = "a_cancel_gives_the_code_its_time_and_leaves_no_container";
    let script = "trap 'echo last words; touch $OUTSIDE/asked; exit 0' TERM; touch $OUTSIDE/up; while :; do sleep 0.1; done";
    let Some(mut stage) = contained(TEST, script).await else { return };
    stage.order.grace_seconds = 30;
    let mut agent = stage.agent();
    stage.until_outside("up").await;
    stage.folder.request_stop("ada", None).unwrap();
    assert!(agent.ended().await.success());
    assert_eq!(cause(&stage)["kind"], "cancelled");
    assert!(log(&stage).contains("last words"), "{}", log(&stage));
    assert_eq!((containers(&stage), stage.alive()), (String::new(), Vec::new()));
}

#[tokio::test]
async fn code_that_ignores_a_cancel_and_all_its_children_are_killed() {
    const TEST: &str = "code_that_ignores_a_cancel_and_all_its_children_are_killed";
    let script = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & touch $OUTSIDE/up; while :; do sleep 0.1; done";
    let Some(stage) = contained(TEST, script).await else { return };
    let mut agent = stage.agent();
    stage.until_outside("up").await;
    stage.folder.request_stop("ada", None).unwrap();
    assert!(agent.ended().await.success());
    assert_eq!(cause(&stage)["kind"], "cancelled");
    assert_eq!((containers(&stage), stage.alive()), (String::new(), Vec::new()));
}

#[tokio::test]
async fn a_time_limit_ends_a_container() {
    let Some(mut stage) = contained("a_time_limit_ends_a_container", "while :; do sleep 0.1; done").await else { return };
    stage.define("max_run_duration_seconds", json!(1));
    stage.run().await;
    assert_eq!(cause(&stage), json!({ "kind": "time_limit", "limit_seconds": 1 }));
    assert_eq!(containers(&stage), "");
}

#[tokio::test]
async fn the_container_of_a_killed_agent_is_ended_by_the_next_and_the_code_is_not_started_again() {
    const TEST: &str = "the_container_of_a_killed_agent_is_ended_by_the_next_and_the_code_is_not_started_again";
    let Some(stage) = contained(TEST, "echo once >>$OUTSIDE/starts; touch $OUTSIDE/up; while :; do sleep 0.1; done").await else { return };
    let agent = stage.agent();
    stage.until_outside("up").await;
    agent.kill();
    assert_ne!(containers(&stage), "", "the engine's monitor outlives the agent");
    stage.run().await;
    assert_eq!(cause(&stage)["kind"], "agent_lost");
    assert_eq!((containers(&stage), stage.alive()), (String::new(), Vec::new()));
    assert_eq!(stage.read_outside("starts"), "once\n");
}

#[tokio::test]
async fn a_fence_ends_the_container_of_an_agent_that_is_gone() {
    const TEST: &str = "a_fence_ends_the_container_of_an_agent_that_is_gone";
    let Some(stage) = contained(TEST, "touch $OUTSIDE/up; while :; do sleep 0.1; done").await else { return };
    let agent = stage.agent();
    stage.until_outside("up").await;
    agent.kill();
    stage.folder.fence().unwrap();
    let (folder, attempt) = (stage.folder.clone(), trainyard_core::ids::AttemptId(stage.order.attempt));
    tokio::task::spawn_blocking(move || trainyard_engine::agent::kill(&folder, attempt)).await.unwrap();
    assert_eq!((containers(&stage), stage.alive()), (String::new(), Vec::new()));
}

#[tokio::test]
async fn memory_that_runs_out_in_a_container_is_told_from_a_kill() {
    const TEST: &str = "memory_that_runs_out_in_a_container_is_told_from_a_kill";
    let Some(mut stage) = contained(TEST, "x = bytearray(300 << 20)").await else { return };
    stage.define("environment", json!({ "user_managed": { "interpreter_path": "python3" } }));
    stage.order.definition["container"]["arguments"] = json!(["--memory", "40m"]);
    stage.run().await;
    if log(&stage).contains("cgroup") {
        return skip(TEST, &format!("control groups cannot be made here: {}", log(&stage)));
    }
    assert_eq!(cause(&stage)["kind"], "out_of_memory", "{}\n{}", log(&stage), stage.agent_log());
    let Some(mut stage) = contained(TEST, "kill -9 $$").await else { return };
    stage.order.grace_seconds = 1;
    stage.run().await;
    assert_eq!(cause(&stage), json!({ "kind": "signal", "signal": 9 }));
}

#[tokio::test]
async fn a_container_that_cannot_be_started_says_why() {
    const TEST: &str = "a_container_that_cannot_be_started_says_why";
    let Some(mut stage) = contained(TEST, "true").await else { return };
    stage.order.definition["container"]["arguments"] = json!(["--bogus=1"]);
    stage.run().await;
    let bogus = cause(&stage);
    assert_eq!((&bogus["kind"], &bogus["by_definition"]), (&json!("start_failed"), &json!(true)));
    assert!(bogus["message"].as_str().unwrap().contains("unknown flag: --bogus"), "{bogus}");

    let Some(mut stage) = contained(TEST, "true").await else { return };
    stage.define("entry", json!({ "command": { "words": ["no-such-program", "x"] } }));
    stage.run().await;
    let missing = cause(&stage);
    assert_eq!((&missing["kind"], &missing["by_definition"]), (&json!("start_failed"), &json!(true)), "{missing} {}", log(&stage));
}

#[tokio::test]
async fn without_an_engine_the_environment_fails_with_what_was_looked_for() {
    let mut stage = Stage::new("true").await;
    stage.define("container", json!({ "image": { "named": { "reference": IMAGE } } }));
    stage.order.containers = json!({ "engine": "apptainer" });
    if Command::new("apptainer").arg("--version").output().is_ok() {
        return skip("without_an_engine_the_environment_fails_with_what_was_looked_for", "Apptainer is installed here");
    }
    stage.run().await;
    let cause = cause(&stage);
    assert_eq!(cause["kind"], "environment_failed");
    assert!(
        cause["message"].as_str().unwrap().contains("no container engine answers on this machine: apptainer or singularity is not on PATH"),
        "{cause}"
    );
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_prepares_leaves_nothing_that_stops_the_next() {
    const TEST: &str = "an_agent_that_is_killed_while_it_prepares_leaves_nothing_that_stops_the_next";
    let Some(mut stage) = contained(TEST, "echo ran").await else { return };
    let text = format!("FROM {IMAGE}\nRUN echo {} && sleep 3\n", uuid::Uuid::new_v4());
    stage.order.definition["container"]["image"] = json!({ "dockerfile": { "text": text } });
    let agent = stage.agent();
    until("the build", || ["STEP 2/2", "Step 2/2", "[2/2]"].iter().any(|step| build_log(&stage).contains(step))).await;
    agent.kill();
    tokio::time::timeout(Duration::from_secs(120), stage.run()).await.unwrap();
    assert_eq!(cause(&stage), json!({ "kind": "completed" }), "{}", build_log(&stage));
    assert!(log(&stage).contains("ran"));
}
