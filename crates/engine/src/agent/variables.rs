//! The environment and the command line of the user's process: a pure function of the order, the definition and what was prepared.
//!
//! Later wins: a short list of the agent's own variables, the server's (azureml-wire F.1, F.2), what only the agent knows, the paths of the data,
//! the definition's. The names in [`RESERVED`] tell who the run is, and a definition can't change them: one copied from another
//! run would write to that run.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use trainyard_core::definition::{Definition, Entry};

use super::{
    data::Placed,
    tree::{ATTEMPT_VARIABLE, NODE_VARIABLE},
};

/// What the user's process inherits of the agent's environment, if it is there. Not a list of what to leave out: a secret has any name.
const INHERITED: [&str; 29] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "XDG_CACHE_HOME",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// Beginnings of names that are inherited too: what a Slurm job is told about itself, without which `srun` does not work in it.
const INHERITED_PREFIXES: [&str; 2] = ["SLURM_", "SLURMD_"];

fn is_inherited(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// Set where everything that the agent has is the run's own: in a pod, whose variables are those of its image and of its target.
pub(crate) const OWN_POD_VARIABLE: &str = "TRAINYARD_OWN_POD";

/// Who the run is: not the definition's to say.
const RESERVED: [&str; 5] = ["AZUREML_RUN_ID", "AZUREML_RUN_TOKEN", "AZUREML_RUN_TOKEN_EXPIRY", ATTEMPT_VARIABLE, NODE_VARIABLE];

/// Where programs are searched if the agent itself has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that the environment is made of.
pub(super) struct Sources<'a> {
    /// The agent's own variables.
    pub(super) own: BTreeMap<OsString, OsString>,
    /// What the environment sets for what runs in it, as activation scripts do; under `PATH` stand folders that go in front.
    pub(super) environment: &'a BTreeMap<String, String>,
    /// What the server knows.
    pub(super) server: &'a BTreeMap<String, String>,
    /// Attempt id, as text.
    pub(super) attempt: &'a str,
    /// `https://host:port` of the server.
    pub(super) endpoint: &'a str,
    /// The run's token, and when it ends in seconds since the epoch.
    pub(super) token: (&'a str, i64),
    /// Working directory.
    pub(super) work: &'a Path,
    /// The folder of logs.
    pub(super) logs: &'a Path,
    /// The log of the process.
    pub(super) log: &'a Path,
    /// System roots and the server's CA.
    pub(super) ca_bundle: &'a Path,
    /// The folder of the built environment (its programs are in `bin`); `None`: nothing was built.
    pub(super) prefix: Option<&'a Path>,
    /// Where the data is.
    pub(super) data: &'a Placed,
    /// What tells this process from the others of its run.
    pub(super) ranks: &'a [(&'static str, String)],
    /// Which node of the attempt this is.
    pub(super) node: u32,
    /// What the user asked for.
    pub(super) definition: &'a Definition,
}

