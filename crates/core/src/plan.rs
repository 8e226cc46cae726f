//! The scheduler: a pure function of what waits and what runs.
//!
//! As many runs as a target has free slots: higher priorities first; within a priority a slot goes to the user who holds the fewest of the
//! target's slots, and among the user's experiments to the one that holds the fewest, so that whoever submits a thousand runs
//! keeps nobody else waiting for all of them; then first in, first out. A run takes as many slots as it says, all at once or none: when the one
//! whose turn it is does not fit, nothing behind it is admitted until it does, so that small runs never keep a large one waiting for ever. One that
//! could not fit if everything were free holds nobody back. The engine gives [`plan`] the head of each share's queue (as
//! many runs as it could possibly admit), writes the intents for what comes back, and calls it again whenever something
//! changed. Why a run waits is derived on demand from a few counts by [`waiting`], so that a queue of a hundred
//! thousand runs costs nothing per pass.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::ids::{ComputeName, ExperimentId, RunId, WorkspaceId};

/// Between whom a target's slots are divided: users first, then the experiments of a user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Who submitted, as stored with the run; only compared.
    pub user: String,
    /// The workspace of the experiment.
    pub workspace: WorkspaceId,
    /// The experiment.
    pub experiment: ExperimentId,
}

/// A waiting run as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedRun {
    /// Whose it is.
    pub share: Share,
    /// Its id.
    pub run: RunId,
    /// Higher goes first.
    pub priority: i64,
    /// When it was accepted, microseconds since the epoch.
    pub created_us: i64,
    /// Not admitted before this, microseconds since the epoch: it failed, and is tried again.
    pub not_before_us: Option<i64>,
    /// How many slots it takes, at least 1.
    pub slots: u32,
}

/// One compute target and the head of its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetView {
    /// Its name.
    pub name: ComputeName,
    /// Its slots.
    pub slots: u32,
    /// How many slots are taken now, for each share that has some.
    pub busy: BTreeMap<Share, u32>,
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
    targets.iter().flat_map(|target| admissions(target, now_us)).collect()
}

/// Whether the `admissions` of `views` are what they would be if the views held the whole queues, and not only the first `depth` runs of each share: they
/// are unless all that was known of some share's queue was used up.
pub fn is_certain(views: &[TargetView], admissions: &[Admission], depth: u32) -> bool {
    let admitted: BTreeSet<(WorkspaceId, &RunId)> = admissions.iter().map(|admission| (admission.workspace, &admission.run)).collect();
    views.iter().all(|view| {
        let mut known: BTreeMap<&Share, (u32, u32)> = BTreeMap::new();
        for run in &view.queue {
            let (all, used) = known.entry(&run.share).or_default();
            *all += 1;
            *used += u32::from(admitted.contains(&(run.share.workspace, &run.run)));
        }
        known.values().all(|(all, used)| *all < depth || used < all)
    })
}

fn admissions(target: &TargetView, now_us: i64) -> Vec<Admission> {
    let mut held = Held::of(&target.busy);
    let mut queues = queues(target, now_us);
    let mut admissions = Vec::new();
    loop {
        let heads = queues.iter().filter_map(|(share, queue)| Some((*share, *queue.last()?)));
        let Some((share, next)) = heads.min_by_key(|(share, run)| (Reverse(run.priority), held.by(share), queue_key(run))) else { break };
        if next.slots.max(1) > target.slots.saturating_sub(held.slots) {
            // What is free is kept for it: a smaller run behind it would take its place for ever.
            break;
        }
        admissions.push(Admission { target: target.name.clone(), workspace: next.share.workspace, run: next.run.clone() });
        held.take(share, next.slots.max(1));
        queues.get_mut(share).map(Vec::pop);
    }
    admissions
}

/// The runs of each share that may be admitted at `now_us` and could be if everything were free, the next one last.
fn queues(target: &TargetView, now_us: i64) -> BTreeMap<&Share, Vec<&QueuedRun>> {
    let mut queues: BTreeMap<&Share, Vec<&QueuedRun>> = BTreeMap::new();
    let fits = |run: &&QueuedRun| run.slots <= target.slots && run.not_before_us.is_none_or(|at| at <= now_us);
    for run in target.queue.iter().filter(fits) {
        queues.entry(&run.share).or_default().push(run);
    }
    for queue in queues.values_mut() {
        queue.sort_by_key(|run| Reverse((Reverse(run.priority), queue_key(run))));
    }
    queues
}

