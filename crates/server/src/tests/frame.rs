//! What holds for every address: who gets in, what errors look like, what every answer carries.

use axum::{Router, body::Body, middleware::from_fn_with_state, routing::get};
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;
use trainyard_core::access::Role;

use super::support::{TENANT, TestServer};
use crate::{Access, layers::envelope, route_list};

/// Everything that is reachable without a token. A new line here needs a reason.
const PUBLIC: [&str; 14] = [
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "POST /{tenant}/oauth2/token",
    "POST /{tenant}/oauth2/v2.0/token",
    "GET /{tenant}/.well-known/openid-configuration",
    "GET /{tenant}/v2.0/.well-known/openid-configuration",
    "GET /{tenant}/discovery/instance",
    "GET /{tenant}/discovery/keys",
    "GET /{tenant}/discovery/v2.0/keys",
    "GET /error",
    "GET /metadata/endpoints",
    "GET /discovery",
    "GET /discovery/workspaces/{workspace_id}",
];

/// Any address of the route.
fn address(path: &str) -> String {
    let filled = path.split('/').map(|segment| if segment.starts_with('{') { "x" } else { segment });
    filled.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn nothing_but_a_short_list_answers_without_a_token() {
    let server = TestServer::start().await;
    let mut public = Vec::new();
    for route in route_list() {
        let answer = server.call(route.method.clone(), &address(&route.path), "", Value::Null).await;
        match route.access {
            Access::Token => {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{route:?} {answer:?}");
                let challenge = format!("Bearer authorization_uri=\"https://trainyard.test:8443/{TENANT}\"");
                assert_eq!(answer.header("www-authenticate"), challenge, "{route:?}");
            }
            // The signature is checked by the handler: an address without one is refused.
            Access::SignedUrl => assert!(answer.status.is_client_error(), "{route:?} {answer:?}"),
            Access::Public => public.push(format!("{} {}", route.method, route.path)),
        }
    }
    public.sort();
    let mut expected = PUBLIC.map(str::to_owned);
    expected.sort();
    assert_eq!(public, expected);
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_told_what_is_wrong_with_it() {
    let server = TestServer::start().await;
    let other = TestServer::start().await;
    let foreign = other.owner().await;
    for (token, words) in [("rubbish", "malformed"), (&*foreign, "not signed by this server")] {
        let answer = server.get(&server.ws(), token).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(words), "{answer:?}");
        assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""), "{answer:?}");
    }
    let request = Request::get(server.ws()).header(header::AUTHORIZATION, "Basic eDp5");
    let answer = server.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn each_part_of_the_service_has_errors_in_its_own_envelope() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let history = server.get(&format!("/history/v1.0{}/nowhere", server.ws()), &token).await;
    assert_eq!(history.status, StatusCode::NOT_FOUND);
    let body = history.json();
    assert_eq!((body["error"]["code"].as_str(), body["componentName"].as_str()), (Some("UserError"), Some("run-history")));
    assert_eq!((body["environment"].as_str(), body["correlation"]["operation"].as_str().unwrap().len()), (Some("local"), 32));
    assert_eq!(history.header("x-ms-response-type"), "error");
    assert!(!history.header("x-request-time").is_empty() && !history.header("request-context").is_empty());

    let management = server.get("/subscriptions/nobody", &token).await;
    assert_eq!(management.status, StatusCode::NOT_FOUND);
    assert_eq!(management.json()["error"]["code"], "ResourceNotFound");
    assert_eq!(management.json()["error"]["details"], json!([]));

    let native = server.get("/api/v1/nothing", &token).await;
    assert_eq!(native.status, StatusCode::NOT_FOUND);
    assert_eq!(native.json()["error"]["kind"], "not_found");
    assert_eq!(native.json()["error"]["request_id"], native.header("x-ms-request-id"));

    let login = server.get("/common/oauth2/authorize", "").await;
    assert_eq!(login.status, StatusCode::NOT_FOUND);
    assert_eq!(login.json()["error"], "invalid_request");
}

