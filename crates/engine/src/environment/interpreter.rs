//! Which interpreters are at hand, and which one a specification gets.
//!
//! Looked for are `python3.N`, `python3` and `python` on PATH, the versions of pyenv and those that uv installed. Nothing is
//! downloaded. Each is asked once what it is; the answers are kept until the node changes ([`Landscape`]).

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use trainyard_core::environment::{PythonVersion, VersionSpec, closest};

use super::{
    command::{Console, ask, command},
    host::{Host, is_executable},
    prepare::PrepareError,
    settings::{EnvironmentSettings, PythonFallback},
};

/// The oldest Python for which uv makes environments: it refuses 2.7 ("use Python 3.6 or newer") and installs into 3.6.
pub(super) const OLDEST_SERVED: PythonVersion = PythonVersion::new(3, 6, 0);

/// What an interpreter is asked. Runs on every Python since 2.7.
pub(super) const QUESTION: &str = r#"
import json, os, platform, sys, sysconfig
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION")
except (AttributeError, OSError, ValueError):
    libc = None
print(json.dumps({
    "path": getattr(sys, "_base_executable", None) or sys.executable,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "usable": sys.version_info[3] == "final" and platform.python_implementation() == "CPython"
        and not sysconfig.get_config_var("Py_GIL_DISABLED"),
    "platform": sysconfig.get_platform() + ("-" + libc.replace(" ", "-") if libc else ""),
}))
"#;

/// An interpreter on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interpreter {
    /// Its own word for where it is.
    pub(super) path: PathBuf,
    pub(super) version: PythonVersion,
    /// System, architecture and C library, e.g. `linux-x86_64-glibc-2.36`.
    pub(super) platform: String,
}

/// The answer to [`QUESTION`].
#[derive(Deserialize)]
pub(super) struct Answer {
    #[serde(flatten)]
    pub(super) interpreter: Interpreter,
    /// A final release of CPython with its lock: what wheels are made for.
    pub(super) usable: bool,
}

/// The interpreters of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AtHand {
    /// What `python3` (else `python`) on PATH stands for.
    default: Option<Interpreter>,
    /// All that environments can be made of; of equal versions the one found first counts.
    served: Vec<Interpreter>,
    /// Versions that are here but too old.
    too_old: BTreeSet<PythonVersion>,
}

impl AtHand {
    /// Where there is one interpreter, in an image say.
    pub(super) fn only(interpreter: Interpreter) -> Self {
        Self { default: Some(interpreter.clone()), served: vec![interpreter], too_old: BTreeSet::new() }
    }

    /// Whether all of them are still there.
    pub(super) fn still_there(&self) -> bool {
        self.served.iter().chain(&self.default).all(|interpreter| is_executable(&interpreter.path))
    }

    /// The interpreter of this very version.
    pub(super) fn exactly(&self, version: PythonVersion) -> Option<Interpreter> {
        self.served.iter().find(|interpreter| interpreter.version == version).cloned()
    }

    /// Whether one of them is what is asked for.
    pub(super) fn satisfies(&self, spec: &VersionSpec) -> bool {
        self.served.iter().any(|interpreter| spec.matches(interpreter.version))
    }

    /// The platforms of the interpreters; all the same, as a rule.
    pub(super) fn platforms(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.served.iter().map(|interpreter| &interpreter.platform).collect();
        all.into_iter().cloned().collect()
    }

    /// The versions that are here, for people.
    pub(super) fn shown(&self) -> String {
        listed(&self.versions())
    }

    fn versions(&self) -> Vec<PythonVersion> {
        self.served.iter().map(|interpreter| interpreter.version).collect()
    }
}

/// Where interpreters may be on this node, without having asked any of them.
pub(super) struct Landscape {
    /// The first is what `python3` (else `python`) means, if `has_default`; no two are the same file.
    places: Vec<PathBuf>,
    has_default: bool,
    /// Changes whenever the answers may change: the places with the times and sizes of their files, what pyenv has
    /// selected, and the release of the operating system (for caches that several nodes share).
    pub(super) text: String,
}

