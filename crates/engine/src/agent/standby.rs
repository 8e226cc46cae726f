//! The nodes of a launched run on which the agent starts no code of its own.
//!
//! [`stand_by`]: somebody else reaches this machine (Slurm), or it is the one that the launcher is on. [`serve`]: the launcher reaches it through this
//! agent, whose [`Door`] takes its calls. What is started for a call is in the tree of this agent as the code of any run is, and is ended as that is.
//!
//! Invariant: as everywhere, that something is about to be started is on disk before it is; an agent that comes after one that had started something
//! starts nothing.

use std::{collections::BTreeMap, ffi::OsString, io, os::fd::OwnedFd, path::PathBuf, pin::Pin, process::Stdio};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::WaitStatus,
};
use tokio::sync::{mpsc, oneshot};
use trainyard_core::run::Cause;

use super::{
    control::Demand,
    crew,
    folder::{MainProcess, Started, boot_id},
    life::Attempt,
    memory::MemoryWatch,
    mpi,
    process::{Launch, NotStarted, Reaper},
    shell::{Asked, Door, Guest, NodeKey},
    ship::Pace,
    supervise::{Outcome, Ready, end_aftermath, end_tree, ended, ended_at, node, stopped_before_start, stopped_by},
    tree::Tree,
};
use crate::clock::now_us;

/// Calls that wait for their turn.
const QUEUE: usize = 16;

/// What runs every command.
const SHELL: &str = "/bin/sh";

/// For a node whose processes a launcher on the first node starts without this agent: there is nothing to do here but to be there.
pub(super) async fn stand_by(attempt: &Attempt) -> Outcome {
    attempt.pace.send_replace(Pace::Started);
    tokio::select! {
        biased;
        demand = attempt.control.stop_demanded() => match demand {
            Demand::Terminate => {
                let cause = stopped_by(Demand::Terminate);
                attempt.meeting.ends(&cause, now_us());
                ended(attempt, cause).await
            }
            demand => stopped_before_start(attempt, demand).await,
        },
        () = attempt.meeting.first_ended() => ended(attempt, Cause::Completed).await,
    }
}

/// For a node that the launcher reaches through its agent: does what `door` is asked for, until the first node has ended.
pub(super) async fn serve(attempt: &Attempt, ready: &Ready, door: Door) -> Outcome {
    let mut hosting = match Hosting::new(attempt, ready) {
        Ok(hosting) => hosting,
        Err(refused) => return ended(attempt, refused.into()).await,
    };
    let Some(key) = attempt.order.node_key.as_deref().and_then(NodeKey::read) else {
        return ended(attempt, mpi::without_key().into()).await;
    };
    attempt.pace.send_replace(Pace::Started);
    let mut memory = MemoryWatch::start();
    let (asks, asked) = mpsc::channel(QUEUE);
    let end = tokio::select! {
        biased;
        demand = attempt.control.stop_demanded() => Some(demand),
        () = attempt.meeting.first_ended() => None,
        never = hosting.host(attempt, asked) => match never {},
        never = door.keep((attempt.folder.node(), &key), &asks) => match never {},
        never = memory.keep_looking() => match never {},
    };
    // Nobody is let in any more.
    drop((door, asks));
    match end {
        None => hosting.close(attempt, &mut memory).await,
        Some(demand) if hosting.started.is_none() => stopped_unused(attempt, demand).await,
        Some(demand) => hosting.stop(attempt, (demand, &mut memory)).await,
    }
}

/// Nothing was started here, and others may have begun all the same.
async fn stopped_unused(attempt: &Attempt, demand: Demand) -> Outcome {
    match demand {
        Demand::Terminate => {
            let cause = stopped_by(demand);
            attempt.meeting.ends(&cause, now_us());
            ended(attempt, cause).await
        }
        demand => stopped_before_start(attempt, demand).await,
    }
}

/// What was started for callers.
struct Hosting {
    /// What each command is started with; its line is missing.
    variables: BTreeMap<OsString, OsString>,
    directory: PathBuf,
    log: PathBuf,
    reaper: Reaper,
    /// As it is on disk; `None`: nothing was started.
    started: Option<Started>,
    guests: Vec<Hosted>,
}

/// A command of a caller, in the order of the main processes.
struct Hosted {
    /// `None`: told.
    tells: Option<oneshot::Sender<i32>>,
    /// Resolves when the caller is gone; `None`: it was noticed.
    leaves: Option<oneshot::Receiver<()>>,
}

impl Hosting {
    fn new(attempt: &Attempt, ready: &Ready) -> Result<Self, NotStarted> {
        let Launch { mut variables, directory, output, .. } = crew::of_rank(attempt, ready)?;
        variables.extend(mpi::beyond().map(|(name, value)| (name.into(), value.into())));
        Ok(Self { variables, directory, log: output, reaper: Reaper::new()?, started: None, guests: Vec::new() })
    }

