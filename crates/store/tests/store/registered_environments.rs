use serde_json::{Value, json};
use trainyard_core::{
    ErrorKind,
    ids::{EnvironmentHash, WorkspaceId},
};
use trainyard_store::{
    PageRequest,
    environments::EnvironmentRecord,
    registered_environments::{NewEnvironment, RegisteredEnvironment, Which},
};

use crate::{database::Bench, fixtures::NOW};

fn new(workspace: WorkspaceId, name: &str, document: Value) -> NewEnvironment {
    NewEnvironment {
        workspace,
        name: name.into(),
        version: None,
        document,
        sealed_password: None,
        created_us: NOW,
        created_by: "Me".into(),
    }
}

async fn register(bench: &Bench, new: NewEnvironment) -> RegisteredEnvironment {
    bench.store.register_environment(new).await.expect("registered")
}

pub(crate) async fn equal_content_is_the_same_version_and_other_content_the_next(bench: &Bench) {
    let workspace = bench.workspace().await;
    let (one, two) = (json!({ "python": { "a": 1, "b": null } }), json!({ "python": { "a": 2 } }));
    let mut versions = Vec::new();
    for document in [&one, &one, &two, &one, &one] {
        versions.push(register(bench, new(workspace, "train", document.clone())).await.version);
    }
    assert_eq!(versions, ["1", "1", "2", "3", "3"], "the latest is always what was registered last");
    let latest = bench.store.registered_environment(workspace, "train", Which::Latest).await.expect("a read").expect("there");
    assert_eq!((latest.version.as_str(), &latest.document, latest.created_us), ("3", &one, NOW));
    let second = bench.store.registered_environment(workspace, "train", Which::Version("2")).await.expect("a read").expect("there");
    assert_eq!(second.document, two);
    assert_eq!(bench.store.registered_environment(workspace, "Train", Which::Latest).await.expect("a read"), None);
    assert_eq!(bench.store.registered_environment_versions(workspace, "train").await.expect("a read"), ["3", "2", "1"]);
}

pub(crate) async fn a_version_by_its_name_is_never_changed(bench: &Bench) {
    let workspace = bench.workspace().await;
    let with = |version: &str, document: Value| NewEnvironment { version: Some(version.into()), ..new(workspace, "train", document) };
    assert_eq!(register(bench, with("spring", json!({ "a": 1 }))).await.version, "spring");
    assert_eq!(register(bench, with("7", json!({ "a": 2 }))).await.version, "7");
    assert_eq!(register(bench, with("spring", json!({ "a": 1 }))).await.version, "spring", "the same again is fine");
    let error = bench.store.register_environment(with("spring", json!({ "a": 3 }))).await.expect_err("it is another");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("`spring`") && error.message().contains("leave the version out"), "{error}");
    assert_eq!(register(bench, new(workspace, "train", json!({ "a": 3 }))).await.version, "8", "numbers go on after the highest");
    let sealed = NewEnvironment { sealed_password: Some("sealed".into()), ..with("7", json!({ "a": 2 })) };
    assert_eq!(register(bench, sealed).await.sealed_password.as_deref(), Some("sealed"), "a new password is not a new version");
    let kept = register(bench, with("7", json!({ "a": 2 }))).await;
    assert_eq!(kept.sealed_password.as_deref(), Some("sealed"), "registering without it keeps the password");
    assert!(!format!("{kept:?}").contains("sealed"));
}

pub(crate) async fn the_versions_of_a_name_come_in_pages_the_latest_first(bench: &Bench) {
    let workspace = bench.workspace().await;
    for number in 1..=5 {
        register(bench, new(workspace, "train", json!(number))).await;
    }
    register(bench, new(workspace, "other", json!(1))).await;
    let (mut versions, mut token) = (Vec::new(), None);
    loop {
        let page = PageRequest { top: 2, token };
        let found = bench.store.list_versions_of_environment(workspace, "train", &page).await.expect("a page");
        versions.extend(found.items.into_iter().map(|version| (version.version, version.document)));
        // What comes meanwhile belongs before the first page.
        register(bench, new(workspace, "train", json!(versions.len() + 10))).await;
        token = found.token;
        if token.is_none() {
            break;
        }
    }
    let expected: Vec<(String, Value)> = (1..=5).rev().map(|number| (number.to_string(), json!(number))).collect();
    assert_eq!(versions, expected);
    let none = bench.store.list_versions_of_environment(workspace, "nobody", &PageRequest::default()).await.expect("a page");
    assert!(none.items.is_empty() && none.token.is_none());
}