impl Landscape {
    /// Looks around: reads the folders of PATH, which takes about a millisecond.
    pub(super) fn of(host: &Host) -> Self {
        let default = host.on_path("python3").into_iter().chain(host.on_path("python")).next();
        let has_default = default.is_some();
        let mut seen = BTreeSet::new();
        let mut landscape = Self { places: Vec::new(), has_default, text: String::new() };
        for path in default.into_iter().chain(places(host)) {
            let Ok(real) = path.canonicalize() else { continue };
            let Ok(metadata) = std::fs::metadata(&real) else { continue };
            if seen.insert(real) {
                let changed = (metadata.mtime(), metadata.mtime_nsec());
                let _ = writeln!(landscape.text, "{} {} {}.{}", path.display(), metadata.size(), changed.0, changed.1);
                landscape.places.push(path);
            }
        }
        let selected = host.pyenv_root().map(|root| root.join("version")).and_then(|file| std::fs::read_to_string(file).ok());
        let _ = writeln!(landscape.text, "{} {:?}", host.text("PYENV_VERSION").unwrap_or_default(), selected);
        landscape.text.push_str(&std::fs::read_to_string("/etc/os-release").unwrap_or_default());
        landscape.text.push_str(std::env::consts::ARCH);
        landscape
    }
}

/// Asks every interpreter of the node what it is.
pub(super) async fn discover(host: &Host, landscape: &Landscape, cancel: &CancellationToken) -> Result<AtHand, PrepareError> {
    let answers = join_all(landscape.places.iter().map(|path| probe(host, path, cancel))).await;
    if cancel.is_cancelled() {
        return Err(PrepareError::Cancelled);
    }
    let mut found = AtHand::default();
    for (index, answer) in answers.into_iter().enumerate() {
        let Some(answer) = answer else { continue };
        let interpreter = answer.interpreter;
        if interpreter.version < OLDEST_SERVED {
            found.too_old.insert(interpreter.version);
        } else if answer.usable {
            if index == 0 && landscape.has_default {
                found.default = Some(interpreter.clone());
            }
            if !found.versions().contains(&interpreter.version) {
                found.served.push(interpreter);
            }
        }
    }
    Ok(found)
}

/// Every path that may be an interpreter, in the order of preference.
fn places(host: &Host) -> Vec<PathBuf> {
    let pyenv = host.pyenv_root();
    // pyenv's shims stand for the versions that are looked up themselves below; most of them only print an error.
    let shims = pyenv.as_ref().map(|root| root.join("shims"));
    let mut found = Vec::new();
    for dir in host.path().into_iter().filter(|dir| Some(dir) != shims.as_ref()) {
        let mut names: Vec<_> = entries(&dir).into_iter().filter(|path| is_python_name(path)).collect();
        names.sort();
        found.extend(names);
    }
    for dir in [pyenv.map(|root| root.join("versions")), host.uv_pythons()].into_iter().flatten() {
        let mut versions = entries(&dir);
        versions.sort();
        found.extend(versions.into_iter().map(|version| version.join("bin/python")));
    }
    found.retain(|path| is_executable(path));
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()).unwrap_or_default()
}

fn is_python_name(path: &Path) -> bool {
    let Some(rest) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("python")) else { return false };
    matches!(rest, "" | "2" | "3")
        || rest.strip_prefix("3.").is_some_and(|minor| !minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What the interpreter at `path` is; `None`: it does not run, or is none.
pub(super) async fn ask_interpreter(host: &Host, path: &Path, cancel: &CancellationToken) -> Result<Option<Interpreter>, PrepareError> {
    let answer = probe(host, path, cancel).await;
    if cancel.is_cancelled() { Err(PrepareError::Cancelled) } else { Ok(answer.map(|answer| answer.interpreter)) }
}

async fn probe(host: &Host, path: &Path, cancel: &CancellationToken) -> Option<Answer> {
    let mut question = command(host, path);
    question.args(["-c", QUESTION]);
    let answer = match ask(question, cancel).await {
        Ok((status, answer)) if status.success() => serde_json::from_str(&answer).map_err(|error| error.to_string()),
        Ok((status, _)) => Err(status.to_string()),
        Err(error) => Err(error.to_string()),
    };
    answer.inspect_err(|reason| tracing::debug!(path = %path.display(), reason, "not an interpreter that can be used")).ok()
}

/// The interpreter that an environment gets, and what the run should be told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) interpreter: Interpreter,
    pub(super) warning: Option<String>,
}

