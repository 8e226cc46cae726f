//! What becomes of the files that code writes, and what it is given.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

use serde_json::json;

use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn outputs_and_logs_are_kept_under_their_names_and_the_rest_is_not() {
    let script = r#"
        mkdir -p outputs/deep "outputs/a b" tb
        echo deep > outputs/deep/é.txt; echo space > "outputs/a b/100%?#.txt"; : > outputs/empty
        echo log > logs/train.log; echo tb > tb/events; echo nothing > elsewhere.txt
        ln -s /etc/passwd outputs/passwd; mkfifo outputs/fifo
    "#;
    let mut stage = Stage::new(script).await;
    stage.define("history", json!({ "output_collection": true, "directories_to_watch": ["logs", "tb/", "../up"] }));
    stage.run().await;
    let known = stage.world.known();
    let outputs: BTreeMap<_, _> =
        known.outputs.iter().map(|(path, bytes)| (path.as_str(), String::from_utf8_lossy(bytes).into_owned())).collect();
    let expected = [("outputs/a b/100%?#.txt", "space\n"), ("outputs/deep/é.txt", "deep\n"), ("outputs/empty", "")];
    assert_eq!(outputs, expected.map(|(path, text)| (path, text.to_owned())).into());
    assert_eq!((known.text("logs/train.log").as_str(), known.text("tb/events").as_str()), ("log\n", "tb\n"));
    assert!(known.logs.values().all(|log| log.sealed));
    let warnings = known.warnings();
    for part in ["`outputs/passwd` is not kept", "`outputs/fifo` is not kept", "`../up` of DirectoriesToWatch"] {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
    }
    assert_eq!(warnings.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_output_collection_outputs_stay_on_the_node() {
    let mut stage = Stage::new("echo x > outputs/x; echo y > logs/y").await;
    stage.define("history", json!({ "output_collection": false, "directories_to_watch": [] }));
    stage.run().await;
    let known = stage.world.known();
    assert!(known.outputs.is_empty());
    assert!(!known.logs.contains_key("logs/y"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_file_that_was_rewritten_is_kept_as_it_was_at_the_end_with_a_warning() {
    let script = r"
        echo first version, which is long > logs/state.txt
        until [ -e $OUTSIDE/go ]; do sleep 0.02; done
        echo second > logs/state.txt
    ";
    let stage = Stage::new(script).await;
    let mut agent = stage.agent();
    stage.world.until_log_holds("logs/state.txt", "first version").await;
    stage.make_outside("go");
    assert!(agent.ended().await.success());
    let known = stage.world.known();
    assert_eq!(known.text("logs/state.txt"), "second\n");
    assert!(known.logs["logs/state.txt"].sealed);
    assert!(known.warnings().iter().any(|warning| warning.contains("`logs/state.txt` was rewritten")), "{:?}", known.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_quiet_is_with_the_server_while_the_code_still_runs() {
    let stage = Stage::new("echo model > outputs/model; until [ -e $OUTSIDE/go ]; do sleep 0.02; done; echo better > outputs/model").await;
    let mut agent = stage.agent();
    stage.world.until("the output", |known| known.outputs.get("outputs/model").is_some_and(|bytes| bytes == b"model\n")).await;
    stage.make_outside("go");
    assert!(agent.ended().await.success());
    assert_eq!(stage.world.known().outputs["outputs/model"], b"better\n", "the end has the last version");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_many_chunks_arrives_whole() {
    let stage = Stage::new(
        "i=0; while [ $i -lt 20000 ]; do echo \"line $i with some text that makes it longer than it needs to be\"; i=$((i+1)); done",
    )
    .await;
    stage.run().await;
    let known = stage.world.known();
    let log = &known.logs["azureml-logs/70_driver_log.txt"];
    assert_eq!(log.bytes, std::fs::read(stage.folder.driver_log()).unwrap());
    assert!(log.sealed && log.bytes.len() > 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn code_sees_its_variables_and_its_ca_bundle_and_nothing_of_the_agents_own() {
    let stage =
        Stage::new("env > outputs/env; cat $SSL_CERT_FILE > outputs/bundle; ls > outputs/ls; ls -l /proc/self/fd > outputs/fds").await;
    stage.run().await;
    let known = stage.world.known();
    let text = |path: &str| String::from_utf8_lossy(&known.outputs[path]).into_owned();
    let env = text("outputs/env");
    for line in ["AZUREML_RUN_ID=run-1", "AZUREML_RUN_TOKEN=token-1", "AZUREML_RUN_TOKEN_EXPIRY=2000000000", "PYTHONUNBUFFERED=1"] {
        assert!(env.lines().any(|found| found == line), "{line}: {env}");
    }
    assert!(!env.contains("TRAINYARD_TEST_AGENT_DIR"));
    assert!(text("outputs/bundle").contains(stage.identity.cert_pem.trim().lines().nth(1).unwrap()));
    assert_eq!(text("outputs/ls"), "logs\nmain.sh\noutputs\n");
    assert!(!text("outputs/fds").contains("agent.lock"), "{}", text("outputs/fds"));
    let modes = |name: &str| std::fs::metadata(stage.folder.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((modes(""), modes("order.json")), (0o700, 0o600));
}
