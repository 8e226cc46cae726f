use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn attempt(n: u8) -> AttemptId {
    AttemptId(Uuid::from_u128(u128::from(n)))
}

fn queued() -> Run {
    Run {
        ownership: Ownership::Managed,
        state: RunState::Queued,
        desired: Desired::Run,
        attempt: None,
        cause: None,
        silent: false,
        retries: Retries::default(),
    }
}

/// What the store does with a change.
fn apply(run: &Run, change: &Change) -> Run {
    let attempt = match change.attempt {
        AttemptChange::None | AttemptChange::End(_) => run.attempt,
        AttemptChange::Open(attempt) => Some(attempt),
        AttemptChange::Close => None,
    };
    Run {
        ownership: run.ownership,
        state: change.state,
        desired: change.desired,
        attempt,
        cause: change.cause.clone(),
        silent: change.silent,
        retries: change.retry.map_or(run.retries, |retry| retry.retries),
    }
}

fn events() -> Vec<RunEvent> {
    let attempt = attempt(1);
    vec![
        RunEvent::Admitted { attempt },
        RunEvent::Preparing { attempt },
        RunEvent::Started { attempt },
        RunEvent::Ended { attempt, cause: Cause::ExitCode { code: 3 } },
        RunEvent::Finalized { attempt, policy: RetryPolicy::default() },
        RunEvent::Silent { attempt, limit_seconds: 30, node: None },
        RunEvent::Heard { attempt },
        RunEvent::CancelRequested { by: "someone".into(), why: None },
        RunEvent::ClientStarted,
        RunEvent::ClientEnded { cause: Cause::Completed },
    ]
}

fn in_state(ownership: Ownership, state: RunState, desired: Desired) -> Run {
    let executing = matches!(state, RunState::Starting | RunState::Preparing | RunState::Running | RunState::Finalizing);
    let cause = match state {
        RunState::Finalizing | RunState::Failed => Some(Cause::ExitCode { code: 3 }),
        RunState::Completed => Some(Cause::Completed),
        RunState::Canceled => Some(Cause::Cancelled { by: None, why: None }),
        RunState::NotStarted | RunState::Queued | RunState::Starting | RunState::Preparing | RunState::Running => None,
    };
    let attempt = (executing && ownership == Ownership::Managed).then(|| attempt(1));
    Run { ownership, state, desired, attempt, cause, silent: false, retries: Retries::default() }
}

/// The whole table: every state, wish and event of a managed run, as one text that a reviewer can read.
#[test]
fn the_table_of_managed_runs() {
    insta::assert_snapshot!(table(Ownership::Managed));
}

#[test]
fn the_table_of_external_runs() {
    insta::assert_snapshot!(table(Ownership::External));
}

fn table(ownership: Ownership) -> String {
    let mut text = String::new();
    for desired in [Desired::Run, Desired::Cancel] {
        for state in RunState::ALL {
            for event in events() {
                let outcome = match transition(&in_state(ownership, state, desired), &event) {
                    Ok(change) => format!("{} ({:?})", change.state.as_str(), change.desired),
                    Err(Refused::AlreadySo) => "already so".into(),
                    Err(Refused::Fenced) => "fenced".into(),
                    Err(Refused::NotAllowed { .. }) => continue,
                };
                text.push_str(&format!("{:<10} {:<6} + {:<15} -> {outcome}\n", state.as_str(), format!("{desired:?}"), event.name()));
            }
        }
    }
    text
}

fn any_cause() -> impl Strategy<Value = Cause> {
    prop_oneof![
        Just(Cause::Completed),
        (1..256i32).prop_map(|code| Cause::ExitCode { code }),
        Just(Cause::Signal { signal: 9 }),
        Just(Cause::TimeLimit { limit_seconds: 5, of: None }),
        Just(Cause::Cancelled { by: None, why: None }),
        Just(Cause::EnvironmentFailed { message: "no".into() }),
        Just(Cause::AgentLost { message: "gone".into() }),
    ]
}

