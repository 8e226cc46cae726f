//! Starting an MPI run: one launcher on node 0 (the `mpirun` that is installed, or `srun`) starts the processes of all nodes.
//!
//! Inside a Slurm job the launcher reaches the other nodes through Slurm; on one machine all processes are its own; anywhere else the agents of the other
//! nodes are its remote shell ([`machines`], [`super::shell`]). Each process writes to a log of its own through a small wrapper ([`rank`]), which learns its
//! rank from what the launcher tells it.

mod machines;
mod rank;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use trainyard_core::{definition::Distribution, run::Cause};
use trainyard_wire::native::Node;

pub(super) use self::machines::without_key;
pub use self::rank::{rank_log, rank_of_note};
use self::{
    machines::Machines,
    rank::{NOTE_VARIABLE, RankNote},
};
use super::{
    folder::AttemptFolder,
    process::{Launch, NotStarted},
    variables::OWN_POD_VARIABLE,
};

/// How long a launcher may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Set inside a Slurm job.
pub(super) const IN_SLURM: &str = "SLURM_JOB_ID";

/// Root is who the operator lets run code; Open MPI wants to be told twice, and its version 5 under another name.
const AS_ROOT: [(&str, &str); 4] = [
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ("PRTE_ALLOW_RUN_AS_ROOT", "1"),
    ("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
];

/// How much of the end of the launcher's own log is read for which rank failed.
const LAST_WORDS_BYTES: usize = 16 << 10;

/// Where the processes go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    /// All on this machine.
    Here,
    /// Over the nodes of the Slurm job that this is in.
    Slurm,
    /// Over machines whose agents take the launcher's calls.
    Agents(Machines),
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
    /// Of node 0.
    pub(super) folder: &'a AttemptFolder,
    /// What the agents know each other by.
    pub(super) key: Option<&'a str>,
}

impl Wish<'_> {
    /// Whether each process can write to a log of its own: this program, which sees to that, is in no container.
    fn is_wrapped(&self) -> bool {
        self.spread.world_size() > 1 && self.around == Around::Machine
    }
}

/// The launch of the launcher around the launch of one process.
pub(super) fn around(wish: &Wish<'_>, mut launch: Launch) -> Result<Launch, NotStarted> {
    let reach = reach(wish, &launch.variables)?;
    let launcher = launcher(wish, &launch)?;
    if matches!((&reach, &launcher), (Reach::Agents(_), Launcher::Srun(_))) {
        return Err(by_definition("the target starts MPI runs with `srun`, and this is no Slurm job; set mpi = \"mpirun\" for it".into()));
    }
    if matches!(reach, Reach::Agents(_)) {
        note_rank(wish.folder, &mut launch)?;
    }
    let Launch { program, arguments, mut variables, directory, output } = launch;
    let (program_of_launcher, mut words) = command_line(&launcher, &reach, wish.spread);
    for (name, value) in settings(&launcher, &reach) {
        // Which network it goes through is not ours to know better.
        if name != "I_MPI_HYDRA_IFACE" || !variables.contains_key(OsStr::new(name)) {
            variables.insert(name.into(), value.into());
        }
    }
    if wish.is_wrapped() {
        let own = std::env::current_exe().map_err(|error| machine(format!("this program cannot find itself: {error}")))?;
        words.extend([own.into(), "rank-log".into()]);
        if matches!(reach, Reach::Agents(_)) {
            return Ok(Launch { program: program_of_launcher, arguments: words, variables, directory, output });
        }
        words.extend(["--logs".into(), wish.folder.logs().into(), "--".into()]);
    }
    words.push(program);
    words.extend(arguments);
    Ok(Launch { program: program_of_launcher, arguments: words, variables, directory, output })
}

/// Leaves the note that the ranks of a node read, and sets the variable that leads them there.
pub(super) fn note_rank(folder: &AttemptFolder, launch: &mut Launch) -> Result<(), NotStarted> {
    let path = RankNote::leave(folder.path(), launch, &folder.logs());
    let path = path.map_err(|why| machine(format!("what the processes of this node are cannot be noted: {why}")))?;
    launch.variables.insert(NOTE_VARIABLE.into(), path.into());
    Ok(())
}

/// What is set on the nodes that a launcher on another one starts its daemons on.
pub(super) fn beyond() -> impl Iterator<Item = (&'static str, &'static str)> {
    AS_ROOT.into_iter()
}

/// Whether the launcher of a run with these nodes and variables goes through the agents of the other machines.
pub(super) fn goes_through_agents(nodes: &[Node], variables: &BTreeMap<OsString, OsString>) -> bool {
    !variables.contains_key(OsStr::new(IN_SLURM)) && !all_here(nodes)
}

