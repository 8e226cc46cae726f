//! How a run is spread: its nodes, its processes, and which process is who.
//!
//! Everything that must be the same on every node is computed here from the same data: the rank of a process, the node that a task of
//! TensorFlow lives on. A node needs to know its own index and nothing else.
//!
//! Invariant: the ranks of all nodes together are `0..world_size()`, each exactly once.

use serde::{Deserialize, Serialize};

/// The most nodes that a run may ask for.
pub const MAX_NODES: u32 = 1_024;
/// The most processes that a run may consist of, over all of its nodes: each has a log and a place in the variables of the others.
pub const MAX_PROCESSES: u32 = 4_096;

/// On how many nodes a run goes on, in how many processes, and how these talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Nodes, at least one; a run has all of them or none.
    pub node_count: u32,
    /// Processes on each node, at least one. Of a run with parameter servers: the most on one node.
    pub processes_per_node: u32,
    /// How they talk.
    #[serde(default)]
    pub communication: Communication,
}

/// How the processes of a run find each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Communication {
    /// Not at all, as far as this server knows: the code runs once on every node.
    #[default]
    None,
    /// Started by the `mpirun` that is installed (or by Slurm) on node 0, for all nodes, whichever MPI the definition names.
    Mpi,
    /// The variables of `torch.distributed` (azureml-wire F.3).
    Torch {
        /// What it talks through; for the code to know.
        backend: TorchBackend,
    },
    /// The variables of TensorFlow (azureml-wire F.3): worker `i` and parameter server `i` live on node `i` modulo the nodes.
    ParameterServer {
        /// Workers, at least one.
        workers: u32,
        /// Parameter servers.
        parameter_servers: u32,
    },
}

/// What `torch.distributed` talks through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorchBackend {
    /// NCCL, between GPUs.
    Nccl,
    /// Gloo, between processors.
    Gloo,
}

/// One process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Its number among all processes of the run.
    pub rank: u32,
    /// Its number among the processes of its node.
    pub local_rank: u32,
    /// What it is for TensorFlow; `None` for everybody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
}

/// A task of a TensorFlow cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What it does.
    pub kind: TaskKind,
    /// Its number among those that do the same.
    pub index: u32,
}

/// What a task of a TensorFlow cluster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// It computes.
    Worker,
    /// It holds parameters.
    Ps,
}

impl TaskKind {
    /// The word of `TF_CONFIG`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Ps => "ps",
        }
    }
}

impl Default for Distribution {
    fn default() -> Self {
        Self { node_count: 1, processes_per_node: 1, communication: Communication::None }
    }
}

impl Distribution {
    /// Whether this is one process on one node that talks to nobody.
    pub fn is_single(&self) -> bool {
        *self == Self::default()
    }

    /// How many processes there are in all.
    pub fn world_size(&self) -> u32 {
        match self.communication {
            Communication::None | Communication::Mpi | Communication::Torch { .. } => {
                self.node_count.saturating_mul(self.processes_per_node)
            }
            Communication::ParameterServer { workers, parameter_servers } => workers.saturating_add(parameter_servers),
        }
    }

    /// Whether a launcher on node 0 starts the processes of all nodes.
    pub fn is_launched(&self) -> bool {
        matches!(self.communication, Communication::Mpi)
    }

    /// The processes of a node, by local rank. The ranks of a run with parameter servers are its workers, then its parameter servers.
    pub fn ranks(&self, node: u32) -> Vec<Rank> {
        match self.communication {
            Communication::None | Communication::Mpi | Communication::Torch { .. } => (0..self.processes_per_node)
                .map(|local_rank| Rank { rank: node * self.processes_per_node + local_rank, local_rank, task: None })
                .collect(),
            Communication::ParameterServer { .. } => self
                .tasks()
                .zip(0..)
                .filter(|(task, _)| self.node_of(*task) == node)
                .zip(0..)
                .map(|((task, rank), local_rank)| Rank { rank, local_rank, task: Some(task) })
                .collect(),
        }
    }

    /// The tasks of a TensorFlow cluster, by rank; none for everybody else.
    pub fn tasks(&self) -> impl Iterator<Item = Task> + use<> {
        let (workers, parameter_servers) = match self.communication {
            Communication::ParameterServer { workers, parameter_servers } => (workers, parameter_servers),
            Communication::None | Communication::Mpi | Communication::Torch { .. } => (0, 0),
        };
        let of = |kind: TaskKind, count: u32| (0..count).map(move |index| Task { kind, index });
        of(TaskKind::Worker, workers).chain(of(TaskKind::Ps, parameter_servers))
    }

    /// The word of azureml-wire D.3 for how they talk.
    pub fn communicator(&self) -> &'static str {
        match self.communication {
            Communication::None => "None",
            Communication::Mpi => "Mpi",
            Communication::Torch { backend: TorchBackend::Nccl } => "Nccl",
            Communication::Torch { backend: TorchBackend::Gloo } => "Gloo",
            Communication::ParameterServer { .. } => "ParameterServer",
        }
    }

    /// The node that a task lives on.
    pub fn node_of(&self, task: Task) -> u32 {
        task.index % self.node_count.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_of_a_run_exists_exactly_once() {
        for node_count in 1..5 {
            for processes_per_node in 1..4 {
                let torch = Communication::Torch { backend: TorchBackend::Gloo };
                let cluster = Communication::ParameterServer { workers: node_count, parameter_servers: processes_per_node };
                for communication in [Communication::None, torch, cluster] {
                    let spread = Distribution { node_count, processes_per_node, communication };
                    let mut ranks: Vec<u32> = (0..node_count).flat_map(|node| spread.ranks(node)).map(|rank| rank.rank).collect();
                    ranks.sort_unstable();
                    assert_eq!(ranks, (0..spread.world_size()).collect::<Vec<_>>(), "{spread:?}");
                }
            }
        }
    }

    #[test]
    fn a_worker_and_a_parameter_server_share_a_node() {
        let communication = Communication::ParameterServer { workers: 2, parameter_servers: 1 };
        let spread = Distribution { node_count: 2, processes_per_node: 2, communication };
        let first = spread.ranks(0);
        assert_eq!(first.len(), 2);
        assert_eq!(first[1], Rank { rank: 2, local_rank: 1, task: Some(Task { kind: TaskKind::Ps, index: 0 }) });
        assert_eq!(spread.ranks(1), [Rank { rank: 1, local_rank: 0, task: Some(Task { kind: TaskKind::Worker, index: 1 }) }]);
    }

    #[test]
    fn a_definition_of_before_is_one_process() {
        let old: Option<Distribution> = serde_json::from_str("null").unwrap();
        assert!(old.unwrap_or_default().is_single());
    }
}