/// Whether conda channels were asked for an interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Nobody names one, or there was no need.
    Unasked,
    /// They were, and this is why none came.
    InVain(String),
}

/// [`choose_because`] where no channel was asked.
pub(super) fn choose(
    spec: Option<&VersionSpec>,
    asked: &str,
    at_hand: &AtHand,
    settings: &EnvironmentSettings,
) -> Result<Chosen, PrepareError> {
    choose_because(spec, asked, at_hand, (settings.python_fallback, &Source::Unasked))
}

/// Chooses for `spec`; `asked` is the constraint as it was written.
pub(super) fn choose_because(
    spec: Option<&VersionSpec>,
    asked: &str,
    at_hand: &AtHand,
    (fallback, source): (PythonFallback, &Source),
) -> Result<Chosen, PrepareError> {
    let found = |version: PythonVersion| at_hand.served.iter().find(|interpreter| interpreter.version == version).cloned();
    let Some(spec) = spec else {
        let newest = || at_hand.versions().into_iter().max().and_then(found);
        let interpreter = at_hand.default.clone().or_else(newest).ok_or_else(|| {
            PrepareError::Interpreter(format!("no interpreter of Python {OLDEST_SERVED} or newer is at hand; install python3 on this node"))
        })?;
        return Ok(Chosen { interpreter, warning: None });
    };
    let choice = closest(spec, &at_hand.versions());
    let matched = choice.and_then(|choice| found(choice.version).map(|interpreter| (interpreter, choice.exact)));
    let channels = channel_clause(source);
    let too_old = too_old_clause(spec, at_hand);
    match (matched, fallback) {
        (Some((interpreter, true)), _) => Ok(Chosen { interpreter, warning: None }),
        (Some((interpreter, false)), PythonFallback::Closest) => {
            let version = interpreter.version;
            let warning = format!(
                "Python {asked} was asked for; {channels}, so the closest interpreter at hand, {version}, is used (python_fallback = \"closest\"){too_old}"
            );
            Ok(Chosen { interpreter, warning: Some(warning) })
        }
        (Some((_, false)), PythonFallback::Fail) => Err(PrepareError::Interpreter(format!(
            "Python {asked} was asked for; {channels}, and no interpreter at hand satisfies it (at hand: {}){too_old}; python_fallback = \"fail\" \
             forbids another one: install that version on this node, or set python_fallback = \"closest\" under [environments]",
            listed(&at_hand.versions())
        ))),
        (None, _) => Err(PrepareError::Interpreter(format!(
            "Python {asked} was asked for; {channels}, and no interpreter of that major version is at hand (at hand: {}){too_old}; install one on this node",
            listed(&at_hand.versions())
        ))),
    }
}

fn channel_clause(source: &Source) -> String {
    match source {
        Source::Unasked => "no conda channel is configured that has it".into(),
        Source::InVain(why) => format!("it can not be had from a conda channel ({})", why.lines().collect::<Vec<_>>().join("; ")),
    }
}

/// Mentions interpreters that would have been right but can not be used.
fn too_old_clause(spec: &VersionSpec, at_hand: &AtHand) -> String {
    let right: Vec<PythonVersion> = at_hand.too_old.iter().copied().filter(|version| spec.matches(*version)).collect();
    if right.is_empty() {
        return String::new();
    }
    format!("; {} is at hand but does not count, because uv makes environments for Python {OLDEST_SERVED} and newer", listed(&right))
}

