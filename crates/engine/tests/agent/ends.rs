//! How code ends, by itself and by force, and what the server is told.

use serde_json::json;
use trainyard_wire::native::{AGENT_PROTOCOL, Command, Report};

use crate::stage::{Stage, until};

const DRIVER_LOG: &str = "azureml-logs/70_driver_log.txt";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_prepared_started_ended_and_collected_in_this_order() {
    let stage = Stage::new("echo 'Hello!'; echo 'to stderr' >&2").await;
    stage.run().await;
    let known = stage.world.known();
    assert_eq!(known.phases(), ["preparing", "environment_ready", "started", "ended", "collected"]);
    assert_eq!(known.cause(), json!({ "kind": "completed" }));
    assert_eq!(known.text(DRIVER_LOG), "Hello!\nto stderr\n");
    assert!(known.text("azureml-logs/20_image_build_log.txt").contains("the environment is ready"));
    assert!(known.logs.values().all(|log| log.sealed));
    assert_eq!(known.warnings(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_foreign_signals_are_told_apart() {
    let stage = Stage::new("exit 3").await;
    stage.run().await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "exit_code", "code": 3 }));
    let stage = Stage::new("kill -9 $$").await;
    stage.run().await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "signal", "signal": 9 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_line_exists() {
    let stage = Stage::new("true").await;
    stage.run().await;
    let known = stage.world.known();
    assert!(known.logs[DRIVER_LOG].sealed && known.logs[DRIVER_LOG].bytes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_is_with_the_server_while_the_code_still_runs() {
    let stage = Stage::new("echo one; until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo two").await;
    let mut agent = stage.agent();
    stage.world.until_log_holds(DRIVER_LOG, "one\n").await;
    assert!(!stage.world.known().phases().contains(&"ended"));
    stage.make_outside("go");
    stage.world.until_log_holds(DRIVER_LOG, "two\n").await;
    assert!(agent.ended().await.success());
}

/// Starts a process that ignores TERM in a session of its own, with an empty environment, and waits until it does.
const STUBBORN: &str = r#"
env -i OUTSIDE="$OUTSIDE" PATH="$PATH" setsid sh -c 'trap "" TERM; echo $$ >> $OUTSIDE/pids; touch $OUTSIDE/stubborn; while :; do sleep 0.2; done' &
until [ -e $OUTSIDE/stubborn ]; do sleep 0.02; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_ends_the_whole_tree_even_what_ignores_term_in_its_own_session() {
    let stage = Stage::new(&format!("{STUBBORN} trap 'echo terminated' TERM; touch $OUTSIDE/ready; while :; do sleep 0.05; done")).await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.until("the first question", |known| known.phases().contains(&"started")).await;
    stage.world.set(|known| (known.command, known.why) = (Some((Command::Cancel, "ada")), Some("too slow".into())));
    stage.world.until("the end", |known| known.phases().contains(&"ended")).await;
    assert_eq!(stage.alive(), Vec::<String>::new(), "nothing is left when the end is reported");
    assert_eq!(stage.world.known().cause(), json!({ "kind": "cancelled", "by": "ada", "why": "too slow" }));
    assert!(agent.ended().await.success());
    assert!(stage.world.known().text(DRIVER_LOG).contains("terminated"), "asked before killed, and its last words are kept");
    assert!(stage.folder.is_collected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_stops_the_code() {
    let mut stage = Stage::new("while :; do sleep 0.05; done").await;
    stage.define("max_run_duration_seconds", json!(1));
    stage.run().await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "time_limit", "limit_seconds": 1 }));
    assert_eq!(stage.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_counts_while_the_server_is_away() {
    let mut stage = Stage::new("touch $OUTSIDE/ready; while :; do sleep 0.05; done").await;
    stage.define("max_run_duration_seconds", json!(2));
    let mut agent = stage.agent();
    stage.world.until("started", |known| known.phases().contains(&"started")).await;
    stage.world.set(|known| known.refuse = Some(axum::http::StatusCode::BAD_GATEWAY));
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    assert_eq!(stage.alive(), Vec::<String>::new());
    assert!(!stage.world.known().phases().contains(&"ended"), "nobody could be told");
    stage.world.set(|known| known.refuse = None);
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().cause(), json!({ "kind": "time_limit", "limit_seconds": 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_the_code_leaves_behind_are_ended_with_a_warning() {
    let stage = Stage::new(&format!("{STUBBORN} (sleep 300 &) ; echo done")).await;
    stage.run().await;
    let known = stage.world.known();
    assert_eq!(known.cause(), json!({ "kind": "completed" }));
    assert!(known.warnings().iter().any(|warning| warning.contains("left") && warning.contains("behind")), "{:?}", known.warnings());
    assert!(known.reports.iter().any(|report| matches!(report, Report::Warning { .. })), "said at once");
    assert_eq!(stage.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_can_be_cancelled_while_it_is_prepared() {
    let stage = Stage::new("touch $OUTSIDE/ran").await;
    stage.world.set(|known| known.refuse_snapshot = Some(axum::http::StatusCode::SERVICE_UNAVAILABLE));
    let mut agent = stage.agent();
    stage.world.until("preparing", |known| known.phases().contains(&"preparing")).await;
    stage.world.set(|known| known.command = Some((Command::Cancel, "ada")));
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().cause(), json!({ "kind": "cancelled", "by": "ada" }));
    assert!(!stage.world.known().phases().contains(&"started"));
    assert_eq!(stage.read_outside("ran"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_given_up_is_stopped_and_writes_nothing_more() {
    let stage = Stage::new(&format!("{STUBBORN} touch $OUTSIDE/ready; while :; do echo line; sleep 0.05; done")).await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.until_log_holds(DRIVER_LOG, "line").await;
    stage.world.set(|known| known.refuse = Some(axum::http::StatusCode::GONE));
    let calls = stage.world.known().calls;
    assert!(agent.ended().await.success());
    assert_eq!(stage.alive(), Vec::<String>::new());
    let known = stage.world.known();
    assert_eq!(known.calls, calls);
    assert!(!known.phases().contains(&"ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_says_why() {
    let script = |path: &str| json!({ "script": { "path": path } });
    let words = |words: &[&str]| json!({ "command": { "words": words } });
    let table = [
        (script("gone.sh"), "start_failed", "the script `gone.sh` is not in the snapshot"),
        (words(&["no-such-program", "x"]), "start_failed", "`no-such-program` was not found on PATH"),
        (words(&["./main.sh", "x"]), "start_failed", "`./main.sh` may not be executed"),
    ];
    for (entry, kind, sentence) in table {
        let mut stage = Stage::new("true").await;
        stage.define("entry", entry);
        stage.run().await;
        let cause = stage.world.known().cause();
        assert_eq!(cause["kind"], kind);
        assert!(cause["message"].as_str().unwrap().contains(sentence), "{cause}");
        assert_eq!(cause["by_definition"], true);
        assert!(!stage.world.known().phases().contains(&"started"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_cannot_be_had_fails_the_attempt_with_the_reason_in_the_build_log() {
    let mut stage = Stage::new("true").await;
    stage.define("environment", json!({ "user_managed": { "interpreter_path": "/no/such/python" } }));
    stage.run().await;
    let known = stage.world.known();
    assert_eq!(known.cause()["kind"], "environment_failed");
    let log = known.text("azureml-logs/20_image_build_log.txt");
    assert!(log.contains(known.cause()["message"].as_str().unwrap()), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_used_fails_the_attempt() {
    let mut stage = Stage::new("true").await;
    stage.order.snapshot_sha256 = Some("0".repeat(64));
    stage.run().await;
    assert_eq!(stage.world.known().cause()["kind"], "snapshot_failed");

    let stage = Stage::new("true").await;
    stage.world.set(|known| known.refuse_snapshot = Some(axum::http::StatusCode::NOT_FOUND));
    stage.run().await;
    let cause = stage.world.known().cause();
    assert!(cause["message"].as_str().unwrap().contains("no snapshot here"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_another_protocol_is_refused_in_words() {
    let mut stage = Stage::new("true").await;
    stage.order.protocol = AGENT_PROTOCOL + 1;
    stage.run().await;
    let cause = stage.world.known().cause();
    assert_eq!(cause["kind"], "start_failed");
    assert!(cause["message"].as_str().unwrap().contains("of the agent's protocol"), "{cause}");
    assert_eq!(cause["by_definition"], false, "another try may find programs that fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_goes_through_the_shell_with_the_variables_of_the_run() {
    let mut stage = Stage::new("true").await;
    stage.define("entry", json!({ "command": { "words": ["echo $AZUREML_RUN_ID $AZUREML_RUN_TOKEN $# | tr 1 2"] } }));
    stage.run().await;
    assert_eq!(stage.world.known().text(DRIVER_LOG), "run-2 token-2 0\n");
    let agent_log = stage.agent_log();
    assert!(!agent_log.contains("token-1"), "no secret in the agent's log: {agent_log}");
}
