//! Looks at every attempt in execution and does what is missing: starts the agent that is not there, asks one to stop, closes
//! the books of one that is done.
//!
//! What the user's code did is the agent's to say (its exit record decides); this pass only sees to it that there is an agent to say it. An
//! attempt whose agent keeps dying is given up after [`MAX_STARTS`] starts.

use std::time::Instant;

use trainyard_core::{
    Result,
    ids::AttemptId,
    run::{Cause, Desired, RunEvent, RunState},
};
use trainyard_store::{queue::LiveRun, runs::RunWarning, transitions::Applied};

use super::Passes;
use crate::{clock::now_us, engine::Target, executor::Observation, hub::RunKey};

/// How often an agent is started for one attempt before it is given up. Agents end early only when something kills them.
const MAX_STARTS: u32 = 8;

/// What to do about an attempt. Pure, so that the table can be tested without processes.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing; the agent is at work.
    Leave,
    /// Start an agent.
    Start,
    /// Tell the agent to stop, in case it does not hear the server.
    Stop,
    /// End the attempt with this cause, then finalize it.
    GiveUp(Cause),
    /// Everything is collected: finalize.
    Finalize,
}

fn decide(live: &LiveRun, observation: &Observation) -> Step {
    match (observation, live.desired) {
        (Observation::Alive, Desired::Run) => Step::Leave,
        (Observation::Alive, Desired::Cancel) if live.state == RunState::Finalizing => Step::Leave,
        (Observation::Alive, Desired::Cancel) => Step::Stop,
        (Observation::Unknown, Desired::Cancel) => Step::GiveUp(Cause::Cancelled { by: live.cancelled_by.clone() }),
        (Observation::Unknown, Desired::Run) if matches!(live.state, RunState::Starting | RunState::Preparing) => Step::Start,
        // It got further than that, and now nothing of it exists: its folder was removed, or the machine's disk was.
        (Observation::Unknown, Desired::Run) => {
            Step::GiveUp(Cause::AgentLost { message: "nothing is left of the attempt on its machine".into() })
        }
        (Observation::NoAgent { starts }, _) if *starts >= MAX_STARTS => {
            Step::GiveUp(Cause::AgentLost { message: format!("it was started {starts} times and ended early each time") })
        }
        (Observation::NoAgent { .. }, _) => Step::Start,
        (Observation::Collected, _) => Step::Finalize,
    }
}

impl Passes {
    pub(super) async fn attempts(&mut self) -> Result<()> {
        let live = self.options.store.runs_in_execution().await?;
        self.refreshed.retain(|attempt, _| live.iter().any(|live| live.attempt.id == *attempt));
        for live in live {
            let Some(target) = self.options.targets.iter().find(|target| target.name == live.attempt.target).cloned() else {
                tracing::warn!(run = %live.run, target = %live.attempt.target, "the target of a running attempt is not configured any more; it cannot be observed");
                continue;
            };
            // One attempt that cannot be handled must not keep the others from being.
            if let Err(error) = self.attempt(&live, &target).await {
                tracing::error!(run = %live.run, attempt = %live.attempt.id, error = error.chain(), "reconciling an attempt failed; trying again");
            }
        }
        Ok(())
    }

    async fn attempt(&mut self, live: &LiveRun, target: &Target) -> Result<()> {
        let attempt = live.attempt.id;
        let observation = target.executor.observe(attempt).await?;
        let step = decide(live, &observation);
        if step != Step::Leave {
            tracing::debug!(run = %live.run, %attempt, ?observation, ?step, "attempt observed");
        }
        match step {
            Step::Leave => self.refresh(live, target).await,
            Step::Start => {
                let order = self.order(live).await?;
                self.refreshed.insert(attempt, Instant::now());
                target.executor.submit(&order).await
            }
            Step::Stop => {
                self.refresh(live, target).await?;
                target.executor.stop(attempt, live.cancelled_by.as_deref().unwrap_or("unknown")).await
            }
            Step::GiveUp(cause) => self.give_up(live, cause).await,
            Step::Finalize => self.finalize(live, attempt).await,
        }
    }

    /// Once per attempt and server life: the server may have come back on another port or with another key.
    async fn refresh(&mut self, live: &LiveRun, target: &Target) -> Result<()> {
        let attempt = live.attempt.id;
        if self.refreshed.contains_key(&attempt) {
            return Ok(());
        }
        let order = self.order(live).await?;
        target.executor.refresh(&order).await?;
        self.refreshed.insert(attempt, Instant::now());
        Ok(())
    }

