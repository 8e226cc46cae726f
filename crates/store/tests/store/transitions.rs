use serde_json::json;
use trainyard_core::{
    ids::AttemptId,
    run::{Cause, Desired, Ownership, Retries, RetryPolicy, RunEvent, RunState},
};
use trainyard_store::{artifacts::Artifact, attempts::AttemptState, page::PageRequest, server_settings::Drained, transitions::Applied};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NO_RETRY, NOW, run_id},
};

fn attempt_id() -> AttemptId {
    AttemptId(Uuid::new_v4())
}

pub(crate) async fn a_managed_run_goes_through_its_whole_life(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let id = attempt_id();
    let admitted = bench.change(&run, RunEvent::Admitted { attempt: id }, NOW + 1).await;
    assert_eq!((admitted.state, admitted.attempt, admitted.version), (RunState::Starting, Some(id), 1));
    let attempt = bench.store.attempt(id).await.expect("a read").expect("there");
    assert_eq!((attempt.number, attempt.state, attempt.intended_us), (1, AttemptState::Intended, NOW + 1));
    assert_eq!((attempt.target.as_str(), &attempt.run, attempt.workspace), ("cpu-cluster", &run.id, run.workspace));
    bench.store.set_attempt_node(id, "node-7").await.expect("noted");
    assert!(bench.store.set_attempt_node(attempt_id(), "node-7").await.is_err());

    bench.change(&run, RunEvent::Preparing { attempt: id }, NOW + 2).await;
    let running = bench.change(&run, RunEvent::Started { attempt: id }, NOW + 3).await;
    assert_eq!((running.state, running.started_us, running.ended_us), (RunState::Running, Some(NOW + 3), None));
    let ended = bench.change(&run, RunEvent::Ended { attempt: id, cause: Cause::Completed }, NOW + 4).await;
    assert_eq!((ended.state, ended.cause, ended.attempt), (RunState::Finalizing, Some(Cause::Completed), Some(id)));
    let attempt = bench.store.attempt(id).await.expect("a read").expect("there");
    assert_eq!((attempt.state, attempt.ended_us, attempt.cause), (AttemptState::Ended, Some(NOW + 4), Some(Cause::Completed)));
    let done = bench.change(&run, RunEvent::Finalized { attempt: id, policy: NO_RETRY }, NOW + 5).await;
    assert_eq!((done.state, done.attempt, done.ended_us, done.version), (RunState::Completed, None, Some(NOW + 5), 5));
    assert_eq!(done.error, None);
    // What was answered is what is stored.
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(done));
    let attempts = bench.store.attempts(run.workspace, &run.id).await.expect("a list");
    assert_eq!((attempts.len(), attempts[0].started_us), (1, Some(NOW + 3)));
    assert_eq!(
        (attempts[0].state, attempts[0].ended_us, attempts[0].node.as_deref()),
        (AttemptState::Closed, Some(NOW + 4), Some("node-7"))
    );
    let names: Vec<String> = bench
        .store
        .events(run.workspace, &run.id, 0, 100)
        .await
        .expect("events")
        .into_iter()
        .map(|event| event.name.replace("Microsoft.MachineLearning.Run.", ""))
        .collect();
    assert_eq!(names, ["Queued", "Starting", "Preparing", "Start", "Finalizing", "Completed"]);
}

pub(crate) async fn a_failed_run_says_why_in_its_error(bench: &Bench) {
    let place = bench.place().await;
    let causes = [("users", Cause::ExitCode { code: 2 }, "UserError"), ("ours", Cause::AgentLost { message: "m".into() }, "ServiceError")];
    for (id, cause, code) in causes {
        let run = bench.store_run(place.run(id)).await;
        let failed = bench.execute(&run, cause.clone()).await;
        assert_eq!(failed.state, RunState::Failed);
        assert_eq!(
            failed.error,
            Some(json!({ "error": { "code": code, "message": cause.sentence(), "innerError": { "code": cause.label() } } }))
        );
        assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(failed));
    }
}

