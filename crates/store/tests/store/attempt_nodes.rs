//! What the nodes of an attempt tell each other.

use trainyard_core::{
    ErrorKind,
    ids::AttemptId,
    run::{Cause, RunEvent},
};
use trainyard_store::attempt_nodes::{AttemptNode, NodePhase};
use uuid::Uuid;

use crate::{
    database::Bench,
    fixtures::{NO_RETRY, NOW},
};

fn node(node: u32, phase: NodePhase) -> AttemptNode {
    AttemptNode { node, host: format!("10.0.0.{node}"), ports: vec![6105], phase, cause: None, ended_us: None }
}

pub(crate) async fn every_node_learns_what_the_others_said(bench: &Bench) {
    let run = bench.store_run(bench.place().await.run("gang")).await;
    let attempt = AttemptId(Uuid::new_v4());
    bench.change(&run, RunEvent::Admitted { attempt }, NOW).await;
    let key = (run.workspace, &run.id, attempt);
    bench.store.tell_node(key, node(1, NodePhase::Ready)).await.expect("told");
    let all = bench.store.tell_node(key, node(0, NodePhase::Preparing)).await.expect("told");
    assert_eq!(all, [node(0, NodePhase::Preparing), node(1, NodePhase::Ready)]);
    let again = bench.store.tell_node(key, node(1, NodePhase::Ready)).await.expect("told again");
    assert_eq!((again, bench.store.attempt_nodes(attempt).await.expect("nodes")), (all.clone(), all));
}

pub(crate) async fn a_node_never_goes_back_and_its_end_stays(bench: &Bench) {
    let run = bench.store_run(bench.place().await.run("gang")).await;
    let attempt = AttemptId(Uuid::new_v4());
    bench.change(&run, RunEvent::Admitted { attempt }, NOW).await;
    let key = (run.workspace, &run.id, attempt);
    let ended = |code, at| AttemptNode { cause: Some(Cause::ExitCode { code }), ended_us: Some(at), ..node(1, NodePhase::Ended) };
    for told in
        [node(1, NodePhase::Ready), AttemptNode { host: "elsewhere".into(), ..ended(3, NOW) }, ended(4, NOW + 1), node(1, NodePhase::Ready)]
    {
        bench.store.tell_node(key, told).await.expect("told");
    }
    assert_eq!(bench.store.attempt_nodes(attempt).await.expect("nodes"), [ended(3, NOW)], "where it is was told to the others already");
    bench.store.tell_node(key, node(1, NodePhase::Collected)).await.expect("told");
    let collected = AttemptNode { phase: NodePhase::Collected, ..ended(3, NOW) };
    assert_eq!(bench.store.attempt_nodes(attempt).await.expect("nodes"), [collected]);
}

pub(crate) async fn a_node_of_an_attempt_that_was_given_up_writes_nothing(bench: &Bench) {
    let run = bench.store_run(bench.place().await.run("gang")).await;
    let attempt = AttemptId(Uuid::new_v4());
    bench.change(&run, RunEvent::Admitted { attempt }, NOW).await;
    bench.change(&run, RunEvent::Ended { attempt, cause: Cause::NodeLost { message: "gone".into() } }, NOW).await;
    bench.change(&run, RunEvent::Finalized { attempt, policy: NO_RETRY }, NOW).await;
    let refused = bench.store.tell_node((run.workspace, &run.id, AttemptId(Uuid::new_v4())), node(0, NodePhase::Ready)).await;
    assert_eq!(refused.expect_err("it is fenced").kind(), ErrorKind::Forbidden);
}
