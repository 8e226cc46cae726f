//! Runs the user's code from its start to the end of the last process of its tree.
//!
//! What is about to happen is on disk before it happens: that the code is started before it is, why it is stopped before it is, how it
//! ended before anybody is told. So an agent that comes after never starts the code a second time, and knows what an
//! earlier one had decided.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use trainyard_core::{definition::Definition, ids::AttemptId, run::Cause};
use trainyard_wire::native::Report;

use super::{
    contained::Contained,
    control::Demand,
    crew::{Crew, launches},
    data::Placed,
    folder::{ExitRecord, MainProcess, Started, boot_id},
    life::Attempt,
    memory::MemoryWatch,
    process::{NotStarted, Reaper, cause_of},
    ship::Pace,
    tree::{self, Tree},
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
    /// The definition, with the paths of its data in its command line.
    pub(super) definition: Definition,
    /// Where its data is.
    pub(super) data: Placed,
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
    let mut crew = match launches(attempt, ready) {
        Ok(crew) => crew,
        Err(refused) => return ended(attempt, refused.into()).await,
    };
    match attempt.control.now() {
        Demand::Continue => {}
        demand => return stopped_before_start(attempt, demand).await,
    }
    let mut started = Started { started_us: now_us(), main: None, more: Vec::new(), stopping: None, boot_id: boot_id() };
    if let Err(error) = attempt.folder.write_started(&started) {
        let message = format!("the agent cannot note the start in `{}`: {error}", attempt.folder.path().display());
        return ended(attempt, Cause::StartFailed { message, by_definition: false }).await;
    }
    let mut memory = MemoryWatch::start();
    trainyard_store::fail_point!("agent.start_noted");
    let mut reaper = match start_all(attempt, &mut crew).await {
        Ok(reaper) => reaper,
        Err(outcome) => return outcome,
    };
    trainyard_store::fail_point!("agent.spawned");
    attempt.pace.send_replace(Pace::Started);
    attempt.reporter.tell(Report::Started);
    tracing::info!(processes = crew.mains().len(), "the code runs");
    started.main = crew.mains().first().copied();
    started.more = crew.mains().into_iter().skip(1).collect();
    if let Err(error) = attempt.folder.write_started(&started) {
        tracing::warn!(%error, "the process id is not noted; should this agent be killed, the code's processes are found by their environment");
    }

    trainyard_store::fail_point!("agent.process_noted");
    let limit = attempt.definition.max_run_duration_seconds;
    let stop = tokio::select! {
        biased;
        end = code_ended(attempt, &crew, &mut reaper) => return close(attempt, &crew, (end, started), (&mut reaper, &mut memory)).await,
        demand = attempt.control.stop_demanded() => Stop::Demanded(demand),
        limit = elapsed(limit) => Stop::TimeLimit(limit),
        never = memory.keep_looking() => match never {},
    };
    stop_running(attempt, &crew, (stop, started), &mut reaper).await
}

/// Starts every process. `Err`: one could not be started, and those that were are ended again.
async fn start_all(attempt: &Attempt, crew: &mut Crew) -> Result<Reaper, Outcome> {
    let refused = match Reaper::new() {
        Ok(mut reaper) => match crew.start(&mut reaper) {
            Ok(()) => return Ok(reaper),
            Err(refused) => {
                end_crew(attempt, crew, &mut reaper).await;
                refused
            }
        },
        Err(refused) => refused,
    };
    Err(ended(attempt, refused.into()).await)
}

/// How the code came to its end by itself.
#[derive(Clone, Copy, Debug)]
enum CodeEnd {
    /// All that have an end have come to it.
    Completed,
    /// One process, by its place, ended like this before all others.
    Failed(usize, rustix::process::WaitStatus),
}

