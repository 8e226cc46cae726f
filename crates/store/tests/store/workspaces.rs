use trainyard_core::{ErrorKind, ids::WorkspaceId};
use trainyard_store::workspaces::Workspace;
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NOW, path},
};

fn workspace(name: &str) -> Workspace {
    Workspace { id: WorkspaceId(Uuid::new_v4()), path: path(name), region: "westeurope".into(), created_us: NOW }
}

pub(crate) async fn a_workspace_is_found_by_its_path_in_any_case(bench: &Bench) {
    let stored = workspace("MyWorkspace");
    assert_eq!(bench.store.workspace_by_path(&stored.path).await.expect("a read"), None);
    bench.store.create_workspace(&stored).await.expect("stored");
    // Twice: from the database and from memory.
    for _ in 0..2 {
        for name in ["MyWorkspace", "myworkspace", "MYWORKSPACE"] {
            let mut asked = path(name);
            asked.resource_group = "gROUP".into();
            assert_eq!(bench.store.workspace_by_path(&asked).await.expect("a read").as_ref(), Some(&stored));
        }
        assert_eq!(bench.store.workspace(stored.id).await.expect("a read").as_ref(), Some(&stored));
    }
    assert_eq!(bench.store.workspace_by_path(&path("other")).await.expect("a read"), None);
}

pub(crate) async fn a_path_is_taken_once_whatever_its_case(bench: &Bench) {
    bench.store.create_workspace(&workspace("Mine")).await.expect("stored");
    let error = bench.store.create_workspace(&workspace("mINE")).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.message().contains("`mINE` exists already"), "{error}");
    bench.store.create_workspace(&workspace("yours")).await.expect("stored");
    let names: Vec<String> = bench.store.list_workspaces().await.expect("a list").into_iter().map(|w| w.path.workspace_name).collect();
    assert_eq!(names, ["Mine", "yours"]);
}

pub(crate) async fn opening_again_finds_what_was_stored(bench: &Bench) {
    let stored = workspace("kept");
    bench.store.create_workspace(&stored).await.expect("stored");
    let again = bench.open_again().await;
    again.ping().await.expect("the database answers");
    assert_eq!(again.workspace(stored.id).await.expect("a read"), Some(stored));
    again.close().await;
}
