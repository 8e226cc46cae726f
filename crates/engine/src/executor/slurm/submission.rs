//! Hands an attempt to Slurm: folder, order, script, intent, then `sbatch`, some of them at once and none in the way of a pass.
//!
//! Between the intent and the noted answer nobody knows whether there is a job. Then Slurm is asked for one of that name before another one is
//! submitted, and should there be two all the same, the script of the second finds the claim of the first and leaves.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};
use trainyard_core::{
    Error, ErrorKind, Result,
    definition::Definition,
    ids::AttemptId,
    run::Cause,
    slurm::{ClusterUser, SlurmWish},
};
use trainyard_wire::native::AttemptOrder;

use super::{
    CLOSING, Inner, UserDir,
    ending::JOB_LOG,
    jobs::{CLAIM, INTENT, JOB, Phase},
    parse::NAME_PREFIX,
    tools::{Call, Failure, quoted},
};
use crate::{
    agent::folder::AttemptFolder,
    executor::{Executor as _, Observation},
};

/// What every job is like: one agent on each of its nodes, all of them or none, started at most once.
pub(super) fn shape(nodes: u32) -> Vec<String> {
    let tasks = if nodes == 1 { "--ntasks=1" } else { "--ntasks-per-node=1" };
    vec![format!("--nodes={nodes}"), tasks.to_owned(), "--no-requeue".to_owned()]
}

/// How long `sbatch` may take. Longer than Slurm's own patience, so that its answer is heard.
const PATIENCE: Duration = Duration::from_secs(60);

/// After which Slurm is asked again to take what it does not take now.
const HOLD: Duration = Duration::from_secs(10);

/// Starts what the attempt of `order` lacks: its job, or an agent on this machine that closes the books of a job that is over.
pub(super) async fn submit(inner: &Arc<Inner>, order: &AttemptOrder) -> Result<()> {
    let attempt = AttemptId(order.attempt);
    let folder = inner.folder(attempt);
    match inner.observe(attempt) {
        Observation::Unknown => {}
        Observation::NoAgent { .. } if folder.verdict().is_some() => return close(inner, order).await,
        Observation::NoAgent { .. } => {}
        Observation::Pending { .. }
        | Observation::Alive
        | Observation::Doubtful { .. }
        | Observation::Over { .. }
        | Observation::Lost { .. }
        | Observation::Collected => return Ok(()),
    }
    if !inner.jobs.begin_sending(attempt) {
        return Ok(());
    }
    let (inner, order) = (Arc::clone(inner), order.clone());
    tokio::spawn(async move {
        let Ok(_turn) = inner.sending.acquire().await else { return };
        match prepare(&inner, &order).await {
            Ok(handing) => {
                let phase = send(&inner, (attempt, &order.run_id), &handing).await;
                inner.jobs.set(attempt, phase);
            }
            Err(error) if error.kind() == ErrorKind::Invalid => {
                inner.jobs.set(attempt, Phase::Refused(Cause::StartFailed { message: error.message().to_owned(), by_definition: true }));
            }
            Err(error) => {
                tracing::error!(run = order.run_id, %attempt, error = error.chain(), "a job cannot be prepared; trying again");
                inner.jobs.forget(attempt);
            }
        }
    });
    Ok(())
}

/// Starts an agent on this machine that reads from the folder what happened. Some at once: the rest is for later passes.
async fn close(inner: &Inner, order: &AttemptOrder) -> Result<()> {
    if inner.local.children() < CLOSING { inner.local.submit(order).await } else { Ok(()) }
}

/// What is given to `sbatch`.
struct Handing {
    arguments: Vec<String>,
    /// For a job of somebody else: whose it will be, and its script, which goes in through stdin.
    guest: Option<(ClusterUser, String)>,
}

