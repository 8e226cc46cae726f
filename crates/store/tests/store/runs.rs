use serde_json::json;
use trainyard_core::{
    ErrorKind,
    definition::{Definition, Entry, Framework, History},
    environment::EnvironmentSpec,
    ids::{ComputeName, Digest, EnvironmentHash, ExperimentId},
    run::{Cause, Desired, Ownership, RetryWish, RunState, TimelineEntry},
};
use trainyard_store::runs::{Created, NewSnapshot, RunWarning};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NOW, run_id, texts},
};

fn definition() -> Definition {
    Definition {
        entry: Entry::Script { path: "hello.py".into() },
        arguments: vec!["--rate".into(), "0.1".into()],
        target: ComputeName::new("cpu-cluster").expect("a name"),
        framework: Framework::Python,
        environment: EnvironmentSpec::UserManaged { interpreter_path: "python3".into() },
        environment_variables: [("A".to_owned(), "b".to_owned())].into(),
        max_run_duration_seconds: Some(60),
        priority: 3,
        history: History::default(),
        container: None,
        retries: RetryWish::default(),
        slurm: Default::default(),
        kubernetes: Default::default(),
        distribution: Default::default(),
        data: Default::default(),
    }
}

pub(crate) async fn a_run_comes_back_as_it_was_given(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("parent")).await;
    let full = place.run_with("full", |run| {
        run.parent = Some(run_id("parent"));
        run.root = run_id("parent");
        run.ownership = Ownership::External;
        run.state = RunState::Failed;
        run.desired = Desired::Cancel;
        run.cause = Some(Cause::ExitCode { code: 3 });
        run.started_us = Some(NOW + 1);
        run.ended_us = Some(NOW + 2);
        run.priority = -5;
        run.name = Some("name".into());
        run.display_name = Some("display 🚂".into());
        run.description = Some("it's \"quoted\"; drop table runs".into());
        run.run_type = Some("azureml.scriptrun".into());
        run.script_name = Some("hello.py".into());
        run.cancel_reason = Some("why not".into());
        run.hidden = true;
        run.properties = texts(&[("a.b", Some("1")), ("none", None)]);
        run.tags = texts(&[("quote\"d", Some("back\\slash")), ("", Some(""))]);
        run.extra = json!({ "runTypeV2": { "traits": ["x"] }, "deep": [1, 2.5, null, true] }).as_object().cloned().expect("an object");
        run.warnings = vec![RunWarning { source: "environment".into(), message: "closest Python".into() }];
        run.error = Some(json!({ "error": { "code": "UserError" } }));
        run.snapshot = Some(Uuid::new_v4());
        run.definition = Some(definition());
        run.document = Some(json!({ "Script": "hello.py" }));
        run.environment = Some(EnvironmentHash::new("1f".repeat(16)).expect("a hash"));
        run.request_digest = Some(Digest::new("2e".repeat(32)).expect("a digest"));
    });
    let mut expected = full.record.clone();
    expected.number = 2;
    assert_eq!(bench.store_run(full).await, expected);
    let plain = place.run("plain");
    let mut expected = plain.record.clone();
    expected.number = 3;
    assert_eq!(bench.store_run(plain).await, expected);
    assert_eq!(bench.store.run(place.workspace, &run_id("none")).await.expect("a read"), None);
}

pub(crate) async fn runs_are_numbered_per_experiment_from_one(bench: &Bench) {
    let place = bench.place().await;
    let other = bench.experiment(place.workspace).await;
    for n in 1..=3 {
        assert_eq!(bench.store_run(place.run(&format!("a{n}"))).await.number, n);
        let elsewhere = place.run_with(&format!("b{n}"), |run| run.experiment = other.id);
        let stored = bench.store_run(elsewhere).await;
        assert_eq!((stored.number, &stored.experiment_name), (n, &other.name));
    }
}

pub(crate) async fn the_experiment_knows_its_latest_run(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("one")).await;
    bench.store_run(place.run_with("two", |run| run.created_us = NOW + 5)).await;
    let experiment = bench.store.experiment(place.workspace, place.experiment.id).await.expect("a read").expect("there");
    assert_eq!((experiment.latest_run_id, experiment.latest_run_created_us), (Some(run_id("two")), Some(NOW + 5)));
}

