//! Every route without a token, with too little right, and with another workspace's token. The list of routes is the server's own.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use trainyard_server::{Access, RouteInfo, route_list};
use trainyard_wire::native::AppSecret;

use crate::support::{TestServer, answer};

/// A path that fits the route: parameters filled with things of this server, or with names that do not exist.
fn filled(server: &TestServer, route: &RouteInfo) -> String {
    let file = &server.file;
    let values = [
        ("{sub}", file.subscription_id.as_str()),
        ("{rg}", &file.resource_group),
        ("{ws}", &file.workspace_name),
        ("{tenant}", &file.tenant_id),
        ("{experiment}", "some"),
        ("{experiment_id}", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
        ("{run}", "run1"),
        ("{attempt}", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
        ("{node}", "1"),
        ("{client_id}", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
        ("{workspace_id}", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
        ("{compute}", "cpu-cluster"),
        ("{datastore}", "workspaceblobstore"),
        ("{origin}", "ExperimentRun"),
        ("{container}", "dcid.run1"),
        ("{hash}", "00000000000000000000000000000000"),
        ("{name}", "train"),
        ("{version}", "1"),
        ("{label}", "good"),
        ("{*path}", "a/b"),
    ];
    let path = values.iter().fold(route.path.clone(), |path, (name, value)| path.replace(name, value));
    assert!(!path.contains('{'), "the test does not know a parameter of {path}");
    path
}

/// A body that the route would take, so that what is refused is the caller and not the body.
fn fitting(path: &str) -> Value {
    match path.rsplit('/').next().unwrap_or_default() {
        "workspaces" => json!({ "subscription_id": "s9", "resource_group": "g9", "workspace_name": "w9" }),
        "apps" => json!({ "name": "more", "grants": [{ "role": "Reader" }] }),
        "drain" => json!({ "drained": true }),
        "prune" => json!({ "dry_run": true }),
        "runs" if path.ends_with("/batch/runs") => json!({ "runs": [{ "runId": "run1" }] }),
        "events" if path.ends_with("/batch/events") => json!({ "events": [{ "name": START, "data": { "RunId": "run1" } }] }),
        "events" => json!({ "name": START, "data": { "RunId": "run1" } }),
        _ => json!({}),
    }
}

const START: &str = "Microsoft.MachineLearning.Run.Start";

async fn call(server: &TestServer, route: &RouteInfo, token: Option<&str>) -> (StatusCode, Value) {
    let request = server.anonymous(route.method.as_str().parse::<Method>().unwrap(), &filled(server, route));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let request = if route.method == "GET" { request } else { request.json(&fitting(&route.path)) };
    answer(request.send().await.unwrap()).await
}

/// A token of an application with this role on this workspace.
async fn token(server: &TestServer, role: &str, workspace: &str) -> String {
    let (_, made) =
        server.send(Method::POST, "/api/v1/apps", json!({ "name": role, "grants": [{ "workspace": workspace, "role": role }] })).await;
    let secret: AppSecret = serde_json::from_value(made.clone()).unwrap_or_else(|_| panic!("{made}"));
    let mut file = server.file.clone();
    file.client_id = secret.client_id.to_string();
    file.client_secret = secret.client_secret;
    trainyard::client::Client::new(file, None).unwrap().token().await.unwrap()
}

#[tokio::test]
async fn no_route_but_the_public_ones_answers_without_a_token() {
    let server = TestServer::start().await;
    for route in route_list() {
        let (status, body) = call(&server, &route, None).await;
        match route.access {
            Access::Public => assert_ne!(status, StatusCode::UNAUTHORIZED, "{} {}", route.method, route.path),
            Access::Token => assert_eq!(status, StatusCode::UNAUTHORIZED, "{} {}: {body}", route.method, route.path),
            Access::SignedUrl => {
                assert!([StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status), "{} {}: {status}", route.method, route.path);
            }
        }
    }
}

#[tokio::test]
async fn a_reader_changes_nothing_on_any_route() {
    let server = TestServer::start().await;
    let reader = token(&server, "Reader", &server.file.workspace().arm_id()).await;
    // POSTs that only ask.
    let questions = ["experiments:query", "runs:query", "/runs/runIds", "/rundata", "/listNodes"];
    let mut wrong = Vec::new();
    for route in route_list().into_iter().filter(|route| route.access == Access::Token && route.method != "GET") {
        if questions.iter().any(|question| route.path.ends_with(question)) {
            continue;
        }
        let (status, body) = call(&server, &route, Some(&reader)).await;
        // A batch answers for each of its items.
        let refused_each = route.path.contains("/batch/")
            && [r#""code":"Authorization""#, r#""code":"NotFound""#].iter().any(|code| body["errors"].to_string().contains(code));
        if !refused_each && ![StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status) {
            wrong.push(format!("{} {}: {status} {body}", route.method, route.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let experiments = server.get(&server.history("/experiments")).await;
    assert_eq!(experiments["value"], json!([]), "a refused request left an experiment");
}

#[tokio::test]
async fn another_workspaces_token_sees_nothing_of_this_one() {
    let server = TestServer::start().await;
    let (status, made) = server
        .send(Method::POST, "/api/v1/workspaces", json!({ "subscription_id": "s2", "resource_group": "g2", "workspace_name": "other" }))
        .await;
    assert!(status.is_success(), "{made}");
    let stranger =
        token(&server, "Owner", "/subscriptions/s2/resourceGroups/g2/providers/Microsoft.MachineLearningServices/workspaces/other").await;
    for route in route_list().into_iter().filter(|route| route.access == Access::Token && route.path.contains("{ws}")) {
        let (status, body) = call(&server, &route, Some(&stranger)).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{} {}: {body}", route.method, route.path);
    }
}

#[tokio::test]
async fn a_runs_own_token_writes_only_its_own_run() {
    let server = TestServer::start().await;
    let script = r#"
import json, os, urllib.request, urllib.error
def call(method, path, body=None):
    request = urllib.request.Request(os.environ["AZUREML_SERVICE_ENDPOINT"] + path, method=method, data=json.dumps(body or {}).encode(),
        headers={"Authorization": "Bearer " + os.environ["AZUREML_RUN_TOKEN"], "Content-Type": "application/json"})
    try: return urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error: return error.code
ws, run = os.environ["AZUREML_WORKSPACE_SCOPE"], os.environ["AZUREML_RUN_ID"]
history = "/history/v1.0" + ws
print(call("PATCH", history + "/runs/" + run, {"tags": {"from": "inside"}}),
      call("PATCH", history + "/experiments/it/runs/other-run", {"tags": {"a": "b"}}),
      call("POST", history + "/experiments/new"),
      call("POST", "/api/v1/apps", {"name": "x", "grants": [{"role": "Reader"}]}),
      call("GET", "/subscriptions") )
"#;
    let run = server.submit(script, |_| {}).await;
    let dto = server.wait_for(&run, "Completed").await;
    assert_eq!(dto["tags"]["from"], "inside");
    let log = server.driver_log(&run).await;
    assert!(log.starts_with("200 403 403 403"), "{log}");
}
