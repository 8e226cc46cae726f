//! What is left of an attempt that was given up: nothing, even of one that had been stopped or comes back later.

use axum::http::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use trainyard_core::ids::AttemptId;

use crate::stage::{Stage, until};

/// Ignores TERM, and leaves a process that does so, too, without the attempt's id, in a session of its own.
const STUBBORN: &str = r#"
trap '' TERM
env -i OUTSIDE="$OUTSIDE" PATH="$PATH" setsid sh -c 'trap "" TERM; echo $$ >> $OUTSIDE/pids; touch $OUTSIDE/stubborn; while :; do sleep 0.2; done' &
until [ -e $OUTSIDE/stubborn ]; do sleep 0.02; done
echo started >> $OUTSIDE/starts
touch $OUTSIDE/ready
while :; do echo line; sleep 0.05; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_can_not_hear_the_server_finds_the_fence_and_ends_everything_without_waiting() {
    let mut stage = Stage::new(STUBBORN).await;
    stage.order.grace_seconds = 3600;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.server.take().unwrap().stop().await;
    stage.folder.fence().unwrap();
    assert!(agent.ended().await.success());
    assert_eq!(stage.alive(), Vec::<String>::new());
    assert!(!stage.world.known().phases().contains(&"ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fence_ends_a_cancel_that_takes_its_time() {
    let mut stage = Stage::new(STUBBORN).await;
    stage.order.grace_seconds = 3600;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.folder.request_stop("ada", None).unwrap();
    let started = stage.folder.path().join("started.json");
    until("the stop to be noted", || std::fs::read_to_string(&started).is_ok_and(|text| text.contains("cancelled"))).await;
    stage.folder.fence().unwrap();
    assert!(agent.ended().await.success());
    assert_eq!(stage.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_started_behind_the_fence_runs_nothing_and_asks_for_nothing() {
    let stage = Stage::new("touch $OUTSIDE/ran").await;
    stage.folder.create().unwrap();
    stage.folder.fence().unwrap();
    let mut agent = stage.agent();
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().calls, 0);
    assert!(!stage.outside.path().join("ran").exists());
    assert!(!stage.folder.is_collected());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_and_all_its_processes_are_killed_from_outside() {
    let stage = Stage::new(STUBBORN).await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    assert_eq!(stage.folder.agent_pid(), Some(agent.pid()));
    agent.signal(Signal::STOP);
    stage.folder.fence().unwrap();
    let (folder, attempt) = (stage.folder.clone(), AttemptId(stage.order.attempt));
    tokio::task::spawn_blocking(move || trainyard_engine::agent::kill(&folder, attempt)).await.unwrap();
    assert!(!stage.folder.agent_is_alive());
    assert_eq!(stage.alive(), Vec::<String>::new());
    assert!(!agent.ended().await.success());
    // Whatever starts it again: it is not wanted any more.
    assert!(stage.agent().ended().await.success());
    assert_eq!(stage.read_outside("starts"), "started\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_agent_left_is_killed_from_outside() {
    let stage = Stage::new("setsid sleep 304 & touch $OUTSIDE/ready; wait").await;
    let agent = stage.agent();
    stage.until_outside("ready").await;
    agent.kill();
    let (folder, attempt) = (stage.folder.clone(), AttemptId(stage.order.attempt));
    tokio::task::spawn_blocking(move || trainyard_engine::agent::kill(&folder, attempt)).await.unwrap();
    assert_eq!(stage.alive(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_ran_when_the_machine_was_restarted_is_lost_with_its_machine() {
    let stage = Stage::new("echo started >> $OUTSIDE/starts; touch $OUTSIDE/ready; while :; do sleep 0.05; done").await;
    let agent = stage.agent();
    stage.until_outside("ready").await;
    let path = stage.folder.path().join("started.json");
    until("the process to be noted", || std::fs::read_to_string(&path).is_ok_and(|text| text.contains("pid"))).await;
    agent.kill();
    let mut notes: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(notes["boot_id"].is_string(), "{notes}");
    notes["boot_id"] = json!("00000000-0000-0000-0000-000000000000");
    // Before the restart this was the code's number; now it is this test's, and must be left alone.
    let own = std::process::id();
    notes["main"] = json!({ "pid": own, "start_ticks": 1 });
    std::fs::write(&path, serde_json::to_vec(&notes).unwrap()).unwrap();
    stage.run().await;
    let cause = stage.world.known().cause();
    assert_eq!(cause["kind"], "node_lost", "{cause}");
    assert_eq!(stage.read_outside("starts"), "started\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_the_server_refuses_when_it_is_back_is_ended_without_grace() {
    let mut stage = Stage::new(STUBBORN).await;
    stage.order.grace_seconds = 3600;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.set(|known| known.refuse = Some(StatusCode::SERVICE_UNAVAILABLE));
    stage.world.set(|known| known.refuse = Some(StatusCode::FORBIDDEN));
    assert!(agent.ended().await.success());
    assert_eq!(stage.alive(), Vec::<String>::new());
}
