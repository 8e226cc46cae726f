use trainyard_core::{
    ErrorKind,
    access::{Grant, Role},
    ids::{AppId, WorkspaceId},
};
use trainyard_store::apps::App;
use uuid::Uuid;

use crate::{database::Bench, fixtures::NOW};

fn app(name: &str) -> App {
    let grants =
        vec![Grant { workspace: Some(WorkspaceId(Uuid::new_v4())), role: Role::Reader }, Grant { workspace: None, role: Role::Owner }];
    App { id: AppId(Uuid::new_v4()), name: name.into(), secret_sha256: "ab".repeat(32), grants, created_us: NOW, generated: true }
}

pub(crate) async fn an_app_is_found_with_its_grants(bench: &Bench) {
    let stored = app("trainer");
    assert_eq!(bench.store.app(stored.id).await.expect("a read"), None);
    bench.store.create_app(&stored).await.expect("stored");
    for _ in 0..2 {
        assert_eq!(bench.store.app(stored.id).await.expect("a read").as_ref(), Some(&stored));
    }
    let error = bench.store.create_app(&stored).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(bench.store.list_apps().await.expect("a list"), [stored]);
}

pub(crate) async fn a_new_secret_and_a_deletion_are_seen_at_once(bench: &Bench) {
    let stored = app("trainer");
    bench.store.create_app(&stored).await.expect("stored");
    bench.store.app(stored.id).await.expect("a read that fills the memory");
    let secret = "cd".repeat(32);
    bench.store.set_app_secret(stored.id, &secret).await.expect("changed");
    let changed = bench.store.app(stored.id).await.expect("a read").expect("there");
    assert_eq!((changed.secret_sha256, changed.generated), (secret.clone(), false));
    bench.store.delete_app(stored.id).await.expect("deleted");
    assert_eq!(bench.store.app(stored.id).await.expect("a read"), None);
    for error in [bench.store.delete_app(stored.id).await, bench.store.set_app_secret(stored.id, &secret).await] {
        assert_eq!(error.expect_err("nothing there").kind(), ErrorKind::NotFound);
    }
}

pub(crate) async fn debug_output_holds_no_secret(bench: &Bench) {
    let stored = app("trainer");
    bench.store.create_app(&stored).await.expect("stored");
    let read = bench.store.app(stored.id).await.expect("a read").expect("there");
    assert!(!format!("{read:?}").contains(&stored.secret_sha256));
}
