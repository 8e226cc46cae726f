//! Environments under names, as the real SDK and as plain requests use them.

use std::fs;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestServer, definition, form, said_with_the_sdk, sdk_python, until, zip};

const CURATED: &str = "[compute.cpu-cluster]\nslots = 2\n[compute.local]\nslots = 1\n\
    [curated.\"AzureML-six-1.16\"]\npip = [\"six==1.16.0\"]\nversion = \"4\"\n\
    [curated.\"AzureML-file\"]\nfile = \"environment.yml\"\n";

async fn server() -> TestServer {
    TestServer::on(|dir| {
        fs::write(dir.join("config.toml"), CURATED).unwrap();
        fs::write(dir.join("environment.yml"), "dependencies:\n  - python\n  - pip:\n    - six==1.15.0\n").unwrap();
    })
    .await
}

fn service(server: &TestServer, rest: &str) -> String {
    server.ws("environment/v1.0", &format!("/environments{rest}"))
}

fn with_pip(requirement: &str) -> Value {
    json!({ "Name": "train", "python": { "userManagedDependencies": false, "condaDependencies": { "dependencies": [{ "pip": [requirement] }] } } })
}

/// The environment of every section of a definition.
fn named(environment: Value) -> impl FnOnce(&mut Value) {
    move |configuration| configuration["Environment"] = environment
}

