//! The executor suite: what every executor must do, expanded for each that there is.
//!
//! The agent is stood in for by a shell script that takes the agent's lock, so that these tests are about starting, seeing, stopping and
//! forgetting, and not about what an agent does; `tests/agent` is about that. [`slurm`] and [`kubernetes`] have what is about these alone.

use std::{
    fs,
    future::Future,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use trainyard_core::ids::AttemptId;
use trainyard_engine::{
    agent::folder::AttemptFolder,
    executor::{Executor, Observation, local::LocalExecutor},
};
use trainyard_wire::native::{AGENT_PROTOCOL, AttemptOrder};
use uuid::Uuid;

mod kubernetes;
mod slurm;

/// A place for an executor, and the means to make the same executor again, as a restarted server does.
trait Bench {
    type Under: Executor;
    /// Whether it can be had here; says why if not.
    fn is_there(_test: &str) -> bool {
        true
    }
    fn new() -> Self;
    /// Where it is.
    fn place(&self) -> &Place;
    /// The executor, with nothing remembered.
    fn executor(&self) -> Self::Under;
    /// Whether what an attempt had is left when its agent is gone, so that another agent can go on.
    fn keeps() -> bool {
        true
    }
    /// How many agents were started for the attempt.
    fn starts(&self, attempt: AttemptId) -> usize {
        self.place().starts(attempt)
    }
    /// Waits until the agent holds its lock.
    async fn locked(&self, attempt: AttemptId) {
        self.place().locked(attempt).await;
    }
    /// Ends the agent as a crash would.
    fn kill_agent(&self, attempt: AttemptId) {
        self.place().kill_agent(attempt);
    }
    /// Stops the agent from running, without ending it.
    fn stop_agent(&self, attempt: AttemptId) {
        self.place().stop_agent(attempt);
    }
    /// Lets the agent say that everything is delivered. Where nothing is kept that is its end, too.
    fn deliver(&self, attempt: AttemptId) {
        self.place().deliver(attempt);
    }
    /// Whether this is what is seen of an attempt whose agent was killed.
    fn is_missed(seen: &Observation) -> bool {
        *seen == Observation::NoAgent { starts: 1 }
    }
    /// Whether this is what is seen of an attempt behind a fence.
    fn is_fenced(seen: &Observation) -> bool {
        *seen == Observation::NoAgent { starts: 1 }
    }
}

/// A folder with attempts and a program that stands in for the agent.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        // Called as `agent --attempt-dir DIR`. Without the lock it leaves at once, as the agent does.
        let script = "#!/bin/sh\necho started >>\"$3/agents\"\nexec flock --nonblock \"$3/agent.lock\" sh -c 'echo $$ >\"$0/agent.lock\"; echo $$ >\"$0/pid\"; exec sleep 60' \"$3\"\n";
        write_program(&place.agent(), script);
        place
    }

    fn agent(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("attempts")
    }

    fn read(&self, attempt: AttemptId, name: &str) -> String {
        fs::read_to_string(self.root().join(attempt.to_string()).join(name)).unwrap_or_default()
    }

    fn signal(&self, attempt: AttemptId, signal: rustix::process::Signal) {
        // The stand-in notes its process id an instant after it took the lock, in two steps: the file, then the line.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.read(attempt, "pid").ends_with('\n') {
            assert!(Instant::now() < deadline, "waited too long for the agent's process id");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = self.read(attempt, "pid").trim().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How many agents were started for the attempt.
    fn starts(&self, attempt: AttemptId) -> usize {
        self.read(attempt, "agents").lines().count()
    }

    /// Ends the agent as a crash would.
    fn kill_agent(&self, attempt: AttemptId) {
        self.signal(attempt, rustix::process::Signal::KILL);
    }

    /// Stops the agent from running, without ending it.
    fn stop_agent(&self, attempt: AttemptId) {
        self.signal(attempt, rustix::process::Signal::STOP);
    }

    /// Lets the agent say that everything is delivered.
    fn deliver(&self, attempt: AttemptId) {
        fs::write(self.root().join(attempt.to_string()).join("collected"), "").unwrap();
    }

    /// Waits until the agent holds its lock.
    async fn locked(&self, attempt: AttemptId) {
        let folder = AttemptFolder::new(self.root().join(attempt.to_string()));
        until("the lock", || async { folder.agent_is_alive() }).await;
    }
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

struct LocalBench {
    place: Place,
}

impl Bench for LocalBench {
    type Under = LocalExecutor;

    fn new() -> Self {
        Self { place: Place::new() }
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn executor(&self) -> LocalExecutor {
        LocalExecutor::new(self.place.root(), self.place.agent()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            if let Ok(attempt) = folder.file_name().to_string_lossy().parse()
                && !self.read(attempt, "pid").is_empty()
                && Path::new(&format!("/proc/{}", self.read(attempt, "pid").trim())).exists()
            {
                self.kill_agent(attempt);
            }
        }
    }
}

fn order() -> AttemptOrder {
    AttemptOrder {
        protocol: AGENT_PROTOCOL,
        attempt: Uuid::new_v4(),
        run_id: "r".into(),
        endpoint: "https://127.0.0.1:1".into(),
        ca_pem: String::new(),
        token: "secret-token".into(),
        token_expires_on: 0,
        definition: serde_json::to_value(slurm::definition()).unwrap(),
        snapshot_sha256: None,
        environments: serde_json::Value::Null,
        containers: serde_json::Value::Null,
        data: serde_json::Value::Null,
        archive_limits: serde_json::Value::Null,
        variables: Default::default(),
        grace_seconds: 1,
        started_at: None,
        workspace: None,
        heartbeat_seconds: 10,
        spool_limit_bytes: 1 << 20,
        mpi: None,
        node_key: None,
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !look().await {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is seen of an attempt at a look.
async fn see(executor: &impl Executor, attempt: AttemptId) -> Observation {
    executor.look();
    executor.observe(attempt).await.unwrap()
}

async fn started<B: Bench>() -> (B, B::Under, AttemptOrder, AttemptId) {
    let bench = B::new();
    let executor = bench.executor();
    let order = order();
    let attempt = AttemptId(order.attempt);
    assert_eq!(executor.observe(attempt).await.unwrap(), Observation::Unknown);
    executor.submit(&order).await.unwrap();
    let seen = executor.observe(attempt).await.unwrap();
    assert!(matches!(seen, Observation::Alive | Observation::Pending { .. }), "{seen:?}");
    until("the agent", || async { bench.starts(attempt) == 1 }).await;
    (bench, executor, order, attempt)
}

async fn submitting_twice_starts_one_agent<B: Bench>() {
    let (bench, executor, order, attempt) = started::<B>().await;
    executor.submit(&order).await.unwrap();
    assert_eq!(bench.starts(attempt), 1);
    assert_eq!(executor.leftovers().await.unwrap(), [attempt]);
}

async fn a_new_server_sees_the_agent_of_the_old_one<B: Bench>() {
    let (bench, executor, order, attempt) = started::<B>().await;
    drop(executor);
    let later = bench.executor();
    bench.locked(attempt).await;
    until("the agent to be seen", || async { see(&later, attempt).await == Observation::Alive }).await;
    later.submit(&order).await.unwrap();
    assert_eq!(bench.starts(attempt), 1);
}

async fn a_killed_agent_is_missed_and_can_be_started_again<B: Bench>() {
    let (bench, executor, order, attempt) = started::<B>().await;
    bench.locked(attempt).await;
    bench.kill_agent(attempt);
    until("the loss to be seen", || async { B::is_missed(&see(&executor, attempt).await) }).await;
    if !B::keeps() {
        // What follows is another attempt.
        return;
    }
    executor.submit(&order).await.unwrap();
    until("the second agent", || async { bench.starts(attempt) == 2 }).await;
    assert_eq!(executor.observe(attempt).await.unwrap(), Observation::Alive);
}

async fn what_is_delivered_is_seen_and_cleaned<B: Bench>() {
    let (bench, executor, _, attempt) = started::<B>().await;
    bench.locked(attempt).await;
    bench.deliver(attempt);
    until("the delivery to be seen", || async { see(&executor, attempt).await == Observation::Collected }).await;
    executor.clean(attempt).await.unwrap();
    if B::keeps() {
        assert_eq!(executor.leftovers().await.unwrap(), [attempt], "a living agent's folder stays");
        bench.kill_agent(attempt);
    }
    until("the folder to go", || async {
        executor.clean(attempt).await.unwrap();
        executor.leftovers().await.unwrap().is_empty()
    })
    .await;
    assert_eq!(executor.observe(attempt).await.unwrap(), Observation::Unknown);
}

async fn a_stop_and_a_new_address_reach_a_living_agent<B: Bench>() {
    let (_bench, executor, mut order, attempt) = started::<B>().await;
    executor.stop(attempt, "me", None).await.unwrap();
    executor.stop(attempt, "me", Some("no need")).await.unwrap();
    order.endpoint = "https://127.0.0.1:2".into();
    executor.refresh(&order).await.unwrap();
    assert_eq!(executor.order(attempt).await.unwrap().unwrap().endpoint, "https://127.0.0.1:2");
    assert!(executor.order(AttemptId(Uuid::new_v4())).await.unwrap().is_none());
}

async fn a_fence_ends_a_living_agent_even_a_stopped_one_and_can_be_put_up_twice<B: Bench>() {
    let (bench, executor, _, attempt) = started::<B>().await;
    bench.locked(attempt).await;
    bench.stop_agent(attempt);
    executor.fence(attempt).await.unwrap();
    executor.fence(attempt).await.unwrap();
    until("the agent to be gone", || async { B::is_fenced(&see(&executor, attempt).await) }).await;
    executor.fence(AttemptId(Uuid::new_v4())).await.unwrap();
}

macro_rules! executor_suite {
    ($name:ident, $bench:ty) => {
        mod $name {
            use super::*;

            executor_suite!(@tests $bench: submitting_twice_starts_one_agent, a_new_server_sees_the_agent_of_the_old_one,
                a_killed_agent_is_missed_and_can_be_started_again, what_is_delivered_is_seen_and_cleaned,
                a_stop_and_a_new_address_reach_a_living_agent, a_fence_ends_a_living_agent_even_a_stopped_one_and_can_be_put_up_twice);
        }
    };
    (@tests $bench:ty: $($test:ident),*) => {
        $(
            #[tokio::test]
            async fn $test() {
                if !<$bench>::is_there(stringify!($test)) {
                    return;
                }
                super::$test::<$bench>().await;
            }
        )*
    };
}

executor_suite!(local, LocalBench);
executor_suite!(scripted_slurm, slurm::ScriptedSlurm);
executor_suite!(real_slurm, slurm::RealSlurm);
executor_suite!(kubernetes_double, kubernetes::Double);
executor_suite!(real_kubernetes, kubernetes::real::RealKubernetes);

#[tokio::test]
async fn an_attempts_folder_is_for_its_owner_alone() {
    let (bench, _, _, attempt) = started::<LocalBench>().await;
    let folder = bench.place().root().join(attempt.to_string());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("order.json")), 0o600);
    assert_eq!(fs::read_to_string(folder.join("stop")).ok(), None);
}
