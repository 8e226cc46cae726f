use std::{collections::BTreeSet, time::Duration};

use trainyard_core::{
    ErrorKind,
    ids::{AttemptId, ExperimentId},
    run::{RunEvent, RunState, TimelineEntry},
};
use trainyard_store::{
    runs::{Created, RunPatch},
    transitions::Applied,
};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NOW, run_id, texts},
};

/// How long a test waits for something that must come about.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) async fn sixteen_creations_of_one_id_make_one_run(bench: &Bench) {
    let place = bench.place().await;
    let callers: Vec<_> = (0..16)
        .map(|n| {
            let (store, run) = (bench.store.clone(), place.run_with("raced", |run| run.priority = n));
            tokio::spawn(async move { store.create_run(run).await.expect("an answer") })
        })
        .collect();
    let mut new = 0;
    let mut existing = BTreeSet::new();
    for caller in callers {
        match caller.await.expect("no panic") {
            Created::New(number) => {
                assert_eq!(number, 1);
                new += 1;
            }
            Created::Existing(run) => {
                existing.insert(run.priority);
            }
        }
    }
    assert_eq!((new, existing.len()), (1, 1));
    let stored = bench.store.run(place.workspace, &run_id("raced")).await.expect("a read").expect("there");
    assert!(existing.contains(&stored.priority));
    assert_eq!(bench.store.events(place.workspace, &stored.id, 0, 100).await.expect("events").len(), 1);
}

pub(crate) async fn many_creations_at_once_are_numbered_without_gaps(bench: &Bench) {
    let place = bench.place().await;
    let other = bench.experiment(place.workspace).await;
    let callers: Vec<_> = (0..150)
        .map(|n| {
            let run = place.run_with(&format!("run-{n}"), |run| {
                if n % 3 == 0 {
                    run.experiment = other.id;
                }
            });
            let store = bench.store.clone();
            tokio::spawn(async move { (n % 3 == 0, store.create_run(run).await.expect("stored")) })
        })
        .collect();
    let mut numbers = (BTreeSet::new(), BTreeSet::new());
    for caller in callers {
        let (elsewhere, created) = caller.await.expect("no panic");
        let Created::New(number) = created else { panic!("no id is used twice") };
        let numbers = if elsewhere { &mut numbers.0 } else { &mut numbers.1 };
        assert!(numbers.insert(number), "number {number} was given twice");
    }
    assert_eq!(numbers, ((1..=50).collect(), (1..=100).collect()));
}

pub(crate) async fn a_bad_run_does_not_fail_its_neighbours(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("taken")).await;
    let callers: Vec<_> = (0..30)
        .map(|n| {
            let run = match n % 10 {
                3 => place.run_with(&format!("run-{n}"), |run| run.experiment = ExperimentId(Uuid::new_v4())),
                5 => place.run_with(&format!("run-{n}"), |run| run.tags = texts(&[("bad", Some("\0"))])),
                7 => place.run("taken"),
                _ => place.run(&format!("run-{n}")),
            };
            let store = bench.store.clone();
            tokio::spawn(async move { (n, store.create_run(run).await) })
        })
        .collect();
    let mut numbers = BTreeSet::new();
    for caller in callers {
        let (n, created) = caller.await.expect("no panic");
        match n % 10 {
            3 => assert_eq!(created.expect_err("no experiment").kind(), ErrorKind::NotFound),
            5 => assert_eq!(created.expect_err("no text").kind(), ErrorKind::Invalid),
            7 => assert!(matches!(created, Ok(Created::Existing(_)))),
            _ => match created.expect("stored") {
                Created::New(number) => assert!(numbers.insert(number)),
                Created::Existing(run) => panic!("{} is new", run.id),
            },
        }
    }
    assert_eq!(numbers, (2..=22).collect(), "numbers without gaps");
}

