use serde_json::json;
use trainyard_core::{
    ErrorKind,
    container::ContainerPolicy,
    environment::{EnvironmentSpec, PythonEnvironment},
    ids::ComputeName,
};
use trainyard_engine::data::Datastores;
use trainyard_wire::azureml::execution::SubmissionEnvelope;

use super::*;
use crate::sealing::Sealer;

const FOUNDING: &str = include_str!("../../../../../wire/tests/definitions/founding.json");
const SDK: &str = include_str!("../../../../../wire/tests/definitions/sdk.json");

fn datastores() -> Datastores {
    Datastores::new(Default::default(), "/datastore".into()).unwrap()
}

fn targets() -> Vec<TargetRule> {
    ["local", "cpu-cluster"]
        .map(|name| TargetRule { name: ComputeName::new(name).unwrap(), containers: ContainerPolicy::WhenAsked, engine: "local" })
        .to_vec()
}

fn convert(document: Value) -> Result<Converted> {
    let envelope = SubmissionEnvelope::read(document).expect("the tests' documents have the right types");
    to_definition(
        &envelope.configuration,
        Rules { targets: &targets(), sealer: &Sealer::from_key(&[7; 32]).unwrap(), datastores: &datastores() },
    )
}

/// The configuration of the founding document with `path` (in PascalCase, from `Configuration` on) set to `value`.
fn founding_with(path: &str, value: Value) -> Value {
    let mut document: Value = serde_json::from_str(FOUNDING).unwrap();
    let mut place = &mut document["Configuration"];
    for name in path.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        place = &mut place[name];
    }
    *place = value;
    document
}

#[test]
fn the_founding_definition_becomes_what_it_says() {
    let converted = convert(serde_json::from_str(FOUNDING).unwrap()).unwrap();
    let expected = Definition {
        entry: Entry::Script { path: "hello.py".into() },
        arguments: vec!["234".into()],
        target: ComputeName::new("cpu-cluster").unwrap(),
        framework: definition::Framework::Python,
        environment: EnvironmentSpec::Python(PythonEnvironment {
            python: Some("3.6.2".into()),
            pip: vec!["azureml-defaults".into()],
            tools: vec![],
            channels: vec![],
        }),
        environment_variables: BTreeMap::new(),
        max_run_duration_seconds: Some(1200),
        priority: 0,
        history: History { output_collection: true, directories_to_watch: vec!["logs".into()] },
        container: None,
        retries: RetryWish::default(),
        slurm: Default::default(),
        kubernetes: Default::default(),
        distribution: Default::default(),
        data: Default::default(),
    };
    assert_eq!(converted.definition, expected);
    assert_eq!(
        converted.warnings,
        ["Configuration.Environment.Docker.BaseImage = `mcr.microsoft.com/azureml/base:intelmpi2018.3-ubuntu16.04` is not used: \
          the run does not go into a container"]
    );
}

#[test]
fn every_default_that_the_sdk_spells_out_passes() {
    let converted = convert(serde_json::from_str(SDK).unwrap()).unwrap();
    let definition = converted.definition;
    assert_eq!(definition.entry, Entry::Script { path: "train.py".into() });
    assert_eq!(definition.arguments, ["--rate", "0.5", "--epochs", "3"]);
    assert_eq!(definition.max_run_duration_seconds, Some(2_592_000));
    assert_eq!(definition.environment_variables, BTreeMap::from([("EXAMPLE_ENV_VAR".into(), "EXAMPLE_VALUE".into())]));
    let EnvironmentSpec::Python(python) = definition.environment else { panic!("an environment is built") };
    assert_eq!((python.python.as_deref(), python.pip.as_slice()), (Some("3.8.13"), ["azureml-defaults".to_owned()].as_slice()));
    assert!(converted.warnings[0].starts_with("Configuration.environment.docker.baseImage = `mcr."), "{:?}", converted.warnings);
}

