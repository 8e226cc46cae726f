//! Fail points: named places between two steps, where a test can end, hold up or fail the process that passes.
//!
//! [`fail_point!`](crate::fail_point) compiles to nothing unless the feature `failpoints` is on, which no build that is shipped has. With it,
//! `TRAINYARD_FAIL_POINTS` says what happens: `agent.spawned=kill@3;upload.staged=pause:2000@1;agent.document=error@2`, each at the n-th time
//! that the place is passed. There is no chance in it: the same count gives the same place. `TRAINYARD_FAIL_POINTS_DIR` names a folder
//! through which all processes count together, so that a rule fires once although every agent inherits it; what fired is
//! noted there, in the file `fired`, before it happens.
//!
//! Every name stands in [`FAIL_POINTS`]; a test keeps that list and the code in step. Names that begin with `agent.` are passed
//! by agents, all others by the server.

/// A fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailPoint {
    /// What rules and the code call it.
    pub name: &'static str,
    /// What has just happened, and what has not yet.
    pub between: &'static str,
    /// Whether a rule may have it fail with an I/O error instead of ending or holding up the process.
    pub can_fail: bool,
}

const fn point(name: &'static str, between: &'static str) -> FailPoint {
    FailPoint { name, between, can_fail: false }
}

const fn fallible(name: &'static str, between: &'static str) -> FailPoint {
    FailPoint { name, between, can_fail: true }
}

/// All of them, in the order of a run's life.
pub const FAIL_POINTS: &[FailPoint] = &[
    point("upload.staged", "the archive is staged and checked; nothing is stored"),
    fallible("blob.written", "a blob's bytes are written; they, or the folder of a large one, are not synced"),
    point("submit.blob_committed", "the snapshot's blob is durable; no row names it"),
    point("store.written", "a transaction's rows are written; it is not committed"),
    point("store.committed", "a transaction is committed; nobody was told"),
    point("submit.stored", "the run is stored; the engine was not woken and the client not answered"),
    point("admit.intended", "an attempt is stored as intended; nothing of it exists"),
    point("executor.folder_made", "the attempt's folder is there; its order is not"),
    point("executor.order_written", "the order is written; the agent's start was not counted"),
    point("executor.start_counted", "the start is counted; no process was started"),
    point("executor.agent_started", "the agent is started; the server has not noted that"),
    point("agent.locked", "the agent holds its lock; it has read nothing"),
    point("agent.snapshot_fetched", "the snapshot's zip is there; it is not unpacked"),
    point("agent.unpacked", "the working directory is there; nobody was told"),
    fallible("agent.data_copied", "the data of an input is there; the note that it is whole is not"),
    point("agent.environment_ready", "snapshot and environment are ready; the start is not noted"),
    fallible("agent.document", "a document of the attempt's folder is about to be written"),
    point("agent.start_noted", "the start is noted; the code was not started"),
    point("agent.spawned", "the code is started; its process id is not noted and nobody was told"),
    point("agent.process_noted", "the process id of the code is noted"),
    point("agent.code_ended", "the code has ended; there is no exit record"),
    point("agent.exit_recorded", "the exit record is on disk; nobody was told"),
    point("agent.logs_sealed", "every log is sealed; outputs may be missing"),
    point("agent.outputs_stored", "every output is stored; the server was not told that this is all"),
    point("agent.collected_reported", "the server knows that everything is there; the folder does not say so"),
    point("agent.collected_noted", "the folder says that everything is delivered; the agent has not ended"),
    point("report.applied", "what an agent reported is stored; the agent was not answered"),
    point("node.told", "what a node told the others is stored; they were not woken, its agent was not answered"),
    point("log.appended", "bytes of a log are appended; the agent was not answered"),
    point("log.sealed", "a log is a blob; the agent was not answered"),
    point("output.committed", "an output's blob is durable; no row names it"),
    point("finalize.adopted", "live files are blobs; the run has not ended"),
    point("finalize.applied", "the run has ended or waits again; nobody was told"),
    point("cancel.stored", "the wish to cancel is stored; neither engine nor agent were told"),
    point("janitor.cleaning", "a closed attempt's folder is about to be removed"),
    point("janitor.cleaned", "a closed attempt's folder is removed"),
];

