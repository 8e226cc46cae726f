//! Where rounds take place: a data directory with its server, the way of the agents to it, its database, and a place outside where the
//! code of the runs leaves its traces. A world is used for a few rounds, so that they find what the ones before left behind.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use trainyard::client::Client;
use trainyard_store::{Store, StoreOptions};

use crate::{processes, proxy::Proxy, server::Server};

/// The target that runs name.
pub(crate) const TARGET: &str = "chaos";

/// Infrastructure retries of the target.
pub(crate) const RETRIES: u32 = 2;

/// The limit after which the server calls an attempt silent.
pub(crate) const HEARTBEAT_LIMIT: Duration = Duration::from_secs(3);

/// What every run executes: one line outside, then the same lines to its log and outside, an output, a sleep, and its end. The log comes
/// first, so that what is outside must be in the log.
pub(crate) const SCRIPT: &str = r#"#!/bin/sh
lines=$1 said=$2/$TRAINYARD_ATTEMPT_ID count=$3 seconds=$4 end=$5 value=$6
echo "$AZUREML_RUN_ID $TRAINYARD_ATTEMPT_ID $$" >>"$lines"
tell() { echo "$1"; echo "$1" >>"$said"; }
tell "begin $TRAINYARD_ATTEMPT_ID"
i=0
while [ $i -lt $count ]; do i=$((i + 1)); tell "line $i"; done
echo "result of $TRAINYARD_ATTEMPT_ID" >outputs/result.txt
tell stored
sleep "$seconds"
tell end
[ "$end" = signal ] && kill "-$value" $$
exit "$value"
"#;

/// How a world is made.
pub(crate) struct Recipe<'a> {
    /// The program under test.
    pub(crate) binary: &'a Path,
    /// Where its folder is made.
    pub(crate) place: &'a Path,
    /// `sqlite` or a URL of PostgreSQL.
    pub(crate) database: String,
    /// Bytes of a file system of its own for the data directory, if that may be mounted.
    pub(crate) small_disk: Option<u64>,
    /// Slots of the target.
    pub(crate) slots: u64,
}

/// A world.
pub(crate) struct World {
    root: tempfile::TempDir,
    disk: Option<SmallDisk>,
    database: String,
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    points: u64,
}

impl World {
    /// Makes everything and starts nothing but the proxy.
    pub(crate) async fn make(recipe: Recipe<'_>) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("world-").tempdir_in(recipe.place)?;
        let path = root.path();
        for folder in ["data", "said", "points"] {
            fs::create_dir(path.join(folder))?;
        }
        fs::File::create(path.join("lines"))?;
        let disk = recipe.small_disk.and_then(|bytes| SmallDisk::mount(&path.join("data"), bytes));
        let address = free_address()?;
        let proxy = Proxy::start(address).await?;
        let Recipe { database, slots, .. } = recipe;
        let config = format!(
            "[server]\nheartbeat_limit_seconds = {}\ncancel_grace_seconds = 1\nagent_url = \"https://{}\"\n\
             [store]\ndatabase = \"{database}\"\n[compute.{TARGET}]\nslots = {slots}\nretries = {RETRIES}\nretry_backoff_seconds = 0\n",
            HEARTBEAT_LIMIT.as_secs(),
            proxy.address
        );
        fs::write(path.join("data/config.toml"), config)?;
        let server = Server::new(recipe.binary, &path.join("data"), &path.join("server.log"), address);
        Ok(Self { root, disk, database, server, proxy, points: 0 })
    }

    /// The folder of everything.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    /// The folder of the attempts.
    pub(crate) fn attempts(&self) -> PathBuf {
        self.data().join("attempts")
    }

    /// Whether the disk of the data directory can be filled.
    pub(crate) fn has_small_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Fills the disk of the data directory to the last byte.
    pub(crate) fn fill_disk(&self) -> Result<()> {
        let mut file = fs::File::create(self.data().join("ballast"))?;
        let block = vec![b'x'; 1 << 20];
        // Smaller and smaller pieces: what is left is less than any write needs.
        let mut size = block.len();
        while size > 0 {
            if file.write_all(&block[..size]).is_err() {
                size /= 2;
            }
        }
        Ok(())
    }