#[test]
fn the_shown_document_can_be_submitted_again_and_means_the_same() {
    for text in [FOUNDING, SDK] {
        let first = convert(serde_json::from_str(text).unwrap()).unwrap();
        let second = convert(json!({ "configuration": first.document })).unwrap();
        assert_eq!(second.definition, first.definition);
        assert_eq!(second.document, first.document);
    }
}

#[test]
fn the_shown_document_is_fully_expanded() {
    let document = convert(json!({"Configuration": {"Script": "a.py", "Extra": 1}})).unwrap().document;
    assert_eq!(document["environment"]["python"]["interpreterPath"], "python");
    assert_eq!(document["environment"]["docker"]["platform"], json!({"os": "Linux", "architecture": "amd64"}));
    assert_eq!((&document["target"], &document["nodeCount"], &document["Extra"]), (&json!("local"), &json!(1), &json!(1)));
}

/// Each line: what is asked for, and the start of the sentence that refuses it.
#[test]
fn what_asks_for_more_than_its_default_is_refused_by_name() {
    let table = [
        ("Environment.Docker.BuildContext", json!({"locationType": "git"}), "Configuration.Environment.Docker.BuildContext is given and"),
        ("Environment.Python.BaseCondaEnvironment", json!("base"), "Configuration.Environment.Python.BaseCondaEnvironment = `base` is not"),
        ("Environment.R", json!({}), "Configuration.Environment.R is given and"),
        ("Environment.Spark.Packages", json!([{"group": "g"}]), "Configuration.Environment.Spark.Packages is not empty and"),
        ("Environment.Spark.Repositories", json!(["r"]), "Configuration.Environment.Spark.Repositories is not empty"),
        ("Environment.Databricks.JarLibraries", json!([{}]), "Configuration.Environment.Databricks.JarLibraries is not empty"),
        ("Communicator", json!("ParallelTask"), "Configuration.Communicator = ParallelTask is not acted on"),
        ("ParallelTask.WorkerCountPerNode", json!(2), "Configuration.ParallelTask.WorkerCountPerNode = 2"),
        ("paralleltask.maxRetriesPerWorker", json!(1), "Configuration.paralleltask.maxRetriesPerWorker = 1"),
        ("ParallelTask.TerminalExitCodes", json!([1]), "Configuration.ParallelTask.TerminalExitCodes is not empty"),
        ("Datacaches", json!([{}]), "Configuration.Datacaches is not empty"),
        ("SourceDirectoryDataStore", json!("ds"), "Configuration.SourceDirectoryDataStore = `ds`"),
        ("Framework", json!("pyspark"), "Configuration.Framework = PySpark is not acted on"),
        ("UseAbsolutePath", json!(true), "Configuration.UseAbsolutePath = true"),
        ("CommandReturnCodeConfig.ReturnCode", json!("zeroOrGreater"), "Configuration.CommandReturnCodeConfig.ReturnCode = ZeroOrGreater"),
        (
            "CommandReturnCodeConfig.SuccessfulReturnCodes",
            json!([0, 3]),
            "Configuration.CommandReturnCodeConfig.SuccessfulReturnCodes = [0, 3]",
        ),
        ("Identity", json!({"type": "managed"}), "Configuration.Identity is given and"),
        ("CredentialPassthrough", json!(true), "Configuration.CredentialPassthrough = true"),
        ("History.AmbientAuthentication", json!({"method": "aadtoken"}), "Configuration.History.AmbientAuthentication is given and"),
        ("ApplicationEndpoints", json!({"j": {"type": "jupyter"}}), "Configuration.ApplicationEndpoints.j is not acted on"),
        ("ExposedPorts", json!("8080"), "Configuration.ExposedPorts is given and"),
        ("amlcompute.vmSize", json!("D2"), "Configuration.amlcompute.vmSize = `D2`"),
        ("AmlCompute.RetainCluster", json!(true), "Configuration.AmlCompute.RetainCluster = true"),
        ("AmlCompute.ClusterMaxNodeCount", json!(4), "Configuration.AmlCompute.ClusterMaxNodeCount = 4"),
        ("KubernetesCompute.InstanceType", json!("gpu"), "Configuration.KubernetesCompute.InstanceType = `gpu`"),
        ("ContainerInstance.CpuCores", json!(8), "Configuration.ContainerInstance.CpuCores = 8"),
        ("Cmk8sCompute.Configuration", json!({"a": 1}), "Configuration.Cmk8sCompute.Configuration is not empty"),
        ("AutoClusterComputeSpecification", json!({"vm": "x"}), "Configuration.AutoClusterComputeSpecification is given and"),
        ("AiSuperComputer.InstanceType", json!("ND40"), "Configuration.AiSuperComputer.InstanceType = `ND40`"),
        ("AiSuperComputer.Interactive", json!(true), "Configuration.AiSuperComputer.Interactive = true"),
        ("Hdi.YarnDeployMode", json!("client"), "Configuration.Hdi.YarnDeployMode = Client"),
    ];
    for (path, value, sentence) in table {
        let error = convert(founding_with(path, value)).unwrap_err();
        assert!(error.message().starts_with(sentence), "{path}: {error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{path}");
        assert!(sentence.starts_with(error.target().unwrap_or_default()), "{path}: {:?}", error.target());
    }
}

