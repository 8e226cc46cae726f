//! Whether the kernel killed the code because memory ran out, told from somebody's `kill -9`: the result of the process is the same.
//!
//! The kernel counts such kills: for the agent's control group, in which the code runs too (`memory.events` in version 2,
//! `memory.oom_control` in version 1), and for the machine (`/proc/vmstat`). The group's counter decides where it can be read, because a process
//! that is killed counts in its own group whatever ran out; the machine's is somebody else's as easily, so it only counts just before the end. Both are
//! looked at all the time, so that a kill of hours ago is not taken for the last one. No root, and no control group, is needed.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use trainyard_core::run::Cause;

/// Between two looks at the counters.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long before the end of the code a kill in its group may lie: a big process takes its time to die.
const GROUP_WINDOW: Duration = Duration::from_secs(10);

/// How long before the end of the code a kill anywhere on the machine may lie.
const MACHINE_WINDOW: Duration = Duration::from_secs(5);

/// A limit above this is none: version 1 writes the greatest number there is instead.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// Signal 9.
const KILL: i32 = 9;

/// Looks at the kernel's counters while the code runs.
pub(super) struct MemoryWatch {
    group: Option<Group>,
    looks: VecDeque<Look>,
    first: Counters,
}

/// The control group of the agent and its code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Kills for want of memory so far; `None` where the counter can't be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    group: Option<u64>,
    machine: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    counters: Counters,
}

/// What the counters say about the time in which the code ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Evidence {
    group: Option<Kills>,
    machine: Option<Kills>,
    /// The group and its limit, for people.
    group_name: String,
}

/// How often a counter rose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kills {
    /// While the code ran.
    in_all: u64,
    /// Within the counter's window before the end.
    lately: u64,
}

impl MemoryWatch {
    /// Begins, just before the code is started.
    pub(super) fn start() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let groups = groups(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        let group = groups.into_iter().find(|group| group.kills().is_some());
        let mut watch = Self { group, looks: VecDeque::new(), first: Counters::default() };
        watch.look();
        watch.first = watch.looks[0].counters;
        watch
    }

    /// Looks again and again, for ever.
    pub(super) async fn keep_looking(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.look();
        }
    }

    fn look(&mut self) {
        let counters = match &self.group {
            // The machine's counter would not be asked for anything: hundreds of agents need not read it.
            Some(group) => Counters { group: group.kills(), machine: None },
            None => Counters { group: None, machine: fs::read_to_string("/proc/vmstat").ok().and_then(|text| counter(&text, "oom_kill")) },
        };
        let at = Instant::now();
        self.looks.push_back(Look { at, counters });
        // One stays that is older than both windows.
        while self.looks.get(1).is_some_and(|second| at - second.at >= GROUP_WINDOW.max(MACHINE_WINDOW)) {
            self.looks.pop_front();
        }
    }

    /// The code has just ended by itself with `cause`: what to call that, and what has to be said about it.
    pub(super) fn conclude(&mut self, cause: Cause) -> (Cause, Option<String>) {
        self.look();
        let evidence = Evidence {
            group: kills(&self.looks, self.first.group, GROUP_WINDOW, |counters| counters.group),
            machine: kills(&self.looks, self.first.machine, MACHINE_WINDOW, |counters| counters.machine),
            group_name: self.group.as_ref().map(Group::describe).unwrap_or_default(),
        };
        conclude(cause, &evidence)
    }
}

impl Group {
    /// Processes of it that the kernel killed for want of memory.
    fn kills(&self) -> Option<u64> {
        let name = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        counter(&fs::read_to_string(self.folder.join(name)).ok()?, "oom_kill")
    }

    fn limit_bytes(&self) -> Option<u64> {
        let name = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let limit = fs::read_to_string(self.folder.join(name)).ok()?;
        limit.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT_BYTES)
    }

    fn describe(&self) -> String {
        let limit = self.limit_bytes().map(|bytes| format!(", limit {} MiB", bytes >> 20)).unwrap_or_default();
        format!("the run's control group ({}{limit})", self.folder.display())
    }
}

/// How often `counter` rose since it was `first`, and within `window` before the last look.
fn kills(looks: &VecDeque<Look>, first: Option<u64>, window: Duration, counter: fn(&Counters) -> Option<u64>) -> Option<Kills> {
    let last = looks.back()?;
    let now = counter(&last.counters)?;
    let before = looks.iter().rev().find(|look| last.at - look.at >= window).or(looks.front())?;
    Some(Kills { in_all: now.saturating_sub(first?), lately: now.saturating_sub(counter(&before.counters)?) })
}