/// How many slots of a target everybody holds.
struct Held<'a> {
    slots: u32,
    users: BTreeMap<&'a str, u32>,
    shares: BTreeMap<&'a Share, u32>,
}

impl<'a> Held<'a> {
    fn of(busy: &'a BTreeMap<Share, u32>) -> Self {
        let mut held = Self { slots: 0, users: BTreeMap::new(), shares: BTreeMap::new() };
        for (share, count) in busy {
            held.take(share, *count);
        }
        held
    }

    fn take(&mut self, share: &'a Share, count: u32) {
        self.slots = self.slots.saturating_add(count);
        *self.users.entry(&share.user).or_default() += count;
        *self.shares.entry(share).or_default() += count;
    }

    /// What the user holds, and of that the experiment.
    fn by(&self, share: &Share) -> (u32, u32) {
        let user = self.users.get(share.user.as_str()).copied().unwrap_or_default();
        (user, self.shares.get(share).copied().unwrap_or_default())
    }
}

/// The order within a share and a priority: older first, then by id so that the order is total.
fn queue_key(queued: &QueuedRun) -> (i64, &RunId, &Share) {
    (queued.created_us, &queued.run, &queued.share)
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
    /// How many slots the run takes.
    pub needs: u32,
    /// Waiting runs of a higher priority, or of the same and older; counted up to [`AHEAD_COUNTED`].
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
    let needs = facts.needs.max(1);
    if needs > slots {
        let message = format!(
            "takes {needs} slots at once, and target `{target}` has {slots}; the run waits until its configuration says more or the run is cancelled"
        );
        return WaitReason { code: "NoSlots", message };
    }
    if let Some(Backoff { seconds, reason }) = &facts.backoff {
        return WaitReason { code: "RetryBackoff", message: format!("is tried again in {seconds} s: {reason}") };
    }
    if facts.busy.saturating_add(needs) <= slots && facts.ahead == 0 {
        return WaitReason { code: "Admitting", message: format!("next on target `{target}`: a slot is free") };
    }
    let ahead = match facts.ahead {
        0 => "no run is ahead".to_owned(),
        1 => "1 run is ahead".to_owned(),
        n if n >= AHEAD_COUNTED => format!("at least {AHEAD_COUNTED} runs are ahead"),
        n => format!("{n} runs are ahead"),
    };
    // In the order of submission; who of them goes first depends on what everybody holds when a slot is free.
    let turns = if facts.ahead == 0 { "" } else { "; users and their experiments take turns" };
    let busy = facts.busy;
    let what = if needs == 1 { "a slot".to_owned() } else { format!("{needs} slots at once") };
    let message = format!("waits for {what} on target `{target}`: {busy} of {slots} busy, {ahead}{turns}");
    WaitReason { code: "WaitingForSlot", message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn share(user: &str, experiment: u128) -> Share {
        Share { user: user.into(), workspace: WorkspaceId(Uuid::from_u128(1)), experiment: ExperimentId(Uuid::from_u128(experiment)) }
    }

    fn queued(run: &str, priority: i64, created_us: i64) -> QueuedRun {
        QueuedRun { share: share("ann", 1), run: RunId::new(run).unwrap(), priority, created_us, not_before_us: None, slots: 1 }
    }

    fn of(share: &Share, run: &str, created_us: i64) -> QueuedRun {
        QueuedRun { share: share.clone(), ..queued(run, 0, created_us) }
    }

    fn target(slots: u32, busy: u32, queue: Vec<QueuedRun>) -> TargetView {
        let busy = [(share("somebody", 9), busy)].into();
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

    #[test]
    fn a_user_with_a_thousand_runs_does_not_keep_another_waiting() {
        let (ann, bob) = (share("ann", 1), share("bob", 2));
        let mut queue: Vec<_> = (0..1000).map(|n| of(&ann, &format!("ann-{n:04}"), n)).collect();
        queue.extend((0..2).map(|n| of(&bob, &format!("bob-{n}"), 5000 + n)));
        assert_eq!(admitted(&[target(5, 0, queue.clone())]), ["ann-0000", "bob-0", "ann-0001", "bob-1", "ann-0002"]);
        // Bob has nothing yet, Ann holds two: the next slots are his.
        let held = TargetView { busy: [(ann, 2)].into(), ..target(4, 0, queue) };
        assert_eq!(admitted(&[held]), ["bob-0", "bob-1"]);
    }

    proptest! {
        /// What the engine relies on when it reads only the beginnings of queues.
        #[test]
        fn a_certain_plan_is_that_of_the_whole_queues(
            slots in 0..12u32, depth in 1..6usize, runs in prop::collection::vec((0..3usize, 0..3i64), 0..40)
        ) {
            let users = ["ann", "bob", "cid"];
            let whole: Vec<_> = (0..).zip(&runs).map(|(at, (user, priority))| {
                QueuedRun { priority: *priority, ..of(&share(users[*user], 1), &format!("r{at}"), at) }
            }).collect();
            let mut cut = whole.clone();
            cut.sort_by_key(|run| (Reverse(run.priority), run.created_us));
            let mut seen: BTreeMap<Share, usize> = BTreeMap::new();
            cut.retain(|run| { let seen = seen.entry(run.share.clone()).or_default(); *seen += 1; *seen <= depth });
            let (whole, cut) = ([target(slots, 0, whole)], [target(slots, 0, cut)]);
            let planned = plan(&cut, 100);
            if is_certain(&cut, &planned, depth as u32) {
                prop_assert_eq!(planned, plan(&whole, 100));
            }
        }
    }

    #[test]
    fn the_experiments_of_a_user_share_what_the_user_gets() {
        let (sweep, paper) = (share("ann", 1), share("ann", 2));
        let queue = vec![of(&sweep, "s1", 1), of(&sweep, "s2", 2), of(&sweep, "s3", 3), of(&paper, "p1", 4)];
        assert_eq!(admitted(&[target(3, 0, queue)]), ["s1", "p1", "s2"]);
    }

    #[test]
    fn a_priority_goes_before_fairness() {
        let (ann, bob) = (share("ann", 1), share("bob", 2));
        let urgent = |n: i64| QueuedRun { priority: 1, ..of(&ann, &format!("urgent-{n}"), n) };
        let queue = vec![of(&bob, "bob", 0), urgent(1), urgent(2)];
        assert_eq!(admitted(&[target(2, 0, queue)]), ["urgent-1", "urgent-2"]);
    }

    #[test]
    fn a_run_on_several_nodes_gets_all_of_its_slots_or_none_and_keeps_what_is_free_for_itself() {
        let gang = |run: &str, at: i64, slots: u32| QueuedRun { slots, ..queued(run, 0, at) };
        assert_eq!(admitted(&[target(4, 0, vec![gang("four", 1, 4), gang("one", 2, 1)])]), ["four"]);
        assert!(admitted(&[target(4, 1, vec![gang("four", 1, 4), gang("one", 2, 1)])]).is_empty(), "nobody slips in before it");
        assert_eq!(admitted(&[target(4, 1, vec![gang("one", 1, 1), gang("four", 2, 4), gang("two", 3, 1)])]), ["one"]);
        assert_eq!(admitted(&[target(4, 1, vec![gang("five", 1, 5), gang("one", 2, 1)])]), ["one"], "what never fits holds nobody back");
    }

    proptest! {
        /// Whatever comes behind it: a run on several nodes begins once those that ran before it have ended.
        #[test]
        fn small_runs_never_keep_a_large_one_waiting_for_ever(
            slots in 2..7u32, gang in 2..7u32, arrivals in prop::collection::vec((0..3usize, 1..3u32), 40..60)
        ) {
            prop_assume!(gang <= slots);
            let users = ["ann", "bob", "cid"];
            let gang = QueuedRun { slots: gang, ..of(&share("dot", 1), "gang", 10) };
            let (mut queue, mut running): (Vec<QueuedRun>, Vec<QueuedRun>) = (vec![gang], Vec::new());
            for (turn, (user, slots_of_it)) in arrivals.into_iter().enumerate() {
                // More small runs than there is room for, always.
                for n in 0..4 {
                    let small = of(&share(users[user], 1), &format!("s{turn}-{n}"), 20 + turn as i64);
                    queue.push(QueuedRun { slots: slots_of_it.min(slots), ..small });
                }
                let mut busy = BTreeMap::new();
                for run in &running {
                    *busy.entry(run.share.clone()).or_default() += run.slots;
                }
                let view = TargetView { busy, slots, ..target(0, 0, queue.clone()) };
                for admission in plan(&[view], 100) {
                    let at = queue.iter().position(|queued| queued.run == admission.run).unwrap();
                    running.push(queue.remove(at));
                }
                prop_assert!(running.iter().map(|run| run.slots).sum::<u32>() <= slots);
                if !running.is_empty() {
                    running.remove(0);
                }
            }
            prop_assert!(queue.iter().all(|queued| queued.run.as_str() != "gang"), "it still waits");
        }

        #[test]
        fn within_a_priority_nobody_gets_a_slot_while_somebody_with_two_fewer_waits(
            slots in 0..8u32, runs in prop::collection::vec((0..4usize, 0..5i64), 0..24), held in prop::collection::vec(0..4u32, 4)
        ) {
            let users = ["ann", "bob", "cid", "dot"];
            let queue: Vec<_> = runs.iter().enumerate().map(|(n, (user, at))| of(&share(users[*user], 1), &format!("r{n}"), *at)).collect();
            let busy: BTreeMap<Share, u32> = users.iter().zip(&held).map(|(user, held)| (share(user, 1), *held)).collect();
            let view = TargetView { busy, slots: slots + held.iter().sum::<u32>(), ..target(0, 0, queue.clone()) };
            let admitted: Vec<RunId> = plan(&[view], 100).into_iter().map(|admission| admission.run).collect();
            prop_assert_eq!(admitted.len(), (slots as usize).min(queue.len()));
            let holds = |user: usize| held[user] as usize + admitted.iter().filter(|run| user_of(&runs, run) == user).count();
            for waiting in queue.iter().filter(|queued| !admitted.contains(&queued.run)).map(|queued| user_of(&runs, &queued.run)) {
                for got in admitted.iter().map(|run| user_of(&runs, run)) {
                    prop_assert!(holds(got) <= holds(waiting) + 1, "{} got a slot while {} waits", users[got], users[waiting]);
                }
            }
        }

        #[test]
        fn no_more_than_the_free_slots_and_never_a_worse_run_of_a_share_before_a_better_one(
            slots in 0..6u32, busy in 0..6u32, runs in prop::collection::vec((-2..3i64, 0..5i64), 0..12)
        ) {
            let queue: Vec<_> = runs.iter().enumerate().map(|(n, (priority, at))| queued(&format!("r{n}"), *priority, *at)).collect();
            let admissions = plan(&[target(slots, busy, queue.clone())], 100);
            let free = slots.saturating_sub(busy) as usize;
            prop_assert_eq!(admissions.len(), free.min(queue.len()));
            let position = |run: &QueuedRun| admissions.iter().position(|admission| admission.run == run.run);
            for a in &queue {
                for b in &queue {
                    let better = (Reverse(a.priority), a.created_us) < (Reverse(b.priority), b.created_us);
                    if better && position(b).is_some() {
                        prop_assert!(position(a).is_some_and(|first| Some(first) < position(b)));
                    }
                }
            }
        }
    }

    fn user_of(runs: &[(usize, i64)], run: &RunId) -> usize {
        runs[run.as_str()[1..].parse::<usize>().unwrap()].0
    }

    #[test]
    fn every_waiting_run_is_told_why() {
        let target = ComputeName::new("gpu").unwrap();
        let facts = |slots, busy, ahead| WaitFacts { target: target.clone(), slots, busy, needs: 1, ahead, drained: false, backoff: None };
        let backoff = Some(Backoff { seconds: 7, reason: "the machine went away".into() });
        let cases = [
            (WaitFacts { drained: true, ..facts(Some(1), 0, 0) }, "Drained", "trainyard drain --end"),
            (WaitFacts { backoff, ..facts(Some(1), 0, 0) }, "RetryBackoff", "in 7 s: the machine went away"),
            (facts(None, 0, 0), "TargetMissing", "not in the server's configuration"),
            (facts(Some(0), 0, 0), "NoSlots", "slots = 0"),
            (WaitFacts { needs: 3, ..facts(Some(2), 0, 0) }, "NoSlots", "takes 3 slots at once, and target `gpu` has 2"),
            (WaitFacts { needs: 2, ..facts(Some(4), 3, 0) }, "WaitingForSlot", "waits for 2 slots at once on target `gpu`: 3 of 4 busy"),
            (WaitFacts { needs: 2, ..facts(Some(4), 2, 0) }, "Admitting", "a slot is free"),
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
