//! Slurm for the suite: a real cluster where `scripts/slurm` has started one, and a scripted one that answers what a real one rarely does.
//!
//! The scripted commands print what those of 22.05 and 24.11 print, and start the job's script as a process. A test changes a job by its files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;
use trainyard_core::{
    definition::Definition,
    ids::{AttemptId, ComputeName},
    run::Cause,
};
use trainyard_engine::{
    agent::folder::AttemptFolder,
    executor::{
        Executor, Observation,
        slurm::{SlurmExecutor, SlurmSettings, SlurmTarget},
    },
};

use super::{Bench, Place, order, see, until, write_program};

const COMMANDS: &str = r#"#!/bin/sh
dir=$(dirname "$0")/..
tool=$(basename "$0")
echo "$tool $*" >>"$dir/calls"
if [ -e "$dir/down" ]; then
    echo "$tool: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
each_job() { for a; do case $a in -*) ;; *) [ -d "$dir/jobs/$a" ] && echo "$a" ;; esac; done; }
case $tool in
sbatch)
    if [ -e "$dir/refuse" ]; then cat "$dir/refuse" >&2; exit 1; fi
    if [ -e "$dir/slow" ]; then sleep 20; fi
    for a; do
        case $a in
        --test-only) exit 0 ;;
        --job-name=*) name=${a#*=} ;;
        --output=*) output=${a#*=} ;;
        esac
        script=$a
    done
    id=1
    until mkdir "$dir/jobs/$id" 2>/dev/null; do id=$((id + 1)); done
    job=$dir/jobs/$id
    echo "${name}" >"$job/name"
    if [ -e "$dir/hold" ]; then
        echo Priority >"$job/reason"
        echo PENDING >"$job/state"
    else
        echo RUNNING >"$job/state"
        SLURM_JOB_ID=$id setsid sh -c 'echo $$ >"$1/pid"; sh "$2"; rc=$?
            [ "$(cat "$1/state")" = RUNNING ] && { [ $rc = 0 ] && echo COMPLETED || echo FAILED; } >"$1/state.new" && mv "$1/state.new" "$1/state"' \
            sh "$job" "$script" >>"$output" 2>&1 </dev/null &
    fi
    if [ -e "$dir/lose" ]; then
        echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
        exit 1
    fi
    echo "$id"
    ;;
squeue)
    case "$*" in *--states=PENDING*) cat "$dir/queue" 2>/dev/null; exit 0 ;; esac
    for job in "$dir"/jobs/*; do
        [ -e "$job/state" ] || continue
        get() { cat "$job/$1" 2>/dev/null || echo "$2"; }
        printf '%-20s%-64s%-24s%-120s%-20s%-20s%-24s%-64s%-64s%-20s%-64s\n' "$(basename "$job")" "$(get name -)" "$(get state -)" "$(get reason None)" \
            "$(get limit UNLIMITED)" "$(get left UNLIMITED)" "$(get preempt N/A)" "$(get node n1)" cpu 100 "$(get user me)"
    done
    ;;
sacct)
    if [ -e "$dir/accounting" ]; then cat "$dir/accounting"; exit 0; fi
    echo "Slurm accounting storage is disabled" >&2
    exit 1
    ;;
scancel)
    for id in $(each_job "$@"); do
        job=$dir/jobs/$id
        case "$*" in
        *--state=PENDING*) [ "$(cat "$job/state")" = PENDING ] || continue ;;
        *--batch*) kill -TERM "$(cat "$job/pid")"; continue ;;
        esac
        case "$(cat "$job/state")" in RUNNING | PENDING | REQUEUED) echo CANCELLED >"$job/state" ;; esac
        [ -e "$job/pid" ] && kill -KILL "-$(cat "$job/pid")" 2>/dev/null
    done
    ;;
esac
exit 0
"#;

/// A Slurm made of shell scripts.
pub(super) struct ScriptedSlurm {
    place: Place,
}

/// The cluster of `scripts/slurm`.
pub(super) struct RealSlurm {
    place: Place,
    bin: PathBuf,
}

fn executor(place: &Place, bin: &Path) -> SlurmExecutor {
    let settings = SlurmSettings { shared_dir: place.dir.path().to_owned(), slurm_bin: Some(bin.to_owned()), ssh: None };
    let targets = BTreeMap::from([(ComputeName::new("cpu-cluster").unwrap(), SlurmTarget::default())]);
    SlurmExecutor::new(&settings, targets, place.agent()).unwrap()
}

impl Bench for ScriptedSlurm {
    type Under = SlurmExecutor;

    fn new() -> Self {
        let slurm = Self { place: Place::new() };
        let bin = slurm.path("commands");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(slurm.path("jobs")).unwrap();
        write_program(&bin.join("slurm"), COMMANDS);
        for tool in ["sbatch", "squeue", "sacct", "scancel"] {
            symlink("slurm", bin.join(tool)).unwrap();
        }
        slurm
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn executor(&self) -> SlurmExecutor {
        executor(&self.place, &self.path("commands"))
    }
}

impl Bench for RealSlurm {
    type Under = SlurmExecutor;

    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn is_there(test: &str) -> bool {
        let there = std::env::var_os("TRAINYARD_TEST_SLURM").is_some();
        if !there {
            eprintln!("SKIPPED {test}: TRAINYARD_TEST_SLURM is not set; scripts/slurm starts a cluster, and scripts/test sets it");
        }
        there
    }

    fn new() -> Self {
        let folder = PathBuf::from(std::env::var_os("TRAINYARD_TEST_SLURM").unwrap());
        Self { place: Place::new(), bin: folder.join("bin") }
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn executor(&self) -> SlurmExecutor {
        executor(&self.place, &self.bin)
    }
}

impl Drop for RealSlurm {
    fn drop(&mut self) {
        for folder in fs::read_dir(self.place.root()).into_iter().flatten().flatten() {
            let name = format!("--jobname=trainyard-{}", folder.file_name().to_string_lossy());
            for how in [&["--signal=KILL", &name] as &[&str], &[&name]] {
                Command::new(self.bin.join("scancel")).args(how).output().unwrap();
            }
        }
    }
}

impl ScriptedSlurm {
    fn path(&self, name: &str) -> PathBuf {
        self.place.dir.path().join(name)
    }

    /// Switches a behaviour of the commands on.
    fn switch(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn switch_off(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Changes what `squeue` says of job 1.
    fn job(&self, field: &str, text: &str) {
        fs::write(self.path("jobs/1").join(field), text).unwrap();
    }

    /// Lets Slurm forget job 1.
    fn forget_job(&self) {
        fs::rename(self.path("jobs/1"), self.path("forgotten")).unwrap();
    }

    fn jobs(&self) -> usize {
        fs::read_dir(self.path("jobs")).unwrap().count()
    }

    fn calls(&self, tool: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(tool)).map(str::to_owned).collect()
    }

    fn folder(&self, attempt: AttemptId) -> AttemptFolder {
        AttemptFolder::new(self.place.root().join(attempt.to_string()))
    }
}

pub(super) fn definition() -> Definition {
    serde_json::from_value(json!({
        "entry": { "script": { "path": "main.py" } }, "arguments": [], "target": "cpu-cluster", "framework": "Python",
        "environment": { "user_managed": { "interpreter_path": "python3" } }, "environment_variables": {}, "max_run_duration_seconds": null, "priority": 0,
        "history": { "output_collection": true, "directories_to_watch": [] },
    }))
    .unwrap()
}

/// An attempt whose job has this state from the beginning: waiting, or with an agent.
async fn submitted(behaviour: Option<&str>) -> (ScriptedSlurm, SlurmExecutor, AttemptId) {
    let slurm = ScriptedSlurm::new();
    if let Some(behaviour) = behaviour {
        slurm.switch(behaviour, "");
    }
    let (executor, order) = (slurm.executor(), order());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    if behaviour.is_none() {
        slurm.place.locked(attempt).await;
    }
    (slurm, executor, attempt)
}

async fn until_seen(executor: &SlurmExecutor, attempt: AttemptId, wanted: impl Fn(&Observation) -> bool) -> Observation {
    let last = std::cell::RefCell::new(None);
    until("what is seen", || async {
        let seen = see(executor, attempt).await;
        let found = wanted(&seen);
        last.replace(Some(seen));
        found
    })
    .await;
    last.into_inner().unwrap()
}

async fn until_waits(executor: &SlurmExecutor, attempt: AttemptId, part: &str) {
    until_seen(executor, attempt, |seen| matches!(seen, Observation::Pending { why } if why.message.contains(part))).await;
}

#[tokio::test]
async fn a_waiting_job_says_how_many_are_ahead_of_it() {
    let (slurm, executor, attempt) = submitted(Some("hold")).await;
    let line = |priority: u32, id: u32| format!("{:<64}{priority:<20}{id:<20}\n", "cpu");
    slurm.switch("queue", &[line(100, 1), line(100, 12), line(101, 7), line(500, 9), line(7, 3)].concat());
    until_waits(&executor, attempt, "2 jobs ahead in partition cpu").await;
    slurm.job("reason", "QOSMaxJobsPerUserLimit");
    until_waits(&executor, attempt, "QOSMaxJobsPerUserLimit").await;
}

#[tokio::test]
async fn an_answer_that_got_lost_is_not_a_second_job() {
    let slurm = ScriptedSlurm::new();
    slurm.switch("hold", "");
    slurm.switch("lose", "");
    let (executor, order) = (slurm.executor(), order());
    let attempt = AttemptId(order.attempt);
    executor.submit(&order).await.unwrap();
    until_waits(&executor, attempt, "Slurm job 1").await;
    executor.submit(&order).await.unwrap();
    assert_eq!(slurm.jobs(), 1);
    assert_eq!(slurm.calls("sbatch").len(), 1);
}

#[tokio::test]
async fn a_server_that_died_between_intent_and_answer_finds_the_job_or_submits_it() {
    for existed in [true, false] {
        let slurm = ScriptedSlurm::new();
        let order = order();
        let attempt = AttemptId(order.attempt);
        let folder = slurm.folder(attempt);
        folder.create().unwrap();
        folder.write_order(&order).unwrap();
        fs::write(folder.path().join("slurm.intent"), "").unwrap();
        if existed {
            fs::create_dir(slurm.path("jobs/1")).unwrap();
            slurm.job("name", &format!("trainyard-{attempt}"));
            slurm.job("state", "PENDING");
        }
        let executor = slurm.executor();
        let seen = until_seen(&executor, attempt, |seen| match seen {
            Observation::Pending { why } => existed && why.message.contains("Slurm job 1"),
            seen => *seen == Observation::NoAgent { starts: 0 },
        })
        .await;
        assert_eq!(matches!(seen, Observation::Pending { .. }), existed, "{seen:?}");
        executor.submit(&order).await.unwrap();
        until("the job", || async { slurm.jobs() == 1 }).await;
        assert_eq!(slurm.calls("sbatch").len(), usize::from(!existed));
    }
}

#[tokio::test]
async fn a_controller_that_is_down_is_no_verdict() {
    let (slurm, executor, attempt) = submitted(None).await;
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    slurm.switch("down", "");
    let asked = slurm.calls("squeue").len();
    until("some vain questions", || async {
        assert_eq!(see(&executor, attempt).await, Observation::Alive);
        slurm.calls("squeue").len() > asked + 2
    })
    .await;
    // One that could not be submitted waits, and is when the controller is back.
    let late = order();
    executor.submit(&late).await.unwrap();
    until_waits(&executor, AttemptId(late.attempt), "Unable to contact slurm controller").await;
    slurm.switch_off("down");
    until_seen(&executor, AttemptId(late.attempt), |seen| matches!(seen, Observation::NoAgent { .. })).await;
    executor.submit(&late).await.unwrap();
    slurm.place.locked(AttemptId(late.attempt)).await;
}

#[tokio::test]
async fn slurm_is_asked_once_a_second_however_many_attempts_and_looks_there_are() {
    let (slurm, executor, attempt) = submitted(Some("hold")).await;
    for _ in 0..20 {
        executor.submit(&order()).await.unwrap();
    }
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        see(&executor, attempt).await;
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let calls = slurm.calls("squeue").len();
    assert!((2..=6).contains(&calls), "{calls} calls of squeue in 4 s");
    assert!(slurm.calls("sacct").is_empty());
}

/// What is seen when a job with an agent has this state, with what else `squeue` says of it.
async fn ended(state: &str, more: &[(&str, &str)]) -> (Observation, Option<Cause>) {
    let (slurm, executor, attempt) = submitted(None).await;
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    for (field, text) in more {
        slurm.job(field, text);
    }
    slurm.job("state", state);
    slurm.place.kill_agent(attempt);
    let seen = until_seen(&executor, attempt, |seen| *seen != Observation::Alive).await;
    (seen, slurm.folder(attempt).verdict())
}

#[tokio::test]
async fn every_end_is_a_verdict_for_the_agent_that_closes_the_books() {
    let cases = [
        ("TIMEOUT", "time_limit", "90 s"),
        ("OUT_OF_MEMORY", "out_of_memory", "more memory"),
        ("PREEMPTED", "preempted", "make room"),
        ("DEADLINE", "cancelled", "deadline"),
        ("FAILED", "agent_lost", "FAILED (RaisedSignal:9(Killed))"),
        ("COMPLETED", "agent_lost", "before everything was delivered"),
    ];
    for (state, label, words) in cases {
        let (seen, verdict) = ended(state, &[("limit", "1:30"), ("reason", "RaisedSignal:9(Killed)")]).await;
        let verdict = verdict.unwrap_or_else(|| panic!("{state}: {seen:?}"));
        assert_eq!((seen, verdict.label()), (Observation::NoAgent { starts: 1 }, label), "{state}");
        assert!(verdict.sentence().contains(words), "{state}: {}", verdict.sentence());
    }
}

#[tokio::test]
async fn a_node_that_is_given_up_may_go_on_and_is_lost() {
    let (seen, verdict) = ended("NODE_FAIL", &[]).await;
    assert!(matches!(&seen, Observation::Lost { cause: Cause::NodeLost { message } } if message.contains("NODE_FAIL")), "{seen:?}");
    assert_eq!(verdict, None, "nothing is started on this machine beside it");
}

#[tokio::test]
async fn what_ended_before_its_agent_was_up_is_over() {
    for (state, label) in [("BOOT_FAIL", "node_lost"), ("FAILED", "start_failed"), ("CANCELLED", "cancelled"), ("DEADLINE", "cancelled")] {
        let (slurm, executor, attempt) = submitted(Some("hold")).await;
        until_waits(&executor, attempt, "Slurm job 1").await;
        fs::write(slurm.folder(attempt).path().join("slurm.log"), "slurmstepd: error: execve(): no such file\n").unwrap();
        slurm.job("state", state);
        let Observation::Over { cause } = until_seen(&executor, attempt, |seen| matches!(seen, Observation::Over { .. })).await else {
            unreachable!("that was waited for")
        };
        assert_eq!(cause.label(), label, "{state}");
        assert!(state != "FAILED" || cause.sentence().contains("execve(): no such file"), "{}", cause.sentence());
    }
}

#[tokio::test]
async fn a_job_that_slurm_puts_back_does_not_start_its_code_again() {
    let (slurm, executor, attempt) = submitted(None).await;
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    fs::write(slurm.folder(attempt).path().join("started.json"), "{\"started_us\":1}").unwrap();
    slurm.place.kill_agent(attempt);
    slurm.job("state", "PENDING");
    slurm.job("reason", "BeginTime");
    until_seen(&executor, attempt, |seen| matches!(seen, Observation::NoAgent { .. })).await;
    assert_eq!(slurm.folder(attempt).verdict().unwrap().label(), "preempted");
    assert!(slurm.calls("scancel").iter().any(|call| call.ends_with(" 1")), "it was taken out of the queue");
}

#[tokio::test]
async fn a_look_from_before_the_job_began_does_not_take_it_for_one_that_was_put_back() {
    let (slurm, executor, attempt) = submitted(Some("hold")).await;
    until_waits(&executor, attempt, "Slurm job 1").await;
    let folder = slurm.folder(attempt);
    fs::write(folder.path().join("slurm.claim"), "1").unwrap();
    fs::write(folder.path().join("started.json"), "{\"started_us\":1}").unwrap();
    assert_eq!(executor.observe(attempt).await.unwrap(), Observation::Alive);
    assert_eq!(folder.verdict(), None);
}

#[tokio::test]
async fn accounting_is_asked_for_what_slurm_has_forgotten_in_the_words_of_each_version() {
    for (state, label) in [("CANCELLED by 1000", "cancelled"), ("TIMEOUT", "time_limit"), ("OUT_OF_MEMORY", "out_of_memory")] {
        let (slurm, executor, attempt) = submitted(None).await;
        until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
        slurm.place.kill_agent(attempt);
        // First a row that is behind, as it is for some seconds.
        slurm.switch("accounting", &format!("1|trainyard-{attempt}|RUNNING|0:0|00:01:30|n1|cpu|me\n"));
        slurm.forget_job();
        until("the first question", || async {
            assert_eq!(see(&executor, attempt).await, Observation::Alive);
            !slurm.calls("sacct").is_empty()
        })
        .await;
        slurm.switch("accounting", &format!("1|trainyard-{attempt}|{state}|0:0|00:01:30|n1|cpu|me\n"));
        until_seen(&executor, attempt, |seen| *seen == Observation::NoAgent { starts: 1 }).await;
        let verdict = slurm.folder(attempt).verdict().unwrap();
        assert_eq!(verdict.label(), label);
        assert!(label != "cancelled" || verdict.sentence().contains("uid 1000 (scancel)"), "{}", verdict.sentence());
    }
}

#[tokio::test]
async fn without_accounting_a_job_that_slurm_has_forgotten_is_lost_after_a_while() {
    let (slurm, executor, attempt) = submitted(None).await;
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    slurm.place.kill_agent(attempt);
    slurm.forget_job();
    until_seen(&executor, attempt, |seen| *seen == Observation::NoAgent { starts: 1 }).await;
    assert!(slurm.folder(attempt).verdict().unwrap().sentence().contains("does not know job 1 any more"));
    assert_eq!(slurm.calls("sacct").len(), 1, "who said that there is no accounting is not asked again");
}

#[tokio::test]
async fn a_cancel_takes_a_waiting_job_out_of_the_queue() {
    let (slurm, executor, attempt) = submitted(Some("hold")).await;
    until_waits(&executor, attempt, "Slurm job 1").await;
    executor.stop(attempt, "ada", Some("no need")).await.unwrap();
    let seen = until_seen(&executor, attempt, |seen| matches!(seen, Observation::Over { .. })).await;
    assert_eq!(seen, Observation::Over { cause: Cause::Cancelled { by: Some("ada".into()), why: Some("no need".into()) } });
    assert!(slurm.calls("scancel").iter().all(|call| call.contains("--state=PENDING")), "only while it waits");
    executor.clean(attempt).await.unwrap();
    assert!(executor.leftovers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_that_has_delivered_everything_is_left_to_end_by_itself() {
    let (slurm, executor, attempt) = submitted(None).await;
    until_seen(&executor, attempt, |seen| *seen == Observation::Alive).await;
    slurm.place.deliver(attempt);
    let asked = slurm.calls("squeue").len();
    until("some looks", || async {
        executor.clean(attempt).await.unwrap();
        slurm.calls("squeue").len() > asked + 2
    })
    .await;
    assert!(slurm.calls("scancel").is_empty(), "{:?}", slurm.calls("scancel"));
    slurm.place.kill_agent(attempt);
}

#[tokio::test]
async fn a_refusal_is_the_end_and_a_limit_is_waited_for() {
    let slurm = ScriptedSlurm::new();
    let executor = slurm.executor();
    slurm.switch("refuse", "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n");
    let refused = order();
    executor.submit(&refused).await.unwrap();
    let seen = until_seen(&executor, AttemptId(refused.attempt), |seen| matches!(seen, Observation::Over { .. })).await;
    assert!(
        matches!(&seen, Observation::Over { cause: Cause::StartFailed { message, by_definition: true } } if message.contains("Invalid account")),
        "{seen:?}"
    );
    slurm.switch(
        "refuse",
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n",
    );
    let limited = order();
    executor.submit(&limited).await.unwrap();
    until_waits(&executor, AttemptId(limited.attempt), "Job violates accounting/QOS policy").await;
    slurm.switch_off("refuse");
    until_seen(&executor, AttemptId(limited.attempt), |seen| matches!(seen, Observation::NoAgent { .. })).await;
    executor.submit(&limited).await.unwrap();
    slurm.place.locked(AttemptId(limited.attempt)).await;
}

#[tokio::test]
async fn what_slurm_would_refuse_is_told_before_and_asked_once() {
    let slurm = ScriptedSlurm::new();
    let executor = slurm.executor();
    let asked = || slurm.calls("sbatch --test-only").len();
    let mut definition = definition();
    for _ in 0..50 {
        assert_eq!(executor.check(&definition).await.unwrap(), None);
    }
    assert_eq!(asked(), 1);
    slurm.switch("refuse", "allocation failure: Invalid qos specification\n");
    definition.slurm.qos = Some("nope".into());
    let error = executor.check(&definition).await.unwrap_err();
    assert_eq!(error.message(), "Slurm does not take this run: allocation failure: Invalid qos specification");
    slurm.switch_off("refuse");
    slurm.switch("down", "");
    definition.slurm.qos = Some("other".into());
    let warning = executor.check(&definition).await.unwrap().unwrap();
    assert!(warning.contains("could not be asked") && warning.contains("Unable to contact"), "{warning}");
    slurm.switch_off("down");
    slurm.switch("slow", "");
    definition.slurm.qos = Some("third".into());
    let warning = executor.check(&definition).await.unwrap().unwrap();
    assert!(warning.contains("did not end within 2 s"), "{warning}");
}

#[tokio::test]
async fn an_agent_that_was_told_to_end_learns_from_slurm_why() {
    let cases = [
        (("COMPLETING", "TimeLimit", "N/A"), Some("time_limit")),
        (("RUNNING", "None", "2026-11-23T16:34:05"), Some("preempted")),
        (("COMPLETING", "None", "N/A"), Some("cancelled")),
        (("RUNNING", "None", "N/A"), None),
    ];
    for ((state, reason, preempt), label) in cases {
        let (slurm, executor, attempt) = submitted(None).await;
        for (field, text) in [("reason", reason), ("limit", "1:00"), ("preempt", preempt), ("state", state)] {
            slurm.job(field, text);
        }
        assert_eq!(executor.explain(attempt).await.map(|cause| cause.label()), label, "{state} {reason} {preempt}");
        slurm.place.kill_agent(attempt);
    }
}

#[tokio::test]
async fn two_servers_do_not_share_a_folder() {
    let slurm = ScriptedSlurm::new();
    let first = slurm.executor();
    let settings = SlurmSettings { shared_dir: slurm.place.dir.path().to_owned(), slurm_bin: None, ssh: None };
    let error = SlurmExecutor::new(&settings, BTreeMap::new(), slurm.place.agent()).err().unwrap();
    assert!(error.message().contains("another server uses the shared folder"), "{error}");
    drop(first);
    let percent = SlurmSettings { shared_dir: slurm.path("100%j"), ..settings };
    assert!(SlurmExecutor::new(&percent, BTreeMap::new(), slurm.place.agent()).is_err(), "Slurm would replace it");
}

#[tokio::test]
async fn commands_on_a_login_node_arrive_word_by_word() {
    // The test starts itself once more: a process of its own has the stand-in on its PATH.
    if let Some(shared) = std::env::var_os("TRAINYARD_TEST_LOGIN") {
        return ask_the_login_node(shared.into()).await;
    }
    let slurm = ScriptedSlurm::new();
    let bin = slurm.path("ssh-bin");
    fs::create_dir(&bin).unwrap();
    // Stands in for ssh: runs the line in a shell, as the login node would.
    write_program(&bin.join("ssh"), "#!/bin/sh\nfor line; do :; done\necho \"$*\" >>\"$(dirname \"$0\")/calls\"\nexec sh -c \"$line\"\n");
    let settings = SlurmSettings {
        shared_dir: slurm.place.dir.path().to_owned(),
        slurm_bin: Some(slurm.path("commands")),
        ssh: Some("me@login".into()),
    };
    let child = std::env::current_exe().unwrap();
    let output = Command::new(child)
        .args(["slurm::commands_on_a_login_node_arrive_word_by_word", "--exact", "--nocapture"])
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
        .env("TRAINYARD_TEST_LOGIN", settings.shared_dir.join(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let calls = fs::read_to_string(bin.join("calls")).unwrap();
    assert!(calls.contains("-o BatchMode=yes") && calls.contains("me@login"), "{calls}");
    let asked = slurm.calls("sbatch --test-only");
    assert!(asked.iter().any(|call| call.contains("--comment=it's $HOME; true")), "{asked:?}");
}

async fn ask_the_login_node(shared: PathBuf) {
    let settings = SlurmSettings { slurm_bin: Some(shared.join("commands")), shared_dir: shared.clone(), ssh: Some("me@login".into()) };
    let executor = SlurmExecutor::new(&settings, BTreeMap::new(), shared.join("agent")).unwrap();
    let mut definition = definition();
    definition.slurm.arguments = vec!["--comment=it's $HOME; true".into()];
    assert_eq!(executor.check(&definition).await.unwrap(), None);
}
