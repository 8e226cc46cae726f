use trainyard_core::{
    ErrorKind,
    filter::{Direction, Filter, OrderBy, OrderField},
    ids::WorkspaceId,
    run::{Cause, RunState},
};
use trainyard_store::{
    PageRequest,
    runs::{Hidden, RunQuery, RunRecord},
};

use crate::{
    database::Bench,
    fixtures::{NOW, Place, run_id},
};

pub(crate) fn newest_first(workspace: WorkspaceId) -> RunQuery {
    RunQuery {
        workspace,
        experiment: None,
        parent: None,
        filter: None,
        order: OrderBy { field: OrderField::CreatedUtc, direction: Direction::Descending },
        hidden: Hidden::Include,
        page: PageRequest::default(),
    }
}

/// All pages of a list.
pub(crate) async fn all(bench: &Bench, mut query: RunQuery) -> Vec<RunRecord> {
    let mut runs = Vec::new();
    loop {
        let page = bench.store.list_runs(&query).await.expect("a page");
        assert!(page.items.len() <= query.page.limit());
        runs.extend(page.items);
        match page.token {
            Some(token) => query.page.token = Some(token),
            None => return runs,
        }
    }
}

fn ids(runs: &[RunRecord]) -> Vec<&str> {
    runs.iter().map(|run| run.id.as_str()).collect()
}

/// Runs with repeated and missing times.
async fn some_runs(bench: &Bench) -> (Place, Vec<RunRecord>) {
    let place = bench.place().await;
    let mut runs = Vec::new();
    for n in 0..23_i64 {
        let run = place.run_with(&format!("run-{}", n * 7 % 23), |run| {
            run.created_us = NOW + n / 3;
            run.started_us = (n % 3 != 0).then_some(NOW + n % 5);
            run.ended_us = (n % 4 == 0).then_some(NOW + 100 - n);
        });
        runs.push(bench.store_run(run).await);
    }
    (place, runs)
}

pub(crate) async fn pages_hold_every_run_once_in_every_order(bench: &Bench) {
    let (place, runs) = some_runs(bench).await;
    let fields = [OrderField::CreatedUtc, OrderField::StartTimeUtc, OrderField::EndTimeUtc, OrderField::RunId];
    for field in fields {
        for direction in [Direction::Ascending, Direction::Descending] {
            let key = |run: &RunRecord| match field {
                OrderField::CreatedUtc => Some(run.created_us),
                OrderField::StartTimeUtc => run.started_us,
                OrderField::EndTimeUtc => run.ended_us,
                OrderField::RunId => Some(0),
            };
            let mut expected = runs.clone();
            expected.sort_by(|a, b| {
                let ascending = (key(a), &a.id).cmp(&(key(b), &b.id));
                let ordered = if direction == Direction::Ascending { ascending } else { ascending.reverse() };
                key(a).is_none().cmp(&key(b).is_none()).then(ordered)
            });
            for top in [1, 4, 500] {
                let order = OrderBy { field, direction };
                let query = RunQuery {
                    order,
                    experiment: Some(place.experiment.id),
                    page: PageRequest::first(top),
                    ..newest_first(place.workspace)
                };
                let listed = all(bench, query).await;
                assert_eq!(ids(&listed), ids(&expected), "{field:?} {direction:?} {top}");
                assert_eq!(listed, expected);
            }
        }
    }
}

pub(crate) async fn runs_without_a_start_come_last(bench: &Bench) {
    let place = bench.place().await;
    for (id, started_us) in [("a", None), ("b", Some(NOW + 1)), ("c", None), ("d", Some(NOW + 2))] {
        bench.store_run(place.run_with(id, |run| run.started_us = started_us)).await;
    }
    for (direction, expected) in [(Direction::Descending, ["d", "b", "c", "a"]), (Direction::Ascending, ["b", "d", "a", "c"])] {
        let order = OrderBy { field: OrderField::StartTimeUtc, direction };
        // Pages that end before, at and after the border.
        for top in 1..=4 {
            let query = RunQuery { order, page: PageRequest::first(top), ..newest_first(place.workspace) };
            assert_eq!(ids(&all(bench, query).await), expected);
        }
    }
}

pub(crate) async fn hidden_runs_and_other_parents_are_left_out(bench: &Bench) {
    let place = bench.place().await;
    let elsewhere = bench.experiment(place.workspace).await;
    bench.store_run(place.run("parent")).await;
    for (id, hidden) in [("child-1", false), ("child-2", true)] {
        let child = place.run_with(id, |run| {
            run.parent = Some(run_id("parent"));
            run.root = run_id("parent");
            run.hidden = hidden;
        });
        bench.store_run(child).await;
    }
    bench.store_run(place.run_with("other", |run| run.experiment = elsewhere.id)).await;
    bench.store_run(bench.place().await.run("foreign")).await;
    let children = RunQuery { parent: Some(run_id("parent")), ..newest_first(place.workspace) };
    assert_eq!(ids(&all(bench, children.clone()).await), ["child-2", "child-1"]);
    assert_eq!(ids(&all(bench, RunQuery { hidden: Hidden::Exclude, ..children }).await), ["child-1"]);
    let experiment = RunQuery { experiment: Some(elsewhere.id), ..newest_first(place.workspace) };
    assert_eq!(ids(&all(bench, experiment).await), ["other"]);
    assert_eq!(all(bench, newest_first(place.workspace)).await.len(), 4);
}

pub(crate) async fn a_token_of_another_query_is_refused(bench: &Bench) {
    let (place, _) = some_runs(bench).await;
    let query = RunQuery { page: PageRequest::first(3), ..newest_first(place.workspace) };
    let token = bench.store.list_runs(&query).await.expect("a page").token;
    assert!(token.as_deref().is_some_and(|token| token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))));
    let page = PageRequest { top: 3, token };
    // Another page size is another page of the same list.
    let larger = RunQuery { page: PageRequest { top: 5, ..page.clone() }, ..query.clone() };
    assert_eq!(bench.store.list_runs(&larger).await.expect("a page").items.len(), 5);
    let order = OrderBy { field: OrderField::RunId, direction: Direction::Descending };
    let others = [
        RunQuery { order, page: page.clone(), ..query.clone() },
        RunQuery { filter: Some(Filter::parse("Status eq Queued").expect("a filter")), page: page.clone(), ..query.clone() },
        RunQuery { page: PageRequest { token: Some("nonsense".into()), ..page }, ..query },
    ];
    for other in others {
        let error = bench.store.list_runs(&other).await.expect_err("refused");
        assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some("continuationToken")));
    }
}

pub(crate) async fn counts_are_by_state(bench: &Bench) {
    let place = bench.place().await;
    let elsewhere = bench.experiment(place.workspace).await;
    for id in ["a", "b"] {
        bench.store_run(place.run(id)).await;
    }
    let done = bench.store_run(place.run_with("c", |run| run.experiment = elsewhere.id)).await;
    bench.execute(&done, Cause::Completed).await;
    let counts = bench.store.run_counts(place.workspace, None).await.expect("counts");
    assert_eq!(counts, [(RunState::Completed, 1), (RunState::Queued, 2)]);
    let counts = bench.store.run_counts(place.workspace, Some(place.experiment.id)).await.expect("counts");
    assert_eq!(counts, [(RunState::Queued, 2)]);
}
