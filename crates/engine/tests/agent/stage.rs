//! Sets an attempt up and runs real agents on it: processes of their own, which tests kill.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use sha2::{Digest, Sha256};
use trainyard_core::{
    archive::ArchiveLimits,
    definition::{Definition, Entry, Framework, History},
    environment::EnvironmentSpec,
    ids::ComputeName,
    run::RetryWish,
};
use trainyard_engine::agent::folder::AttemptFolder;
use trainyard_wire::native::{AttemptOrder, SINGLE_AGENT_PROTOCOL};
use uuid::Uuid;

use crate::server::{DEADLINE, Identity, Server, World};

/// The variable by which the process of an agent knows its folder.
pub(crate) const AGENT_DIR: &str = "TRAINYARD_TEST_AGENT_DIR";

/// An attempt, its folder and its server. The code is a shell script.
pub(crate) struct Stage {
    pub(crate) world: Arc<World>,
    pub(crate) server: Option<Server>,
    pub(crate) identity: Identity,
    pub(crate) folder: AttemptFolder,
    pub(crate) order: AttemptOrder,
    /// Outside of the attempt: what the code does here is seen by the test.
    pub(crate) outside: tempfile::TempDir,
    _root: tempfile::TempDir,
}

/// An agent's process; killed when dropped.
pub(crate) struct Agent(Child);

impl Stage {
    /// An attempt that runs `script`, in which `$OUTSIDE` is a folder that the test looks into.
    pub(crate) async fn new(script: &str) -> Self {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = zip(&[("main.sh", script)]);
        let definition = Definition {
            entry: Entry::Script { path: "main.sh".into() },
            arguments: Vec::new(),
            target: ComputeName::new("local").unwrap(),
            framework: Framework::Python,
            environment: EnvironmentSpec::UserManaged { interpreter_path: "/bin/sh".into() },
            environment_variables: BTreeMap::from([("OUTSIDE".to_owned(), outside.path().to_str().unwrap().to_owned())]),
            max_run_duration_seconds: None,
            priority: 0,
            history: History::default(),
            container: None,
            retries: RetryWish::default(),
            slurm: Default::default(),
            kubernetes: Default::default(),
            distribution: Default::default(),
            data: Default::default(),
        };
        let identity = Identity::new();
        let world = World::new(snapshot.clone());
        let server = Server::start(&world, &identity).await;
        let attempt = Uuid::new_v4();
        let order = AttemptOrder {
            protocol: SINGLE_AGENT_PROTOCOL,
            attempt,
            run_id: "run-1".into(),
            endpoint: server.endpoint.clone(),
            ca_pem: identity.cert_pem.clone(),
            token: "token-1".into(),
            token_expires_on: 2_000_000_000,
            definition: serde_json::to_value(definition).unwrap(),
            snapshot_sha256: Some(hex::encode(Sha256::digest(&snapshot))),
            environments: json!({
                "cache_dir": root.path().join("cache"), "tools_dir": root.path().join("tools"),
                "python_fallback": "closest", "index_url": null, "offline": true, "conda_channels": []
            }),
            containers: serde_json::Value::Null,
            data: serde_json::Value::Null,
            archive_limits: serde_json::to_value(ArchiveLimits::default()).unwrap(),
            variables: BTreeMap::from([("AZUREML_RUN_ID".to_owned(), "run-1".to_owned())]),
            grace_seconds: 1,
            started_at: None,
            workspace: None,
            heartbeat_seconds: 10,
            spool_limit_bytes: 1 << 30,
            mpi: None,
            node_key: None,
        };
        let folder = AttemptFolder::new(root.path().join(attempt.to_string()));
        Self { world, server: Some(server), identity, folder, order, outside, _root: root }
    }

    /// Changes the definition.
    pub(crate) fn define(&mut self, key: &str, value: serde_json::Value) {
        self.order.definition[key] = value;
    }

    /// Stores the order and starts an agent.
    pub(crate) fn agent(&self) -> Agent {
        self.folder.create().unwrap();
        self.folder.write_order(&self.order).unwrap();
        let log = || OpenOptions::new().create(true).append(true).open(self.folder.path().join("agent.log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["agent_process", "--exact", "--nocapture"])
            .env(AGENT_DIR, self.folder.path())
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn();
        Agent(child.unwrap())
    }

    /// Runs an agent to its end.
    pub(crate) async fn run(&self) {
        let mut agent = self.agent();
        self.world.until("the end", |known| known.phases().contains(&"collected")).await;
        assert!(agent.ended().await.success(), "{}", self.agent_log());
        assert!(self.folder.is_collected());
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    /// Waits until the code has made this file.
    pub(crate) async fn until_outside(&self, name: &str) {
        let path = self.outside.path().join(name);
        until(&format!("{name}; agent: {}", self.agent_log()), || path.exists()).await;
    }

    /// Lets code that waits for this file go on.
    pub(crate) fn make_outside(&self, name: &str) {
        File::create(self.outside.path().join(name)).unwrap();
    }

    pub(crate) fn read_outside(&self, name: &str) -> String {
        fs::read_to_string(self.outside.path().join(name)).unwrap_or_default()
    }

    /// Living processes of the attempt: those with its id in their environment, and those that the code noted in `$OUTSIDE/pids`.
    pub(crate) fn alive(&self) -> Vec<String> {
        let entry = format!("TRAINYARD_ATTEMPT_ID={}", self.order.attempt);
        let noted = self.read_outside("pids");
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let environ = fs::read(process.path().join("environ")).unwrap_or_default();
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            let dead = stat.rsplit_once(')').is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None));
            let ours =
                environ.split(|byte| *byte == 0).any(|part| part == entry.as_bytes()) || noted.lines().any(|line| line == pid.to_string());
            if ours && !dead {
                found.push(stat);
            }
        }
        found
    }
}

impl Agent {
    /// Waits for the agent's end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the agent's end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Kills it like the kernel does when memory is short.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Tells it to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls until `done`; for what cannot be waited for otherwise.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A zip of some files.
pub(crate) fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}
