//! What a run configuration may ask for and this server does not act on yet.
//!
//! Clients send many defaults explicitly; those pass. Whatever asks for more is refused by name, because a run that silently
//! uses one node instead of four, or no container, is worse than none. When a property is acted on, its line leaves this file.

use serde_json::Value;
use trainyard_core::{Error, ErrorKind};
use trainyard_wire::azureml::{
    definition::RunConfiguration,
    environments::{DockerSection, EnvironmentDefinition, PythonSection},
    sections::{AiSuperComputerSection, Communicator, Framework, ReturnCode, YarnDeployMode},
};

use super::definition::Places;

/// A property that asks for too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Its path below `Configuration`, in PascalCase.
    property: String,
    /// What it asks for, e.g. ` = true`; nothing secret.
    asks: String,
    /// What to do about it.
    advice: &'static str,
}

impl Refusal {
    /// The sentence for the client.
    pub(crate) fn into_error(self, places: Places<'_>) -> Error {
        let path = places.path(&self.property);
        let message = format!("{path}{} is not acted on by this server yet: {}", self.asks, self.advice);
        Error::new(ErrorKind::Unsupported, message).with_target(path)
    }
}

/// The first property that asks for too much; `None`: the configuration can be executed as far as this file knows.
pub(crate) fn first(asked: &RunConfiguration) -> Option<Refusal> {
    processes(asked)
        .into_iter()
        .chain(code(asked))
        .chain(bindings(asked))
        .chain(identities(asked))
        .chain(machines(asked))
        .chain(asked.environment.iter().flat_map(environment))
        .flatten()
        .next()
}

const PARALLEL: &str = "there are no parallel tasks; use NodeCount with Mpi, Nccl, Gloo, ParameterServer or None, or submit several runs";
const TARGET: &str = "runs go to a configured target; leave it out and name one in Target";
const CACHES: &str = "there are no data caches; name the data in DataReferences or Data";
const CONTEXT: &str =
    "images are built without a context; give the Dockerfile as text in Environment.Docker.BaseDockerfile, or name a built image";
const PACKAGES: &str = "only Python and pip packages are installed; leave it out and use Environment.Python.CondaDependencies";

fn refusal(asks_too_much: bool, property: impl Into<String>, asks: impl Into<String>, advice: &'static str) -> Option<Refusal> {
    asks_too_much.then(|| Refusal { property: property.into(), asks: asks.into(), advice })
}

/// A number that may not be over `default`.
fn over(default: i64, property: &str, number: i64, advice: &'static str) -> Option<Refusal> {
    refusal(number > default, property, format!(" = {number}"), advice)
}

/// A text that must be empty or absent.
fn text(property: &str, value: Option<&String>, advice: &'static str) -> Option<Refusal> {
    let value = value.filter(|value| !value.trim().is_empty())?;
    let shown: String = value.chars().take(80).filter(|c| !c.is_control()).collect();
    refusal(true, property, format!(" = `{shown}`"), advice)
}

/// Something that must be empty: its value is not shown, it may be long or secret.
fn given(property: &str, value: Option<&Value>, advice: &'static str) -> Option<Refusal> {
    let is_empty = match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(entries)) => entries.values().all(Value::is_null),
        Some(Value::Bool(true) | Value::Number(_)) => false,
    };
    refusal(!is_empty, property, " is given and", advice)
}

/// A list or map that must be empty.
fn filled(property: &str, count: usize, advice: &'static str) -> Option<Refusal> {
    refusal(count > 0, property, " is not empty and", advice)
}

/// A map that must be empty; names its first key.
fn keyed<T>(property: &str, map: &std::collections::BTreeMap<String, T>, advice: &'static str) -> Option<Refusal> {
    let key = map.keys().next()?;
    refusal(true, format!("{property}.{key}"), "", advice)
}

fn flag(property: &str, value: bool, advice: &'static str) -> Option<Refusal> {
    refusal(value, property, " = true", advice)
}

fn processes(asked: &RunConfiguration) -> Vec<Option<Refusal>> {
    let parallel = &asked.parallel_task;
    vec![
        refusal(asked.communicator == Communicator::ParallelTask, "Communicator", " = ParallelTask", PARALLEL),
        over(0, "ParallelTask.MaxRetriesPerWorker", parallel.max_retries_per_worker, PARALLEL),
        over(1, "ParallelTask.WorkerCountPerNode", parallel.worker_count_per_node, PARALLEL),
        filled("ParallelTask.TerminalExitCodes", parallel.terminal_exit_codes.as_ref().map_or(0, Vec::len), PARALLEL),
        keyed("ParallelTask.Configuration", &parallel.configuration, PARALLEL),
    ]
}

fn code(asked: &RunConfiguration) -> Vec<Option<Refusal>> {
    let codes = &asked.command_return_code_config;
    let success = "exit code 0 is success and every other code is a failure; let the command end with 0";
    vec![
        refusal(
            asked.framework == Framework::PySpark,
            "Framework",
            " = PySpark",
            "there is no Spark; use Python, TensorFlow, PyTorch or Cntk",
        ),
        flag(
            "UseAbsolutePath",
            asked.use_absolute_path,
            "the script comes with the snapshot; give its path relative to the snapshot's root",
        ),
        text("SourceDirectoryDataStore", asked.source_directory_data_store.as_ref(), "the code comes with the request; leave it out"),
        refusal(
            codes.return_code != ReturnCode::Zero,
            "CommandReturnCodeConfig.ReturnCode",
            format!(" = {}", codes.return_code.as_str()),
            success,
        ),
        refusal(
            codes.successful_return_codes.iter().any(|code| *code != 0),
            "CommandReturnCodeConfig.SuccessfulReturnCodes",
            format!(" = {:?}", codes.successful_return_codes),
            success,
        ),
    ]
}

