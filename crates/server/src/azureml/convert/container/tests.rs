use serde_json::{Value, json};
use trainyard_engine::{Unseal as _, data::Datastores};
use trainyard_wire::azureml::execution::SubmissionEnvelope;

use super::{
    super::definition::{Converted, to_definition},
    *,
};

const KEY: [u8; 32] = [7; 32];

fn datastores() -> Datastores {
    Datastores::new(Default::default(), "/datastore".into()).unwrap()
}

fn sealer() -> Sealer {
    Sealer::from_key(&KEY).unwrap()
}

fn convert(containers: ContainerPolicy, configuration: Value) -> Result<Converted> {
    let mut document = json!({ "Configuration": { "Script": "a.py" } });
    let whole = document["Configuration"].as_object_mut().unwrap();
    whole.extend(configuration.as_object().unwrap().clone());
    let envelope = SubmissionEnvelope::read(document).expect("the tests' documents have the right types");
    let targets = [TargetRule { name: ComputeName::new("local").unwrap(), containers, engine: "local" }];
    to_definition(&envelope.configuration, Rules { targets: &targets, sealer: &sealer(), datastores: &datastores() })
}

fn docker(section: Value) -> Value {
    json!({ "Environment": { "Python": { "UserManagedDependencies": true }, "Docker": section } })
}

fn container(section: Value) -> ContainerSpec {
    convert(ContainerPolicy::WhenAsked, docker(section)).unwrap().definition.container.expect("a container")
}

fn refused(containers: ContainerPolicy, configuration: Value) -> Error {
    convert(containers, configuration).unwrap_err()
}

fn named(reference: &str) -> ImageSource {
    ImageSource::Named { reference: reference.into() }
}

#[test]
fn an_enabled_image_becomes_a_container_with_what_was_asked_for() {
    let section = json!({
        "Enabled": true, "BaseImage": "team/train:1", "ShmSize": "512m", "Arguments": ["--memory", "1g"], "GpuSupport": true, "SharedVolumes": false,
        "BaseImageRegistry": { "Address": "https://registry.example/", "Username": "ada", "Password": "s3cret-pass" },
    });
    let spec = container(section);
    assert_eq!(spec.image, named("registry.example/team/train:1"));
    assert_eq!((spec.shm_bytes, spec.shared_volumes, spec.gpus), (Some(512 << 20), false, true));
    assert_eq!(spec.arguments, ["--memory", "1g"]);
    let login = spec.registry.clone().unwrap();
    assert_eq!((login.address.as_deref(), login.username.as_str()), (Some("registry.example"), "ada"));
    assert!(!format!("{spec:?}").contains("s3cret-pass") && !serde_json::to_string(&spec).unwrap().contains("s3cret-pass"));
    assert_eq!(sealer().unseal(&login.sealed_password).unwrap(), "s3cret-pass");
}

#[test]
fn the_runs_own_section_asks_for_a_container_as_well() {
    let configuration = json!({
        "Docker": { "UseDocker": true, "ShmSize": "1g", "Arguments": ["--cpus=2"], "SharedVolumes": false },
        "Environment": { "Docker": { "BaseImage": "python:3.11", "Arguments": ["--memory=1g"] } },
    });
    let spec = convert(ContainerPolicy::WhenAsked, configuration).unwrap().definition.container.unwrap();
    assert_eq!(spec.image, named("python:3.11"));
    assert_eq!((spec.shm_bytes, spec.shared_volumes), (Some(1 << 30), false));
    assert_eq!(spec.arguments, ["--memory=1g", "--cpus=2"]);
}

#[test]
fn a_dockerfile_is_taken_as_it_is() {
    let spec = container(json!({ "Enabled": true, "BaseDockerfile": "FROM x\nRUN y\n" }));
    assert_eq!(spec.image, ImageSource::Dockerfile { text: "FROM x\nRUN y\n".into() });
    assert_eq!(spec.shm_bytes, Some(2 << 30), "what the service gives by default");
}

#[test]
fn an_image_that_is_named_but_not_enabled_is_not_used_and_the_run_says_so() {
    for containers in [ContainerPolicy::WhenAsked, ContainerPolicy::Never] {
        let section = json!({ "BaseImage": "python:3.11", "BaseImageRegistry": { "Password": "s3cret-pass" } });
        let converted = convert(containers, docker(section)).unwrap();
        assert_eq!(converted.definition.container, None);
        assert!(converted.warnings[0].contains("BaseImage = `python:3.11` is not used"), "{:?}", converted.warnings);
        assert!(converted.warnings[1].contains("Password was thrown away"), "{:?}", converted.warnings);
        assert!(!format!("{converted:?}").contains("s3cret-pass"));
    }
}

#[test]
fn a_target_that_requires_containers_uses_the_named_image_and_refuses_a_run_without() {
    let converted = convert(ContainerPolicy::Required, docker(json!({ "BaseImage": "python:3.11" }))).unwrap();
    assert_eq!(converted.definition.container.unwrap().image, named("python:3.11"));
    let error = refused(ContainerPolicy::Required, docker(json!({})));
    assert!(error.message().contains("target `local` runs everything in containers"), "{error}");
    assert_eq!(error.target(), Some("Configuration.Environment.Docker.BaseImage"));
}