fn any_event() -> impl Strategy<Value = RunEvent> {
    let attempts = (1..4u8).prop_map(attempt);
    prop_oneof![
        attempts.clone().prop_map(|attempt| RunEvent::Admitted { attempt }),
        attempts.clone().prop_map(|attempt| RunEvent::Preparing { attempt }),
        attempts.clone().prop_map(|attempt| RunEvent::Started { attempt }),
        (attempts.clone(), any_cause()).prop_map(|(attempt, cause)| RunEvent::Ended { attempt, cause }),
        (attempts.clone(), 0..3u32, 0..2u32).prop_map(|(attempt, infrastructure, user_code)| RunEvent::Finalized {
            attempt,
            policy: RetryPolicy { infrastructure, user_code, backoff_seconds: 1 }
        }),
        attempts.clone().prop_map(|attempt| RunEvent::Silent { attempt, limit_seconds: 30, node: None }),
        attempts.clone().prop_map(|attempt| RunEvent::Heard { attempt }),
        Just(RunEvent::CancelRequested { by: "someone".into(), why: None }),
        Just(RunEvent::ClientStarted),
        any_cause().prop_map(|cause| RunEvent::ClientEnded { cause }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_invariants_hold(events in prop::collection::vec(any_event(), 0..40), managed in any::<bool>()) {
        let mut run = if managed { queued() } else { Run { ownership: Ownership::External, state: RunState::NotStarted, ..queued() } };
        for event in events {
            let before = run.clone();
            let Ok(change) = transition(&run, &event) else { continue };
            run = apply(&run, &change);
            prop_assert_eq!(violations(&run), Vec::<&str>::new(), "after {:?} on {:?}", event, before);
            prop_assert!(!before.state.is_terminal(), "a terminal run changed: {:?} on {:?}", event, before);
            prop_assert_eq!(change.ends, run.state.is_terminal());
            prop_assert!(before.desired == Desired::Run || run.desired == Desired::Cancel, "a cancel was taken back");
            // The cause of an attempt stands until the run gets another attempt, or is cancelled while it waits for one.
            if let Some(cause) = &before.cause
                && before.state == RunState::Finalizing
            {
                prop_assert_eq!(Some(cause), run.cause.as_ref(), "a cause changed");
            }
            if let Some(retry) = change.retry {
                prop_assert_eq!((run.state, before.desired), (RunState::Queued, Desired::Run));
                prop_assert!(retry.number <= retry.of);
            }
        }
    }

    #[test]
    fn an_event_of_another_attempt_never_changes_a_run(events in prop::collection::vec(any_event(), 0..20), cause in any_cause()) {
        let mut run = queued();
        for event in events {
            if let Ok(change) = transition(&run, &event) {
                run = apply(&run, &change);
            }
            let stranger = attempt(99);
            for event in [RunEvent::Preparing { attempt: stranger }, RunEvent::Started { attempt: stranger }, RunEvent::Ended { attempt: stranger, cause: cause.clone() }, RunEvent::Finalized { attempt: stranger, policy: RetryPolicy::default() }] {
                prop_assert_eq!(transition(&run, &event), Err(Refused::Fenced));
            }
        }
    }

    #[test]
    fn repeating_an_event_changes_nothing_more(events in prop::collection::vec(any_event(), 0..30)) {
        let mut run = queued();
        for event in events {
            let Ok(change) = transition(&run, &event) else { continue };
            run = apply(&run, &change);
            prop_assert!(transition(&run, &event).is_err(), "{:?} changed the run twice", event);
        }
    }
}

#[test]
fn the_usual_life_of_a_run() {
    let mut run = queued();
    let attempt = attempt(1);
    let steps = [
        (RunEvent::Admitted { attempt }, RunState::Starting),
        (RunEvent::Preparing { attempt }, RunState::Preparing),
        (RunEvent::Started { attempt }, RunState::Running),
        (RunEvent::Ended { attempt, cause: Cause::Completed }, RunState::Finalizing),
        (RunEvent::Finalized { attempt, policy: RetryPolicy::default() }, RunState::Completed),
    ];
    for (event, expected) in steps {
        run = apply(&run, &transition(&run, &event).unwrap());
        assert_eq!(run.state, expected);
    }
}

#[test]
fn a_lost_attempt_is_tried_again_under_the_same_run_until_the_retries_are_used_up() {
    let policy = RetryPolicy { infrastructure: 1, user_code: 0, backoff_seconds: 7 };
    let lost = Cause::AgentLost { message: "gone".into() };
    let mut run = queued();
    for (n, after) in [(1, RunState::Queued), (2, RunState::Failed)] {
        let attempt = attempt(n);
        for event in [RunEvent::Admitted { attempt }, RunEvent::Started { attempt }, RunEvent::Ended { attempt, cause: lost.clone() }] {
            run = apply(&run, &transition(&run, &event).unwrap());
        }
        let change = transition(&run, &RunEvent::Finalized { attempt, policy }).unwrap();
        assert_eq!(change.retry.map(|retry| retry.wait_seconds), (after == RunState::Queued).then_some(7));
        run = apply(&run, &change);
        assert_eq!(run.state, after);
        let late = RunEvent::Ended { attempt, cause: Cause::Completed };
        assert_eq!(transition(&run, &late), Err(Refused::Fenced), "an attempt that was given up says nothing more");
        let again = RunEvent::Finalized { attempt, policy };
        assert_eq!(transition(&run, &again), Err(Refused::Fenced), "its books are closed once");
    }
}

#[test]
fn a_run_that_is_to_be_cancelled_is_not_tried_again() {
    let run = Run {
        cause: Some(Cause::AgentLost { message: "gone".into() }),
        ..in_state(Ownership::Managed, RunState::Finalizing, Desired::Cancel)
    };
    let change = transition(&run, &RunEvent::Finalized { attempt: attempt(1), policy: RetryPolicy::default() }).unwrap();
    assert_eq!((change.state, change.retry), (RunState::Failed, None));
}

#[test]
fn silence_is_noted_once_and_ends_with_the_next_word() {
    let attempt = attempt(1);
    let run = in_state(Ownership::Managed, RunState::Running, Desired::Run);
    let silent = RunEvent::Silent { attempt, limit_seconds: 30, node: None };
    let run = apply(&run, &transition(&run, &silent).unwrap());
    assert!(run.silent && run.state == RunState::Running);
    assert_eq!(transition(&run, &silent), Err(Refused::AlreadySo));
    let heard = apply(&run, &transition(&run, &RunEvent::Heard { attempt }).unwrap());
    assert!(!heard.silent);
}

#[test]
fn a_cancel_that_comes_too_late_does_not_turn_success_into_a_cancel() {
    let attempt = attempt(1);
    let mut run = in_state(Ownership::Managed, RunState::Running, Desired::Run);
    for event in [
        RunEvent::CancelRequested { by: "me".into(), why: None },
        RunEvent::Ended { attempt, cause: Cause::Completed },
        RunEvent::Finalized { attempt, policy: RetryPolicy::default() },
    ] {
        run = apply(&run, &transition(&run, &event).unwrap());
    }
    assert_eq!(run.state, RunState::Completed);
}

#[test]
fn stored_names_of_states_are_read_back() {
    for state in RunState::ALL {
        assert_eq!(RunState::parse(state.as_str()), Some(state));
    }
    assert_eq!(RunState::parse("completed"), None);
}
