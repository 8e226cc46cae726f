//! The life of an agent, the same for the first one of an attempt and for one that comes after a crash: what is on disk says where to begin.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};
use trainyard_core::{
    Error, Result,
    definition::{Definition, Entry, Framework, History},
    environment::EnvironmentSpec,
    ids::{AttemptId, ComputeName},
    run::{Cause, RetryWish},
};
use trainyard_wire::native::{AGENT_PROTOCOL, AttemptOrder, OLDEST_AGENT_PROTOCOL, Report};

use super::{
    client::{Client, Refusal},
    control::{self, Control, Demand},
    data,
    folder::{AttemptFolder, Started, boot_id},
    meeting::Meeting,
    mpi::IN_SLURM,
    outputs::Outputs,
    prepare::prepare,
    process,
    report::Reporter,
    shell::Door,
    ship::{Pace, Shipper},
    standby,
    supervise::{self, Outcome, Ready},
};
use crate::clock::now_us;

/// Somebody who only looks whether an agent is alive holds the lock for an instant.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// Sentences about one attempt that are sent to the server; the rest is counted.
const MAX_WARNINGS: usize = 50;

/// One attempt, as its agent sees it.
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) folder: AttemptFolder,
    pub(super) order: AttemptOrder,
    pub(super) definition: Definition,
    pub(super) client: Arc<Client>,
    pub(super) control: Arc<Control>,
    pub(super) meeting: Arc<Meeting>,
    pub(super) reporter: Reporter,
    pub(super) pace: watch::Sender<Pace>,
    warnings: Mutex<Vec<String>>,
}

/// Runs the agent of one node of the attempt whose folder is `attempt_dir` to its end. Its log goes to stderr.
///
/// 0: everything is delivered, the attempt was given up, or another agent is at work. 1: this agent could do nothing.
pub fn main(attempt_dir: &Path, node: u32) -> ExitCode {
    // Fails only if the program has a log already, which serves as well.
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).try_init();
    match begin(AttemptFolder::of_node(attempt_dir, node)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = error.chain(), folder = %attempt_dir.display(), "the agent can do nothing");
            ExitCode::FAILURE
        }
    }
}

fn begin(folder: AttemptFolder) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Error::invalid(what).with_source(error)
    };
    if folder.node() > 0 {
        folder.create().map_err(failed("the folder of the node cannot be made"))?;
    }
    let Some(_lock) = folder.lock(LOCK_PATIENCE).map_err(failed("the folder of the attempt cannot be locked"))? else {
        tracing::info!("another agent is at work here");
        return Ok(());
    };
    trainyard_store::fail_point!("agent.locked");
    if folder.is_collected() {
        return Ok(());
    }
    // A new agent delivers everything anyway.
    folder.answer_again().map_err(failed("the folder of the attempt cannot be used"))?;
    let order = folder.read_order().map_err(failed("the order of the attempt cannot be read"))?;
    for path in [folder.logs(), folder.temporary()] {
        fs::create_dir_all(path).map_err(failed("the folder of the attempt cannot be used"))?;
    }
    process::adopt_orphans().map_err(failed("orphans of the code cannot be adopted"))?;
    // Fails only if there is a provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // One thread: the agent waits nearly always. It is the process's first, which lives as long as the process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("no runtime can be made"))?;
    let result = runtime.block_on(live(folder, order));
    // A thread that is stuck on a disk must not keep a finished agent.
    runtime.shutdown_background();
    result
}

async fn live(folder: AttemptFolder, order: AttemptOrder) -> Result<()> {
    tracing::info!(run = order.run_id, attempt = %order.attempt, node = folder.node(), "agent at work");
    let control = Arc::new(Control::new());
    if folder.is_fenced() {
        control.raise(Demand::Abandon);
    }
    let client = Arc::new(Client::new(&order, folder.clone(), Arc::clone(&control))?);
    let mut listeners = JoinSet::new();
    listeners.spawn(control::listen_to_server(Arc::clone(&client), Arc::clone(&control)));
    listeners.spawn(control::watch_notes(folder.clone(), Arc::clone(&control)));
    listeners.spawn(control::watch_signals(Arc::clone(&control)));
    listeners.spawn({
        let client = Arc::clone(&client);
        async move { client.keep_token_fresh().await }
    });
    let (definition, refused) = read_definition(&order);
    let attempt = Attempt {
        id: AttemptId(order.attempt),
        meeting: Meeting::start(&client, &control, (definition.distribution, folder.node())),
        reporter: Reporter::start(Arc::clone(&client), Arc::clone(&control), Duration::from_secs(order.heartbeat_seconds.max(1))),
        pace: watch::Sender::new(Pace::Preparing),
        warnings: Mutex::default(),
        folder,
        order,
        definition,
        client,
        control,
    };
    attempt.live(refused).await;
    Ok(())
}

