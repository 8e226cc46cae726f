//! The server as a process: the program under test on one data directory, started, killed, paused and asked to end.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use trainyard::client_file::ClientFile;
use trainyard_store::fail::{FOLDER_VARIABLE, RULES_VARIABLE};

/// How long the server may take to answer after its start, and to end after TERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server of a world.
pub(crate) struct Server {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    child: Option<Child>,
    started: Instant,
}

impl Server {
    /// A server that does not run yet.
    pub(crate) fn new(binary: &Path, data: &Path, log: &Path, address: SocketAddr) -> Self {
        Self { binary: binary.to_owned(), data: data.to_owned(), log: log.to_owned(), address, child: None, started: Instant::now() }
    }

    /// Starts it, with these fail points armed and counted in that folder.
    pub(crate) fn start(&mut self, armed: Option<(&str, &Path)>) -> Result<()> {
        ensure!(self.child.is_none(), "a server was to be started although one runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRAINYARD_")) {
            command.env_remove(name);
        }
        command.arg("--data-dir").arg(&self.data).args(["serve", "--listen", &self.address.to_string()]);
        command.env("TRAINYARD_LOG", "info").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some((rules, folder)) = armed {
            command.env(RULES_VARIABLE, rules).env(FOLDER_VARIABLE, folder);
        }
        self.started = Instant::now();
        self.child = Some(command.spawn().with_context(|| format!("{} cannot be started", self.binary.display()))?);
        Ok(())
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id().cast_signed())
    }

    /// How long it has run.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            // It is not reaped yet, so the number is its own.
            let _ = kill_process(pid, signal);
        }
    }

    /// How it ended, if it did so by itself since the last look.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = self.child.as_mut() else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Asks it to end and waits until it has: how long that took, and its result.
    pub(crate) async fn stop(&mut self) -> Result<(Duration, ExitStatus)> {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        while asked.elapsed() < PATIENCE {
            if let Some(status) = self.ended()? {
                return Ok((asked.elapsed(), status));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server does not end within {} s after TERM", PATIENCE.as_secs())
    }

    /// Waits until it answers that it is ready. An error if it ends instead.
    pub(crate) async fn ready(&mut self) -> Result<ClientFile> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.ended()? {
                bail!("the server ended at its start with {status}; see {}", self.log.display());
            }
            if let Ok(file) = ClientFile::read(&self.data.join("client.json"))
                && let Ok(pem) = fs::read(&file.ca_cert)
                && let Ok(roots) = reqwest::Certificate::from_pem_bundle(&pem)
            {
                let http = reqwest::Client::builder().tls_certs_only(roots).no_proxy().timeout(Duration::from_secs(2)).build()?;
                let answer = http.get(format!("https://{}/readyz", self.address)).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(file);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the server is not ready within {} s; see {}", PATIENCE.as_secs(), self.log.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whatever it was doing, the world ends.
        let _ = self.kill();
    }
}
