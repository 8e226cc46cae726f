//! Real images and containers, with the image of `scripts/test-image`, of Podman or of the engine that `TRAINYARD_TEST_CONTAINERS` names. Where they
//! cannot be had the tests say so and pass.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tokio_util::sync::CancellationToken;
use trainyard_core::{
    container::{ContainerSpec, ImageSource},
    environment::{EnvironmentLock, EnvironmentSpec, LockedImage, Progress, PythonEnvironment},
};

use super::{
    super::{BuildLog, EnvironmentSettings, PrepareError, command::Console, host::Host},
    Containment, InImage,
    desk::find_on,
    prepare::prepare_in_on,
};
use crate::container::{Client, ContainerSettings, EngineChoice, Kind, Login, remove};

const IMAGE: &str = "localhost/trainyard-test:latest";

/// A node with an engine, and a cache of its own.
struct Node {
    folder: tempfile::TempDir,
    host: Host,
    client: Client,
    containers: ContainerSettings,
    settings: EnvironmentSettings,
}

#[expect(clippy::print_stderr, reason = "a test that could not do its work must say so")]
fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

/// What containers need on machines with old control groups and low limits; it does no harm elsewhere.
fn engine_settings() -> ContainerSettings {
    let has_runc = Host::current().on_path("runc").into_iter().next().is_some();
    ContainerSettings {
        engine: match std::env::var("TRAINYARD_TEST_CONTAINERS").as_deref() {
            Ok("docker") => EngineChoice::Docker,
            Ok("podman") | Err(_) => EngineChoice::Podman,
            Ok(other) => panic!("TRAINYARD_TEST_CONTAINERS is `{other}`; expected podman or docker"),
        },
        runtime: has_runc.then(|| "runc".to_owned()),
        ulimits: vec!["nofile=1024:1024".into(), "nproc=1000:1000".into()],
        ..ContainerSettings::default()
    }
}

fn settings(folder: &Path) -> EnvironmentSettings {
    // uv and what it fetched are shared with the other tests.
    let shared = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("environment-tests");
    EnvironmentSettings { cache_dir: folder.join("cache"), tools_dir: shared.join("tools"), ..EnvironmentSettings::default() }
}