/// The environment of the user's process, and what has to be said about it.
pub(super) fn variables(sources: &Sources<'_>) -> (BTreeMap<OsString, OsString>, Vec<String>) {
    let in_own_pod = sources.own.contains_key(OsStr::new(OWN_POD_VARIABLE));
    let mut all: BTreeMap<OsString, OsString> = sources
        .own
        .iter()
        .filter(|(name, _)| in_own_pod || is_inherited(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    if !["LANG", "LC_ALL", "LC_CTYPE"].iter().any(|name| all.contains_key(OsStr::new(name))) {
        // Else Python before 3.7 writes, and most tools assume, ASCII.
        all.insert("LANG".into(), "C.UTF-8".into());
    }
    bypass_proxy(&mut all, sources.endpoint);
    let activated = sources.environment.iter().filter(|(name, _)| *name != "PATH");
    all.extend(activated.map(|(name, value)| (name.into(), value.into())));
    all.extend(sources.server.iter().map(|(name, value)| (name.into(), value.into())));
    all.extend(known_here(sources).into_iter().map(|(name, value)| (name.into(), value)));
    all.extend(sources.ranks.iter().map(|(name, value)| ((*name).into(), value.into())));
    all.extend(parameters(&sources.definition.arguments).into_iter().map(|(name, value)| (name.into(), value.into())));

    let mut warnings = Vec::new();
    for (name, value) in &sources.data.variables {
        match refused(name, value).or_else(|| sources.server.contains_key(name).then_some("the server sets it")) {
            Some(why) => warnings.push(format!("the variable `{}` of the run's data is not set: {why}", name.escape_debug())),
            None => drop(all.insert(name.into(), value.into())),
        }
    }
    for (name, value) in sources.data.bare.iter().filter(|(name, value)| refused(name, value).is_none()) {
        all.entry(name.into()).or_insert_with(|| value.into());
    }
    for (name, value) in &sources.definition.environment_variables {
        let given = sources.server.contains_key(name).then_some(name.as_str());
        match refused(name, value).or_else(|| given.and_then(given_away)) {
            Some(why) => warnings.push(format!("the environment variable `{}` of the definition is not set: {why}", name.escape_debug())),
            None => drop(all.insert(name.into(), value.into())),
        }
    }
    let (token, expires_on) = sources.token;
    all.insert("AZUREML_RUN_TOKEN".into(), token.into());
    all.insert("AZUREML_RUN_TOKEN_EXPIRY".into(), expires_on.to_string().into());
    all.insert(ATTEMPT_VARIABLE.into(), sources.attempt.into());
    if sources.node > 0 {
        all.insert(NODE_VARIABLE.into(), sources.node.to_string().into());
    }
    if let Some(prefix) = sources.prefix {
        let mut path = prefix.join("bin").into_os_string();
        if let Some(rest) = all.get(OsStr::new("PATH")).filter(|rest| !rest.is_empty()) {
            path.push(":");
            path.push(rest);
        }
        if let Some(in_front) = sources.environment.get("PATH") {
            let mut longer = OsString::from(in_front);
            longer.push(":");
            longer.push(path);
            path = longer;
        }
        all.insert("PATH".into(), path);
        // An environment of conda packages is no virtual one, and tools that are told so look for it in vain.
        if !sources.environment.contains_key("CONDA_PREFIX") {
            all.insert("VIRTUAL_ENV".into(), prefix.into());
        }
    }
    (all, warnings)
}

/// What only the agent can say. The user may say otherwise.
fn known_here(sources: &Sources<'_>) -> Vec<(&'static str, OsString)> {
    let bundle = sources.ca_bundle.as_os_str();
    vec![
        // A line that is printed should be in the log when it is printed.
        ("PYTHONUNBUFFERED", "1".into()),
        ("SSL_CERT_FILE", bundle.into()),
        ("REQUESTS_CA_BUNDLE", bundle.into()),
        ("CURL_CA_BUNDLE", bundle.into()),
        ("AZUREML_OUTPUT_DIRECTORY", sources.work.join("outputs").into()),
        ("AZUREML_LOGDIRECTORY_PATH", sources.logs.into()),
        ("AZUREML_DRIVERLOG_PATH", sources.log.into()),
        ("AZUREML_PROCESS_NAME", "main".into()),
        ("PWD", sources.work.into()),
    ]
}

fn refused(name: &str, value: &str) -> Option<&'static str> {
    if RESERVED.contains(&name) {
        Some("it says who the run is, which the server does")
    } else if name.is_empty() || name.contains(['=', '\0']) {
        Some("a name has at least one character, and neither `=` nor NUL")
    } else if value.contains('\0') {
        Some("a value cannot contain NUL")
    } else {
        None
    }
}

/// What the target decides when it gives devices away: another run has the others.
fn given_away(name: &str) -> Option<&'static str> {
    ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"].contains(&name).then_some("the target gives every run its own GPUs")
}

/// If the process uses a proxy, it still reaches the server directly, as the agent does.
fn bypass_proxy(all: &mut BTreeMap<OsString, OsString>, endpoint: &str) {
    let proxied = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    if !proxied.iter().any(|name| all.contains_key(OsStr::new(name))) {
        return;
    }
    let Some(host) = host_of(endpoint) else { return };
    for name in ["NO_PROXY", "no_proxy"] {
        let entry = all.entry(name.into()).or_default();
        let listed = entry.to_string_lossy().split(',').any(|part| part.trim() == host || part.trim() == "*");
        if !listed {
            if !entry.is_empty() {
                entry.push(",");
            }
            entry.push(host);
        }
    }
}

fn host_of(endpoint: &str) -> Option<&str> {
    let authority = endpoint.split_once("://")?.1.split('/').next()?;
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split_once(']')?.0,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    (!host.is_empty()).then_some(host)
}

