//! Run history over HTTP: experiments, runs, queries, tags, events, artifacts.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestServer, answer};

#[tokio::test]
async fn an_experiment_is_created_once_and_can_be_changed_and_deleted() {
    let server = TestServer::start().await;
    let path = server.history("/experiments/first");
    let (status, _) = answer(server.request(Method::GET, &path).await.send().await.unwrap()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "the SDK depends on it");
    let created = answer(server.request(Method::POST, &path).await.send().await.unwrap()).await;
    let again = answer(server.request(Method::POST, &path).await.send().await.unwrap()).await;
    assert_eq!((created.0, &created.1), (StatusCode::OK, &again.1), "create-or-get");
    let id = created.1["experimentId"].as_str().unwrap().to_owned();
    let by_id = server.history(&format!("/experimentids/{id}"));
    let (_, changed) = server.send(Method::PATCH, &by_id, json!({ "description": "d", "tags": { "a": "b" }, "archive": true })).await;
    assert!(changed["archivedTime"].is_string() && changed["tags"]["a"] == "b", "{changed}");
    let (_, active) = server.send(Method::POST, &server.history("/experiments:query"), json!({ "viewType": "ActiveOnly" })).await;
    assert_eq!(active["value"], json!([]));
    let (_, all) = server.send(Method::POST, &server.history("/experiments:query"), json!({ "viewType": "All" })).await;
    assert_eq!(all["value"][0]["name"], "first");
    let deleted = server.request(Method::DELETE, &by_id).await.send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::OK);
    assert_eq!(server.request(Method::GET, &by_id).await.send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

async fn external(server: &TestServer, id: &str, body: Value) -> Value {
    let (status, dto) = server.send(Method::PATCH, &server.history(&format!("/experiments/ext/runs/{id}")), body).await;
    assert_eq!(status, StatusCode::OK, "{dto}");
    dto
}

#[tokio::test]
async fn a_patch_creates_a_run_and_events_move_it() {
    let server = TestServer::start().await;
    server.send(Method::POST, &server.history("/experiments/ext"), json!({})).await;
    let made = external(
        &server,
        "r1",
        json!({ "runId": "r1", "name": "n", "properties": { "p": "1" }, "target": "local", "customField": { "Kept": 1 } }),
    )
    .await;
    assert_eq!((made["status"].as_str(), made["customField"]["Kept"].as_i64()), (Some("NotStarted"), Some(1)), "{made}");
    assert_eq!(made["dataContainerId"], "dcid.r1");
    let changed = external(&server, "r1", json!({ "tags": { "k": null }, "displayName": "shown" })).await;
    assert!(changed["tags"].as_object().unwrap()["k"].is_null() && changed["displayName"] == "shown");
    let (status, refused) = server.send(Method::PATCH, &server.history("/runs/r1"), json!({ "properties": { "p": "2" } })).await;
    assert!(status.is_client_error(), "a property is immutable once written: {refused}");
    for (event, expected) in [("Start", "Running"), ("Completed", "Completed")] {
        let body = json!({ "timestamp": "2026-01-01T00:00:00Z", "name": format!("Microsoft.MachineLearning.Run.{event}"), "data": { "RunId": "r1" } });
        let (status, body) = server.send(Method::POST, &server.history("/experiments/ext/runs/r1/events"), body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(server.get(&server.history("/runs/r1")).await["status"], expected);
    }
    let tags = server.request(Method::DELETE, &server.history("/runs/r1/tags")).await.json(&json!(["k"])).send().await.unwrap();
    assert_eq!(answer(tags).await.1["tags"], json!({}));
}

#[tokio::test]
async fn a_client_may_not_set_the_status_of_a_managed_run() {
    let server = TestServer::start().await;
    let run = server.submit("print(1)", |_| {}).await;
    let (status, body) = server.send(Method::PATCH, &server.history(&format!("/runs/{run}")), json!({ "status": "Completed" })).await;
    assert!(status.is_client_error(), "{body}");
    assert_eq!(body["error"]["code"], "UserError");
    server.wait_for(&run, "Completed").await;
}

#[tokio::test]
async fn queries_filter_order_and_page() {
    let server = TestServer::start().await;
    server.send(Method::POST, &server.history("/experiments/ext"), json!({})).await;
    for n in 0..7 {
        external(
            &server,
            &format!("r{n}"),
            json!({ "tags": { "parity": if n % 2 == 0 { "even" } else { "odd" } }, "properties": { "azureml.runsource": "test" } }),
        )
        .await;
    }
    external(&server, "child", json!({ "parentRunId": "r0" })).await;
    let query = |body: Value| server.send(Method::POST, Box::leak(server.history("/experiments/ext/runs:query").into_boxed_str()), body);
    let ids =
        |page: &Value| page["value"].as_array().unwrap().iter().map(|run| run["runId"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let (_, even) = query(json!({ "filter": "((ParentRunId eq null) and (Tags/parity eq \"even\"))", "orderby": "RunId asc" })).await;
    assert_eq!(ids(&even), ["r0", "r2", "r4", "r6"]);
    let (_, present) = query(json!({ "filter": "(Properties/azureml.runsource ne null or Properties/azureml.runsource eq null)", "orderBy": "RunId desc", "top": 2 })).await;
    assert_eq!(ids(&present), ["r6", "r5"], "the tautology means that the key is there");
    let mut seen = Vec::new();
    let mut token = Value::Null;
    loop {
        let (status, page) = query(json!({ "orderby": "CreatedUtc desc", "top": 3, "continuationToken": token })).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        seen.extend(ids(&page));
        token = page["continuationToken"].clone();
        if token.is_null() {
            break;
        }
    }
    assert_eq!(seen.len(), 8, "every run once: {seen:?}");
    let children = server.get(&server.history("/experiments/ext/runs/r0/children")).await;
    assert_eq!(ids(&children), ["child"]);
    let (status, body) = query(json!({ "filter": "(Status is good)" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"]["message"].as_str().unwrap().contains("filter"), "{body}");
    let (status, _) = query(json!({ "continuationToken": "forged" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn signed_urls_need_no_token_and_cannot_be_changed() {
    let server = TestServer::start().await;
    let run = server.submit("print('signed')", |_| {}).await;
    server.wait_for(&run, "Completed").await;
    let details = server.get(&server.history(&format!("/experiments/it/runs/{run}/details"))).await;
    let url = details["logFiles"]["azureml-logs/70_driver_log.txt"].as_str().unwrap().replace(&server.file.endpoint, "");
    let get = |path: String| {
        let request = server.anonymous(Method::GET, &path);
        async { request.send().await.unwrap() }
    };
    assert_eq!(get(url.clone()).await.text().await.unwrap(), "signed\n");
    let ranged = server.anonymous(Method::GET, &url).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!((ranged.status(), ranged.text().await.unwrap()), (StatusCode::PARTIAL_CONTENT, "ign".to_owned()));
    let other = url.replace("70_driver_log", "20_image_build_log");
    assert_eq!(get(other).await.status(), StatusCode::FORBIDDEN);
    let expiry = url.split("se=").nth(1).unwrap().split('&').next().unwrap();
    assert_eq!(get(url.replace(expiry, "2099-01-01T00%3A00%3A00Z")).await.status(), StatusCode::FORBIDDEN);
    for style in [
        format!("/artifacts/contentinfo/ExperimentRun/dcid.{run}/azureml-logs/70_driver_log.txt"),
        format!("/artifacts/ExperimentRun/dcid.{run}/contentinfo?path=azureml-logs/70_driver_log.txt"),
    ] {
        let info = server.get(&server.ws("artifact/v2.0", &style)).await;
        assert_eq!(info["path"], "azureml-logs/70_driver_log.txt");
    }
}

#[tokio::test]
async fn a_missing_run_is_a_user_error_in_the_envelope() {
    let server = TestServer::start().await;
    let (status, body) =
        answer(server.request(Method::GET, &server.history("/experiments/it/runs/none")).await.send().await.unwrap()).await;
    assert_eq!(
        (status, body["error"]["code"].as_str(), body["componentName"].as_str()),
        (StatusCode::NOT_FOUND, Some("UserError"), Some("run-history"))
    );
    assert!(body["correlation"]["request"].is_string() && body["time"].is_string(), "{body}");
}

#[tokio::test]
async fn paths_are_found_in_any_case_and_with_double_slashes() {
    let server = TestServer::start().await;
    server.send(Method::POST, &server.history("/experiments/first"), json!({})).await;
    let path =
        server.history("/experiments/first").replace("/subscriptions/", "//SUBSCRIPTIONS/").replace("resourceGroups", "resourcegroups");
    assert_eq!(server.get(&path).await["name"], "first");
}
