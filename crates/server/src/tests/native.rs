//! Workspaces and applications, and who may make them.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_core::access::Role;

use super::support::{TestServer, add_workspace};

fn new_app(workspace: Option<&str>, role: &str) -> Value {
    json!({ "name": "new", "grants": [{ "workspace": workspace, "role": role }] })
}

#[tokio::test]
async fn an_owner_of_the_server_makes_workspaces_and_others_do_not() {
    let server = TestServer::start().await;
    let (owner, stranger) = (server.owner().await, server.token(Role::Owner).await);
    let asked = json!({ "subscription_id": "s2", "resource_group": "group-1", "workspace_name": "second" });
    let refused = server.call(Method::POST, "/api/v1/workspaces", &stranger, asked.clone()).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let sentence = "application `tester` may not do this: it needs the role Owner on the server";
    assert_eq!(refused.json()["error"]["message"], sentence);

    let made = server.call(Method::POST, "/api/v1/workspaces", &owner, asked.clone()).await.json();
    assert_eq!((made["workspace_name"].as_str(), made["region"].as_str()), (Some("second"), Some("local")));
    assert_eq!(server.call(Method::POST, "/api/v1/workspaces", &owner, asked).await.status, StatusCode::CONFLICT);
    assert_eq!(server.get("/api/v1/workspaces", &owner).await.json().as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/v1/workspaces", &stranger).await.json().as_array().unwrap().len(), 1);
    for (field, value) in [("workspace_name", "x"), ("resource_group", "a/b"), ("subscription_id", "")] {
        let mut asked = json!({ "subscription_id": "s2", "resource_group": "g", "workspace_name": "third" });
        asked[field] = value.into();
        let answer = server.call(Method::POST, "/api/v1/workspaces", &owner, asked).await;
        assert_eq!((answer.status, answer.json()["error"]["target"].as_str().unwrap()), (StatusCode::BAD_REQUEST, field));
    }
}

#[tokio::test]
async fn an_owner_of_a_workspace_gives_rights_there_and_nowhere_else() {
    let server = TestServer::start().await;
    let other = add_workspace(&server.state, "other").await;
    let token = server.token(Role::Owner).await;
    let made = server.call(Method::POST, "/api/v1/apps", &token, new_app(Some(&server.ws()), "contributor")).await;
    assert_eq!(made.status, StatusCode::OK, "{made:?}");
    let id = made.json()["client_id"].as_str().unwrap().to_owned();
    assert_eq!(made.json()["client_secret"].as_str().unwrap().len(), 43);

    let table = [
        (new_app(Some(&other.path.arm_id()), "Reader"), StatusCode::NOT_FOUND),
        (new_app(None, "Reader"), StatusCode::FORBIDDEN),
        (new_app(Some(&server.ws()), "Admin"), StatusCode::BAD_REQUEST),
        (new_app(Some("lab"), "Reader"), StatusCode::BAD_REQUEST),
        (json!({ "name": "none", "grants": [] }), StatusCode::BAD_REQUEST),
        (json!({ "name": "  ", "grants": [{ "workspace": server.ws(), "role": "Reader" }] }), StatusCode::BAD_REQUEST),
    ];
    for (asked, status) in table {
        let answer = server.call(Method::POST, "/api/v1/apps", &token, asked.clone()).await;
        assert_eq!(answer.status, status, "{asked} {answer:?}");
    }
    let names = server.get("/api/v1/apps", &token).await.json();
    assert_eq!(names.as_array().unwrap().len(), 2, "the own application and the new one: {names}");
    assert!(names.as_array().unwrap().iter().any(|app| app["client_id"] == *id && app["grants"][0]["workspace"] == server.ws()));
    assert!(!names.to_string().contains("secret"));
}

#[tokio::test]
async fn applications_of_others_do_not_exist_for_a_caller() {
    let server = TestServer::start().await;
    let other = add_workspace(&server.state, "other").await;
    let (theirs, _) = server.app(&[(Some(other.id), Role::Reader)]).await;
    let (both, _) = server.app(&[(Some(other.id), Role::Reader), (Some(server.workspace.id), Role::Reader)]).await;
    let (mine, _) = server.app(&[(Some(server.workspace.id), Role::Reader)]).await;
    let owner_here = server.token(Role::Owner).await;
    let contributor = server.token(Role::Contributor).await;
    for (app, token, status) in [
        (theirs.id.to_string(), &owner_here, StatusCode::NOT_FOUND),
        (both.id.to_string(), &owner_here, StatusCode::NOT_FOUND),
        (mine.id.to_string(), &contributor, StatusCode::NOT_FOUND),
        ("not-a-guid".into(), &owner_here, StatusCode::NOT_FOUND),
        (mine.id.to_string(), &owner_here, StatusCode::NO_CONTENT),
    ] {
        if status == StatusCode::NOT_FOUND {
            assert_eq!(server.call(Method::POST, &format!("/api/v1/apps/{app}/rotate"), token, Value::Null).await.status, status);
        }
        assert_eq!(server.call(Method::DELETE, &format!("/api/v1/apps/{app}"), token, Value::Null).await.status, status, "{app}");
    }
}

#[tokio::test]
async fn the_last_owner_of_the_server_stays() {
    let server = TestServer::start().await;
    let (first, _) = server.app(&[(None, Role::Owner)]).await;
    let token = server.token_of(&first);
    let path = format!("/api/v1/apps/{}", first.id);
    let refused = server.call(Method::DELETE, &path, &token, Value::Null).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("last Owner of the server"), "{refused:?}");
    server.owner().await;
    assert_eq!(server.call(Method::DELETE, &path, &token, Value::Null).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn whoami_says_what_the_server_makes_of_a_token() {
    let server = TestServer::start().await;
    let token = server.token(Role::Contributor).await;
    let me = server.get("/api/v1/whoami", &token).await.json();
    assert_eq!((me["kind"].as_str(), me["name"].as_str()), (Some("app"), Some("tester")));
    assert_eq!(me["grants"], json!([{ "workspace": server.ws(), "role": "Contributor" }]));
}