/// What a node does for its run, with what it needs for that.
enum Part {
    /// It starts code, or the launcher of all.
    Works(Box<Ready>),
    /// It takes the calls of the launcher on the first node.
    Serves(Box<Ready>, Door),
    /// It is there.
    StandsBy,
}

impl Attempt {
    /// From wherever it is to the end. `refused`: why the order can't be executed.
    async fn live(&self, refused: Option<Cause>) {
        let mut shipper = Shipper::new(Arc::clone(&self.client), self.folder.clone(), &self.definition, self.order.spool_limit_bytes);
        let mut outputs = Outputs::new(Arc::clone(&self.client), self.folder.work());
        let collects = self.definition.history.output_collection;
        let (shipping, collecting) = (self.pace.subscribe(), self.pace.subscribe());
        let ship = async move { shipper.follow(shipping).await.map(|()| shipper) };
        let collect = async move {
            if collects {
                outputs.follow(collecting).await?;
            }
            Ok::<_, Refusal>(outputs)
        };
        let execute = async {
            let outcome = self.outcome(refused).await;
            if let Outcome::Ended(cause) = &outcome
                && let Some(cause) = self.conclude(cause).await
            {
                self.reporter.tell(Report::Ended { cause: serde_json::to_value(cause).unwrap_or_default() });
            }
            self.pace.send_replace(Pace::Finish);
            outcome
        };
        let (outcome, ship, collect) = tokio::join!(execute, tokio::spawn(ship), tokio::spawn(collect));
        if !matches!(outcome, Outcome::Ended(_)) {
            return tracing::info!(?outcome, "the agent ends");
        }
        let (Ok(Ok(shipper)), Ok(Ok(outputs))) = (ship, collect) else {
            return tracing::info!("the attempt was given up while its files were collected");
        };
        if let Err(refusal) = self.collect(shipper, outputs).await {
            tracing::warn!(%refusal, "the attempt is not collected");
        }
    }

    /// Tells the other nodes that this one has ended with `cause`. On the first node, once all have: what ended the attempt. `None`: nobody is to say.
    async fn conclude(&self, cause: &Cause) -> Option<Cause> {
        if self.meeting.is_alone() {
            return (self.folder.node() == 0).then(|| cause.clone());
        }
        let record = self.folder.exit_record().ok().flatten();
        let at_us = record.as_ref().map_or_else(now_us, |record| record.ended_us);
        let is_own = record.is_none_or(|record| !record.with_others);
        self.meeting.ended(is_own.then_some((cause, at_us)));
        if self.folder.node() > 0 {
            return None;
        }
        tokio::select! {
            cause = self.meeting.conclusion() => Some(match cause {
                // It is about the job, not about this node.
                Cause::Part { rank: None, cause, .. } if self.folder.verdict().as_ref() == Some(&*cause) => *cause,
                cause => cause,
            }),
            () = self.control.abandoned() => None,
        }
    }

    /// What became of the code: read from the folder, or made to become.
    async fn outcome(&self, refused: Option<Cause>) -> Outcome {
        match self.folder.exit_record() {
            Ok(Some(record)) => {
                self.sweep().await;
                return Outcome::Ended(record.cause);
            }
            Ok(None) => {}
            Err(error) => {
                self.sweep().await;
                return supervise::ended(self, Cause::AgentLost { message: format!("the exit record cannot be read: {error}") }).await;
            }
        }
        if let Some(lost) = self.lost() {
            self.sweep().await;
            return supervise::ended(self, lost).await;
        }
        if let Some(cause) = refused {
            return supervise::ended(self, cause).await;
        }
        let prepared: Result<Part, Cause> = tokio::select! {
            biased;
            demand = self.control.stop_demanded() => {
                // Dropping the preparation ended its programs; what they left is swept.
                let outcome = supervise::stopped_before_start(self, demand).await;
                self.sweep().await;
                return outcome;
            }
            prepared = self.make_ready() => prepared,
        };
        match prepared {
            Ok(Part::StandsBy) => standby::stand_by(self).await,
            Ok(Part::Serves(ready, door)) => standby::serve(self, &ready, door).await,
            Ok(Part::Works(ready)) => {
                trainyard_store::fail_point!("agent.environment_ready");
                supervise::run(self, &ready).await
            }
            Err(cause) => supervise::ended(self, cause).await,
        }
    }

