//! What an engine must be able to do, and nothing else: start the agent of an attempt, tell whether it is there, ask it to stop,
//! forget it.
//!
//! Every call is idempotent on the attempt's id, because the reconciler repeats them after a crash. An executor never decides what
//! an observation means for the run: `pass::attempts` does.

pub mod local;

use futures_util::future::BoxFuture;
use trainyard_core::{Result, ids::AttemptId};
use trainyard_wire::native::AttemptOrder;

/// What the engine sees of an attempt in the outside world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The outside world has never heard of it.
    Unknown,
    /// Its agent is there, or is being started.
    Alive,
    /// It was started, but no agent is there now: starting one again lets it carry on or close the books.
    NoAgent {
        /// How many times an agent was started for it.
        starts: u32,
    },
    /// Its agent delivered everything and is done.
    Collected,
}

/// One engine: the machines behind compute targets.
pub trait Executor: Send + Sync {
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