    /// Makes room on it again.
    pub(crate) fn free_disk(&self) -> Result<()> {
        match fs::remove_file(self.data().join("ballast")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("the disk cannot be freed"),
            _ => Ok(()),
        }
    }

    /// Starts the server with fail points armed; an empty text arms none.
    pub(crate) fn start_server(&mut self, rules: &str) -> Result<()> {
        if rules.is_empty() {
            return self.server.start(None);
        }
        self.points += 1;
        let folder = self.root().join("points").join(self.points.to_string());
        fs::create_dir(&folder)?;
        self.server.start(Some((rules, &folder)))
    }

    /// Starts the server with nothing armed and waits until it is ready: a client for it.
    pub(crate) async fn start_healthy(&mut self) -> Result<Client> {
        self.server.start(None)?;
        Client::new(self.server.ready().await?, None)
    }

    /// Every fail point that fired since the last call: its name, what it did, and the folder in which its process worked.
    pub(crate) fn fired(&self) -> Result<Vec<(String, String, PathBuf)>> {
        let mut fired = Vec::new();
        for entry in fs::read_dir(self.root().join("points"))? {
            let folder = entry?.path();
            let text = fs::read_to_string(folder.join("fired")).unwrap_or_default();
            for line in text.lines() {
                let mut words = line.splitn(4, ' ');
                if let (Some(name), Some(action), Some(_), Some(place)) = (words.next(), words.next(), words.next(), words.next()) {
                    fired.push((name.to_owned(), action.to_owned(), place.into()));
                }
            }
            fs::remove_dir_all(folder)?;
        }
        Ok(fired)
    }

    /// What the code of the runs wrote outside: run, attempt, process.
    pub(crate) fn lines(&self) -> Result<Vec<(String, String, i32)>> {
        let text = fs::read_to_string(self.root().join("lines"))?;
        let line = |line: &str| {
            let mut words = line.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        text.lines().map(|text| line(text).with_context(|| format!("a line outside cannot be read: `{text}`"))).collect()
    }

    /// What the code of each attempt said, as it noted it outside.
    pub(crate) fn said(&self) -> Result<BTreeMap<String, String>> {
        let mut said = BTreeMap::new();
        for entry in fs::read_dir(self.root().join("said"))? {
            let entry = entry?;
            said.insert(entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?);
        }
        Ok(said)
    }

    /// Forgets what was written outside.
    pub(crate) fn forget(&self) -> Result<()> {
        fs::write(self.root().join("lines"), "")?;
        fs::remove_dir_all(self.root().join("said"))?;
        fs::create_dir(self.root().join("said"))?;
        Ok(())
    }

    /// Files below a folder of the data directory.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.data().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found
    }

    /// The store of the server, opened beside it.
    pub(crate) async fn store(&self) -> Result<Store> {
        let options = StoreOptions { database: self.database.clone(), blobs: "file".into(), data_dir: self.data() };
        Store::open(&options).await.context("the store cannot be opened")
    }

    /// Keeps a copy of everything at `place`, for who looks into what went wrong.
    pub(crate) fn keep(&self, place: &Path) -> Result<()> {
        copy(self.root(), place).with_context(|| format!("the world cannot be kept in {}", place.display()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Errors would hide the one that brought the world to its end.
        let _ = self.server.kill();
        for _ in 0..3 {
            let left = processes::left_running(self.root.path());
            left.iter().for_each(|(pid, _)| processes::kill(*pid));
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(self.disk.take());
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// An address that nobody listens on, below the ports that the kernel gives to outgoing connections: one of those could take it while the
/// server is away.
fn free_address() -> Result<SocketAddr> {
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).expect("less than ten thousand");
    let listener = (first..32_000).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    Ok(listener.context("no port below 32000 is free")?.local_addr()?)
}

/// A file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        let options = CString::new(format!("size={bytes},mode=0700")).expect("no NUL in a number");
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).ok().map(|()| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached even if something still holds a file on it; nothing more can be done here.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
