//! Runs over HTTP, as clients and the code of runs use them (azureml-wire C.3 to C.7, E.4).

use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use trainyard_core::{
    access::Role,
    ids::{AttemptId, RunId},
    run::{Cause, RunEvent, TimelineEntry},
};
use trainyard_store::runs::{NewRun, RunRecord};
use uuid::Uuid;

use super::support::{Answer, NO_RETRY, TestServer};
use crate::{azureml::convert::runs::tests::managed_run, clock};

/// Run history of the experiment `e`, and a Contributor.
struct History {
    server: TestServer,
    token: String,
}

impl History {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let token = server.token(Role::Contributor).await;
        let history = Self { server, token };
        history.call(Method::POST, "/experiments/e", Value::Null).await.ok();
        history
    }

    async fn call_as(&self, token: &str, method: Method, path: &str, body: Value) -> Answer {
        self.server.call(method, &format!("/history/v1.0{}{path}", self.server.ws()), token, body).await
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.call_as(&self.token, method, path, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn patch(&self, run: &str, body: Value) -> Answer {
        self.call(Method::PATCH, &format!("/experiments/e/runs/{run}"), body).await
    }

    /// Posts an event about the run as the SDK does.
    async fn event(&self, run: &str, x: &str, mut data: Value) -> Answer {
        data["RunId"] = json!(run);
        let event = json!({"timestamp": "2024-01-01T00:00:00.5Z", "name": format!("Microsoft.MachineLearning.Run.{x}"), "data": data});
        self.call(Method::POST, &format!("/experiments/e/runs/{run}/events"), event).await
    }

    async fn run(&self, run: &str) -> Value {
        self.get(&format!("/runs/{run}")).await.ok()
    }

    async fn query(&self, body: Value) -> Value {
        self.call(Method::POST, "/experiments/e/runs:query", body).await.ok()
    }

    /// A run that waits for `cpu-cluster`, as a submission makes it.
    async fn submit(&self, id: &str) {
        let template = managed_run(id);
        let name = template.experiment_name.clone();
        let workspace = self.server.workspace.id;
        let made = self.call(Method::POST, &format!("/experiments/{name}"), Value::Null).await.ok();
        let experiment = made["experimentId"].as_str().unwrap().parse().unwrap();
        let record = RunRecord { workspace, experiment, uuid: Uuid::now_v7(), created_us: clock::now_us(), ..template };
        let first_event = TimelineEntry::run("Queued", json!({}));
        self.server.state.store.create_run(NewRun { record, first_event, snapshot: None, slots: 1 }).await.unwrap();
    }

    async fn apply(&self, run: &str, event: RunEvent) {
        self.server.state.store.apply(self.server.workspace.id, &RunId::new(run).unwrap(), &event, clock::now_us()).await.unwrap();
    }

    /// Gives the run an attempt; the token of its code.
    async fn admit(&self, run: &str) -> (AttemptId, String) {
        let attempt = AttemptId(Uuid::new_v4());
        self.apply(run, RunEvent::Admitted { attempt }).await;
        let id = RunId::new(run).unwrap();
        let (token, _) = self.server.state.tokens.mint_run(self.server.workspace.id, &id, attempt, clock::now_us()).unwrap();
        (attempt, token)
    }
}

impl Answer {
    /// The body of a success.
    fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    fn refused(&self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()["error"].clone()
    }
}

fn ids(page: &Value) -> Vec<&str> {
    page["value"].as_array().unwrap().iter().map(|run| run["runId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_interactive_run_of_the_sdk_goes_from_not_started_to_completed() {
    let history = History::start().await;
    let body = json!({
        "runId": "r1", "name": "run_r1", "runTypeV2": {"orchestrator": "External", "traits": ["unspecified"]}, "properties": {},
        "target": "local", "SomethingNew": {"Kept": true}
    });
    let created = history.patch("r1", body).await.ok();
    assert_eq!((&created["status"], &created["runNumber"]), (&json!("NotStarted"), &json!(1)));
    assert_eq!(created["SomethingNew"], json!({"Kept": true}));
    assert_eq!(created["createdBy"]["userName"], "tester");
    assert_eq!(created["cancelUri"], Value::Null);

    history.event("r1", "Start", json!({})).await.ok();
    assert_eq!(history.run("r1").await["status"], "Running");
    history.event("r1", "Heartbeat", json!({"TimeToLiveSeconds": 120})).await.ok();
    history.event("r1", "Warning", json!({"Source": "sdk", "Message": "slow"})).await.ok();
    history.get("/runs/r1/metricsingest/wait").await.ok();
    history.event("r1", "Completed", json!({})).await.ok();
    history.event("r1", "Completed", json!({})).await.ok();
    let run = history.run("r1").await;
    assert_eq!(run["status"], "Completed");
    assert!(run["startTimeUtc"].is_string() && run["endTimeUtc"].is_string());
    assert_eq!(run["warnings"], json!([{"source": "sdk", "message": "slow"}]));

    let late = history.event("r1", "Start", json!({})).await.refused(StatusCode::CONFLICT);
    assert_eq!(late["message"], "run r1 is Completed already; it can not be started again");
}

#[tokio::test]
async fn a_failure_keeps_the_error_that_was_reported_before_it() {
    let history = History::start().await;
    history.patch("r1", json!({})).await.ok();
    let error = json!({"error": {"code": "UserError", "message": "out of cheese"}});
    history.event("r1", "Error", json!({"ErrorResponse": error})).await.ok();
    history.event("r1", "Failed", json!({})).await.ok();
    let run = history.run("r1").await;
    assert_eq!((&run["status"], &run["error"]), (&json!("Failed"), &error));
}

#[tokio::test]
async fn a_run_is_found_under_its_three_addresses_and_no_other_experiment() {
    let history = History::start().await;
    history.call(Method::POST, "/experiments/other", Value::Null).await.ok();
    let run = history.patch("r1", json!({})).await.ok();
    let id = run["experimentId"].as_str().unwrap();
    for path in ["/runs/r1".to_owned(), "/experiments/e/runs/r1".into(), format!("/experimentids/{id}/runs/r1")] {
        assert_eq!(history.get(&path).await.ok(), run, "{path}");
    }
    let missing = history.get("/experiments/other/runs/r1").await.refused(StatusCode::NOT_FOUND);
    assert_eq!((&missing["code"], &missing["message"]), (&json!("UserError"), &json!("run r1 was not found in experiment `other`")));
    history.get("/runs/r2").await.refused(StatusCode::NOT_FOUND);
    history.get("/runs/_r").await.refused(StatusCode::BAD_REQUEST);
    let elsewhere = history.call(Method::PATCH, "/experiments/other/runs/r1", json!({})).await.refused(StatusCode::CONFLICT);
    assert!(elsewhere["message"].as_str().unwrap().contains("exists already in experiment `e`"));
    history.call(Method::PATCH, "/experiments/absent/runs/r9", json!({})).await.refused(StatusCode::NOT_FOUND);
    history.call(Method::POST, "/runs/r9", json!({})).await.refused(StatusCode::NOT_FOUND);
    assert_eq!(history.call(Method::POST, "/runs/r1", json!({"displayName": "d"})).await.ok()["displayName"], "d");
}

#[tokio::test]
async fn a_patch_merges_and_a_property_is_written_once() {
    let history = History::start().await;
    history.patch("r1", json!({"name": "n", "tags": {"a": "1", "b": null}, "properties": {"p": "1"}})).await.ok();
    let merged = history.patch("r1", json!({"Tags": {"b": "2"}, "properties": {"p": "1", "q": null}, "description": "d"})).await.ok();
    assert_eq!((&merged["name"], &merged["description"]), (&json!("n"), &json!("d")));
    assert_eq!(merged["tags"], json!({"a": "1", "b": "2"}));
    assert_eq!(merged["properties"], json!({"p": "1", "q": null}));
    let refused = history.patch("r1", json!({"properties": {"p": "2"}, "tags": {"c": "3"}})).await.refused(StatusCode::CONFLICT);
    assert_eq!(refused["target"], "properties.p");
    assert_eq!(history.run("r1").await, merged);

    let untagged = history.call(Method::DELETE, "/runs/r1/tags", json!(["a", "absent"])).await.ok();
    assert_eq!(untagged["tags"], json!({"b": "2"}));
    let tags = history.call(Method::PATCH, "/runs/r1/tags", json!({"tagsToModify": {"c": "3"}, "tagsToDelete": ["b"]})).await.ok();
    assert_eq!(tags, json!({"tags": {"c": "3"}}));
    history.patch("r1", json!({"runId": "r2"})).await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_status_moves_the_runs_of_clients_and_is_refused_on_those_of_the_server() {
    let history = History::start().await;
    let created = history.patch("mine", json!({"status": "Running"})).await.ok();
    assert_eq!(created["status"], "Running");
    assert_eq!(history.patch("mine", json!({"status": "Completed"})).await.ok()["status"], "Completed");
    history.patch("mine", json!({"status": "Running", "tags": {"a": null}})).await.refused(StatusCode::CONFLICT);
    assert_eq!(history.run("mine").await["tags"], json!({}), "a refused request changes nothing");
    history.patch("mine", json!({"status": "Done"})).await.refused(StatusCode::BAD_REQUEST);

    history.submit("managed").await;
    let path = "/experiments/exp/runs/managed";
    let refused = history.call(Method::PATCH, path, json!({"status": "Completed"})).await.refused(StatusCode::BAD_REQUEST);
    assert!(refused["message"].as_str().unwrap().contains("not permitted to update the status of system-managed run"), "{refused}");
    let same = history.call(Method::PATCH, path, json!({"status": "Queued", "properties": {"ContentSnapshotId": "x"}})).await.ok();
    assert_eq!(same["properties"]["ContentSnapshotId"], "x");
}

#[tokio::test]
async fn a_waiting_run_says_why_and_is_cancelled_at_once() {
    let history = History::start().await;
    history.submit("first").await;
    history.submit("second").await;
    let waiting = history.run("second").await;
    assert_eq!((&waiting["status"], &waiting["queueingInfo"]["code"]), (&json!("Queued"), &json!("WaitingForSlot")));
    assert_eq!(
        waiting["queueingInfo"]["message"],
        "waits for a slot on target `cpu-cluster`: 0 of 2 busy, 1 run is ahead; users and their experiments take turns"
    );
    let cancel = waiting["cancelUri"].as_str().unwrap().strip_prefix("https://trainyard.test:8443").unwrap();
    assert_eq!(history.server.call(Method::POST, cancel, &history.token, Value::Null).await.ok(), json!({"runId": "second"}));
    let cancelled = history.run("second").await;
    assert_eq!((&cancelled["status"], &cancelled["queueingInfo"]), (&json!("Cancelled"), &Value::Null));
    assert_eq!(history.run("first").await["queueingInfo"]["code"], "Admitting");
}

#[tokio::test]
async fn the_end_after_a_cancel_is_spelled_as_the_caller_expects() {
    let history = History::start().await;
    history.patch("r1", json!({})).await.ok();
    let cancelled = history.call(Method::POST, "/runs/r1/cancel?cancelationreason=too%20slow", Value::Null).await.ok();
    assert_eq!(cancelled["status"], "Cancelled");
    assert!(cancelled["cancelationReason"].as_str().unwrap().contains("too slow"));
    history.call(Method::POST, "/runs/r1/cancel", Value::Null).await.ok();
    let request = Request::get(format!("/history/v1.0{}/runs/r1", history.server.ws()))
        .header(header::AUTHORIZATION, format!("Bearer {}", history.token))
        .header("x-ms-client-session-id", "s");
    assert_eq!(history.server.send(request.body(axum::body::Body::empty()).unwrap()).await.ok()["status"], "Canceled");
}

#[tokio::test]
async fn a_running_run_that_is_cancelled_says_so_until_it_has_stopped() {
    let history = History::start().await;
    history.submit("r1").await;
    let (attempt, _) = history.admit("r1").await;
    assert_eq!(history.run("r1").await["status"], "Starting");
    let asked = history.event_of_managed("r1", "CancelRequested").await;
    assert_eq!(asked.status, StatusCode::OK, "{asked:?}");
    assert_eq!(history.run("r1").await["status"], "CancelRequested");
    history.apply("r1", RunEvent::Ended { attempt, cause: Cause::Cancelled { by: None, why: None } }).await;
    history.apply("r1", RunEvent::Finalized { attempt, policy: NO_RETRY }).await;
    assert_eq!(history.run("r1").await["status"], "Cancelled");
}

impl History {
    async fn event_of_managed(&self, run: &str, x: &str) -> Answer {
        let event = json!({"name": format!("Microsoft.MachineLearning.Run.{x}"), "data": {}});
        self.call(Method::POST, &format!("/runs/{run}/events"), event).await
    }
}

#[tokio::test]
async fn what_the_code_of_a_managed_run_says_is_noted_and_strangers_are_refused() {
    let history = History::start().await;
    history.submit("r1").await;
    let (_, token) = history.admit("r1").await;
    let completed = json!({"name": "Microsoft.MachineLearning.Run.Completed", "data": {"RunId": "r1"}});
    history.call_as(&token, Method::POST, "/runs/r1/events", completed.clone()).await.ok();
    assert_eq!(history.run("r1").await["status"], "Starting", "its agent moves it");
    let refused = history.call(Method::POST, "/runs/r1/events", completed).await.refused(StatusCode::BAD_REQUEST);
    assert!(refused["message"].as_str().unwrap().contains("system-managed"));
    let timeline = history.get("/runs/r1/events").await.ok();
    let names: Vec<_> = timeline["value"].as_array().unwrap().iter().map(|event| event["name"].as_str().unwrap()).collect();
    let expected = ["Queued", "Starting", "Completed"].map(|x| format!("Microsoft.MachineLearning.Run.{x}"));
    assert_eq!(names, expected);
    assert_eq!(timeline["value"][1]["data"]["RunId"], "r1");
}

#[tokio::test]
async fn the_code_of_a_run_writes_its_own_run_and_its_children_only() {
    let history = History::start().await;
    history.submit("parent").await;
    history.submit("stranger").await;
    let (_, token) = history.admit("parent").await;
    let call = async |method: Method, path: &str, body: Value| history.call_as(&token, method, path, body).await;
    call(Method::PATCH, "/experiments/exp/runs/parent", json!({"tags": {"a": "1"}})).await.ok();
    let child = call(Method::PATCH, "/experiments/exp/runs/child", json!({"parentRunId": "parent", "status": "NotStarted"})).await.ok();
    assert_eq!((&child["rootRunId"], &child["createdBy"]["userName"]), (&json!("parent"), &json!("ada")), "the author is the submitter");
    call(Method::POST, "/runs/child/events", json!({"name": "Microsoft.MachineLearning.Run.Start", "data": {}})).await.ok();
    call(Method::PATCH, "/experiments/exp/runs/grandchild", json!({"parentRunId": "child"})).await.ok();
    for (path, body) in [
        ("/experiments/exp/runs/stranger", json!({"tags": {"a": "1"}})),
        ("/experiments/exp/runs/alone", json!({})),
        ("/experiments/exp/runs/foreign", json!({"parentRunId": "stranger"})),
    ] {
        call(Method::PATCH, path, body).await.refused(StatusCode::FORBIDDEN);
    }
    call(Method::POST, "/runs/stranger/cancel", Value::Null).await.refused(StatusCode::FORBIDDEN);
    assert_eq!(call(Method::GET, "/runs/stranger", Value::Null).await.status, StatusCode::OK);
}

#[tokio::test]
async fn children_know_their_relatives_and_are_listed_below_them() {
    let history = History::start().await;
    let parent = history.patch("p", json!({})).await.ok();
    let child = history.patch("c", json!({"parentRunId": "p"})).await.ok();
    history.patch("g", json!({"parentRunId": "c"})).await.ok();
    assert_eq!((&child["parentRunUuid"], &child["rootRunUuid"]), (&parent["runUuid"], &parent["runUuid"]));
    assert_eq!(ids(&history.get("/runs/p/children?%24top=5").await.ok()), ["c"]);
    let mut descendants = history.query(json!({"filter": "(RootRunId eq p and RunId ne p)"})).await;
    descendants["value"].as_array_mut().unwrap().sort_by_key(|run| run["runId"].to_string());
    assert_eq!(ids(&descendants), ["c", "g"]);
    let orphan = history.patch("o", json!({"parentRunId": "absent"})).await.refused(StatusCode::BAD_REQUEST);
    assert_eq!(orphan["target"], "parentRunId");
    history.get("/runs/absent/children").await.refused(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn queries_filter_order_and_page() {
    let history = History::start().await;
    for run in ["a", "b", "c"] {
        history.patch(run, json!({"tags": {"k": run}, "target": "local"})).await.ok();
    }
    history.event("b", "Start", json!({})).await.ok();
    let sdk = history.query(json!({"filter": "(ParentRunId eq null)", "orderby": "StartTimeUtc desc", "top": 500})).await;
    assert_eq!(ids(&sdk), ["b", "c", "a"], "runs that have not started are listed last");
    assert_eq!(
        ids(&history.query(json!({"filter": "(Tags/k eq \"a\") or (Status eq Running)", "orderby": "RunId asc"})).await),
        ["a", "b"]
    );
    assert_eq!(ids(&history.get("/experiments/e/runs?$filter=Tags/k%20eq%20c").await.ok()), ["c"]);
    assert_eq!(ids(&history.get("/computes/local/runs?$filter=Status%20eq%20Running").await.ok()), ["b"]);

    let first = history.query(json!({"orderby": "RunId asc", "top": 2})).await;
    assert_eq!(ids(&first), ["a", "b"]);
    let token = first["continuationToken"].as_str().unwrap();
    let second = history.query(json!({"orderby": "RunId asc", "top": 2, "continuationToken": token})).await;
    assert_eq!((ids(&second), &second["continuationToken"]), (vec!["c"], &Value::Null));
    let unfit = history.call(Method::POST, "/experiments/e/runs:query", json!({"orderby": "RunId desc", "continuationToken": token})).await;
    unfit.refused(StatusCode::BAD_REQUEST);

    for bad in [json!({"filter": "Status is Running"}), json!({"orderby": "Colour"}), json!({"top": 0}), json!([])] {
        let answer = history.call(Method::POST, "/experiments/e/runs:query", bad.clone()).await;
        answer.refused(StatusCode::BAD_REQUEST);
    }
    history.call(Method::POST, "/experiments/absent/runs:query", json!({})).await.refused(StatusCode::NOT_FOUND);
    let counts = history.get("/experiments/e/runcounts").await.ok();
    assert_eq!((&counts["running"], &counts["notStarted"], &counts["failed"]), (&json!(1), &json!(2), &json!(0)));
}

#[tokio::test]
async fn who_executes_a_run_can_be_asked_for() {
    let history = History::start().await;
    history.submit("managed").await;
    history.patch("external", json!({"runTypeV2": {"orchestrator": "External", "traits": ["unspecified"]}})).await.ok();
    let query = async |filter: &str| history.call(Method::POST, "/runs:query", json!({"filter": filter})).await.ok();
    assert_eq!(ids(&query("(RunTypeV2/Orchestrator eq Execution)").await), ["managed"]);
    assert_eq!(ids(&query("(RunTypeV2/Traits/unspecified ne null)").await), ["external"]);
}

#[tokio::test]
async fn one_bad_item_of_a_batch_does_not_spoil_the_others() {
    let history = History::start().await;
    let body = json!({"runs": [{"runId": "a", "name": "n"}, {"runId": "b", "status": "Nonsense"}]});
    let result = history.call(Method::PATCH, "/experiments/e/batch/runs", body).await.ok();
    assert_eq!(result["runs"]["a"]["name"], "n");
    assert_eq!(result["errors"]["b"]["error"]["target"], "status");
    history.get("/runs/b").await.refused(StatusCode::NOT_FOUND);

    let read = history.call(Method::POST, "/experiments/e/runs/runIds", json!({"runIds": ["a", "absent"]})).await.ok();
    assert_eq!(read["runs"]["a"]["runId"], "a");
    assert_eq!(read["errors"]["absent"]["error"]["code"], "UserError");

    let event = |run: &str| json!({"name": "Microsoft.MachineLearning.Run.Start", "data": {"RunId": run}});
    let events = json!({"events": [event("absent"), event("a")]});
    let result = history.call(Method::POST, "/experiments/e/batch/events", events).await.ok();
    assert_eq!(result["errors"].as_array().unwrap().len(), 1);
    assert_eq!(history.run("a").await["status"], "Running");
}

#[tokio::test]
async fn a_timeline_is_read_in_pages() {
    let history = History::start().await;
    history.patch("r1", json!({})).await.ok();
    for x in ["Start", "QueueingInfo", "Completed"] {
        history.event("r1", x, json!({})).await.ok();
    }
    let first = history.get("/runs/r1/events?$top=3").await.ok();
    let token = first["continuationToken"].as_str().unwrap();
    let second = history.get(&format!("/runs/r1/events?$top=3&$continuationToken={token}")).await.ok();
    let names = |page: &Value| -> Vec<String> {
        page["value"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["name"].as_str().unwrap().rsplit('.').next().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (names(&first), names(&second)),
        (vec!["Created".into(), "Start".into(), "QueueingInfo".into()], vec!["Completed".to_owned()])
    );
    history.get("/runs/r1/events?$continuationToken=x").await.refused(StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn run_data_has_the_parts_that_are_asked_for() {
    let history = History::start().await;
    history.submit("r1").await;
    let body = json!({"runId": "r1", "selectRunMetadata": true, "selectRunDefinition": true});
    let data = history.call(Method::POST, "/rundata", body).await.ok();
    assert_eq!(data["runMetadata"]["runId"], "r1");
    assert_eq!(data["runDefinition"], json!({"script": "hello.py"}));
    assert_eq!(history.call(Method::POST, "/rundata", json!({"runId": "r1"})).await.ok()["runMetadata"], Value::Null);
}