pub(crate) async fn a_client_error_is_kept_when_the_run_fails(bench: &Bench) {
    let place = bench.place().await;
    let external = place.run_with("one", |run| {
        run.ownership = Ownership::External;
        run.state = RunState::NotStarted;
    });
    let run = bench.store_run(external).await;
    bench.change(&run, RunEvent::ClientStarted, NOW + 1).await;
    let error = json!({ "error": { "code": "UserError", "message": "their words" } });
    bench.store.set_run_error(run.workspace, &run.id, &error).await.expect("set");
    let failed = bench.change(&run, RunEvent::ClientEnded { cause: Cause::Reported { message: "failed".into() } }, NOW + 2).await;
    assert_eq!((failed.state, failed.error), (RunState::Failed, Some(error)));
}

pub(crate) async fn a_fenced_report_changes_nothing(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let admitted = bench.change(&run, RunEvent::Admitted { attempt: attempt_id() }, NOW + 1).await;
    let stranger = RunEvent::Started { attempt: attempt_id() };
    assert_eq!(bench.store.apply(run.workspace, &run.id, &stranger, NOW + 2).await.expect("an answer"), Applied::Fenced);
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(admitted));
    assert_eq!(bench.store.events(run.workspace, &run.id, 0, 10).await.expect("events").len(), 2);
}

pub(crate) async fn refusals_are_told_apart(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let apply = async |id: &str, event| bench.store.apply(place.workspace, &run_id(id), &event, NOW).await.expect("an answer");
    assert_eq!(apply("nobody", RunEvent::Finalized { attempt: attempt_id(), policy: NO_RETRY }).await, Applied::NoRun);
    let refused = Applied::NotAllowed { state: RunState::Queued, event: "ClientStarted" };
    assert_eq!(apply("one", RunEvent::ClientStarted).await, refused);
    assert_eq!(apply("one", RunEvent::Finalized { attempt: attempt_id(), policy: NO_RETRY }).await, Applied::Fenced);
    let attempt = attempt_id();
    bench.change(&run, RunEvent::Admitted { attempt }, NOW).await;
    bench.change(&run, RunEvent::Started { attempt }, NOW).await;
    assert_eq!(apply("one", RunEvent::Started { attempt }).await, Applied::AlreadySo);
}

pub(crate) async fn a_start_time_is_set_by_the_first_start_only(bench: &Bench) {
    let place = bench.place().await;
    // A row as a second attempt would find it.
    let run = bench.store_run(place.run_with("one", |run| run.started_us = Some(NOW - 100))).await;
    let attempt = attempt_id();
    bench.change(&run, RunEvent::Admitted { attempt }, NOW + 1).await;
    let running = bench.change(&run, RunEvent::Started { attempt }, NOW + 2).await;
    assert_eq!(running.started_us, Some(NOW - 100));
}

pub(crate) async fn cancelling_a_waiting_run_ends_it(bench: &Bench) {
    let place = bench.place().await;
    let waiting = bench.store_run(place.run("waiting")).await;
    let cancel = RunEvent::CancelRequested { by: "me".into(), why: Some("too slow".into()) };
    let cancelled = bench.change(&waiting, cancel.clone(), NOW + 1).await;
    assert_eq!((cancelled.state, cancelled.desired, cancelled.ended_us), (RunState::Canceled, Desired::Cancel, Some(NOW + 1)));
    assert_eq!(cancelled.error, None);
    assert_eq!((cancelled.cancelled_by.as_deref(), cancelled.cancel_reason.as_deref()), (Some("me"), Some("too slow")));
    let running = bench.store_run(place.run("running")).await;
    bench.change(&running, RunEvent::Admitted { attempt: attempt_id() }, NOW + 1).await;
    let asked = bench.change(&running, cancel, NOW + 2).await;
    assert_eq!((asked.state, asked.desired, asked.ended_us), (RunState::Starting, Desired::Cancel, None));
}

