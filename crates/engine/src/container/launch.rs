//! The command line and the environment with which a run goes into a container: pure functions.
//!
//! Variables go in by name, never by value: the engine's client inherits the values, so that `ps` does not show the run's token. The few names that
//! bend the client itself (where its programs, storage and daemon are) go in by value, and hold no secrets.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use trainyard_core::container::{ContainerSpec, argument_words};

use super::{
    client::{Client, Kind},
    settings::ContainerSettings,
};

/// What the engine's client needs for itself: the run's values of these do not reach it.
const OF_THE_CLIENT: [&str; 39] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LD_AUDIT",
    "XDG_RUNTIME_DIR",
    "XDG_DATA_HOME",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "GODEBUG",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "GOTRACEBACK",
    "DOCKER_HOST",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "DOCKER_API_VERSION",
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "CONTAINER_SSHKEY",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRY_AUTH_FILE",
    "STORAGE_DRIVER",
    "STORAGE_OPTS",
];

/// What the machine's variables mean inside: language, proxies, which accelerators. Paths of the machine mean nothing there.
const FROM_THE_MACHINE: [&str; 16] = [
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// A folder or file that is seen inside at the same absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where, inside and outside.
    pub(crate) path: PathBuf,
    /// Whether it can be written.
    pub(crate) writable: bool,
}

impl Mount {
    /// Can only be read inside.
    pub(crate) fn read_only(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writable: false }
    }

    /// Can be written inside.
    pub(crate) fn writable(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), writable: true }
    }
}

/// Everything that the launch of a container depends on.
pub(crate) struct Surroundings<'a> {
    /// The engine.
    pub(crate) client: &'a Client,
    /// What the definition asks for.
    pub(crate) spec: &'a ContainerSpec,
    /// What the target says.
    pub(crate) settings: &'a ContainerSettings,
    /// What the engine calls the image: an id, a tag or a file.
    pub(crate) image: &'a str,
    /// The attempt, as text.
    pub(crate) attempt: &'a str,
    /// The container's name.
    pub(crate) name: &'a str,
    /// User and group of the agent.
    pub(crate) agent: (u32, u32),
    /// Where the code starts.
    pub(crate) work: &'a Path,
    /// What is seen inside.
    pub(crate) mounts: Vec<Mount>,
    /// The folder of the environment on top of the image, if it is not part of the image.
    pub(crate) prefix: Option<&'a Path>,
}

/// How the engine's client is started.
pub(crate) struct Outline {
    /// Its program.
    pub(crate) program: OsString,
    /// Its arguments; nothing secret.
    pub(crate) arguments: Vec<OsString>,
    /// Its environment; it holds the run's token.
    pub(crate) variables: BTreeMap<OsString, OsString>,
}

