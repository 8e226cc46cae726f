//! The first start, and the starts after a crash in the middle of it.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use trainyard_core::access::Role;
use trainyard_store::Store;
use url::Url;

use super::support::open_store;
use crate::{
    auth::secrets,
    bootstrap::{ClientFile, Identity, Location, ensure_defaults, has_only_generated_credentials},
};

async fn start(dir: &Path, store: &Store, url: &str) -> Option<ClientFile> {
    let url: Url = url.parse().unwrap();
    let location = Location { data_dir: dir, public_url: &url, region: "local", ca_cert: &dir.join("tls/ca.pem") };
    ensure_defaults(store, Identity::open(dir).unwrap(), location).await.unwrap()
}

fn on_disk(dir: &Path) -> ClientFile {
    serde_json::from_slice(&fs::read(dir.join("client.json")).unwrap()).unwrap()
}

/// Whether the credentials of the file open the server.
async fn holds(store: &Store, file: &ClientFile) -> bool {
    store.app(file.client_id).await.unwrap().is_some_and(|app| app.secret_sha256 == secrets::hash(&file.client_secret))
}

#[tokio::test]
async fn the_first_start_makes_a_workspace_and_credentials_that_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path()).await;
    let file = start(dir.path(), &store, "https://localhost:8443").await.unwrap();
    assert_eq!(file, on_disk(dir.path()));
    assert_eq!(file.endpoint, "https://localhost:8443");
    assert_eq!(file.authority, format!("https://localhost:8443/{}", file.tenant_id));
    assert_eq!((file.resource_group.as_str(), file.workspace_name.as_str(), file.region.as_str()), ("default", "default", "local"));
    assert_eq!(fs::metadata(dir.path().join("client.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(holds(&store, &file).await);
    assert_eq!(store.list_workspaces().await.unwrap()[0].path.subscription_id, file.subscription_id);
    let app = store.app(file.client_id).await.unwrap().unwrap();
    assert!(app.generated && app.grants[0].role == Role::Owner && app.grants[0].workspace.is_none());
    assert!(has_only_generated_credentials(&store).await.unwrap());
    assert!(!format!("{file:?}").contains(&file.client_secret));
}

#[tokio::test]
async fn the_next_start_changes_nothing_but_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path()).await;
    let first = start(dir.path(), &store, "https://localhost:8443").await.unwrap();
    assert_eq!(start(dir.path(), &store, "https://localhost:8443").await.unwrap(), first);
    let moved = start(dir.path(), &store, "https://localhost:9999").await.unwrap();
    assert_eq!((moved.client_secret.as_str(), moved.endpoint.as_str()), (first.client_secret.as_str(), "https://localhost:9999"));
    assert_eq!(on_disk(dir.path()), moved);
    assert_eq!(store.list_workspaces().await.unwrap().len(), 1);
    assert_eq!(store.list_apps().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_start_that_ended_before_the_file_was_written_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path()).await;
    let first = start(dir.path(), &store, "https://localhost:8443").await.unwrap();
    for damage in ["", "{ half"] {
        match damage {
            "" => fs::remove_file(dir.path().join("client.json")).unwrap(),
            text => fs::write(dir.path().join("client.json"), text).unwrap(),
        }
        let again = start(dir.path(), &store, "https://localhost:8443").await.unwrap();
        assert!(holds(&store, &again).await && on_disk(dir.path()) == again);
        assert!(!holds(&store, &first).await, "the lost credentials do not open the server any more");
        assert_eq!(store.list_apps().await.unwrap().len(), 1);
        assert!(has_only_generated_credentials(&store).await.unwrap());
    }
}

#[tokio::test]
async fn what_people_did_to_the_default_application_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path()).await;
    let first = start(dir.path(), &store, "https://localhost:8443").await.unwrap();
    let rotated = secrets::hash("rotated by hand");
    store.set_app_secret(first.client_id, &rotated).await.unwrap();
    start(dir.path(), &store, "https://localhost:8443").await.unwrap();
    let mut app = store.app(first.client_id).await.unwrap().unwrap();
    assert_eq!(app.secret_sha256, rotated);

    app.id = trainyard_core::ids::AppId(uuid::Uuid::new_v4());
    app.generated = false;
    store.create_app(&app).await.unwrap();
    store.delete_app(first.client_id).await.unwrap();
    assert!(start(dir.path(), &store, "https://localhost:8443").await.is_none());
    assert_eq!(store.list_apps().await.unwrap().len(), 1);
    assert!(!has_only_generated_credentials(&store).await.unwrap());
}
