//! On how many nodes and in how many processes a run goes on: `NodeCount`, `Communicator`, `Framework` and the section of the communicator
//! (azureml-wire D.3, D.7).
//!
//! Clients send the sections of all communicators with their defaults, and the SDK repeats the number of nodes in some of them. What is left at its
//! default says nothing; what is not and contradicts something else, or belongs to another communicator, is refused with both names.

use trainyard_core::{
    Result,
    definition::{
        Communication, Distribution, TorchBackend,
        distribution::{MAX_NODES, MAX_PROCESSES},
    },
};
use trainyard_wire::azureml::{
    definition::RunConfiguration,
    sections::{CommunicationBackend, Communicator, Framework},
};

use super::definition::Places;

/// The distribution that a configuration asks for.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`] for what contradicts itself or is too much.
pub(super) fn to_distribution(asked: &RunConfiguration, places: Places<'_>) -> Result<Distribution> {
    let node_count = within("NodeCount", asked.node_count, (1, MAX_NODES), places)?;
    of_other_communicators(asked, places)?;
    match_framework(asked, places)?;
    let (processes_per_node, communication) = match asked.communicator {
        // Parallel tasks are refused before.
        Communicator::None | Communicator::ParallelTask => (1, Communication::None),
        Communicator::Mpi => {
            same_nodes(asked, ("Mpi.NodeCount", asked.mpi.node_count), places)?;
            let each = within("Mpi.ProcessCountPerNode", asked.mpi.process_count_per_node, (1, MAX_PROCESSES), places)?;
            (each, Communication::Mpi)
        }
        Communicator::Nccl | Communicator::Gloo => torch(asked, node_count, places)?,
        Communicator::ParameterServer => tasks(asked, node_count, places)?,
    };
    let spread = Distribution { node_count, processes_per_node, communication };
    if spread.world_size() > MAX_PROCESSES {
        let message = format!(
            " = {node_count} with {processes_per_node} processes on each is more than this server starts for one run: at most {MAX_PROCESSES}"
        );
        return Err(places.invalid("NodeCount", message));
    }
    Ok(spread)
}

fn torch(asked: &RunConfiguration, node_count: u32, places: Places<'_>) -> Result<(u32, Communication)> {
    same_nodes(asked, ("PyTorch.NodeCount", asked.py_torch.node_count), places)?;
    let backend = match (asked.communicator, asked.py_torch.communication_backend) {
        (Communicator::Nccl, CommunicationBackend::Gloo) => {
            return Err(places.invalid("PyTorch.CommunicationBackend", format!(" = gloo, but {} = Nccl", places.path("Communicator"))));
        }
        (Communicator::Gloo, _) => TorchBackend::Gloo,
        _ => TorchBackend::Nccl,
    };
    // `null` is one process on each node.
    let Some(count) = asked.py_torch.process_count else { return Ok((1, Communication::Torch { backend })) };
    let processes = within("PyTorch.ProcessCount", count, (1, MAX_PROCESSES), places)?;
    if !processes.is_multiple_of(node_count) {
        let message = format!(
            " = {processes} cannot be divided among {} = {node_count}: it is the number of all processes, the same on every node",
            places.path("NodeCount")
        );
        return Err(places.invalid("PyTorch.ProcessCount", message));
    }
    Ok((processes / node_count, Communication::Torch { backend }))
}

fn tasks(asked: &RunConfiguration, node_count: u32, places: Places<'_>) -> Result<(u32, Communication)> {
    let workers = within("Tensorflow.WorkerCount", asked.tensorflow.worker_count, (1, MAX_PROCESSES), places)?;
    let parameter_servers = within("Tensorflow.ParameterServerCount", asked.tensorflow.parameter_server_count, (0, MAX_PROCESSES), places)?;
    if node_count > workers.max(parameter_servers) {
        let message = format!(
            " = {node_count} is more than {} = {workers} and {} = {parameter_servers} need: some nodes would have nothing to do",
            places.path("Tensorflow.WorkerCount"),
            places.path("Tensorflow.ParameterServerCount")
        );
        return Err(places.invalid("NodeCount", message));
    }
    let most = workers.div_ceil(node_count).saturating_add(parameter_servers.div_ceil(node_count));
    Ok((most, Communication::ParameterServer { workers, parameter_servers }))
}

