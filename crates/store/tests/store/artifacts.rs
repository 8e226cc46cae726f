use serde_json::json;
use trainyard_core::ids::{Digest, EnvironmentHash, WorkspaceId};
use trainyard_store::{PageRequest, artifacts::Artifact, environments::EnvironmentRecord};

use crate::{database::Bench, fixtures::NOW};

fn artifact(workspace: WorkspaceId, path: &str) -> Artifact {
    Artifact {
        workspace,
        container: "dcid.run".into(),
        path: path.into(),
        size_bytes: 1,
        digest: None,
        attempt: None,
        created_us: NOW,
        updated_us: NOW,
    }
}

pub(crate) async fn an_artifact_is_replaced_but_keeps_its_creation(bench: &Bench) {
    let workspace = bench.workspace().await;
    let live = artifact(workspace, "logs/a.txt");
    bench.store.upsert_artifact(&live).await.expect("stored");
    let kept = Artifact {
        size_bytes: 9,
        digest: Some(Digest::new("4c".repeat(32)).expect("a digest")),
        created_us: NOW + 5,
        updated_us: NOW + 5,
        ..live.clone()
    };
    bench.store.upsert_artifact(&kept).await.expect("replaced");
    let found = bench.store.artifact(workspace, "dcid.run", "logs/a.txt").await.expect("a read");
    assert_eq!(found, Some(Artifact { created_us: NOW, ..kept }));
    assert_eq!(bench.store.artifact(workspace, "dcid.other", "logs/a.txt").await.expect("a read"), None);
}

pub(crate) async fn artifacts_are_listed_by_prefix_in_the_order_of_bytes(bench: &Bench) {
    let workspace = bench.workspace().await;
    let paths = ["logs/B", "logs/a", "logs/é", "logs/🚂", "logs", "logs-x/a", "outputs/m", "logs/%", "logs/_"];
    for path in paths {
        bench.store.upsert_artifact(&artifact(workspace, path)).await.expect("stored");
    }
    let other = Artifact { container: "dcid.other".into(), ..artifact(workspace, "logs/other") };
    bench.store.upsert_artifact(&other).await.expect("stored");
    for prefix in ["", "logs", "logs/", "logs/é", "none"] {
        for top in [1, 2, 100] {
            let mut page = PageRequest::first(top);
            let mut listed = Vec::new();
            loop {
                let got = bench.store.list_artifacts(workspace, "dcid.run", prefix, &page).await.expect("a page");
                listed.extend(got.items.into_iter().map(|artifact| artifact.path));
                match got.token {
                    Some(token) => page.token = Some(token),
                    None => break,
                }
            }
            let mut expected: Vec<&str> = paths.into_iter().filter(|path| path.starts_with(prefix)).collect();
            expected.sort_unstable();
            assert_eq!(listed, expected, "{prefix} {top}");
        }
    }
}

pub(crate) async fn an_environment_is_kept_as_first_stored(bench: &Bench) {
    let environment = |n: u8, lock: &str| EnvironmentRecord {
        hash: EnvironmentHash::new(format!("{n:02x}").repeat(16)).expect("a hash"),
        spec: json!({ "python": "3.6.2" }),
        lock: json!(lock),
        created_us: NOW + i64::from(n),
    };
    for n in 1..=3 {
        bench.store.put_environment(&environment(n, "first")).await.expect("stored");
    }
    bench.store.put_environment(&environment(2, "second")).await.expect("kept");
    let second = environment(2, "first");
    assert_eq!(bench.store.environment(&second.hash).await.expect("a read"), Some(second));
    let first = bench.store.list_environments(&PageRequest::first(2)).await.expect("a page");
    assert_eq!(first.items, [environment(3, "first"), environment(2, "first")]);
    let rest = bench.store.list_environments(&PageRequest { top: 2, token: first.token }).await.expect("a page");
    assert_eq!((rest.items, rest.token), (vec![environment(1, "first")], None));
}