/// Writes everything that the job will need, the intent last.
async fn prepare(inner: &Arc<Inner>, order: &AttemptOrder) -> Result<Handing> {
    let attempt = AttemptId(order.attempt);
    let folder = inner.folder(attempt);
    let definition: Definition = serde_json::from_value(order.definition.clone()).map_err(Error::internal)?;
    let program = inner.staged_program().await?.to_owned();
    let (path, order) = (folder.path().to_owned(), order.clone());
    // Syncing takes as long as the disk does.
    let nodes = definition.distribution.node_count;
    let wish = inner.wish(&definition);
    let Some(user) = wish.submit_as.clone() else {
        if inner.targets.get(&definition.target).is_some_and(|target| target.user_dir.is_some()) {
            let target = &definition.target;
            let message = format!(
                "jobs of target `{target}` are those of the accounts that runs are submitted as, and this run was submitted before that was configured; submit it again"
            );
            return Err(Error::invalid(message));
        }
        tokio::task::spawn_blocking(move || write_all(&folder, &order, (&program, nodes))).await.map_err(Error::internal)??;
        return Ok(Handing { arguments: arguments((attempt, nodes), Some(&path), &wish), guest: None });
    };
    let own = inner.targets.get(&definition.target).and_then(|target| target.user_dir.clone()).unwrap_or_default();
    let (host, guest_of) = (Arc::clone(inner), user.clone());
    let script = tokio::task::spawn_blocking(move || write_for_guest(&host, (&folder, &order), (&guest_of, nodes), (&program, &own)));
    let script = script.await.map_err(Error::internal)??;
    Ok(Handing { arguments: arguments((attempt, nodes), None, &wish), guest: Some((user, script)) })
}

/// The same for a job of somebody else. Gives its script.
fn write_for_guest(
    inner: &Inner,
    (folder, order): (&AttemptFolder, &AttemptOrder),
    (user, nodes): (&ClusterUser, u32),
    (program, own): (&Path, &UserDir),
) -> Result<String> {
    let path = folder.path();
    folder.create().map_err(|error| io_error("the folder of the attempt cannot be made", path, error))?;
    trainyard_store::fail_point!("executor.folder_made");
    folder.write_order(order).map_err(|error| io_error("the order of the attempt cannot be written", path, error))?;
    let guest = inner.guests.admit(folder, order, (user, nodes))?;
    trainyard_store::fail_point!("executor.order_written");
    put(&path.join(INTENT), "").map_err(|error| io_error("the job cannot be prepared in", path, error))?;
    trainyard_store::fail_point!("executor.start_counted");
    // From here on there may be a job of theirs.
    inner.tools.watch(user.clone());
    Ok(inner.guests.script(&guest, AttemptId(order.attempt), (program, own)))
}

/// Only the order is synced. Should a power cut take the intent, there may be a second job, which finds the claim of the first.
fn write_all(folder: &AttemptFolder, order: &AttemptOrder, (program, nodes): (&Path, u32)) -> Result<()> {
    let path = folder.path();
    folder.create().map_err(|error| io_error("the folder of the attempt cannot be made", path, error))?;
    trainyard_store::fail_point!("executor.folder_made");
    folder.write_order(order).map_err(|error| io_error("the order of the attempt cannot be written", path, error))?;
    trainyard_store::fail_point!("executor.order_written");
    for (name, content) in [("slurm.sh", script(path, (program, nodes))), (INTENT, String::new())] {
        put(&path.join(name), &content).map_err(|error| io_error("the job cannot be prepared in", path, error))?;
    }
    trainyard_store::fail_point!("executor.start_counted");
    Ok(())
}

