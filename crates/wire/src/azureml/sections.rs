//! The sections of a run configuration other than its environment and data (azureml-wire D.3).
//!
//! Defaults are those the SDK sends and the service fills in. Where a section holds settings for a machine or framework that
//! this server does not act on, it is read all the same, so that what asks for more than its default can be refused by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::runs::TextMap;
use crate::json::{FromJson, WireError, object, words};

words! {
    /// `framework`
    pub enum Framework {
        /// Plain Python.
        Python = "Python",
        /// Spark.
        PySpark = "PySpark",
        /// CNTK.
        Cntk = "Cntk",
        /// TensorFlow.
        TensorFlow = "TensorFlow",
        /// PyTorch.
        PyTorch = "PyTorch",
    }
}

words! {
    /// `communicator`; clients also send the names of MPI implementations.
    pub enum Communicator {
        /// One process.
        None = "None",
        /// Workers and parameter servers.
        ParameterServer = "ParameterServer",
        /// PyTorch over Gloo.
        Gloo = "Gloo",
        /// MPI.
        Mpi = "Mpi" | "OpenMpi" | "IntelMpi",
        /// PyTorch over NCCL.
        Nccl = "Nccl",
        /// Many small tasks.
        ParallelTask = "ParallelTask",
    }
}

words! {
    /// `pyTorch.communicationBackend`, canonically in lower case.
    pub enum CommunicationBackend {
        /// NCCL.
        Nccl = "nccl",
        /// Gloo.
        Gloo = "gloo",
    }
}

words! {
    /// `hdi.yarnDeployMode`
    pub enum YarnDeployMode {
        /// Not set.
        None = "None",
        /// The driver runs at the client.
        Client = "Client",
        /// The driver runs in the cluster.
        Cluster = "Cluster",
    }
}

words! {
    /// `commandReturnCodeConfig.returnCode`
    pub enum ReturnCode {
        /// Only 0 is success.
        Zero = "Zero",
        /// Every code that is not negative is success.
        ZeroOrGreater = "ZeroOrGreater",
    }
}

words! {
    /// `identity.type`
    pub enum IdentityType {
        /// A managed identity.
        Managed = "Managed",
        /// A service principal.
        ServicePrincipal = "ServicePrincipal",
        /// The run token.
        AmlToken = "AMLToken",
    }
}

words! {
    /// `applicationEndpoints.*.type`
    pub enum EndpointType {
        /// Jupyter.
        Jupyter = "Jupyter",
        /// JupyterLab.
        JupyterLab = "JupyterLab",
        /// SSH.
        Ssh = "SSH",
        /// TensorBoard.
        TensorBoard = "TensorBoard",
        /// VS Code.
        VsCode = "VSCode",
        /// Theia.
        Theia = "Theia",
        /// Grafana.
        Grafana = "Grafana",
        /// Anything else.
        Custom = "Custom",
    }
}

/// `command`: one line for the shell, or the words of a command.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Command {
    /// A line; empty: no command.
    Line(String),
    /// Words.
    Words(Vec<String>),
}

impl Command {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Line(line) => line.trim().is_empty(),
            Self::Words(words) => words.is_empty(),
        }
    }
}

impl FromJson for Command {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        match value {
            Value::String(line) => Ok(Self::Line(line)),
            Value::Array(_) => Vec::from_json(path, value).map(Self::Words),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                Err(WireError::new(path, "expected a string or a list of strings"))
            }
        }
    }
}

object! {
    /// `Retries`: how often a run is tried again, by who is to blame; what is left out is the target's rule.
    pub struct RetriesSection {
        /// After failures of machines and of the server.
        "infrastructure" infrastructure: Option<i64> = None,
        /// After failures of the code.
        "userCode" user_code: Option<i64> = None,
        /// Wait before the first retry, in seconds.
        "backoffSeconds" backoff_seconds: Option<i64> = None,
    }
}

