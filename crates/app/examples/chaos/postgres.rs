//! A PostgreSQL of one's own, which is killed and started again. It listens on a Unix socket in a private folder only.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, getuid, kill_process};

/// How long a start may take: after a kill it replays its log first.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster; dropping it ends it and removes everything.
pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    binaries: PathBuf,
    owner: Option<(u32, u32)>,
    server: Option<Child>,
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub(crate) fn start() -> Result<Self> {
        let binaries =
            binaries().context("no PostgreSQL found; install the package postgresql (its initdb, postgres and createdb are needed)")?;
        let folder = tempfile::Builder::new().prefix("trainyard-chaos-postgres-").tempdir_in("/tmp")?;
        // PostgreSQL refuses to run as root.
        let owner = if getuid().is_root() { Some(account("postgres")?) } else { None };
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group))?;
        }
        let mut cluster = Self { folder, binaries, owner, server: None };
        let data = cluster.folder.path().join("data");
        let made = cluster
            .command("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
            .stdout(Stdio::null())
            .output()
            .context("initdb cannot be started")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        cluster.start_again()?;
        Ok(cluster)
    }

    /// The URL of a new, empty database.
    pub(crate) fn database(&self, name: &str) -> Result<String> {
        let made = self.command("createdb").arg("-h").arg(self.folder.path()).args(["-U", "postgres", name]).output()?;
        ensure!(made.status.success(), "createdb failed: {}", String::from_utf8_lossy(&made.stderr));
        Ok(format!("postgres://postgres@localhost/{name}?host={}", self.folder.path().display()))
    }

    /// Kills the server and all its processes.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let children = children_of(server.id().cast_signed());
        server.kill()?;
        server.wait()?;
        for child in children.into_iter().filter_map(Pid::from_raw) {
            // They end by themselves as well once they see that the first one is gone.
            let _ = kill_process(child, Signal::KILL);
        }
        Ok(())
    }

    /// Starts the server on what is there, and waits until it answers.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if self.server.is_none() {
                self.server = Some(self.spawn()?);
            }
            if self.answers()? {
                return Ok(());
            }
            // Processes of a killed one may still hold its memory for a moment; then it ends at once.
            if self.server.as_mut().is_some_and(|server| server.try_wait().ok().flatten().is_some()) {
                self.server = None;
            }
            if Instant::now() > deadline {
                bail!("PostgreSQL does not start; see {}", self.folder.path().join("log").display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn spawn(&self) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        let sockets = format!("unix_socket_directories={}", self.folder.path().display());
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.folder.path().join("data")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // What is killed is processes, not the machine: what was written is there without being synced.
        for setting in ["listen_addresses=", &sockets, "max_connections=100", "fsync=off", "shared_buffers=32MB"] {
            command.args(["-c", setting]);
        }
        command.spawn().context("postgres cannot be started")
    }

    fn answers(&self) -> Result<bool> {
        let asked = self.command("pg_isready").arg("-h").arg(self.folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        Ok(asked.success())
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        command.current_dir(self.folder.path());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The folder goes next, so nobody misses an orderly end.
        let _ = self.kill();
    }
}

fn binaries() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr/pgsql"]
        .into_iter()
        .flat_map(|parent| fs::read_dir(parent).into_iter().flatten().flatten())
        .map(|entry| entry.path().join("bin"))
        .collect();
    folders.sort();
    folders.reverse();
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.into_iter().find(|folder| ["initdb", "postgres", "createdb", "pg_isready"].iter().all(|name| folder.join(name).is_file()))
}

/// User and group id of an account.
fn account(name: &str) -> Result<(u32, u32)> {
    let table = fs::read_to_string("/etc/passwd")?;
    let line = table.lines().find(|line| line.split(':').next() == Some(name)).with_context(|| format!("there is no account `{name}`"))?;
    let fields: Vec<&str> = line.split(':').collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).context("an entry of /etc/passwd cannot be read");
    Ok((number(2)?, number(3)?))
}

fn children_of(parent: i32) -> Vec<i32> {
    let list = |task: &Path| fs::read_to_string(task.join("children")).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    tasks.flat_map(|task| list(&task.path()).split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