#[tokio::test]
async fn a_panic_is_a_500_that_tells_nothing_and_the_service_goes_on() {
    let server = TestServer::start().await;
    let boom = || async {
        panic!("inner words");
        #[expect(unreachable_code, reason = "gives the handler its type")]
        ""
    };
    let render = from_fn_with_state(server.state.clone(), envelope::render);
    let router: Router = Router::new().route("/history/v1.0/boom", get(boom)).route("/fine", get(|| async { "fine" })).layer(render);
    let send = |path: &'static str| router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
    let answer = send("/history/v1.0/boom").await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(body["error"]["code"], "ServiceError");
    assert!(!body.to_string().contains("inner words"), "{body}");
    assert_eq!(send("/fine").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_wrong_method_says_which_ones_are_right() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let answer = server.call(Method::PUT, "/api/v1/workspaces", &token, Value::Null).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let allow = answer.header("allow");
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    assert_eq!(answer.json()["error"]["kind"], "invalid");
}

#[tokio::test]
async fn every_answer_has_its_own_id_and_gives_the_clients_back() {
    let server = TestServer::start().await;
    let send = async || {
        let request = Request::get("/healthz").header("x-ms-client-request-id", "mine");
        server.send(request.body(Body::empty()).unwrap()).await
    };
    let (first, second) = (send().await, send().await);
    assert_eq!(first.header("x-ms-client-request-id"), "mine");
    assert_eq!(first.header("x-request-id"), first.header("x-ms-request-id"));
    assert_ne!(first.header("x-ms-request-id"), second.header("x-ms-request-id"));
    assert_eq!(first.header("x-content-type-options"), "nosniff");
}

#[tokio::test]
async fn literals_of_a_path_may_be_in_any_case_and_slashes_too_many() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let shouted = server.ws().replace("resourceGroups", "RESOURCEGROUPS").replace("/workspaces/", "//Workspaces/");
    for path in [shouted, format!("{}/", server.ws()), server.ws().replace("lab", "LAB")] {
        let answer = server.get(&path, &token).await;
        assert_eq!((answer.status, answer.json()["name"].as_str().unwrap()), (StatusCode::OK, "lab"), "{path}");
    }
}

#[tokio::test]
async fn head_answers_like_get_without_a_body() {
    let server = TestServer::start().await;
    let answer = server.call(Method::HEAD, "/healthz", "", Value::Null).await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, ""));
    let answer = server.call(Method::HEAD, "/api/v1/whoami", "", Value::Null).await;
    assert_eq!((answer.status, answer.text.as_str()), (StatusCode::UNAUTHORIZED, ""));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_announced_and_by_its_real_size() {
    let server = TestServer::start().await;
    let owner = server.owner().await;
    let post = |body: Body| Request::post("/api/v1/apps").header(header::AUTHORIZATION, format!("Bearer {owner}")).body(body).unwrap();
    let mut announced = post(Body::empty());
    announced.headers_mut().insert(header::CONTENT_LENGTH, "10001".parse().unwrap());
    let chunks = futures_util::stream::iter((0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    for request in [announced, post(Body::from_stream(chunks))] {
        let answer = server.send(request).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.json()["error"]["message"], "the body is larger than the limit of 10000 bytes");
    }
}

#[tokio::test]
async fn json_is_taken_under_every_type_that_clients_use_and_its_errors_say_where() {
    let server = TestServer::start().await;
    let owner = server.owner().await;
    let post = |kind: &str, body: &'static str| {
        let mut request = Request::post("/api/v1/apps").header(header::AUTHORIZATION, format!("Bearer {owner}"));
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        server.send(request.body(Body::from(body)).unwrap())
    };
    let good = r#"{"name":"x","grants":[{"role":"Reader"}]}"#;
    for kind in ["", "application/json", "application/json-patch+json; charset=utf-8"] {
        assert_eq!(post(kind, good).await.status, StatusCode::OK, "{kind}");
    }
    let table = [
        ("text/plain", good, "the body is declared as `text/plain`: expected application/json"),
        ("", "", "the body is empty: expected JSON"),
        ("", "{\"name\": }", "the body is not valid JSON: expected value at line 1 column 10"),
        ("", "{\"name\":\"x\"}", "the JSON body does not have the expected shape: missing field `grants` at line 1 column 12"),
    ];
    for (kind, body, message) in table {
        let answer = post(kind, body).await;
        assert_eq!((answer.status, answer.json()["error"]["message"].as_str().unwrap()), (StatusCode::BAD_REQUEST, message));
    }
}

#[tokio::test]
async fn health_readiness_and_metrics_answer_without_a_token() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/healthz", "").await.text, "ok\n");
    assert_eq!(server.get("/readyz", "").await.text, "ready\n");
    let metrics = server.get("/metrics", "").await;
    assert!(metrics.text.contains(r#"trainyard_http_requests_total{method="GET",route="/readyz",status="2xx"} 1"#), "{}", metrics.text);
    assert!(metrics.text.contains(r#"trainyard_runs{state="Queued"} 0"#), "{}", metrics.text);
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
}