    /// Prepares what this node needs, and waits until every node has what it needs.
    async fn make_ready(&self) -> Result<Part, Cause> {
        if self.folder.node() > 0 && self.definition.distribution.is_launched() {
            // Where a launcher on the first node starts the processes, the others have none of their own.
            if !self.is_called().await {
                self.meeting.ready(&self.folder, None).await;
                return Ok(Part::StandsBy);
            }
            let ready = prepare(self).await?;
            let told = self.folder.meeting().ok().flatten();
            let host = told.as_ref().map_or_else(|| self.meeting.own().1, |told| told.host.clone());
            let door = Door::open(&host, told.and_then(|told| told.ports.first().copied())).await;
            let door = door.map_err(|error| Cause::StartFailed {
                message: format!("the launcher of the run cannot reach this node: {error}"),
                by_definition: false,
            })?;
            self.meeting.ready(&self.folder, Some(door.port())).await;
            return Ok(Part::Serves(Box::new(ready), door));
        }
        let ready = prepare(self).await?;
        self.meeting.ready(&self.folder, None).await;
        Ok(Part::Works(Box::new(ready)))
    }

    /// Whether the launcher on the first node reaches this node through this agent: through nothing else, and it is another machine.
    async fn is_called(&self) -> bool {
        let has_other_way = std::env::var_os(IN_SLURM).is_some() || self.definition.container.is_some();
        !has_other_way && self.meeting.first_host().await != self.meeting.own().1
    }

    /// Whether a former agent started the code and did not live to see its end, or the engine says that there is nothing to start any more.
    fn lost(&self) -> Option<Cause> {
        let lost = |message: &str| Some(Cause::AgentLost { message: message.to_owned() });
        let verdict = self.folder.verdict();
        match self.folder.started() {
            Ok(Some(started)) => Some(unrecorded_end(started, verdict, boot_id().as_deref())),
            Ok(None) if verdict.is_some() => verdict,
            // An agent of this node that had not come to the start has left its place in the meeting.
            Ok(None) if self.order.started_at.is_some() && matches!(self.folder.meeting(), Ok(None)) => {
                lost("the code was started before, and what was known of it on its machine is gone")
            }
            Ok(None) => None,
            Err(_) => lost("its notes about the start of the code cannot be read"),
        }
    }

    async fn sweep(&self) {
        supervise::sweep(self).await;
    }

    /// Delivers logs and outputs, and then says so.
    async fn collect(&self, shipper: Shipper, outputs: Outputs) -> Result<(), Refusal> {
        let mut warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        // Without a start, what is in the folder came with the snapshot.
        let was_started = self.folder.started().is_ok_and(|started| started.is_some());
        if was_started {
            warnings.extend(data::deliver(self).await);
        }
        warnings.extend(shipper.finish().await?);
        trainyard_store::fail_point!("agent.logs_sealed");
        if self.definition.history.output_collection && was_started {
            warnings.extend(outputs.finish().await?);
        }
        trainyard_store::fail_point!("agent.outputs_stored");
        if warnings.len() > MAX_WARNINGS {
            let more = warnings.len() - MAX_WARNINGS;
            warnings.truncate(MAX_WARNINGS);
            warnings.push(format!("… and {more} more warnings of this kind"));
        }
        if self.control.now() == Demand::Abandon {
            return Err(Refusal::Abandoned);
        }
        if self.folder.is_asked_again() {
            // What this agent knows to be delivered, the server may have lost: the next one begins with nothing.
            tracing::info!("the server asks for everything again; the next agent delivers it");
            return Ok(());
        }
        if self.folder.node() == 0 {
            self.meeting_is_over().await?;
            // The answer to this is that the attempt is not wanted any more: it is over.
            self.reporter.deliver(Report::Collected { warnings }).await;
        } else {
            for message in warnings {
                self.reporter.deliver(Report::Warning { message }).await;
            }
            self.until_known(self.meeting.collected()).await?;
        }
        trainyard_store::fail_point!("agent.collected_reported");
        self.folder.mark_collected()?;
        trainyard_store::fail_point!("agent.collected_noted");
        tracing::info!("everything is delivered");
        Ok(())
    }

    /// The attempt is not over before the other nodes have delivered everything, too.
    async fn meeting_is_over(&self) -> Result<(), Refusal> {
        if self.meeting.is_alone() {
            return Ok(());
        }
        self.until_known(self.meeting.others_collected()).await
    }

