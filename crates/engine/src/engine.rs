//! The engine task: one loop that makes the world match the rows, woken by signals and by a timer.
//!
//! A signal only wakes; every pass reads the store again. Start-up is not special: the first pass is the recovery.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use trainyard_core::{
    archive::ArchiveLimits,
    container::ContainerPolicy,
    definition::Definition,
    environment::Progress,
    ids::{AttemptId, ComputeName, RunId, WorkspaceId},
    plan::WaitReason,
    run::{Cause, RetryPolicy},
    slurm::SubmitAs,
};
use trainyard_store::Store;

use crate::{
    container::ContainerSettings,
    data::Datastores,
    environment::EnvironmentSettings,
    executor::Executor,
    heartbeat::{Attendance, Heartbeats},
    hub::{Hub, RunKey, Subscription},
    pass::Passes,
    preparations::Preparations,
};

/// How long the engine sleeps when nobody wakes it. Bounds how late a lost signal is noticed.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a round may go on once the engine was told to stop.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// How long an agent waits at most for its engine's word on what ended it.
const EXPLANATION: Duration = Duration::from_secs(6);

/// Signals that come in a burst are answered by one pass: at least this long lies between two.
const BREATH: Duration = Duration::from_millis(4);

/// A compute target and what executes it.
#[derive(Clone)]
pub struct Target {
    /// The name that definitions use.
    pub name: ComputeName,
    /// How many runs it executes at once.
    pub slots: u32,
    /// The word for its engine, for display: `local` or `slurm`.
    pub engine: &'static str,
    /// What executes its runs.
    pub executor: Arc<dyn Executor>,
    /// How often its runs are tried again, unless their definitions say otherwise.
    pub retries: RetryPolicy,
    /// How environments are prepared there, where that differs from the rest: on machines that share a folder with the server.
    pub environments: Option<EnvironmentSettings>,
    /// Whether and how its runs go into containers.
    pub containers: TargetContainers,
    /// What starts the processes of MPI runs there: `mpirun`, or `srun:TYPE`.
    pub mpi: Option<String>,
    /// Whose jobs its runs are; `None`: all are the server's own user's.
    pub submit_as: Option<SubmitAs>,
}

/// Containers on a target.
#[derive(Clone, Debug, Default)]
pub struct TargetContainers {
    /// Whether its runs go into them.
    pub policy: ContainerPolicy,
    /// How they are run, with the logins of the configuration.
    pub settings: ContainerSettings,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("slots", &self.slots).field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Makes run-scoped tokens; the server has the keys.
pub trait RunTokens: Send + Sync {
    /// A token for the agent and code of `attempt`, and when it ends, in seconds since the epoch.
    fn mint(&self, workspace: WorkspaceId, run: &RunId, attempt: AttemptId) -> trainyard_core::Result<(String, i64)>;

    /// What the agents of `attempt` know each other by: hexadecimal digits, the same each time, to be in orders and nowhere else.
    fn node_key(&self, attempt: AttemptId) -> String;

    /// Whether a token that was made before will hold for some days more: signed with a key of now, and far from its end.
    fn lasts(&self, token: &str) -> bool;
}

/// Opens what the server sealed before it was stored; the server has the key.
pub trait Unseal: Send + Sync {
    /// The secret, for an order and nothing else.
    fn unseal(&self, sealed: &str) -> trainyard_core::Result<String>;
}

/// Everything the engine needs to know.
pub struct EngineOptions {
    /// Rows and blobs.
    pub store: Store,
    /// The compute targets.
    pub targets: Vec<Target>,
    /// What agents are told about the server.
    pub orders: OrderSettings,
    /// Who makes their tokens.
    pub tokens: Arc<dyn RunTokens>,
    /// Who opens sealed passwords.
    pub seal: Arc<dyn Unseal>,
    /// How long silence is borne.
    pub patience: Patience,
}

/// The part of an attempt's order that is the same for all.
#[derive(Clone)]
pub struct OrderSettings {
    /// Where agents find the server: `https://host:port`.
    pub endpoint: String,
    /// The server's CA.
    pub ca_pem: String,
    /// How environments are built.
    pub environments: EnvironmentSettings,
    /// What an uploaded archive may contain.
    pub archive_limits: ArchiveLimits,
    /// Time between TERM and KILL.
    pub grace: Duration,
    /// How much of a log may wait in an agent's spool, in bytes.
    pub spool_limit_bytes: u64,
    /// Where the data of runs is.
    pub datastores: Arc<Datastores>,
}

/// How long silence is borne.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An attempt that is silent for longer is `NotResponding`.
    pub heartbeat_limit: Duration,
    /// One that is silent for longer is given up as lost with its machine, behind a fence; `None`: never.
    pub silence_limit: Option<Duration>,
}