    /// Starts what is asked for, and tells each caller how it ended, for ever.
    async fn host(&mut self, attempt: &Attempt, mut asked: mpsc::Receiver<Asked>) -> std::convert::Infallible {
        // Ends what is left when a caller is gone; beside what else happens, as it takes as long as the grace.
        let mut ending: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(std::future::pending());
        let mut waits = true;
        loop {
            self.tell_ends();
            tokio::select! {
                biased;
                () = self.reaper.child_event() => {}
                () = left(&mut self.guests) => {
                    tracing::warn!("a caller is gone before its command ended; what it started here is ended");
                    let tree = Tree::of_agent(node(attempt), self.mains());
                    ending = Box::pin(async move {
                        end_tree(attempt, &tree, None).await;
                    });
                }
                () = &mut ending => ending = Box::pin(std::future::pending()),
                next = asked.recv(), if waits => match next {
                    Some(Asked { line, answer }) => {
                        // A caller that is gone by now has its end noticed at once.
                        let _ = answer.send(self.start(attempt, &line).map_err(|refused| refused.message));
                    }
                    None => waits = false,
                },
            }
        }
    }

    fn mains(&self) -> Vec<MainProcess> {
        self.started.iter().flat_map(Started::mains_now).collect()
    }

    fn start(&mut self, attempt: &Attempt, line: &str) -> Result<Guest, NotStarted> {
        let failed = |what: &str, error: io::Error| NotStarted { message: format!("{what}: {error}"), by_definition: false };
        let started = self.started.take();
        let mut started = started.unwrap_or_else(|| {
            tracing::info!("the launcher calls for the first time");
            Started { started_us: now_us(), main: None, more: Vec::new(), stopping: None, boot_id: boot_id() }
        });
        let noted = attempt.folder.write_started(&started);
        noted.map_err(|error| failed("the agent cannot note the start of a command", error))?;
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("no pipe can be made", error.into()));
        let ((output, output_in), (errors, errors_in)): ((OwnedFd, OwnedFd), (OwnedFd, OwnedFd)) = (pipe()?, pipe()?);
        let launch = Launch {
            program: SHELL.into(),
            arguments: vec!["-c".into(), line.into()],
            variables: self.variables.clone(),
            directory: self.directory.clone(),
            output: self.log.clone(),
        };
        let main = self.reaper.spawn_into(&launch, (Stdio::from(output_in), Stdio::from(errors_in)));
        if let Ok(main) = &main {
            match started.main {
                None => started.main = Some(*main),
                Some(_) => started.more.push(*main),
            }
            if let Err(error) = attempt.folder.write_started(&started) {
                tracing::warn!(%error, "the process id of a command is not noted; should this agent be killed, it is found by its environment");
            }
        }
        self.started = Some(started);
        main?;
        let ((tells, ended), (wanted, leaves)) = (oneshot::channel(), oneshot::channel());
        self.guests.push(Hosted { tells: Some(tells), leaves: Some(leaves) });
        Ok(Guest { outputs: (output, errors), ended, wanted })
    }

    /// Tells the callers of commands that have ended.
    fn tell_ends(&mut self) {
        self.reaper.reap();
        for (place, guest) in self.guests.iter_mut().enumerate() {
            let Some(status) = self.reaper.end_of(place) else { continue };
            if let Some(tells) = guest.tells.take() {
                // The caller may be gone.
                let _ = tells.send(exit_code(status));
            }
            guest.leaves = None;
        }
    }

    /// The launcher has ended well: so has this node, and what it left here is ended.
    async fn close(mut self, attempt: &Attempt, memory: &mut MemoryWatch) -> Outcome {
        let at_us = now_us();
        let (cause, warning) = memory.conclude(Cause::Completed);
        warning.into_iter().for_each(|warning| attempt.warn(warning));
        let outcome = ended_at(attempt, cause, at_us).await;
        if self.started.is_some() {
            end_aftermath(attempt, self.mains(), &mut self.reaper).await;
        }
        outcome
    }

    async fn stop(mut self, attempt: &Attempt, (demand, memory): (Demand, &mut MemoryWatch)) -> Outcome {
        let (at_us, is_own) = (now_us(), !matches!(demand, Demand::Leave { .. }));
        let (cause, warning) = memory.conclude(stopped_by(demand));
        warning.into_iter().for_each(|warning| attempt.warn(warning));
        tracing::info!(cause = cause.label(), "stopping what the launcher started here");
        if let Some(started) = &mut self.started {
            started.stopping = Some(cause.clone());
            if let Err(error) = attempt.folder.write_started(started) {
                tracing::warn!(%error, "why the code is stopped is not noted");
            }
        }
        if is_own {
            attempt.meeting.ends(&cause, at_us);
        }
        let left = end_tree(attempt, &Tree::of_agent(node(attempt), self.mains()), Some(&mut self.reaper)).await;
        if left > 0 {
            attempt.warn(format!("{left} processes of the run do not end, not even when killed; they may hold files or devices"));
        }
        match ended_at(attempt, cause, at_us).await {
            _ if attempt.control.now() == Demand::Abandon => Outcome::Abandoned,
            outcome => outcome,
        }
    }
}

/// Resolves when a caller is gone whose command has not ended. Cancel-safe.
async fn left(guests: &mut [Hosted]) {
    std::future::poll_fn(|context| {
        for guest in guests.iter_mut() {
            let Some(leaves) = &mut guest.leaves else { continue };
            if Pin::new(leaves).poll(context).is_ready() {
                guest.leaves = None;
                return std::task::Poll::Ready(());
            }
        }
        std::task::Poll::Pending
    })
    .await;
}

/// What a shell would say of such an end.
fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| status.terminating_signal().map_or(255, |signal| 128 + signal))
}