/// `AZUREML_PARAMETER_{name}` for each `--name value` or `--name=value` (azureml-wire F.2).
fn parameters(arguments: &[String]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (index, argument) in arguments.iter().enumerate() {
        let Some(option) = argument.strip_prefix("--") else { continue };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, arguments.get(index + 1).map(String::as_str).filter(|next| !next.starts_with("--"))),
        };
        if let (false, Some(value)) = (name.is_empty() || name.contains('\0') || value.is_some_and(|value| value.contains('\0')), value) {
            found.insert(format!("AZUREML_PARAMETER_{name}"), value.to_owned());
        }
    }
    found
}

/// Program and arguments for an entry. `interpreter` runs scripts. `Err`: why there is nothing that can be started.
pub(super) fn command_line(definition: &Definition, interpreter: &Path, work: &Path) -> Result<(OsString, Vec<OsString>), String> {
    let arguments = || definition.arguments.iter().map(OsString::from);
    match &definition.entry {
        Entry::Script { path } => {
            if !work.join(path).is_file() {
                return Err(format!("the script `{path}` is not in the snapshot"));
            }
            Ok((interpreter.into(), std::iter::once(OsString::from(path)).chain(arguments()).collect()))
        }
        Entry::Command { words } => match words.as_slice() {
            [] => Err("the command has no words".into()),
            [line] => {
                // Arguments follow the line as if they had been typed after it, each as one word.
                let line = definition.arguments.iter().fold(line.clone(), |line, argument| format!("{line} {}", quoted(argument)));
                Ok(("/bin/sh".into(), vec!["-c".into(), line.into()]))
            }
            [program, rest @ ..] => Ok((program.into(), rest.iter().map(OsString::from).chain(arguments()).collect())),
        },
    }
}