object! {
    /// `Slurm`: what the run asks of Slurm where its target is one; what is left out is the target's.
    pub struct SlurmSection {
        /// `--partition`.
        "partition" partition: Option<String> = None,
        /// `--account`.
        "account" account: Option<String> = None,
        /// `--qos`.
        "qos" qos: Option<String> = None,
        /// `--time`, as Slurm writes it.
        "timeLimit" time_limit: Option<String> = None,
        /// `--gres`.
        "gres" gres: Option<String> = None,
        /// `--mem`.
        "memory" memory: Option<String> = None,
        /// `--cpus-per-task`.
        "cpus" cpus: Option<i64> = None,
        /// `--constraint`.
        "constraint" constraint: Option<String> = None,
        /// Further options of `sbatch`, after the target's.
        "arguments" arguments: Vec<String> = Vec::new(),
    }
}

object! {
    /// `Kubernetes`: what the run asks of Kubernetes where its target is one, for each node; what is left out is the target's.
    pub struct KubernetesWishSection {
        /// Processors, e.g. `4` or `500m`.
        "cpus" cpus: Option<String> = None,
        /// Memory, e.g. `16Gi`.
        "memory" memory: Option<String> = None,
        /// GPUs.
        "gpus" gpus: Option<i64> = None,
        /// Labels that the node must have.
        "nodeSelector" node_selector: TextMap = TextMap::new(),
        /// Taints that are put up with: `key=value:Effect`.
        "tolerations" tolerations: Vec<String> = Vec::new(),
        /// Priority class.
        "priorityClass" priority_class: Option<String> = None,
    }
}

object! {
    /// `history`: what is kept of the working directory.
    pub struct HistorySection {
        /// Whether `outputs/` is collected.
        "outputCollection" output_collection: bool = true,
        /// Folders that are streamed while the run goes on.
        "directoriesToWatch" directories_to_watch: Vec<String> = vec!["logs".to_owned()],
        /// Whether MLflow logs to this run.
        "enableMLflowTracking" enable_mlflow_tracking: bool = true,
        /// Whether the code is kept as a snapshot.
        "snapshotProject" snapshot_project: bool = true,
        /// Credentials for the run, by the name of a secret; an SDK extra that is hardly ever sent.
        "ambientAuthentication" ambient_authentication: Option<Value> = None,
    }
}

object! {
    /// `spark` of a run; numbers among the values become strings.
    pub struct SparkSection {
        /// Spark's own settings.
        "configuration" configuration: TextMap = TextMap::from([
            ("spark.app.name".to_owned(), Some("Azure ML Experiment".to_owned())),
            ("spark.yarn.maxAppAttempts".to_owned(), Some("1".to_owned())),
        ]),
    }
}

object! {
    /// `tensorflow`
    pub struct TensorflowSection {
        /// Workers.
        "workerCount" worker_count: i64 = 1,
        /// Parameter servers.
        "parameterServerCount" parameter_server_count: i64 = 1,
    }
}

object! {
    /// `mpi`
    pub struct MpiSection {
        /// Processes on each node.
        "processCountPerNode" process_count_per_node: i64 = 1,
        /// Nodes; the SDK repeats the run's.
        "nodeCount" node_count: i64 = 1,
    }
}

object! {
    /// `pyTorch`
    pub struct PyTorchSection {
        /// How the processes talk.
        "communicationBackend" communication_backend: CommunicationBackend = CommunicationBackend::Nccl,
        /// Processes in all; `None`: one on each node.
        "processCount" process_count: Option<i64> = None,
        /// Nodes; the SDK repeats the run's.
        "nodeCount" node_count: i64 = 1,
    }
}

object! {
    /// `parallelTask`
    pub struct ParallelTaskSection {
        /// Retries of a task that failed.
        "maxRetriesPerWorker" max_retries_per_worker: i64 = 0,
        /// Workers on each node.
        "workerCountPerNode" worker_count_per_node: i64 = 1,
        /// Exit codes that end the whole run.
        "terminalExitCodes" terminal_exit_codes: Option<Vec<i64>> = None,
        /// More settings.
        "configuration" configuration: TextMap = TextMap::new(),
    }
}

