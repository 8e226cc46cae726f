//! Python environments as a run sees them.

use serde_json::{Value, json};

use crate::support::TestServer;

fn managed(dependencies: Value) -> impl FnOnce(&mut Value) {
    move |configuration| {
        configuration["Environment"] =
            json!({ "Python": { "UserManagedDependencies": false, "CondaDependencies": { "dependencies": dependencies } } });
    }
}

#[tokio::test]
async fn an_environment_is_built_once_and_its_lock_is_visible() {
    let server = TestServer::start().await;
    let script = "import six, sys\nprint(six.__version__, sys.prefix != sys.base_prefix)";
    let first = server.submit(script, managed(json!([{ "pip": ["six==1.16.0"] }]))).await;
    server.wait_for(&first, "Completed").await;
    assert_eq!(server.driver_log(&first).await, "1.16.0 True\n");
    let build = server.log(&first, "azureml-logs/20_image_build_log.txt").await;
    assert!(build.contains("six"), "the build is logged: {build}");
    // The same environment, written differently.
    let second = server.submit(script, managed(json!([{ "pip": [" SIX == 1.16.0 "] }]))).await;
    let dto = server.wait_for(&second, "Completed").await;
    let again = server.log(&second, "azureml-logs/20_image_build_log.txt").await;
    assert!(!again.contains("Resolved"), "it was built again: {again}");
    let hash = dto["properties"]["trainyard.environment"].as_str().unwrap();
    assert_eq!(server.run(&first).await["properties"]["trainyard.environment"], hash);
    let environment = server.get(&server.client().native(&format!("/environments/{hash}"))).await;
    let packages = environment["lock"]["packages"].as_array().unwrap();
    assert!(packages.iter().any(|package| package["name"] == "six" && package["version"] == "1.16.0"), "{environment:#}");
}

#[tokio::test]
async fn a_failed_build_fails_the_run_with_the_resolvers_words() {
    let server = TestServer::start().await;
    let run = server.submit("print(1)", managed(json!([{ "pip": ["six==1.16.0", "six==1.15.0"] }]))).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("six==1.15.0") && message.contains("six==1.16.0"), "{message}");
}

#[tokio::test]
async fn a_python_that_cannot_be_had_fails_the_run_when_told_to() {
    let server = TestServer::with_config("[environments]\npython_fallback = \"fail\"\n[compute.cpu-cluster]\nslots = 1\n").await;
    let run = server.submit("print(1)", managed(json!(["python=3.6.2", { "pip": ["six"] }]))).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("Python 3.6.2"), "{message}");
}

#[tokio::test]
async fn a_missing_interpreter_is_named() {
    let server = TestServer::start().await;
    let run = server
        .submit("print(1)", |configuration| configuration["Environment"]["Python"]["InterpreterPath"] = json!("/no/such/python"))
        .await;
    let dto = server.wait_for(&run, "Failed").await;
    assert!(dto["error"]["error"]["message"].as_str().unwrap().contains("/no/such/python"), "{dto:#}");
}
