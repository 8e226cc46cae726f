//! A server of one's own for every test: the real binary on its own folder and port, and clients for it.

use std::{
    fs,
    future::Future,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use trainyard::{client::Client, client_file::ClientFile};
use trainyard_engine::agent::folder::AttemptFolder;

/// How long anything may take before a test gives up. Generous: machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running server.
pub struct TestServer {
    dir: tempfile::TempDir,
    child: Option<Child>,
    /// What it wrote for its clients.
    pub file: ClientFile,
    http: reqwest::Client,
}

impl TestServer {
    /// Starts a server with two slots on `cpu-cluster`.
    pub async fn start() -> Self {
        Self::with_config("[compute.cpu-cluster]\nslots = 2\n[compute.local]\nslots = 1\n").await
    }

    /// Starts a server with this configuration.
    pub async fn with_config(config: &str) -> Self {
        Self::on(|dir| fs::write(dir.join("config.toml"), config).unwrap()).await
    }

    /// Starts a server on a data directory that `fill` has put something into.
    pub async fn on(fill: impl FnOnce(&Path)) -> Self {
        trainyard_server::tls::install_crypto_provider();
        let dir = tempfile::Builder::new().prefix("trainyard-it-").tempdir().unwrap();
        fill(dir.path());
        let child = spawn(dir.path(), "127.0.0.1:0");
        let file = ready(dir.path()).await;
        let http = http(&file);
        Self { dir, child: Some(child), file, http }
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The client.json.
    pub fn client_json(&self) -> PathBuf {
        self.dir().join("client.json")
    }

    /// The command line's own client.
    pub fn client(&self) -> Client {
        Client::new(self.file.clone(), None).unwrap()
    }

    /// Kills the server as a power cut would.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the server with TERM and gives what it exited with.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        signal(child.id(), "TERM");
        wait_for_exit(&mut child)
    }

    /// Starts it again on the same folder and port.
    pub async fn start_again(&mut self) {
        let address = self.file.endpoint.trim_start_matches("https://").to_owned();
        self.child = Some(spawn(self.dir.path(), &address));
        self.file = ready(self.dir.path()).await;
    }

    /// A request without a token.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.file.endpoint))
    }

    /// A request with the token of the default application.
    pub async fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).bearer_auth(self.client().token().await.unwrap())
    }

    /// `{service}{WS}{rest}` of the default workspace.
    pub fn ws(&self, service: &str, rest: &str) -> String {
        format!("/{service}{}{rest}", self.file.workspace().arm_id())
    }

    /// `history/v1.0{WS}{rest}`.
    pub fn history(&self, rest: &str) -> String {
        self.ws("history/v1.0", rest)
    }

    /// GET of a JSON document that must be there.
    pub async fn get(&self, path: &str) -> Value {
        let response = self.request(Method::GET, path).await.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "GET {path}: {}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    /// Sends JSON and gives status and answer.
    pub async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(method, path).await.json(&body).send().await.unwrap()).await
    }

    /// `startrun` with these parts, as status and answer.
    pub async fn start_run(&self, query: &str, form: Form) -> (StatusCode, Value) {
        let path = self.ws("execution/v1.0", &format!("/experiments/it/startrun{query}"));
        answer(self.request(Method::POST, &path).await.multipart(form).send().await.unwrap()).await
    }

    /// Submits a script that runs with the machine's own Python; gives the run's id.
    pub async fn submit(&self, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut definition = definition();
        change(&mut definition["Configuration"]);
        let (status, answer) = self.start_run("", form(&definition, &zip(&[("hello.py", script)]))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["runId"].as_str().unwrap().to_owned()
    }

    /// The RunDto.
    pub async fn run(&self, run: &str) -> Value {
        self.get(&self.history(&format!("/experiments/it/runs/{run}"))).await
    }

    /// Waits until the run has this status.
    pub async fn wait_for(&self, run: &str, status: &str) -> Value {
        let what = format!("run {run} to be {status}");
        until(&what, || async {
            let dto = self.run(run).await;
            let now = dto["status"].as_str().unwrap_or_default().to_owned();
            let ended = ["Completed", "Failed", "Cancelled"].contains(&now.as_str());
            assert!(now == status || !ended, "run {run} became {now} instead of {status}: {dto:#}");
            (now == status).then_some(dto)
        })
        .await
    }

    /// What a log holds now; empty while it does not exist.
    pub async fn log(&self, run: &str, path: &str) -> String {
        let url = self.client().native(&format!("/runs/{run}/logs/{path}"));
        let response = self.request(Method::GET, &url).await.send().await.unwrap();
        if response.status() == StatusCode::NOT_FOUND { String::new() } else { response.text().await.unwrap() }
    }

    /// What the script printed.
    pub async fn driver_log(&self, run: &str) -> String {
        self.log(run, "azureml-logs/70_driver_log.txt").await
    }

    /// Waits until the script has printed `text`.
    pub async fn wait_for_output(&self, run: &str, text: &str) {
        until(&format!("`{text}` in the log of {run}"), || async { self.driver_log(run).await.contains(text).then_some(()) }).await;
    }

    /// Runs the command line against this server.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).output().unwrap()
    }

    /// The program with the client file in its environment.
    pub fn command(&self) -> Command {
        let mut command = program();
        command.env("TRAINYARD_CLIENT", self.client_json());
        command
    }

    /// Everything below a folder of the data directory, for "nothing is left".
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Agents outlive the server by design; those of this test must not outlive the test.
        let attempts = self.dir.path().join("attempts");
        for pid in processes_with(&attempts.to_string_lossy()) {
            signal(pid, "KILL");
        }
        for attempt in fs::read_dir(&attempts).into_iter().flatten().flatten() {
            if let Ok(id) = attempt.file_name().to_string_lossy().parse() {
                trainyard_engine::agent::end_leftovers(&AttemptFolder::new(attempt.path()), id);
            }
        }
    }
}

