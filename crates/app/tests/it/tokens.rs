//! Token endpoints, with and without the real clients.

use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_wire::native::{AppSecret, Workspace};

use crate::support::{TestServer, answer, client_python};

async fn token(server: &TestServer, path: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
    answer(server.anonymous(Method::POST, path).form(form).send().await.unwrap()).await
}

#[tokio::test]
async fn both_token_endpoints_answer_as_their_clients_expect() {
    let server = TestServer::start().await;
    let file = server.file.clone();
    let (id, secret) = (("client_id", file.client_id.as_str()), ("client_secret", file.client_secret.as_str()));
    let grant = ("grant_type", "client_credentials");
    let v1 = format!("/{}/oauth2/token", file.tenant_id);
    let (status, body) = token(&server, &v1, &[grant, id, secret, ("resource", "https://management.azure.com/")]).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body["expires_in"].is_string() && body["expires_on"].is_string(), "v1 numbers are strings: {body}");
    assert_eq!(body["resource"], "https://management.azure.com/");
    let v2 = "/me.onmicrosoft.com/oauth2/v2.0/token";
    for scope in ["https://management.core.windows.net//.default", "https://ml.azure.com/.default"] {
        let (status, body) = token(&server, v2, &[grant, id, secret, ("scope", scope)]).await;
        assert_eq!(status, StatusCode::OK, "{scope}: {body}");
        assert!(body["expires_in"].is_number(), "v2 numbers are numbers: {body}");
    }
}

