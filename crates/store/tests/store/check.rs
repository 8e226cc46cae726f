//! What a check finds, and what it does about it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use trainyard_core::{
    definition::{Definition, Entry, Framework, History},
    environment::EnvironmentSpec,
    ids::{AttemptId, ComputeName, Digest},
    run::{Cause, RetryWish, RunEvent},
};
use trainyard_store::{
    LiveKey,
    artifacts::Artifact,
    check::{CHEAP, Check, Depth, Finding, Mode, Repair},
    progress::Silent,
    runs::{NewSnapshot, RunRecord},
};
use uuid::Uuid;

use crate::{
    database::{Bench, execute_at},
    fixtures::{NOW, Place},
};

/// A check two hours from now, when nothing of this test is young any more.
async fn check(bench: &Bench, mode: Mode, depth: Depth) -> Vec<Finding> {
    let now = SystemTime::now() + Duration::from_secs(7200);
    bench.store.check(&Check { depth, mode, now, progress: Arc::new(Silent) }).await.expect("a check")
}

async fn look(bench: &Bench) -> Vec<Finding> {
    check(bench, Mode::Look, Depth::Sizes).await
}

async fn repair(bench: &Bench) -> Vec<Finding> {
    check(bench, Mode::Repair, Depth::Sizes).await
}

fn words(findings: &[Finding]) -> Vec<&'static str> {
    let mut words: Vec<_> = findings.iter().map(|finding| finding.invariant).collect();
    words.sort_unstable();
    words
}

fn artifact(place: &Place, run: &str, path: &str) -> Artifact {
    Artifact {
        workspace: place.workspace,
        container: format!("dcid.{run}"),
        path: path.into(),
        size_bytes: 0,
        digest: None,
        attempt: None,
        created_us: NOW,
        updated_us: NOW,
    }
}

async fn blob(bench: &Bench, text: &'static str) -> Digest {
    bench.store.blobs().put_bytes(Bytes::from(text)).await.expect("a blob").digest
}

async fn stored(bench: &Bench, artifact: Artifact, text: &'static str) -> Digest {
    let digest = blob(bench, text).await;
    let artifact = Artifact { digest: Some(digest.clone()), size_bytes: text.len() as i64, ..artifact };
    bench.store.upsert_artifact(&artifact).await.expect("an artifact");
    digest
}

fn place_of(bench: &Bench, digest: &Digest) -> PathBuf {
    bench.options().data_dir.join("blobs").join(&digest.as_str()[..2]).join(digest.as_str())
}

/// A completed run with code and an output, one in execution with a growing log, and one that waits.
async fn sound(bench: &Bench) -> (Place, [RunRecord; 3]) {
    let place = bench.place().await;
    let mut records = Vec::new();
    for id in ["done", "running", "waiting"] {
        let mut run = place.run_with(id, |record| record.definition = Some(definition()));
        if id == "done" {
            let code = Uuid::new_v4();
            run.record.snapshot = Some(code);
            run.snapshot = Some(NewSnapshot { id: code, digest: blob(bench, "the zip").await, size_bytes: 7 });
        }
        records.push(bench.store_run(run).await);
    }
    let [done, running, waiting] = <[RunRecord; 3]>::try_from(records).unwrap_or_else(|_| panic!("three runs"));
    bench.execute(&done, Cause::Completed).await;
    stored(bench, artifact(&place, "done", "outputs/model"), "the model").await;
    let attempt = AttemptId(Uuid::new_v4());
    bench.change(&running, RunEvent::Admitted { attempt }, NOW + 1).await;
    let log = Artifact { attempt: Some(attempt), ..artifact(&place, "running", "azureml-logs/70_driver_log.txt") };
    bench.store.upsert_artifact(&log).await.expect("an artifact");
    append(bench, &log, "line\n").await;
    (place, [done, running, waiting])
}

fn definition() -> Definition {
    Definition {
        entry: Entry::Command { words: vec!["true".into()] },
        arguments: Vec::new(),
        target: ComputeName::new("cpu-cluster").expect("a name"),
        framework: Framework::Python,
        environment: EnvironmentSpec::UserManaged { interpreter_path: "python3".into() },
        environment_variables: BTreeMap::new(),
        max_run_duration_seconds: None,
        priority: 0,
        history: History::default(),
        container: None,
        retries: RetryWish::default(),
        slurm: Default::default(),
        kubernetes: Default::default(),
        distribution: Default::default(),
        data: Default::default(),
    }
}

