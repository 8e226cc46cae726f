//! The processes of the user's code on one node: what each is started with, and what they are together.
//!
//! One process for most runs; one for each local rank of a distributed one; a launcher where MPI starts the ranks. The order is that of the local
//! ranks, in which TensorFlow's workers come before its parameter servers.

use std::{collections::BTreeMap, fs, io, path::Path};

use trainyard_core::{
    definition::distribution::{Rank, TaskKind},
    run::Cause,
};

use super::{
    contained::Contained,
    folder::MainProcess,
    life::Attempt,
    mpi::{self, Around},
    outputs::OUTPUTS,
    process::{Launch, NotStarted, Reaper},
    ranks::{self, Place},
    supervise::Ready,
    variables::{Sources, command_line, variables},
};

/// The variables that give devices to a run; the target's list is that of all nodes of the attempt.
const DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// The processes of a node.
pub(super) struct Crew {
    members: Vec<Member>,
    mains: Vec<MainProcess>,
    /// Whether one of them starts the others, here and elsewhere.
    is_launched: bool,
    /// Whether it does so through the agents of the other nodes.
    is_over_agents: bool,
    /// Whether the run is one process, so that nobody needs to be told which it was.
    is_single: bool,
}

struct Member {
    /// `None`: a launcher.
    rank: Option<Rank>,
    launch: Option<Launch>,
    container: Option<Contained>,
}

impl Crew {
    /// Starts them all, in their order.
    pub(super) fn start(&mut self, reaper: &mut Reaper) -> Result<(), NotStarted> {
        for member in &mut self.members {
            // Dropped when it is started: it holds the run's token.
            let Some(launch) = member.launch.take() else { continue };
            self.mains.push(reaper.spawn(&launch)?);
        }
        Ok(())
    }

    /// Those that were started.
    pub(super) fn mains(&self) -> Vec<MainProcess> {
        self.mains.clone()
    }

    /// Whether there is only one.
    pub(super) fn is_one(&self) -> bool {
        self.members.len() == 1 && !self.has_servants()
    }

    /// How many of them, the first ones, have an end that is waited for: parameter servers have none.
    pub(super) fn awaited(&self) -> usize {
        self.members.iter().filter(|member| !member.serves()).count()
    }

    /// Whether some of them serve the others and end when these have.
    pub(super) fn has_servants(&self) -> bool {
        self.members.iter().any(Member::serves)
    }

    /// Whether they are in containers that their engine ends as a whole.
    pub(super) fn is_contained(&self) -> bool {
        self.members.iter().any(|member| member.container.as_ref().is_some_and(Contained::passes_signals_on))
    }

    /// The container of the process at a place.
    pub(super) fn container(&self, place: usize) -> Option<&Contained> {
        self.members.get(place)?.container.as_ref()
    }

    /// Removes what is left of the containers.
    pub(super) async fn remove_containers(&self, attempt: &Attempt) {
        for container in self.members.iter().filter_map(|member| member.container.as_ref()) {
            if let Err(error) = container.remove().await {
                attempt.warn(format!("the container of the run could not be removed: {error}"));
            }
        }
    }

    /// The cause of the end of the process at `place`, with which of the run's processes it was.
    pub(super) fn blame(&self, attempt: &Attempt, place: usize, cause: Cause) -> Cause {
        if self.is_single || cause == Cause::Completed {
            return cause;
        }
        let (node, host) = attempt.meeting.own();
        if self.is_launched {
            let (nodes, each) = (attempt.meeting.nodes(), attempt.definition.distribution.processes_per_node);
            let elsewhere = |rank: Option<u32>| {
                nodes.iter().find(|known| self.is_over_agents && Some(known.node) == rank.map(|rank| rank / each.max(1)))
            };
            let place = |rank| elsewhere(rank).map_or((node, host.as_str()), |known| (known.node, known.host.as_str()));
            return mpi::blame(cause, place, &attempt.folder.driver_log());
        }
        let rank = self.members.get(place).and_then(|member| member.rank).map(|rank| rank.rank);
        cause.of_part(rank, (node, &host))
    }
}

impl Member {
    fn serves(&self) -> bool {
        self.rank.and_then(|rank| rank.task).is_some_and(|task| task.kind == TaskKind::Ps)
    }
}

