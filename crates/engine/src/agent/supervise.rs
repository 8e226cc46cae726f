//! Runs the user's code from its start to the end of the last process of its tree.
//!
//! What is about to happen is on disk before it happens: that the code is started before it is, why it is stopped before it is, how it
//! ended before anybody is told. So an agent that comes after never starts the code a second time, and knows what an
//! earlier one had decided.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use trainyard_core::run::Cause;
use trainyard_wire::native::Report;

use super::{
    contained::Contained,
    control::Demand,
    folder::{ExitRecord, MainProcess, Started, boot_id},
    life::Attempt,
    memory::MemoryWatch,
    outputs::OUTPUTS,
    process::{self, Launch, NotStarted, Reaper},
    ship::Pace,
    tree::{self, Tree},
    variables::{Sources, command_line, variables},
};
use crate::{clock::now_us, container, environment::InUse};

/// How long descendants of the code may live on after its main process has ended: enough for those that are about to end by
/// themselves, like the trackers that Python's multiprocessing starts.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How long the agent's own signal may come after that of its code.
const SAME_INSTANT: Duration = Duration::from_millis(300);

/// Between two tries to write what must be written, on a full disk say.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// Longest time limit that is told apart from none, in seconds: over 30 years.
const MAX_LIMIT_SECONDS: u64 = 1_000_000_000;

/// What the preparation made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ready {
    /// What runs scripts.
    pub(super) interpreter: PathBuf,
    /// The folder of the environment that was built; `None`: user-managed.
    pub(super) prefix: Option<PathBuf>,
    /// What the environment sets for what runs in it.
    pub(super) variables: BTreeMap<String, String>,
    /// Keeps the environment as long as the run lives.
    pub(super) _in_use: Option<InUse>,
    /// System roots and the server's CA.
    pub(super) ca_bundle: PathBuf,
    /// The container that it all is in; `None`: the machine itself.
    pub(super) container: Option<Contained>,
}

impl Ready {
    /// Whether the code is in a container that the engine ends as a whole.
    fn is_contained(&self) -> bool {
        self.container.as_ref().is_some_and(Contained::passes_signals_on)
    }
}

/// How the agent's work on the code ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The exit record is on disk, and nothing of the tree is left.
    Ended(Cause),
    /// The attempt was given up; nothing of the tree is left.
    Abandoned,
    /// The agent is to end, and the code was never started: another agent can begin again.
    Interrupted,
}

/// Why running code is stopped.
enum Stop {
    Demanded(Demand),
    TimeLimit(u64),
}

impl From<NotStarted> for Cause {
    fn from(NotStarted { message, by_definition }: NotStarted) -> Self {
        Self::StartFailed { message, by_definition }
    }
}

/// Runs the code of `attempt`. Only if it was never started: the caller has looked.
pub(super) async fn run(attempt: &Attempt, ready: &Ready) -> Outcome {
    let launch = match launch(attempt, ready) {
        Ok(launch) => launch,
        Err(refused) => return ended(attempt, refused.into()).await,
    };
    match attempt.control.now() {
        Demand::Continue => {}
        demand => return stopped_before_start(attempt, demand).await,
    }
    let mut started = Started { started_us: now_us(), main: None, stopping: None, boot_id: boot_id() };
    if let Err(error) = attempt.folder.write_started(&started) {
        let message = format!("the agent cannot note the start in `{}`: {error}", attempt.folder.path().display());
        return ended(attempt, Cause::StartFailed { message, by_definition: false }).await;
    }
    let mut memory = MemoryWatch::start();
    trainyard_store::fail_point!("agent.start_noted");
    let (mut reaper, main) = match process::spawn(&launch) {
        Ok(spawned) => spawned,
        Err(refused) => return ended(attempt, refused.into()).await,
    };
    drop(launch);
    trainyard_store::fail_point!("agent.spawned");
    attempt.pace.send_replace(Pace::Started);
    attempt.reporter.tell(Report::Started);
    tracing::info!(pid = main.pid, "the code runs");
    started.main = Some(main);
    if let Err(error) = attempt.folder.write_started(&started) {
        tracing::warn!(%error, "the process id is not noted; should this agent be killed, the code's processes are found by their environment");
    }

    trainyard_store::fail_point!("agent.process_noted");
    let limit = attempt.definition.max_run_duration_seconds;
    let stop = tokio::select! {
        biased;
        status = reaper.main_ended() => {
            let (cause, warning) = memory.conclude(process::cause_of(status));
            let (cause, more) = match &ready.container {
                Some(container) => container.ended(attempt, cause).await,
                None => (cause, None),
            };
            let cause = told_to_end(attempt, cause).await;
            for warning in warning.into_iter().chain(more) {
                attempt.warn(warning);
            }
            let outcome = ended(attempt, cause).await;
            // With a container everything that was in it is gone.
            if !ready.is_contained() {
                end_aftermath(attempt, main, &mut reaper).await;
            }
            return outcome;
        }
        demand = attempt.control.stop_demanded() => Stop::Demanded(demand),
        limit = elapsed(limit) => Stop::TimeLimit(limit),
        never = memory.keep_looking() => match never {},
    };
    stop_running(attempt, ready, (stop, started), &mut reaper).await
}