#[test]
fn a_target_without_containers_refuses_one_that_is_asked_for() {
    for configuration in [docker(json!({ "Enabled": true, "BaseImage": "x" })), json!({ "Docker": { "UseDocker": true } })] {
        let error = refused(ContainerPolicy::Never, configuration);
        assert!(error.message().contains("the target `local` runs nothing in containers"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_place() {
    let with = |key: &str, value: Value| {
        let mut section = json!({ "Enabled": true, "BaseImage": "python:3.11" });
        section[key] = value;
        docker(section)
    };
    let table = [
        (docker(json!({ "Enabled": true })), "Environment.Docker.BaseImage", "is not given"),
        (with("BaseDockerfile", json!("FROM y")), "Environment.Docker.BaseImage", "give one of them"),
        (with("BaseImage", json!("--privileged")), "Environment.Docker.BaseImage", "no name of an image"),
        (with("ShmSize", json!("lots")), "Environment.Docker.ShmSize", "is not a size"),
        (with("Arguments", json!(["--memory=1g", "--rm"])), "Environment.Docker.Arguments[1]", "looked at"),
        (with("Arguments", json!(["ubuntu"])), "Environment.Docker.Arguments[0]", "taken for the image"),
        (with("Platform", json!({ "Os": "Windows" })), "Environment.Docker.Platform.Os", "on Linux"),
        (with("Platform", json!({ "Architecture": "s390x" })), "Environment.Docker.Platform.Architecture", "the machines of the target"),
        (with("BaseImageRegistry", json!({ "Password": "hunter2" })), "Environment.Docker.BaseImageRegistry.Username", "is missing"),
        (
            with("BaseImageRegistry", json!({ "Address": "u:hunter2@h/x y" })),
            "Environment.Docker.BaseImageRegistry.Address",
            "address of a registry",
        ),
        (with("BuildContext", json!({ "LocationType": "Git" })), "Environment.Docker.BuildContext", "without a context"),
        (
            with("BaseImageRegistry", json!({ "RegistryIdentity": {} })),
            "Environment.Docker.BaseImageRegistry.RegistryIdentity",
            "no identities",
        ),
    ];
    for (configuration, place, words) in table {
        let error = refused(ContainerPolicy::WhenAsked, configuration);
        assert_eq!(error.target(), Some(format!("Configuration.{place}").as_str()), "{error}");
        assert!(error.message().contains(words), "{place}: {error}");
        assert!(!error.message().contains("hunter2"), "{error}");
    }
}

#[test]
fn an_image_of_one_registry_and_the_login_of_another_are_refused() {
    let section = json!({ "Enabled": true, "BaseImage": "a.example/x", "BaseImageRegistry": { "Address": "b.example", "Username": "u", "Password": "p" } });
    let error = refused(ContainerPolicy::WhenAsked, docker(section));
    assert!(error.message().contains("a.example") && error.message().contains("b.example"), "{error}");
}

#[test]
fn a_user_without_a_password_means_the_machines_login_and_a_warning() {
    let section = json!({ "Enabled": true, "BaseImage": "a.example/x", "BaseImageRegistry": { "Username": "u" } });
    let converted = convert(ContainerPolicy::WhenAsked, docker(section)).unwrap();
    assert_eq!(converted.definition.container.unwrap().registry, None);
    assert!(converted.warnings.iter().any(|warning| warning.contains("Password is missing")), "{:?}", converted.warnings);
}

fn locked(docker: Value) -> Value {
    let image = json!({ "reference": "team/train:1", "digest": format!("sha256:{}", "a".repeat(64)) });
    let lock = json!({ "python": "3.11.7", "builder": "", "packages": [], "image": image });
    json!({ "Environment": { "Lock": lock, "Docker": docker } })
}

#[test]
fn a_lock_that_was_made_on_an_image_goes_into_it_whatever_is_only_described() {
    for docker in [json!({}), json!({ "Enabled": true, "BaseImage": "docker.io/team/train:1" }), json!({ "BaseImage": "python:3.11" })] {
        let converted = convert(ContainerPolicy::WhenAsked, locked(docker.clone())).unwrap();
        assert_eq!(converted.definition.container.unwrap().image, named("team/train:1"), "{docker}");
        let told = converted.warnings.iter().any(|warning| warning.contains("BaseImage is not used"));
        assert_eq!(told, docker["BaseImage"] == "python:3.11" && docker["Enabled"].is_null(), "{:?}", converted.warnings);
    }
}

#[test]
fn a_lock_that_was_made_on_an_image_is_refused_where_it_would_go_into_another_one_or_into_none() {
    let other = format!("team/train@sha256:{}", "b".repeat(64));
    for (policy, docker, words) in [
        (ContainerPolicy::WhenAsked, json!({ "Enabled": true, "BaseImage": "python:3.11" }), "is not the image of"),
        (ContainerPolicy::WhenAsked, json!({ "Enabled": true, "BaseImage": other }), "is not the image of"),
        (ContainerPolicy::WhenAsked, json!({ "Enabled": true, "BaseDockerfile": "FROM x" }), "BaseDockerfile is not the image of"),
        (ContainerPolicy::Required, json!({ "BaseImage": "python:3.11" }), "is not the image of"),
        (ContainerPolicy::Never, json!({}), "runs nothing in containers"),
    ] {
        let error = refused(policy, locked(docker.clone()));
        assert!(error.message().contains(words), "{docker}: {error}");
    }
}