/// What the rest of the program holds of the engine.
#[derive(Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) notify: Notify,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) preparations: Preparations,
    heartbeat_limit: Duration,
    attended: AtomicBool,
    pub(crate) adopted: watch::Sender<bool>,
    violations: std::sync::Mutex<Vec<(&'static str, u64)>>,
    waits: std::sync::Mutex<HashMap<AttemptId, WaitReason>>,
    targets: Vec<Target>,
    datastores: Arc<Datastores>,
    full: BTreeMap<ComputeName, AtomicBool>,
    stop: CancellationToken,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    /// Starts the engine task.
    pub fn start(options: EngineOptions) -> Self {
        let shared = Arc::new(Shared {
            hub: Hub::default(),
            notify: Notify::new(),
            heartbeats: Heartbeats::default(),
            preparations: Preparations::default(),
            heartbeat_limit: options.patience.heartbeat_limit,
            attended: AtomicBool::new(false),
            adopted: watch::Sender::new(false),
            violations: std::sync::Mutex::default(),
            waits: std::sync::Mutex::default(),
            full: options.targets.iter().map(|target| (target.name.clone(), AtomicBool::new(false))).collect(),
            targets: options.targets.clone(),
            datastores: Arc::clone(&options.orders.datastores),
            stop: CancellationToken::new(),
            task: std::sync::Mutex::new(None),
        });
        let handle = Self { shared: Arc::clone(&shared) };
        let task = tokio::spawn(run(Passes::new(options, handle.clone()), Arc::clone(&shared)));
        *shared.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(task);
        handle
    }

    /// Something changed that the engine may have to act on: a run ended, was cancelled, an agent reported.
    pub fn wake(&self) {
        self.shared.notify.notify_one();
    }

    /// A run was queued on `target`. Wakes the engine unless the last pass found the target full: then nothing can be
    /// admitted before a run ends, and that wakes the engine itself. Keeps a burst of submissions from costing a pass each.
    pub fn submitted(&self, target: &ComputeName) {
        match self.shared.full.get(target) {
            Some(full) if full.load(Ordering::Acquire) => {}
            _ => self.wake(),
        }
    }

    /// The agent on `node` of `attempt` said something, whatever it was.
    pub fn heard(&self, attempt: AttemptId, node: u32) {
        // The run says NotResponding: it should not do so for another second.
        if self.shared.heartbeats.heard((attempt, node), Instant::now()) > self.shared.heartbeat_limit {
            self.wake();
        }
    }

    /// What `attempt` is preparing at this moment. It is not stored and nothing is decided by it.
    pub fn set_preparation(&self, attempt: AttemptId, progress: Progress) {
        self.shared.preparations.set(attempt, progress);
    }

    /// `attempt` does not prepare any more.
    pub fn end_preparation(&self, attempt: AttemptId) {
        self.shared.preparations.end(attempt);
    }

    /// What `attempt` is preparing; `None` unless it prepares and has said so.
    pub fn preparation(&self, attempt: AttemptId) -> Option<Progress> {
        self.shared.preparations.of(attempt)
    }

    /// How many attempts are in execution, and of how many something was heard since the server started; `None` before the first pass has
    /// looked at all of them.
    pub fn attendance(&self) -> Option<Attendance> {
        self.shared.attended.load(Ordering::Acquire).then(|| self.shared.heartbeats.attendance())
    }

    /// How often a run with this definition is tried again on its target. A target that is not configured any more has the usual rule.
    pub fn retry_policy(&self, definition: Option<&Definition>) -> RetryPolicy {
        let Some(definition) = definition else { return RetryPolicy::default() };
        let target = self.target(definition.target.as_str());
        target.map(|target| target.retries).unwrap_or_default().with(definition.retries)
    }

    /// The compute targets, in the order of the configuration.
    pub fn targets(&self) -> &[Target] {
        &self.shared.targets
    }

    /// Where the data of runs is.
    pub fn datastores(&self) -> &Datastores {
        &self.shared.datastores
    }

    /// The compute target of that name.
    pub fn target(&self, name: &str) -> Option<&Target> {
        self.shared.targets.iter().find(|target| target.name.as_str() == name)
    }

    /// How many slots of its target a run with this definition takes, all at once.
    pub fn slots(&self, definition: &Definition) -> u32 {
        self.target(definition.target.as_str()).map_or(1, |target| target.executor.slots(definition)).max(1)
    }

    /// What `attempt` waits for in the queue of its engine; `None`: it does not.
    pub fn wait(&self, attempt: AttemptId) -> Option<WaitReason> {
        self.shared.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&attempt).cloned()
    }

    /// The cause of an attempt's end as its engine knows it, where its agent could only say that it was told to end. An engine that does not
    /// answer in good time changes nothing.
    pub async fn explain(&self, attempt: (&str, AttemptId), cause: Cause) -> Cause {
        let (target, attempt) = attempt;
        let Some(target) = self.target(target).filter(|_| cause.wants_explanation()) else { return cause };
        match tokio::time::timeout(EXPLANATION, target.executor.explain(attempt)).await {
            Ok(Some(explained)) => explained,
            Ok(None) | Err(_) => cause,
        }
    }

    /// How many objects broke each cheap invariant at the last count; empty before the first.
    pub fn violations(&self) -> Vec<(&'static str, u64)> {
        self.shared.violations.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Resolves once attempts that the rows did not know were taken back: before, agents must not be answered.
    pub async fn adopted(&self) {
        // Fails only when the sender is gone, and it is in `self`.
        let _ = self.shared.adopted.subscribe().wait_for(|adopted| *adopted).await;
    }

    /// Tells everyone who follows `run` to look again.
    pub fn touch(&self, run: &RunKey) {
        self.shared.hub.touch(run);
    }

    /// Waits for changes of `run`; see [`Subscription::changed`].
    pub fn subscribe(&self, run: &RunKey) -> Subscription {
        self.shared.hub.subscribe(run)
    }

    /// Resolves once [`Handle::shutdown`] was called, so that long polls end early.
    pub async fn stopping(&self) {
        self.shared.stop.cancelled().await;
    }

    /// Ends the engine task after its present pass. Agents and the code they run go on.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        let task = self.shared.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the engine task did not end cleanly");
        }
    }
}

