//! Token and discovery endpoints, as adal and MSAL call them (azureml-wire A.1, A.2).

use axum::body::Body;
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Method, Request, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::Value;
use trainyard_core::access::Role;

use super::support::{HOST, TENANT, TestServer};

const V1: &str = "/me.onmicrosoft.com/oauth2/token";
const V2: &str = "/common/oauth2/v2.0/token";

#[tokio::test]
async fn the_older_endpoint_gives_a_token_with_numbers_as_text() {
    let server = TestServer::start().await;
    let (app, secret) = server.app(&[(None, Role::Owner)]).await;
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", &app.id.to_string()),
        ("client_secret", &secret),
        ("resource", "https://management.azure.com/"),
    ];
    let answer = server.form(V1, &fields).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], "3599");
    assert_eq!(body["resource"], "https://management.azure.com/");
    let (from, until): (i64, i64) =
        (body["not_before"].as_str().unwrap().parse().unwrap(), body["expires_on"].as_str().unwrap().parse().unwrap());
    assert_eq!(until - from, 3599);
    assert_eq!(answer.header("cache-control"), "no-store, no-cache");
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    assert_eq!(server.get("/api/v1/whoami", body["access_token"].as_str().unwrap()).await.json()["name"], "tester");
}

#[tokio::test]
async fn the_newer_endpoint_gives_a_token_with_numbers_for_each_scope_that_clients_write() {
    let server = TestServer::start().await;
    let (app, secret) = server.app(&[(None, Role::Owner)]).await;
    let own = format!("https://{HOST}/.default");
    for path in [V2, "/adfs/oauth2/token"] {
        for scope in
            ["https://management.core.windows.net//.default", "https://ml.azure.com/.default", "https://localhost:8443/.default", &own]
        {
            let fields =
                [("grant_type", "client_credentials"), ("client_id", &app.id.to_string()), ("client_secret", &secret), ("scope", scope)];
            let body = server.form(path, &fields).await.json();
            assert_eq!(body["expires_in"], 3599, "{path} {scope} {body}");
            let used = server.get("/api/v1/whoami", body["access_token"].as_str().unwrap()).await;
            assert_eq!(used.status, StatusCode::OK, "{path} {scope} {used:?}");
        }
    }
}

