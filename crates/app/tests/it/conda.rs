//! conda packages through the whole server, from a real channel that `scripts/conda-channel` makes.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{TestServer, definition, form, zip};

/// The channel of tests; the first who asks makes it.
fn channel() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let channel = root.join("target/test-channel");
    let made = Command::new(root.join("scripts/conda-channel")).arg(&channel).status().expect("python3 runs scripts/conda-channel");
    assert!(made.success(), "scripts/conda-channel failed");
    channel
}

/// A server whose configuration names the channel.
async fn server() -> TestServer {
    TestServer::with_config(&format!("[environments]\nconda_channels = [{:?}]\n[compute.cpu-cluster]\nslots = 2\n", channel())).await
}

fn managed(specification: Value) -> impl FnOnce(&mut Value) {
    move |configuration| {
        configuration["Environment"] = json!({ "Python": { "UserManagedDependencies": false, "CondaDependencies": specification } });
    }
}

const SCRIPT: &str =
    "import greeting, os\ngreeting.main()\nprint(os.environ['LIBGREET_VERSION'], os.environ['MINE'])\nos.system('greet-helper')\n";

#[tokio::test]
async fn a_run_with_conda_packages_prints_what_they_say() {
    let server = server().await;
    let specification = json!({ "name": "x", "dependencies": ["python", "greeting =2"], "variables": { "MINE": "yes" } });
    let run = server.submit(SCRIPT, managed(specification)).await;
    let dto = server.wait_for(&run, "Completed").await;
    let log = server.driver_log(&run).await;
    assert!(log.starts_with("greeting 2.0 hello from libgreet 2.0 in /"), "{log}");
    assert!(log.contains("\n2.0 yes\n") && log.contains("helper\n"), "{log}");
    let build = server.log(&run, "azureml-logs/20_image_build_log.txt").await;
    for part in ["solving", "solved: 3 conda packages", "downloading 0 of 3 packages", "linking", "activation sets"] {
        assert!(build.contains(part), "{part}: {build}");
    }
    let hash = dto["properties"]["trainyard.environment"].as_str().unwrap();
    let environment = server.get(&server.client().native(&format!("/environments/{hash}"))).await;
    let packages = environment["lock"]["conda"].as_array().unwrap();
    assert!(packages.iter().any(|package| package["name"] == "libgreet" && package["sha256"].is_string()), "{environment:#}");

    // Written differently, it is the same environment.
    let specification = json!({ "channels": ["nodefaults"], "dependencies": ["GREETING=2.*", "python *"], "variables": { "MINE": "no" } });
    let again = server.submit(SCRIPT, managed(specification)).await;
    server.wait_for(&again, "Completed").await;
    assert!(server.log(&again, "azureml-logs/20_image_build_log.txt").await.contains("it was built before"));
    assert!(server.driver_log(&again).await.contains("2.0 no"));
}

#[tokio::test]
async fn a_conda_file_in_the_snapshot_is_read_and_its_mistakes_have_lines() {
    let server = server().await;
    let submit = async |file: &str| {
        let mut definition = definition();
        definition["Configuration"]["Environment"] =
            json!({ "Python": { "UserManagedDependencies": false, "CondaDependenciesFile": "env/environment.yml" } });
        server.start_run("", form(&definition, &zip(&[("hello.py", SCRIPT), ("env/environment.yml", file)]))).await
    };
    let file = "name: x\n# ours\nchannels: [nodefaults]\ndependencies:\n  - greeting=1\n  - python\nvariables:\n  MINE: from the file\n";
    let (status, answer) = submit(file).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let run = answer["runId"].as_str().unwrap();
    server.wait_for(run, "Completed").await;
    assert!(server.driver_log(run).await.contains("1.0 from the file"));

    let (status, answer) = submit("name: x\ndependencies:\n  - python=3.9\n  - 3.10\n").await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    for part in ["Configuration.Environment.Python.CondaDependenciesFile", "line 4", "3.10", "quote it"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let (status, answer) = submit("dependencies: [\n").await;
    assert!(status == StatusCode::BAD_REQUEST && answer["error"]["message"].as_str().unwrap().contains("is not YAML: line 1"), "{answer}");
}

#[tokio::test]
async fn what_the_channels_can_not_give_fails_the_run_with_the_reason() {
    let server = server().await;
    for (dependencies, parts) in [
        (json!(["nosuchthing"]), &["there is no package `nosuchthing`"][..]),
        (json!(["greeting=2", "oldtool"]), &["can not be installed together", "oldtool", "libgreet"]),
        (json!(["evil"]), &["evil"]),
    ] {
        let run = server.submit("print(1)", managed(json!({ "dependencies": dependencies }))).await;
        let dto = server.wait_for(&run, "Failed").await;
        let message = dto["error"]["error"]["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[tokio::test]
async fn credentials_of_channels_are_in_no_file_but_the_configuration_and_the_orders() {
    let config = "[environments]\nconda_channels = [\"http://jo:s3cret-word@127.0.0.1:1/t/t0ken-word/c\"]\n\
                  conda_credentials = { \"127.0.0.1\" = \"bearer b3arer-word\" }\n[compute.cpu-cluster]\nslots = 1\n";
    let server = TestServer::with_config(config).await;
    let run = server.submit("print(1)", managed(json!({ "dependencies": ["greeting"] }))).await;
    let dto = server.wait_for(&run, "Failed").await;
    let build = server.log(&run, "azureml-logs/20_image_build_log.txt").await;
    assert!(dto.to_string().contains("127.0.0.1:1"), "{dto:#}");
    for word in ["s3cret-word", "t0ken-word", "b3arer-word"] {
        assert!(!dto.to_string().contains(word) && !build.contains(word), "{word}: {build}");
        let kept: Vec<_> = files(server.dir()).into_iter().filter(|path| holds(path, word)).collect();
        let allowed = |path: &PathBuf| path.ends_with("order.json") || path.extension().is_some_and(|extension| extension == "toml");
        assert!(kept.iter().all(allowed), "{word} is in {kept:?}");
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }).collect()
}

fn holds(path: &Path, word: &str) -> bool {
    std::fs::read(path).is_ok_and(|content| content.windows(word.len()).any(|part| part == word.as_bytes()))
}
