//! Slurm, through its command-line tools: an attempt is a job named after it, and a folder that the server and the nodes share.
//!
//! [`tools`] runs the commands, [`view`] asks for all jobs at once and remembers the answer, [`submission`] hands jobs in, [`ending`] says what
//! Slurm's words mean for an attempt, [`tick`] does once a second what is due. This file puts them together.
//!
//! Nothing waits for Slurm but what must: observing reads what was last seen, submitting and stopping are done beside the pass. A controller that
//! does not answer changes nothing about any attempt.
//!
//! Invariant: of all the jobs that may ever carry the name of an attempt, one begins: its script claims the folder, and another that finds the
//! claim leaves. So an answer that got lost is never a reason for a second execution.

mod check;
mod ending;
mod guests;
mod jobs;
mod machines;
mod observe;
mod own;
mod parse;
mod reason;
mod submission;
mod tick;
mod tools;
mod view;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::{OnceCell, Semaphore};
use trainyard_core::{
    Error, Result,
    definition::Definition,
    ids::{AttemptId, ComputeName},
    run::Cause,
    slurm::SlurmWish,
};
use trainyard_wire::native::AttemptOrder;

pub use self::guests::UserDir;
use self::{guests::Guests, jobs::Jobs, machines::Machines, tools::Tools, view::View};
use super::{Executor, Machine, Observation, asking::Checks, local::LocalExecutor, ticking::Ticking};
use crate::agent::folder::AttemptFolder;

/// How a Slurm cluster is reached. Targets with the same settings share one [`SlurmExecutor`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlurmSettings {
    /// A folder that this machine and every node see under the same path.
    pub shared_dir: PathBuf,
    /// Where Slurm's commands are; `None`: on PATH.
    pub slurm_bin: Option<PathBuf>,
    /// Where they are run instead of here: what `ssh` takes, e.g. `user@login`.
    pub ssh: Option<String>,
}

/// A compute target on a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlurmTarget {
    /// What its configuration asks for.
    pub wish: SlurmWish,
    /// Where its runs keep what they need, if their jobs are those of the accounts that they were submitted as. `None`: they are the server's own.
    pub user_dir: Option<UserDir>,
}

/// `sbatch` commands that are under way at once.
const SENDING: usize = 8;

/// Agents at once that close the books of jobs that are over, on this machine.
const CLOSING: usize = 4;

/// How long a job may take to end once everything of it is delivered.
const LINGER: Duration = Duration::from_secs(60);

/// A server that is just ending lets go of the shared folder in an instant.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Runs attempts as Slurm jobs.
pub struct SlurmExecutor {
    inner: Arc<Inner>,
}

struct Inner {
    /// The folders, and the agents that close the books of jobs that are over.
    local: LocalExecutor,
    attempts: PathBuf,
    programs: PathBuf,
    binary: PathBuf,
    staged: OnceCell<PathBuf>,
    targets: BTreeMap<ComputeName, SlurmTarget>,
    guests: Guests,
    tools: Tools,
    jobs: Jobs,
    view: View,
    checks: Checks<check::Question>,
    machines: Machines,
    sending: Semaphore,
    ticking: Ticking,
    _lock: fs::File,
}

