//! What happens when the agent, the server or the way between them fails: nothing is run twice, lost or left alive.

use axum::http::StatusCode;
use serde_json::json;
use trainyard_wire::native::Command;

use crate::{
    server::Server,
    stage::{Stage, until},
};

const DRIVER_LOG: &str = "azureml-logs/70_driver_log.txt";

/// Counts its start, and leaves a process in another session, one whose parent is gone, and one without the attempt's id.
const SPREADING: &str = r"
echo started >> $OUTSIDE/starts
setsid sleep 301 &
(sleep 302 &)
(env -i /bin/sleep 303 & echo $! >> $OUTSIDE/pids)
touch $OUTSIDE/ready
while :; do echo working; sleep 0.05; done
";

#[tokio::test(flavor = "multi_thread")]
async fn after_the_agent_was_killed_the_next_one_ends_what_it_left_and_says_that_it_is_lost() {
    let stage = Stage::new(SPREADING).await;
    let agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.until_log_holds(DRIVER_LOG, "working").await;
    agent.kill();
    assert!(!stage.folder.agent_is_alive());
    stage.run().await;
    assert_eq!(stage.alive(), Vec::<String>::new());
    let known = stage.world.known();
    assert_eq!(known.cause()["kind"], "agent_lost");
    assert_eq!(known.phases(), ["preparing", "environment_ready", "started", "ended", "collected"], "started once");
    assert_eq!(stage.read_outside("starts"), "started\n");
    assert!(known.logs[DRIVER_LOG].sealed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_cancels_leaves_the_cause_to_the_next_one() {
    let mut stage = Stage::new("trap '' TERM; touch $OUTSIDE/ready; while :; do sleep 0.05; done").await;
    stage.order.grace_seconds = 3600;
    let agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.set(|known| known.command = Some((Command::Cancel, "ada")));
    let started = stage.folder.path().join("started.json");
    until("the stop to be noted", || std::fs::read_to_string(&started).is_ok_and(|text| text.contains("cancelled"))).await;
    agent.kill();
    stage.order.grace_seconds = 1;
    stage.run().await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "cancelled", "by": "ada" }));
    assert_eq!(stage.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_prepares_is_followed_by_one_that_runs_the_code() {
    let stage = Stage::new("echo ran >> $OUTSIDE/starts").await;
    stage.world.set(|known| known.refuse_snapshot = Some(StatusCode::SERVICE_UNAVAILABLE));
    let agent = stage.agent();
    stage.world.until("preparing", |known| known.phases().contains(&"environment_ready")).await;
    agent.kill();
    stage.world.set(|known| known.refuse_snapshot = None);
    stage.run().await;
    assert_eq!(stage.read_outside("starts"), "ran\n");
    assert_eq!(stage.world.known().cause(), json!({ "kind": "completed" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_it_collects_is_followed_by_one_that_delivers_the_rest() {
    let stage = Stage::new("echo ran >> $OUTSIDE/starts; echo result > outputs/r.txt; echo last words; exit 4").await;
    stage.run().await;
    // As if it had died before the last steps: the server has half a log, and nothing of the outputs.
    std::fs::remove_file(stage.folder.path().join("collected")).unwrap();
    stage.world.set(|known| {
        known.reports.clear();
        known.outputs.clear();
        let log = known.logs.get_mut(DRIVER_LOG).unwrap();
        log.sealed = false;
        log.bytes.truncate(4);
    });
    stage.run().await;
    let known = stage.world.known();
    assert_eq!(known.phases(), ["ended", "collected"]);
    assert_eq!(known.cause(), json!({ "kind": "exit_code", "code": 4 }));
    assert_eq!(known.text(DRIVER_LOG), "last words\n");
    assert!(known.logs.values().all(|log| log.sealed));
    assert_eq!(known.outputs["outputs/r.txt"], b"result\n");
    assert_eq!(stage.read_outside("starts"), "ran\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_leaves_at_once_and_changes_nothing() {
    let stage = Stage::new("touch $OUTSIDE/ready; until [ -e $OUTSIDE/go ]; do sleep 0.02; done").await;
    let mut first = stage.agent();
    stage.until_outside("ready").await;
    assert!(stage.agent().ended().await.success());
    assert!(stage.folder.agent_is_alive());
    stage.make_outside("go");
    assert!(first.ended().await.success());
    assert_eq!(stage.world.known().phases(), ["preparing", "environment_ready", "started", "ended", "collected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_elsewhere_gets_everything_and_the_code_does_not_notice() {
    let mut stage = Stage::new("for i in 1 2 3 4 5 6; do echo line $i; until [ -e $OUTSIDE/$i ]; do sleep 0.02; done; done").await;
    let mut agent = stage.agent();
    stage.world.until_log_holds(DRIVER_LOG, "line 1\n").await;
    stage.server.take().unwrap().stop().await;
    for step in ["1", "2", "3"] {
        stage.make_outside(step);
    }
    let driver_log = stage.folder.driver_log();
    until("the code to go on", || std::fs::read_to_string(&driver_log).is_ok_and(|text| text.contains("line 4"))).await;
    // Another address and another token, as after a restart of the machine's only server.
    let server = Server::start(&stage.world, &stage.identity).await;
    stage.world.set(|known| known.token = "token-2".into());
    stage.order.endpoint = server.endpoint.clone();
    stage.order.token = "token-2".into();
    stage.order.token_expires_on += 1;
    stage.folder.write_order(&stage.order).unwrap();
    stage.server = Some(server);
    stage.world.until_log_holds(DRIVER_LOG, "line 4\n").await;
    for step in ["4", "5", "6"] {
        stage.make_outside(step);
    }
    assert!(agent.ended().await.success());
    let known = stage.world.known();
    assert_eq!(known.text(DRIVER_LOG), "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n");
    assert_eq!(known.phases(), ["preparing", "environment_ready", "started", "ended", "collected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_ends_while_the_server_is_away_is_reported_when_it_is_back() {
    let stage = Stage::new("touch $OUTSIDE/ready; until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo bye; exit 2").await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.set(|known| known.refuse = Some(StatusCode::BAD_GATEWAY));
    stage.make_outside("go");
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    stage.world.set(|known| known.refuse = None);
    assert!(agent.ended().await.success());
    let known = stage.world.known();
    assert_eq!(known.cause(), json!({ "kind": "exit_code", "code": 2 }));
    assert_eq!(known.text(DRIVER_LOG), "bye\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_stopped_through_its_folder_while_the_server_cannot_be_reached() {
    let stage = Stage::new("touch $OUTSIDE/ready; while :; do sleep 0.05; done").await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.set(|known| known.refuse = Some(StatusCode::SERVICE_UNAVAILABLE));
    stage.folder.request_stop("ada", Some("too slow")).unwrap();
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    assert_eq!(stage.alive(), Vec::<String>::new());
    stage.world.set(|known| known.refuse = None);
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().cause(), json!({ "kind": "cancelled", "by": "ada", "why": "too slow" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn code_whose_notes_are_gone_is_not_started_again() {
    let mut stage = Stage::new("touch $OUTSIDE/ran").await;
    stage.order.started_at = Some(1_700_000_000);
    stage.run().await;
    assert_eq!(stage.world.known().cause()["kind"], "agent_lost");
    assert!(!stage.outside.path().join("ran").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_end_stops_the_code_and_says_so() {
    let stage = Stage::new("touch $OUTSIDE/ready; while :; do sleep 0.05; done").await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.until("started", |known| known.phases().contains(&"started")).await;
    agent.terminate();
    assert!(agent.ended().await.success());
    assert_eq!(stage.alive(), Vec::<String>::new());
    assert_eq!(stage.world.known().cause()["kind"], "preempted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_end_before_the_start_leaves_the_work_to_the_next_one() {
    let stage = Stage::new("true").await;
    stage.world.set(|known| known.refuse_snapshot = Some(StatusCode::SERVICE_UNAVAILABLE));
    let mut agent = stage.agent();
    stage.world.until("preparing", |known| known.phases().contains(&"environment_ready")).await;
    agent.terminate();
    assert!(agent.ended().await.success());
    assert_eq!(stage.folder.exit_record().unwrap(), None);
    stage.world.set(|known| known.refuse_snapshot = None);
    stage.run().await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "completed" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_some_of_a_log_or_has_other_bytes_ends_with_the_log_as_it_was() {
    for damage in [b"".as_slice(), b"one", b"other bytes, and more of them than there were"] {
        let stage = Stage::new("echo one line; until [ -e $OUTSIDE/go ]; do sleep 0.02; done").await;
        let mut agent = stage.agent();
        stage.world.until_log_holds(DRIVER_LOG, "one line\n").await;
        stage.world.set(|known| known.logs.get_mut(DRIVER_LOG).unwrap().bytes = damage.to_vec());
        stage.make_outside("go");
        assert!(agent.ended().await.success());
        let known = stage.world.known();
        assert_eq!(known.text(DRIVER_LOG), "one line\n");
        assert!(known.logs[DRIVER_LOG].sealed);
        assert_eq!(known.warnings(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_replaced_before_it_ends() {
    let mut stage = Stage::new("until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo bye").await;
    stage.order.token_expires_on = jiff::Timestamp::now().as_second() + 7;
    stage.world.set(|known| known.next_token = Some("token-2".into()));
    let mut agent = stage.agent();
    let world = std::sync::Arc::clone(&stage.world);
    until("the new token", || world.known().token == "token-2").await;
    stage.make_outside("go");
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().text(DRIVER_LOG), "bye\n");
    assert!(!stage.agent_log().contains("token-"), "{}", stage.agent_log());
}