impl Shared {
    /// A pass has looked at every attempt in execution.
    pub(crate) fn set_attended(&self) {
        self.attended.store(true, Ordering::Release);
    }

    /// Forgets what attempts waited for that are not in execution any more.
    pub(crate) fn keep_waits(&self, live: &HashSet<AttemptId>) {
        self.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|attempt, _| live.contains(attempt));
    }

    /// Remembers what `attempt` waits for. Gives whether that is news.
    pub(crate) fn set_wait(&self, attempt: AttemptId, why: Option<WaitReason>) -> bool {
        let mut waits = self.waits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = match why.clone() {
            Some(why) => waits.insert(attempt, why),
            None => waits.remove(&attempt),
        };
        before != why
    }

    /// Remembers a count of rows that break an invariant.
    pub(crate) fn set_violations(&self, counts: Vec<(&'static str, u64)>) {
        *self.violations.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = counts;
    }

    /// Remembers whether `target` has no free slot; see [`Handle::submitted`].
    pub(crate) fn set_full(&self, target: &ComputeName, full: Fullness) {
        if let Some(flag) = self.full.get(target) {
            flag.store(full == Fullness::Full, Ordering::Release);
        }
    }
}

/// Whether a target has a free slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fullness {
    /// Every slot is busy.
    Full,
    /// At least one slot is free.
    Free,
}

/// Resolves when the engine was told to stop and its round goes on for too long: each of its steps may wait for a database that is gone.
async fn overdue(shared: &Shared) {
    shared.stop.cancelled().await;
    tokio::time::sleep(LAST_ROUND).await;
}

async fn run(mut passes: Passes, shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = passes.run_all() => {}
            () = overdue(&shared) => return tracing::warn!("the engine was told to stop and leaves its round unfinished; the next start goes on with it"),
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(BREATH) => {}
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.notify.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