/// The variables from which the run's are made inside a container: some of the machine's, and over them the image's.
pub(crate) fn surroundings(machine: &BTreeMap<OsString, OsString>, image: &BTreeMap<String, String>) -> BTreeMap<OsString, OsString> {
    let mut own: BTreeMap<OsString, OsString> = machine
        .iter()
        .filter(|(name, _)| name.to_str().is_some_and(|name| FROM_THE_MACHINE.contains(&name)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    own.extend(image.iter().map(|(name, value)| (name.into(), value.into())));
    own
}

/// The command line that starts `command` (program and arguments) with `variables` inside; `machine` is the agent's own environment, for the client.
pub(crate) fn outline(
    around: &Surroundings<'_>,
    command: (&OsStr, &[OsString]),
    variables: &BTreeMap<OsString, OsString>,
    machine: &BTreeMap<OsString, OsString>,
) -> Outline {
    match around.client.kind {
        Kind::Podman | Kind::Docker => of_docker(around, command, variables, machine),
        Kind::Apptainer => of_apptainer(around, command, variables, machine),
    }
}

fn of_docker(
    around: &Surroundings<'_>,
    (program, rest): (&OsStr, &[OsString]),
    variables: &BTreeMap<OsString, OsString>,
    machine: &BTreeMap<OsString, OsString>,
) -> Outline {
    let Surroundings { client, spec, settings, .. } = around;
    let more: Vec<String> = settings.arguments.iter().cloned().chain(argument_words(&spec.arguments)).collect();
    let given = |names: &[&str]| more.iter().any(|word| names.contains(&word.split('=').next().unwrap_or_default()));
    let mut words = client.words(["run"]);
    let mut say = |text: &str| words.push(text.into());
    // The server is on the loopback of this machine, often enough.
    if !given(&["--network", "--net"]) {
        say("--network=host");
    }
    if client.has_init {
        say("--init");
    }
    if let (Some(bytes), false) = (spec.shm_bytes, given(&["--shm-size", "--ipc"])) {
        say(&format!("--shm-size={bytes}"));
    }
    if client.kind == Kind::Docker
        && let Some(runtime) = &settings.runtime
    {
        say(&format!("--runtime={runtime}"));
    }
    for limit in &settings.ulimits {
        say(&format!("--ulimit={limit}"));
    }
    if spec.gpus {
        match client.kind {
            Kind::Docker => say("--gpus=all"),
            _ => say("--device=nvidia.com/gpu=all"),
        }
    }
    if spec.shared_volumes {
        for volume in &settings.volumes {
            say(&format!("--volume={volume}"));
        }
    }
    if client.kind == Kind::Podman && !given(&["--security-opt"]) {
        // Else nothing of the working directory can be read where SELinux labels files.
        say("--security-opt=label=disable");
    }
    for word in &more {
        say(word);
    }
    // From here on nobody else's word counts: of an option that is given twice, the last one holds.
    say(&format!("--name={}", around.name));
    say(&format!("--label=trainyard.attempt={}", around.attempt));
    say("--log-driver=none");
    say(&format!("--user={}", client.user(around.agent)));
    say("--entrypoint=");
    words.extend(around.mounts.iter().map(mount_word));
    let mut workdir = OsString::from("--workdir=");
    workdir.push(around.work);
    words.push(workdir);
    let mut environment = machine.clone();
    for (name, value) in variables {
        let mut word = OsString::from("--env=");
        word.push(name);
        if is_of_the_client(name) {
            word.push("=");
            word.push(value);
        } else {
            environment.insert(name.clone(), value.clone());
        }
        words.push(word);
    }
    words.push(around.image.into());
    words.push(program.to_owned());
    words.extend(rest.iter().cloned());
    Outline { program: client.program.clone().into(), arguments: words, variables: environment }
}

fn of_apptainer(
    around: &Surroundings<'_>,
    (program, rest): (&OsStr, &[OsString]),
    variables: &BTreeMap<OsString, OsString>,
    machine: &BTreeMap<OsString, OsString>,
) -> Outline {
    let Surroundings { client, spec, settings, .. } = around;
    let mut words = client.words(["--silent", "exec", "--cleanenv", "--no-home"]);
    if spec.gpus {
        words.push("--nv".into());
    }
    words.extend(settings.arguments.iter().map(OsString::from));
    let volumes = settings.volumes.iter().filter(|_| spec.shared_volumes);
    words.extend(volumes.flat_map(|volume| [OsString::from("--bind"), volume.into()]));
    for mount in &around.mounts {
        let mut bind = mount.path.clone().into_os_string();
        bind.push(":");
        bind.push(&mount.path);
        bind.push(if mount.writable { ":rw" } else { ":ro" });
        words.extend(["--bind".into(), bind]);
    }
    words.extend(["--pwd".into(), around.work.into()]);
    let mut environment = machine.clone();
    for (name, value) in variables {
        // The image's own path stays, with the environment's programs before it.
        let (name, value) = match (name.to_str(), around.prefix) {
            (Some("PATH"), Some(prefix)) => ("PREPEND_PATH".into(), prefix.join("bin").into_os_string()),
            (Some("PATH"), None) => continue,
            _ => (name.clone(), value.clone()),
        };
        for prefix in ["APPTAINERENV_", "SINGULARITYENV_"] {
            let mut prefixed = OsString::from(prefix);
            prefixed.push(&name);
            environment.insert(prefixed, value.clone());
        }
    }
    // By this the processes of the attempt are known, wherever they are.
    if let Some(value) = variables.get(OsStr::new(crate::agent::ATTEMPT_VARIABLE)) {
        environment.insert(crate::agent::ATTEMPT_VARIABLE.into(), value.clone());
    }
    words.push(around.image.into());
    words.push(program.to_owned());
    words.extend(rest.iter().cloned());
    Outline { program: client.program.clone().into(), arguments: words, variables: environment }
}

fn is_of_the_client(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| OF_THE_CLIENT.contains(&name) || name.starts_with("_CONTAINERS_") || name.starts_with("BUILDAH_"))
}

/// `--mount=type=bind,…`: one line of CSV, so a path may hold anything.
pub(crate) fn mount_word(mount: &Mount) -> OsString {
    let mut word = OsString::from("--mount=type=bind");
    for key in ["source", "target"] {
        let path = mount.path.as_os_str();
        let quoted = path.to_string_lossy().contains([',', '"', '\n']);
        word.push(if quoted { ",\"" } else { "," });
        word.push(key);
        word.push("=");
        if quoted {
            word.push(path.to_string_lossy().replace('"', "\"\""));
            word.push("\"");
        } else {
            word.push(path);
        }
    }
    if !mount.writable {
        word.push(",readonly");
    }
    word
}

#[cfg(test)]
mod tests {
    use trainyard_core::container::ImageSource;

    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec {
            image: ImageSource::Named { reference: "x".into() },
            registry: None,
            shm_bytes: Some(1 << 20),
            arguments: vec!["--memory 1g".into()],
            shared_volumes: true,
            gpus: true,
        }
    }

    fn client(kind: Kind) -> Client {
        let globals = if kind == Kind::Podman { vec!["--runtime".into(), "runc".into()] } else { Vec::new() };
        Client { kind, program: "/bin/engine".into(), version: "1".into(), rootless: false, has_init: true, globals }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<OsString, OsString> {
        pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn line(kind: Kind, spec: &ContainerSpec) -> (String, BTreeMap<OsString, OsString>) {
        let settings = ContainerSettings {
            ulimits: vec!["nofile=64:64".into()],
            arguments: vec!["--cgroups=disabled".into()],
            volumes: vec!["/data:/data:ro".into()],
            ..ContainerSettings::default()
        };
        let around = Surroundings {
            client: &client(kind),
            spec,
            settings: &settings,
            image: "sha",
            attempt: "a1",
            name: "trainyard-a1",
            agent: (1000, 100),
            work: Path::new("/d/work"),
            mounts: vec![Mount::writable("/d/work"), Mount::read_only("/d/c,a.pem")],
            prefix: Some(Path::new("/envs/e")),
        };
        let variables = map(&[("AZUREML_RUN_TOKEN", "secret-token"), ("PATH", "/envs/e/bin:/bin"), ("TRAINYARD_ATTEMPT_ID", "a1")]);
        let outline =
            outline(&around, (OsStr::new("python"), &["main.py".into()]), &variables, &map(&[("PATH", "/host/bin"), ("HOME", "/root")]));
        let words: Vec<String> = outline.arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        (words.join(" "), outline.variables)
    }

    #[test]
    fn the_command_line_of_podman_is_whole_and_holds_no_secret() {
        let (line, variables) = line(Kind::Podman, &spec());
        assert_eq!(
            line,
            "--runtime runc run --network=host --init --shm-size=1048576 --ulimit=nofile=64:64 --device=nvidia.com/gpu=all \
             --volume=/data:/data:ro --security-opt=label=disable --cgroups=disabled --memory 1g --name=trainyard-a1 \
             --label=trainyard.attempt=a1 --log-driver=none --user=1000:100 --entrypoint= --mount=type=bind,source=/d/work,target=/d/work \
             --mount=type=bind,\"source=/d/c,a.pem\",\"target=/d/c,a.pem\",readonly --workdir=/d/work --env=AZUREML_RUN_TOKEN \
             --env=PATH=/envs/e/bin:/bin --env=TRAINYARD_ATTEMPT_ID sha python main.py"
        );
        assert_eq!(variables[OsStr::new("AZUREML_RUN_TOKEN")], "secret-token");
        assert_eq!(variables[OsStr::new("PATH")], "/host/bin", "the client finds its own programs");
    }

    #[test]
    fn what_the_definition_says_about_network_and_memory_takes_the_place_of_the_defaults() {
        let spec = ContainerSpec { arguments: vec!["--network".into(), "none".into(), "--ipc=host".into()], gpus: false, ..spec() };
        let (line, _) = line(Kind::Docker, &spec);
        assert!(line.contains("--network none") && !line.contains("--network=host") && !line.contains("--shm-size"), "{line}");
        assert!(!line.contains("gpu") && !line.contains("label=disable"), "{line}");
    }

    #[test]
    fn apptainer_gets_variables_through_its_own_and_keeps_the_images_path() {
        let (line, variables) = line(Kind::Apptainer, &ContainerSpec { arguments: Vec::new(), ..spec() });
        assert_eq!(
            line,
            "--silent exec --cleanenv --no-home --nv --cgroups=disabled --bind /data:/data:ro --bind /d/work:/d/work:rw \
             --bind /d/c,a.pem:/d/c,a.pem:ro --pwd /d/work sha python main.py"
        );
        assert_eq!(variables[OsStr::new("APPTAINERENV_AZUREML_RUN_TOKEN")], "secret-token");
        assert_eq!(variables[OsStr::new("APPTAINERENV_PREPEND_PATH")], "/envs/e/bin");
        assert_eq!(variables[OsStr::new("TRAINYARD_ATTEMPT_ID")], "a1", "so that its processes are known");
        assert_eq!(variables[OsStr::new("PATH")], "/host/bin");
    }

    #[test]
    fn paths_of_the_machine_do_not_go_inside_and_the_images_variables_win() {
        let image = BTreeMap::from([("PATH".to_owned(), "/image/bin".to_owned()), ("LANG".to_owned(), "de_DE.UTF-8".to_owned())]);
        let machine = map(&[("PATH", "/host"), ("HOME", "/root"), ("LANG", "C"), ("HTTPS_PROXY", "http://p"), ("SHELL", "/bin/zsh")]);
        let own = surroundings(&machine, &image);
        assert_eq!(own, map(&[("HTTPS_PROXY", "http://p"), ("LANG", "de_DE.UTF-8"), ("PATH", "/image/bin")]));
    }
}
