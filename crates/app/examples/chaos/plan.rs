//! What a round does, as data, all from its seed: which runs are submitted and how each is to end, which fault happens when, and what
//! each start of the server has armed. Nothing here touches a process.

use std::{fmt, time::Duration};

use trainyard_store::fail::{FAIL_POINTS, FailPoint};

use crate::seed::Seed;

/// How the code of a run ends if nothing else ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code.
    Exit(i32),
    /// By a signal that it sends itself.
    Signal(i32),
    /// Not before its time limit of one second is over.
    TimeLimit,
}

/// The time limit of runs that end by it.
pub(crate) const TIME_LIMIT_SECONDS: u64 = 1;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct RunPlan {
    /// The id that the client chooses.
    pub(crate) id: String,
    /// When it is submitted, after the beginning of the round.
    pub(crate) at: Duration,
    /// How its code ends.
    pub(crate) end: End,
    /// How long its code sleeps.
    pub(crate) sleep: Duration,
    /// How many lines it prints.
    pub(crate) lines: u64,
    /// When it is cancelled, after it was submitted.
    pub(crate) cancel_after: Option<Duration>,
    /// How often it is tried again when its own code fails.
    pub(crate) user_retries: u32,
}

/// Something bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9` of the server; it is started again after this time.
    KillServer(Duration),
    /// TERM to the server, which must end by itself; it is started again after this time.
    StopServer(Duration),
    /// The server is stopped by a signal for this time, longer than the heartbeat limit.
    PauseServer(Duration),
    /// `kill -9` of an agent, whichever this number picks.
    KillAgent(u64),
    /// `kill -9` of all agents at once.
    KillAllAgents,
    /// TERM to an agent, as when its machine is shut down.
    TermAgent(u64),
    /// An agent is stopped by a signal for this time.
    PauseAgent(u64, Duration),
    /// The user's process is killed, whichever the first number picks, by the signal that is the second.
    KillCode(u64, i32),
    /// No agent reaches the server for this time.
    Partition(Duration),
    /// The disk of the data directory is full for this time.
    FillDisk(Duration),
    /// `kill -9` of the database server and all its processes; it is started again after this time.
    KillDatabase(Duration),
}

impl Fault {
    /// A word for counts.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::KillServer(_) => "server killed",
            Self::StopServer(_) => "server stopped with TERM",
            Self::PauseServer(_) => "server paused longer than the heartbeat limit",
            Self::KillAgent(_) => "agent killed",
            Self::KillAllAgents => "all agents killed at once",
            Self::TermAgent(_) => "agent ended with TERM",
            Self::PauseAgent(..) => "agent paused",
            Self::KillCode(..) => "user's process killed",
            Self::Partition(_) => "agents cut off from the server",
            Self::FillDisk(_) => "disk filled",
            Self::KillDatabase(_) => "database server killed",
        }
    }
}

/// A fault and its time, after the beginning of the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// A whole round.
#[derive(Clone, Debug)]
pub(crate) struct RoundPlan {
    /// In the order of their submission.
    pub(crate) runs: Vec<RunPlan>,
    /// In the order of their times.
    pub(crate) steps: Vec<Step>,
    /// What each start of the server has armed, as `TRAINYARD_FAIL_POINTS`; starts after the last have nothing.
    pub(crate) armed: Vec<String>,
    /// Fault and submission are over after this time.
    pub(crate) length: Duration,
}

/// What rounds may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// How many runs a round has.
    pub(crate) live: u64,
    /// Whether the database is a server that can be killed.
    pub(crate) database_server: bool,
    /// Whether the data directory is on a disk that may be filled.
    pub(crate) small_disk: bool,
    /// The server's heartbeat limit.
    pub(crate) heartbeat_limit: Duration,
}

impl RoundPlan {
    /// The plan of round `number` of `seed`.
    pub(crate) fn make(seed: u64, number: u64, scope: &Scope) -> Self {
        let round = Seed::new(seed).part(number);
        let length = 900 + scope.live * 22;
        let runs = runs(&mut round.part(1), (seed, number), (scope.live, length));
        let steps = steps(&mut round.part(2), scope, length);
        Self { runs, steps, armed: armed(&mut round.part(3), scope.live), length: Duration::from_millis(length) }
    }
}

fn runs(seed: &mut Seed, (of, number): (u64, u64), (live, length): (u64, u64)) -> Vec<RunPlan> {
    let sleeps = 100 + length / 2;
    let mut runs: Vec<RunPlan> = (0..live)
        .map(|_| {
            let end = match seed.weighted(&[(60, 'c'), (22, 'x'), (15, 's'), (3, 't')]) {
                'c' => End::Exit(0),
                'x' => End::Exit(*seed.choose(&[1, 2, 3, 42, 100, 137, 255])),
                's' => End::Signal(*seed.choose(&[6, 9, 11, 15])),
                _ => End::TimeLimit,
            };
            RunPlan {
                id: String::new(),
                at: Duration::from_millis(seed.within(0..=length * 2 / 3)),
                end,
                sleep: if end == End::TimeLimit { Duration::from_secs(60) } else { Duration::from_millis(seed.within(0..=sleeps)) },
                lines: seed.within(0..=40),
                cancel_after: seed.once_in(12).then(|| Duration::from_millis(seed.within(0..=sleeps))),
                user_retries: u32::from(seed.once_in(8)),
            }
        })
        .collect();
    runs.sort_by_key(|run| run.at);
    for (index, run) in runs.iter_mut().enumerate() {
        run.id = format!("chaos-{of}-{number}-{index}");
    }
    runs
}