/// What a framework cannot talk through.
fn match_framework(asked: &RunConfiguration, places: Places<'_>) -> Result<()> {
    let fits = match asked.communicator {
        Communicator::None | Communicator::Mpi | Communicator::ParallelTask => true,
        Communicator::Nccl | Communicator::Gloo => matches!(asked.framework, Framework::Python | Framework::PyTorch),
        Communicator::ParameterServer => asked.framework == Framework::TensorFlow,
    };
    if fits {
        return Ok(());
    }
    let needs = match asked.communicator {
        Communicator::ParameterServer => "it is for TensorFlow",
        _ => "it is for PyTorch (or for Python that reads the same variables)",
    };
    let (communicator, framework) = (asked.communicator.as_str(), asked.framework.as_str());
    Err(places.invalid("Communicator", format!(" = {communicator}, but {} = {framework}: {needs}", places.path("Framework"))))
}

/// What belongs to a communicator that is not the run's, and asks for more than its default.
fn of_other_communicators(asked: &RunConfiguration, places: Places<'_>) -> Result<()> {
    let is_torch = matches!(asked.communicator, Communicator::Nccl | Communicator::Gloo);
    let rows = [
        (asked.communicator == Communicator::Mpi, "Mpi.ProcessCountPerNode", asked.mpi.process_count_per_node, "Mpi"),
        (asked.communicator == Communicator::Mpi, "Mpi.NodeCount", asked.mpi.node_count, "Mpi"),
        (is_torch, "PyTorch.ProcessCount", asked.py_torch.process_count.unwrap_or(1), "Nccl or Gloo"),
        (is_torch, "PyTorch.NodeCount", asked.py_torch.node_count, "Nccl or Gloo"),
        (asked.communicator == Communicator::ParameterServer, "Tensorflow.WorkerCount", asked.tensorflow.worker_count, "ParameterServer"),
        (
            asked.communicator == Communicator::ParameterServer,
            "Tensorflow.ParameterServerCount",
            asked.tensorflow.parameter_server_count,
            "ParameterServer",
        ),
    ];
    match rows.into_iter().find(|(is_its_own, _, number, _)| !is_its_own && *number > 1) {
        None => Ok(()),
        Some((_, property, number, wanted)) => {
            let (path, communicator) = (places.path("Communicator"), asked.communicator.as_str());
            Err(places.invalid(property, format!(" = {number}, but {path} = {communicator}: it is only used with {wanted}")))
        }
    }
}

/// A section that names the number of nodes again must name the same. 1 is its default.
fn same_nodes(asked: &RunConfiguration, (property, number): (&str, i64), places: Places<'_>) -> Result<()> {
    if number <= 1 || number == asked.node_count {
        return Ok(());
    }
    Err(places.invalid(property, format!(" = {number}, but {} = {}", places.path("NodeCount"), asked.node_count)))
}

