//! From `startrun` to the end of a run.

use reqwest::{
    StatusCode,
    multipart::{Form, Part},
};
use serde_json::json;

use crate::support::{TestServer, definition, form, zip};

#[tokio::test]
async fn a_run_executes_and_keeps_its_log_and_outputs() {
    let server = TestServer::start().await;
    let script = "import os, sys\nprint('Hello!', sys.argv[1:])\nos.makedirs('outputs/deep', exist_ok=True)\nopen('outputs/deep/model.txt', 'w').write('42')\nopen('logs/own.log', 'w').write('mine')\n";
    let run = server.submit(script, |configuration| configuration["Arguments"] = json!(["234"])).await;
    let dto = server.wait_for(&run, "Completed").await;
    assert_eq!(server.driver_log(&run).await, "Hello! ['234']\n");
    assert!(dto["startTimeUtc"].is_string() && dto["endTimeUtc"].is_string(), "{dto:#}");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    let logs: Vec<&String> = details["logFiles"].as_object().unwrap().keys().collect();
    assert_eq!(logs, ["azureml-logs/20_image_build_log.txt", "azureml-logs/70_driver_log.txt", "logs/own.log"]);
    let path = server.ws("artifact/v2.0", &format!("/artifacts/prefix/contentinfo/ExperimentRun/dcid.{run}/outputs/"));
    let listed = server.get(&path).await;
    assert_eq!(listed["value"][0]["path"], "outputs/deep/model.txt");
    let url = listed["value"][0]["contentUri"].as_str().unwrap().replace(&server.file.endpoint, "");
    let content = server.anonymous(reqwest::Method::GET, &url).send().await.unwrap();
    assert_eq!(content.text().await.unwrap(), "42");
}

#[tokio::test]
async fn the_script_sees_its_run_and_trusts_the_server() {
    let server = TestServer::start().await;
    let script = r#"
import json, os, ssl, urllib.request
seen = {name: value for name, value in os.environ.items() if name.startswith("AZUREML_") and "TOKEN" not in name}
print(json.dumps(seen))
request = urllib.request.Request(
    "%s/history/v1.0%s/runs/%s" % (os.environ["AZUREML_SERVICE_ENDPOINT"], os.environ["AZUREML_WORKSPACE_SCOPE"], os.environ["AZUREML_RUN_ID"]),
    headers={"Authorization": "Bearer " + os.environ["AZUREML_RUN_TOKEN"]})
print("status:", json.load(urllib.request.urlopen(request))["status"])
print("bundle:", os.path.getsize(os.environ["REQUESTS_CA_BUNDLE"]) > 1000, os.environ["SSL_CERT_FILE"] == os.environ["REQUESTS_CA_BUNDLE"])
print("mine:", os.environ["MINE"], "token expiry:", int(os.environ["AZUREML_RUN_TOKEN_EXPIRY"]) > 0)
"#;
    let run = server.submit(script, |configuration| configuration["EnvironmentVariables"] = json!({ "MINE": "yes" })).await;
    server.wait_for(&run, "Completed").await;
    let log = server.driver_log(&run).await;
    let seen: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let file = &server.file;
    for (name, value) in [
        ("AZUREML_RUN_ID", run.as_str()),
        ("AZUREML_ARM_SUBSCRIPTION", &file.subscription_id),
        ("AZUREML_ARM_RESOURCEGROUP", &file.resource_group),
        ("AZUREML_ARM_WORKSPACE_NAME", &file.workspace_name),
        ("AZUREML_ARM_PROJECT_NAME", "it"),
        ("AZUREML_SERVICE_ENDPOINT", &file.endpoint),
    ] {
        assert_eq!(seen[name], value, "{name} in {log}");
    }
    assert!(log.contains("status: Running") && log.contains("bundle: True True") && log.contains("mine: yes token expiry: True"), "{log}");
}

#[tokio::test]
async fn a_failing_script_fails_the_run_with_its_exit_code() {
    let server = TestServer::start().await;
    let run = server.submit("import sys\nprint('last words')\nsys.exit(3)", |_| {}).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("exit code 3"), "{message}");
    assert_eq!(dto["error"]["error"]["code"], "UserError");
    assert_eq!(server.driver_log(&run).await, "last words\n");
}

#[tokio::test]
async fn a_run_over_its_time_limit_is_stopped_and_says_so() {
    let server = TestServer::start().await;
    let run = server.submit("import time\ntime.sleep(600)", |configuration| configuration["MaxRunDurationSeconds"] = json!(1)).await;
    let dto = server.wait_for(&run, "Failed").await;
    assert!(dto["error"]["error"]["message"].as_str().unwrap().contains("MaxRunDurationSeconds = 1"), "{dto:#}");
}

