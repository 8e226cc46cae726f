//! One round: the storm and the stream, then everything healthy, quiet, and every promise checked through the API and in the store.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use trainyard::client::Client;
use trainyard_store::{
    check::{Check, Depth, Finding, Mode},
    progress::Silent,
};

use crate::{
    judge::{Broken, Outside, Violation, judge},
    ledger::{Ledger, Record},
    observe::{self, Seen},
    plan::RoundPlan,
    processes,
    storm::{SharedDatabase, Storm},
    stream,
    world::World,
};

/// How long runs may take to end once everything is healthy.
const QUIET_PATIENCE: Duration = Duration::from_secs(90);

/// How long agents may take to end once their runs have ended, and folders to be swept after a start.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(30);

/// What came of a round.
pub(crate) struct Outcome {
    pub(crate) record: Record,
    pub(crate) seen: BTreeMap<String, Seen>,
    pub(crate) lines: usize,
    pub(crate) violations: Vec<Violation>,
}

/// Plays a round in `world`. An error means that the harness or its surroundings failed, not the server.
pub(crate) async fn play(world: &mut World, plan: &RoundPlan, database: SharedDatabase) -> Result<Outcome> {
    let mut violations = Vec::new();
    // The first start makes the data directory, so that there is a client file.
    let client = Arc::new(world.start_healthy().await.context("the healthy start before the round")?);
    client.token().await?;
    world.server.kill()?;

    let ledger = Arc::new(Ledger::default());
    let clients = {
        let (client, plan, root, ledger) = (Arc::clone(&client), plan.clone(), world.root().to_owned(), Arc::clone(&ledger));
        tokio::spawn(async move { stream::run(client, &plan, &root, ledger).await })
    };
    Storm::new(world, plan, &ledger, database).run().await?;

    world.server.kill()?;
    world.start_healthy().await.context("the healthy start after the storm")?;
    if let Err(error) = clients.await? {
        violations.push(about(Broken::Lost, "a client", "an answer to every request", format!("{error:#}")));
    }
    violations.extend(quiet(world, &client).await?);
    for (name, action, place) in world.fired()? {
        ledger.note(|record| record.take_fired(&name, &action, &place));
    }
    let record = ledger.read();
    violations.extend(record.refused.iter().map(|why| about(Broken::Misbehaved, "a client", "no refusal", why)));
    violations.extend(record.ended_by_itself.iter().map(|how| about(Broken::Misbehaved, "the server", "it runs until it is killed", how)));

    let seen = observe::runs(&client, &plan.runs).await?;
    let outside = Outside { lines: world.lines()?.into_iter().map(|(run, attempt, _)| (run, attempt)).collect(), said: world.said()? };
    violations.extend(plan.runs.iter().flat_map(|run| judge(run, seen.get(&run.id), &outside, &record)));
    for (run, attempt) in outside.lines.iter().filter(|(run, _)| !plan.runs.iter().any(|planned| planned.id == *run)) {
        violations.push(about(Broken::Twice, run, "no code of former rounds runs", format!("a line of attempt {attempt}")));
    }
    violations.extend(clean(world).await?);
    violations.extend(stored(world).await?);
    world.server.kill()?;
    world.forget()?;
    Ok(Outcome { record, seen, lines: outside.lines.len(), violations })
}

fn about(broken: Broken, what: &str, expected: &str, found: impl Into<String>) -> Violation {
    Violation { broken, about: what.to_owned(), expected: expected.to_owned(), found: found.into() }
}

/// Waits until no run of the target waits or executes, and no agent is left.
async fn quiet(world: &World, client: &Client) -> Result<Option<Violation>> {
    let deadline = Instant::now() + QUIET_PATIENCE;
    // Twice in a row: a run that stops waiting between the two counts of one answer is in neither.
    let mut quiet_looks = 0;
    while quiet_looks < 2 {
        let (queued, busy) = observe::load(client).await?;
        quiet_looks = if (queued, busy) == (0, 0) { quiet_looks + 1 } else { 0 };
        if Instant::now() > deadline {
            let found = format!("{queued} wait and {busy} execute after {} s", QUIET_PATIENCE.as_secs());
            return Ok(Some(about(Broken::Lost, "the runs of the round", "all end once everything is healthy", found)));
        }
        tokio::time::sleep(LOOK).await;
    }
    let deadline = Instant::now() + END_PATIENCE;
    while let Some(agent) = processes::agents(&world.attempts()).first() {
        if Instant::now() > deadline {
            let found = format!("process {} of attempt {}", agent.pid, agent.attempt);
            return Ok(Some(about(Broken::LeftOver, "an agent", "it ends once its run has", found)));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(None)
}

/// Stops the server as an operator would; then nothing may be left running, and after the next start no folder and no staged file.
async fn clean(world: &mut World) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    let (took, status) = world.server.stop().await?;
    if !status.success() {
        violations.push(about(Broken::Misbehaved, "the server", "it ends with 0 after TERM", format!("{status} after {took:?}")));
    }
    violations.extend(
        processes::left_running(world.root())
            .into_iter()
            .map(|(_, process)| about(Broken::LeftOver, "a process", "none of the world runs", process)),
    );
    world.start_healthy().await.context("the healthy start after the round")?;
    let deadline = Instant::now() + END_PATIENCE;
    for folder in ["attempts", "staging", "live"] {
        while let [first, ..] = world.files(folder).as_slice() {
            if Instant::now() > deadline {
                violations.push(about(Broken::LeftOver, folder, "no file of what has ended", first.display().to_string()));
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(violations)
}

/// What `trainyard fsck --deep` would say, read beside the server: the rows agree with each other, and every blob that they name is there and has
/// its hash.
async fn stored(world: &World) -> Result<Vec<Violation>> {
    let store = world.store().await?;
    let check = Check { depth: Depth::Contents, mode: Mode::Look, now: SystemTime::now(), progress: Arc::new(Silent) };
    let findings = store.check(&check).await;
    store.close().await;
    let violation = |finding: Finding| about(Broken::History, &finding.object, finding.invariant, finding.sentence);
    Ok(findings?.into_iter().map(violation).collect())
}