    async fn until_known(&self, known: impl Future<Output = ()>) -> Result<(), Refusal> {
        tokio::select! {
            () = known => Ok(()),
            () = self.control.abandoned() => Err(Refusal::Abandoned),
        }
    }

    /// Says something about the run to its owner: at once, and again at the end should the server have missed it.
    pub(super) fn warn(&self, message: String) {
        tracing::warn!(message, "warning for the run");
        self.reporter.tell(Report::Warning { message: message.clone() });
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }

    /// Time between TERM and KILL.
    pub(super) fn grace(&self) -> Duration {
        Duration::from_secs(self.order.grace_seconds)
    }
}

/// What became of code that was started and whose end nobody has recorded. `verdict`: what the engine says that it ran on, if it does;
/// `boot_id`: which life of the machine this is.
fn unrecorded_end(started: Started, verdict: Option<Cause>, boot_id: Option<&str>) -> Cause {
    match (started.stopping.clone(), verdict) {
        // The agent knew that it was to end, the engine knows why.
        (Some(decided), Some(verdict)) if decided.wants_explanation() => return verdict,
        (Some(decided), _) => return decided,
        (None, Some(verdict)) => return verdict,
        (None, None) => {}
    }
    if started.is_of_another_boot(boot_id) {
        return Cause::NodeLost { message: "the machine was restarted while the code ran".into() };
    }
    Cause::AgentLost { message: "it was killed while the code ran".into() }
}

/// The definition in the order. If this agent does not understand it, one that collects the usual folders, and why nothing is run.
fn read_definition(order: &AttemptOrder) -> (Definition, Option<Cause>) {
    let nothing = Definition {
        entry: Entry::Command { words: Vec::new() },
        arguments: Vec::new(),
        target: ComputeName::new("unknown").expect("letters only"),
        framework: Framework::Python,
        environment: EnvironmentSpec::UserManaged { interpreter_path: String::new() },
        environment_variables: BTreeMap::new(),
        max_run_duration_seconds: None,
        priority: 0,
        history: History::default(),
        container: None,
        retries: RetryWish::default(),
        slurm: Default::default(),
        kubernetes: Default::default(),
        distribution: Default::default(),
        data: Default::default(),
    };
    // Another try may find a server and an agent that fit.
    let refuse = |message: String| (nothing.clone(), Some(Cause::StartFailed { message, by_definition: false }));
    if !(OLDEST_AGENT_PROTOCOL..=AGENT_PROTOCOL).contains(&order.protocol) {
        return refuse(format!(
            "the server speaks version {} of the agent's protocol, this agent versions {OLDEST_AGENT_PROTOCOL} to {AGENT_PROTOCOL}; do both come from the same installation?",
            order.protocol
        ));
    }
    match serde_json::from_value(order.definition.clone()) {
        Ok(definition) => (definition, None),
        Err(error) => refuse(format!("the agent does not understand the definition in its order: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unrecorded_end_is_what_was_decided_or_the_machines_or_the_agents() {
        let lost = |stopping: Option<Cause>, noted: Option<&str>, now: Option<&str>| {
            let started = Started { started_us: 1, main: None, more: Vec::new(), stopping, boot_id: noted.map(str::to_owned) };
            unrecorded_end(started, None, now).label()
        };
        let limit = Cause::TimeLimit { limit_seconds: 5, of: None };
        assert_eq!(lost(Some(limit), Some("a"), Some("b")), "time_limit", "it was being stopped already");
        assert_eq!(lost(None, Some("a"), Some("b")), "node_lost");
        assert_eq!(lost(None, Some("a"), Some("a")), "agent_lost");
        for (noted, now) in [(None, Some("b")), (Some("a"), None), (None, None)] {
            assert_eq!(lost(None, noted, now), "agent_lost", "a restart is not guessed");
        }
    }

    #[test]
    fn what_the_engine_says_explains_an_end_that_nobody_decided_here() {
        let ended = |stopping: Option<Cause>| {
            let started = Started { started_us: 1, main: None, more: Vec::new(), stopping, boot_id: Some("a".into()) };
            unrecorded_end(started, Some(Cause::TimeLimit { limit_seconds: 60, of: Some("Slurm job 17".into()) }), Some("b")).label()
        };
        assert_eq!(ended(None), "time_limit", "not that the machine is another one");
        assert_eq!(ended(Some(Cause::Preempted { message: "told to end".into() })), "time_limit");
        assert_eq!(ended(Some(Cause::Cancelled { by: None, why: None })), "cancelled", "it was being cancelled already");
    }
}