async fn refused(server: &TestServer, environment: Value) -> String {
    let mut definition = definition();
    definition["Configuration"]["Environment"] = environment;
    let (status, answer) = server.start_run("", form(&definition, &zip(&[("hello.py", "print(1)")]))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    answer["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_real_sdk_registers_gets_lists_labels_builds_and_submits_by_name() {
    let name = "the_real_sdk_registers_gets_lists_labels_builds_and_submits_by_name";
    let Some(python) = sdk_python(name) else { return };
    let server = server().await;
    let hello = "import six; print('six', six.__version__)\n";
    let said = said_with_the_sdk(&server, &python, include_str!("../data/environments_with_the_sdk.py"), hello);
    assert_eq!(said["versions"], json!(["1", "1", "2"]), "the same content is the same version");
    assert_eq!(said["packages"], json!(["six==1.16.0"]));
    assert_eq!(said["names"], json!(["AzureML-file", "AzureML-six-1.16", "train/deep"]));
    assert_eq!(said["of_workspace"], said["names"], "`ws.environments` is the same list");
    assert_eq!(said["latest"], json!(["2", ["six==1.15.0"]]));
    assert_eq!(said["by_version"], json!(["2", ["six==1.15.0"]]));
    assert_eq!(said["labelled"], "1");
    assert_eq!(said["image_exists"], false);
    assert_eq!(said["build"], "Succeeded", "{said}");
    assert!(said["build_log"].as_str().unwrap().contains("six"), "{said}");
    assert!(said["unknown"].as_str().unwrap().contains("`train/deep`"), "the nearest name is offered: {said}");
    assert!(said["recipe"].as_str().unwrap().contains("trainyard environments build"), "{said}");
    let run = said["run"].as_str().unwrap();
    let dto = server.get(&server.history(&format!("/runs/{run}"))).await;
    assert_eq!(dto["status"], "Completed", "{dto:#}");
    assert_eq!(server.driver_log(run).await, "six 1.16.0\n");
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    let environment = &details["runDefinition"]["environment"];
    assert_eq!((&environment["name"], &environment["version"]), (&json!("train/deep"), &json!("1")), "{environment:#}");
}

#[tokio::test]
async fn versions_count_up_with_the_content_and_are_never_changed() {
    let server = server().await;
    let (one, two) = (with_pip("six==1.16.0"), with_pip("six==1.15.0"));
    let mut versions = Vec::new();
    for body in [&one, &one, &two] {
        let (status, answer) = server.send(Method::PUT, &service(&server, "/train"), body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        versions.push(answer["version"].as_str().unwrap().to_owned());
    }
    assert_eq!(versions, ["1", "1", "2"]);
    let latest = server.get(&service(&server, "/train")).await;
    assert_eq!((&latest["name"], &latest["version"]), (&json!("train"), &json!("2")));
    assert_eq!(latest["python"]["condaDependencies"]["dependencies"][0]["pip"], json!(["six==1.15.0"]));
    assert_eq!(latest["docker"], Value::Null);
    let (status, answer) = server.send(Method::PUT, &service(&server, "/train/versions/1"), two).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
    let (status, answer) = server.send(Method::PUT, &service(&server, "/train/versions/1"), one.clone()).await;
    assert_eq!((status, answer["version"].as_str()), (StatusCode::OK, Some("1")), "the same again is no change");
    let (status, _) = server.send(Method::PUT, &service(&server, "/train/versions/1/metadata"), json!({ "Labels": ["good"] })).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(server.get(&service(&server, "/train/labels/good")).await["version"], "1");
    assert_eq!(server.get(&service(&server, "/train/labels/Latest")).await["version"], "2");
    let (status, answer) = server.send(Method::GET, &service(&server, "/train/versions/9"), Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["error"]["message"].as_str().unwrap().contains("it has 2, 1"), "{answer}");
    assert_eq!(answer["componentName"], "environment");
}

#[tokio::test]
async fn lists_are_paged_and_begin_with_the_curated_ones() {
    let server = server().await;
    for name in ["b", "a", "c%20d"] {
        let (status, answer) = server.send(Method::PUT, &service(&server, &format!("/{name}")), with_pip("six")).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let (mut names, mut continuation) = (Vec::new(), String::new());
    loop {
        let page = server.get(&service(&server, &format!("/?count=2{continuation}"))).await;
        names.extend(page["value"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()));
        let Some(token) = page["continuationToken"].as_str() else { break };
        continuation = format!("&continuation={token}");
    }
    assert_eq!(names, ["AzureML-file", "AzureML-six-1.16", "a", "b", "c d"]);
    assert_eq!(server.get(&service(&server, "/c%20d")).await["name"], "c d");
    let (status, answer) = server.send(Method::PUT, &service(&server, "/AzureML-six-1.16"), with_pip("six")).await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
}

#[tokio::test]
async fn the_versions_of_a_name_are_listed_the_latest_first() {
    let server = server().await;
    for requirement in ["six==1.14.0", "six==1.15.0", "six==1.16.0"] {
        let (status, answer) = server.send(Method::PUT, &service(&server, "/team%2Ftrain"), with_pip(requirement)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let first = server.get(&service(&server, "/team%2Ftrain/versions?count=2")).await;
    let token = first["continuationToken"].as_str().unwrap();
    let second = server.get(&service(&server, &format!("/team%2Ftrain/versions?count=2&continuation={token}"))).await;
    let of = |page: &Value| -> Vec<(String, String)> {
        let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
        page["value"].as_array().unwrap().iter().map(|one| (text(one, "name"), text(one, "version"))).collect()
    };
    let named = |version: &str| ("team/train".to_owned(), version.to_owned());
    assert_eq!((of(&first), of(&second)), (vec![named("3"), named("2")], vec![named("1")]));
    assert_eq!(second["value"][0]["python"]["condaDependencies"]["dependencies"][0]["pip"], json!(["six==1.14.0"]));
    assert_eq!(of(&server.get(&service(&server, "/AzureML-six-1.16/versions")).await), [("AzureML-six-1.16".to_owned(), "4".to_owned())]);
    let (status, answer) = server.send(Method::GET, &service(&server, "/team%2Ftrian/versions"), Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["error"]["message"].as_str().unwrap().contains("`team/train`"), "{answer}");
    let listed = server.cli(&["environments", "list", "--versions", "team/train"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    let versions: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(versions, ["3", "2", "1"], "{listed}");
}

#[tokio::test]
async fn what_no_run_could_have_is_not_registered() {
    let server = server().await;
    let table = [
        (json!({ "python": { "condaDependencies": { "dependencies": [{ "pip": ["six>>1"] }] } } }), "six>>1"),
        (
            json!({ "python": { "condaDependencies": { "dependencies": [{ "pip": ["-i https://u:hunter2@x.example/simple"] }] } } }),
            "credentials",
        ),
        (
            json!({ "python": { "condaDependencies": { "channels": ["https://u:hunter2@c.example/x"], "dependencies": [] } } }),
            "credentials",
        ),
        (json!({ "r": { "rVersion": "4" } }), "r is given"),
        (json!({ "lock": { "python": "3.11", "builder": "", "packages": [{ "name": "../x", "version": "1" }] } }), "lock.packages[0]"),
        (json!({ "sameAsRun": "no-such-run" }), "no-such-run"),
        (json!({ "python": "yes" }), "python"),
        (json!({ "python": { "condaDependenciesFile": "environment.yml" } }), "python.condaDependenciesFile"),
    ];
    for (body, words) in table {
        let (status, answer) = server.send(Method::PUT, &service(&server, "/bad"), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{message}");
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
        assert!(!message.to_lowercase().contains("configuration.environment"), "{message}");
    }
    let (status, answer) = server.send(Method::PUT, &service(&server, "/bad/versions/a%20b"), with_pip("six")).await;
    assert_eq!((status, answer["error"]["target"].as_str()), (StatusCode::BAD_REQUEST, Some("version")));
    assert_eq!(server.get(&service(&server, "")).await["value"].as_array().unwrap().len(), 2, "only the curated ones");
}

#[tokio::test]
async fn the_password_of_a_registry_is_nowhere_in_the_open() {
    let server = server().await;
    let body = |password: &str| {
        json!({
            "python": { "userManagedDependencies": true },
            "docker": { "enabled": true, "baseImage": "registry.example/team/image:1",
                        "baseImageRegistry": { "address": "registry.example", "username": "ada", "password": password } },
        })
    };
    let (status, answer) = server.send(Method::PUT, &service(&server, "/private"), body("hunter2-one")).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let (_, again) = server.send(Method::PUT, &service(&server, "/private"), body("hunter2-two")).await;
    assert_eq!(again["version"], "1", "another password is not another environment");
    let image = server.get(&service(&server, "/private/image")).await;
    assert_eq!(image["dockerImage"]["name"], "registry.example/team/image:1");
    assert_eq!(image["dockerImage"]["registry"], json!({ "address": "registry.example", "username": "ada", "password": null }));
    let run = server.submit("print(1)", named(json!({ "Name": "private" }))).await;
    let details = server.get(&server.history(&format!("/runs/{run}/details"))).await;
    for text in
        [answer.to_string(), again.to_string(), image.to_string(), details.to_string(), server.get(&service(&server, "")).await.to_string()]
    {
        assert!(!text.contains("hunter2"), "{text}");
    }
    server.cli(&["cancel", &run, "--wait"]);
    for file in server.files("").into_iter().filter(|file| !file.ends_with("order.json")) {
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "the password is in {}", file.display());
    }
}

#[tokio::test]
async fn a_definition_may_name_its_environment() {
    let server = server().await;
    let (status, answer) = server.send(Method::PUT, &service(&server, "/train"), with_pip("six==1.16.0")).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let script = "import os, six; print(six.__version__, os.environ.get('A'))";
    let runs = [
        (json!({ "Name": "train", "EnvironmentVariables": { "A": "mine" } }), "1.16.0 mine\n"),
        (json!({ "name": "train", "version": "1", "python": null, "docker": null }), "1.16.0 None\n"),
        (json!({ "AssetId": "azureml:train:1" }), "1.16.0 None\n"),
        (json!({ "Name": "AzureML-six-1.16", "Version": "4" }), "1.16.0 None\n"),
        (json!({ "Name": "AzureML-file" }), "1.15.0 None\n"),
    ];
    for (environment, printed) in runs {
        let run = server.submit(script, named(environment.clone())).await;
        server.wait_for(&run, "Completed").await;
        assert_eq!(server.driver_log(&run).await, printed, "{environment}");
    }
    let message = refused(&server, json!({ "Name": "trian" })).await;
    assert!(message.starts_with("Configuration.Environment.Name: ") && message.contains("the nearest names are `train`"), "{message}");
    let message = refused(&server, json!({ "Name": "train", "Version": "7" })).await;
    assert!(message.contains("has no version `7`"), "{message}");
    let message = refused(&server, json!({ "AssetId": "elsewhere" })).await;
    assert!(message.contains("Configuration.Environment.AssetId") && message.contains("azureml:NAME:VERSION"), "{message}");
}

#[tokio::test]
async fn a_run_may_have_the_environment_of_another() {
    let server = server().await;
    let first = server.submit("print(1)", named(json!({ "Name": "AzureML-six-1.16" }))).await;
    server.wait_for(&first, "Completed").await;
    let script = "import six; print(six.__version__)";
    let second = server.submit(script, named(json!({ "SameAsRun": first }))).await;
    server.wait_for(&second, "Completed").await;
    assert_eq!(server.driver_log(&second).await, "1.16.0\n");
    let details = server.get(&server.history(&format!("/runs/{second}/details"))).await;
    assert_eq!(details["runDefinition"]["environment"]["sameAsRun"], first);
    let hash = server.run(&second).await["properties"]["trainyard.environment"].as_str().unwrap().to_owned();
    let lock = server.get(&server.client().native(&format!("/environments/{hash}/lock"))).await;
    let third = server.submit(script, named(json!({ "Lock": lock }))).await;
    server.wait_for(&third, "Completed").await;
    assert_eq!(server.driver_log(&third).await, "1.16.0\n");
    let message = refused(&server, json!({ "SameAsRun": "no-such-run" })).await;
    assert!(message.contains("Configuration.Environment.SameAsRun") && message.contains("`no-such-run` was not found"), "{message}");
    let plain = server.submit("print(1)", |_| {}).await;
    server.wait_for(&plain, "Completed").await;
    let message = refused(&server, json!({ "SameAsRun": plain })).await;
    assert!(message.contains("has built no environment"), "{message}");
    let message = refused(&server, json!({ "SameAsRun": first, "Lock": {} })).await;
    assert!(message.contains("give one of them"), "{message}");
}

#[tokio::test]
async fn a_build_is_a_run_whose_status_the_service_tells() {
    let server = server().await;
    let (status, answer) = server.send(Method::PUT, &service(&server, "/train"), with_pip("six==1.16.0")).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let start = server.ws("environment/v2.0", "/environments/train/versions/1/imageoncompute/cpu-cluster");
    let (status, answer) = server.send(Method::POST, &start, json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let location = answer["location"].as_str().unwrap().strip_prefix(&server.file.endpoint).unwrap().to_owned();
    let built = until("the build to end", || async {
        let build = server.get(&location).await;
        (!["Queued", "Running"].contains(&build["status"].as_str().unwrap())).then_some(build)
    })
    .await;
    assert_eq!(built["status"], "Succeeded", "{built}");
    let url = built["logUrl"].as_str().unwrap().strip_prefix(&server.file.endpoint).unwrap().to_owned();
    let log = server.anonymous(Method::GET, &url).send().await.unwrap().text().await.unwrap();
    assert!(log.contains("six"), "{log}");
    let unknown = server.ws("environment/v2.0", "/environments/train/imageoncompute/gpu");
    let (status, answer) = server.send(Method::POST, &unknown, json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().unwrap().contains("target `gpu` is not configured"), "{answer}");
    let run = server.submit("print(1)", |_| {}).await;
    let (status, _) = server.send(Method::GET, &server.ws("environment/v1.0", &format!("/builds/{run}")), Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "an ordinary run is no build");
}