impl Node {
    /// `None`, with a message, if the engine or the image is not there.
    async fn real(test: &str) -> Option<Self> {
        let containers = engine_settings();
        let client = match find_on(&Host::current(), &containers, &CancellationToken::new()).await {
            Ok(client) => client,
            Err(error) => {
                skip(test, &error.to_string());
                return None;
            }
        };
        let exists = Command::new(&client.program).args(["image", "inspect", IMAGE]).output().is_ok_and(|output| output.status.success());
        if !exists {
            skip(test, &format!("there is no image {IMAGE}; scripts/test-image makes it"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        Some(Self { host: Host::current(), client, containers, settings: settings(folder.path()), folder })
    }

    async fn prepare(&self, spec: &EnvironmentSpec, image: ImageSource) -> (Result<InImage, PrepareError>, Log) {
        let mut log = Log::default();
        let container = ContainerSpec { image, registry: None, shm_bytes: None, arguments: Vec::new(), shared_volumes: false, gpus: false };
        let attempt = uuid::Uuid::new_v4().to_string();
        let name = format!("trainyard-{attempt}-prepare");
        let scratch = self.folder.path().join(&attempt);
        fs::create_dir_all(&scratch).unwrap();
        let containment = Containment {
            client: &self.client,
            spec: &container,
            settings: &self.containers,
            attempt: &attempt,
            name: &name,
            scratch: &scratch,
        };
        let cancel = CancellationToken::new();
        let console = &mut Console::new(&mut log, &cancel);
        let outcome = prepare_in_on(&self.host, spec, &containment, &self.settings, console).await;
        let left: Vec<_> =
            fs::read_dir(&scratch).unwrap().map(|entry| entry.unwrap().file_name()).filter(|name| name == "registry").collect();
        assert!(left.is_empty(), "logins stay behind");
        remove(&self.client, &name).await.unwrap();
        (outcome, log)
    }

    /// What the interpreter of `ready` prints for `code`, inside.
    fn run(&self, ready: &InImage, code: &str) -> String {
        let mut command = Command::new(&self.client.program);
        command.args(&self.client.globals).args(["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]);
        let output = command.arg(&ready.image).arg(&ready.prepared.interpreter).args(["-c", code]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn remove_image(&self, name: &str) {
        Command::new(&self.client.program).args(["rmi", "--force", name]).output().unwrap();
    }
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    steps: Vec<String>,
}

impl BuildLog for Log {
    fn line(&mut self, line: &str) {
        self.lines.push(line.to_owned());
    }

    fn progress(&mut self, progress: &Progress) {
        self.steps.push(progress.to_string());
    }
}

fn named(reference: &str) -> ImageSource {
    ImageSource::Named { reference: reference.into() }
}

fn user_managed(path: &str) -> EnvironmentSpec {
    EnvironmentSpec::UserManaged { interpreter_path: path.into() }
}

fn pip(lines: &[&str]) -> EnvironmentSpec {
    EnvironmentSpec::Python(PythonEnvironment { pip: lines.iter().map(|&line| line.into()).collect(), ..PythonEnvironment::default() })
}

#[tokio::test]
async fn the_images_own_python_is_found_and_its_digest_is_in_the_lock() {
    let Some(node) = Node::real("the_images_own_python_is_found_and_its_digest_is_in_the_lock").await else { return };
    let (ready, log) = node.prepare(&user_managed("python"), named(IMAGE)).await;
    let ready = ready.unwrap_or_else(|error| panic!("{error}\n{}", log.lines.join("\n")));
    assert!(ready.prepared.interpreter.is_absolute(), "{ready:?}");
    assert_eq!(ready.variables["IN_THE_IMAGE"], "yes");
    let lock = ready.prepared.lock.clone().unwrap();
    assert!(lock.python.starts_with("3.") && lock.image.unwrap().digest.starts_with("sha256:"));
    // To Docker a short name is one of its own registry.
    let short = if node.client.kind == Kind::Podman { "trainyard-test" } else { IMAGE };
    let (again, _) = node.prepare(&pip(&[]), named(short)).await;
    assert_eq!(again.unwrap().prepared.hash, ready.prepared.hash, "nothing is put on top where nothing is asked for");
    let (shell, _) = node.prepare(&user_managed("/bin/sh"), named(IMAGE)).await;
    assert_eq!(shell.unwrap().prepared.interpreter, PathBuf::from("/bin/sh"));
}

#[tokio::test]
async fn an_interpreter_that_the_image_lacks_is_named() {
    let Some(node) = Node::real("an_interpreter_that_the_image_lacks_is_named").await else { return };
    let (outcome, _) = node.prepare(&user_managed("python9"), named(IMAGE)).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("`python9` was not found in the image `localhost/trainyard-test:latest`"), "{error}");
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_told_in_the_registrys_words_without_the_password() {
    const TEST: &str = "an_image_that_cannot_be_pulled_is_told_in_the_registrys_words_without_the_password";
    let Some(mut node) = Node::real(TEST).await else { return };
    node.containers.logins = vec![Login { host: "127.0.0.1:1".into(), username: "ada".into(), password: "hunter2-secret".into() }];
    let (outcome, log) = node.prepare(&user_managed("python"), named("127.0.0.1:1/team/nope:1")).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.starts_with("the image `127.0.0.1:1/team/nope:1` could not be pulled (logged in as `ada`)"), "{error}");
    assert!(error.contains("connection refused"), "{error}");
    assert!(!format!("{error}{:?}", log.lines).contains("hunter2"), "{error}");
    assert_eq!(log.steps, ["pulling image"]);
    node.settings.offline = true;
    let (outcome, _) = node.prepare(&user_managed("python"), named("127.0.0.1:1/team/nope:1")).await;
    assert!(outcome.unwrap_err().to_string().contains("offline = true forbids pulling it"));
}

#[tokio::test]
async fn a_dockerfile_that_fails_names_the_step_and_its_words() {
    let Some(node) = Node::real("a_dockerfile_that_fails_names_the_step_and_its_words").await else { return };
    let text = format!("FROM {IMAGE}\nENV A=1\nRUN cat /does/not/exist\nRUN true\n");
    let (outcome, log) = node.prepare(&user_managed("python"), ImageSource::Dockerfile { text }).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.starts_with("the Dockerfile failed at step 3 of 4 (RUN cat /does/not/exist): "), "{error}\n{}", log.lines.join("\n"));
    assert!(log.steps.contains(&"building image 2 of 4 steps".to_owned()), "{:?}", log.steps);
    assert!(log.lines.iter().any(|line| line.contains("/does/not/exist")), "the build log is live");
}

#[tokio::test]
async fn a_dockerfile_is_built_once() {
    let Some(node) = Node::real("a_dockerfile_is_built_once").await else { return };
    let text = format!("FROM {IMAGE}\nRUN echo {} >/built\n", uuid::Uuid::new_v4());
    let (spec, image) = (user_managed("python"), ImageSource::Dockerfile { text });
    let ((first, first_log), (second, second_log)) = tokio::join!(node.prepare(&spec, image.clone()), node.prepare(&spec, image));
    let first = first.unwrap_or_else(|error| panic!("{error}\n{}", first_log.lines.join("\n")));
    assert_eq!(first.image, second.unwrap().image);
    let steps = |log: &Log| log.steps.iter().any(|step| step.contains("2 of 2 steps"));
    assert!(steps(&first_log) ^ steps(&second_log), "both built: {:?} {:?}", first_log.steps, second_log.steps);
    assert!(node.run(&first, "print(len(open('/built').read().strip()))").ends_with("36"));
    node.remove_image(&first.image);
}

#[tokio::test]
async fn packages_on_top_of_an_image_are_a_layer_that_is_built_once() {
    let Some(node) = Node::real("packages_on_top_of_an_image_are_a_layer_that_is_built_once").await else { return };
    let spec = pip(&["six==1.16.0"]);
    let outcomes = tokio::join!(node.prepare(&spec, named(IMAGE)), node.prepare(&spec, named(IMAGE)), node.prepare(&spec, named(IMAGE)));
    let outcomes = [outcomes.0, outcomes.1, outcomes.2];
    if let (Err(error), log) = &outcomes[0]
        && (error.to_string().contains("pypi.org")
            || error.to_string().contains("network")
            || error.to_string().contains("uv is not on PATH"))
    {
        return skip("packages_on_top_of_an_image_are_a_layer_that_is_built_once", &format!("{error}\n{}", log.lines.join("\n")));
    }
    let mut ready = Vec::new();
    for (outcome, log) in outcomes {
        ready.push(outcome.unwrap_or_else(|error| panic!("{error}\n{}", log.lines.join("\n"))));
    }
    assert_eq!(ready.iter().filter(|ready| !ready.prepared.cached).count(), 1, "one builder");
    assert!(ready.iter().all(|one| one.image == ready[0].image));
    let lock = ready[0].prepared.lock.clone().unwrap();
    let six = lock.packages.iter().find(|package| package.name == "six").unwrap();
    assert_eq!(six.version, "1.16.0");
    assert!(
        !six.hashes.is_empty() && lock.image.is_some() && lock.builder.contains(&format!("in {}", node.client.kind.name())),
        "{lock:?}"
    );
    let said = node.run(&ready[0], "import six, only_in_the_image; print(six.__version__, only_in_the_image.WHERE)");
    assert_eq!(said, "1.16.0 image", "what the image brings is seen, too");
    let folder = ready[0].prepared.bin_dir.clone().unwrap();
    assert!(!folder.exists(), "the content is in the image, not in the cache as well");

    // Exactly that again, from the lock.
    let (locked, log) = node.prepare(&EnvironmentSpec::Locked(lock), named(IMAGE)).await;
    let locked = locked.unwrap_or_else(|error| panic!("{error}\n{}", log.lines.join("\n")));
    assert_eq!(node.run(&locked, "import six; print(six.__version__)"), "1.16.0");

    // An image that somebody pruned is built again.
    node.remove_image(&ready[0].image);
    let (again, _) = node.prepare(&spec, named(IMAGE)).await;
    let again = again.unwrap();
    assert!(!again.prepared.cached);
    node.remove_image(&again.image);
    node.remove_image(&locked.image);
}

#[tokio::test]
async fn a_lock_gets_its_image_and_no_other() {
    let Some(node) = Node::real("a_lock_gets_its_image_and_no_other").await else { return };
    let (ready, _) = node.prepare(&user_managed("python"), named(IMAGE)).await;
    let lock = ready.unwrap().prepared.lock.unwrap();
    let (same, _) = node.prepare(&EnvironmentSpec::Locked(lock.clone()), named(IMAGE)).await;
    assert_eq!(same.unwrap().prepared.lock.unwrap().image, lock.image);
    let digest = format!("sha256:{}", "0".repeat(64));
    let image = Some(LockedImage { reference: IMAGE.into(), digest: digest.clone() });
    let (other, _) = node.prepare(&EnvironmentSpec::Locked(EnvironmentLock { image, ..lock.clone() }), named(IMAGE)).await;
    let error = other.unwrap_err().to_string();
    assert!(error.contains(&digest) && error.contains(&lock.image.unwrap().digest), "{error}");
}

#[tokio::test]
async fn an_engine_that_cannot_start_containers_says_what_to_set() {
    let Some(mut node) = Node::real("an_engine_that_cannot_start_containers_says_what_to_set").await else { return };
    node.containers.ulimits = vec!["nofile=99999999999:99999999999".into()];
    let (outcome, _) = node.prepare(&user_managed("python"), named(IMAGE)).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("could not start a container") && error.contains("container_ulimits"), "{error}");
}

#[tokio::test]
async fn without_an_engine_everything_that_was_looked_for_is_named() {
    let folder = tempfile::tempdir().unwrap();
    program(&folder.path().join("docker"), "echo 'usage: docker' >&2; exit 1");
    let host = Host::with([(OsString::from("PATH"), folder.path().as_os_str().to_owned())]);
    let error = find_on(&host, &ContainerSettings::default(), &CancellationToken::new()).await.unwrap_err().to_string();
    for words in
        ["no container engine answers", "podman is not on PATH", "docker` failed: usage: docker", "apptainer or singularity is not on PATH"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
}

fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Answers as Apptainer 1.3 does, and runs what it is given on the machine itself.
const APPTAINER: &str = r#"
[ "$1" = --version ] && { echo "apptainer version 1.3.4"; exit 0; }
[ "$1" = --silent ] && shift
case $1 in
pull)
    case $4 in docker://*nope*) echo 'FATAL:   While making image from oci registry: error fetching image to cache: manifest unknown' >&2; exit 255 ;; esac
    echo "INFO:    Creating SIF file..." >&2
    echo "$4 $APPTAINER_DOCKER_USERNAME" >"$3"; exit 0 ;;
exec)
    shift
    while :; do case $1 in --bind | --pwd) shift 2 ;; --*) shift ;; *) break ;; esac; done
    [ -f "$1" ] || { echo "FATAL:   could not open image $1" >&2; exit 255; }
    shift
    command -v "$1" >/dev/null || { echo "FATAL:   \"$1\": executable file not found in \$PATH" >&2; exit 255; }
    exec "$@" ;;