fn steps(seed: &mut Seed, scope: &Scope, length: u64) -> Vec<Step> {
    let count = seed.within(2..=7 + scope.live / 20);
    let mut steps: Vec<Step> =
        (0..count).map(|_| Step { at: Duration::from_millis(seed.within(0..=length)), fault: fault(seed, scope) }).collect();
    // One of each of those that last: two at once would be one.
    let mut lasting = Vec::new();
    steps.retain(|step| {
        let lasts = matches!(step.fault, Fault::PauseServer(_) | Fault::Partition(_) | Fault::FillDisk(_) | Fault::KillDatabase(_));
        let first = !lasting.contains(&step.fault.word());
        if lasts && first {
            lasting.push(step.fault.word());
        }
        !lasts || first
    });
    steps.sort_by_key(|step| step.at);
    steps
}

fn fault(seed: &mut Seed, scope: &Scope) -> Fault {
    let pick = seed.next();
    let brief = Duration::from_millis(seed.within(0..=400));
    let long = scope.heartbeat_limit + Duration::from_millis(seed.within(200..=900));
    let either = if seed.once_in(3) { long } else { brief };
    let signal = *seed.choose(&[9, 9, 9, 15, 11]);
    seed.weighted(&[
        (24, Fault::KillServer(brief)),
        (6, Fault::StopServer(brief)),
        (4, Fault::PauseServer(long)),
        (22, Fault::KillAgent(pick)),
        (6, Fault::KillAllAgents),
        (5, Fault::TermAgent(pick)),
        (4, Fault::PauseAgent(pick, either)),
        (16, Fault::KillCode(pick, signal)),
        (7, Fault::Partition(either)),
        (if scope.small_disk { 4 } else { 0 }, Fault::FillDisk(brief)),
        (if scope.database_server { 9 } else { 0 }, Fault::KillDatabase(brief)),
    ])
}

/// Rules for up to eight starts of the server; a third of them have none.
fn armed(seed: &mut Seed, live: u64) -> Vec<String> {
    (0..8)
        .map(|_| {
            let count = if seed.once_in(3) { 0 } else { seed.within(1..=3) };
            let rules: Vec<String> = (0..count).map(|_| rule(seed, live)).collect();
            rules.join(";")
        })
        .collect()
}

fn rule(seed: &mut Seed, live: u64) -> String {
    let FailPoint { name, can_fail, .. } = seed.choose(FAIL_POINTS);
    // Early ones, so that most are reached, and some late ones.
    let latest = seed.weighted(&[(4, 3), (3, 12), (2, live.max(4))]);
    let at = seed.within(1..=latest);
    let pause = seed.within(50..=1500);
    match seed.weighted(&[(8, 'k'), (2, 'p'), (if *can_fail { 4 } else { 0 }, 'e')]) {
        'k' => format!("{name}=kill@{at}"),
        'p' => format!("{name}=pause:{pause}@{at}"),
        _ => format!("{name}=error@{at}"),
    }
}

impl fmt::Display for RoundPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "  {:>6} ms  {:?}", step.at.as_millis(), step.fault)?;
        }
        for (index, rules) in self.armed.iter().enumerate().filter(|(_, rules)| !rules.is_empty()) {
            writeln!(f, "  start {index}: {rules}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope = Scope { live: 20, database_server: false, small_disk: false, heartbeat_limit: Duration::from_secs(2) };

    #[test]
    fn a_round_is_the_same_every_time_and_another_one_is_not() {
        let made = |seed, number| format!("{:?}", RoundPlan::make(seed, number, &SCOPE));
        assert_eq!(made(5, 3), made(5, 3));
        assert_ne!(made(5, 3), made(5, 4));
        assert_ne!(made(5, 3), made(6, 3));
    }

    #[test]
    fn a_hundred_rounds_have_every_fault_that_their_scope_allows_and_no_other() {
        let words = |scope: &Scope| -> std::collections::BTreeSet<&str> {
            (0..300).flat_map(|number| RoundPlan::make(1, number, scope).steps).map(|step| step.fault.word()).collect()
        };
        assert_eq!(words(&SCOPE).len(), 9);
        assert_eq!(words(&Scope { database_server: true, small_disk: true, ..SCOPE }).len(), 11);
    }

    #[test]
    fn rounds_arm_every_fail_point_sooner_or_later() {
        let all: String = (0..400).flat_map(|number| RoundPlan::make(1, number, &SCOPE).armed).collect();
        for point in FAIL_POINTS {
            assert!(all.contains(&format!("{}=kill@", point.name)), "{}", point.name);
        }
    }
}
