use trainyard_core::{
    ids::{AttemptId, ComputeName},
    run::{Cause, Ownership, RunEvent, RunState},
};
use trainyard_store::queue::FreeSlots;
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NO_RETRY, NOW, Place},
};

fn target(name: &str) -> ComputeName {
    ComputeName::new(name).expect("a name")
}

fn free(free: u32) -> FreeSlots {
    FreeSlots { free, all: 9 }
}

/// Five waiting runs on `cpu-cluster`; their queue order is first, second, …
async fn queue(bench: &Bench) -> Place {
    let place = bench.place().await;
    let other = bench.place().await;
    let run =
        |place: &Place, id: &str, priority, created_us| place.run_with(id, |run| (run.priority, run.created_us) = (priority, created_us));
    bench.store_run(run(&place, "third", 0, NOW + 5)).await;
    bench.store_run(run(&other, "second", 0, NOW + 4)).await;
    bench.store_run(run(&place, "first", 1, NOW + 9)).await;
    bench.store_run(run(&place, "fourth-b", 0, NOW + 6)).await;
    bench.store_run(run(&place, "fourth-a", 0, NOW + 6)).await;
    bench.store_run(place.run_with("elsewhere", |run| run.target = Some("gpu".into()))).await;
    place
}

pub(crate) async fn heads_have_the_first_runs_of_every_share(bench: &Bench) {
    let place = queue(bench).await;
    let asked = [(target("cpu-cluster"), free(2)), (target("gpu"), free(0)), (target("unknown"), free(3))];
    let heads = bench.store.queue_heads(&asked, NOW).await.expect("heads");
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0].0, target("cpu-cluster"));
    let of = |workspace| {
        let of = heads[0].1.iter().filter(move |queued| (queued.share.workspace == place.workspace) == workspace);
        of.map(|queued| queued.run.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of(true), ["first", "third"], "as many as could get a slot, in their order");
    assert_eq!(of(false), ["second"], "another share's runs do not hide it");
    let heads = bench.store.queue_heads(&[(target("gpu"), free(9)), (target("cpu-cluster"), free(1))], NOW).await.expect("heads");
    let heads: Vec<(&str, usize)> = heads.iter().map(|(target, queue)| (target.as_str(), queue.len())).collect();
    assert_eq!(heads, [("gpu", 1), ("cpu-cluster", 2)]);
}

pub(crate) async fn shares_are_told_apart_by_user_and_experiment(bench: &Bench) {
    let place = bench.place().await;
    let by = |user: &str, id: &str| place.run_with(id, |run| run.created_by = serde_json::json!({ "userName": user }));
    for (user, id) in [("ann", "a1"), ("ann", "a2"), ("bob", "b1")] {
        bench.store_run(by(user, id)).await;
    }
    let heads = bench.store.queue_heads(&[(target("cpu-cluster"), free(1))], NOW).await.expect("heads");
    let ids: Vec<&str> = heads[0].1.iter().map(|queued| queued.run.as_str()).collect();
    assert_eq!(ids, ["a1", "b1"]);

    let run = bench.store.run(place.workspace, &crate::fixtures::run_id("b1")).await.expect("a read").expect("there");
    bench.change(&run, RunEvent::Admitted { attempt: AttemptId(Uuid::new_v4()) }, NOW).await;
    let busy = bench.store.busy_shares().await.expect("counts");
    let held: Vec<_> = busy[&target("cpu-cluster")].iter().map(|(share, count)| (share.user.contains("bob"), *count)).collect();
    assert_eq!(held, [(true, 1)]);
}

pub(crate) async fn busy_slots_and_runs_in_execution_follow_the_state(bench: &Bench) {
    let place = bench.place().await;
    let external = place.run_with("external", |run| {
        run.ownership = Ownership::External;
        run.state = RunState::Running;
    });
    bench.store_run(external).await;
    assert!(bench.store.busy_slots().await.expect("counts").is_empty());
    let mut attempts = Vec::new();
    for id in ["one", "two"] {
        let run = bench.store_run(place.run(id)).await;
        let attempt = AttemptId(Uuid::new_v4());
        bench.change(&run, RunEvent::Admitted { attempt }, NOW + attempts.len() as i64).await;
        attempts.push((run, attempt));
    }
    bench.store_run(place.run("waiting")).await;
    assert_eq!(bench.store.busy_slots().await.expect("counts"), [(target("cpu-cluster"), 2)].into());
    let live = bench.store.runs_in_execution().await.expect("runs");
    let found: Vec<_> = live.iter().map(|live| (live.run.clone(), live.attempt.id, live.state, live.version)).collect();
    let expected: Vec<_> = attempts.iter().map(|(run, attempt)| (run.id.clone(), *attempt, RunState::Starting, 1)).collect();
    assert_eq!(found, expected);

    let (run, attempt) = &attempts[0];
    bench.change(run, RunEvent::Ended { attempt: *attempt, cause: Cause::Completed }, NOW + 9).await;
    assert_eq!(bench.store.busy_slots().await.expect("counts").values().sum::<u32>(), 2, "a finalizing run keeps its slot");
    bench.change(run, RunEvent::Finalized { attempt: *attempt, policy: NO_RETRY }, NOW + 9).await;
    assert_eq!(bench.store.busy_slots().await.expect("counts").values().sum::<u32>(), 1);
    assert_eq!(bench.store.runs_in_execution().await.expect("runs").len(), 1);
}

pub(crate) async fn runs_ahead_counts_up_to_the_limit(bench: &Bench) {
    let place = queue(bench).await;
    for (id, ahead) in [("first", 0), ("third", 2), ("fourth-a", 3), ("fourth-b", 4), ("elsewhere", 0)] {
        let run = bench.store.run(place.workspace, &crate::fixtures::run_id(id)).await.expect("a read").expect("there");
        assert_eq!(bench.store.runs_ahead(&run, 1000).await.expect("a count"), ahead, "{id}");
        assert_eq!(bench.store.runs_ahead(&run, 2).await.expect("a count"), ahead.min(2), "{id}");
    }
}

pub(crate) async fn a_run_takes_its_slots_and_one_that_takes_more_than_there_are_hides_nobody(bench: &Bench) {
    let place = bench.place().await;
    let gang = |id: &str, slots| trainyard_store::runs::NewRun { slots, ..place.run(id) };
    for (id, slots) in [("a-large", 10), ("b-gang", 4), ("c-small", 1)] {
        bench.store_run(gang(id, slots)).await;
    }
    let heads = bench.store.queue_heads(&[(target("cpu-cluster"), free(2))], NOW).await.expect("heads");
    let found: Vec<_> = heads[0].1.iter().map(|queued| (queued.run.as_str(), queued.slots)).collect();
    assert_eq!(found, [("b-gang", 4), ("c-small", 1)]);
    let run = bench.store.run(place.workspace, &crate::fixtures::run_id("b-gang")).await.expect("a read").expect("there");
    bench.change(&run, RunEvent::Admitted { attempt: AttemptId(Uuid::new_v4()) }, NOW).await;
    assert_eq!(bench.store.busy_slots().await.expect("counts"), [(target("cpu-cluster"), 4)].into());
    assert_eq!(bench.store.busy_shares().await.expect("counts")[&target("cpu-cluster")].values().sum::<u32>(), 4);
    assert_eq!(bench.store.executing_count().await.expect("a count"), 1);
}