/// What the end of the code is called, given what the counters say.
fn conclude(cause: Cause, evidence: &Evidence) -> (Cause, Option<String>) {
    let processes = |count: u64| if count == 1 { "one process".to_owned() } else { format!("{count} processes") };
    let in_group = |count: u64| format!("the kernel killed {} in {} for want of memory", processes(count), evidence.group_name);
    let on_machine = |count: u64| format!("the kernel killed {} on this machine for want of memory", processes(count));
    let killed = cause == (Cause::Signal { signal: KILL });
    match (evidence.group, evidence.machine) {
        (Some(group), _) if killed && group.lately > 0 => {
            let message = format!("{} within {} seconds before", in_group(group.lately), GROUP_WINDOW.as_secs());
            (Cause::OutOfMemory { message }, None)
        }
        (None, Some(machine)) if killed && machine.lately > 0 => {
            let seconds = MACHINE_WINDOW.as_secs();
            let message = format!(
                "{} within {seconds} seconds before; which ones is not known, because the run has no control group that counts",
                on_machine(machine.lately)
            );
            (Cause::OutOfMemory { message }, None)
        }
        (None, None) if killed => {
            let message = "whether the code was killed because memory ran out could not be told: this machine shows neither a control group's counter nor its own (oom_kill in /proc/vmstat)";
            (cause, Some(message.into()))
        }
        (Some(group), _) if group.in_all > 0 => {
            let shared = "if other runs share that group, it may have been theirs";
            (cause, Some(format!("{} while the code ran, but not its main process; {shared}", in_group(group.in_all))))
        }
        (None, Some(machine)) if machine.lately > 0 && cause != Cause::Completed => {
            let seconds = MACHINE_WINDOW.as_secs();
            (cause, Some(format!("{} within {seconds} seconds before the code ended, perhaps of this run", on_machine(machine.lately))))
        }
        (Some(_), _) | (None, Some(_) | None) => (cause, None),
    }
}

/// The number behind `name` in lines of `name number`.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// The places where the control group of this process may count its memory, version 2 first, and there from the group itself up, because the
/// kernel adds up what is below and not every group has the counters: from `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn groups(own: &str, mounts: &str) -> Vec<Group> {
    let path_of = |version: Version| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let fits = match version {
                Version::One => controllers.split(',').any(|controller| controller == "memory"),
                Version::Two => number == "0" && controllers.is_empty(),
            };
            fits.then_some(path)
        })
    };
    [Version::Two, Version::One]
        .into_iter()
        .filter_map(|version| {
            let path = path_of(version)?;
            let (root, mount) = mounts.lines().find_map(|line| mount_of(version, line))?;
            // In a container the mount may show only the group itself, while its path is told from above.
            let below = Path::new(path).strip_prefix(&root).or_else(|_| Path::new(path).strip_prefix("/")).unwrap_or(Path::new(""));
            let folders = match version {
                Version::One => vec![mount.join(below)],
                Version::Two => below.ancestors().map(|below| mount.join(below)).collect(),
            };
            Some(folders.into_iter().map(move |folder| Group { version, folder }))
        })
        .flatten()
        .collect()
}

/// If a line of `mountinfo` mounts the control groups of that version with memory in it: which part of them, and where.
fn mount_of(version: Version, line: &str) -> Option<(PathBuf, PathBuf)> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let fits = match version {
        Version::One => name == "cgroup" && options.split(',').any(|option| option == "memory"),
        Version::Two => name == "cgroup2",
    };
    fits.then(|| (unescaped(root).into(), unescaped(mount).into()))
}

