//! A newer program on the data directory of an older one, with runs in flight.

use std::{fs, path::Path};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestServer, answer, until};

/// What the first release left when it was killed together with its agent: a completed, a failed, a cancelled and a waiting run, and one
/// that ran.
const FIRST_RELEASE: &[u8] = include_bytes!("../data/data-directory-v1.tar.gz");

fn config(later: u32) -> String {
    format!("[compute.cpu-cluster]\nslots = 2\nretries = 1\nretry_backoff_seconds = 0\n[compute.later]\nslots = {later}\n")
}

fn unpack(dir: &Path) {
    tar::Archive::new(flate2::read::GzDecoder::new(FIRST_RELEASE)).unpack(dir).unwrap();
    fs::write(dir.join("config.toml"), config(0)).unwrap();
}

async fn run(server: &TestServer, run: &str) -> Value {
    server.get(&server.history(&format!("/experiments/default/runs/{run}"))).await
}

async fn becomes(server: &TestServer, name: &str, status: &str) -> Value {
    until(&format!("{name} to be {status}"), || async {
        let dto = run(server, name).await;
        (dto["status"] == status).then_some(dto)
    })
    .await
}

#[tokio::test]
async fn the_data_directory_of_the_first_release_is_carried_on() {
    let mut server = TestServer::on(unpack).await;
    assert_eq!(run(&server, "done").await["status"], "Completed");
    assert_eq!(server.driver_log("done").await, "well done\n");
    let bad = run(&server, "bad").await;
    assert_eq!(bad["status"], "Failed");
    assert!(bad["error"]["error"]["message"].as_str().unwrap().contains("exit code 3"), "{bad:#}");
    assert_eq!(run(&server, "stopped").await["status"], "Cancelled");
    let waiting = run(&server, "waiting").await;
    assert_eq!((&waiting["status"], &waiting["queueingInfo"]["code"]), (&json!("Queued"), &json!("NoSlots")));

    // The one that was killed with its agent: an agent of this program finds that out, and the run is tried again.
    let attempts_of = server.client().native("/runs/lost/attempts");
    let attempts = until("the lost run to be tried again", || async {
        let attempts = server.get(&attempts_of).await;
        (attempts.as_array().unwrap().len() == 2).then_some(attempts)
    })
    .await;
    assert_eq!(attempts[0]["cause"]["kind"], "agent_lost", "{attempts:#}");
    assert_eq!((&attempts[0]["node"], attempts[1]["cause"].is_null()), (&json!("node"), true));
    server.wait_for_output("lost", "up").await;
    assert_eq!(server.log("lost", "attempts/1/azureml-logs/70_driver_log.txt").await, "up\n", "what the first try said is kept");
    let (status, _) = server.send(Method::POST, &server.ws("execution/v1.0", "/experiments/default/runId/lost/cancel"), json!({})).await;
    assert!(status.is_success(), "{status}");
    becomes(&server, "lost", "Cancelled").await;

    server.stop();
    fs::write(server.dir().join("config.toml"), config(1)).unwrap();
    server.start_again().await;
    becomes(&server, "waiting", "Completed").await;
    assert_eq!(server.driver_log("waiting").await, "waited long enough\n");
    assert_eq!(server.files("live"), Vec::<std::path::PathBuf>::new(), "no log is left lying about");
}

#[tokio::test]
async fn an_agent_of_another_protocol_is_told_what_does_not_fit() {
    let server = TestServer::start().await;
    let gate = server.dir().join("gate");
    let script =
        format!("import os, time\nprint('up', flush=True)\nwhile not os.path.exists({:?}): time.sleep(0.05)", gate.display().to_string());
    let run = server.submit(&script, |_| {}).await;
    server.wait_for_output(&run, "up").await;
    let folder = fs::read_dir(server.dir().join("attempts")).unwrap().next().unwrap().unwrap().path();
    let order: Value = serde_json::from_slice(&fs::read(folder.join("order.json")).unwrap()).unwrap();
    let path = format!("/api/v1/attempts/{}/report", order["attempt"].as_str().unwrap());
    let report = |protocol: &'static str| {
        let request = server.anonymous(Method::POST, &path).bearer_auth(order["token"].as_str().unwrap());
        request.header("x-trainyard-agent-protocol", protocol).json(&json!({ "phase": "alive" }))
    };
    for protocol in ["99", "0", "new"] {
        let (status, body) = answer(report(protocol).send().await.unwrap()).await;
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED, "{protocol}: {body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("of the agent's protocol, this server understands versions 1 to 2"), "{message}");
    }
    let (status, body) = answer(report("1").send().await.unwrap()).await;
    assert_eq!((status, &body["command"]), (StatusCode::OK, &json!("continue")));
    fs::write(gate, "").unwrap();
    server.wait_for(&run, "Completed").await;
}
