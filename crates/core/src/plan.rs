//! The scheduler: a pure function of what waits and what runs.
//!
//! First in, first out within a priority, as many as a target has free slots. The engine gives [`plan`] the head of each
//! target's queue (as many runs as it could possibly admit, in queue order), writes the intents for what comes back, and calls
//! it again whenever something changed. Why a run waits is derived on demand from a few counts by [`waiting`],
//! so that a queue of a hundred thousand runs costs nothing per pass.

use crate::ids::{ComputeName, RunId, WorkspaceId};

/// A waiting run as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRun {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its id.
    pub run: RunId,
    /// Higher goes first.
    pub priority: i64,
    /// When it was accepted, microseconds since the epoch.
    pub created_us: i64,
    /// Not admitted before this, microseconds since the epoch: it failed, and is tried again.
    pub not_before_us: Option<i64>,
}

/// One compute target and the head of its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// Its name.
    pub name: ComputeName,
    /// How many runs it executes at once.
    pub slots: u32,
    /// How many it executes now.
    pub busy: u32,
    /// Waiting runs, in any order.
    pub queue: Vec<QueuedRun>,
}

/// A run that is to get a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The target.
    pub target: ComputeName,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// The run.
    pub run: RunId,
}

/// Which of the waiting runs get a slot at `now_us`, in the order in which they are to be started.
pub fn plan(targets: &[TargetView], now_us: i64) -> Vec<Admission> {
    let mut admissions = Vec::new();
    for target in targets {
        let free = target.slots.saturating_sub(target.busy) as usize;
        let mut queue: Vec<&QueuedRun> = target.queue.iter().filter(|queued| queued.not_before_us.is_none_or(|at| at <= now_us)).collect();
        queue.sort_by(|a, b| queue_key(a).cmp(&queue_key(b)));
        admissions.extend(queue.into_iter().take(free).map(|queued| Admission {
            target: target.name.clone(),
            workspace: queued.workspace,
            run: queued.run.clone(),
        }));
    }
    admissions
}

/// The order of a queue: higher priority first, then older first, then by id so that the order is total.
fn queue_key(queued: &QueuedRun) -> (std::cmp::Reverse<i64>, i64, &RunId, WorkspaceId) {
    (std::cmp::Reverse(queued.priority), queued.created_us, &queued.run, queued.workspace)
}

/// What is known about the queue that a run waits in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitFacts {
    /// The target.
    pub target: ComputeName,
    /// Its slots; `None` when the target is no longer in the configuration.
    pub slots: Option<u32>,
    /// Busy slots.
    pub busy: u32,
    /// Runs ahead in the queue, counted up to [`AHEAD_COUNTED`].
    pub ahead: u32,
    /// Whether the server is drained: nothing is admitted anywhere.
    pub drained: bool,
    /// The wait before the next try of a run that failed.
    pub backoff: Option<Backoff>,
}

/// Why and how long a run that failed waits before it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Seconds that are left.
    pub seconds: u64,
    /// What ended the attempt before, as a sentence.
    pub reason: String,
}

/// Positions beyond this are given as "at least": counting further would cost more than it tells.
pub const AHEAD_COUNTED: u32 = 200;

/// Why a run waits: a bounded code and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitReason {
    /// `Drained`, `TargetMissing`, `NoSlots`, `RetryBackoff`, `WaitingForSlot` or `Admitting`; or one of the engine's own.
    pub code: &'static str,
    /// For the person who waits.
    pub message: String,
}

