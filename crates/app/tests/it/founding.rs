//! The founding document, run as it stands, with the real `adal` and `requests`.

use std::{fs, io::Write as _, path::Path, process::Command};

use crate::support::{TestServer, client_python};

/// The document's environment takes a minute to build; the tests that need it share one cache.
async fn server() -> TestServer {
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/environments");
    TestServer::with_config(&format!("[environments]\ncache_dir = {cache:?}\n[compute.cpu-cluster]\nslots = 2\n")).await
}

const DOCUMENT: &str = include_str!("../data/submit-a-run-with-rest.md");

/// The document's code blocks of one language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut rest = DOCUMENT;
    while let Some(start) = rest.find("```") {
        let (head, body) = rest[start + 3..].split_once('\n').unwrap();
        let end = body.find("```").unwrap();
        if head.trim() == language {
            found.push(&body[..end]);
        }
        rest = &body[end + 3..];
    }
    found
}

/// The document's script with its placeholders filled, and nothing else changed.
fn script(server: &TestServer) -> String {
    let file = &server.file;
    let whole: String = blocks("python").into_iter().filter(|block| !block.starts_with("# hello.py")).collect::<Vec<_>>().join("\n");
    let filled = [
        ("<my-client-id>", file.client_id.as_str()),
        ("<my-clent-secret>", &file.client_secret),
        ("<my-workspace-region>", &file.region),
        ("<my-subscription-id>", &file.subscription_id),
        ("<my-workspace-name>", &file.workspace_name),
        ("<my-workspace-resource-group>", &file.resource_group),
        ("<my-user-name>", "me"),
    ]
    .into_iter()
    .fold(whole, |text, (placeholder, value)| {
        assert!(text.contains(placeholder), "the document has no {placeholder}");
        text.replace(placeholder, value)
    });
    assert!(!filled.contains("<my-"), "a placeholder is left: {filled}");
    filled
}

/// The files that the document tells the reader to prepare.
fn prepare(folder: &Path, script: &str) {
    let hello = blocks("python").into_iter().find(|block| block.starts_with("# hello.py")).unwrap();
    let mut zip = zip::ZipWriter::new(fs::File::create(folder.join("project.zip")).unwrap());
    zip.start_file("hello.py", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(hello.as_bytes()).unwrap();
    zip.finish().unwrap();
    fs::write(folder.join("definition.json"), blocks("json")[0]).unwrap();
    fs::write(folder.join("submit.py"), script).unwrap();
}

/// What the script printed must end in `Completed`, and the run's log must hold `Hello!`.
async fn check(server: &TestServer, output: std::process::Output) {
    let (printed, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{problems}");
    assert_eq!(printed.lines().last(), Some("Completed"), "{printed}\n{problems}");
    let answer = printed.lines().find_map(|line| line.strip_prefix("response text:  ")).unwrap();
    let run = answer.split('\'').nth(3).unwrap();
    let dto = server.get(&server.history(&format!("/experiments/new_experiment/runs/{run}"))).await;
    let warnings = dto["warnings"].to_string();
    assert!(warnings.contains("BaseImage") && warnings.contains("Python 3.6.2 was asked for"), "{warnings}");
    let log = server.driver_log(run).await;
    assert_eq!(log, "Hello!\n");
}

#[tokio::test]
async fn the_founding_script_runs_verbatim_through_exec() {
    let Some(python) = client_python("the_founding_script_runs_verbatim_through_exec") else { return };
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &script(&server));
    let output = server.command().current_dir(folder.path()).args(["exec", "--"]).arg(&python).arg("submit.py").output().unwrap();
    check(&server, output).await;
}

#[tokio::test]
async fn the_founding_script_runs_with_only_its_hosts_changed() {
    let Some(python) = client_python("the_founding_script_runs_with_only_its_hosts_changed") else { return };
    let server = server().await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = &server.file.endpoint;
    let changed = [
        ("\"https://{}.api.azureml.ms/\".format(region)".to_owned(), format!("\"{endpoint}/\"")),
        (
            "AuthenticationContext(\"https://login.microsoftonline.com/me.onmicrosoft.com\")".to_owned(),
            format!("AuthenticationContext(\"{}\", validate_authority=False)", server.file.authority),
        ),
    ]
    .into_iter()
    .fold(script(&server), |text, (old, new)| {
        assert!(text.contains(&old), "{old} is not in {text}");
        text.replace(&old, &new)
    });
    prepare(folder.path(), &changed);
    let mut command = Command::new(&python);
    let output = command.arg("submit.py").current_dir(folder.path()).env("REQUESTS_CA_BUNDLE", &server.file.ca_cert).output().unwrap();
    check(&server, output).await;
}

/// `exec` is transparent: exit codes and signals pass.
#[tokio::test]
async fn exec_passes_exit_codes_and_signals_on() {
    let server = TestServer::start().await;
    let code = |arguments: &[&str]| server.cli(&[&["exec", "--"], arguments].concat()).status.code();
    assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["sh", "-c", "kill -TERM $$"]), Some(128 + 15));
    assert_eq!(code(&["/no/such/program"]), Some(127));
    let script = "trap 'echo got TERM; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = server.command().args(["exec", "--", "sh", "-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    crate::support::signal(child.id(), "TERM");
    assert_eq!(lines.next().unwrap().unwrap(), "got TERM");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[tokio::test]
async fn exec_sets_what_the_clients_honour() {
    let server = TestServer::start().await;
    let output = server.cli(&["exec", "--", "env"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for name in
        ["HTTPS_PROXY=", "https_proxy=", "NO_PROXY=", "REQUESTS_CA_BUNDLE=", "SSL_CERT_FILE=", "CURL_CA_BUNDLE=", "ARM_CLOUD_METADATA_URL="]
    {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing in\n{text}");
    }
    assert!(!text.contains(&server.file.client_secret));
}
