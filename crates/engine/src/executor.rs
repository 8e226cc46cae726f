//! What an engine must be able to do, and nothing else: start the agent of an attempt, tell whether it is there, ask it to stop,
//! forget it.
//!
//! Every call is idempotent on the attempt's id, because the reconciler repeats them after a crash. An executor never decides what
//! an observation means for the run: `pass::attempts` does.

mod asking;
mod kept;
pub mod kubernetes;
pub mod local;
pub mod slurm;
mod ticking;

use futures_util::future::BoxFuture;
use trainyard_core::{
    Result,
    definition::Definition,
    ids::{AttemptId, ComputeName},
    plan::WaitReason,
    run::Cause,
};
use trainyard_wire::native::AttemptOrder;

/// What the engine sees of an attempt in the outside world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The outside world has never heard of it.
    Unknown,
    /// It is in the engine's own queue: there is no agent yet, and nothing to worry about.
    Pending {
        /// What it waits for.
        why: WaitReason,
    },
    /// Its agent is there, or is being started.
    Alive,
    /// It was started, but no agent is there now: starting one again lets it carry on or close the books.
    NoAgent {
        /// How many times an agent was started for it.
        starts: u32,
    },
    /// It ended before an agent was ever at work: there is nothing to deliver and nothing to start.
    Over {
        /// What ended it.
        cause: Cause,
    },
    /// The engine does not hear of the machine that its agent is on. That is this machine's trouble with the engine as long as the agent is heard,
    /// and its end if not.
    Doubtful {
        /// What is known about it.
        cause: Cause,
    },
    /// The engine gave up the machine that its agent is on, which may be at work all the same.
    Lost {
        /// What is known about it.
        cause: Cause,
    },
    /// Its agent delivered everything and is done.
    Collected,
}

/// A machine of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What the engine calls it.
    pub name: String,
    /// What it is at.
    pub state: MachineState,
    /// The engine's own words about that, e.g. `mixed`, or `drained: bad disk`.
    pub says: String,
}

/// What a machine is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MachineState {
    /// Nothing runs on it.
    Idle,
    /// Something runs on it, of this server or of others.
    Running,
    /// It is being started.
    Preparing,
    /// It is given no new work.
    Leaving,
    /// It is down, or cannot be reached.
    Unusable,
}

impl MachineState {
    /// A bounded word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Preparing => "preparing",
            Self::Leaving => "leaving",
            Self::Unusable => "unusable",
        }
    }
}

/// One engine: the machines behind compute targets.
pub trait Executor: Send + Sync {
    /// Whether the engine would take a run with this definition, asked before the run is stored. A sentence for the run's warnings where the
    /// engine does not answer in good time.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] with the engine's own words, if it never would.
    fn check<'a>(&'a self, definition: &'a Definition) -> BoxFuture<'a, Result<Option<String>>> {
        let _ = definition;
        Box::pin(async { Ok(None) })
    }

    /// The machines behind `target`, in the order of their names; `None`: the engine does not tell. Asked whenever somebody looks at the target, so an
    /// engine that is slow remembers its answer for some seconds.
    fn machines<'a>(&'a self, target: &'a ComputeName) -> BoxFuture<'a, Result<Option<Vec<Machine>>>> {
        let _ = target;
        Box::pin(async { Ok(None) })
    }

    /// How many slots of its target a run with this definition takes, all at once. One, where the engine has machines of its own and gives a run as
    /// many as it wants.
    fn slots(&self, definition: &Definition) -> u32 {
        let _ = definition;
        1
    }

    /// Called at the beginning of a pass over attempts: an engine that is asked for all of them at once begins to do so. Does not wait.
    fn look(&self) {}

    /// What really ended `attempt`, whose agent knows no more than that it was told to end; `None` if the engine does not know better.
    fn explain(&self, attempt: AttemptId) -> BoxFuture<'_, Option<Cause>> {
        let _ = attempt;
        Box::pin(async { None })
    }

    /// Starts the agent of `order.attempt`, or does nothing when one is there already.
    fn submit<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>>;

    /// Gives a living agent a new endpoint and token: after a restart the server may listen elsewhere.
    fn refresh<'a>(&'a self, order: &'a AttemptOrder) -> BoxFuture<'a, Result<()>>;

    /// The order that the agent of `attempt` has now, if there is anything of the attempt.
    fn order(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Option<AttemptOrder>>>;

    /// What there is of `attempt`.
    fn observe(&self, attempt: AttemptId) -> BoxFuture<'_, Result<Observation>>;

    /// Asks the agent of `attempt` to stop, for the case that it cannot hear the server. Returns at once; the agent reports.
    fn stop<'a>(&'a self, attempt: AttemptId, by: &'a str, why: Option<&'a str>) -> BoxFuture<'a, Result<()>>;

    /// Has everything of `attempt` delivered (again), whether its agent is alive or done: the server has lost what it was given.
    fn redeliver(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>>;

    /// Puts up a fence: whatever is left of `attempt` and can be reached is ended at once, and its agent, should it come back, learns that it
    /// is not wanted. The row is closed afterwards in any case, so that nothing it sends is taken.
    fn fence(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>>;

    /// Ends whatever is left of `attempt` and removes it. Only called once the attempt is closed or given up.
    fn clean(&self, attempt: AttemptId) -> BoxFuture<'_, Result<()>>;

    /// Every attempt of which something is left, for the janitor.
    fn leftovers(&self) -> BoxFuture<'_, Result<Vec<AttemptId>>>;
}
