//! The run configuration (azureml-wire D.3); the envelope around it is in [`super::execution`].
//!
//! Reading fills in every default and keeps what it does not know, so that writing a [`RunConfiguration`] gives the normalised
//! copy that run details show. Whether this server can do what is asked is for the server to say.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    data_bindings::{Data, DataReference, OutputData},
    environments::EnvironmentDefinition,
    runs::TextMap,
    sections::{
        AiSuperComputerSection, AmlComputeSection, ApplicationEndpoint, Cmk8sSection, Command, Communicator, ContainerInstanceSection,
        Framework, HdiSection, HistorySection, IdentitySection, KubernetesSection, KubernetesWishSection, MpiSection, ParallelTaskSection,
        PyTorchSection, RetriesSection, ReturnCodeSection, RunDockerSection, SlurmSection, SparkSection, TensorflowSection,
    },
};
use crate::json::object;

object! {
    /// `Configuration` (azureml-wire D.3). Written, it is the `runDefinition` of run details.
    pub struct RunConfiguration {
        /// The script, relative to the snapshot's root.
        "script" script: Option<String> = None,
        /// A command instead of a script.
        "command" command: Command = Command::Line(String::new()),
        /// Whether the script is an absolute path on the node.
        "useAbsolutePath" use_absolute_path: bool = false,
        /// Arguments of the script; numbers become strings.
        "arguments" arguments: Vec<String> = Vec::new(),
        /// A datastore that holds the code.
        "sourceDirectoryDataStore" source_directory_data_store: Option<String> = None,
        /// Framework.
        "framework" framework: Framework = Framework::Python,
        /// How several processes talk.
        "communicator" communicator: Communicator = Communicator::None,
        /// Compute target.
        "target" target: Option<String> = Some("local".to_owned()),
        /// Data by reference.
        "dataReferences" data_references: BTreeMap<String, DataReference> = BTreeMap::new(),
        /// Data in.
        "data" data: BTreeMap<String, Data> = BTreeMap::new(),
        /// Data out.
        "outputData" output_data: BTreeMap<String, OutputData> = BTreeMap::new(),
        /// Caches of data.
        "datacaches" datacaches: Vec<Value> = Vec::new(),
        /// Name for people.
        "jobName" job_name: Option<String> = None,
        /// Longest running time in seconds; `None`: no limit.
        "maxRunDurationSeconds" max_run_duration_seconds: Option<i64> = None,
        /// Nodes.
        "nodeCount" node_count: i64 = 1,
        /// Higher goes first.
        "priority" priority: Option<i64> = None,
        /// How often the run is tried again; a word of this server, which the service does not know.
        "retries" retries: Option<RetriesSection> = None,
        /// What the run asks of Slurm; a word of this server, too.
        "slurm" slurm: Option<SlurmSection> = None,
        /// What the run asks of Kubernetes; a word of this server, too.
        "kubernetes" kubernetes: Option<KubernetesWishSection> = None,
        /// Whether the run acts as its submitter.
        "credentialPassthrough" credential_passthrough: bool = false,
        /// As whom the run acts.
        "identity" identity: Option<IdentitySection> = None,
        /// Environment; `None` where the client wrote none.
        "environment" environment: Option<EnvironmentDefinition> = None,
        /// Variables of the process; they go before the environment's.
        "environmentVariables" environment_variables: TextMap = TextMap::new(),
        /// What is kept.
        "history" history: HistorySection = HistorySection::default(),
        /// Spark.
        "spark" spark: SparkSection = SparkSection::default(),
        /// TensorFlow.
        "tensorflow" tensorflow: TensorflowSection = TensorflowSection::default(),
        /// MPI.
        "mpi" mpi: MpiSection = MpiSection::default(),
        /// PyTorch.
        "pyTorch" py_torch: PyTorchSection = PyTorchSection::default(),
        /// Parallel tasks.
        "parallelTask" parallel_task: ParallelTaskSection = ParallelTaskSection::default(),
        /// HDInsight.
        "hdi" hdi: HdiSection = HdiSection::default(),
        /// Docker, for the run.
        "docker" docker: RunDockerSection = RunDockerSection::default(),
        /// A supercomputer.
        "aiSuperComputer" ai_super_computer: Option<AiSuperComputerSection> = None,
        /// Kubernetes.
        "kubernetesCompute" kubernetes_compute: KubernetesSection = KubernetesSection::default(),
        /// A cluster made for the run.
        "amlCompute" aml_compute: AmlComputeSection = AmlComputeSection::default(),
        /// A container instance.
        "containerInstance" container_instance: ContainerInstanceSection = ContainerInstanceSection::default(),
        /// Kubernetes, older.
        "cmk8sCompute" cmk8s_compute: Cmk8sSection = Cmk8sSection::default(),
        /// Ports.
        "exposedPorts" exposed_ports: Option<Value> = None,
        /// Which exit codes mean success.
        "commandReturnCodeConfig" command_return_code_config: ReturnCodeSection = ReturnCodeSection::default(),
        /// Interactive endpoints.
        "applicationEndpoints" application_endpoints: BTreeMap<String, ApplicationEndpoint> = BTreeMap::new(),
        /// A cluster chosen by the service.
        "autoClusterComputeSpecification" auto_cluster_compute_specification: Option<Value> = None,
    }
}