/// Says why a run waits.
pub fn waiting(facts: &WaitFacts) -> WaitReason {
    let target = &facts.target;
    if facts.drained {
        let message =
            "the server is drained: its operator lets running work end and starts nothing new until `trainyard drain --end`".to_owned();
        return WaitReason { code: "Drained", message };
    }
    let Some(slots) = facts.slots else {
        let message = format!(
            "target `{target}` is not in the server's configuration any more; the run waits until it is back or the run is cancelled"
        );
        return WaitReason { code: "TargetMissing", message };
    };
    if slots == 0 {
        let message = format!("target `{target}` has no slots; its configuration says slots = 0");
        return WaitReason { code: "NoSlots", message };
    }
    if let Some(Backoff { seconds, reason }) = &facts.backoff {
        return WaitReason { code: "RetryBackoff", message: format!("is tried again in {seconds} s: {reason}") };
    }
    if facts.busy < slots && facts.ahead == 0 {
        return WaitReason { code: "Admitting", message: format!("next on target `{target}`: a slot is free") };
    }
    let ahead = match facts.ahead {
        0 => "no run is ahead".to_owned(),
        1 => "1 run is ahead".to_owned(),
        n if n >= AHEAD_COUNTED => format!("at least {AHEAD_COUNTED} runs are ahead"),
        n => format!("{n} runs are ahead"),
    };
    let busy = facts.busy;
    let message = format!("waits for a slot on target `{target}`: {busy} of {slots} busy, {ahead}");
    WaitReason { code: "WaitingForSlot", message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn queued(run: &str, priority: i64, created_us: i64) -> QueuedRun {
        QueuedRun { workspace: WorkspaceId(Uuid::from_u128(1)), run: RunId::new(run).unwrap(), priority, created_us, not_before_us: None }
    }

    fn target(slots: u32, busy: u32, queue: Vec<QueuedRun>) -> TargetView {
        TargetView { name: ComputeName::new("cpu-cluster").unwrap(), slots, busy, queue }
    }

    fn admitted(targets: &[TargetView]) -> Vec<String> {
        plan(targets, 100).into_iter().map(|admission| admission.run.to_string()).collect()
    }

    #[test]
    fn older_runs_go_first_within_a_priority_and_higher_priorities_before() {
        let queue = vec![queued("young", 0, 3), queued("old", 0, 1), queued("urgent", 5, 9), queued("later", -1, 0)];
        assert_eq!(admitted(&[target(3, 0, queue)]), ["urgent", "old", "young"]);
    }

    #[test]
    fn a_target_without_slots_admits_nothing_even_when_it_is_overfull() {
        assert!(admitted(&[target(0, 0, vec![queued("a", 0, 0)])]).is_empty());
        assert!(admitted(&[target(1, 3, vec![queued("a", 0, 0)])]).is_empty());
    }

    #[test]
    fn a_run_that_failed_is_not_admitted_before_its_time_and_lets_others_pass() {
        let failed = QueuedRun { not_before_us: Some(101), ..queued("failed", 0, 1) };
        let views = [target(1, 0, vec![failed, queued("other", 0, 2)])];
        assert_eq!(admitted(&views), ["other"]);
        assert_eq!(plan(&views, 101)[0].run.as_str(), "failed");
    }

    proptest! {
        #[test]
        fn no_more_than_the_free_slots_and_never_a_worse_run_before_a_better_one(
            slots in 0..6u32, busy in 0..6u32, runs in prop::collection::vec((-2..3i64, 0..5i64), 0..12)
        ) {
            let queue: Vec<_> = runs.iter().enumerate().map(|(n, (priority, at))| queued(&format!("r{n}"), *priority, *at)).collect();
            let admissions = plan(&[target(slots, busy, queue.clone())], 100);
            let free = slots.saturating_sub(busy) as usize;
            prop_assert_eq!(admissions.len(), free.min(queue.len()));
            let position = |run: &QueuedRun| admissions.iter().position(|admission| admission.run == run.run);
            for a in &queue {
                for b in &queue {
                    let better = (std::cmp::Reverse(a.priority), a.created_us) < (std::cmp::Reverse(b.priority), b.created_us);
                    if better && position(b).is_some() {
                        prop_assert!(position(a).is_some_and(|first| Some(first) < position(b)));
                    }
                }
            }
        }
    }

    #[test]
    fn every_waiting_run_is_told_why() {
        let facts =
            |slots, busy, ahead| WaitFacts { target: ComputeName::new("gpu").unwrap(), slots, busy, ahead, drained: false, backoff: None };
        let backoff = Some(Backoff { seconds: 7, reason: "the machine went away".into() });
        let cases = [
            (WaitFacts { drained: true, ..facts(Some(1), 0, 0) }, "Drained", "trainyard drain --end"),
            (WaitFacts { backoff, ..facts(Some(1), 0, 0) }, "RetryBackoff", "in 7 s: the machine went away"),
            (facts(None, 0, 0), "TargetMissing", "not in the server's configuration"),
            (facts(Some(0), 0, 0), "NoSlots", "slots = 0"),
            (facts(Some(2), 1, 0), "Admitting", "a slot is free"),
            (facts(Some(2), 2, 0), "WaitingForSlot", "2 of 2 busy, no run is ahead"),
            (facts(Some(2), 2, 1), "WaitingForSlot", "1 run is ahead"),
            (facts(Some(2), 2, 7), "WaitingForSlot", "7 runs are ahead"),
            (facts(Some(2), 2, AHEAD_COUNTED), "WaitingForSlot", "at least 200 runs are ahead"),
        ];
        for (facts, code, words) in cases {
            let reason = waiting(&facts);
            assert_eq!(reason.code, code);
            assert!(reason.message.contains(words), "{}", reason.message);
        }
    }
}
