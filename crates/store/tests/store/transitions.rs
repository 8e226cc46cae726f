use serde_json::json;
use trainyard_core::{
    ids::AttemptId,
    run::{Cause, Desired, Ownership, RunEvent, RunState},
};
use trainyard_store::{attempts::AttemptState, transitions::Applied};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NOW, run_id},
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
    let done = bench.change(&run, RunEvent::Finalized, NOW + 5).await;
    assert_eq!((done.state, done.attempt, done.ended_us, done.version), (RunState::Completed, None, Some(NOW + 5), 5));
    assert_eq!(done.error, None);
    // What was answered is what is stored.
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(done));
    let attempts = bench.store.attempts(run.workspace, &run.id).await.expect("a list");
    assert_eq!(attempts.len(), 1);
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
        assert_eq!(failed.error, Some(json!({ "error": { "code": code, "message": cause.sentence() } })));
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
    assert_eq!(apply("nobody", RunEvent::Finalized).await, Applied::NoRun);
    let refused = Applied::NotAllowed { state: RunState::Queued, event: "Finalized" };
    assert_eq!(apply("one", RunEvent::Finalized).await, refused);
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
    let cancel = RunEvent::CancelRequested { by: "me".into() };
    let cancelled = bench.change(&waiting, cancel.clone(), NOW + 1).await;
    assert_eq!((cancelled.state, cancelled.desired, cancelled.ended_us), (RunState::Canceled, Desired::Cancel, Some(NOW + 1)));
    assert_eq!(cancelled.error, None);
    let running = bench.store_run(place.run("running")).await;
    bench.change(&running, RunEvent::Admitted { attempt: attempt_id() }, NOW + 1).await;
    let asked = bench.change(&running, cancel, NOW + 2).await;
    assert_eq!((asked.state, asked.desired, asked.ended_us), (RunState::Starting, Desired::Cancel, None));
}
