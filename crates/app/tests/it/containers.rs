//! Runs in containers, from the definition to the run's end. The image is that of `scripts/test-image`, the engine Podman or what
//! `TRAINYARD_TEST_CONTAINERS` names.

use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestServer, definition, form, zip};

const IMAGE: &str = "localhost/trainyard-test:latest";

/// `podman` or `docker`: what the tests need of both has the same words.
fn engine() -> String {
    std::env::var("TRAINYARD_TEST_CONTAINERS").unwrap_or_else(|_| "podman".to_owned())
}

/// `[compute.cpu-cluster]` with this policy; `None`, with a message, where containers cannot be run.
fn config(test: &str, policy: &str) -> Option<String> {
    if !Command::new(engine()).args(["image", "inspect", IMAGE]).output().is_ok_and(|output| output.status.success()) {
        skip(test);
        return None;
    }
    // What containers need on machines with old control groups and low limits; it does no harm elsewhere.
    let runtime = if Command::new("runc").arg("--version").output().is_ok() { "container_runtime = \"runc\"\n" } else { "" };
    let engine = engine();
    Some(format!(
        "[compute.cpu-cluster]\nslots = 2\ncontainers = \"{policy}\"\ncontainer_engine = \"{engine}\"\n{runtime}\
         container_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n\
         [registry.\"127.0.0.1:1\"]\nusername = \"ada\"\npassword = \"configured-secret\"\n"
    ))
}

#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
fn skip(test: &str) {
    eprintln!("SKIPPED {test}: {} with the image {IMAGE} is not there; scripts/test-image makes it", engine());
}

fn in_image(docker: Value) -> impl FnOnce(&mut Value) {
    move |configuration| {
        configuration["Environment"] =
            json!({ "Python": { "UserManagedDependencies": true, "InterpreterPath": "python" }, "Docker": docker });
    }
}

#[tokio::test]
async fn a_run_in_an_image_completes_with_its_log_outputs_and_lock() {
    let Some(config) = config("a_run_in_an_image_completes_with_its_log_outputs_and_lock", "when-asked") else { return };
    let server = TestServer::with_config(&config).await;
    let script = "import os, only_in_the_image\nos.makedirs('outputs', exist_ok=True)\nopen('outputs/a.txt', 'w').write('a')\n\
                  print(only_in_the_image.WHERE, os.environ['AZUREML_RUN_ID'])\n";
    let run = server.submit(script, in_image(json!({ "Enabled": true, "BaseImage": IMAGE }))).await;
    let dto = server.wait_for(&run, "Completed").await;
    assert_eq!(server.driver_log(&run).await, format!("image {run}\n"));
    let hash = dto["properties"]["trainyard.environment"].as_str().unwrap_or_else(|| panic!("{dto:#}"));
    let environment = server.get(&server.client().native(&format!("/environments/{hash}"))).await;
    assert!(environment["lock"]["image"]["digest"].as_str().unwrap().starts_with("sha256:"), "{environment:#}");
}

#[tokio::test]
async fn a_target_that_requires_containers_uses_the_image_that_is_only_named() {
    let Some(config) = config("a_target_that_requires_containers_uses_the_image_that_is_only_named", "required") else { return };
    let server = TestServer::with_config(&config).await;
    let run = server.submit("import only_in_the_image\nprint('in')", in_image(json!({ "BaseImage": IMAGE }))).await;
    server.wait_for(&run, "Completed").await;
    assert_eq!(server.driver_log(&run).await, "in\n");
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_container() {
    let Some(config) = config("a_cancelled_run_leaves_no_container", "when-asked") else { return };
    let server = TestServer::with_config(&config).await;
    let script = "import time\nprint('up', flush=True)\nwhile True: time.sleep(0.1)";
    let run = server.submit(script, in_image(json!({ "Enabled": true, "BaseImage": IMAGE }))).await;
    server.wait_for_output(&run, "up").await;
    let attempts = server.get(&server.client().native(&format!("/runs/{run}/attempts"))).await;
    let filter = format!("label=trainyard.attempt={}", attempts[0]["id"].as_str().unwrap());
    let there = Command::new(engine()).args(["ps", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(!there.stdout.is_empty(), "it runs in a container");
    let (status, answer) = server.send(Method::POST, &server.history(&format!("/runs/{run}/cancel")), json!({})).await;
    assert!(status.is_success(), "{answer}");
    server.wait_for(&run, "Cancelled").await;
    let left = Command::new(engine()).args(["ps", "--all", "--quiet", "--filter", &filter]).output().unwrap();
    assert!(left.stdout.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_password_of_a_registry_reaches_neither_rows_nor_logs_nor_errors() {
    let Some(config) = config("the_password_of_a_registry_reaches_neither_rows_nor_logs_nor_errors", "when-asked") else { return };
    let server = TestServer::with_config(&config).await;
    let registry = json!({ "Address": "127.0.0.1:1", "Username": "bob", "Password": "hunter2-of-the-run" });
    let docker = json!({ "Enabled": true, "BaseImage": "team/nope:1", "BaseImageRegistry": registry });
    let run = server.submit("print(1)", in_image(docker)).await;
    let dto = server.wait_for(&run, "Failed").await;
    let message = dto["error"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("127.0.0.1:1/team/nope:1` could not be pulled (logged in as `bob`)"), "{message}");
    let build = server.log(&run, "azureml-logs/20_image_build_log.txt").await;
    let database = std::fs::read(server.dir().join("trainyard.sqlite")).unwrap();
    let wal = std::fs::read(server.dir().join("trainyard.sqlite-wal")).unwrap_or_default();
    for (place, bytes) in
        [("run", dto.to_string().into_bytes()), ("build log", build.into_bytes()), ("database", database), ("write-ahead log", wal)]
    {
        for secret in ["hunter2", "configured-secret"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} in the {place}");
        }
    }
}

#[tokio::test]
async fn a_container_on_a_target_without_is_refused_at_submission() {
    let server = TestServer::with_config("[compute.cpu-cluster]\nslots = 1\ncontainers = \"never\"\n").await;
    let mut definition = definition();
    in_image(json!({ "Enabled": true, "BaseImage": "python" }))(&mut definition["Configuration"]);
    let (status, body) = server.start_run("", form(&definition, &zip(&[("hello.py", "print(1)")]))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body.to_string().contains("the target `cpu-cluster` runs nothing in containers"), "{body}");
}