fn within(property: &str, number: i64, (least, most): (u32, u32), places: Places<'_>) -> Result<u32> {
    match u32::try_from(number) {
        Ok(fitting) if (least..=most).contains(&fitting) => Ok(fitting),
        _ => Err(places.invalid(property, format!(" = {number} is not possible: it must be {least} to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use trainyard_wire::azureml::execution::SubmissionEnvelope;

    use super::*;

    fn spread(configuration: Value) -> Result<Distribution> {
        let envelope = SubmissionEnvelope::read(json!({ "Configuration": configuration })).unwrap();
        to_distribution(&envelope.configuration.asked, Places(&envelope.configuration.spelling))
    }

    #[test]
    fn what_the_sdk_sends_for_distributed_jobs_is_understood() {
        let table = [
            (json!({}), (1, 1, Communication::None)),
            (json!({ "NodeCount": 3 }), (3, 1, Communication::None)),
            (
                json!({ "NodeCount": 2, "Communicator": "IntelMpi", "Mpi": { "ProcessCountPerNode": 4, "NodeCount": 2 } }),
                (2, 4, Communication::Mpi),
            ),
            (json!({ "NodeCount": 4, "Communicator": "OpenMpi", "Mpi": { "ProcessCountPerNode": 1 } }), (4, 1, Communication::Mpi)),
            (
                json!({ "nodeCount": 2, "communicator": "nccl", "framework": "PyTorch",
                        "pytorch": { "communicationBackend": "nccl", "processCount": 8, "nodeCount": 2 } }),
                (2, 4, Communication::Torch { backend: TorchBackend::Nccl }),
            ),
            (
                json!({ "nodeCount": 2, "communicator": "gloo", "framework": "PyTorch", "pytorch": { "processCount": null } }),
                (2, 1, Communication::Torch { backend: TorchBackend::Gloo }),
            ),
            (
                json!({ "NodeCount": 2, "Communicator": "ParameterServer", "Framework": "TensorFlow",
                        "Tensorflow": { "WorkerCount": 2, "ParameterServerCount": 1 } }),
                (2, 2, Communication::ParameterServer { workers: 2, parameter_servers: 1 }),
            ),
        ];
        for (configuration, (node_count, processes_per_node, communication)) in table {
            let found = spread(configuration.clone()).unwrap();
            assert_eq!(found, Distribution { node_count, processes_per_node, communication }, "{configuration}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_both_names() {
        let table = [
            (json!({ "NodeCount": 0 }), vec!["NodeCount = 0", "1 to 1024"]),
            (json!({ "NodeCount": 2, "Communicator": "Mpi", "Mpi": { "NodeCount": 3 } }), vec!["Mpi.NodeCount = 3", "NodeCount = 2"]),
            (json!({ "Communicator": "Nccl", "Framework": "TensorFlow" }), vec!["Communicator = Nccl", "Framework = TensorFlow"]),
            (json!({ "Communicator": "ParameterServer" }), vec!["Communicator = ParameterServer", "Framework = Python"]),
            (
                json!({ "NodeCount": 2, "Communicator": "Gloo", "PyTorch": { "ProcessCount": 3 } }),
                vec!["PyTorch.ProcessCount = 3", "NodeCount = 2"],
            ),
            (
                json!({ "Communicator": "Nccl", "PyTorch": { "CommunicationBackend": "gloo" } }),
                vec!["CommunicationBackend = gloo", "Communicator = Nccl"],
            ),
            (json!({ "Mpi": { "ProcessCountPerNode": 2 } }), vec!["Mpi.ProcessCountPerNode = 2", "Communicator = None"]),
            (
                json!({ "Communicator": "Gloo", "Tensorflow": { "WorkerCount": 2 } }),
                vec!["Tensorflow.WorkerCount = 2", "Communicator = Gloo"],
            ),
            (
                json!({ "NodeCount": 5, "Communicator": "ParameterServer", "Framework": "TensorFlow", "Tensorflow": { "WorkerCount": 2 } }),
                vec!["NodeCount = 5", "Tensorflow.WorkerCount = 2"],
            ),
            (
                json!({ "NodeCount": 1000, "Communicator": "Mpi", "Mpi": { "ProcessCountPerNode": 100 } }),
                vec!["NodeCount = 1000 with 100 processes", "at most 4096"],
            ),
        ];
        for (configuration, words) in table {
            let error = spread(configuration.clone()).unwrap_err();
            for word in words {
                assert!(error.message().contains(word), "{configuration}: {} lacks `{word}`", error.message());
            }
        }
    }
}