/// Notes how an attempt ended whose code does not run (any more).
pub(super) async fn ended(attempt: &Attempt, cause: Cause) -> Outcome {
    let record = ExitRecord { cause: cause.clone(), ended_us: now_us() };
    tracing::info!(cause = cause.label(), "the code is over");
    trainyard_store::fail_point!("agent.code_ended");
    // The record is the truth about the run: nothing goes on without it, however long the disk is full.
    while let Err(error) = attempt.folder.write_exit_record(&record) {
        if !attempt.folder.path().exists() {
            tracing::error!("the folder of the attempt was removed; nothing can be kept in it");
            break;
        }
        tracing::error!(%error, "the exit record cannot be written; trying again");
        tokio::select! {
            // Nobody will ever ask for it.
            () = attempt.control.abandoned() => break,
            () = tokio::time::sleep(WRITE_PAUSE) => {}
        }
    }
    trainyard_store::fail_point!("agent.exit_recorded");
    Outcome::Ended(cause)
}

/// What a demand means as long as the code was not started.
pub(super) async fn stopped_before_start(attempt: &Attempt, demand: Demand) -> Outcome {
    match demand {
        Demand::Continue | Demand::Terminate => Outcome::Interrupted,
        Demand::Cancel { by, why } => ended(attempt, Cause::Cancelled { by, why }).await,
        Demand::Abandon => Outcome::Abandoned,
    }
}

/// Ends whatever a former agent of the attempt left alive.
pub(super) async fn sweep(attempt: &Attempt) {
    let main = attempt.folder.started().ok().flatten().and_then(|started| started.main_now());
    let left = end_tree(attempt, &Tree::of_agent(attempt.id, main), None).await;
    if left > 0 {
        tracing::error!(left, "processes of a former agent do not end");
    }
    let folder = attempt.folder.path().to_owned();
    // It waits for the engine in the thread.
    if tokio::task::spawn_blocking(move || container::remove_leftovers(&folder)).await.is_err() {
        tracing::error!("the removal of containers broke off");
    }
}

async fn stop_running(attempt: &Attempt, ready: &Ready, (stop, mut started): (Stop, Started), reaper: &mut Reaper) -> Outcome {
    let cause = match stop {
        Stop::TimeLimit(limit_seconds) => Cause::TimeLimit { limit_seconds, of: None },
        Stop::Demanded(demand) => stopped_by(demand),
    };
    tracing::info!(cause = cause.label(), "stopping the code");
    started.stopping = Some(cause.clone());
    if let Err(error) = attempt.folder.write_started(&started) {
        tracing::warn!(%error, "why the code is stopped is not noted");
    }
    if let (Some(container), Some(main)) = (&ready.container, started.main) {
        end_container(attempt, container, main, reaper).await;
    }
    // What an engine keeps for other containers, its monitor of namespaces say, may descend from this agent.
    let tree = if ready.is_contained() { Tree::of_outsider(attempt.id, started.main) } else { Tree::of_agent(attempt.id, started.main) };
    let left = end_tree(attempt, &tree, Some(reaper)).await;
    if left > 0 {
        attempt.warn(format!("{left} processes of the run do not end, not even when killed; they may hold files or devices"));
    }
    match ended(attempt, cause).await {
        _ if attempt.control.now() == Demand::Abandon => Outcome::Abandoned,
        outcome => outcome,
    }
}

/// Ends a container: TERM for the code in it, which the engine's client passes on, and once its time is over whatever is left of it.
async fn end_container(attempt: &Attempt, container: &Contained, main: MainProcess, reaper: &mut Reaper) {
    if container.passes_signals_on() && attempt.control.now() != Demand::Abandon {
        tree::ask(main);
        tokio::select! {
            _ = tokio::time::timeout(attempt.grace(), reaper.main_ended()) => {}
            () = attempt.control.abandoned() => {}
        }
    }
    if let Err(error) = container.remove().await {
        attempt.warn(format!("the container of the run could not be removed: {error}"));
    }
}

