//! The embedded default: agents as detached processes on the server's own machine.
//!
//! An attempt is a folder named after it. The agent holds a lock on a file in it for as long as it lives, so that "is it there" is one
//! system call that no reused process id and no unreaped zombie can fool, asked by this server or by one that was started later.
//! The agent leads a session of its own: it outlives the server and shares no terminal with it. An attempt on several nodes is as many agents here, each
//! in a folder of its own in that of the attempt; it is there when all of them are.

use std::{
    collections::HashMap,
    fs,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use trainyard_core::{
    Error, ErrorKind, Result,
    definition::{Definition, distribution::MAX_NODES},
    ids::{AttemptId, ComputeName},
};
use trainyard_wire::native::AttemptOrder;

use self::gpus::Gpus;
use super::{Executor, Machine, MachineState, Observation, kept};
use crate::agent::{folder::AttemptFolder, node_name};

pub mod gpus;

/// Variables of the server that agents on its own machine keep beside those of every engine: its folders, its accelerators, how containers are set up.
const KEPT_VARIABLES: [&str; 16] = [
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "LD_LIBRARY_PATH",
    "PYENV_ROOT",
    "SSL_CERT_DIR",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    // Where container engines have their storage, their daemon and their logins.
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "REGISTRY_AUTH_FILE",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
];

/// Beginnings of names that are kept too.
const KEPT_PREFIXES: [&str; 5] = ["DOCKER_", "CONTAINER", "BUILDAH_", "APPTAINER_", "SINGULARITY_"];

fn is_kept(name: &str) -> bool {
    let armed = cfg!(feature = "failpoints") && name.starts_with("TRAINYARD_FAIL_POINTS");
    armed || kept::is_kept(name, (&KEPT_VARIABLES, &KEPT_PREFIXES))
}

/// Runs agents on this machine.
pub struct LocalExecutor {
    root: PathBuf,
    binary: PathBuf,
    gpus: Gpus,
    /// Agents that this server started and that have not ended yet.
    children: Mutex<HashMap<(AttemptId, u32), Child>>,
}

impl LocalExecutor {
    /// `root` holds a folder for each attempt; `binary` is this program, started as `binary agent --attempt-dir FOLDER`.
    pub fn new(root: PathBuf, binary: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).map_err(|error| io_error("the folder of attempts cannot be made", &root, error))?;
        Ok(Self { root, binary, gpus: Gpus::default(), children: Mutex::default() })
    }

    /// The same, giving these GPUs away.
    pub fn with_gpus(self, gpus: Gpus) -> Self {
        Self { gpus, ..self }
    }

    fn folder(&self, attempt: AttemptId) -> AttemptFolder {
        AttemptFolder::new(self.root.join(attempt.to_string()))
    }

    fn folder_of(&self, (attempt, node): (AttemptId, u32)) -> AttemptFolder {
        AttemptFolder::of_node(self.root.join(attempt.to_string()), node)
    }

    fn submit_now(&self, order: &AttemptOrder) -> Result<()> {
        let attempt = AttemptId(order.attempt);
        let missing: Vec<AttemptFolder> = (0..nodes_of(order))
            .map(|node| self.folder_of((attempt, node)))
            .filter(|folder| !folder.is_collected() && !self.is_node_alive((attempt, folder)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let first = self.folder(attempt);
        first.create().map_err(|error| io_error("the folder of the attempt cannot be made", first.path(), error))?;
        trainyard_store::fail_point!("executor.folder_made");
        self.write_order(&first, order)?;
        trainyard_store::fail_point!("executor.order_written");
        for folder in missing {
            self.start_node(order, &folder)?;
        }
        Ok(())
    }

    fn start_node(&self, order: &AttemptOrder, folder: &AttemptFolder) -> Result<()> {
        let (attempt, node) = (AttemptId(order.attempt), folder.node());
        folder.create().map_err(|error| io_error("the folder of the node cannot be made", folder.path(), error))?;
        folder.count_start().map_err(|error| io_error("the start of the agent cannot be counted", folder.path(), error))?;
        trainyard_store::fail_point!("executor.start_counted");
        let child = self.start((self.folder(attempt).path(), node), folder)?;
        trainyard_store::fail_point!("executor.agent_started");
        tracing::info!(run = order.run_id, %attempt, node, pid = child.id(), "agent started");
        self.children.lock().unwrap_or_else(PoisonError::into_inner).insert((attempt, node), child);
        Ok(())
    }

    fn is_node_alive(&self, (attempt, folder): (AttemptId, &AttemptFolder)) -> bool {
        self.is_child_of((attempt, folder.node())) || folder.agent_is_alive()
    }

    /// Writes the order, with the GPUs of the attempt in it.
    fn write_order(&self, folder: &AttemptFolder, order: &AttemptOrder) -> Result<()> {
        let mut order = order.clone();
        if self.gpus.are_given_away() {
            self.gpus.assign(&mut order, folder.read_order().ok().as_ref(), &self.other_orders(folder)?)?;
        }
        folder.write_order(&order).map_err(|error| io_error("the order of the attempt cannot be written", folder.path(), error))
    }

    /// The orders of all other attempts whose code may still run.
    fn other_orders(&self, this: &AttemptFolder) -> Result<Vec<AttemptOrder>> {
        let folders = self.leftovers_now()?.into_iter().map(|attempt| self.folder(attempt)).filter(|folder| folder.path() != this.path());
        let over = |folder: &AttemptFolder| folder.is_collected() || (folder.is_fenced() && !folder.agent_is_alive());
        Ok(folders.filter(|folder| !over(folder)).filter_map(|folder| folder.read_order().ok()).collect())
    }

    #[expect(unsafe_code, reason = "setsid between fork and exec is only to be had through pre_exec; it is async-signal-safe")]
    fn start(&self, (attempt, node): (&Path, u32), folder: &AttemptFolder) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(folder.agent_log());
        let folder = folder.path();
        let log = log.map_err(|error| io_error("the agent's log cannot be opened", folder, error))?;
        let copy = log.try_clone().map_err(|error| io_error("the agent's log cannot be opened", folder, error))?;
        let mut command = Command::new(&self.binary);
        command.args(["agent", "--attempt-dir"]).arg(attempt).stdin(Stdio::null()).stdout(copy).stderr(log).current_dir(folder);
        if node > 0 {
            command.args(["--node", &node.to_string()]);
        }
        command.env_clear().envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_kept)));
        // SAFETY: setsid is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
        }
        command.spawn().map_err(|error| io_error("the agent cannot be started from", &self.binary, error))
    }

    /// How many agents this server started that had not ended when it last looked.
    pub(super) fn children(&self) -> usize {
        self.children.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether this server started an agent for any node of `attempt` that has not ended. Collects the ones that have.
    pub(super) fn is_child(&self, attempt: AttemptId) -> bool {
        self.living_children(|(of, _)| of == attempt)
    }

    fn is_child_of(&self, node: (AttemptId, u32)) -> bool {
        self.living_children(|child| child == node)
    }

    fn living_children(&self, wanted: impl Fn((AttemptId, u32)) -> bool) -> bool {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|(attempt, node), child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                tracing::debug!(%attempt, node, %status, "agent ended");
                false
            }
            Err(error) => {
                tracing::warn!(%attempt, node, %error, "the agent cannot be waited for");
                false
            }
        });
        children.keys().any(|child| wanted(*child))
    }

    fn observe_now(&self, attempt: AttemptId) -> Observation {
        let first = self.folder(attempt);
        if !first.path().exists() {
            return Observation::Unknown;
        }
        // In this order: a child that has not taken the lock yet is alive; one that delivered everything may still be ending.
        if first.is_collected() {
            return Observation::Collected;
        }
        let count = first.read_order().map_or(1, |order| nodes_of(&order));
        for node in 0..count {
            let folder = self.folder_of((attempt, node));
            // It may have delivered everything and ended between the two looks.
            if !folder.is_collected() && !self.is_node_alive((attempt, &folder)) && !folder.is_collected() {
                return Observation::NoAgent { starts: folder.starts() };
            }
        }
        if first.is_collected() { Observation::Collected } else { Observation::Alive }
    }

    /// The order as it stands, with when the code was started as far as the folder knows better.
    fn order_now(&self, attempt: AttemptId) -> Option<AttemptOrder> {
        let folder = self.folder(attempt);
        let order = folder.read_order().ok()?;
        Some(AttemptOrder { started_at: order.started_at.or_else(|| folder.started_at()), ..order })
    }

    fn clean_now(&self, attempt: AttemptId) -> Result<()> {
        let folder = self.folder(attempt);
        if self.is_child(attempt) || folder.nodes().iter().any(AttemptFolder::agent_is_alive) {
            // It is told to abandon at its next word; the folder goes at a later sweep.
            return Ok(());
        }
        for node in folder.nodes() {
            crate::agent::end_leftovers(&node, attempt);
        }
        self.remove(attempt)
    }

    /// Removes the folder of `attempt`, unless an agent is alive in it. For one that had no agent on this machine: nothing of it is looked for here.
    pub(super) fn remove(&self, attempt: AttemptId) -> Result<()> {
        let folder = self.folder(attempt);
        if folder.nodes().iter().any(AttemptFolder::agent_is_alive) {
            return Ok(());
        }
        match fs::remove_dir_all(folder.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io_error("the folder of the attempt cannot be removed", folder.path(), error))
            }
            _ => Ok(()),
        }
    }

    fn leftovers_now(&self) -> Result<Vec<AttemptId>> {
        let entries = fs::read_dir(&self.root).map_err(|error| io_error("the folder of attempts cannot be read", &self.root, error))?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }
}

