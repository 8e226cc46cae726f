//! The processes of an attempt: finding every one of them, and ending them.
//!
//! A process belongs to an attempt if it descends from the agent (who is subreaper, so a process whose parent died becomes the agent's child
//! instead of getting away), if it is in the session of the user's main process, or if it was started with the attempt's id in
//! its environment. The last two find what a dead agent left behind. Signals go through process file descriptors
//! after a second look, so that a number that was given to somebody else in between is never hit.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use trainyard_core::ids::AttemptId;

use super::{
    folder::{AttemptFolder, MainProcess},
    process::Reaper,
};
use crate::container;

/// The variable by which the processes of an attempt are known.
pub(crate) const ATTEMPT_VARIABLE: &str = "TRAINYARD_ATTEMPT_ID";

/// The variable that tells the processes of the attempt's nodes apart, where several are on one machine. Those of node 0 do not have it.
pub(crate) const NODE_VARIABLE: &str = "TRAINYARD_ATTEMPT_NODE";

/// How long somebody outside the attempt waits for what he has killed to be gone.
const OUTSIDER_PATIENCE: Duration = Duration::from_secs(2);

/// How long KILL is repeated before giving up on processes that the kernel does not let die (waiting for a dead disk, say).
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// First and longest pause between two looks at the process table.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// What identifies the processes of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    entry: Vec<u8>,
    /// Only the processes of this node; `None`: of all.
    node: Option<u32>,
    descendants_of: Option<i32>,
    mains: Vec<MainProcess>,
}

/// A living process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Member {
    pid: i32,
    start_ticks: u64,
}

/// What is read of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    name: String,
    state: char,
    parent: i32,
    session: i32,
    start_ticks: u64,
}

impl Stat {
    /// Whether there is nothing left of it but its result.
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

impl Tree {
    /// The tree of a node of `attempt` as its agent sees it: its own descendants belong to it.
    pub(super) fn of_agent(node: (AttemptId, u32), mains: Vec<MainProcess>) -> Self {
        Self { descendants_of: Some(own_pid()), ..Self::of_node(node, mains) }
    }

    /// The tree of a node of `attempt` as anybody else sees it.
    pub(super) fn of_node((attempt, node): (AttemptId, u32), mains: Vec<MainProcess>) -> Self {
        Self { node: Some(node), ..Self::of_outsider(attempt, mains) }
    }

    /// The trees of all nodes of `attempt` on this machine as anybody else sees them.
    pub(super) fn of_outsider(attempt: AttemptId, mains: Vec<MainProcess>) -> Self {
        Self { entry: format!("{ATTEMPT_VARIABLE}={attempt}").into_bytes(), node: None, descendants_of: None, mains }
    }

    /// Ends the whole tree: TERM, up to `grace`, then KILL until nothing is left. Gives the number of processes that even KILL did not
    /// end within half a minute, normally 0.
    pub(super) async fn end(&self, grace: Duration, mut reaper: Option<&mut Reaper>) -> usize {
        let mut asked = HashSet::new();
        let term_until = Instant::now() + grace;
        let kill_until = term_until + KILL_PATIENCE;
        let mut pause = LOOK_PAUSE.0;
        loop {
            if let Some(reaper) = reaper.as_deref_mut() {
                reaper.reap();
            }
            let members = self.members();
            let now = Instant::now();
            if members.is_empty() || now >= kill_until {
                return members.len();
            }
            let killing = now >= term_until;
            for member in &members {
                if killing {
                    send(member, Signal::KILL);
                } else if asked.insert(*member) {
                    // Asked once: a handler that is at work should not be interrupted by the same request again.
                    send(member, Signal::TERM);
                }
            }
            let next = if killing { pause } else { pause.min(term_until - now) };
            match reaper.as_deref_mut() {
                // The floor keeps a tree that forks and dies all the time from having the table read without a break.
                Some(reaper) => {
                    tokio::time::sleep(LOOK_PAUSE.0.min(next)).await;
                    let _ = tokio::time::timeout(next, reaper.child_event()).await;
                }
                None => tokio::time::sleep(next).await,
            }
            pause = (pause * 2).min(LOOK_PAUSE.1);
        }
    }

    /// Names and numbers of the processes that are alive, for messages.
    pub(super) fn describe(&self) -> Vec<String> {
        self.living().into_iter().map(|stat| format!("{} ({})", stat.name, stat.pid)).collect()
    }

    fn members(&self) -> Vec<Member> {
        self.living().into_iter().map(|stat| Member { pid: stat.pid, start_ticks: stat.start_ticks }).collect()
    }