pub(crate) async fn a_taken_id_gives_the_run_that_has_it(bench: &Bench) {
    let place = bench.place().await;
    let first = bench.store_run(place.run_with("taken", |run| run.display_name = Some("first".into()))).await;
    let second = place.run_with("taken", |run| run.display_name = Some("second".into()));
    match bench.store.create_run(second).await.expect("an answer") {
        Created::Existing(found) => assert_eq!(*found, first),
        Created::New(number) => panic!("stored twice, as number {number}"),
    }
    // Nothing of the second is left, and it took no number.
    assert_eq!(bench.store.events(place.workspace, &first.id, 0, 10).await.expect("events").len(), 1);
    assert_eq!(bench.store_run(place.run("next")).await.number, 2);
}

pub(crate) async fn the_same_id_in_two_workspaces_is_two_runs(bench: &Bench) {
    let (here, there) = (bench.place().await, bench.place().await);
    bench.store_run(here.run_with("same", |run| run.name = Some("here".into()))).await;
    bench.store_run(there.run_with("same", |run| run.name = Some("there".into()))).await;
    let run = bench.store.run(here.workspace, &run_id("same")).await.expect("a read").expect("there");
    assert_eq!(run.name.as_deref(), Some("here"));
}

pub(crate) async fn a_run_of_no_experiment_is_refused_and_leaves_nothing(bench: &Bench) {
    let place = bench.place().await;
    let mut run = place.run_with("lost", |run| run.experiment = ExperimentId(Uuid::new_v4()));
    let snapshot = Uuid::new_v4();
    run.snapshot = Some(NewSnapshot { id: snapshot, digest: Digest::new("00".repeat(32)).expect("a digest"), size_bytes: 1 });
    let error = bench.store.create_run(run).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(bench.store.run(place.workspace, &run_id("lost")).await.expect("a read"), None);
    assert_eq!(bench.store.snapshot(place.workspace, snapshot).await.expect("a read"), None);
}

pub(crate) async fn the_snapshot_and_the_first_event_are_stored_with_the_run(bench: &Bench) {
    let place = bench.place().await;
    let id = Uuid::new_v4();
    let digest = Digest::new("0a".repeat(32)).expect("a digest");
    for name in ["one", "two"] {
        // The second run uses the same snapshot.
        let mut run = place.run(name);
        run.snapshot = Some(NewSnapshot { id, digest: digest.clone(), size_bytes: 123 });
        run.first_event = TimelineEntry::run("Queued", json!({ "Name": name }));
        bench.store_run(run).await;
        let events = bench.store.events(place.workspace, &run_id(name), 0, 10).await.expect("events");
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].seq, events[0].at_us, &events[0].data), (1, NOW, &json!({ "Name": name })));
        assert_eq!(events[0].name, "Microsoft.MachineLearning.Run.Queued");
    }
    let snapshot = bench.store.snapshot(place.workspace, id).await.expect("a read").expect("there");
    assert_eq!((snapshot.digest, snapshot.size_bytes, snapshot.created_us), (digest, 123, NOW));
}

pub(crate) async fn the_character_nul_is_refused_everywhere(bench: &Bench) {
    let place = bench.place().await;
    let bad = [
        place.run_with("a", |run| run.description = Some("x\0".into())),
        place.run_with("b", |run| run.tags = texts(&[("k\0", None)])),
        place.run_with("c", |run| run.properties = texts(&[("k", Some("\0"))])),
        place.run_with("d", |run| run.extra = json!({ "a": [{ "b": "\0" }] }).as_object().cloned().expect("an object")),
    ];
    for run in bad {
        let id = run.record.id.clone();
        let error = bench.store.create_run(run).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(bench.store.run(place.workspace, &id).await.expect("a read"), None);
    }
}

pub(crate) async fn events_are_numbered_without_gaps(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let writers: Vec<_> = (0..12)
        .map(|n| {
            let (store, run) = (bench.store.clone(), run.clone());
            let entry = TimelineEntry::run("Warning", json!({ "N": n }));
            tokio::spawn(async move { store.append_event(run.workspace, &run.id, &entry, NOW + n).await })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic").expect("appended");
    }
    let events = bench.store.events(run.workspace, &run.id, 0, 100).await.expect("events");
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=13).collect::<Vec<_>>());
    let tail = bench.store.events(run.workspace, &run.id, 10, 2).await.expect("events");
    assert_eq!(tail.iter().map(|event| event.seq).collect::<Vec<_>>(), [11, 12]);
    let nobody = bench.store.append_event(run.workspace, &run_id("nobody"), &TimelineEntry::run("X", json!({})), NOW).await;
    assert_eq!(nobody.expect_err("no run").kind(), ErrorKind::NotFound);
}