impl Executor for LocalExecutor {
    fn machines<'a>(&'a self, _target: &'a ComputeName) -> BoxFuture<'a, Result<Option<Vec<Machine>>>> {
        async {
            let at_work = self.leftovers_now()?.into_iter().filter(|attempt| self.folder(*attempt).agent_is_alive()).count();
            let state = if at_work > 0 { MachineState::Running } else { MachineState::Idle };
            Ok(Some(vec![Machine { name: node_name(), state, says: format!("this machine, {at_work} agents at work") }]))
        }
        .boxed()
    }

    /// Every node takes a slot: they are all on this machine.
    fn slots(&self, definition: &Definition) -> u32 {
        definition.distribution.node_count
    }

    fn submit<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move { self.submit_now(order) }.boxed()
    }

    fn refresh<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move { self.write_order(&self.folder(AttemptId(order.attempt)), order) }.boxed()
    }

    fn order(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<AttemptOrder>>> {
        async move { Ok(self.order_now(attempt)) }.boxed()
    }

    fn observe(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Observation>> {
        async move { Ok(self.observe_now(attempt)) }.boxed()
    }

    fn stop<'a>(&'a self, attempt: AttemptId, by: &'a str, why: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        async move {
            let folder = self.folder(attempt);
            folder.request_stop(by, why).map_err(|error| io_error("the agent cannot be asked to stop", folder.path(), error))
        }
        .boxed()
    }

    fn redeliver(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move {
            let folder = self.folder(attempt);
            folder.ask_again().map_err(|error| io_error("the agent cannot be asked to deliver again in", folder.path(), error))
        }
        .boxed()
    }

    fn fence(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        let folder = self.folder(attempt);
        // Ending a tree may take seconds, and waits for them in the thread.
        async move { tokio::task::spawn_blocking(move || put_up_fence(&folder, attempt)).await.map_err(Error::internal)? }.boxed()
    }

    fn clean(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move { self.clean_now(attempt) }.boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<AttemptId>>> {
        async move { self.leftovers_now() }.boxed()
    }
}

/// On how many nodes the attempt of an order is.
fn nodes_of(order: &AttemptOrder) -> u32 {
    let count = order.definition["distribution"]["node_count"].as_u64().and_then(|count| u32::try_from(count).ok());
    count.unwrap_or(1).clamp(1, MAX_NODES)
}

fn put_up_fence(folder: &AttemptFolder, attempt: AttemptId) -> Result<()> {
    if !folder.path().exists() {
        return Ok(());
    }
    folder.fence().map_err(|error| io_error("the fence cannot be put up in", folder.path(), error))?;
    // At once, and stopped processes too: the note is for an agent that is started by something else later.
    for node in folder.nodes() {
        crate::agent::kill(&node, attempt);
    }
    Ok(())
}

fn io_error(what: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{what} {}", path.display())).with_source(error)
}