    fn living(&self) -> Vec<Stat> {
        let table = process_table();
        let family = self.descendants_of.map_or_else(HashSet::new, |root| descendants(&table, root));
        let own = own_pid();
        table
            .into_iter()
            .filter(|stat| stat.pid != own && !stat.is_dead())
            .filter(|stat| family.contains(&stat.pid) || self.in_session(stat) || self.carries_entry(stat.pid))
            .collect()
    }

    /// A session id outlives its leader, and the number may be given to another session once that has no member left; the start times
    /// tell them apart: nobody in the session of the main process is older than it.
    fn in_session(&self, stat: &Stat) -> bool {
        self.mains.iter().any(|main| {
            stat.session == main.pid
                && stat.start_ticks >= main.start_ticks
                && (stat.pid != main.pid || stat.start_ticks == main.start_ticks)
        })
    }

    /// Unreadable environments belong to other users, and so to other attempts.
    fn carries_entry(&self, pid: i32) -> bool {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| self.is_named_in(&environ))
    }

    fn is_named_in(&self, environ: &[u8]) -> bool {
        let entries = || environ.split(|byte| *byte == 0);
        if !entries().any(|entry| entry == self.entry) {
            return false;
        }
        let Some(node) = self.node else { return true };
        let named = entries().find_map(|entry| std::str::from_utf8(entry.strip_prefix(NODE_VARIABLE.as_bytes())?.strip_prefix(b"=")?).ok());
        named.map_or(node == 0, |named| named == node.to_string())
    }
}

/// Kills the agent of `attempt`, whose folder this is, and everything it has started on this machine, stopped processes included, for an executor that
/// gave the attempt up. The fence must be up: nothing else keeps an agent from being started again. Blocks until nothing is left, for some seconds at
/// most; what does not end by then is in the log.
pub fn kill(folder: &AttemptFolder, attempt: AttemptId) {
    let mains = folder.started().ok().flatten().map(|started| started.mains_now()).unwrap_or_default();
    let deadline = Instant::now() + OUTSIDER_PATIENCE;
    while folder.agent_is_alive() {
        if Instant::now() >= deadline {
            tracing::error!(%attempt, folder = %folder.path().display(), "the agent of the attempt does not end");
            break;
        }
        // None: it has begun to live an instant ago and has not said who it is.
        if let Some(pid) = folder.agent_pid().filter(|pid| *pid != own_pid()) {
            kill_with_descendants(pid, deadline);
        }
        std::thread::sleep(LOOK_PAUSE.0);
    }
    end_all(attempt, &Tree::of_node((attempt, folder.node()), mains));
    container::remove_leftovers(folder.path());
}

/// Kills the agent `pid` after everything below it: once it is gone nobody knows any more what was. It is held so that it neither starts anything nor
/// takes the deaths for the code's own.
fn kill_with_descendants(pid: i32, deadline: Instant) {
    let Some(start_ticks) = start_ticks(pid) else { return };
    let agent = Member { pid, start_ticks };
    send(&agent, Signal::STOP);
    loop {
        let table = process_table();
        let family = descendants(&table, pid);
        let alive: Vec<_> = table.iter().filter(|stat| family.contains(&stat.pid) && !stat.is_dead()).collect();
        if alive.is_empty() || Instant::now() >= deadline {
            return send(&agent, Signal::KILL);
        }
        for stat in alive {
            send(&Member { pid: stat.pid, start_ticks: stat.start_ticks }, Signal::KILL);
        }
        std::thread::sleep(LOOK_PAUSE.0);
    }
}

/// Kills whatever is left of `attempt` on this machine, for an executor that removes the `folder` of an attempt whose agent is gone. Blocks
/// for a look at the process table, and for some seconds if something was left.
pub fn end_leftovers(folder: &AttemptFolder, attempt: AttemptId) {
    end_all(attempt, &Tree::of_outsider(attempt, Vec::new()));
    container::remove_leftovers(folder.path());
}

/// Asks one process to end, for a main process that passes the request on.
pub(super) fn ask(process: MainProcess) {
    send(&Member { pid: process.pid, start_ticks: process.start_ticks }, Signal::TERM);
}

fn end_all(attempt: AttemptId, tree: &Tree) {
    let deadline = Instant::now() + OUTSIDER_PATIENCE;
    loop {
        let members = tree.members();
        if members.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            return tracing::error!(%attempt, left = members.len(), "processes of the attempt do not end");
        }
        tracing::warn!(%attempt, left = members.len(), "killing what is left of the attempt");
        for member in &members {
            send(member, Signal::KILL);
        }
        std::thread::sleep(LOOK_PAUSE.0);
    }
}

/// The id of this process.
pub(super) fn own_pid() -> i32 {
    getpid().as_raw_nonzero().get()
}