esac
exit 1
"#;

#[tokio::test]
async fn apptainer_pulls_an_image_into_a_file_once_and_uses_its_python() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    program(&bin.join("apptainer"), APPTAINER);
    let path = std::env::join_paths([bin, "/usr/bin".into(), "/bin".into()]).unwrap();
    let host = Host::with([(OsString::from("PATH"), path), ("HOME".into(), folder.path().into())]);
    let containers = ContainerSettings {
        engine: EngineChoice::Apptainer,
        logins: vec![Login { host: "docker.io".into(), username: "ada".into(), password: "hunter2-secret".into() }],
        ..ContainerSettings::default()
    };
    let client = find_on(&host, &containers, &CancellationToken::new()).await.unwrap();
    assert_eq!((client.kind, client.version.as_str()), (Kind::Apptainer, "1.3.4"));
    let node = Node { host, client, containers, settings: settings(folder.path()), folder };
    let (ready, log) = node.prepare(&user_managed("python3"), named("python:3.11")).await;
    let ready = ready.unwrap_or_else(|error| panic!("{error}\n{}", log.lines.join("\n")));
    assert!(ready.image.ends_with(".sif"));
    assert_eq!(fs::read_to_string(&ready.image).unwrap(), "docker://docker.io/library/python:3.11 ada\n");
    assert!(ready.prepared.lock.unwrap().image.unwrap().digest.starts_with("sha256:"));
    let (_, again) = node.prepare(&user_managed("python3"), named("python:3.11")).await;
    assert!(again.steps.is_empty(), "pulled again: {:?}", again.steps);
    let (missing, _) = node.prepare(&user_managed("python3"), named("nope:1")).await;
    let error = missing.unwrap_err().to_string();
    assert!(error.contains("could not be pulled") && error.contains("manifest unknown") && !error.contains("hunter2"), "{error}");
    let (built, _) = node.prepare(&user_managed("python3"), ImageSource::Dockerfile { text: "FROM x".into() }).await;
    assert!(built.unwrap_err().to_string().contains("Apptainer cannot build a Dockerfile"));
}
