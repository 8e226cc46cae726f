//! Starting an MPI run: one launcher on node 0 (the `mpirun` that is installed, or `srun`) starts the processes of all nodes.
//!
//! Inside a Slurm job the launcher reaches the other nodes through Slurm; on one machine all processes are its own. Each process writes to a log of
//! its own through a small wrapper, [`rank_log`], which learns its rank from what the launcher tells it.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use trainyard_core::{definition::Distribution, run::Cause};
use trainyard_wire::native::Node;

use super::process::{Launch, NotStarted};

/// The variables in which launchers tell a process its rank: Open MPI, PMIx, Hydra (MPICH, Intel MPI), Slurm.
const RANKS: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// How long a launcher may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much of the end of the launcher's own log is read for which rank failed.
const LAST_WORDS_BYTES: usize = 16 << 10;

/// Where the processes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// All on this machine.
    Here,
    /// Over the nodes of the Slurm job that this is in.
    Slurm,
}

/// What starts them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Launcher {
    /// Open MPI's `mpirun`, at this path.
    Open(PathBuf),
    /// Hydra's `mpirun`: MPICH and Intel MPI.
    Hydra(PathBuf),
    /// `srun --mpi=TYPE`.
    Srun(String),
    /// Whichever `mpirun` is in the container of the run.
    Inside,
}

/// Where the launcher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Around {
    /// On the machine itself.
    Machine,
    /// In the container of the run.
    Container,
}

/// How an MPI run is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) spread: &'a Distribution,
    /// All nodes.
    pub(super) nodes: &'a [Node],
    /// What the target says: `mpirun`, or `srun:TYPE`.
    pub(super) by: Option<&'a str>,
    /// Where the launcher runs.
    pub(super) around: Around,
    /// Where the logs of the ranks go; `None`: the processes cannot be wrapped, all write to one log.
    pub(super) logs: Option<&'a Path>,
}

/// The launch of the launcher around the launch of one process.
pub(super) fn around(wish: &Wish<'_>, launch: Launch) -> Result<Launch, NotStarted> {
    let reach = reach(wish, &launch.variables)?;
    let launcher = launcher(wish, &launch)?;
    let Launch { program, arguments, mut variables, directory, output } = launch;
    let (program_of_launcher, mut words) = command_line(&launcher, reach, wish.spread);
    variables.extend(settings(&launcher, reach).into_iter().map(|(name, value)| (name.into(), value.into())));
    if let Some(logs) = wish.logs {
        let own = std::env::current_exe().map_err(|error| machine(format!("this program cannot find itself: {error}")))?;
        words.extend([own.into(), "rank-log".into(), "--logs".into(), logs.into(), "--".into()]);
    }
    words.push(program);
    words.extend(arguments);
    Ok(Launch { program: program_of_launcher, arguments: words, variables, directory, output })
}

fn reach(wish: &Wish<'_>, variables: &BTreeMap<OsString, OsString>) -> Result<Reach, NotStarted> {
    if wish.around == Around::Container {
        return match wish.spread.node_count {
            1 => Ok(Reach::Here),
            _ if all_here(wish.nodes) && !variables.contains_key(OsStr::new("SLURM_JOB_ID")) => Ok(Reach::Here),
            _ => Err(by_definition(
                "MPI over several machines is not possible from inside a container; leave the container out, or use one node".into(),
            )),
        };
    }
    let in_slurm = variables.contains_key(OsStr::new("SLURM_JOB_ID"));
    match (in_slurm, all_here(wish.nodes)) {
        (true, _) => Ok(Reach::Slurm),
        (false, true) => Ok(Reach::Here),
        (false, false) => Err(by_definition(
            "MPI over several machines needs a target on Slurm, which starts its processes on the others; use one node with more processes, or Gloo or Nccl".into(),
        )),
    }
}

/// Whether all nodes are one machine.
fn all_here(nodes: &[Node]) -> bool {
    nodes.iter().all(|node| nodes.first().is_some_and(|first| first.host == node.host))
}

fn launcher(wish: &Wish<'_>, launch: &Launch) -> Result<Launcher, NotStarted> {
    if wish.around == Around::Container {
        return Ok(Launcher::Inside);
    }
    if let Some(kind) = wish.by.and_then(|by| by.strip_prefix("srun:")) {
        return Ok(Launcher::Srun(kind.to_owned()));
    }
    let path = launch.variables.get(OsStr::new("PATH")).cloned().unwrap_or_default();
    let found = ["mpirun", "mpiexec"].iter().find_map(|name| on_path(name, &path));
    let Some(program) = found else {
        return Err(by_definition(format!(
            "there is no `mpirun`, neither in the environment nor on the node (PATH is {}); install Open MPI or MPICH on the nodes, or name one among the packages of the environment",
            path.to_string_lossy()
        )));
    };
    let said = version(&program, launch).map_err(|why| machine(format!("`{} --version` {why}", program.display())))?;
    kind_of(program, &said)
}

