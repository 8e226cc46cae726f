use serde_json::json;
use trainyard_core::{ErrorKind, ids::EnvironmentHash, run::Ownership};
use trainyard_store::runs::{RunPatch, RunWarning};

use crate::{
    database::Bench,
    fixtures::{run_id, texts},
};

pub(crate) async fn a_patch_merges_and_keeps_what_it_does_not_name(bench: &Bench) {
    let place = bench.place().await;
    let run = place.run_with("one", |run| {
        run.name = Some("kept".into());
        run.tags = texts(&[("kept", Some("1")), ("changed", Some("1"))]);
        run.extra = json!({ "kept": 1, "changed": 1 }).as_object().cloned().expect("an object");
        run.document = Some(json!({ "kept": true }));
    });
    let stored = bench.store_run(run).await;
    let patch = RunPatch {
        display_name: Some("shown".into()),
        hidden: Some(true),
        tags: texts(&[("changed", None), ("new", Some("2"))]),
        properties: texts(&[("p", Some("1"))]),
        extra: json!({ "changed": 2, "new": [] }).as_object().cloned().expect("an object"),
        ..RunPatch::default()
    };
    let patched = bench.store.patch_run(place.workspace, &stored.id, &patch).await.expect("patched");
    let mut expected = stored;
    expected.display_name = Some("shown".into());
    expected.hidden = true;
    expected.tags = texts(&[("kept", Some("1")), ("changed", None), ("new", Some("2"))]);
    expected.properties = texts(&[("p", Some("1"))]);
    expected.extra = json!({ "kept": 1, "changed": 2, "new": [] }).as_object().cloned().expect("an object");
    assert_eq!(patched, expected);
    assert_eq!(bench.store.run(place.workspace, &expected.id).await.expect("a read"), Some(expected));
}

pub(crate) async fn a_property_keeps_its_first_value(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run_with("one", |run| run.properties = texts(&[("p", Some("1"))]))).await;
    let properties =
        |value| RunPatch { properties: texts(&[("p", value), ("q", Some("2"))]), tags: texts(&[("t", None)]), ..RunPatch::default() };
    let error = bench.store.patch_run(run.workspace, &run.id, &properties(Some("2"))).await.expect_err("refused");
    assert_eq!((error.kind(), error.target()), (ErrorKind::Conflict, Some("properties.p")));
    // All or nothing.
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(run.clone()));
    let same = bench.store.patch_run(run.workspace, &run.id, &properties(Some("1"))).await.expect("the same value is fine");
    assert_eq!(same.properties, texts(&[("p", Some("1")), ("q", Some("2"))]));
}

pub(crate) async fn tags_are_removed_by_name(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run_with("one", |run| run.tags = texts(&[("a", None), ("b.c", Some("1"))]))).await;
    let left = bench.store.delete_run_tags(run.workspace, &run.id, &["b.c".into(), "unknown".into()]).await.expect("removed");
    assert_eq!(left.tags, texts(&[("a", None)]));
    assert_eq!(bench.store.run(run.workspace, &run.id).await.expect("a read"), Some(left));
}

pub(crate) async fn warnings_are_added_once(bench: &Bench) {
    let place = bench.place().await;
    let run = bench.store_run(place.run("one")).await;
    let warning = |message: &str| RunWarning { source: "environment".into(), message: message.into() };
    let (first, second) = (warning("first"), warning("second"));
    bench.store.add_run_warnings(run.workspace, &run.id, std::slice::from_ref(&first)).await.expect("added");
    bench.store.add_run_warnings(run.workspace, &run.id, &[first.clone(), second.clone()]).await.expect("added");
    let error = json!({ "error": { "code": "UserError", "message": "it broke" } });
    bench.store.set_run_error(run.workspace, &run.id, &error).await.expect("set");
    let hash = EnvironmentHash::new("3d".repeat(16)).expect("a hash");
    bench.store.set_run_environment(run.workspace, &run.id, &hash).await.expect("set");
    let run = bench.store.run(run.workspace, &run.id).await.expect("a read").expect("there");
    assert_eq!((run.warnings, run.error, run.environment), (vec![first, second], Some(error), Some(hash)));
}

pub(crate) async fn a_run_becomes_a_child_with_its_whole_tree(bench: &Bench) {
    let place = bench.place().await;
    for id in ["top", "middle", "other"] {
        bench.store_run(place.run(id)).await;
    }
    let child = place.run_with("leaf", |run| {
        run.parent = Some(run_id("middle"));
        run.root = run_id("middle");
    });
    bench.store_run(child).await;
    let below = |parent: &str| RunPatch { parent: Some(run_id(parent)), ..RunPatch::default() };
    let middle = bench.store.patch_run(place.workspace, &run_id("middle"), &below("top")).await.expect("adopted");
    assert_eq!((middle.parent, middle.root), (Some(run_id("top")), run_id("top")));
    let leaf = bench.store.run(place.workspace, &run_id("leaf")).await.expect("a read").expect("there");
    assert_eq!((leaf.parent, leaf.root), (Some(run_id("middle")), run_id("top")));
    bench.store.patch_run(place.workspace, &run_id("middle"), &below("top")).await.expect("the same parent is fine");
    let refusals = [("middle", "other", ErrorKind::Conflict), ("top", "leaf", ErrorKind::Invalid), ("other", "nobody", ErrorKind::Invalid)];
    for (run, parent, kind) in refusals {
        let error = bench.store.patch_run(place.workspace, &run_id(run), &below(parent)).await.expect_err("refused");
        assert_eq!((error.kind(), error.target()), (kind, Some("parentRunId")), "{run} below {parent}: {error}");
    }
}

pub(crate) async fn the_target_of_a_managed_run_is_fixed(bench: &Bench) {
    let place = bench.place().await;
    let managed = bench.store_run(place.run("managed")).await;
    let external = bench.store_run(place.run_with("external", |run| run.ownership = Ownership::External)).await;
    let elsewhere = RunPatch { target: Some("elsewhere".into()), ..RunPatch::default() };
    let error = bench.store.patch_run(place.workspace, &managed.id, &elsewhere).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let moved = bench.store.patch_run(place.workspace, &external.id, &elsewhere).await.expect("a client may");
    assert_eq!(moved.target.as_deref(), Some("elsewhere"));
}

pub(crate) async fn patching_nothing_is_not_found(bench: &Bench) {
    let workspace = bench.workspace().await;
    let nobody = run_id("nobody");
    let error = bench.store.patch_run(workspace, &nobody, &RunPatch::default()).await.expect_err("nothing there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("`nobody`"), "{error}");
    assert!(bench.store.delete_run_tags(workspace, &nobody, &[]).await.is_err());
    assert!(bench.store.set_run_error(workspace, &nobody, &json!({})).await.is_err());
}