#[tokio::test]
async fn wrong_token_requests_get_the_codes_of_the_real_endpoint() {
    let server = TestServer::start().await;
    let file = server.file.clone();
    let (id, secret) = (("client_id", file.client_id.as_str()), ("client_secret", file.client_secret.as_str()));
    let grant = ("grant_type", "client_credentials");
    let resource = ("resource", "https://management.azure.com/");
    let v1 = format!("/{}/oauth2/token", file.tenant_id);
    let stranger = ("client_id", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff");
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, u16, &'a str, u64);
    let cases: [Case<'_>; 6] = [
        (&v1, vec![grant, id, ("client_secret", "wrong"), resource], 401, "invalid_client", 7_000_215),
        (&v1, vec![grant, stranger, secret, resource], 400, "unauthorized_client", 700_016),
        ("/6f9619ff-8b86-4d01-b42d-00cf4fc964ff/oauth2/token", vec![grant, id, secret, resource], 400, "invalid_request", 90_002),
        (&v1, vec![grant, id, secret, ("resource", "https://example.org/")], 400, "invalid_resource", 500_011),
        (&v1, vec![grant, id, secret], 400, "invalid_request", 900_144),
        ("/common/oauth2/v2.0/token", vec![grant, id, secret, ("scope", "nonsense")], 400, "invalid_scope", 70_011),
    ];
    for (path, form, status, error, code) in cases {
        let (got, body) = token(&server, path, &form).await;
        assert_eq!((got.as_u16(), body["error"].as_str(), body["error_codes"][0].as_u64()), (status, Some(error), Some(code)), "{body}");
        assert!(body["error_description"].as_str().unwrap().starts_with(&format!("AADSTS{code}")), "{body}");
        assert!(!body.to_string().contains(&file.client_secret), "a secret is in the answer");
    }
}

#[tokio::test]
async fn bad_expired_and_foreign_tokens_are_401_in_the_envelope() {
    let server = TestServer::start().await;
    let other = TestServer::start().await;
    let good = server.client().token().await.unwrap();
    let foreign = other.client().token().await.unwrap();
    let (head, signature) = good.rsplit_once('.').unwrap();
    let reversed: String = signature.chars().rev().collect();
    let forged = format!("{head}.{reversed}");
    let expired = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL21hbmFnZW1lbnQuYXp1cmUuY29tLyIsImV4cCI6MX0.AAAA".to_owned();
    for bad in ["nonsense".to_owned(), String::new(), forged, foreign, expired] {
        let response = server.anonymous(Method::GET, &server.history("/experiments")).bearer_auth(&bad).send().await.unwrap();
        assert!(response.headers().contains_key("www-authenticate"));
        let (status, body) = answer(response).await;
        assert_eq!((status, body["componentName"].is_string()), (StatusCode::UNAUTHORIZED, true), "{body}");
    }
}

#[tokio::test]
async fn rotating_and_deleting_an_application_ends_its_tokens() {
    let server = TestServer::start().await;
    let (_, made) = server
        .send(
            Method::POST,
            "/api/v1/apps",
            json!({ "name": "ci", "grants": [{ "workspace": server.file.workspace().arm_id(), "role": "Reader" }] }),
        )
        .await;
    let secret: AppSecret = serde_json::from_value(made).unwrap();
    let as_app = |secret: &AppSecret| {
        let mut file = server.file.clone();
        file.client_id = secret.client_id.to_string();
        file.client_secret.clone_from(&secret.client_secret);
        trainyard::client::Client::new(file, None).unwrap()
    };
    let old = as_app(&secret).token().await.unwrap();
    let experiments = server.history("/experiments");
    let status = |token: String| {
        let request = server.anonymous(Method::GET, &experiments).bearer_auth(token);
        async { request.send().await.unwrap().status() }
    };
    assert_eq!(status(old.clone()).await, StatusCode::OK);
    let (_, rotated) = server.send(Method::POST, &format!("/api/v1/apps/{}/rotate", secret.client_id), json!({})).await;
    assert!(as_app(&secret).token().await.is_err(), "the old secret works no more");
    assert_eq!(status(old).await, StatusCode::UNAUTHORIZED, "nor does a token made with it");
    let new = as_app(&serde_json::from_value(rotated).unwrap()).token().await.unwrap();
    assert_eq!(status(new.clone()).await, StatusCode::OK);
    let deleted = server.request(Method::DELETE, &format!("/api/v1/apps/{}", secret.client_id)).await.send().await.unwrap();
    assert!(deleted.status().is_success());
    assert_eq!(status(new).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_workspace_that_a_caller_may_not_see_does_not_exist_for_it() {
    let server = TestServer::start().await;
    let (status, made) = server
        .send(Method::POST, "/api/v1/workspaces", json!({ "subscription_id": "s2", "resource_group": "g2", "workspace_name": "other" }))
        .await;
    assert!(status.is_success(), "{made}");
    let other: Workspace = serde_json::from_value(made).unwrap();
    let (_, secret) = server.send(Method::POST, "/api/v1/apps", json!({ "name": "only-other", "grants": [{ "workspace": "/subscriptions/s2/resourceGroups/g2/providers/Microsoft.MachineLearningServices/workspaces/other", "role": "Owner" }] })).await;
    let secret: AppSecret = serde_json::from_value(secret).unwrap();
    let mut file = server.file.clone();
    file.client_id = secret.client_id.to_string();
    file.client_secret = secret.client_secret;
    let token = trainyard::client::Client::new(file, None).unwrap().token().await.unwrap();
    let get = |path: String| {
        let request = server.anonymous(Method::GET, &path).bearer_auth(token.clone());
        async { answer(request.send().await.unwrap()).await }
    };
    let (hidden, hidden_body) = get(server.history("/experiments")).await;
    let absent = server.history("/experiments").replace(&server.file.workspace_name, "no-such-workspace");
    let (missing, missing_body) = get(absent).await;
    assert_eq!((hidden, missing), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(hidden_body["error"]["code"], missing_body["error"]["code"]);
    let own = format!(
        "/history/v1.0/subscriptions/s2/resourceGroups/g2/providers/Microsoft.MachineLearningServices/workspaces/{}/experiments",
        other.workspace_name
    );
    assert_eq!(get(own).await.0, StatusCode::OK);
}

/// The real clients: adal on v1, msal on v2, with discovery.
#[tokio::test]
async fn adal_and_msal_get_tokens() {
    let Some(python) = client_python("adal_and_msal_get_tokens") else { return };
    let server = TestServer::start().await;
    let script = r#"
import sys, json
from adal import AuthenticationContext, AdalError
import msal
authority, client_id, secret, endpoint = sys.argv[1:]
token = AuthenticationContext(authority, validate_authority=False).acquire_token_with_client_credentials("https://management.azure.com/", client_id, secret)
assert token["tokenType"] == "Bearer" and token["accessToken"].count(".") == 2, token
try:
    AuthenticationContext(authority, validate_authority=False).acquire_token_with_client_credentials("https://management.azure.com/", client_id, "wrong")
    raise SystemExit("a wrong secret was taken")
except AdalError as error:
    assert error.error_response["error_codes"] == [7000215], error.error_response
for authority in (authority, endpoint + "/adfs"):
    app = msal.ConfidentialClientApplication(client_id, authority=authority, client_credential=secret, instance_discovery=False)
    answer = app.acquire_token_for_client(scopes=["https://management.core.windows.net//.default"])
    assert "access_token" in answer, answer
print("ok")
"#;
    let file = &server.file;
    let output = Command::new(python)
        .args(["-c", script, &file.authority, &file.client_id, &file.client_secret, &file.endpoint])
        .env("REQUESTS_CA_BUNDLE", &file.ca_cert)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn secrets_are_nowhere_on_disk_but_in_the_client_file() {
    let server = TestServer::start().await;
    let run = server.submit("print('x')", |_| {}).await;
    server.wait_for(&run, "Completed").await;
    let secret = server.file.client_secret.as_bytes();
    for path in server.files("") {
        if path != server.client_json() {
            let content = std::fs::read(&path).unwrap_or_default();
            assert!(!content.windows(secret.len()).any(|window| window == secret), "the secret is in {}", path.display());
        }
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(server.client_json()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