async fn append(bench: &Bench, artifact: &Artifact, text: &'static str) {
    let key = LiveKey::of(artifact).expect("a run's");
    bench.store.live_files().append(&key, 0, Bytes::from(text)).await.expect("a log");
}

pub(crate) async fn a_sound_store_has_no_findings(bench: &Bench) {
    sound(bench).await;
    assert_eq!(check(bench, Mode::Look, Depth::Contents).await, []);
    assert_eq!(check(bench, Mode::Repair, Depth::Contents).await, []);
    let counts = bench.store.count_violations().await.expect("an answer");
    assert_eq!(counts, CHEAP.map(|word| (word, 0)));
}

pub(crate) async fn broken_rows_are_found_and_what_can_be_is_repaired(bench: &Bench) {
    let (place, [done, running, waiting]) = sound(bench).await;
    let stray = Uuid::new_v4();
    for sql in [
        // Of a run that is over.
        "update attempts set state = 'Ended' where run = 'done'".to_owned(),
        "update runs set cause = null where id = 'done'".to_owned(),
        format!("update runs set environment = '{}' where id = 'done'", "ab".repeat(16)),
        "update events set seq = 77 where run = 'done' and seq = 1".to_owned(),
        // Of the one in execution: a second attempt that is not closed.
        format!(
            "insert into attempts (id, workspace, run, number, target, state, intended_us) values ('{}', '{}', 'running', 9, 'x', 'Intended', 1)",
            Uuid::new_v4(),
            place.workspace
        ),
        // Of the one that waits.
        format!("update runs set attempt = '{stray}' where id = 'waiting'"),
        "delete from run_documents where run = 'waiting'".to_owned(),
        format!(
            "insert into attempts (id, workspace, run, number, target, state, intended_us) values ('{stray}', '{}', 'nobody', 1, 'x', 'Closed', 1)",
            place.workspace
        ),
        "update experiments set last_number = 0, latest_run_id = 'nobody'".to_owned(),
    ] {
        execute_at(bench.options(), sql).await;
    }
    let expected = [
        "attempt_without_run",
        "definition_missing",
        "environment_unknown",
        "event_gap",
        "experiment_counter",
        "experiment_latest_run",
        "open_attempt_of_ended_run",
        "run_state",
        "run_state",
        "several_live_attempts",
        "waiting_with_attempt",
    ];
    let found = look(bench).await;
    assert_eq!(words(&found), expected, "{found:#?}");
    let of = |word: &str| found.iter().find(|finding| finding.invariant == word).expect("it is there");
    assert_eq!(of("several_live_attempts").object, format!("{}/{}", place.workspace, running.id));
    assert_eq!(of("open_attempt_of_ended_run").repair, Repair::Possible);
    assert_eq!(of("event_gap").object, format!("{}/{}", place.workspace, done.id));
    assert_eq!(words(&look(bench).await), expected, "looking changes nothing");
    let counts = bench.store.count_violations().await.expect("an answer");
    let broken: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(broken, [("several_live_attempts", 1), ("waiting_with_attempt", 1)]);
    let repaired = repair(bench).await;
    let done_words: Vec<_> = repaired.iter().filter(|finding| finding.repair == Repair::Done).map(|finding| finding.invariant).collect();
    assert_eq!(done_words, ["open_attempt_of_ended_run", "experiment_counter", "experiment_latest_run"]);
    let left = look(bench).await;
    assert_eq!(left.len(), repaired.len() - 3, "{left:#?}");
    let experiment = bench.store.experiment(place.workspace, place.experiment.id).await.expect("a read").expect("the experiment");
    assert_eq!(experiment.latest_run_id, Some(waiting.id));
    let next = bench.store_run(place.run("next")).await;
    assert_eq!(next.number, 4);
}