/// Resolves when a process has ended badly, or when all that have an end have come to it, here and on every other node. Cancel-safe.
async fn code_ended(attempt: &Attempt, crew: &Crew, reaper: &mut Reaper) -> CodeEnd {
    if let Some((place, status)) = reaper.ended_badly_or_first(crew.awaited()).await {
        return CodeEnd::Failed(place, status);
    }
    if !crew.has_servants() {
        return CodeEnd::Completed;
    }
    // What is left serves the others, perhaps on other nodes.
    tokio::select! {
        biased;
        failed = reaper.ended_badly_or_first(usize::MAX) => match failed {
            Some((place, status)) => CodeEnd::Failed(place, status),
            None => CodeEnd::Completed,
        },
        () = attempt.meeting.done() => CodeEnd::Completed,
    }
}

/// Notes the end of code that ended by itself, and ends what it left.
async fn close(
    attempt: &Attempt,
    crew: &Crew,
    (end, mut started): (CodeEnd, Started),
    (reaper, memory): (&mut Reaper, &mut MemoryWatch),
) -> Outcome {
    let at_us = now_us();
    let (place, cause) = match end {
        CodeEnd::Completed => (0, Cause::Completed),
        CodeEnd::Failed(place, status) => (place, cause_of(status)),
    };
    let (cause, warning) = memory.conclude(cause);
    let (cause, more) = match crew.container(place) {
        Some(container) if crew.is_one() || cause != Cause::Completed => container.ended(attempt, cause).await,
        _ => (cause, None),
    };
    let cause = crew.blame(attempt, place, told_to_end(attempt, cause).await);
    for warning in warning.into_iter().chain(more) {
        attempt.warn(warning);
    }
    if crew.is_one() {
        attempt.meeting.ends(&cause, at_us);
        let outcome = ended_at(attempt, cause, at_us).await;
        // With a container everything that was in it is gone.
        if !crew.is_contained() {
            end_aftermath(attempt, crew.mains(), reaper).await;
        }
        return outcome;
    }
    if cause == Cause::Completed && !crew.has_servants() {
        let outcome = ended_at(attempt, cause, at_us).await;
        if crew.is_contained() {
            crew.remove_containers(attempt).await;
        } else {
            end_aftermath(attempt, crew.mains(), reaper).await;
        }
        return outcome;
    }
    if cause != Cause::Completed {
        // The others need not wait until what is left here has had its grace.
        attempt.meeting.ends(&cause, at_us);
    }
    started.stopping = Some(cause.clone());
    if let Err(error) = attempt.folder.write_started(&started) {
        tracing::warn!(%error, "why the code is stopped is not noted");
    }
    end_crew(attempt, crew, reaper).await;
    ended_at(attempt, cause, at_us).await
}

/// Notes how an attempt ended whose code does not run (any more).
pub(super) async fn ended(attempt: &Attempt, cause: Cause) -> Outcome {
    ended_at(attempt, cause, now_us()).await
}

pub(super) async fn ended_at(attempt: &Attempt, cause: Cause, ended_us: i64) -> Outcome {
    let with_others = matches!(attempt.control.now(), Demand::Leave { cause: others } if others == cause);
    let record = ExitRecord { cause: cause.clone(), ended_us, with_others };
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
        Demand::Leave { cause } => ended(attempt, cause).await,
        Demand::Cancel { by, why } => ended(attempt, Cause::Cancelled { by, why }).await,
        Demand::Abandon => Outcome::Abandoned,
    }
}

/// Ends whatever a former agent of the attempt left alive.
pub(super) async fn sweep(attempt: &Attempt) {
    let mains = attempt.folder.started().ok().flatten().map(|started| started.mains_now()).unwrap_or_default();
    let left = end_tree(attempt, &Tree::of_agent(node(attempt), mains), None).await;
    if left > 0 {
        tracing::error!(left, "processes of a former agent do not end");
    }
    let folder = attempt.folder.path().to_owned();
    // It waits for the engine in the thread.
    if tokio::task::spawn_blocking(move || container::remove_leftovers(&folder)).await.is_err() {
        tracing::error!("the removal of containers broke off");
    }
}

