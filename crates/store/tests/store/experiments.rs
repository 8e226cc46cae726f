use trainyard_core::{
    ErrorKind,
    ids::{ExperimentId, ExperimentName},
};
use trainyard_store::{
    PageRequest,
    experiments::{Experiment, ExperimentPatch, ExperimentQuery, NameFilter, View},
};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NOW, experiment, texts},
};

pub(crate) async fn creating_twice_gives_the_same_experiment(bench: &Bench) {
    let workspace = bench.workspace().await;
    let mut wanted = experiment(workspace, "hello");
    wanted.description = Some("first".into());
    wanted.tags = texts(&[("a", Some("1")), ("b", None)]);
    let first = bench.store.create_or_get_experiment(&wanted).await.expect("made");
    assert_eq!(first, wanted);
    let second = bench.store.create_or_get_experiment(&experiment(workspace, "hello")).await.expect("got");
    assert_eq!(second, first);
    let other = bench.store.create_or_get_experiment(&experiment(bench.workspace().await, "hello")).await.expect("made");
    assert_ne!(other.id, first.id);
    assert_eq!(bench.store.experiment_by_name(workspace, &first.name).await.expect("a read"), Some(first.clone()));
    assert_eq!(bench.store.experiment(workspace, first.id).await.expect("a read"), Some(first.clone()));
    assert_eq!(bench.store.experiment(other.workspace, first.id).await.expect("a read"), None);
}

pub(crate) async fn sixteen_callers_at_once_get_one_experiment(bench: &Bench) {
    let workspace = bench.workspace().await;
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let store = bench.store.clone();
            tokio::spawn(async move { store.create_or_get_experiment(&experiment(workspace, "raced")).await.expect("an experiment").id })
        })
        .collect();
    let mut ids = Vec::new();
    for caller in callers {
        ids.push(caller.await.expect("no panic"));
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
}

pub(crate) async fn a_patch_merges_tags_and_archives(bench: &Bench) {
    let workspace = bench.workspace().await;
    let mut wanted = experiment(workspace, "hello");
    wanted.tags = texts(&[("kept", Some("1")), ("changed", Some("1"))]);
    let id = bench.store.create_or_get_experiment(&wanted).await.expect("made").id;
    let patch = ExperimentPatch {
        description: Some("described".into()),
        tags: texts(&[("changed", Some("2")), ("new", None)]),
        archive: Some(true),
        at_us: NOW + 7,
        ..ExperimentPatch::default()
    };
    let patched = bench.store.patch_experiment(workspace, id, &patch).await.expect("patched");
    assert_eq!(patched.tags, texts(&[("kept", Some("1")), ("changed", Some("2")), ("new", None)]));
    assert_eq!((patched.description.as_deref(), patched.archived_us), (Some("described"), Some(NOW + 7)));
    // Archiving again does not move the time.
    let again = ExperimentPatch { archive: Some(true), at_us: NOW + 8, ..ExperimentPatch::default() };
    assert_eq!(bench.store.patch_experiment(workspace, id, &again).await.expect("patched").archived_us, Some(NOW + 7));
    let back = ExperimentPatch { archive: Some(false), at_us: NOW + 9, ..ExperimentPatch::default() };
    let back = bench.store.patch_experiment(workspace, id, &back).await.expect("patched");
    assert_eq!((back.archived_us, back.description.as_deref()), (None, Some("described")));
    let less = bench.store.delete_experiment_tags(workspace, id, &["kept".into(), "unknown".into()]).await.expect("patched");
    assert_eq!(less.tags, texts(&[("changed", Some("2")), ("new", None)]));
    assert_eq!(bench.store.experiment(workspace, id).await.expect("a read"), Some(less));
}