/// The variable that holds the rules.
pub const RULES_VARIABLE: &str = "TRAINYARD_FAIL_POINTS";

/// The variable that names the folder in which processes count together.
pub const FOLDER_VARIABLE: &str = "TRAINYARD_FAIL_POINTS_DIR";

/// A named place between two steps; see [`fail`](crate::fail). `fail_point!("name", io)` is an `io::Result` that a rule may
/// make an error.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {{}};
    ($name:literal, io) => {
        Ok::<(), std::io::Error>(())
    };
}

/// A named place between two steps; see [`fail`](crate::fail). `fail_point!("name", io)` is an `io::Result` that a rule may
/// make an error.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {{
        // Rules cannot have a place fail that has no result.
        let _ = $crate::fail::pass($name);
    }};
    ($name:literal, io) => {
        $crate::fail::pass($name)
    };
}

#[cfg(feature = "failpoints")]
pub use armed::pass;

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        env,
        fs::{self, File},
        io::{self, Seek as _, Write as _},
        path::{Path, PathBuf},
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};

    use super::{FAIL_POINTS, FOLDER_VARIABLE, RULES_VARIABLE};

    /// What happens at a place.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        /// The process ends as by `kill -9`.
        Kill,
        /// The thread waits, and with it whatever it would have done.
        Pause(Duration),
        /// The place fails as on a full disk.
        Error,
    }

    /// At the `at`-th time that `name` is passed, `action` happens.
    #[derive(Debug, PartialEq, Eq)]
    struct Rule {
        name: String,
        action: Action,
        at: u64,
    }

    struct Armed {
        rules: Vec<Rule>,
        folder: Option<PathBuf>,
        /// How often each of [`FAIL_POINTS`] was passed by this process.
        passed: Vec<AtomicU64>,
    }

    fn armed() -> &'static Armed {
        static ARMED: OnceLock<Armed> = OnceLock::new();
        ARMED.get_or_init(|| {
            let text = env::var(RULES_VARIABLE).unwrap_or_default();
            // A rule that means nothing must not look like a place that is never passed.
            let rules = parse(&text).unwrap_or_else(|why| panic!("{RULES_VARIABLE} = `{text}`: {why}"));
            let passed = FAIL_POINTS.iter().map(|_| AtomicU64::new(0)).collect();
            Armed { rules, folder: env::var_os(FOLDER_VARIABLE).map(PathBuf::from), passed }
        })
    }

    /// Does what the rules say about `name`. An error only if a rule says so.
    pub fn pass(name: &str) -> io::Result<()> {
        let armed = armed();
        if !armed.rules.iter().any(|rule| rule.name == name) {
            return Ok(());
        }
        let count = armed.count(name);
        for rule in armed.rules.iter().filter(|rule| rule.name == name && rule.at == count) {
            armed.note(rule);
            match rule.action {
                Action::Kill => {
                    // Fails only for a process that is not there.
                    let _ = kill_process(getpid(), Signal::KILL);
                    std::process::abort();
                }
                Action::Pause(time) => std::thread::sleep(time),
                Action::Error => return Err(io::Error::new(io::ErrorKind::StorageFull, format!("the fail point {name} was told to fail"))),
            }
        }
        Ok(())
    }

    impl Armed {
        /// Which pass of `name` this is, from 1.
        fn count(&self, name: &str) -> u64 {
            match &self.folder {
                Some(folder) => count_together(&folder.join(name))
                    .unwrap_or_else(|error| panic!("{FOLDER_VARIABLE} = `{}` cannot be counted in: {error}", folder.display())),
                None => {
                    let index = FAIL_POINTS.iter().position(|point| point.name == name).expect("rules name known places");
                    self.passed[index].fetch_add(1, Ordering::Relaxed) + 1
                }
            }
        }

        /// Says what is about to happen: name, action, process, and the folder it works in, which for an agent is its attempt's.
        fn note(&self, rule: &Rule) {
            let Some(folder) = &self.folder else { return };
            let place = env::current_dir().unwrap_or_default();
            let action = match rule.action {
                Action::Kill => "kill",
                Action::Pause(_) => "pause",
                Action::Error => "error",
            };
            let line = format!("{} {action} {} {}\n", rule.name, std::process::id(), place.display());
            append(&folder.join("fired"), line.as_bytes()).expect("the folder of the fail points can be written");
        }
    }

    /// One byte for each pass, appended: the length after it is the number of the pass, whoever else counts.
    fn count_together(file: &Path) -> io::Result<u64> {
        append(file, b".")?.stream_position()
    }

    fn append(file: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
        file.write_all(bytes)?;
        Ok(file)
    }

    fn parse(text: &str) -> Result<Vec<Rule>, String> {
        text.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(parse_rule).collect()
    }

    fn parse_rule(text: &str) -> Result<Rule, String> {
        let form = || format!("`{text}` is not NAME=kill@N, NAME=pause:MILLISECONDS@N or NAME=error@N");
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let (action, at) = rest.split_once('@').ok_or_else(form)?;
        let point = FAIL_POINTS.iter().find(|point| point.name == name).ok_or_else(|| format!("there is no fail point `{name}`"))?;
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            None if action == "error" && point.can_fail => Action::Error,
            None if action == "error" => return Err(format!("the fail point `{name}` cannot fail")),
            Some(("pause", time)) => Action::Pause(Duration::from_millis(time.parse().map_err(|_| form())?)),
            _ => return Err(form()),
        };
        let at = at.parse().ok().filter(|at| *at > 0).ok_or_else(form)?;
        Ok(Rule { name: name.to_owned(), action, at })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rules_are_read_and_what_means_nothing_is_refused() {
            let rules = parse("agent.spawned=kill@3; blob.written=error@1;upload.staged=pause:20@2;").unwrap();
            let rule = |name: &str, action, at| Rule { name: name.into(), action, at };
            assert_eq!(
                rules,
                [
                    rule("agent.spawned", Action::Kill, 3),
                    rule("blob.written", Action::Error, 1),
                    rule("upload.staged", Action::Pause(Duration::from_millis(20)), 2)
                ]
            );
            for wrong in [
                "agent.spawned",
                "agent.spawned=kill",
                "agent.spawned=kill@0",
                "agent.spawned=error@1",
                "x=kill@1",
                "upload.staged=pause@1",
            ] {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }

        #[test]
        fn processes_that_share_a_folder_count_together() {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("agent.spawned");
            assert_eq!([count_together(&file).unwrap(), count_together(&file).unwrap(), count_together(&file).unwrap()], [1, 2, 3]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    /// Every use in the source of the crates: the name, and whether it can fail.
    fn used() -> BTreeSet<(String, bool)> {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut folders: Vec<PathBuf> = fs::read_dir(crates).unwrap().flatten().map(|entry| entry.path().join("src")).collect();
        let mut found = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") && path.file_name() != Some("fail.rs".as_ref()) {
                    for part in fs::read_to_string(path).unwrap().split("fail_point!(\"").skip(1) {
                        let (name, rest) = part.split_once('"').expect("a name has an end");
                        found.insert((name.to_owned(), rest.starts_with(", io")));
                    }
                }
            }
        }
        found
    }

    #[test]
    fn the_list_and_the_code_name_the_same_fail_points() {
        let listed: BTreeSet<_> = FAIL_POINTS.iter().map(|point| (point.name.to_owned(), point.can_fail)).collect();
        assert_eq!(listed.len(), FAIL_POINTS.len(), "a name stands once in the list");
        assert_eq!(used(), listed);
    }
}
