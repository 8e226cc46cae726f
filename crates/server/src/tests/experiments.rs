//! Experiments over HTTP (azureml-wire C.2).

use http::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_core::access::Role;

use super::support::{Answer, TestServer};

/// The history service of the test workspace, and a caller.
struct History {
    server: TestServer,
    token: String,
}

impl History {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let token = server.token(Role::Contributor).await;
        Self { server, token }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.server.call(method, &format!("/history/v1.0{}{path}", self.server.ws()), &self.token, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn create(&self, name: &str) -> Value {
        let answer = self.call(Method::POST, &format!("/experiments/{name}"), Value::Null).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }
}

fn names(page: &Value) -> Vec<&str> {
    page["value"].as_array().unwrap().iter().map(|experiment| experiment["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn post_creates_an_experiment_once_and_get_finds_it() {
    let history = History::start().await;
    assert_eq!(history.get("/experiments/new_experiment").await.status, StatusCode::NOT_FOUND);
    let created = history.create("new_experiment").await;
    assert_eq!(created["name"], "new_experiment");
    assert_eq!(history.create("new_experiment").await, created);
    assert_eq!(history.get("/experiments/new_experiment").await.json(), created);
    let id = created["experimentId"].as_str().unwrap();
    assert_eq!(history.get(&format!("/experimentids/{id}")).await.json(), created);
}

#[tokio::test]
async fn a_name_that_breaks_the_rule_is_told_the_rule() {
    let history = History::start().await;
    for bad in ["_x", "a.b", "a%20b"] {
        let answer = history.call(Method::POST, &format!("/experiments/{bad}"), Value::Null).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["target"]), (&json!("UserError"), &json!("experimentName")));
        assert!(error["message"].as_str().unwrap().contains("starts with a letter or digit"), "{error}");
    }
}

#[tokio::test]
async fn archived_experiments_leave_the_lists_that_do_not_ask_for_them() {
    let history = History::start().await;
    history.create("active").await;
    let id = history.create("archived").await["experimentId"].as_str().unwrap().to_owned();
    let archived = history.call(Method::PATCH, &format!("/experimentids/{id}"), json!({"archive": true, "tags": {"a": null}})).await.json();
    assert!(archived["archivedTime"].is_string());
    assert_eq!(archived["tags"], json!({"a": null}));

    let query = async |body: Value| history.call(Method::POST, "/experiments:query", body).await.json();
    assert_eq!(names(&query(json!({"viewType": "ActiveOnly"})).await), ["active"]);
    assert_eq!(names(&query(Value::Null).await), ["active"]);
    assert_eq!(names(&query(json!({"ViewType": "archivedonly"})).await), ["archived"]);
    assert_eq!(names(&query(json!({"viewType": "All", "filter": "startswith(Name, 'arch')"})).await), ["archived"]);
    assert_eq!(names(&history.get("/experiments?viewType=All").await.json()).len(), 2);

    assert_eq!(history.get("/experiments/archived").await.status, StatusCode::OK);
    assert_eq!(history.get("/experiments/archived?viewtype=ActiveOnly").await.status, StatusCode::NOT_FOUND);
    let back = history.call(Method::PATCH, &format!("/experimentids/{id}"), json!({"archive": false})).await.json();
    assert_eq!(back["archivedTime"], Value::Null);
}

#[tokio::test]
async fn lists_of_experiments_are_paged() {
    let history = History::start().await;
    for name in ["a", "b", "c"] {
        history.create(name).await;
    }
    let mut seen = Vec::new();
    let mut body = json!({"top": 2});
    loop {
        let page = history.call(Method::POST, "/experiments:query", body.clone()).await.json();
        seen.extend(names(&page).into_iter().map(str::to_owned));
        if page["continuationToken"].is_null() {
            break;
        }
        body["continuationToken"] = page["continuationToken"].clone();
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"]);
}

#[tokio::test]
async fn tags_are_deleted_in_both_forms() {
    let history = History::start().await;
    let id = history.create("e").await["experimentId"].as_str().unwrap().to_owned();
    let path = format!("/experimentids/{id}");
    history.call(Method::PATCH, &path, json!({"tags": {"a": "1", "b": "2", "c": "3"}})).await;
    let answer = history.call(Method::POST, &format!("{path}/tags:delete"), json!({"tags": ["a"]})).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"errors": {}})));
    assert_eq!(history.call(Method::DELETE, &format!("{path}/tags"), json!(["b", "absent"])).await.status, StatusCode::OK);
    assert_eq!(history.get(&path).await.json()["tags"], json!({"c": "3"}));
}

#[tokio::test]
async fn only_an_experiment_without_runs_is_deleted() {
    let history = History::start().await;
    let full = history.create("full").await["experimentId"].as_str().unwrap().to_owned();
    let empty = history.create("empty").await["experimentId"].as_str().unwrap().to_owned();
    history.call(Method::PATCH, "/experiments/full/runs/r1", json!({})).await;
    let refused = history.call(Method::DELETE, &format!("/experimentids/{full}"), Value::Null).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert_eq!(history.get("/experiments/full").await.json()["latestCreatedRunId"], "r1");
    assert_eq!(history.call(Method::DELETE, &format!("/experimentids/{empty}"), Value::Null).await.status, StatusCode::OK);
    assert_eq!(history.get("/experiments/empty").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_reader_reads_and_changes_nothing() {
    let history = History::start().await;
    let id = history.create("e").await["experimentId"].as_str().unwrap().to_owned();
    let reader = History { token: history.server.token(Role::Reader).await, server: history.server };
    for path in ["/experiments/e", "/experiments", "/experiments/e/runs"] {
        assert_eq!(reader.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(reader.call(Method::POST, "/experiments:query", json!({})).await.status, StatusCode::OK);
    for (method, path) in [
        (Method::POST, "/experiments/e".to_owned()),
        (Method::PATCH, format!("/experimentids/{id}")),
        (Method::DELETE, format!("/experimentids/{id}")),
        (Method::POST, format!("/experimentids/{id}/tags:delete")),
        (Method::PATCH, "/experiments/e/runs/r1".to_owned()),
    ] {
        let body = if path.ends_with("delete") { json!({"tags": []}) } else { json!({}) };
        let answer = reader.call(method.clone(), &path, body).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}");
        assert!(answer.text.contains("it needs the role Contributor"), "{answer:?}");
    }
}