pub(crate) async fn a_rename_to_a_taken_name_is_refused(bench: &Bench) {
    let workspace = bench.workspace().await;
    let first = bench.store.create_or_get_experiment(&experiment(workspace, "first")).await.expect("made");
    bench.store.create_or_get_experiment(&experiment(workspace, "second")).await.expect("made");
    let rename = |name: &str| ExperimentPatch { name: Some(ExperimentName::new(name).expect("a name")), ..ExperimentPatch::default() };
    let error = bench.store.patch_experiment(workspace, first.id, &rename("second")).await.expect_err("refused");
    assert_eq!((error.kind(), error.target()), (ErrorKind::AlreadyExists, Some("name")));
    let renamed = bench.store.patch_experiment(workspace, first.id, &rename("third")).await.expect("renamed");
    assert_eq!(renamed.name.as_str(), "third");
    bench.store.patch_experiment(workspace, first.id, &rename("third")).await.expect("its own name is free");
    let missing = bench.store.patch_experiment(workspace, ExperimentId(Uuid::new_v4()), &rename("x")).await.expect_err("not there");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

pub(crate) async fn an_experiment_with_runs_is_not_deleted(bench: &Bench) {
    let place = bench.place().await;
    bench.store_run(place.run("one")).await;
    let error = bench.store.delete_experiment(place.workspace, place.experiment.id).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("has 1 run and"), "{error}");
    let empty = bench.experiment(place.workspace).await;
    bench.store.delete_experiment(place.workspace, empty.id).await.expect("deleted");
    assert_eq!(bench.store.experiment(place.workspace, empty.id).await.expect("a read"), None);
    let error = bench.store.delete_experiment(place.workspace, empty.id).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

async fn all_names(bench: &Bench, mut query: ExperimentQuery) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let page = bench.store.list_experiments(&query).await.expect("a page");
        assert!(page.items.len() <= query.page.limit());
        names.extend(page.items.into_iter().map(|experiment: Experiment| experiment.name.to_string()));
        match page.token {
            Some(token) => query.page.token = Some(token),
            None => return names,
        }
    }
}

pub(crate) async fn lists_page_through_all_experiments_newest_first(bench: &Bench) {
    let workspace = bench.workspace().await;
    for n in 0..7 {
        // Two share each time.
        let wanted = Experiment { created_us: NOW + n / 2, ..experiment(workspace, &format!("e{n}")) };
        bench.store.create_or_get_experiment(&wanted).await.expect("made");
    }
    let query = ExperimentQuery { workspace, view: View::All, name_filter: None, page: PageRequest::first(2) };
    let mut names = all_names(bench, query).await;
    assert_eq!(names.first().map(String::as_str), Some("e6"));
    assert!(names[5..].contains(&"e0".to_owned()));
    names.sort();
    assert_eq!(names, ["e0", "e1", "e2", "e3", "e4", "e5", "e6"]);
}

pub(crate) async fn lists_filter_by_view_and_name(bench: &Bench) {
    let workspace = bench.workspace().await;
    for (name, archived_us) in [("train_a", None), ("train_b", Some(NOW)), ("x-train_", None)] {
        bench.store.create_or_get_experiment(&Experiment { archived_us, ..experiment(workspace, name) }).await.expect("made");
    }
    let names = async |view, name_filter| {
        let mut names = all_names(bench, ExperimentQuery { workspace, view, name_filter, page: PageRequest::default() }).await;
        names.sort();
        names
    };
    assert_eq!(names(View::ActiveOnly, None).await, ["train_a", "x-train_"]);
    assert_eq!(names(View::ArchivedOnly, None).await, ["train_b"]);
    assert_eq!(names(View::All, Some(NameFilter::StartsWith("train_".into()))).await, ["train_a", "train_b"]);
    assert_eq!(names(View::All, Some(NameFilter::Contains("train_".into()))).await.len(), 3);
    // `_` and `%` are letters here, not patterns.
    assert_eq!(names(View::All, Some(NameFilter::Contains("n%".into()))).await.len(), 0);
    assert_eq!(names(View::All, Some(NameFilter::Equals("train_a".into()))).await, ["train_a"]);
}