/// Blanks in paths stand as `\040` in `mountinfo`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V1_MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn the_group_is_found_on_every_kind_of_machine() {
        let two = |folder: &str| Group { version: Version::Two, folder: folder.into() };
        let one = |folder: &str| Group { version: Version::One, folder: folder.into() };
        let v2_mount = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let table = [
            (
                "0::/user.slice/a b.scope",
                v2_mount,
                vec![two("/sys/fs/cgroup/user.slice/a b.scope"), two("/sys/fs/cgroup/user.slice"), two("/sys/fs/cgroup/")],
            ),
            ("4:memory:/jobs/7\n1:cpu:/\n0::/", V1_MOUNTS, vec![two("/sys/fs/cgroup/unified/"), one("/sys/fs/cgroup/memory/jobs/7")]),
            // A container that sees only its own group.
            (
                "5:cpu,memory:/docker/abc",
                "9 8 0:3 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,cpu,memory",
                vec![one("/sys/fs/cgroup/memory/")],
            ),
            ("0::/", "9 8 0:3 / /my\\040groups rw - cgroup2 none rw", vec![two("/my groups/")]),
            ("0::/x", "22 27 0:21 / /proc rw - proc proc rw", vec![]),
            ("", V1_MOUNTS, vec![]),
        ];
        for (own, mounts, expected) in table {
            assert_eq!(groups(own, mounts), expected, "{own}");
        }
    }

    #[test]
    fn counters_are_read_by_their_whole_name() {
        let events = "low 0\nhigh 0\nmax 31\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!((counter(events, "oom_kill"), counter(events, "oom")), (Some(2), Some(3)));
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", "oom_kill"), Some(7));
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\n", "oom_kill"), None, "a kernel that does not count");
        assert_eq!(counter("oom_kill many\n", "oom_kill"), None);
    }

    #[test]
    fn what_the_counters_say_decides_what_a_kill_was() {
        let kills = |in_all, lately| Some(Kills { in_all, lately });
        let (quiet, risen, long_ago) = (kills(0, 0), kills(2, 1), kills(2, 0));
        let kill = Cause::Signal { signal: KILL };
        let table = [
            // group, machine, cause; what it is called, and whether there is a warning
            (risen, risen, kill.clone(), "out_of_memory", false),
            (risen, None, kill.clone(), "out_of_memory", false),
            (None, risen, kill.clone(), "out_of_memory", false),
            (quiet, risen, kill.clone(), "signal", false),
            (quiet, quiet, kill.clone(), "signal", false),
            (None, quiet, kill.clone(), "signal", false),
            (None, long_ago, kill.clone(), "signal", false),
            (long_ago, None, kill.clone(), "signal", true),
            (None, None, kill, "signal", true),
            (risen, risen, Cause::ExitCode { code: 1 }, "exit_code", true),
            (long_ago, quiet, Cause::Completed, "completed", true),
            (None, risen, Cause::ExitCode { code: 1 }, "exit_code", true),
            (None, risen, Cause::Completed, "completed", false),
            (None, None, Cause::Completed, "completed", false),
            (quiet, risen, Cause::ExitCode { code: 1 }, "exit_code", false),
            (risen, risen, Cause::Signal { signal: 15 }, "signal", true),
        ];
        for (group, machine, cause, label, warns) in table {
            let evidence = Evidence { group, machine, group_name: "its group".into() };
            let (called, warning) = conclude(cause.clone(), &evidence);
            assert_eq!((called.label(), warning.is_some()), (label, warns), "{evidence:?} {cause:?} {warning:?}");
        }
    }

    #[test]
    fn the_sentence_says_what_is_known() {
        let group = Evidence {
            group: Some(Kills { in_all: 3, lately: 1 }),
            group_name: "the run's control group (/g, limit 64 MiB)".into(),
            ..Evidence::default()
        };
        let (cause, _) = conclude(Cause::Signal { signal: KILL }, &group);
        assert_eq!(
            cause.sentence(),
            "the code was killed because memory ran out: the kernel killed one process in the run's control group (/g, limit 64 MiB) for want of memory within 10 seconds before"
        );
    }

    #[test]
    fn only_kills_just_before_the_end_count() {
        let now = Instant::now() + Duration::from_secs(1000);
        let look =
            |ago: u64, kills: u64| Look { at: now - Duration::from_secs(ago), counters: Counters { group: Some(kills), machine: None } };
        let counted = |looks: Vec<Look>| {
            let first = looks[0].counters.group;
            let kills = kills(&looks.into(), first, GROUP_WINDOW, |counters| counters.group).unwrap();
            (kills.in_all, kills.lately)
        };
        assert_eq!(counted(vec![look(60, 0), look(30, 4), look(11, 4), look(2, 4), look(0, 4)]), (4, 0));
        assert_eq!(counted(vec![look(60, 1), look(11, 1), look(9, 2), look(0, 2)]), (1, 1));
        assert_eq!(counted(vec![look(1, 0), look(0, 1)]), (1, 1));
    }

    #[test]
    fn looks_are_forgotten_once_they_are_older_than_what_counts() {
        let mut watch = MemoryWatch { group: None, looks: VecDeque::new(), first: Counters::default() };
        let old = Instant::now().checked_sub(2 * GROUP_WINDOW).expect("the machine runs for longer than that");
        watch.looks.extend([Look { at: old, counters: Counters::default() }; 5]);
        watch.look();
        assert_eq!(watch.looks.len(), 2, "the newest of the old ones stays to compare with");
    }

    proptest! {
        #[test]
        fn any_text_in_the_kernels_files_is_read_without_panic(own in ".*", mounts in ".*", name in "[a-z_]{0,8}") {
            let _ = groups(&own, &mounts);
            let _ = counter(&own, &name);
            let _ = mount_of(Version::One, &mounts);
        }
    }
}