#[tokio::test]
async fn every_refusal_has_its_status_word_and_code_and_never_the_secret() {
    let server = TestServer::start().await;
    let (app, secret) = server.app(&[(None, Role::Owner)]).await;
    let id = app.id.to_string();
    let good = [
        ("grant_type", "client_credentials"),
        ("client_id", id.as_str()),
        ("client_secret", secret.as_str()),
        ("resource", "https://management.azure.com/"),
    ];
    let with = |name: &str, value: &'static str| -> Vec<(&str, &str)> {
        good.iter().map(|(key, old)| if *key == name { (*key, value) } else { (*key, *old) }).collect()
    };
    let without = |name: &str| -> Vec<(&str, &str)> { good.iter().filter(|(key, _)| *key != name).copied().collect() };
    let scoped = |scope: &'static str| -> Vec<(&str, &str)> { without("resource").into_iter().chain([("scope", scope)]).collect() };
    let other_tenant = "/22222222-2222-4222-8222-222222222222/oauth2/token";
    type Fields<'a> = Vec<(&'a str, &'a str)>;
    let table: Vec<(&str, Fields<'_>, u16, &str, u32)> = vec![
        (V1, with("client_secret", "Wr0ngSecret"), 401, "invalid_client", 7_000_215),
        (V1, with("client_id", "33333333-3333-4333-8333-333333333333"), 400, "unauthorized_client", 700_016),
        (V1, with("client_id", "not-a-guid"), 400, "unauthorized_client", 700_016),
        (other_tenant, good.to_vec(), 400, "invalid_request", 90_002),
        ("/acme/oauth2/token", good.to_vec(), 400, "invalid_request", 90_002),
        (V2, scoped("https://management.azure.com/user_impersonation"), 400, "invalid_scope", 70_011),
        (V2, scoped("openid"), 400, "invalid_scope", 70_011),
        (V2, scoped("https://graph.microsoft.com/.default"), 400, "invalid_resource", 500_011),
        (V1, with("resource", "https://graph.microsoft.com"), 400, "invalid_resource", 500_011),
        (V1, without("resource"), 400, "invalid_request", 900_144),
        (V2, without("resource"), 400, "invalid_request", 900_144),
        (V1, without("client_id"), 400, "invalid_request", 900_144),
        (V1, without("client_secret"), 400, "invalid_request", 900_144),
        (V1, without("grant_type"), 400, "invalid_request", 900_144),
        (V1, vec![], 400, "invalid_request", 900_144),
        (V1, with("grant_type", "password"), 400, "unsupported_grant_type", 70_003),
        (V1, good.iter().chain([&("client_id", "twice")]).copied().collect(), 400, "invalid_request", 90_100),
    ];
    for (path, fields, status, word, code) in table {
        let answer = server.form(path, &fields).await;
        let body = answer.json();
        assert_eq!((answer.status.as_u16(), body["error"].as_str().unwrap()), (status, word), "{path} {fields:?} {body}");
        assert_eq!(body["error_codes"], serde_json::json!([code]), "{body}");
        assert!(body["error_description"].as_str().unwrap().starts_with(&format!("AADSTS{code}: ")), "{body}");
        assert!(!answer.text.contains(&secret) && !answer.text.contains("Wr0ngSecret"), "{body}");
        let explained = server.get(body["error_uri"].as_str().unwrap().strip_prefix(&format!("https://{HOST}")).unwrap(), "").await;
        assert_eq!(explained.status, StatusCode::OK, "{code}");
    }
}

#[tokio::test]
async fn a_refusal_carries_the_clients_own_request_id() {
    let server = TestServer::start().await;
    let id = "44444444-4444-4444-8444-444444444444";
    let request = Request::post(V1).header("client-request-id", id).header("return-client-request-id", "true");
    let answer = server.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.json()["correlation_id"], id);
    assert_eq!(answer.header("client-request-id"), id);
    assert_eq!(answer.json()["trace_id"].as_str().unwrap(), answer.header("x-ms-request-id"));
    let timestamp = answer.json()["timestamp"].as_str().unwrap().to_owned();
    assert!(timestamp.ends_with('Z') && timestamp.len() == "2024-01-01 00:00:00Z".len(), "{timestamp}");
}

#[tokio::test]
async fn http_basic_works_and_a_wrong_secret_names_the_scheme() {
    let server = TestServer::start().await;
    let (app, secret) = server.app(&[(None, Role::Owner)]).await;
    let body = "grant_type=client_credentials&resource=https://ml.azure.com";
    for (secret, status) in [(secret.as_str(), 200), ("wrong", 401)] {
        let credentials = BASE64_STANDARD.encode(format!("{}:{secret}", app.id));
        let request = Request::post(V1).header(header::AUTHORIZATION, format!("Basic {credentials}"));
        let answer = server.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(answer.header("www-authenticate").starts_with("Basic"), status == 401);
    }
}

