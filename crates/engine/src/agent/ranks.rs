//! What tells the processes of a run apart: the variables of azureml-wire F.3, and those of F.2 that several nodes or processes make meaningful.
//! A pure function of what the nodes have told each other.

use std::path::Path;

use serde::Serialize;
use trainyard_core::definition::{
    Communication, Distribution,
    distribution::{Rank, Task, TaskKind},
};
use trainyard_wire::native::Node;

/// One process of a run, and everything that its variables are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) spread: &'a Distribution,
    /// The node.
    pub(super) node: u32,
    /// The process; `None`: the launcher of all of them.
    pub(super) rank: Option<Rank>,
    /// All nodes.
    pub(super) nodes: &'a [Node],
    /// The working directory, and the folder of logs.
    pub(super) folders: (&'a Path, &'a Path),
}

/// `TF_CONFIG`, in the order of its documents.
#[derive(Serialize)]
struct TfConfig {
    cluster: Cluster,
    task: TfTask,
    environment: &'static str,
}

#[derive(Serialize)]
struct Cluster {
    worker: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ps: Vec<String>,
}

#[derive(Serialize)]
struct TfTask {
    #[serde(rename = "type")]
    kind: &'static str,
    index: u32,
}

/// The variables of a process; none for a run that is one.
pub(super) fn variables(place: &Place<'_>) -> Vec<(&'static str, String)> {
    let Place { spread, node, rank, folders: (work, logs), .. } = *place;
    if spread.is_single() {
        return Vec::new();
    }
    let (host, port) = place.master();
    let mut all = vec![
        ("AZ_BATCH_NODE_ID", format!("node-{node}")),
        ("AZ_BATCH_IS_CURRENT_NODE_MASTER", (node == 0).to_string()),
        ("AZ_BATCH_MASTER_NODE", address(&host, port)),
        ("AZ_BATCHAI_JOB_WORK_DIR", work.to_string_lossy().into_owned()),
        ("AZ_BATCHAI_STDOUTERR_DIR", logs.to_string_lossy().into_owned()),
    ];
    if let Some(rank) = rank
        && spread.world_size() > 1
    {
        all.push(("AZUREML_PROCESS_NAME", format!("rank_{}", rank.rank)));
    }
    match (spread.communication, rank) {
        (Communication::Torch { .. }, Some(rank)) => {
            all.extend(meeting_place(&host, port, node));
            all.extend([
                ("WORLD_SIZE", spread.world_size().to_string()),
                ("LOCAL_WORLD_SIZE", spread.processes_per_node.to_string()),
                ("RANK", rank.rank.to_string()),
                ("LOCAL_RANK", rank.local_rank.to_string()),
            ]);
        }
        // For `torchrun` and the like, which the code may start itself.
        (Communication::None, Some(_)) => all.extend(meeting_place(&host, port, node)),
        (Communication::ParameterServer { .. }, Some(Rank { task: Some(task), .. })) => all.extend(place.of_task(task)),
        // Whoever launches them tells them who they are.
        (Communication::Mpi, _) | (_, None) | (Communication::ParameterServer { .. }, Some(Rank { task: None, .. })) => {}
    }
    all
}

fn meeting_place(host: &str, port: u16, node: u32) -> [(&'static str, String); 3] {
    [("MASTER_ADDR", host.to_owned()), ("MASTER_PORT", port.to_string()), ("NODE_RANK", node.to_string())]
}

impl Place<'_> {
    /// Where node 0 is.
    fn master(&self) -> (String, u16) {
        let first = self.nodes.iter().find(|node| node.node == 0);
        first.map_or_else(Default::default, |node| (node.host.clone(), node.ports.first().copied().unwrap_or(0)))
    }

    fn of_task(&self, task: Task) -> Vec<(&'static str, String)> {
        let (worker, ps) = (self.addresses(TaskKind::Worker), self.addresses(TaskKind::Ps));
        let hosts = (worker.join(","), ps.join(","));
        let kind = task.kind.as_str();
        let config = TfConfig { cluster: Cluster { worker, ps }, task: TfTask { kind, index: task.index }, environment: "cloud" };
        let mut all = vec![
            ("AZ_BATCHAI_WORKER_HOSTS", hosts.0),
            ("AZ_BATCHAI_PS_HOSTS", hosts.1),
            ("AZ_BATCHAI_TASK_TYPE", kind.to_owned()),
            ("AZ_BATCHAI_TASK_INDEX", task.index.to_string()),
        ];
        if let Ok(config) = serde_json::to_string(&config) {
            all.push(("TF_CONFIG", config));
        }
        all
    }

    /// Where the tasks of a kind listen, by index.
    fn addresses(&self, kind: TaskKind) -> Vec<String> {
        let tasks = self.spread.tasks().filter(|task| task.kind == kind);
        let address = |task: Task| {
            let node = self.spread.node_of(task);
            let local = self.spread.ranks(node).into_iter().find(|rank| rank.task == Some(task)).map_or(0, |rank| rank.local_rank);
            let known = self.nodes.iter().find(|known| known.node == node);
            known.map_or_else(String::new, |known| address(&known.host, known.ports.get(local as usize).copied().unwrap_or(0)))
        };
        tasks.map(address).collect()
    }
}

fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The part of a list of devices (`0,1,2,3`) that is a node's, where several nodes of an attempt are on one machine and share its list.
pub(super) fn devices_of(list: &str, node: u32, node_count: u32) -> String {
    let devices: Vec<&str> = list.split(',').filter(|device| !device.is_empty()).collect();
    let each = devices.len() / node_count.max(1) as usize;
    devices.iter().skip(each * node as usize).take(each).copied().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trainyard_core::definition::TorchBackend;
    use trainyard_wire::native::NodePhase;

    use super::*;

    fn of(spread: Distribution, node: u32, local_rank: usize, ports: &[u16]) -> BTreeMap<&'static str, String> {
        let known = |node: u32| Node {
            node,
            host: format!("10.0.0.{node}"),
            ports: ports.to_vec(),
            phase: NodePhase::Ready,
            cause: None,
            ended_us: None,
        };
        let nodes: Vec<Node> = (0..spread.node_count).map(known).collect();
        let rank = spread.ranks(node).get(local_rank).copied();
        variables(&Place { spread: &spread, node, rank, nodes: &nodes, folders: (Path::new("/w"), Path::new("/l")) }).into_iter().collect()
    }

    #[test]
    fn torch_gets_the_variables_of_its_own_launcher() {
        let communication = Communication::Torch { backend: TorchBackend::Gloo };
        let all = of(Distribution { node_count: 2, processes_per_node: 2, communication }, 1, 0, &[6105]);
        let expected = [
            ("MASTER_ADDR", "10.0.0.0"),
            ("MASTER_PORT", "6105"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("NODE_RANK", "1"),
            ("RANK", "2"),
            ("LOCAL_RANK", "0"),
            ("AZ_BATCH_MASTER_NODE", "10.0.0.0:6105"),
            ("AZ_BATCH_IS_CURRENT_NODE_MASTER", "false"),
            ("AZUREML_PROCESS_NAME", "rank_2"),
        ];
        for (name, value) in expected {
            assert_eq!(all[name], value, "{name}");
        }
    }

    #[test]
    fn tensorflow_gets_its_cluster_and_its_task() {
        let communication = Communication::ParameterServer { workers: 2, parameter_servers: 1 };
        let spread = Distribution { node_count: 2, processes_per_node: 2, communication };
        let all = of(spread, 0, 1, &[2222, 2223]);
        assert_eq!(
            all["TF_CONFIG"],
            r#"{"cluster":{"worker":["10.0.0.0:2222","10.0.0.1:2222"],"ps":["10.0.0.0:2223"]},"task":{"type":"ps","index":0},"environment":"cloud"}"#
        );
        assert_eq!((all["AZ_BATCHAI_PS_HOSTS"].as_str(), all["AZ_BATCHAI_TASK_INDEX"].as_str()), ("10.0.0.0:2223", "0"));
        assert_eq!(of(spread, 1, 0, &[2222])["AZ_BATCHAI_WORKER_HOSTS"], "10.0.0.0:2222,10.0.0.1:2222");
    }

    #[test]
    fn a_run_that_is_one_process_gets_nothing_and_one_on_several_nodes_learns_where_the_first_is() {
        assert!(of(Distribution::default(), 0, 0, &[6105]).is_empty());
        let all = of(Distribution { node_count: 2, ..Distribution::default() }, 1, 0, &[6105]);
        assert_eq!((all["MASTER_ADDR"].as_str(), all["NODE_RANK"].as_str(), all.get("RANK")), ("10.0.0.0", "1", None));
    }

    #[test]
    fn nodes_on_one_machine_divide_its_devices() {
        assert_eq!((devices_of("0,1,2,3", 0, 2), devices_of("0,1,2,3", 1, 2)), ("0,1".to_owned(), "2,3".to_owned()));
        assert_eq!((devices_of("5", 0, 1).as_str(), devices_of("", 1, 2).as_str()), ("5", ""));
        assert_eq!(address("::1", 6105), "[::1]:6105");
    }
}