    /// The attempt cannot deliver any more. What already arrived is kept; what may be missing is said on the run.
    async fn give_up(&mut self, live: &LiveRun, cause: Cause) -> Result<()> {
        if !matches!(cause, Cause::Cancelled { .. }) {
            let message = "the agent could not deliver everything: logs and outputs may be incomplete".to_owned();
            let warning = RunWarning { source: "trainyard".into(), message };
            self.options.store.add_run_warnings(live.workspace, &live.run, &[warning]).await?;
        }
        let ended = RunEvent::Ended { attempt: live.attempt.id, cause };
        self.options.store.apply(live.workspace, &live.run, &ended, now_us()).await?;
        self.finalize(live, live.attempt.id).await
    }

    async fn finalize(&mut self, live: &LiveRun, attempt: AttemptId) -> Result<()> {
        crate::finalize::adopt_live_files(&self.options.store, live.workspace, &live.run, now_us()).await?;
        let applied = self.options.store.apply(live.workspace, &live.run, &RunEvent::Finalized, now_us()).await?;
        if let Applied::Changed(run) = &applied {
            tracing::info!(run = %live.run, %attempt, state = run.state.as_str(), cause = run.cause.as_ref().map(Cause::label), "run ended");
        }
        self.shared.hub.touch(&RunKey::new(live.workspace, &live.run));
        self.shared.notify.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use trainyard_core::ids::{ComputeName, RunId, WorkspaceId};
    use trainyard_store::attempts::{Attempt, AttemptState};
    use uuid::Uuid;

    use super::*;

    fn live(state: RunState, desired: Desired) -> LiveRun {
        let workspace = WorkspaceId(Uuid::from_u128(1));
        let run = RunId::new("r").unwrap();
        let attempt = Attempt {
            id: AttemptId(Uuid::from_u128(2)),
            workspace,
            run: run.clone(),
            number: 1,
            target: ComputeName::new("local").unwrap(),
            state: AttemptState::Intended,
            intended_us: 0,
            ended_us: None,
            cause: None,
            node: None,
        };
        LiveRun { workspace, run, attempt, state, desired, cancelled_by: Some("me".into()), version: 1, started_us: None, definition: None }
    }

    #[test]
    fn an_attempt_without_an_agent_gets_one_and_a_living_one_is_left_alone() {
        for state in [RunState::Starting, RunState::Preparing, RunState::Running, RunState::Finalizing] {
            let run = live(state, Desired::Run);
            assert_eq!(decide(&run, &Observation::Alive), Step::Leave);
            assert_eq!(decide(&run, &Observation::NoAgent { starts: 1 }), Step::Start);
            assert_eq!(decide(&run, &Observation::Collected), Step::Finalize);
        }
        assert_eq!(decide(&live(RunState::Starting, Desired::Run), &Observation::Unknown), Step::Start);
    }

    #[test]
    fn what_is_gone_is_never_called_a_success() {
        for state in [RunState::Running, RunState::Finalizing] {
            let step = decide(&live(state, Desired::Run), &Observation::Unknown);
            assert!(matches!(step, Step::GiveUp(Cause::AgentLost { .. })), "{step:?}");
        }
        let step = decide(&live(RunState::Running, Desired::Run), &Observation::NoAgent { starts: MAX_STARTS });
        assert!(matches!(step, Step::GiveUp(Cause::AgentLost { .. })), "{step:?}");
    }

    #[test]
    fn a_cancel_reaches_the_agent_or_closes_what_never_started() {
        assert_eq!(decide(&live(RunState::Running, Desired::Cancel), &Observation::Alive), Step::Stop);
        assert_eq!(decide(&live(RunState::Finalizing, Desired::Cancel), &Observation::Alive), Step::Leave);
        // The agent itself must end it: it knows what the code has done.
        assert_eq!(decide(&live(RunState::Running, Desired::Cancel), &Observation::NoAgent { starts: 1 }), Step::Start);
        let step = decide(&live(RunState::Starting, Desired::Cancel), &Observation::Unknown);
        assert_eq!(step, Step::GiveUp(Cause::Cancelled { by: Some("me".into()) }));
    }
}