#[tokio::test]
async fn a_get_of_the_token_endpoint_is_refused_in_the_words_of_the_endpoint() {
    let server = TestServer::start().await;
    let answer = server.get(V1, "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.json()["error_codes"], serde_json::json!([900_561]));
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn discovery_leads_to_the_token_endpoint_and_to_the_key_that_verifies_tokens() {
    let server = TestServer::start().await;
    let (app, secret) = server.app(&[(None, Role::Owner)]).await;
    let base = format!("https://{HOST}");
    for (path, token_path) in [
        (format!("/{TENANT}/v2.0/.well-known/openid-configuration"), format!("/{TENANT}/oauth2/v2.0/token")),
        ("/common/.well-known/openid-configuration".into(), "/common/oauth2/token".into()),
        ("/adfs/.well-known/openid-configuration".into(), "/adfs/oauth2/token".into()),
        ("/adfs/v2.0/.well-known/openid-configuration".into(), "/adfs/oauth2/token".into()),
    ] {
        let document = server.get(&path, "").await.json();
        assert_eq!(document["token_endpoint"], format!("{base}{token_path}"), "{path}");
        assert!(document["authorization_endpoint"].is_string());
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", &app.id.to_string()),
            ("client_secret", &secret),
            ("scope", "https://ml.azure.com/.default"),
        ];
        let token = server.form(&token_path, &fields).await.json()["access_token"].as_str().unwrap().to_owned();
        let keys = server.get(document["jwks_uri"].as_str().unwrap().strip_prefix(&base).unwrap(), "").await;
        let keys: JwkSet = serde_json::from_str(&keys.text).unwrap();
        let kid = jsonwebtoken::decode_header(&token).unwrap().kid.unwrap();
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&["https://ml.azure.com"]);
        rules.set_issuer(&[document["issuer"].as_str().unwrap()]);
        let key = DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &rules).unwrap_or_else(|error| panic!("{path}: {error}")).claims;
        assert_eq!(claims["tid"], TENANT);
    }
}

#[tokio::test]
async fn discovery_of_another_tenant_is_refused() {
    let server = TestServer::start().await;
    let answer = server.get("/22222222-2222-4222-8222-222222222222/v2.0/.well-known/openid-configuration", "").await;
    assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (StatusCode::BAD_REQUEST, "invalid_tenant"));
}

#[tokio::test]
async fn instance_discovery_knows_this_server_and_the_hosts_that_it_stands_in_for() {
    let server = TestServer::start().await;
    let ask = |authority: &str| format!("/common/discovery/instance?api-version=1.0&authorization_endpoint={authority}");
    for authority in
        ["https://trainyard.test/me.onmicrosoft.com/oauth2/authorize", "https://login.microsoftonline.com/common/oauth2/v2.0/authorize"]
    {
        let answer = server.get(&ask(authority), "").await;
        assert_eq!(answer.status, StatusCode::OK, "{authority}");
        assert!(answer.json()["tenant_discovery_endpoint"].as_str().unwrap().ends_with("/.well-known/openid-configuration"));
    }
    for authority in ["https://evil.example/common/oauth2/authorize", "not-a-url", "https://trainyard.test/"] {
        let answer = server.get(&ask(authority), "").await;
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (StatusCode::BAD_REQUEST, "invalid_instance"), "{authority}");
    }
}

#[tokio::test]
async fn a_rotated_secret_and_a_deleted_application_end_their_tokens_at_once() {
    let server = TestServer::start().await;
    let owner = server.owner().await;
    let (app, secret) = server.app(&[(Some(server.workspace.id), Role::Owner)]).await;
    let token = server.token_of(&app);
    assert_eq!(server.get("/api/v1/whoami", &token).await.status, StatusCode::OK);

    let rotated = server.call(Method::POST, &format!("/api/v1/apps/{}/rotate", app.id), &owner, Value::Null).await.json();
    let answer = server.get("/api/v1/whoami", &token).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.text.contains("rotated"), "{answer:?}");

    let sign_in = async |secret: &str| {
        let id = app.id.to_string();
        let fields =
            [("grant_type", "client_credentials"), ("client_id", &*id), ("client_secret", secret), ("resource", "https://ml.azure.com")];
        server.form(V1, &fields).await
    };
    assert_eq!(sign_in(&secret).await.json()["error_codes"][0], 7_000_215);
    let token = sign_in(rotated["client_secret"].as_str().unwrap()).await.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(server.get("/api/v1/whoami", &token).await.status, StatusCode::OK);

    assert_eq!(server.call(Method::DELETE, &format!("/api/v1/apps/{}", app.id), &owner, Value::Null).await.status, StatusCode::NO_CONTENT);
    let answer = server.get("/api/v1/whoami", &token).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.text.contains("deleted"), "{answer:?}");
}