object! {
    /// `hdi`
    pub struct HdiSection {
        /// Where the driver runs.
        "yarnDeployMode" yarn_deploy_mode: YarnDeployMode = YarnDeployMode::Cluster,
    }
}

object! {
    /// `docker` of a run.
    pub struct RunDockerSection {
        /// Whether the run goes into a container.
        "useDocker" use_docker: bool = false,
        /// Whether volumes are shared.
        "sharedVolumes" shared_volumes: bool = true,
        /// Size of the shared memory.
        "shmSize" shm_size: Option<String> = Some("2g".to_owned()),
        /// More arguments of `docker run`.
        "arguments" arguments: Vec<String> = Vec::new(),
    }
}

object! {
    /// `identity`: as whom the run acts towards others.
    pub struct IdentitySection {
        /// Kind.
        "type" identity_type: Option<IdentityType> = None,
        /// More.
        "properties" properties: Option<Value> = None,
        /// A secret. Never stored: definitions with an identity are refused.
        "secret" secret: Option<Value> = None,
    }
}

object! {
    /// `aiSuperComputer`
    pub struct AiSuperComputerSection {
        /// Machine size.
        "instanceType" instance_type: Option<String> = None,
        /// Image.
        "imageVersion" image_version: Option<String> = None,
        /// Region.
        "location" location: Option<String> = None,
        /// Storage.
        "aiSuperComputerStorageData" storage: Option<Value> = None,
        /// Whether people log in.
        "interactive" interactive: bool = false,
        /// How it grows.
        "scalePolicy" scale_policy: Option<Value> = None,
        /// Virtual cluster.
        "virtualClusterArmId" virtual_cluster_arm_id: Option<String> = None,
        /// Where TensorBoard looks.
        "tensorboardLogDirectory" tensorboard_log_directory: Option<String> = None,
        /// Key to log in with.
        "sshPublicKey" ssh_public_key: Option<String> = None,
    }
}

object! {
    /// `kubernetesCompute`
    pub struct KubernetesSection {
        /// Kind of pod.
        "instanceType" instance_type: Option<String> = None,
    }
}

object! {
    /// `amlCompute`: a cluster that is made for the run.
    pub struct AmlComputeSection {
        /// Name of the cluster.
        "name" name: Option<String> = None,
        /// Machine size.
        "vmSize" vm_size: Option<String> = None,
        /// `Dedicated` or `LowPriority`.
        "vmPriority" vm_priority: Option<String> = None,
        /// Whether it stays afterwards.
        "retainCluster" retain_cluster: bool = false,
        /// Most nodes.
        "clusterMaxNodeCount" cluster_max_node_count: Option<i64> = None,
    }
}

object! {
    /// `containerInstance`
    pub struct ContainerInstanceSection {
        /// Region.
        "region" region: Option<String> = None,
        /// Cores.
        "cpuCores" cpu_cores: f64 = 2.0,
        /// Memory in GB.
        "memoryGb" memory_gb: f64 = 3.5,
    }
}

object! {
    /// `cmk8sCompute`
    pub struct Cmk8sSection {
        /// Settings.
        "configuration" configuration: Map<String, Value> = Map::new(),
    }
}

object! {
    /// `commandReturnCodeConfig`
    pub struct ReturnCodeSection {
        /// Which exit codes mean success.
        "returnCode" return_code: ReturnCode = ReturnCode::Zero,
        /// More of them.
        "successfulReturnCodes" successful_return_codes: Vec<i64> = Vec::new(),
    }
}

object! {
    /// One of `applicationEndpoints`.
    pub struct ApplicationEndpoint {
        /// Kind.
        "type" endpoint_type: Option<EndpointType> = None,
        /// Port.
        "port" port: Option<i64> = None,
        /// More.
        "properties" properties: BTreeMap<String, Option<String>> = BTreeMap::new(),
    }
}
