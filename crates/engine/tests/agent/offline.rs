//! A server that is away for long: the code goes on, everything waits, and nothing but a plain word makes the agent give up.

use axum::http::StatusCode;
use trainyard_wire::native::Report;

use crate::stage::{Stage, until};

const DRIVER_LOG: &str = "azureml-logs/70_driver_log.txt";

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_longer_than_the_tokens_life_ends_with_the_token_of_a_new_order() {
    let mut stage = Stage::new("echo one; until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo two; echo r > outputs/r").await;
    stage.order.token_expires_on = jiff::Timestamp::now().as_second() + 3600;
    let mut agent = stage.agent();
    stage.world.until_log_holds(DRIVER_LOG, "one\n").await;
    // Back after the token has ended: nothing the agent has is good for anything, not even for asking for a new one.
    stage.world.set(|known| known.token = "token-2".into());
    stage.make_outside("go");
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    let refused = stage.world.known().unauthorized;
    let world = std::sync::Arc::clone(&stage.world);
    until("more refusals", || world.known().unauthorized > refused + 10).await;
    assert!(stage.folder.agent_is_alive(), "{}", stage.agent_log());
    // It may well end earlier than the one before: the server may give them for a shorter time now.
    stage.order.token = "token-2".into();
    stage.order.token_expires_on -= 1800;
    stage.folder.write_order(&stage.order).unwrap();
    assert!(agent.ended().await.success());
    let known = stage.world.known();
    assert_eq!(known.text(DRIVER_LOG), "one\ntwo\n");
    assert_eq!(known.outputs["outputs/r"], b"r\n");
    assert_eq!(known.phases(), ["preparing", "environment_ready", "started", "ended", "collected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_refused_for_its_version_goes_on_and_says_so_once() {
    let stage = Stage::new("touch $OUTSIDE/ready; until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo bye").await;
    let mut agent = stage.agent();
    stage.until_outside("ready").await;
    stage.world.set(|known| known.refuse = Some(StatusCode::UPGRADE_REQUIRED));
    stage.make_outside("go");
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    until("a line about it", || stage.agent_log().contains("does not take this agent's version")).await;
    stage.world.set(|known| known.refuse = None);
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().text(DRIVER_LOG), "bye\n");
    assert_eq!(stage.agent_log().matches("does not take this agent's version").count(), 1, "{}", stage.agent_log());
    assert_eq!(stage.world.known().protocols, [Some("1".to_owned())].into(), "every call names the version");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_that_it_is_alive_as_often_as_its_order_says() {
    let mut stage = Stage::new("until [ -e $OUTSIDE/go ]; do sleep 0.02; done").await;
    stage.order.heartbeat_seconds = 1;
    let mut agent = stage.agent();
    let beats = |reports: &[Report]| reports.iter().filter(|report| matches!(report, Report::Alive)).count();
    let began = std::time::Instant::now();
    stage.world.until("three heartbeats", |known| beats(&known.reports) >= 3).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(25), "not as seldom as without an order");
    stage.make_outside("go");
    assert!(agent.ended().await.success());
}

/// Writes the lines from `$1` to `$2`, each with its number.
const LINES: &str = r#"lines() { awk -v from=$1 -v to=$2 'BEGIN { for (i = from; i < to; i++) printf "line %07d\n", i }'; }"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_waits_too_long_loses_its_middle_and_says_so() {
    let script = format!(
        "{LINES}\nlines 0 1000; touch $OUTSIDE/one; until [ -e $OUTSIDE/go ]; do sleep 0.02; done\n\
         lines 1000 400000; echo result > outputs/r; touch $OUTSIDE/two; until [ -e $OUTSIDE/end ]; do sleep 0.02; done; echo last words"
    );
    let mut stage = Stage::new(&script).await;
    stage.order.spool_limit_bytes = 1 << 20;
    let mut agent = stage.agent();
    stage.world.until_log_holds(DRIVER_LOG, "line 0000999\n").await;
    stage.world.set(|known| known.refuse = Some(StatusCode::SERVICE_UNAVAILABLE));
    stage.make_outside("go");
    stage.until_outside("two").await;
    let cuts = stage.folder.path().join("cuts.json");
    until("the cut", || cuts.exists()).await;
    let allocated = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(stage.folder.driver_log()).unwrap()) * 512;
    until("the disk to get its room back", || allocated() < 2 << 20).await;
    stage.make_outside("end");
    let folder = stage.folder.clone();
    until("the exit record", || folder.exit_record().unwrap().is_some()).await;
    stage.world.set(|known| known.refuse = None);
    assert!(agent.ended().await.success());

    let known = stage.world.known();
    let text = known.text(DRIVER_LOG);
    assert!(known.logs[DRIVER_LOG].sealed);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("[trainyard: ")).expect("a line for the cut");
    assert!(
        lines[at]
            .ends_with("bytes of this log were cut here: the server could not be reached and spool_limit_bytes = 1048576 was exceeded]")
    );
    let number = |line: &str| line.strip_prefix("line ").unwrap().parse::<usize>().unwrap();
    assert!(lines[..at].iter().enumerate().all(|(index, line)| number(line) == index), "the head is whole");
    assert!(at * 13 >= 1000 * 13 + (1 << 19) - 5000, "{at} lines before the cut");
    let tail = &lines[at + 1..lines.len() - 1];
    assert!(tail.iter().rev().enumerate().all(|(index, line)| number(line) == 399_999 - index), "the tail is whole");
    assert!(tail.len() * 13 >= (1 << 19) - 5000, "{} lines behind the cut", tail.len());
    assert_eq!(lines.last(), Some(&"last words"));
    assert_eq!(known.outputs["outputs/r"], b"result\n", "outputs are never cut");
    assert!(
        known.warnings().iter().any(|warning| warning.contains("`azureml-logs/70_driver_log.txt` were cut out")),
        "{:?}",
        known.warnings()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_after_a_cut_is_followed_by_one_that_delivers_the_same_log() {
    let script = format!("{LINES}\nlines 0 200000; touch $OUTSIDE/ready; while :; do sleep 0.05; done");
    let mut stage = Stage::new(&script).await;
    stage.order.spool_limit_bytes = 100_000;
    stage.world.set(|known| known.refuse_logs = Some(StatusCode::INSUFFICIENT_STORAGE));
    let agent = stage.agent();
    stage.until_outside("ready").await;
    let cuts = stage.folder.path().join("cuts.json");
    until("the cut", || cuts.exists()).await;
    // Some of it arrives, cut line and all, and then the agent dies.
    stage.world.set(|known| known.refuse_logs = None);
    stage.world.until_log_holds(DRIVER_LOG, "[trainyard: ").await;
    let before = stage.world.known().text(DRIVER_LOG);
    agent.kill();
    stage.run().await;
    let known = stage.world.known();
    assert_eq!(known.cause()["kind"], "agent_lost");
    let text = known.text(DRIVER_LOG);
    assert!(text.starts_with(&before) && text.ends_with("line 0199999\n") && !text.contains('\0'));
    assert_eq!(text.matches("[trainyard: ").count(), before.matches("[trainyard: ").count());
    assert!(known.logs[DRIVER_LOG].sealed);
}
