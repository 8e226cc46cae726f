//! What is seen of an attempt, and what to do about it. Pure, so that the table can be tested without processes.

use std::time::Duration;

use trainyard_core::run::{Cause, Desired, RunState};
use trainyard_store::queue::LiveRun;

use crate::{engine::Patience, executor::Observation, heartbeat::Silence};

/// How often an agent is started for one attempt before it is given up. Agents end early only when something kills them.
pub(super) const MAX_STARTS: u32 = 8;

/// What is seen of an attempt.
#[derive(Debug)]
pub(super) struct Sight {
    /// What its executor says.
    pub(super) observation: Observation,
    /// How long nothing was heard of its agent, or of the quietest of its agents.
    pub(super) silence: Silence,
    /// How long it has been told to stop.
    pub(super) stopping: Duration,
}

/// What is borne.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) patience: Patience,
    /// Time between TERM and KILL.
    pub(super) grace: Duration,
}

/// What to do about an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing; the agent is at work.
    Leave,
    /// Start an agent.
    Start,
    /// End the attempt with this cause, then finalize it. Nothing of it was ever there.
    Close(Cause),
    /// Tell the agent to stop, in case it does not hear the server.
    Stop,
    /// End the attempt with this cause, then finalize it. Its executor says that nothing of it is there.
    GiveUp(Cause),
    /// The same, for an attempt of which something may be there: behind a fence.
    Fence(Cause),
    /// Everything is collected: finalize.
    Finalize,
}

pub(super) fn decide(live: &LiveRun, sight: &Sight, limits: &Limits) -> Step {
    let Patience { heartbeat_limit, silence_limit } = limits.patience;
    match (&sight.observation, live.desired) {
        (Observation::Alive, Desired::Run) => match silence_limit {
            Some(limit) if sight.silence.lasts > limit => {
                let seconds = sight.silence.lasts.as_secs();
                let node = if node_count(live) > 1 { format!("node {} of ", sight.silence.node) } else { String::new() };
                Step::Fence(Cause::NodeLost {
                    message: format!("nothing was heard of {node}the attempt for {seconds} s, so it was given up"),
                })
            }
            _ => Step::Leave,
        },
        // Whoever cancels must not wait for an agent that does not hear.
        (Observation::Alive, Desired::Cancel)
            if sight.silence.lasts > heartbeat_limit && sight.stopping > heartbeat_limit + limits.grace =>
        {
            Step::Fence(cancelled(live))
        }
        (Observation::Doubtful { cause }, Desired::Run) if sight.silence.lasts > heartbeat_limit => Step::Fence(cause.clone()),
        (Observation::Doubtful { .. }, Desired::Cancel) if sight.silence.lasts > heartbeat_limit => Step::Fence(cancelled(live)),
        (Observation::Doubtful { .. }, Desired::Run) => Step::Leave,
        (Observation::Alive | Observation::Doubtful { .. }, Desired::Cancel) if live.state == RunState::Finalizing => Step::Leave,
        (Observation::Alive | Observation::Doubtful { .. }, Desired::Cancel) => Step::Stop,
        (Observation::Unknown, Desired::Cancel) => Step::GiveUp(cancelled(live)),
        (Observation::Unknown, Desired::Run) if matches!(live.state, RunState::Starting | RunState::Preparing) && !live.retries.held => {
            Step::Start
        }
        // It got further than that, and now nothing of it exists: its folder was removed, or the machine's disk was.
        (Observation::Unknown, Desired::Run) => Step::GiveUp(Cause::AgentLost { message: nothing_left(live) }),
        (Observation::NoAgent { starts }, _) if *starts >= MAX_STARTS => {
            Step::GiveUp(Cause::AgentLost { message: format!("it was started {starts} times and ended early each time") })
        }
        (Observation::NoAgent { .. }, _) => Step::Start,
        (Observation::Pending { .. }, Desired::Run) => Step::Leave,
        (Observation::Pending { .. }, Desired::Cancel) => Step::Stop,
        (Observation::Over { .. }, Desired::Cancel) => Step::Close(cancelled(live)),
        (Observation::Over { cause }, Desired::Run) => Step::Close(cause.clone()),
        (Observation::Lost { .. }, Desired::Cancel) => Step::Fence(cancelled(live)),
        (Observation::Lost { cause }, Desired::Run) => Step::Fence(cause.clone()),
        (Observation::Collected, _) => Step::Finalize,
    }
}

