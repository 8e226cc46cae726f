//! The load of a compute target, for every dialect: machines, slots, who holds them, who waits and for what.
//!
//! What one workspace may not see of another is only counted. Everything is read when it is asked for; the order of the queue is what the planner would
//! do if slots became free one after the other now.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use trainyard_core::{
    Result,
    ids::{RunId, WorkspaceId},
    plan::{self, AHEAD_COUNTED, Backoff, TargetView, WaitFacts},
    run::Cause,
};
use trainyard_engine::{
    Target,
    executor::{Machine, MachineState},
};
use trainyard_store::{computes::PlacedRun, queue::FreeSlots};

use crate::state::AppState;

/// Runs of a workspace that are listed; more are counted.
const LISTED: u32 = 200;

/// What is known about a target, as one workspace sees it.
pub(crate) struct Load {
    /// Slots taken.
    pub(crate) busy: u32,
    /// Runs that wait, of all workspaces.
    pub(crate) queued: u64,
    /// By user: slots taken, runs that wait.
    pub(crate) users: BTreeMap<String, (u32, u64)>,
    /// The same of all other workspaces.
    pub(crate) others: (u32, u64),
    /// Runs of the workspace with slots, and what they wait for in their engine.
    pub(crate) running: Vec<(PlacedRun, Option<String>)>,
    /// Runs of the workspace that wait, in their order.
    pub(crate) queue: Vec<Waiting>,
    /// How many more of them wait.
    pub(crate) beyond: u64,
}

/// A run that waits.
pub(crate) struct Waiting {
    /// The run.
    pub(crate) run: PlacedRun,
    /// How many get slots before it, as far as that can be said.
    pub(crate) ahead: Option<u32>,
    /// Why it waits.
    pub(crate) why: String,
}

/// The machines of a target; an engine that does not answer is an error of its own.
pub(crate) async fn machines(target: &Target) -> Result<Option<Vec<Machine>>> {
    target.executor.machines(&target.name).await
}

/// How many machines are in a state.
pub(crate) fn in_state(machines: &[Machine], state: MachineState) -> u32 {
    u32::try_from(machines.iter().filter(|machine| machine.state == state).count()).unwrap_or(u32::MAX)
}

/// The load of `target` for `workspace` at `now_us`.
pub(crate) async fn load(state: &AppState, target: &Target, (workspace, now_us): (WorkspaceId, i64)) -> Result<Load> {
    let store = &state.store;
    let busy = store.busy_shares().await?.remove(&target.name).unwrap_or_default();
    let waiting = store.waiting_shares(&target.name).await?;
    let (mut users, mut others): (BTreeMap<String, (u32, u64)>, _) = (BTreeMap::new(), (0, 0));
    for (share, slots) in &busy {
        if share.workspace == workspace { users.entry(name_of(&share.user)).or_default().0 += slots } else { others.0 += slots }
    }
    for ((of, user), runs) in &waiting {
        if *of == workspace { users.entry(name_of(user)).or_default().1 += runs } else { others.1 += runs }
    }
    let running = store.placed_runs(workspace, &target.name, LISTED).await?;
    let running = running.into_iter().map(|run| {
        let why = run.attempt.and_then(|attempt| state.engine.wait(attempt)).map(|reason| reason.message);
        (run, why)
    });
    let taken = busy.values().sum();
    let turns = turns(state, TargetView { name: target.name.clone(), slots: target.slots, busy, queue: Vec::new() }, now_us).await?;
    let facts = WaitFacts {
        target: target.name.clone(),
        slots: Some(target.slots),
        busy: taken,
        needs: 1,
        ahead: 0,
        drained: store.is_drained().await?,
        backoff: None,
    };
    let mut queue: Vec<Waiting> = Vec::new();
    for run in store.waiting_runs(workspace, &target.name, LISTED).await? {
        let ahead = turns.get(&(workspace, run.run.clone())).copied();
        let counted = ahead.unwrap_or(AHEAD_COUNTED);
        let facts = WaitFacts { needs: run.slots, ahead: counted, backoff: backoff(&run, now_us), ..facts.clone() };
        queue.push(Waiting { why: plan::waiting(&facts).message, ahead, run });
    }
    // Those whose turn is not known keep the order of priority and age, at the end.
    queue.sort_by_key(|waiting| waiting.ahead.unwrap_or(u32::MAX));
    let own: u64 = waiting.iter().filter(|((of, _), _)| *of == workspace).map(|(_, runs)| runs).sum();
    Ok(Load {
        busy: taken,
        queued: waiting.values().sum(),
        users,
        others,
        running: running.collect(),
        beyond: own.saturating_sub(queue.len() as u64),
        queue,
    })
}

/// The name of a user as rows have it: a document with `userName`.
pub(crate) fn name_of(user: &str) -> String {
    let document: Option<Value> = serde_json::from_str(user).ok();
    document.as_ref().and_then(|document| document["userName"].as_str()).unwrap_or(user).to_owned()
}

/// Whose turn is how far away, for the next ones.
async fn turns(state: &AppState, view: TargetView, now_us: i64) -> Result<HashMap<(WorkspaceId, RunId), u32>> {
    let all = view.slots;
    let free = vec![(view.name.clone(), FreeSlots { free: LISTED, all })];
    let Some((_, queue)) = state.store.queue_heads(&free, now_us).await?.pop() else { return Ok(HashMap::new()) };
    // As if there were always room for the next one; those that never fit are not in the queue.
    let view = TargetView { slots: u32::MAX, queue, ..view };
    let admissions = plan::plan(&[view], now_us);
    Ok(admissions.into_iter().zip(0..).map(|(admission, turn)| ((admission.workspace, admission.run), turn)).collect())
}

fn backoff(run: &PlacedRun, now_us: i64) -> Option<Backoff> {
    let left_us = u64::try_from(run.not_before_us? - now_us).ok().filter(|left| *left > 0)?;
    Some(Backoff { seconds: left_us.div_ceil(1_000_000), reason: run.cause.as_ref().map(Cause::sentence).unwrap_or_default() })
}