/// One word for the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trainyard_core::{
        definition::{Framework, History},
        environment::EnvironmentSpec,
        ids::ComputeName,
        run::RetryWish,
    };

    use super::*;

    fn definition() -> Definition {
        Definition {
            entry: Entry::Script { path: "hello.py".into() },
            arguments: Vec::new(),
            target: ComputeName::new("local").unwrap(),
            framework: Framework::Python,
            environment: EnvironmentSpec::UserManaged { interpreter_path: "python3".into() },
            environment_variables: BTreeMap::new(),
            max_run_duration_seconds: None,
            priority: 0,
            history: History::default(),
            container: None,
            retries: RetryWish::default(),
            slurm: Default::default(),
            kubernetes: Default::default(),
            distribution: Default::default(),
            data: Default::default(),
        }
    }

    #[test]
    fn in_a_pod_of_its_own_the_code_sees_what_image_and_target_set() {
        let mut case = Case::new();
        case.own.push(("NCCL_DEBUG", "INFO"));
        assert!(!case.run().0.contains_key("NCCL_DEBUG"));
        case.own.push((OWN_POD_VARIABLE, "yes"));
        assert_eq!(case.run().0["NCCL_DEBUG"], "INFO");
    }

    struct Case {
        own: Vec<(&'static str, &'static str)>,
        server: BTreeMap<String, String>,
        prefix: Option<&'static Path>,
        environment: BTreeMap<String, String>,
        data: Placed,
        definition: Definition,
    }

    impl Case {
        fn new() -> Self {
            let environment = BTreeMap::new();
            Self {
                own: vec![("PATH", "/usr/bin")],
                server: BTreeMap::new(),
                prefix: None,
                environment,
                data: Placed::default(),
                definition: definition(),
            }
        }

        fn user(mut self, name: &str, value: &str) -> Self {
            self.definition.environment_variables.insert(name.into(), value.into());
            self
        }

        fn run(&self) -> (BTreeMap<String, String>, Vec<String>) {
            let sources = Sources {
                own: self.own.iter().map(|(name, value)| (name.into(), value.into())).collect(),
                environment: &self.environment,
                server: &self.server,
                attempt: "attempt-1",
                endpoint: "https://run.example:8443",
                token: ("jwt", 1_700_000_000),
                work: Path::new("/a/work"),
                logs: Path::new("/a/spool/azureml-logs"),
                log: Path::new("/a/spool/azureml-logs/70_driver_log.txt"),
                ranks: &[],
                node: 0,
                ca_bundle: Path::new("/a/tls/bundle.pem"),
                prefix: self.prefix,
                data: &self.data,
                definition: &self.definition,
            };
            let (all, warnings) = variables(&sources);
            let text = |value: OsString| value.into_string().unwrap();
            (all.into_iter().map(|(name, value)| (text(name), text(value))).collect(), warnings)
        }
    }

    #[test]
    fn the_agents_own_variables_stay_with_the_agent_unless_listed() {
        let mut case = Case::new();
        case.own.extend([
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("TRAINYARD_STORE", "postgres://u:p@h/d"),
            ("TZ", "UTC"),
            ("SLURM_JOB_ID", "17"),
        ]);
        let (all, _) = case.run();
        assert_eq!((all["TZ"].as_str(), all["SLURM_JOB_ID"].as_str()), ("UTC", "17"));
        assert!(!all.values().any(|value| value.contains("secret") || value.contains("postgres")));
    }

    #[test]
    fn the_definition_wins_over_everything_but_who_the_run_is() {
        let mut case = Case::new().user("PYTHONUNBUFFERED", "").user("AZUREML_NODE_COUNT", "7").user("TZ", "CET");
        case = case.user("AZUREML_RUN_ID", "other").user("AZUREML_RUN_TOKEN", "stolen").user("A=B", "x").user("OK", "a\0b");
        case.server.insert("AZUREML_RUN_ID".into(), "run-1".into());
        case.server.insert("AZUREML_NODE_COUNT".into(), "1".into());
        let (all, warnings) = case.run();
        assert_eq!((all["PYTHONUNBUFFERED"].as_str(), all["AZUREML_NODE_COUNT"].as_str(), all["TZ"].as_str()), ("", "7", "CET"));
        assert_eq!((all["AZUREML_RUN_ID"].as_str(), all["AZUREML_RUN_TOKEN"].as_str()), ("run-1", "jwt"));
        assert_eq!(all["AZUREML_RUN_TOKEN_EXPIRY"], "1700000000");
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings.iter().any(|warning| warning.contains("`AZUREML_RUN_ID` of the definition is not set")));
    }

    #[test]
    fn the_paths_of_data_are_told_and_take_nobodys_place() {
        let mut case = Case::new().user("mine", "kept");
        case.server.insert("AZUREML_NODE_COUNT".into(), "1".into());
        let pairs = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "/data".to_owned())).collect();
        case.data.variables = pairs(&["AZURE_ML_INPUT_a", "TRAIN", "AZUREML_RUN_ID", "AZUREML_NODE_COUNT", "mine"]);
        case.data.bare = pairs(&["PATH", "a"]);
        let (all, warnings) = case.run();
        assert_eq!((&*all["AZURE_ML_INPUT_a"], &*all["TRAIN"], &*all["a"]), ("/data", "/data", "/data"));
        assert_eq!((&*all["PATH"], &*all["mine"], &*all["AZUREML_NODE_COUNT"]), ("/usr/bin", "kept", "1"));
        assert!(!all.contains_key("AZUREML_RUN_ID"));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn a_definition_cannot_take_the_gpus_of_another_run() {
        let mut case = Case::new().user("CUDA_VISIBLE_DEVICES", "0,1,2,3");
        assert_eq!(case.run().0["CUDA_VISIBLE_DEVICES"], "0,1,2,3", "nobody gives them away");
        case.server.insert("CUDA_VISIBLE_DEVICES".into(), "2".into());
        let (all, warnings) = case.run();
        assert_eq!(all["CUDA_VISIBLE_DEVICES"], "2");
        assert!(warnings[0].contains("gives every run its own GPUs"), "{warnings:?}");
    }

    #[test]
    fn the_built_environment_comes_first_on_the_path_even_if_the_definition_sets_one() {
        let mut case = Case::new().user("PATH", "/opt/bin");
        case.prefix = Some(Path::new("/cache/env"));
        let (all, _) = case.run();
        assert_eq!(all["PATH"], "/cache/env/bin:/opt/bin");
        assert_eq!(all["VIRTUAL_ENV"], "/cache/env");
    }

    #[test]
    fn a_conda_environment_is_activated_below_the_definition_and_above_what_is_inherited() {
        let mut case = Case::new().user("GREETING", "mine");
        case.own.push(("LD_LIBRARY_PATH", "/old"));
        case.prefix = Some(Path::new("/cache/env"));
        let activation = [
            ("CONDA_PREFIX", "/cache/env"),
            ("GREETING", "theirs"),
            ("LD_LIBRARY_PATH", "/new"),
            ("PATH", "/cache/env/more"),
            ("SSL_CERT_FILE", "/x"),
        ];
        case.environment = activation.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (all, _) = case.run();
        assert_eq!(all["PATH"], "/cache/env/more:/cache/env/bin:/usr/bin");
        assert_eq!((all["GREETING"].as_str(), all["LD_LIBRARY_PATH"].as_str()), ("mine", "/new"));
        assert_eq!(all["SSL_CERT_FILE"], "/a/tls/bundle.pem", "the server must be trusted");
        assert_eq!((all["CONDA_PREFIX"].as_str(), all.get("VIRTUAL_ENV")), ("/cache/env", None));
    }

    #[test]
    fn python_in_the_run_writes_at_once_in_utf8_and_trusts_the_server() {
        let (all, _) = Case::new().run();
        assert_eq!((all["PYTHONUNBUFFERED"].as_str(), all["LANG"].as_str()), ("1", "C.UTF-8"));
        for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
            assert_eq!(all[name], "/a/tls/bundle.pem");
        }
        assert_eq!(all["TRAINYARD_ATTEMPT_ID"], "attempt-1");
    }

    #[test]
    fn a_proxy_is_inherited_but_not_used_for_the_server() {
        let mut case = Case::new();
        case.own.extend([("https_proxy", "http://proxy:3128"), ("NO_PROXY", "localhost")]);
        let (all, _) = case.run();
        assert_eq!(all["https_proxy"], "http://proxy:3128");
        assert_eq!((all["NO_PROXY"].as_str(), all["no_proxy"].as_str()), ("localhost,run.example", "run.example"));
        let (without, _) = Case::new().run();
        assert!(!without.contains_key("NO_PROXY"));
        assert_eq!(host_of("https://[::1]:8443"), Some("::1"));
    }

    #[test]
    fn options_of_the_command_line_are_parameters() {
        let arguments = ["--rate", "0.1", "--flag", "--name=x=y", "rest", "--last"].map(String::from);
        let expected = [("AZUREML_PARAMETER_name", "x=y"), ("AZUREML_PARAMETER_rate", "0.1")];
        assert_eq!(parameters(&arguments), expected.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect());
    }

    #[test]
    fn scripts_go_through_the_interpreter_words_to_exec_and_a_line_to_the_shell() {
        let work = tempfile::tempdir().unwrap();
        std::fs::write(work.path().join("hello.py"), "").unwrap();
        let line = |entry: Entry| {
            let definition = Definition { entry, arguments: vec!["it's".into()], ..definition() };
            command_line(&definition, Path::new("/env/bin/python"), work.path())
        };
        let words = |words: &[&str]| Entry::Command { words: words.iter().map(|&word| word.to_owned()).collect() };
        assert_eq!(
            line(Entry::Script { path: "hello.py".into() }).unwrap(),
            ("/env/bin/python".into(), vec!["hello.py".into(), "it's".into()])
        );
        assert_eq!(line(words(&["ls", "-l"])).unwrap(), ("ls".into(), vec!["-l".into(), "it's".into()]));
        assert_eq!(line(words(&["echo a | cat"])).unwrap(), ("/bin/sh".into(), vec!["-c".into(), r"echo a | cat 'it'\''s'".into()]));
        assert_eq!(line(Entry::Script { path: "gone.py".into() }).unwrap_err(), "the script `gone.py` is not in the snapshot");
    }

    proptest! {
        #[test]
        fn no_definition_changes_who_the_run_is(user in proptest::collection::btree_map("[A-Z_=]{0,12}|AZUREML_RUN_ID|AZUREML_RUN_TOKEN|TRAINYARD_ATTEMPT_ID", "\\PC{0,8}", 0..8)) {
            let mut case = Case::new();
            case.server.insert("AZUREML_RUN_ID".into(), "run-1".into());
            case.definition.environment_variables = user;
            let (all, _) = case.run();
            prop_assert_eq!((&*all["AZUREML_RUN_ID"], &*all["AZUREML_RUN_TOKEN"], &*all["TRAINYARD_ATTEMPT_ID"]), ("run-1", "jwt", "attempt-1"));
            prop_assert!(all.keys().all(|name| !name.is_empty() && !name.contains('=')));
        }

        #[test]
        fn the_shell_reads_a_quoted_word_as_it_is(word in "[^\u{0}]{0,40}") {
            let output = std::process::Command::new("/bin/sh").arg("-c").arg(format!("printf %s {}", quoted(&word))).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