/// On how many nodes the attempt is.
pub(super) fn node_count(live: &LiveRun) -> u32 {
    live.definition.as_ref().map_or(1, |definition| definition.distribution.node_count)
}

fn cancelled(live: &LiveRun) -> Cause {
    Cause::Cancelled { by: live.cancelled_by.clone(), why: live.cancel_reason.clone() }
}

fn nothing_left(live: &LiveRun) -> String {
    let restored = "; the server was restored from a backup, and what the attempt did since the backup is not known";
    format!("nothing is left of the attempt on its machine{}", if live.retries.held { restored } else { "" })
}

#[cfg(test)]
mod tests {
    use trainyard_core::{
        ids::{AttemptId, ComputeName, RunId, WorkspaceId},
        run::Retries,
    };
    use trainyard_store::attempts::{Attempt, AttemptState};
    use uuid::Uuid;

    use super::*;

    const LIMITS: Limits = Limits {
        patience: Patience { heartbeat_limit: Duration::from_secs(30), silence_limit: Some(Duration::from_secs(3600)) },
        grace: Duration::from_secs(10),
    };

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
            started_us: None,
            ended_us: None,
            cause: None,
            node: None,
        };
        LiveRun {
            workspace,
            run,
            attempt,
            state,
            desired,
            silent: false,
            retries: Retries::default(),
            cancelled_by: Some("me".into()),
            cancel_reason: None,
            version: 1,
            definition: None,
        }
    }

    fn after(live: &LiveRun, observation: Observation, (silence, stopping): (u64, u64)) -> Step {
        let silence = Silence { lasts: Duration::from_secs(silence), node: 0 };
        let sight = Sight { observation, silence, stopping: Duration::from_secs(stopping) };
        decide(live, &sight, &LIMITS)
    }

    fn seen(live: &LiveRun, observation: Observation) -> Step {
        after(live, observation, (0, 0))
    }

    #[test]
    fn an_attempt_without_an_agent_gets_one_and_a_living_one_is_left_alone() {
        for state in [RunState::Starting, RunState::Preparing, RunState::Running, RunState::Finalizing] {
            let run = live(state, Desired::Run);
            assert_eq!(seen(&run, Observation::Alive), Step::Leave);
            assert_eq!(seen(&run, Observation::NoAgent { starts: 1 }), Step::Start);
            assert_eq!(seen(&run, Observation::Collected), Step::Finalize);
        }
        assert_eq!(seen(&live(RunState::Starting, Desired::Run), Observation::Unknown), Step::Start);
    }

    #[test]
    fn what_is_gone_is_never_called_a_success() {
        for state in [RunState::Running, RunState::Finalizing] {
            let step = seen(&live(state, Desired::Run), Observation::Unknown);
            assert!(matches!(step, Step::GiveUp(Cause::AgentLost { .. })), "{step:?}");
        }
        let step = seen(&live(RunState::Running, Desired::Run), Observation::NoAgent { starts: MAX_STARTS });
        assert!(matches!(step, Step::GiveUp(Cause::AgentLost { .. })), "{step:?}");
    }

    #[test]
    fn what_a_restored_server_does_not_find_is_not_started_again() {
        let restored = LiveRun { retries: Retries { held: true, ..Retries::default() }, ..live(RunState::Starting, Desired::Run) };
        let Step::GiveUp(Cause::AgentLost { message }) = seen(&restored, Observation::Unknown) else { panic!("it was not given up") };
        assert!(message.contains("restored from a backup"), "{message}");
    }

    #[test]
    fn a_cancel_reaches_the_agent_or_closes_what_never_started() {
        assert_eq!(seen(&live(RunState::Running, Desired::Cancel), Observation::Alive), Step::Stop);
        assert_eq!(seen(&live(RunState::Finalizing, Desired::Cancel), Observation::Alive), Step::Leave);
        // The agent itself must end it: it knows what the code has done.
        assert_eq!(seen(&live(RunState::Running, Desired::Cancel), Observation::NoAgent { starts: 1 }), Step::Start);
        let step = seen(&live(RunState::Starting, Desired::Cancel), Observation::Unknown);
        assert_eq!(step, Step::GiveUp(Cause::Cancelled { by: Some("me".into()), why: None }));
    }

    #[test]
    fn what_waits_in_the_engines_queue_is_left_there_however_long_and_taken_out_by_a_cancel() {
        let pending = || Observation::Pending { why: trainyard_core::plan::WaitReason { code: "Pending", message: "waits".into() } };
        assert_eq!(after(&live(RunState::Starting, Desired::Run), pending(), (1 << 30, 0)), Step::Leave);
        assert_eq!(after(&live(RunState::Starting, Desired::Cancel), pending(), (1 << 30, 1 << 30)), Step::Stop);
    }

    #[test]
    fn what_never_began_is_closed_and_what_may_go_on_unseen_is_fenced() {
        let cause = || Cause::NodeLost { message: "NODE_FAIL".into() };
        let cancelled = || Cause::Cancelled { by: Some("me".into()), why: None };
        let run = live(RunState::Running, Desired::Run);
        assert_eq!(seen(&run, Observation::Lost { cause: cause() }), Step::Fence(cause()));
        assert_eq!(seen(&live(RunState::Starting, Desired::Run), Observation::Over { cause: cause() }), Step::Close(cause()));
        let cancel = live(RunState::Starting, Desired::Cancel);
        assert_eq!(seen(&cancel, Observation::Lost { cause: cause() }), Step::Fence(cancelled()));
        assert_eq!(seen(&cancel, Observation::Over { cause: cause() }), Step::Close(cancelled()));
    }

    #[test]
    fn a_machine_that_its_engine_does_not_hear_of_is_lost_if_its_agent_is_silent_too() {
        let cause = || Cause::NodeLost { message: "Kubelet stopped posting node status.".into() };
        let doubtful = || Observation::Doubtful { cause: cause() };
        for state in [RunState::Running, RunState::Finalizing] {
            let run = live(state, Desired::Run);
            assert_eq!(after(&run, doubtful(), (30, 0)), Step::Leave, "its agent is heard: the code runs on");
            assert_eq!(after(&run, doubtful(), (31, 0)), Step::Fence(cause()));
        }
        let cancel = live(RunState::Running, Desired::Cancel);
        assert_eq!(after(&cancel, doubtful(), (1, 0)), Step::Stop, "it hears that it is to end");
        assert!(matches!(after(&cancel, doubtful(), (31, 0)), Step::Fence(Cause::Cancelled { .. })));
    }

    #[test]
    fn silence_alone_ends_nothing_before_its_limit() {
        let run = live(RunState::Running, Desired::Run);
        assert_eq!(after(&run, Observation::Alive, (3600, 0)), Step::Leave);
        let step = after(&run, Observation::Alive, (3601, 0));
        assert!(matches!(step, Step::Fence(Cause::NodeLost { .. })), "{step:?}");
        let patient = Limits { patience: Patience { silence_limit: None, ..LIMITS.patience }, ..LIMITS };
        let silence = Silence { lasts: Duration::from_secs(1 << 40), node: 0 };
        let sight = Sight { observation: Observation::Alive, silence, stopping: Duration::ZERO };
        assert_eq!(decide(&run, &sight, &patient), Step::Leave);
    }

    #[test]
    fn a_cancel_does_not_wait_for_ever_for_an_agent_that_does_not_hear() {
        for state in [RunState::Running, RunState::Finalizing] {
            let run = live(state, Desired::Cancel);
            assert!(!matches!(after(&run, Observation::Alive, (31, 40)), Step::Fence(_)), "it has its grace");
            assert!(!matches!(after(&run, Observation::Alive, (5, 400)), Step::Fence(_)), "it is heard");
            assert!(matches!(after(&run, Observation::Alive, (41, 41)), Step::Fence(Cause::Cancelled { .. })));
        }
    }
}