pub(crate) async fn a_label_stands_at_one_version(bench: &Bench) {
    let workspace = bench.workspace().await;
    for number in 1..=2 {
        register(bench, new(workspace, "train", json!(number))).await;
    }
    let labels = |list: &[&str]| list.iter().map(|&label| label.to_owned()).collect::<Vec<_>>();
    bench.store.label_environment(workspace, "train", "1", &labels(&["good", "old"])).await.expect("labelled");
    bench.store.label_environment(workspace, "train", "2", &labels(&["good"])).await.expect("labelled");
    let labelled = async |label| {
        let found = bench.store.registered_environment(workspace, "train", Which::Label(label)).await.expect("a read");
        found.map(|environment| environment.version)
    };
    assert_eq!(labelled("good").await.as_deref(), Some("2"));
    assert_eq!(labelled("old").await.as_deref(), Some("1"));
    assert_eq!(labelled("none").await, None);
    let error = bench.store.label_environment(workspace, "train", "3", &[]).await.expect_err("there is no version 3");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub(crate) async fn a_list_gives_the_latest_of_each_name_page_by_page(bench: &Bench) {
    let workspace = bench.workspace().await;
    for (name, number) in [("b", 1), ("a", 1), ("c", 1), ("b", 2)] {
        register(bench, new(workspace, name, json!(number))).await;
    }
    let (mut seen, mut page) = (Vec::new(), PageRequest::first(2));
    loop {
        let found = bench.store.list_registered_environments(workspace, &page).await.expect("a page");
        seen.extend(found.items.into_iter().map(|environment| (environment.name, environment.version)));
        match found.token {
            Some(token) => page.token = Some(token),
            None => break,
        }
    }
    let expected: Vec<(String, String)> = [("a", "1"), ("b", "2"), ("c", "1")].map(|(name, version)| (name.into(), version.into())).into();
    assert_eq!(seen, expected);
    assert_eq!(bench.store.registered_environment_names(workspace).await.expect("names"), ["a", "b", "c"]);
}

pub(crate) async fn names_of_two_workspaces_do_not_meet(bench: &Bench) {
    let (one, two) = (bench.workspace().await, bench.workspace().await);
    register(bench, new(one, "train", json!(1))).await;
    assert_eq!(bench.store.registered_environment(two, "train", Which::Latest).await.expect("a read"), None);
    assert_eq!(register(bench, new(two, "train", json!(2))).await.version, "1");
    assert_eq!(bench.store.list_registered_environments(two, &PageRequest::default()).await.expect("a page").items.len(), 1);
}

pub(crate) async fn only_environments_that_a_run_of_the_workspace_used_are_listed(bench: &Bench) {
    let (here, elsewhere) = (bench.place().await, bench.workspace().await);
    let hash = |digit: &str| EnvironmentHash::new(digit.repeat(32)).expect("a hash");
    for (digit, at) in [("a", 1), ("b", 2), ("c", 3)] {
        let record = EnvironmentRecord { hash: hash(digit), spec: json!({}), lock: json!({}), created_us: at };
        bench.store.put_environment(&record).await.expect("stored");
    }
    for (run, digit) in [("one", "a"), ("two", "a"), ("three", "c")] {
        let run = bench.store_run(here.run(run)).await;
        bench.store.set_run_environment(run.workspace, &run.id, &hash(digit)).await.expect("set");
    }
    let (mut seen, mut page) = (Vec::new(), PageRequest::first(1));
    loop {
        let found = bench.store.list_environments_used_in(here.workspace, &page).await.expect("a page");
        seen.extend(found.items.into_iter().map(|environment| environment.hash));
        match found.token {
            Some(token) => page.token = Some(token),
            None => break,
        }
    }
    assert_eq!(seen, [hash("c"), hash("a")], "newest first, once each");
    assert!(bench.store.environment_used_in(here.workspace, &hash("a")).await.expect("a read").is_some());
    assert!(bench.store.environment_used_in(here.workspace, &hash("b")).await.expect("a read").is_none());
    assert!(bench.store.environment_used_in(elsewhere, &hash("a")).await.expect("a read").is_none());
    assert!(bench.store.list_environments_used_in(elsewhere, &PageRequest::default()).await.expect("a page").items.is_empty());
}