fn listed(versions: &[PythonVersion]) -> String {
    if versions.is_empty() {
        return "none".into();
    }
    let sorted: BTreeSet<_> = versions.iter().collect();
    sorted.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The interpreter of `UserManagedDependencies: true`: an absolute path, or a name on PATH. `python` means `python3` where
/// there is no `python`.
pub(super) fn user_managed(name: &str, host: &Host, console: &mut Console<'_>) -> Result<PathBuf, PrepareError> {
    let refused = |why: String| Err(PrepareError::Interpreter(why));
    let name = name.trim();
    if name.is_empty() {
        return refused("Environment.Python.InterpreterPath is empty; give an absolute path, or a name on PATH such as `python3`".into());
    }
    if Path::new(name).is_absolute() {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            _ if is_executable(&path) => Ok(path),
            Ok(_) => refused(format!("the interpreter `{name}` of Environment.Python.InterpreterPath is not an executable file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refused(format!("the interpreter `{name}` of Environment.Python.InterpreterPath does not exist on this node"))
            }
            Err(error) => {
                Err(PrepareError::disk(format!("the interpreter `{name}` of Environment.Python.InterpreterPath can not be used"), error))
            }
        };
    }
    if name.contains('/') {
        return refused(format!(
            "the interpreter `{name}` of Environment.Python.InterpreterPath is a relative path; give an absolute path, or a name on PATH such as `python3`"
        ));
    }
    if let Some(path) = host.on_path(name).into_iter().next() {
        return Ok(path);
    }
    if name == "python"
        && let Some(path) = host.on_path("python3").into_iter().next()
    {
        console.line("there is no `python` on PATH of this node; `python3` is used");
        return Ok(path);
    }
    let path: Vec<String> = host.path().iter().map(|dir| dir.display().to_string()).collect();
    refused(format!(
        "the interpreter `{name}` of Environment.Python.InterpreterPath is not on PATH of this node (searched: {}); give an absolute path or install it",
        path.join(":")
    ))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, os::unix::fs::PermissionsExt};

    use super::*;

    fn interpreter(version: &str) -> Interpreter {
        Interpreter { path: format!("/opt/{version}/bin/python").into(), version: version.parse().unwrap(), platform: "linux".into() }
    }

    fn at_hand(default: Option<&str>, served: &[&str], too_old: &[&str]) -> AtHand {
        AtHand {
            default: default.map(interpreter),
            served: served.iter().map(|version| interpreter(version)).collect(),
            too_old: too_old.iter().map(|version| version.parse().unwrap()).collect(),
        }
    }

    fn settings(python_fallback: PythonFallback) -> EnvironmentSettings {
        EnvironmentSettings { python_fallback, ..EnvironmentSettings::default() }
    }

    fn pick(asked: &str, at_hand: &AtHand, settings: &EnvironmentSettings) -> Result<Chosen, PrepareError> {
        choose(Some(&VersionSpec::parse(asked).unwrap()), asked, at_hand, settings)
    }

    #[test]
    fn the_closest_interpreter_comes_with_a_warning() {
        let node = at_hand(Some("3.11.7"), &["3.11.7", "3.13.0"], &[]);
        let chosen = pick("3.6.2", &node, &settings(PythonFallback::Closest)).unwrap();
        assert_eq!(chosen.interpreter, interpreter("3.11.7"));
        assert_eq!(
            chosen.warning.unwrap(),
            "Python 3.6.2 was asked for; no conda channel is configured that has it, so the closest interpreter at hand, 3.11.7, \
             is used (python_fallback = \"closest\")"
        );
        let spec = VersionSpec::parse("3.6.2").unwrap();
        let source = Source::InVain("no package matches\nthe channels have 3.13".into());
        let chosen = choose_because(Some(&spec), "3.6.2", &node, (PythonFallback::Closest, &source)).unwrap();
        let warning = chosen.warning.unwrap();
        assert!(
            warning.contains("can not be had from a conda channel (no package matches; the channels have 3.13), so the closest"),
            "{warning}"
        );
    }

    #[test]
    fn a_satisfied_constraint_needs_no_warning_whatever_the_fallback() {
        let node = at_hand(Some("3.11.7"), &["3.11.7", "3.9.18", "3.9.2"], &[]);
        let chosen = pick("3.9", &node, &settings(PythonFallback::Fail)).unwrap();
        assert_eq!(chosen, Chosen { interpreter: interpreter("3.9.18"), warning: None });
    }

    #[test]
    fn fallback_fail_says_what_was_asked_what_there_is_and_what_to_do() {
        let node = at_hand(None, &["3.13.0", "3.11.7"], &[]);
        let error = pick("3.6.2", &node, &settings(PythonFallback::Fail)).unwrap_err().to_string();
        for part in ["Python 3.6.2 was asked for", "at hand: 3.11.7, 3.13.0", "python_fallback = \"fail\"", "install that version"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_interpreter_too_old_for_uv_does_not_count_and_is_named() {
        let node = at_hand(None, &["3.11.7"], &["2.7.18", "3.5.2"]);
        let warning = pick("3.5", &node, &settings(PythonFallback::Closest)).unwrap().warning.unwrap();
        assert!(warning.contains("3.11.7, is used") && warning.contains("3.5.2 is at hand but does not count"), "{warning}");
        let error = pick("2.7", &node, &settings(PythonFallback::Closest)).unwrap_err().to_string();
        assert!(error.contains("no interpreter of that major version") && error.contains("2.7.18 is at hand but"), "{error}");
    }

    #[test]
    fn without_a_version_the_default_interpreter_is_taken() {
        let any = |node: &AtHand| choose(None, "", node, &settings(PythonFallback::Closest));
        assert_eq!(any(&at_hand(Some("3.9.2"), &["3.9.2", "3.13.0"], &[])).unwrap().interpreter, interpreter("3.9.2"));
        assert_eq!(any(&at_hand(None, &["3.9.2", "3.13.0"], &[])).unwrap().interpreter, interpreter("3.13.0"));
        assert!(any(&at_hand(None, &[], &[])).unwrap_err().to_string().contains("install python3"));
    }

    #[test]
    fn only_names_of_interpreters_are_asked() {
        for (name, expected) in [
            ("python", true),
            ("python3", true),
            ("python3.11", true),
            ("python3-config", false),
            ("python3.11t", false),
            ("python3.", false),
            ("pythonw", false),
        ] {
            assert_eq!(is_python_name(&Path::new("/usr/bin").join(name)), expected, "{name}");
        }
    }

    #[test]
    fn the_landscape_changes_with_its_interpreters_and_with_nothing_else() {
        let (dir, host) = host_with(&["python3.9", "pip"]);
        let before = Landscape::of(&host).text;
        std::fs::write(dir.path().join("unrelated"), "").unwrap();
        assert_eq!(Landscape::of(&host).text, before);
        std::fs::write(dir.path().join("python3.9"), "#!/bin/sh\nexit 1\n").unwrap();
        let upgraded = Landscape::of(&host).text;
        assert_ne!(upgraded, before);
        std::fs::copy(dir.path().join("python3.9"), dir.path().join("python3.12")).unwrap();
        assert_ne!(Landscape::of(&host).text, upgraded);
    }

    fn host_with(names: &[&str]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let host = Host::with([(OsString::from("PATH"), dir.path().as_os_str().to_owned())]);
        (dir, host)
    }

    #[test]
    fn a_user_managed_interpreter_is_a_path_or_a_name_on_path() {
        let (dir, host) = host_with(&["python3", "other"]);
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let cancel = CancellationToken::new();
        let mut log = Vec::new();
        let mut resolve = |name: &str| user_managed(name, &host, &mut Console::new(&mut log, &cancel)).map_err(|error| error.to_string());
        assert_eq!(resolve("python").unwrap(), dir.path().join("python3"));
        assert_eq!(resolve("other").unwrap(), dir.path().join("other"));
        assert_eq!(resolve(dir.path().join("other").to_str().unwrap()).unwrap(), dir.path().join("other"));
        for (name, part) in [
            ("python3.99", "is not on PATH of this node"),
            ("/no/such/python", "does not exist on this node"),
            (plain.to_str().unwrap(), "is not an executable file"),
            ("env/bin/python", "relative path"),
            (" ", "is empty"),
        ] {
            let error = resolve(name).unwrap_err();
            assert!(error.contains(part), "{name}: {error}");
        }
        assert_eq!(log, ["there is no `python` on PATH of this node; `python3` is used"]);
    }

    #[tokio::test]
    async fn the_interpreters_of_this_machine_are_found_and_what_only_looks_like_one_is_not() {
        let (dir, _) = host_with(&["python3.99"]);
        let path = std::env::join_paths(std::iter::once(dir.path().to_owned()).chain(Host::current().path())).unwrap();
        let variables = std::env::vars_os().filter(|(name, _)| name != "PATH").chain([(OsString::from("PATH"), path)]);
        let host = Host::with(variables);
        let found = discover(&host, &Landscape::of(&host), &CancellationToken::new()).await.unwrap();
        let default = found.default.as_ref().expect("this machine has python3");
        assert!(found.served.contains(default) && found.still_there());
        assert!(found.served.iter().all(|interpreter| !interpreter.path.starts_with(dir.path())));
    }
}