pub(crate) async fn blobs_are_compared_with_the_rows_that_name_them(bench: &Bench) {
    let (place, _) = sound(bench).await;
    let gone = stored(bench, artifact(&place, "done", "outputs/gone"), "gone").await;
    // Too large for a pack: a file of its own, which can be cut.
    let long: &'static str = "short".repeat(300_000).leak();
    let short = stored(bench, artifact(&place, "done", "outputs/short"), long).await;
    let rotten = stored(bench, artifact(&place, "done", "outputs/rotten"), "rotten").await;
    bench.store.blobs().delete(&gone).await.expect("deleted");
    std::fs::write(place_of(bench, &short), "sho").expect("cut");
    bench.damage("rotten", "ROTTEN");
    let found = look(bench).await;
    assert_eq!(words(&found), ["blob_missing", "blob_size"], "sizes do not show what is rotten: {found:#?}");
    assert!(found[0].sentence.contains("outputs/gone of") || found[1].sentence.contains("outputs/gone of"), "{found:#?}");
    let found = check(bench, Mode::Repair, Depth::Contents).await;
    assert_eq!(words(&found), ["blob_damaged", "blob_damaged", "blob_missing", "blob_size"], "{found:#?}");
    let aside = bench.options().data_dir.join("blobs/damaged").join(rotten.as_str());
    assert_eq!(std::fs::read_to_string(aside).expect("kept"), "ROTTEN");
    assert_eq!(words(&check(bench, Mode::Look, Depth::Contents).await), ["blob_missing"; 3], "the damaged ones are told as missing now");
    // Stored again, by whoever has the content still.
    for text in ["gone", long, "rotten"] {
        blob(bench, text).await;
    }
    assert_eq!(check(bench, Mode::Look, Depth::Contents).await, []);
}

pub(crate) async fn logs_that_were_never_sealed_are_sealed_or_said_to_be_lost(bench: &Bench) {
    let (place, [done, _, _]) = sound(bench).await;
    let (there, lost) = (artifact(&place, "done", "azureml-logs/a.txt"), artifact(&place, "done", "azureml-logs/b.txt"));
    for artifact in [&there, &lost] {
        bench.store.upsert_artifact(artifact).await.expect("an artifact");
    }
    append(bench, &there, "what arrived").await;
    // The same content was stored before and is named by nothing: it must not be taken for an orphan once it is sealed.
    blob(bench, "what arrived").await;
    let found = look(bench).await;
    assert_eq!(words(&found), ["orphan_blob", "orphan_live_file", "unsealed_artifact", "unsealed_artifact"], "{found:#?}");
    let repaired = repair(bench).await;
    assert!(repaired.iter().all(|finding| finding.repair == Repair::Done), "{repaired:#?}");
    assert_eq!(check(bench, Mode::Look, Depth::Contents).await, []);
    let read = |path: &'static str| bench.store.artifact(place.workspace, "dcid.done", path);
    let sealed = read("azureml-logs/a.txt").await.expect("a read").expect("it is there");
    assert_eq!((sealed.size_bytes, sealed.digest), (12, Some(blob(bench, "what arrived").await)));
    assert_eq!(read("azureml-logs/b.txt").await.expect("a read"), None);
    let run = bench.store.run(place.workspace, &done.id).await.expect("a read").expect("the run");
    assert!(run.warnings.len() == 1 && run.warnings[0].message.contains("`azureml-logs/b.txt` is lost"), "{:?}", run.warnings);
}

pub(crate) async fn what_nothing_names_goes_when_it_is_old(bench: &Bench) {
    let (place, _) = sound(bench).await;
    let orphan = blob(bench, "nobody's").await;
    append(bench, &artifact(&place, "done", "azureml-logs/late.txt"), "late").await;
    let staged = bench.options().data_dir.join("staging/upload-9");
    std::fs::write(&staged, "half").expect("staged");
    let now = Check { depth: Depth::Sizes, mode: Mode::Repair, now: SystemTime::now(), progress: Arc::new(Silent) };
    assert_eq!(bench.store.check(&now).await.expect("a check"), [], "their rows may be on the way");
    let found = repair(bench).await;
    assert_eq!(words(&found), ["orphan_blob", "orphan_live_file", "stale_upload"], "{found:#?}");
    assert_eq!(found[0].object, orphan.as_str());
    assert!(!bench.store.blobs().exists(&orphan).await.expect("an answer") && !staged.exists());
    assert_eq!(look(bench).await, []);
}