fn bindings(asked: &RunConfiguration) -> Vec<Option<Refusal>> {
    vec![filled("Datacaches", asked.datacaches.len(), CACHES)]
}

fn identities(asked: &RunConfiguration) -> Vec<Option<Refusal>> {
    let own = "a run acts with its own token; leave it out";
    let identity = asked.identity.as_ref().is_some_and(|identity| {
        identity.identity_type.is_some() || identity.properties.is_some() || identity.secret.is_some() || !identity.rest.is_empty()
    });
    vec![
        refusal(identity, "Identity", " is given and", own),
        flag("CredentialPassthrough", asked.credential_passthrough, own),
        given("History.AmbientAuthentication", asked.history.ambient_authentication.as_ref(), own),
        keyed("ApplicationEndpoints", &asked.application_endpoints, "a run has no interactive endpoints; leave it out"),
        given("ExposedPorts", asked.exposed_ports.as_ref(), "a run exposes no ports; leave it out"),
    ]
}

fn machines(asked: &RunConfiguration) -> Vec<Option<Refusal>> {
    let (cluster, instance) = (&asked.aml_compute, &asked.container_instance);
    let mut found = vec![
        text("AmlCompute.Name", cluster.name.as_ref(), TARGET),
        text("AmlCompute.VmSize", cluster.vm_size.as_ref(), TARGET),
        text("AmlCompute.VmPriority", cluster.vm_priority.as_ref(), TARGET),
        flag("AmlCompute.RetainCluster", cluster.retain_cluster, TARGET),
        over(1, "AmlCompute.ClusterMaxNodeCount", cluster.cluster_max_node_count.unwrap_or(1), TARGET),
        text("KubernetesCompute.InstanceType", asked.kubernetes_compute.instance_type.as_ref(), TARGET),
        text("ContainerInstance.Region", instance.region.as_ref(), TARGET),
        refusal(instance.cpu_cores > 2.0, "ContainerInstance.CpuCores", format!(" = {}", instance.cpu_cores), TARGET),
        refusal(instance.memory_gb > 3.5, "ContainerInstance.MemoryGb", format!(" = {}", instance.memory_gb), TARGET),
        filled("Cmk8sCompute.Configuration", asked.cmk8s_compute.configuration.len(), TARGET),
        given("AutoClusterComputeSpecification", asked.auto_cluster_compute_specification.as_ref(), TARGET),
        refusal(asked.hdi.yarn_deploy_mode == YarnDeployMode::Client, "Hdi.YarnDeployMode", " = Client", TARGET),
    ];
    found.extend(asked.ai_super_computer.iter().flat_map(supercomputer));
    found
}

fn supercomputer(asked: &AiSuperComputerSection) -> Vec<Option<Refusal>> {
    vec![
        text("AiSuperComputer.InstanceType", asked.instance_type.as_ref(), TARGET),
        text("AiSuperComputer.ImageVersion", asked.image_version.as_ref(), TARGET),
        text("AiSuperComputer.Location", asked.location.as_ref(), TARGET),
        given("AiSuperComputer.AiSuperComputerStorageData", asked.storage.as_ref(), TARGET),
        flag("AiSuperComputer.Interactive", asked.interactive, TARGET),
        given("AiSuperComputer.ScalePolicy", asked.scale_policy.as_ref(), TARGET),
        text("AiSuperComputer.VirtualClusterArmId", asked.virtual_cluster_arm_id.as_ref(), TARGET),
        text("AiSuperComputer.TensorboardLogDirectory", asked.tensorboard_log_directory.as_ref(), TARGET),
        text("AiSuperComputer.SshPublicKey", asked.ssh_public_key.as_ref(), TARGET),
    ]
}

fn environment(asked: &EnvironmentDefinition) -> Vec<Option<Refusal>> {
    let (spark, databricks) = (&asked.spark, &asked.databricks);
    let mut found = vec![
        filled("Environment.Spark.Repositories", spark.repositories.len(), PACKAGES),
        filled("Environment.Spark.Packages", spark.packages.len(), PACKAGES),
        refusal(asked.r.is_some(), "Environment.R", " is given and", PACKAGES),
        filled("Environment.Databricks.MavenLibraries", databricks.maven_libraries.len(), PACKAGES),
        filled("Environment.Databricks.PypiLibraries", databricks.pypi_libraries.len(), PACKAGES),
        filled("Environment.Databricks.RcranLibraries", databricks.rcran_libraries.len(), PACKAGES),
        filled("Environment.Databricks.JarLibraries", databricks.jar_libraries.len(), PACKAGES),
        filled("Environment.Databricks.EggLibraries", databricks.egg_libraries.len(), PACKAGES),
    ];
    found.extend(asked.docker.iter().flat_map(docker));
    found.extend(asked.python.iter().flat_map(python));
    found
}

fn docker(asked: &DockerSection) -> Vec<Option<Refusal>> {
    vec![refusal(asked.build_context.is_some(), "Environment.Docker.BuildContext", " is given and", CONTEXT)]
}

fn python(asked: &PythonSection) -> Vec<Option<Refusal>> {
    let inline = "describe the packages in Environment.Python.CondaDependencies itself";
    vec![text("Environment.Python.BaseCondaEnvironment", asked.base_conda_environment.as_ref(), inline)]
}