/// Ends a tree, with time for last words; without any once the attempt was given up: another one may be at work already. Gives the number of
/// processes that do not end.
async fn end_tree(attempt: &Attempt, tree: &Tree, mut reaper: Option<&mut Reaper>) -> usize {
    if attempt.control.now() != Demand::Abandon {
        tokio::select! {
            left = tree.end(attempt.grace(), reaper.as_deref_mut()) => return left,
            () = attempt.control.abandoned() => {}
        }
    }
    tree.end(Duration::ZERO, reaper).await
}

/// Ends what the code left behind.
async fn end_aftermath(attempt: &Attempt, main: MainProcess, reaper: &mut Reaper) {
    if tokio::time::timeout(AFTERMATH, reaper.all_ended()).await.is_ok() {
        return;
    }
    let tree = Tree::of_agent(attempt.id, Some(main));
    let names = tree.describe();
    if names.is_empty() {
        return;
    }
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > 5 { ", …" } else { "" };
    attempt.warn(format!("the code left {} processes behind when it ended; they were ended: {shown}{more}", names.len()));
    let left = end_tree(attempt, &tree, Some(reaper)).await;
    if left > 0 {
        attempt.warn(format!("{left} of them do not end, not even when killed"));
    }
}

/// Resolves when `limit_seconds` have passed, with them; never without a limit.
async fn elapsed(limit_seconds: Option<u64>) -> u64 {
    match limit_seconds {
        Some(limit) => {
            tokio::time::sleep(Duration::from_secs(limit.min(MAX_LIMIT_SECONDS))).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Some engines tell the agent and its code to end in the same instant, and the code may be quicker to do so.
async fn told_to_end(attempt: &Attempt, cause: Cause) -> Cause {
    if !cause.wants_explanation() {
        return cause;
    }
    match tokio::time::timeout(SAME_INSTANT, attempt.control.stop_demanded()).await {
        Ok(demand) => stopped_by(demand),
        Err(_) => cause,
    }
}

/// What a demand to stop makes the cause of an end.
fn stopped_by(demand: Demand) -> Cause {
    match demand {
        Demand::Cancel { by, why } => Cause::Cancelled { by, why },
        Demand::Abandon => Cause::AgentLost { message: "the server gave this attempt up".into() },
        Demand::Terminate | Demand::Continue => {
            Cause::Preempted { message: "the agent was told to end; was the machine shut down, or its job taken off it?".into() }
        }
    }
}

/// Everything that the start needs, or why it is not possible.
fn launch(attempt: &Attempt, ready: &Ready) -> Result<Launch, NotStarted> {
    let (work, definition) = (attempt.folder.work(), &attempt.definition);
    let (program, arguments) =
        command_line(definition, &ready.interpreter, &work).map_err(|message| NotStarted { message, by_definition: true })?;
    for name in [OUTPUTS, "logs"] {
        make_folder(&work.join(name)).map_err(|error| NotStarted {
            message: format!("the folder `{name}` cannot be made in the working directory: {error}"),
            by_definition: false,
        })?;
    }
    let (token, token_expires_on) = attempt.client.token();
    let id = attempt.id.to_string();
    let own: BTreeMap<_, _> = std::env::vars_os().collect();
    let (variables, warnings) = variables(&Sources {
        own: ready.container.as_ref().map_or_else(|| own.clone(), |container| container.surroundings(&own)),
        environment: &ready.variables,
        server: &attempt.order.variables,
        attempt: &id,
        endpoint: &attempt.order.endpoint,
        token: (&token, token_expires_on),
        work: &work,
        logs: &attempt.folder.logs(),
        ca_bundle: &ready.ca_bundle,
        prefix: ready.prefix.as_deref(),
        definition,
    });
    for warning in warnings {
        attempt.warn(warning);
    }
    let launch = Launch { program, arguments, variables, directory: work, output: attempt.folder.driver_log() };
    match &ready.container {
        Some(container) => container.around(attempt, launch, (&ready.ca_bundle, ready.prefix.as_deref()), &own),
        None => Ok(launch),
    }
}

/// A snapshot may bring the folder, or even a file of that name; with a file nothing is kept, which the collection says.
fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