pub(crate) async fn a_retry_keeps_the_run_and_sets_the_files_of_the_first_attempt_aside(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let policy = RetryPolicy { infrastructure: 1, user_code: 0, backoff_seconds: 5 };
    let (first, second) = (attempt_id(), attempt_id());
    let log = |attempt| Artifact {
        workspace: run.workspace,
        container: "dcid.one".into(),
        path: "azureml-logs/70_driver_log.txt".into(),
        size_bytes: 1,
        digest: None,
        attempt: Some(attempt),
        created_us: NOW,
        updated_us: NOW,
    };
    bench.change(&run, RunEvent::Admitted { attempt: first }, NOW + 1).await;
    bench.store.upsert_artifact(&log(first)).await.expect("stored");
    let mine = Artifact { attempt: None, path: "mine.txt".into(), ..log(first) };
    bench.store.upsert_artifact(&mine).await.expect("stored");
    let fenced = bench.store.upsert_artifact(&log(second)).await.expect_err("not the live attempt");
    assert_eq!(fenced.kind(), trainyard_core::ErrorKind::Forbidden);
    bench.change(&run, RunEvent::Ended { attempt: first, cause: Cause::AgentLost { message: "gone".into() } }, NOW + 2).await;
    let waiting = bench.change(&run, RunEvent::Finalized { attempt: first, policy }, NOW + 3).await;
    assert_eq!((waiting.state, waiting.attempt, waiting.not_before_us), (RunState::Queued, None, Some(NOW + 5_000_003)));
    assert_eq!(waiting.retries, Retries { infrastructure: 1, ..Retries::default() });
    assert!(bench.store.upsert_artifact(&log(first)).await.is_err(), "an attempt that was given up writes nothing");

    let target = vec![("cpu-cluster".parse().expect("a name"), trainyard_store::queue::FreeSlots { free: 4, all: 4 })];
    assert!(bench.store.queue_heads(&target, NOW + 5_000_002).await.expect("heads").is_empty(), "it waits");
    assert_eq!(bench.store.queue_heads(&target, NOW + 5_000_003).await.expect("heads")[0].1.len(), 1);
    let admitted = bench.change(&run, RunEvent::Admitted { attempt: second }, NOW + 6_000_000).await;
    assert_eq!(admitted.not_before_us, None);
    bench.store.upsert_artifact(&log(second)).await.expect("stored");
    let page = bench.store.list_artifacts(run.workspace, "dcid.one", "", &PageRequest::first(10)).await.expect("a page");
    let paths: Vec<_> = page.items.iter().map(|artifact| (artifact.path.as_str(), artifact.attempt)).collect();
    let log_path = "azureml-logs/70_driver_log.txt";
    assert_eq!(paths, [("attempts/1/azureml-logs/70_driver_log.txt", Some(first)), (log_path, Some(second)), ("mine.txt", None)]);

    bench.change(&run, RunEvent::Silent { attempt: second, limit_seconds: 30, node: None }, NOW + 7_000_000).await;
    let live = bench.store.runs_in_execution().await.expect("a list").into_iter().find(|live| live.attempt.id == second);
    assert!(live.expect("in execution").silent);
    let lost = Cause::NodeLost { message: "gone".into() };
    bench.change(&run, RunEvent::Ended { attempt: second, cause: lost }, NOW + 8_000_000).await;
    let failed = bench.change(&run, RunEvent::Finalized { attempt: second, policy }, NOW + 9_000_000).await;
    assert_eq!((failed.state, failed.silent, failed.not_before_us), (RunState::Failed, false, None));
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(failed));
    assert_eq!(bench.store.attempts(run.workspace, &run.id).await.expect("a list").len(), 2);
}

pub(crate) async fn a_drained_server_stays_drained(bench: &Bench) {
    assert!(!bench.store.is_drained().await.expect("a read"));
    for (drained, expected) in [(Drained::Yes, true), (Drained::Yes, true), (Drained::No, false)] {
        bench.store.set_drained(drained).await.expect("set");
        assert_eq!(bench.store.is_drained().await.expect("a read"), expected);
    }
}