pub(crate) async fn concurrent_admissions_have_one_winner(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("raced")).await;
    // Two stores on one database are two servers: here compare-and-set decides, not the queue.
    let stores = [bench.store.clone(), bench.open_again().await];
    let callers: Vec<_> = (0..16)
        .map(|n| {
            let (store, run) = (stores[n % 2].clone(), run.clone());
            let attempt = AttemptId(Uuid::new_v4());
            tokio::spawn(async move { store.apply(run.workspace, &run.id, &RunEvent::Admitted { attempt }, NOW + 1).await })
        })
        .collect();
    let mut winners = Vec::new();
    for caller in callers {
        match caller.await.expect("no panic").expect("an answer") {
            Applied::Changed(run) => winners.push(run.attempt),
            other => assert_eq!(other, Applied::NotAllowed { state: RunState::Starting, event: "Admitted" }),
        }
    }
    assert_eq!(winners.len(), 1);
    let attempts = bench.store.attempts(run.workspace, &run.id).await.expect("a list");
    assert_eq!(attempts.iter().map(|attempt| Some(attempt.id)).collect::<Vec<_>>(), winners);
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read").expect("there").version, 1);
    assert_eq!(bench.store.events(run.workspace, &run.id, 0, 10).await.expect("events").len(), 2);
    stores[1].close().await;
}

pub(crate) async fn a_dropped_caller_leaves_all_or_nothing(bench: &Bench) {
    let place = bench.place().await;
    let mut dropped = 0;
    for n in 0..120_u32 {
        let run = place.run_with(&format!("run-{n}"), |run| run.document = Some(serde_json::json!({ "n": n })));
        // Between not at all and long enough.
        let patience = Duration::from_micros(u64::from(n) * 25);
        if tokio::time::timeout(patience, bench.store.create_run(run)).await.is_err() {
            dropped += 1;
        }
    }
    assert!(dropped > 0, "some callers must have been dropped");
    // The queue is in order: once this run is there, whatever was sent before it is decided.
    let last = bench.store_run(place.run("last")).await;
    let mut stored = 0;
    for n in 0..120_u32 {
        let id = run_id(&format!("run-{n}"));
        let events = bench.store.events(place.workspace, &id, 0, 10).await.expect("events").len();
        match bench.store.run(place.workspace, &id).await.expect("a read") {
            None => assert_eq!(events, 0, "{id} left events without a run"),
            Some(run) => {
                stored += 1;
                assert_eq!((events, run.document), (1, Some(serde_json::json!({ "n": n }))), "{id} is stored in part");
            }
        }
    }
    assert_eq!(last.number, stored + 1, "numbers count what is stored");
}

pub(crate) async fn mixed_writers_do_not_block_each_other_for_good(bench: &Bench) {
    let place = bench.place().await;
    for n in 0..8 {
        bench.store_run(place.run(&format!("run-{n}"))).await;
    }
    let (workspace, experiment) = (place.workspace, place.experiment.id);
    let mut callers = Vec::new();
    for n in 0..120_usize {
        let store = bench.store.clone();
        let id = run_id(&format!("run-{}", n % 8));
        let new = place.run(&format!("new-{n}"));
        callers.push(tokio::spawn(async move {
            match n % 5 {
                0 => store.create_run(new).await.map(|_| ()),
                1 => {
                    let patch = RunPatch { tags: texts(&[(&format!("k{n}"), None)]), ..RunPatch::default() };
                    store.patch_run(workspace, &id, &patch).await.map(|_| ())
                }
                2 => store.append_event(workspace, &id, &TimelineEntry::run("X", serde_json::json!({})), NOW).await,
                3 => store.apply(workspace, &id, &RunEvent::Admitted { attempt: AttemptId(Uuid::new_v4()) }, NOW).await.map(|_| ()),
                _ => store.delete_experiment_tags(workspace, experiment, &[]).await.map(|_| ()),
            }
        }));
    }
    for caller in callers {
        let result = tokio::time::timeout(DEADLINE, caller).await.expect("no writer waits for ever");
        result.expect("no panic").expect("written");
    }
    // Every patch survived the others.
    let mut tags = BTreeSet::new();
    for n in 0..8 {
        let run = bench.store.run(workspace, &run_id(&format!("run-{n}"))).await.expect("a read").expect("there");
        tags.extend(run.tags.into_keys());
    }
    assert_eq!(tags.len(), 24);
}

pub(crate) async fn a_closed_store_says_so(bench: &Bench) {
    let place = bench.place().await;
    let second = bench.open_again().await;
    second.close().await;
    let error = second.create_run(place.run("late")).await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(second.ping().await.expect_err("closed").kind(), ErrorKind::Unavailable);
    bench.store_run(place.run("early")).await;
}