fn reach(wish: &Wish<'_>, variables: &BTreeMap<OsString, OsString>) -> Result<Reach, NotStarted> {
    let in_slurm = variables.contains_key(OsStr::new(IN_SLURM));
    if wish.around == Around::Container {
        return match wish.spread.node_count {
            1 => Ok(Reach::Here),
            _ if all_here(wish.nodes) && !in_slurm => Ok(Reach::Here),
            _ => Err(by_definition(
                "MPI over several machines is not possible from inside a container; leave the container out, or use one node".into(),
            )),
        };
    }
    // Pods are machines of their own, even where they share an address: what is said about that comes from there.
    let in_pods = variables.contains_key(OsStr::new(OWN_POD_VARIABLE)) && wish.spread.node_count > 1;
    if in_slurm {
        Ok(Reach::Slurm)
    } else if all_here(wish.nodes) && !in_pods {
        Ok(Reach::Here)
    } else {
        Machines::write(wish.folder.path(), (wish.spread, wish.nodes), wish.key).map(Reach::Agents)
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
    command.arg("--version").env_clear().envs(&launch.variables).envs(AS_ROOT);
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
fn command_line(launcher: &Launcher, reach: &Reach, spread: &Distribution) -> (OsString, Vec<OsString>) {
    let (world, each) = (spread.world_size(), spread.processes_per_node);
    let words = |words: Vec<String>| words.into_iter().map(OsString::from).collect::<Vec<_>>();
    match launcher {
        Launcher::Open(program) => {
            let mapping = match reach {
                Reach::Here => words(vec!["--map-by".into(), "slot:OVERSUBSCRIBE".into()]),
                Reach::Slurm => words(vec!["--map-by".into(), format!("ppr:{each}:node:OVERSUBSCRIBE")]),
                Reach::Agents(machines) => machines::open_words(machines),
            };
            let count = words(vec!["-n".into(), world.to_string()]);
            (program.into(), [count, mapping, words(vec!["--bind-to".into(), "none".into()])].concat())
        }
        Launcher::Hydra(program) => {
            let mapping = match reach {
                Reach::Here => Vec::new(),
                Reach::Slurm => words(vec!["-ppn".to_owned(), each.to_string()]),
                Reach::Agents(machines) => machines::hydra_words(machines),
            };
            (program.into(), [words(vec!["-n".to_owned(), world.to_string()]), mapping].concat())
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
            ("srun".into(), words(line.to_vec()))
        }
    }
}

/// What the launcher is told besides.
fn settings(launcher: &Launcher, reach: &Reach) -> Vec<(&'static str, String)> {
    let all = |pairs: &[(&'static str, &str)]| pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect::<Vec<_>>();
    // The agents are a step of the job themselves, and hold all of it: steps beside theirs have to share.
    let sharing = if *reach == Reach::Slurm { all(&[("SLURM_OVERLAP", "1")]) } else { Vec::new() };
    let own = match (launcher, reach) {
        (Launcher::Open(_), Reach::Here) => all(&AS_ROOT),
        (Launcher::Open(_), Reach::Slurm) => {
            [all(&AS_ROOT), all(&[("OMPI_MCA_plm_slurm_args", "--overlap"), ("PRTE_MCA_plm_slurm_args", "--overlap")])].concat()
        }
        (Launcher::Open(_), Reach::Agents(machines)) => [all(&AS_ROOT), machines::open_settings(machines)].concat(),
        (Launcher::Hydra(_), Reach::Here) => all(&[("HYDRA_LAUNCHER", "fork")]),
        (Launcher::Hydra(_), Reach::Slurm) => all(&[("HYDRA_LAUNCHER", "slurm")]),
        (Launcher::Hydra(_), Reach::Agents(machines)) => machines::hydra_settings(machines),
        // What either of them understands: all processes are here, however few processors there are.
        (Launcher::Inside, _) => {
            let here = [
                ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
                ("OMPI_MCA_plm", "^slurm"),
                ("OMPI_MCA_ras", "^slurm"),
                ("HYDRA_LAUNCHER", "fork"),
            ];
            [all(&AS_ROOT), all(&here)].concat()
        }
        (Launcher::Srun(_), _) => Vec::new(),
    };
    [sharing, own].concat()
}

/// Which process ended first, as the launcher says in its own log. `cause`: how the launcher ended; `place`: on which node a rank is.
pub(super) fn blame<'a>(cause: Cause, place: impl Fn(Option<u32>) -> (u32, &'a str), log: &Path) -> Cause {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned();
    match failed_rank(&text) {
        Some(rank) => cause.of_part(Some(rank), place(Some(rank))),
        None => cause,
    }
}

/// `Process name: [[55577,1],3]` (Open MPI 4), `Process name: [prterun-n1-17@1,3]` (5), `rank 3 with PID` (Open MPI, of signals), `RANK 3 PID` (Intel MPI),
/// `task 3: Exited` (srun).
fn failed_rank(text: &str) -> Option<u32> {
    let number = |text: &str| text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let named = text.rsplit_once("Process name: [").and_then(|(_, rest)| number(rest.lines().next()?.rsplit_once(',')?.1));
    let by_word = |word: &str| text.split(word).nth(1).and_then(number);
    named.or_else(|| by_word(" noticed that process rank ")).or_else(|| by_word("RANK ")).or_else(|| {
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

#[cfg(test)]
mod tests {
    use trainyard_core::definition::Communication;
    use trainyard_wire::native::NodePhase;

    use super::*;

    fn machines() -> Reach {
        Reach::Agents(Machines {
            open: "/a/mpi/hostfile".into(),
            hydra: "/a/mpi/hosts".into(),
            shell: "/a/mpi/shell".into(),
            own: "10.0.0.1".into(),
            interface: Some("eth0".into()),
        })
    }

    fn line(launcher: &Launcher, reach: &Reach) -> String {
        let spread = Distribution { node_count: 2, processes_per_node: 3, communication: Communication::Mpi };
        let (program, words) = command_line(launcher, reach, &spread);
        [program].into_iter().chain(words).map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_launcher_is_told_how_many_processes_go_where() {
        let (open, hydra) = (Launcher::Open("/b/mpirun".into()), Launcher::Hydra("/b/mpirun".into()));
        assert_eq!(line(&open, &Reach::Here), "/b/mpirun -n 6 --map-by slot:OVERSUBSCRIBE --bind-to none");
        assert_eq!(line(&open, &Reach::Slurm), "/b/mpirun -n 6 --map-by ppr:3:node:OVERSUBSCRIBE --bind-to none");
        assert_eq!(
            (line(&hydra, &Reach::Here).as_str(), line(&hydra, &Reach::Slurm).as_str()),
            ("/b/mpirun -n 6", "/b/mpirun -n 6 -ppn 3")
        );
        let over = "/b/mpirun -n 6 --map-by slot:OVERSUBSCRIBE --leave-session-attached --wdir / --hostfile /a/mpi/hostfile --bind-to none";
        assert_eq!(line(&open, &machines()), over);
        assert_eq!(line(&hydra, &machines()), "/b/mpirun -n 6 -genvnone -wdir / -localhost 10.0.0.1 -f /a/mpi/hosts");
        let srun = line(&Launcher::Srun("pmix".into()), &Reach::Slurm);
        assert_eq!(srun, "srun --overlap --mpi=pmix --nodes=2 --ntasks=6 --ntasks-per-node=3 --cpu-bind=none --kill-on-bad-exit=1");
    }

    #[test]
    fn launchers_that_go_through_the_agents_are_told_whom_to_call() {
        let of = |launcher: Launcher| settings(&launcher, &machines()).into_iter().collect::<BTreeMap<_, _>>();
        let (open, hydra) = (of(Launcher::Open("/b/mpirun".into())), of(Launcher::Hydra("/b/mpirun".into())));
        for name in ["OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent"] {
            assert_eq!(open[name], "/a/mpi/shell");
        }
        for name in ["HYDRA_LAUNCHER_EXEC", "I_MPI_HYDRA_BOOTSTRAP_EXEC"] {
            assert_eq!(hydra[name], "/a/mpi/shell");
        }
        assert_eq!(hydra["I_MPI_HYDRA_IFACE"], "eth0");
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
        assert_eq!(failed_rank("The first process to do so was:\n\n   Process name: [prterun-n1-2034@1,2] Exit code:    7\n"), Some(2));
        assert_eq!(failed_rank("mpirun noticed that process rank 2 with PID 17 on node n1 exited on signal 9 (Killed)."), Some(2));
        assert_eq!(failed_rank("=   RANK 5 PID 123 RUNNING AT n2\n"), Some(5));
        assert_eq!(failed_rank("srun: error: n2: task 1: Exited with exit code 3\n"), Some(1));
        assert_eq!(failed_rank("nothing of the kind"), None);
    }

    #[test]
    fn several_machines_are_reached_through_slurm_or_through_their_agents() {
        let dir = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(dir.path());
        let node =
            |node: u32, host: &str| Node { node, host: host.into(), ports: vec![7], phase: NodePhase::Ready, cause: None, ended_us: None };
        let spread = Distribution { node_count: 2, processes_per_node: 1, communication: Communication::Mpi };
        let reach_of = |nodes: &[Node], set: &[&str], around: Around| {
            let variables = set.iter().map(|name| ((*name).into(), "17".into())).collect();
            reach(&Wish { spread: &spread, nodes, by: None, around, folder: &folder, key: Some(&"5a".repeat(32)) }, &variables)
        };
        let (one, two) = ([node(0, "a"), node(1, "a")], [node(0, "a"), node(1, "b")]);
        assert_eq!(reach_of(&one, &[], Around::Machine).unwrap(), Reach::Here);
        assert_eq!(reach_of(&two, &[IN_SLURM], Around::Machine).unwrap(), Reach::Slurm);
        assert!(matches!(reach_of(&two, &[], Around::Machine), Ok(Reach::Agents(_))));
        let shared = reach_of(&one, &[OWN_POD_VARIABLE], Around::Machine).unwrap_err();
        assert!(shared.message.contains("have the same address"), "pods are never one machine: {shared:?}");
        let contained = reach_of(&two, &[], Around::Container).unwrap_err();
        assert!(contained.by_definition && contained.message.contains("not possible from inside a container"));
    }
}