async fn stop_running(attempt: &Attempt, crew: &Crew, (stop, mut started): (Stop, Started), reaper: &mut Reaper) -> Outcome {
    let at_us = now_us();
    let (cause, is_own) = match stop {
        Stop::TimeLimit(limit_seconds) => (Cause::TimeLimit { limit_seconds, of: None }, true),
        Stop::Demanded(demand @ Demand::Leave { .. }) => (stopped_by(demand), false),
        Stop::Demanded(demand) => (stopped_by(demand), true),
    };
    tracing::info!(cause = cause.label(), "stopping the code");
    started.stopping = Some(cause.clone());
    if let Err(error) = attempt.folder.write_started(&started) {
        tracing::warn!(%error, "why the code is stopped is not noted");
    }
    if is_own {
        attempt.meeting.ends(&cause, at_us);
    }
    end_crew(attempt, crew, reaper).await;
    match ended_at(attempt, cause, at_us).await {
        _ if attempt.control.now() == Demand::Abandon => Outcome::Abandoned,
        outcome => outcome,
    }
}

/// Ends every process that is left of the code, with time for last words.
async fn end_crew(attempt: &Attempt, crew: &Crew, reaper: &mut Reaper) {
    let mains = crew.mains();
    if crew.is_contained() {
        end_containers(attempt, crew, reaper).await;
    }
    // What an engine keeps for other containers, its monitor of namespaces say, may descend from this agent.
    let tree = if crew.is_contained() { Tree::of_node(node(attempt), mains) } else { Tree::of_agent(node(attempt), mains) };
    let left = end_tree(attempt, &tree, Some(reaper)).await;
    if left > 0 {
        attempt.warn(format!("{left} processes of the run do not end, not even when killed; they may hold files or devices"));
    }
}

/// Ends containers: TERM for the code in them, which the engine's clients pass on, and once its time is over whatever is left of them.
async fn end_containers(attempt: &Attempt, crew: &Crew, reaper: &mut Reaper) {
    if attempt.control.now() != Demand::Abandon {
        for main in crew.mains() {
            tree::ask(main);
        }
        tokio::select! {
            _ = tokio::time::timeout(attempt.grace(), reaper.mains_ended()) => {}
            () = attempt.control.abandoned() => {}
        }
    }
    crew.remove_containers(attempt).await;
}

/// What the processes of this node are known by.
pub(super) fn node(attempt: &Attempt) -> (AttemptId, u32) {
    (attempt.id, attempt.folder.node())
}

/// Ends a tree, with time for last words; without any once the attempt was given up: another one may be at work already. Gives the number of
/// processes that do not end.
pub(super) async fn end_tree(attempt: &Attempt, tree: &Tree, mut reaper: Option<&mut Reaper>) -> usize {
    if attempt.control.now() != Demand::Abandon {
        tokio::select! {
            left = tree.end(attempt.grace(), reaper.as_deref_mut()) => return left,
            () = attempt.control.abandoned() => {}
        }
    }
    tree.end(Duration::ZERO, reaper).await
}

/// Ends what the code left behind.
pub(super) async fn end_aftermath(attempt: &Attempt, mains: Vec<MainProcess>, reaper: &mut Reaper) {
    if tokio::time::timeout(AFTERMATH, reaper.all_ended()).await.is_ok() {
        return;
    }
    let tree = Tree::of_agent(node(attempt), mains);
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
pub(super) fn stopped_by(demand: Demand) -> Cause {
    match demand {
        Demand::Leave { cause } => cause,
        Demand::Cancel { by, why } => Cause::Cancelled { by, why },
        Demand::Abandon => Cause::AgentLost { message: "the server gave this attempt up".into() },
        Demand::Terminate | Demand::Continue => {
            Cause::Preempted { message: "the agent was told to end; was the machine shut down, or its job taken off it?".into() }
        }
    }
}