#[test]
fn what_asks_for_less_or_nothing_passes() {
    let table = [
        ("Environment.Docker.Arguments", json!(["--gpus=all"])),
        ("Environment.Docker.ShmSize", json!("8g")),
        ("Environment.Databricks.MavenLibraries", json!([])),
        ("JobName", json!("nightly")),
        ("Identity", json!({"type": null})),
        ("ExposedPorts", json!([])),
        ("AiSuperComputer", json!({"instanceType": null, "interactive": false})),
        ("CommandReturnCodeConfig", json!({"returnCode": "Zero", "successfulReturnCodes": [0]})),
        ("Tensorflow", json!({"workerCount": 1, "parameterServerCount": 0})),
        ("Hdi.YarnDeployMode", json!("none")),
        ("pytorch.processCount", json!(1)),
        ("Framework", json!("tensorflow")),
    ];
    for (path, value) in table {
        assert!(convert(founding_with(path, value)).is_ok(), "{path}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_where_it_stands() {
    let table = [
        ("Script", json!("../a.py"), "Configuration.Script = `../a.py` leads out of the snapshot"),
        ("Script", json!("a/../../b.py"), "Configuration.Script = `a/../../b.py` leads out of the snapshot"),
        ("Script", json!("/etc/a.py"), "Configuration.Script = `/etc/a.py` is an absolute path"),
        ("Script", json!("C:\\a.py"), "Configuration.Script = `C:\\a.py` is an absolute path"),
        ("Script", json!("./"), "Configuration.Script = `./` is the root of the snapshot"),
        ("Script", json!(" "), "Configuration.Script is empty and so is Configuration.Command"),
        ("Command", json!("echo"), "Configuration.Command is given and so is Configuration.Script: give one of them"),
        ("MaxRunDurationSeconds", json!(0), "Configuration.MaxRunDurationSeconds = 0 is not a limit: it must be at least 1"),
        ("MaxRunDurationSeconds", json!(-5), "Configuration.MaxRunDurationSeconds = -5 is not a limit"),
        ("Target", json!("gpu"), "target `gpu` is not configured; known targets: cpu-cluster, local"),
        ("Arguments", json!(["a", "b\u{0}"]), "Configuration.Arguments[1] holds a NUL character"),
        ("EnvironmentVariables", json!({"A=B": "c"}), "Configuration.EnvironmentVariables.A=B is not a variable"),
        ("EnvironmentVariables", json!({"A": "c\u{0}"}), "Configuration.EnvironmentVariables.A has a value with a NUL character"),
        ("History.DirectoriesToWatch", json!(["logs", "../x"]), "Configuration.History.DirectoriesToWatch[1] = `../x` leads out"),
        (
            "Environment.Python",
            json!({"userManagedDependencies": true, "interpreterPath": ""}),
            "Configuration.Environment.Python.interpreterPath is empty",
        ),
    ];
    for (path, value, sentence) in table {
        let error = convert(founding_with(path, value)).unwrap_err();
        assert!(error.message().starts_with(sentence), "{path}: {error}");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{path}");
        assert!(error.target().unwrap().starts_with("Configuration."), "{path}");
    }
}

#[test]
fn conda_packages_beyond_python_make_a_conda_environment_and_a_bad_one_is_refused_at_its_place() {
    let conda = json!({"channels": ["conda-forge"], "dependencies": ["python=3.9", "numpy=1.20", {"pip": ["six"]}]});
    let converted = convert(founding_with("Environment.Python.CondaDependencies", conda)).unwrap();
    let EnvironmentSpec::Conda(environment) = converted.definition.environment else { panic!("conda packages are wanted") };
    assert_eq!(environment.packages, ["python=3.9", "numpy=1.20"]);
    assert_eq!((environment.channels, environment.pip), (vec!["conda-forge".to_owned()], vec!["six".to_owned()]));

    let error =
        convert(founding_with("Environment.Python.CondaDependencies", json!({"dependencies": ["python=3.9", "=1.20"]}))).unwrap_err();
    assert_eq!(error.target(), Some("Configuration.Environment.Python.CondaDependencies.dependencies[1]"));
    assert!(error.message().contains("`=1.20`"), "{error}");
}

#[test]
fn a_user_managed_environment_is_the_interpreter_that_it_names() {
    let python = json!({"UserManagedDependencies": true, "InterpreterPath": "/opt/python/bin/python3", "CondaDependencies": {"dependencies": ["numpy"]}});
    let converted = convert(founding_with("Environment.Python", python)).unwrap();
    assert_eq!(converted.definition.environment, EnvironmentSpec::UserManaged { interpreter_path: "/opt/python/bin/python3".into() });
}

#[test]
fn an_interpreter_beside_a_managed_environment_is_not_used_and_says_so() {
    let converted = convert(founding_with("Environment.Python.InterpreterPath", json!("python2"))).unwrap();
    assert!(
        converted.warnings.iter().any(|warning| warning.contains("InterpreterPath = `python2` is not used")),
        "{:?}",
        converted.warnings
    );
}

#[test]
fn a_name_that_nobody_looked_up_is_a_mistake_of_the_server() {
    for environment in [
        json!({"name": "AzureML-Minimal", "version": "12"}),
        json!({"Name": "mine", "Python": null}),
        json!({"assetId": "azureml:x:1"}),
        json!({"sameAsRun": "other"}),
    ] {
        let error = convert(founding_with("Environment", environment)).unwrap_err();
        assert_eq!(error.kind(), trainyard_core::ErrorKind::Internal, "{error}");
    }
}

#[test]
fn a_lock_says_what_is_installed_whatever_else_is_asked_for() {
    let lock = json!({"python": "3.11.7", "builder": "uv 0.9.1", "packages": [{"name": "six", "version": "1.16.0"}]});
    let converted = convert(founding_with("Environment.Lock", lock.clone())).unwrap();
    let EnvironmentSpec::Locked(locked) = &converted.definition.environment else { panic!("{:?}", converted.definition.environment) };
    assert_eq!((locked.python.as_str(), locked.packages[0].name.as_str()), ("3.11.7", "six"));
    assert!(converted.warnings.iter().any(|warning| warning.contains("CondaDependencies is not used")), "{:?}", converted.warnings);
    assert_eq!(converted.document["environment"]["lock"], lock);
    let error = convert(founding_with("Environment.Lock", json!({"python": "3.11.7", "wheels": []}))).unwrap_err();
    assert_eq!(error.target(), Some("Configuration.Environment.Lock"));
    let both = json!({"Lock": lock, "Python": {"UserManagedDependencies": true}});
    let error = convert(founding_with("Environment", both)).unwrap_err();
    assert!(error.message().contains("not both"), "{error}");
}

#[test]
fn the_shown_definition_has_no_words_of_ours_that_were_not_used() {
    let converted = convert(founding_with("Environment.Python.InterpreterPath", json!("python"))).unwrap();
    let environment = converted.document["environment"].as_object().unwrap();
    assert!(!environment.contains_key("lock") && !environment.contains_key("sameAsRun"), "{environment:?}");
}

#[test]
fn without_an_environment_the_run_has_a_plain_python_and_a_warning() {
    let converted = convert(founding_with("Environment", Value::Null)).unwrap();
    assert_eq!(converted.definition.environment, EnvironmentSpec::Python(PythonEnvironment::default()));
    assert_eq!(converted.warnings, ["Configuration.Environment.Python is not given: the run has a Python without packages"]);
}

#[test]
fn the_runs_variables_go_before_the_environments() {
    let mut document = founding_with("Environment.EnvironmentVariables", json!({"A": "1", "B": 2, "C": "3"}));
    document["Configuration"]["environmentVariables"] = json!({"A": "run", "C": null, "d": true});
    let variables = convert(document).unwrap().definition.environment_variables;
    let expected = [("A", "run"), ("B", "2"), ("d", "true")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(variables, BTreeMap::from(expected));
}

#[test]
fn a_registry_password_is_neither_stored_nor_shown() {
    let registry = json!({"address": "registry.example", "username": "u", "password": "s3cret-pass"});
    let converted = convert(founding_with("Environment.Docker.BaseImageRegistry", registry)).unwrap();
    assert!(!format!("{converted:?}").contains("s3cret-pass"));
    assert_eq!(converted.document["environment"]["docker"]["baseImageRegistry"]["password"], Value::Null);
    assert_eq!(converted.document["environment"]["docker"]["baseImageRegistry"]["username"], "u");
    assert!(
        converted.warnings.iter().any(|warning| warning.contains("BaseImageRegistry.password was thrown away")),
        "{:?}",
        converted.warnings
    );
}

#[test]
fn commands_are_a_line_for_the_shell_or_the_words_of_a_program() {
    let command = |value: Value| convert(json!({"configuration": {"command": value}})).map(|converted| converted.definition.entry);
    assert_eq!(command(json!("python a.py | tee b")).unwrap(), Entry::Command { words: vec!["python a.py | tee b".into()] });
    assert_eq!(command(json!(["python", "a.py", 3])).unwrap(), Entry::Command { words: vec!["python".into(), "a.py".into(), "3".into()] });
    assert!(command(json!(["", "a"])).unwrap_err().message().contains("starts with an empty word"));
}

#[test]
fn scripts_and_folders_are_written_with_slashes_and_without_dots() {
    let converted = convert(founding_with("Script", json!(".\\train\\main.py"))).unwrap();
    assert_eq!(converted.definition.entry, Entry::Script { path: "train/main.py".into() });
    let converted = convert(founding_with("History.DirectoriesToWatch", json!(["./logs/", "logs", "a/b"]))).unwrap();
    assert_eq!(converted.definition.history.directories_to_watch, ["logs", "a/b"]);
}

#[test]
fn targets_are_found_in_any_case_and_default_to_local() {
    let converted = convert(founding_with("Target", json!("CPU-Cluster"))).unwrap();
    assert_eq!(converted.definition.target.as_str(), "cpu-cluster");
    assert_eq!(converted.document["target"], "cpu-cluster");
    assert_eq!(convert(founding_with("Target", Value::Null)).unwrap().definition.target.as_str(), "local");
}

#[test]
fn retries_are_what_the_definition_says_and_the_rest_the_targets() {
    let asked = |retries: Value| convert(founding_with("Retries", retries));
    let wish = asked(json!({ "infrastructure": 5, "UserCode": 1 })).unwrap().definition.retries;
    assert_eq!(wish, RetryWish { infrastructure: Some(5), user_code: Some(1), backoff_seconds: None });
    for (retries, words) in [
        (json!({ "UserCode": -1 }), "Retries.UserCode = -1 is not possible: it must be 0 to 100"),
        (json!({ "Infrastructure": 101 }), "Retries.Infrastructure = 101"),
        (json!({ "backoffSeconds": 86_401 }), "it must be 0 to 86400"),
        (json!({ "Count": 1 }), "has the property `Count`: expected Infrastructure, UserCode or BackoffSeconds"),
    ] {
        let message = asked(retries).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}