/// The program, with nothing of the test's own environment that could lead it to another server.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainyard"));
    for name in ["TRAINYARD_CLIENT", "TRAINYARD_DATA_DIR", "TRAINYARD_WORKSPACE", "TRAINYARD_CONFIG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

fn spawn(dir: &Path, listen: &str) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("server.log")).unwrap();
    let mut command = program();
    command.arg("--data-dir").arg(dir).args(["serve", "--listen", listen]).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

async fn ready(dir: &Path) -> ClientFile {
    let path = dir.join("client.json");
    until("the server to be ready", || async {
        // A data directory that came from elsewhere has a client file with another folder's paths, until the server has written its own.
        let file = ClientFile::read(&path).ok().filter(|file| Path::new(&file.ca_cert).exists())?;
        let response = http(&file).get(format!("{}/readyz", file.endpoint)).send().await.ok()?;
        response.status().is_success().then_some(file)
    })
    .await
}

fn http(file: &ClientFile) -> reqwest::Client {
    let pem = fs::read(&file.ca_cert).unwrap();
    reqwest::Client::builder().tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).unwrap()).no_proxy().build().unwrap()
}

/// Status and JSON (null when the body is not JSON).
pub async fn answer(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// Waits for something, looking again every 50 ms, for at most [`PATIENCE`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A definition that uses the machine's own Python and so builds nothing.
pub fn definition() -> Value {
    json!({ "Configuration": {
        "Script": "hello.py", "Arguments": [], "Framework": "Python", "Communicator": "None", "Target": "cpu-cluster", "NodeCount": 1,
        "Environment": { "Python": { "InterpreterPath": "python3", "UserManagedDependencies": true } },
        "History": { "OutputCollection": true },
    }})
}

/// A zip with these files.
pub fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, trainyard::project::stored()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The two parts of a submission.
pub fn form(definition: &Value, zip: &[u8]) -> Form {
    Form::new()
        .part("runDefinitionFile", Part::bytes(serde_json::to_vec(definition).unwrap()).file_name("definition.json"))
        .part("projectZipFile", Part::bytes(zip.to_vec()).file_name("project.zip"))
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([format!("-{name}"), pid.to_string()]).stderr(Stdio::null()).status();
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// Processes whose command line holds `text`.
pub fn processes_with(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text)))
        .collect()
}

fn wait_for_exit(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the server does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A Python that has the real client packages; without one the test says by name that it is skipped.
pub fn client_python(test: &str) -> Option<PathBuf> {
    match std::env::var_os("TRAINYARD_TEST_PYTHON") {
        Some(path) => Some(path.into()),
        None => {
            eprintln!("SKIPPED {test}: TRAINYARD_TEST_PYTHON is not set; scripts/test installs the client packages and sets it");
            None
        }
    }
}

/// [`client_python`] with the whole SDK.
pub fn sdk_python(test: &str) -> Option<PathBuf> {
    let python = client_python(test)?;
    let probe = std::process::Command::new(&python).args(["-c", "import azureml.core"]).output().unwrap();
    if !probe.status.success() {
        eprintln!("SKIPPED {test}: the Python of TRAINYARD_TEST_PYTHON has no azureml-core; scripts/test installs it");
        return None;
    }
    Some(python)
}

/// What a script of `tests/data` says that uses the real SDK against `server`; `hello` is the code of the run that it submits.
pub fn said_with_the_sdk(server: &TestServer, python: &Path, script: &str, hello: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("project")).unwrap();
    for (name, text) in [("project/hello.py", hello), ("use.py", script), ("with_the_sdk.py", include_str!("../data/with_the_sdk.py"))] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let file = &server.file;
    let output = server
        .command()
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .args(["exec", "--"])
        .arg(python)
        .args(["use.py", &file.tenant_id, &file.client_id, &file.client_secret])
        .args([&file.subscription_id, &file.resource_group, &file.workspace_name])
        .output()
        .unwrap();
    let (printed, problems) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{problems}");
    serde_json::from_str(printed.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{printed}\n{problems}"))
}