/// Open MPI and Hydra are told apart by what they say of themselves.
fn kind_of(program: PathBuf, said: &str) -> Result<Launcher, NotStarted> {
    let lower = said.to_lowercase();
    if ["open mpi", "openrte", "open-mpi", "prte"].iter().any(|word| lower.contains(word)) {
        return Ok(Launcher::Open(program));
    }
    if ["hydra", "intel(r) mpi", "mpich"].iter().any(|word| lower.contains(word)) {
        return Ok(Launcher::Hydra(program));
    }
    let first = said.lines().next().unwrap_or_default();
    Err(by_definition(format!("`{}` is neither of Open MPI nor of MPICH or Intel MPI; it says `{first}`", program.display())))
}

fn on_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// What a launcher says of itself. Before the code is started, so nothing else waits for children.
fn version(program: &Path, launch: &Launch) -> Result<String, String> {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .env_clear()
        .envs(&launch.variables)
        .envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot be started: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("gave no answer within {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    Ok([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

/// The launcher's own part of the command line.
fn command_line(launcher: &Launcher, reach: Reach, spread: &Distribution) -> (OsString, Vec<OsString>) {
    let (world, each) = (spread.world_size(), spread.processes_per_node);
    let words = |words: Vec<String>| words.into_iter().map(OsString::from).collect();
    match launcher {
        Launcher::Open(program) => {
            let map = match reach {
                Reach::Here => "slot:OVERSUBSCRIBE".to_owned(),
                Reach::Slurm => format!("ppr:{each}:node:OVERSUBSCRIBE"),
            };
            (program.into(), words(vec!["-n".into(), world.to_string(), "--map-by".into(), map, "--bind-to".into(), "none".into()]))
        }
        Launcher::Hydra(program) => {
            let mut line = vec!["-n".to_owned(), world.to_string()];
            if reach == Reach::Slurm {
                line.extend(["-ppn".to_owned(), each.to_string()]);
            }
            (program.into(), words(line))
        }
        Launcher::Inside => ("mpirun".into(), words(vec!["-n".into(), world.to_string()])),
        Launcher::Srun(kind) => {
            let line = [
                "--overlap".to_owned(),
                format!("--mpi={kind}"),
                format!("--nodes={}", spread.node_count),
                format!("--ntasks={world}"),
                format!("--ntasks-per-node={each}"),
                "--cpu-bind=none".to_owned(),
                "--kill-on-bad-exit=1".to_owned(),
            ];
            ("srun".into(), words(line.into()))
        }
    }
}

/// What the launcher is told besides.
fn settings(launcher: &Launcher, reach: Reach) -> Vec<(&'static str, &'static str)> {
    // The agents are a step of the job themselves, and hold all of it: steps beside theirs have to share.
    let mut all = if reach == Reach::Slurm { vec![("SLURM_OVERLAP", "1")] } else { Vec::new() };
    match launcher {
        Launcher::Open(_) => {
            // Root is who the operator lets run code; Open MPI wants to be told twice.
            all.extend([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
            if reach == Reach::Slurm {
                all.extend([("OMPI_MCA_plm_slurm_args", "--overlap"), ("PRTE_MCA_plm_slurm_args", "--overlap")]);
            }
        }
        Launcher::Hydra(_) => all.push(("HYDRA_LAUNCHER", if reach == Reach::Slurm { "slurm" } else { "fork" })),
        // What either of them understands: all processes are here, however few processors there are.
        Launcher::Inside => all.extend([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
            ("OMPI_MCA_plm", "^slurm"),
            ("OMPI_MCA_ras", "^slurm"),
            ("HYDRA_LAUNCHER", "fork"),
        ]),
        Launcher::Srun(_) => {}
    }
    all
}

/// Which process ended first, as the launcher says in its own log. `cause`: how the launcher ended.
pub(super) fn blame(cause: Cause, own: (u32, &str), log: &Path) -> Cause {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned();
    match failed_rank(&text) {
        Some(rank) => cause.of_part(Some(rank), own),
        None => cause,
    }
}

/// `Process name: [[55577,1],3]` (Open MPI), `rank 3 with PID` (Open MPI, of signals), `RANK 3 PID` (Intel MPI), `task 3: Exited` (srun).
fn failed_rank(text: &str) -> Option<u32> {
    let number = |text: &str| text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let named = text.rsplit_once("Process name: [[").and_then(|(_, rest)| number(rest.split_once("],")?.1));
    let by_word = |word: &str| text.split(word).nth(1).and_then(number);
    named.or_else(|| by_word("mpirun noticed that process rank ")).or_else(|| by_word("RANK ")).or_else(|| {
        let line = text.lines().find(|line| line.starts_with("srun: error:") && line.contains(": task "))?;
        number(line.split_once(": task ")?.1)
    })
}

fn machine(message: String) -> NotStarted {
    NotStarted { message, by_definition: false }
}

fn by_definition(message: String) -> NotStarted {
    NotStarted { message, by_definition: true }
}

/// Becomes `program`, writing to the log of its rank in `logs`. Returns only if that fails.
pub fn rank_log(logs: &Path, words: &[OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else { return io::Error::other("there is no program to start") };
    let rank = RANKS.iter().find_map(|name| std::env::var(name).ok()?.trim().parse::<u32>().ok());
    let Some(rank) = rank else {
        return io::Error::other(format!("the launcher of this process does not say its rank in any of {}", RANKS.join(", ")));
    };
    let log = logs.join(format!("70_driver_log_{rank}.txt"));
    let opened = OpenOptions::new().create(true).append(true).open(&log).and_then(|file| Ok((file.try_clone()?, file)));
    match opened {
        Ok((copy, file)) => Command::new(program).args(arguments).stdout(copy).stderr(file).exec(),
        Err(error) => io::Error::new(error.kind(), format!("`{}` cannot be opened: {error}", log.display())),
    }
}

#[cfg(test)]
mod tests {
    use trainyard_core::definition::Communication;
    use trainyard_wire::native::NodePhase;

    use super::*;

    fn line(launcher: &Launcher, reach: Reach) -> String {
        let spread = Distribution { node_count: 2, processes_per_node: 3, communication: Communication::Mpi };
        let (program, words) = command_line(launcher, reach, &spread);
        [program].into_iter().chain(words).map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_launcher_is_told_how_many_processes_go_where() {
        let (open, hydra) = (Launcher::Open("/b/mpirun".into()), Launcher::Hydra("/b/mpirun".into()));
        assert_eq!(line(&open, Reach::Here), "/b/mpirun -n 6 --map-by slot:OVERSUBSCRIBE --bind-to none");
        assert_eq!(line(&open, Reach::Slurm), "/b/mpirun -n 6 --map-by ppr:3:node:OVERSUBSCRIBE --bind-to none");
        assert_eq!((line(&hydra, Reach::Here).as_str(), line(&hydra, Reach::Slurm).as_str()), ("/b/mpirun -n 6", "/b/mpirun -n 6 -ppn 3"));
        let srun = line(&Launcher::Srun("pmix".into()), Reach::Slurm);
        assert_eq!(srun, "srun --overlap --mpi=pmix --nodes=2 --ntasks=6 --ntasks-per-node=3 --cpu-bind=none --kill-on-bad-exit=1");
    }

    #[test]
    fn launchers_are_told_apart_by_what_they_say() {
        let kind = |said: &str| kind_of("/b/mpirun".into(), said);
        assert!(matches!(kind("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org"), Ok(Launcher::Open(_))));
        assert!(matches!(kind("HYDRA build details:\n    Version: 4.0.2"), Ok(Launcher::Hydra(_))));
        assert!(matches!(kind("Intel(R) MPI Library for Linux* OS, Version 2021.10"), Ok(Launcher::Hydra(_))));
        assert!(kind("something else").unwrap_err().message.contains("it says `something else`"));
    }

    #[test]
    fn the_rank_that_failed_is_read_from_the_launchers_words() {
        let open = "mpirun detected that one or more processes exited with non-zero status, thus causing\nthe job to be terminated. The first process to do so was:\n\n  Process name: [[55577,1],3]\n  Exit code:    7\n";
        assert_eq!(failed_rank(open), Some(3));
        assert_eq!(failed_rank("mpirun noticed that process rank 2 with PID 17 on node n1 exited on signal 9 (Killed)."), Some(2));
        assert_eq!(failed_rank("=   RANK 5 PID 123 RUNNING AT n2\n"), Some(5));
        assert_eq!(failed_rank("srun: error: n2: task 1: Exited with exit code 3\n"), Some(1));
        assert_eq!(failed_rank("nothing of the kind"), None);
    }

    #[test]
    fn several_machines_without_slurm_are_refused_in_words() {
        let node =
            |node: u32, host: &str| Node { node, host: host.into(), ports: vec![], phase: NodePhase::Ready, cause: None, ended_us: None };
        let spread = Distribution { node_count: 2, processes_per_node: 1, communication: Communication::Mpi };
        let reach_of = |nodes: &[Node], slurm: bool| {
            let variables = slurm.then(|| ("SLURM_JOB_ID".into(), "17".into())).into_iter().collect();
            reach(&Wish { spread: &spread, nodes, by: None, around: Around::Machine, logs: None }, &variables)
        };
        assert_eq!(reach_of(&[node(0, "a"), node(1, "a")], false).unwrap(), Reach::Here);
        assert_eq!(reach_of(&[node(0, "a"), node(1, "b")], true).unwrap(), Reach::Slurm);
        let refused = reach_of(&[node(0, "a"), node(1, "b")], false).unwrap_err();
        assert!(refused.by_definition && refused.message.contains("needs a target on Slurm"));
    }
}