fn send(member: &Member, signal: Signal) {
    let Some(pid) = Pid::from_raw(member.pid) else { return };
    // Both fail only when the process is gone, which is what is wanted.
    if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
        && read_stat(member.pid).is_some_and(|stat| stat.start_ticks == member.start_ticks)
    {
        let _ = pidfd_send_signal(descriptor, signal);
    }
}

fn process_table() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(read_stat).collect()
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// When the process `pid` started, in clock ticks since boot.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    read_stat(pid).map(|stat| stat.start_ticks)
}

/// Everything below `root` in the table, without `root`.
fn descendants(table: &[Stat], root: i32) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for stat in table {
        children.entry(stat.parent).or_default().push(stat.pid);
    }
    let mut found = HashSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
    found
}

/// Reads `/proc/PID/stat`. The name stands in brackets and may itself hold brackets and spaces: what counts is the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (pid, name) = head.split_once('(')?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(Stat {
        pid: pid.trim().parse().ok()?,
        name: name.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stat(pid: i32, parent: i32) -> Stat {
        Stat { pid, name: "x".into(), state: 'S', parent, session: pid, start_ticks: 5 }
    }

    #[test]
    fn our_own_entry_in_the_process_table_is_understood() {
        let own = read_stat(own_pid()).unwrap();
        assert_eq!(own.pid, own_pid());
        assert_eq!(own.parent, rustix::process::getppid().unwrap().as_raw_nonzero().get());
        assert!(matches!(own.state, 'R' | 'S'));
        assert!(own.start_ticks > 0);
    }

    #[test]
    fn a_process_may_have_brackets_in_its_name() {
        let line = "17 (a) b (c) Z 3 17 16 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 100";
        let parsed = parse_stat(line).unwrap();
        assert_eq!((parsed.pid, parsed.name.as_str(), parsed.state), (17, "a) b (c", 'Z'));
        assert_eq!((parsed.parent, parsed.session, parsed.start_ticks), (3, 16, 12345));
        assert_eq!(parse_stat("17 (cut"), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_others_are_not() {
        let table = [stat(1, 0), stat(2, 1), stat(10, 2), stat(11, 10), stat(12, 11), stat(20, 1), stat(21, 20)];
        assert_eq!(descendants(&table, 2), HashSet::from([10, 11, 12]));
        assert_eq!(descendants(&table, 21), HashSet::new());
    }

    #[test]
    fn the_processes_of_two_nodes_on_one_machine_are_told_apart() {
        let attempt = AttemptId(uuid::Uuid::nil());
        let (first, second) =
            (format!("A=b\0{ATTEMPT_VARIABLE}={attempt}\0"), format!("{ATTEMPT_VARIABLE}={attempt}\0{NODE_VARIABLE}=1\0"));
        let of = |node| Tree::of_node((attempt, node), Vec::new());
        assert!(of(0).is_named_in(first.as_bytes()) && !of(0).is_named_in(second.as_bytes()));
        assert!(!of(1).is_named_in(first.as_bytes()) && of(1).is_named_in(second.as_bytes()));
        let all = Tree::of_outsider(attempt, Vec::new());
        assert!(all.is_named_in(first.as_bytes()) && all.is_named_in(second.as_bytes()) && !all.is_named_in(b"A=b\0"));
    }

    #[test]
    fn a_session_of_the_same_number_that_began_earlier_is_somebody_elses() {
        let main = MainProcess { pid: 40, start_ticks: 100 };
        let tree = Tree { entry: Vec::new(), node: None, descendants_of: None, mains: vec![main] };
        let at = |pid, session, start_ticks| Stat { pid, session, start_ticks, ..stat(pid, 1) };
        assert!(tree.in_session(&at(40, 40, 100)), "the main process");
        assert!(tree.in_session(&at(41, 40, 150)), "a child whose parent died");
        assert!(!tree.in_session(&at(41, 40, 90)), "older than the main process");
        assert!(!tree.in_session(&at(40, 40, 300)), "another process got the number");
        assert!(!tree.in_session(&at(41, 39, 150)), "another session");
    }

    proptest! {
        #[test]
        fn any_text_in_place_of_a_stat_line_is_refused_or_read_without_panic(text in ".*") {
            let _ = parse_stat(&text);
        }

        #[test]
        fn a_name_never_shifts_the_fields(name in "[^\u{0}]{0,15}", parent in 1..i32::MAX, start in any::<u64>()) {
            let line = format!("7 ({name}) S {parent} 1 2 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 1 2");
            let parsed = parse_stat(&line).unwrap();
            prop_assert_eq!((parsed.name, parsed.parent, parsed.session, parsed.start_ticks), (name, parent, 2, start));
        }
    }
}