/// Everything that the start of a node's processes needs, or why it is not possible.
pub(super) fn launches(attempt: &Attempt, ready: &Ready) -> Result<Crew, NotStarted> {
    let spread = &attempt.definition.distribution;
    make_folders(attempt)?;
    let own_ranks = if spread.is_launched() { vec![None] } else { spread.ranks(attempt.folder.node()).into_iter().map(Some).collect() };
    let several = own_ranks.len() > 1;
    let mut is_over_agents = false;
    let mut members = Vec::with_capacity(own_ranks.len());
    for rank in own_ranks {
        let log = match rank {
            Some(rank) if spread.world_size() > 1 => attempt.folder.rank_log(rank.rank),
            _ => attempt.folder.driver_log(),
        };
        let container = ready.container.as_ref().map(|container| match rank {
            Some(rank) if several => container.for_rank(rank.rank, &log),
            Some(_) => container.logging_to(&log),
            None => container.clone(),
        });
        let mut launch = launch(attempt, ready, (rank, &log, container.as_ref()))?;
        if spread.is_launched() {
            let (nodes, by, key) = (attempt.meeting.nodes(), attempt.order.mpi.as_deref(), attempt.order.node_key.as_deref());
            let around = if container.is_some() { Around::Container } else { Around::Machine };
            is_over_agents = container.is_none() && mpi::goes_through_agents(&nodes, &launch.variables);
            launch = mpi::around(&mpi::Wish { spread, nodes: &nodes, by, around, folder: &attempt.folder, key }, launch)?;
        }
        if let Some(container) = &container {
            launch = container.around(attempt, launch, ready, &std::env::vars_os().collect())?;
        }
        members.push(Member { rank, launch: Some(launch), container });
    }
    Ok(Crew { members, mains: Vec::new(), is_launched: spread.is_launched(), is_over_agents, is_single: spread.is_single() })
}

/// What the processes are started with that a launcher on another node starts on this one.
pub(super) fn of_rank(attempt: &Attempt, ready: &Ready) -> Result<Launch, NotStarted> {
    make_folders(attempt)?;
    let mut launch = launch(attempt, ready, (None, &attempt.folder.driver_log(), None))?;
    mpi::note_rank(&attempt.folder, &mut launch)?;
    Ok(launch)
}

/// The folders that the code finds in its working directory.
fn make_folders(attempt: &Attempt) -> Result<(), NotStarted> {
    for name in [OUTPUTS, "logs"] {
        make_folder(&attempt.folder.work().join(name)).map_err(|error| NotStarted {
            message: format!("the folder `{name}` cannot be made in the working directory: {error}"),
            by_definition: false,
        })?;
    }
    Ok(())
}

/// What one process is started with, before any launcher and any container around it.
fn launch(
    attempt: &Attempt,
    ready: &Ready,
    (rank, log, container): (Option<Rank>, &Path, Option<&Contained>),
) -> Result<Launch, NotStarted> {
    let (work, definition) = (attempt.folder.work(), &ready.definition);
    let (program, arguments) =
        command_line(definition, &ready.interpreter, &work).map_err(|message| NotStarted { message, by_definition: true })?;
    let (token, token_expires_on) = attempt.client.token();
    let (id, logs, nodes) = (attempt.id.to_string(), attempt.folder.logs(), attempt.meeting.nodes());
    let (node, spread) = (attempt.folder.node(), &definition.distribution);
    let own: BTreeMap<_, _> = std::env::vars_os().collect();
    let (variables, warnings) = variables(&Sources {
        own: container.map_or_else(|| own.clone(), |container| container.surroundings(&own)),
        environment: &ready.variables,
        server: &of_server(attempt),
        attempt: &id,
        endpoint: &attempt.order.endpoint,
        token: (&token, token_expires_on),
        work: &work,
        logs: &logs,
        log,
        ca_bundle: &ready.ca_bundle,
        prefix: ready.prefix.as_deref(),
        ranks: &ranks::variables(&Place { spread, node, rank, nodes: &nodes, folders: (&work, &logs) }),
        node,
        data: &ready.data,
        definition,
    });
    // The same for every process.
    if rank.is_none_or(|rank| rank.local_rank == 0) {
        warnings.into_iter().for_each(|warning| attempt.warn(warning));
    }
    Ok(Launch { program, arguments, variables, directory: work, output: log.to_owned() })
}

/// What the server knows, with this node's part of the devices that the target gives to the attempt.
fn of_server(attempt: &Attempt) -> BTreeMap<String, String> {
    let mut variables = attempt.order.variables.clone();
    let spread = &attempt.definition.distribution;
    if spread.node_count > 1
        && !spread.is_launched()
        && let Some(devices) = variables.get_mut(DEVICES)
    {
        *devices = ranks::devices_of(devices, attempt.folder.node(), spread.node_count);
    }
    variables
}

/// A snapshot may bring the folder, or even a file of that name; with a file nothing is kept, which the collection says.
fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