/// A small file in one step, so that nobody reads half of it.
fn put(path: &Path, content: &str) -> std::io::Result<()> {
    let staged = path.with_file_name(format!(".{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()));
    std::fs::write(&staged, content)?;
    std::fs::rename(&staged, path)
}

/// Without a `folder` the job says itself where it writes, and its script comes through stdin.
fn arguments((attempt, nodes): (AttemptId, u32), folder: Option<&Path>, wish: &SlurmWish) -> Vec<String> {
    let folder = folder.map(Path::display);
    let (output, place) =
        folder.as_ref().map_or(("/dev/null".to_owned(), "/".to_owned()), |folder| (format!("{folder}/{JOB_LOG}"), folder.to_string()));
    let mut arguments = vec!["--parsable".to_owned(), format!("--job-name={NAME_PREFIX}{attempt}")];
    arguments.extend(shape(nodes));
    arguments.extend([
        "--open-mode=append".to_owned(),
        format!("--output={output}"),
        format!("--chdir={place}"),
        "--export=ALL".to_owned(),
    ]);
    arguments.extend(wish.options());
    arguments.extend(folder.map(|folder| format!("{folder}/slurm.sh")));
    arguments
}

/// The script of a job. The shell makes the claim's file only if it is not there, in one step.
fn script(folder: &Path, (program, nodes): (&Path, u32)) -> String {
    let (claim, folder) = (quoted(&folder.join(CLAIM).to_string_lossy()), quoted(&folder.to_string_lossy()));
    let program = quoted(&program.to_string_lossy());
    let agents = match nodes {
        1 => format!("exec {program} agent --attempt-dir {folder}\n"),
        nodes => agents(nodes, &program, &folder, "", ""),
    };
    format!(
        "#!/bin/sh\n\
         # One job of this name may begin.\n\
         claim={claim}\n\
         if ! (umask 077 && set -C && echo \"$SLURM_JOB_ID\" >\"$claim\") 2>/dev/null && [ \"$(cat \"$claim\")\" != \"$SLURM_JOB_ID\" ]; then\n\
         \x20   echo \"job $(cat \"$claim\") has this attempt\" >&2\n\
         \x20   exit 0\n\
         fi\n\
         {agents}"
    )
}

/// Starts an agent on each node, as one step that leaves room for others: code calls `srun` and `mpirun` itself. The shell stays, because `srun`
/// answers TERM by killing what it has started; Slurm tells the agents themselves.
///
/// `more` are further words for each agent, in which `$2` is `last`.
pub(super) fn agents(nodes: u32, program: &str, folder: &str, more: &str, last: &str) -> String {
    format!(
        "trap : TERM\n\
         srun --overlap --mpi=none --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 --cpu-bind=none \\\n\
         \x20   ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\\n\
         \x20   sh -c 'exec \"$0\" agent --attempt-dir \"$1\" {more} --node \"$SLURM_PROCID\"' {program} {folder}{last} &\n\
         step=$!\n\
         wait $step\n\
         status=$?\n\
         while kill -0 $step 2>/dev/null; do wait $step; status=$?; done\n\
         exit $status\n"
    )
}

/// Calls `sbatch` and notes what it answered.
async fn send(inner: &Inner, (attempt, run): (AttemptId, &str), handing: &Handing) -> Phase {
    let folder = inner.folder(attempt);
    let (user, input) = handing.guest.as_ref().map(|(user, script)| (user, script.as_str())).unzip();
    match inner.tools.call(Call { tool: "sbatch", arguments: &handing.arguments, user, input, limit: PATIENCE }).await {
        Ok(printed) => {
            trainyard_store::fail_point!("executor.agent_started");
            // `ID` or `ID;CLUSTER`.
            let Some(id) = printed.text.trim().split(';').next().and_then(|id| id.parse::<u64>().ok()) else {
                return Phase::Unsure { since: Instant::now(), words: format!("sbatch answered `{}`", printed.text.trim()) };
            };
            note_job(&folder, id);
            tracing::info!(run, %attempt, job = id, "job submitted");
            Phase::Known { id, since: Instant::now() }
        }
        Err(Failure::NoAnswer(words)) => {
            tracing::warn!(run, %attempt, words, "sbatch had no answer; looking for the job by its name");
            Phase::Unsure { since: Instant::now(), words }
        }
        Err(Failure::Refused(words)) if is_for_now(&words) => {
            tracing::info!(run, %attempt, words, "Slurm does not take a job now");
            Phase::Held { until: Instant::now() + HOLD, words }
        }
        Err(Failure::Refused(words)) => {
            tracing::warn!(run, %attempt, words, "Slurm refused a job");
            Phase::Refused(Cause::StartFailed { message: format!("Slurm does not take the job: {words}"), by_definition: true })
        }
    }
}

/// Notes which job it is. Without the note it is found by its name after a restart.
pub(super) fn note_job(folder: &AttemptFolder, id: u64) {
    if let Err(error) = put(&folder.path().join(JOB), &id.to_string()) {
        tracing::warn!(%error, job = id, "the id of a job cannot be noted");
    }
    if folder.starts() == 0
        && let Err(error) = folder.count_start()
    {
        tracing::warn!(%error, job = id, "the start of an agent cannot be counted");
    }
}

/// Whether a refusal holds only as long as so much is in use.
pub(super) fn is_for_now(words: &str) -> bool {
    let words = words.to_lowercase();
    let phrases = [
        "job violates accounting/qos policy",
        "job limit",
        "maximum number of jobs",
        "submit limit",
        "slurm_persist",
        "reservation is not",
    ];
    phrases.iter().any(|phrase| words.contains(phrase))
}

impl Inner {
    /// The copy of this program that nodes start, named by its content: a new version of the server does not change what waits in the queue.
    async fn staged_program(&self) -> Result<&Path> {
        let staged = self.staged.get_or_try_init(|| async {
            let (binary, programs) = (self.binary.clone(), self.programs.clone());
            tokio::task::spawn_blocking(move || stage(&binary, &programs)).await.map_err(Error::internal)?
        });
        staged.await.map(PathBuf::as_path)
    }
}

fn stage(binary: &Path, programs: &Path) -> Result<PathBuf> {
    let failed = |error| io_error("this program cannot be copied for the nodes to", programs, error);
    let content = std::fs::read(binary).map_err(failed)?;
    let digest = hex::encode(Sha256::digest(&content));
    let path = programs.join(format!("trainyard-{}", &digest[..16]));
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() == content.len() as u64) {
        return Ok(path);
    }
    // Through a name of its own: a node must never start half a program.
    let staged = programs.join(format!(".trainyard-{}.tmp", uuid::Uuid::new_v4().simple()));
    std::fs::write(&staged, &content).map_err(failed)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    std::fs::File::open(&staged).and_then(|file| file.sync_all()).map_err(failed)?;
    std::fs::rename(&staged, &path).map_err(failed)?;
    Ok(path)
}

pub(super) fn io_error(what: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{what} {}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &Path, job: &str) -> std::process::Output {
        std::process::Command::new("sh").arg(script).env("SLURM_JOB_ID", job).output().unwrap()
    }

    #[test]
    fn of_two_jobs_with_one_name_one_begins() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("it's an attempt");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("slurm.sh");
        std::fs::write(&path, script(&folder, (Path::new("/bin/echo"), 1))).unwrap();
        let first = run(&path, "17");
        assert_eq!(String::from_utf8_lossy(&first.stdout), format!("agent --attempt-dir {}\n", folder.display()));
        let second = run(&path, "18");
        assert!(second.status.success() && second.stdout.is_empty());
        assert_eq!(String::from_utf8_lossy(&second.stderr), "job 17 has this attempt\n");
        assert!(!run(&path, "17").stdout.is_empty(), "the same job may begin again; its agent knows what happened");
    }

    #[test]
    fn a_job_on_several_nodes_starts_an_agent_with_its_number_on_each() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("it's an attempt");
        std::fs::create_dir(&folder).unwrap();
        // Stands for `srun`: says its options and starts what follows them, as the second task.
        let srun = dir.path().join("srun");
        let text = "#!/bin/sh\nwhile [ \"${1#--}\" != \"$1\" ]; do echo \"$1\"; shift; done\nSLURM_PROCID=1 exec \"$@\"\n";
        std::fs::write(&srun, text).unwrap();
        std::fs::set_permissions(&srun, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.join("slurm.sh");
        std::fs::write(&path, script(&folder, (Path::new("/bin/echo"), 3))).unwrap();
        let search = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let output = std::process::Command::new("sh").arg(&path).env("SLURM_JOB_ID", "17").env("PATH", search).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("--nodes=3\n--ntasks=3\n--ntasks-per-node=1\n--kill-on-bad-exit=0\n"), "{said}");
        assert!(said.ends_with(&format!("agent --attempt-dir {} --node 1\n", folder.display())), "{said}");
        assert_eq!(shape(3), ["--nodes=3", "--ntasks-per-node=1", "--no-requeue"]);
    }

    #[test]
    fn the_arguments_of_sbatch_carry_no_secret_and_the_wish_before_the_script() {
        let wish = SlurmWish { partition: Some("cpu".into()), arguments: vec!["--nice=5".into()], ..SlurmWish::default() };
        let arguments = arguments((AttemptId(uuid::Uuid::nil()), 1), Some(Path::new("/shared/attempts/x")), &wish);
        assert_eq!(arguments[1], "--job-name=trainyard-00000000-0000-0000-0000-000000000000");
        assert_eq!(arguments[arguments.len() - 3..], ["--partition=cpu", "--nice=5", "/shared/attempts/x/slurm.sh"]);
    }

    #[test]
    fn the_program_is_copied_once_for_each_content() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("trainyard");
        std::fs::write(&binary, "one").unwrap();
        let first = stage(&binary, dir.path()).unwrap();
        assert_eq!(stage(&binary, dir.path()).unwrap(), first);
        std::fs::write(&binary, "two").unwrap();
        let second = stage(&binary, dir.path()).unwrap();
        assert_ne!(second, first);
        assert_eq!(std::fs::read_to_string(first).unwrap(), "one", "what waits in the queue is not changed");
        assert_eq!(std::fs::metadata(second).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
