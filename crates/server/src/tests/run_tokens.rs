//! The tokens of runs: what they open, and when they stop to (azureml-wire A.6).

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use trainyard_core::{
    access::{Action, Role},
    ids::{AttemptId, ExperimentId, ExperimentName, RunId},
    run::{Cause, Desired, Ownership, Retries, RunEvent, RunState, TimelineEntry},
};
use trainyard_store::{
    experiments::Experiment,
    runs::{NewRun, RunRecord},
};
use uuid::Uuid;

use super::support::{NO_RETRY, TestServer};
use crate::{auth::guard::GRACE, clock};

/// A run with a live attempt, and its token.
struct Job {
    run: RunId,
    attempt: AttemptId,
    token: String,
}

async fn job(server: &TestServer, id: &str) -> Job {
    let (workspace, now_us) = (server.workspace.id, clock::now_us());
    let experiment = Experiment {
        id: ExperimentId(Uuid::new_v4()),
        workspace,
        name: ExperimentName::new("e").unwrap(),
        description: None,
        tags: BTreeMap::new(),
        created_us: now_us,
        archived_us: None,
        latest_run_id: None,
        latest_run_created_us: None,
    };
    let experiment = server.state.store.create_or_get_experiment(&experiment).await.unwrap();
    let run = RunId::new(id).unwrap();
    let record = RunRecord {
        workspace,
        id: run.clone(),
        uuid: Uuid::new_v4(),
        number: 0,
        experiment: experiment.id,
        experiment_name: experiment.name.clone(),
        parent: None,
        root: run.clone(),
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        version: 0,
        attempt: None,
        cause: None,
        created_us: now_us,
        started_us: None,
        ended_us: None,
        priority: 0,
        target: Some("cpu-cluster".into()),
        name: None,
        display_name: None,
        description: None,
        run_type: None,
        script_name: None,
        cancel_reason: None,
        cancelled_by: None,
        silent: false,
        retries: Retries::default(),
        not_before_us: None,
        hidden: false,
        created_by: Value::Null,
        properties: BTreeMap::new(),
        tags: BTreeMap::new(),
        extra: Map::new(),
        warnings: vec![],
        error: None,
        snapshot: None,
        definition: None,
        document: None,
        environment: None,
        request_digest: None,
    };
    let first_event = TimelineEntry::run("Queued", json!({}));
    server.state.store.create_run(NewRun { record, first_event, snapshot: None, slots: 1 }).await.unwrap();
    let attempt = AttemptId(Uuid::new_v4());
    apply(server, &run, RunEvent::Admitted { attempt }, now_us).await;
    let (token, _) = server.state.tokens.mint_run(workspace, &run, attempt, now_us).unwrap();
    Job { run, attempt, token }
}

async fn apply(server: &TestServer, run: &RunId, event: RunEvent, at_us: i64) {
    server.state.store.apply(server.workspace.id, run, &event, at_us).await.unwrap();
}

async fn end(server: &TestServer, job: &Job, at_us: i64) {
    apply(server, &job.run, RunEvent::Ended { attempt: job.attempt, cause: Cause::Completed }, at_us).await;
    apply(server, &job.run, RunEvent::Finalized { attempt: job.attempt, policy: NO_RETRY }, at_us).await;
}

#[tokio::test]
async fn a_run_sees_its_workspace_and_gets_a_fresh_token_for_itself_only() {
    let server = TestServer::start().await;
    let (mine, other) = (job(&server, "mine").await, job(&server, "other").await);
    assert_eq!(server.get(&format!("/rp/workspaces{}", server.ws()), &mine.token).await.status, StatusCode::OK);
    let me = server.get("/api/v1/whoami", &mine.token).await.json();
    assert_eq!((me["kind"].as_str(), me["run_id"].as_str()), (Some("run"), Some("mine")));

    let path = |run: &RunId| format!("/history/v1.0{}/experiments/e/runs/{run}/token", server.ws());
    let fresh = server.get(&path(&mine.run), &mine.token).await.json();
    let answer = server.get("/api/v1/whoami", fresh["token"].as_str().unwrap()).await;
    assert_eq!((answer.status, answer.json()["run_id"].as_str().unwrap()), (StatusCode::OK, "mine"));
    assert!(fresh["expiryTimeUtc"].as_str().unwrap().ends_with('Z'));
    let by_id = format!("/history/v1.0{}/experimentids/{}/runs/mine/token", server.ws(), Uuid::new_v4());
    assert_eq!(server.get(&by_id, &mine.token).await.status, StatusCode::OK);

    assert_eq!(server.get(&path(&other.run), &mine.token).await.status, StatusCode::FORBIDDEN);
    let owner = server.owner().await;
    assert_eq!(server.get(&path(&mine.run), &owner).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_run_administers_nothing() {
    let server = TestServer::start().await;
    let job = job(&server, "r").await;
    assert_eq!(server.get("/api/v1/apps", &job.token).await.json(), json!([]));
    let app = json!({ "name": "x", "grants": [{ "workspace": server.ws(), "role": "Owner" }] });
    assert_eq!(server.call(Method::POST, "/api/v1/apps", &job.token, app).await.status, StatusCode::FORBIDDEN);
    let workspace = json!({ "subscription_id": "s", "resource_group": "g", "workspace_name": "new" });
    assert_eq!(server.call(Method::POST, "/api/v1/workspaces", &job.token, workspace).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_runs_token_outlives_the_run_by_a_grace_and_no_longer() {
    let server = TestServer::start().await;
    let (just, long) = (job(&server, "just").await, job(&server, "long").await);
    let now_us = clock::now_us();
    let grace_us = i64::try_from(GRACE.as_micros()).unwrap();
    end(&server, &just, now_us).await;
    end(&server, &long, now_us - grace_us - 1_000_000).await;
    assert_eq!(server.get(&format!("/rp/workspaces{}", server.ws()), &just.token).await.status, StatusCode::OK);
    let answer = server.get(&format!("/rp/workspaces{}", server.ws()), &long.token).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.text.contains("run long is over"), "{answer:?}");
}

#[tokio::test]
async fn the_token_of_an_attempt_that_is_not_the_live_one_reads_but_does_not_write() {
    let server = TestServer::start().await;
    let job = job(&server, "r").await;
    let given_up = AttemptId(Uuid::new_v4());
    let (token, _) = server.state.tokens.mint_run(server.workspace.id, &job.run, given_up, clock::now_us()).unwrap();
    assert_eq!(server.get(&format!("/rp/workspaces{}", server.ws()), &token).await.status, StatusCode::OK);
    let refresh = server.get(&format!("/history/v1.0{}/runs/r/token", server.ws()), &token).await;
    assert_eq!(refresh.status, StatusCode::FORBIDDEN);
    assert!(refresh.text.contains("was given up"), "{refresh:?}");
}

#[tokio::test]
async fn a_role_that_is_too_low_is_told_which_one_it_takes() {
    let server = TestServer::start().await;
    let token = server.token(Role::Reader).await;
    let caller = super::super::context::decide(
        &trainyard_core::access::Principal::App { id: trainyard_core::ids::AppId(Uuid::nil()), name: "a".into(), grants: vec![] },
        Action::Write,
        None,
    );
    assert_eq!(caller.unwrap_err().message(), "application `a` may not do this: it needs the role Contributor on the server");
    let created = server.call(Method::POST, &format!("/history/v1.0{}/experiments/new", server.ws()), &token, Value::Null).await;
    assert_eq!(created.status, StatusCode::FORBIDDEN);
    assert!(created.json()["error"]["message"].as_str().unwrap().contains("needs the role Contributor in the workspace"), "{created:?}");
}