impl SlurmExecutor {
    /// `binary` is this program, which is copied to the shared folder for the nodes; `targets` are the compute targets on this cluster, with what
    /// their configuration asks for.
    ///
    /// # Errors
    /// If the shared folder cannot be used, or another server uses it.
    pub fn new(settings: &SlurmSettings, targets: BTreeMap<ComputeName, SlurmTarget>, binary: PathBuf) -> Result<Self> {
        let shared = &settings.shared_dir;
        if !shared.is_absolute() || shared.to_str().is_none_or(|path| path.contains(['%', '\\', '\'', '\n'])) {
            return Err(Error::invalid(format!(
                "the shared folder `{}` must be an absolute path without %, \\, quotes and line breaks",
                shared.display()
            )));
        }
        let (attempts, programs) = (shared.join("attempts"), shared.join("bin"));
        let unusable = |error| Error::invalid(format!("the shared folder `{}` cannot be used", shared.display())).with_source(error);
        fs::create_dir_all(&programs).map_err(unusable)?;
        let lock = lock(&shared.join("server.lock"))?;
        let (tools, guests) = (Tools::new(settings), Guests::find(shared, &attempts));
        if targets.values().any(|target| target.user_dir.is_some()) {
            guests.open(shared, &programs)?;
        }
        guests.users().into_iter().for_each(|user| tools.watch(user));
        let inner = Inner {
            local: LocalExecutor::new(attempts.clone(), binary.clone())?,
            attempts,
            programs,
            binary,
            staged: OnceCell::new(),
            targets,
            guests,
            tools,
            jobs: Jobs::default(),
            view: View::default(),
            checks: Checks::default(),
            machines: Machines::default(),
            sending: Semaphore::new(SENDING),
            ticking: Ticking::default(),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

fn lock(path: &Path) -> Result<fs::File> {
    let unusable = |error| Error::invalid(format!("`{}` cannot be locked", path.display())).with_source(error);
    let file = fs::File::options().create(true).truncate(false).write(true).open(path).map_err(unusable)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(fs::TryLockError::WouldBlock) => {
                let folder = path.parent().unwrap_or(path).display();
                return Err(Error::invalid(format!("another server uses the shared folder `{folder}`; give each server one of its own")));
            }
            Err(fs::TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
}

impl Inner {
    fn folder(&self, attempt: AttemptId) -> AttemptFolder {
        AttemptFolder::new(self.attempts.join(attempt.to_string()))
    }

    /// Whether the job of an attempt that is closed should have ended by now. Of a guest it is known only since when it is not wanted.
    fn lingers(&self, attempt: AttemptId) -> bool {
        let passed = match self.guests.of(attempt) {
            Some(_) => Some(self.jobs.unwanted_for(attempt)),
            None => self.folder(attempt).collected_for(),
        };
        passed.is_none_or(|passed| passed > LINGER)
    }

    /// What a run with this definition asks of Slurm.
    fn wish(&self, definition: &Definition) -> SlurmWish {
        self.targets.get(&definition.target).map(|target| target.wish.with(&definition.slurm)).unwrap_or_else(|| definition.slurm.clone())
    }
}

impl Executor for SlurmExecutor {
    fn check<'a>(&'a self, definition: &'a Definition) -> BoxFuture<'a, Result<Option<String>>> {
        let (wish, spread) = (self.inner.wish(definition), definition.distribution);
        let is_boxed_in = spread.is_launched() && spread.node_count > 1 && definition.container.is_some();
        async move {
            if is_boxed_in {
                let message = "MPI over several nodes is not possible from inside a container: leave the container out, or use one node";
                return Err(Error::invalid(message).with_target("Configuration.Communicator"));
            }
            let question = (wish, spread.node_count);
            self.inner.checks.answer(question.clone(), check::ask(&self.inner.tools, &question)).await.judge("Slurm")
        }
        .boxed()
    }

    fn machines<'a>(&'a self, target: &'a ComputeName) -> BoxFuture<'a, Result<Option<Vec<Machine>>>> {
        let partition = self.inner.targets.get(target).and_then(|target| target.wish.partition.as_deref());
        async move { self.inner.machines.of(&self.inner.tools, partition).await.map(Some) }.boxed()
    }

    fn look(&self) {
        tick::begin(&self.inner);
    }

    fn explain(&self, attempt: AttemptId) -> BoxFuture<'_, Option<Cause>> {
        self.inner.explain(attempt).boxed()
    }

    fn submit<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move { submission::submit(&self.inner, order).await }.boxed()
    }

    fn refresh<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>> {
        async move {
            if let Some(guest) = self.inner.guests.of(AttemptId(order.attempt)) {
                self.inner.guests.write_order(&guest, order)?;
            }
            self.inner.local.refresh(order).await
        }
        .boxed()
    }

    fn order(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<AttemptOrder>>> {
        self.inner.local.order(attempt)
    }

    fn observe(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Observation>> {
        async move { Ok(self.inner.observe(attempt)) }.boxed()
    }

    fn stop<'a>(&'a self, attempt: AttemptId, by: &'a str, why: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        async move {
            self.inner.local.stop(attempt, by, why).await?;
            // The job that waits is taken out of the queue, the agent that does not hear is told by Slurm: at the next look.
            self.inner.jobs.stop(attempt);
            tick::begin(&self.inner);
            Ok(())
        }
        .boxed()
    }

    fn redeliver(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move {
            let Some(guest) = self.inner.guests.of(attempt) else { return self.inner.local.redeliver(attempt).await };
            let folder = self.inner.folder(attempt);
            if matches!(self.inner.observe(attempt), Observation::Collected) {
                let failed = |error| submission::io_error("what is lost cannot be noted in", folder.path(), error);
                return self.inner.note_undelivered(&folder).map_err(failed);
            }
            self.inner.guests.ask_again(&guest)
        }
        .boxed()
    }

    fn fence(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move {
            let folder = self.inner.folder(attempt);
            if !folder.path().exists() {
                return Ok(());
            }
            folder.fence().map_err(|error| submission::io_error("the fence cannot be put up in", folder.path(), error))?;
            if let Some(guest) = self.inner.guests.of(attempt) {
                self.inner.guests.withdraw(&guest)?;
            }
            self.inner.jobs.kill(attempt);
            tick::begin(&self.inner);
            // An agent on this machine that closes the books; those on the nodes are Slurm's to kill.
            if self.inner.local.is_child(attempt) { self.inner.local.fence(attempt).await } else { Ok(()) }
        }
        .boxed()
    }

    fn clean(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>> {
        async move {
            tick::begin(&self.inner);
            if !self.inner.is_gone(attempt) {
                // Its folder goes at a later sweep. An agent that has just delivered everything is about to end by itself.
                if self.inner.lingers(attempt) {
                    self.inner.jobs.kill(attempt);
                }
                return Ok(());
            }
            self.inner.guests.dismiss(attempt)?;
            // Without Slurm's word for it no agent was started on this machine to close the books, and a look at all its processes finds nothing.
            if self.inner.folder(attempt).verdict().is_some() {
                self.inner.local.clean(attempt).await?;
            } else {
                self.inner.local.remove(attempt)?;
            }
            if !self.inner.folder(attempt).path().exists() {
                self.inner.jobs.forget(attempt);
            }
            Ok(())
        }
        .boxed()
    }

    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<AttemptId>>> {
        self.inner.local.leftovers()
    }
}