#[tokio::test]
async fn waiting_runs_go_first_in_first_out_and_say_why_they_wait() {
    let server = TestServer::with_config("[compute.cpu-cluster]\nslots = 1\n").await;
    let gate = server.dir().join("gate");
    let first = format!("import os, time\nwhile not os.path.exists({:?}): time.sleep(0.05)", gate.display().to_string());
    let blocker = server.submit(&first, |_| {}).await;
    server.wait_for(&blocker, "Running").await;
    let second = server.submit("print(2)", |_| {}).await;
    let third = server.submit("print(3)", |_| {}).await;
    let urgent = server.submit("print(9)", |configuration| configuration["Priority"] = json!(7)).await;
    let waiting = server.run(&third).await;
    assert_eq!(waiting["status"], "Queued");
    assert_eq!(waiting["queueingInfo"]["code"], "WaitingForSlot");
    let message = waiting["queueingInfo"]["message"].as_str().unwrap();
    assert!(message.contains("1 of 1 busy, 2 runs are ahead"), "{message}");
    std::fs::write(&gate, "").unwrap();
    let mut starts = Vec::new();
    for run in [&urgent, &second, &third] {
        starts.push(server.wait_for(run, "Completed").await["startTimeUtc"].as_str().unwrap().to_owned());
    }
    assert!(starts.is_sorted(), "{starts:?}");
}

#[tokio::test]
async fn the_same_run_id_with_the_same_request_is_one_run() {
    let server = TestServer::start().await;
    let package = zip(&[("hello.py", "print('once')")]);
    for _ in 0..3 {
        let (status, answer) = server.start_run("?runId=mine-1", form(&definition(), &package)).await;
        assert_eq!((status, answer["runId"].as_str()), (StatusCode::OK, Some("mine-1")));
    }
    server.wait_for("mine-1", "Completed").await;
    let (status, answer) = server.start_run("?runId=mine-1", form(&definition(), &zip(&[("hello.py", "print('other')")]))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("`mine-1` exists already"), "{answer}");
    assert_eq!(server.driver_log("mine-1").await, "once\n");
    let events = server.get(&server.client().native("/runs/mine-1/attempts")).await;
    assert_eq!(events.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_unknown_target_is_refused_with_the_list_of_targets() {
    let server = TestServer::start().await;
    let mut asked = definition();
    asked["Configuration"]["Target"] = json!("gpu");
    let (status, answer) = server.start_run("", form(&asked, &zip(&[("hello.py", "")]))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("`gpu`") && message.contains("cpu-cluster, local"), "{message}");
}

#[tokio::test]
async fn what_this_server_does_not_act_on_is_refused_by_name() {
    let server = TestServer::start().await;
    let cases = [
        (json!({ "NodeCount": 3 }), "cpu-cluster` has 2 slots"),
        (json!({ "Communicator": "ParallelTask" }), "Communicator"),
        (json!({ "Environment": { "Docker": { "BuildContext": { "Location": "x" } } } }), "Docker.BuildContext"),
        (json!({ "Environment": { "R": {} } }), "Environment.R"),
    ];
    for (change, name) in cases {
        let mut asked = definition();
        for (key, value) in change.as_object().unwrap() {
            asked["Configuration"][key] = value.clone();
        }
        let (status, answer) = server.start_run("", form(&asked, &zip(&[("hello.py", "")]))).await;
        assert!(status.is_client_error(), "{name}: {status} {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(name), "{name}: {answer}");
    }
}

#[tokio::test]
async fn parts_without_content_type_and_names_in_any_case_are_taken() {
    let server = TestServer::start().await;
    let asked = json!({ "configuration": { "SCRIPT": "hello.py", "framework": "python", "target": "local",
        "environment": { "PYTHON": { "interpreterpath": "python3", "usermanageddependencies": true } } } });
    let form = Form::new()
        .part("rundefinitionfile", Part::bytes(serde_json::to_vec(&asked).unwrap()).file_name("definition.json"))
        .part("PROJECTZIPFILE", Part::bytes(zip(&[("hello.py", "print('any case')")])).file_name("project.zip"));
    let (status, answer) = server.start_run("", form).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let run = answer["runId"].as_str().unwrap();
    server.wait_for(run, "Completed").await;
    assert_eq!(server.driver_log(run).await, "any case\n");
}
